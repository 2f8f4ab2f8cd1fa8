"""`python -m benchmarks project`: a system's training with more ranks than were measured.

An alpha-beta model of the ring (project_model.py), fitted to what is measured or published
(project_cases.py), with its errors on what the fit has not seen (project_checks.py); and where the
efficiency falls below ENOUGH, by batch, compression, fusion and the ring's form.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import click

from benchmarks import project_cases, project_checks, project_records, record, systems
from benchmarks import project_model as model

ENOUGH = 0.9


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--system",
    "name",
    default=systems.LOCAL,
    show_default=True,
    help="A name of benchmarks/systems, or the path of such a file.",
)
@click.option(
    "--ranks",
    default="1..1024",
    show_default=True,
    help="LOW..HIGH: doublings; or single numbers with commas.",
)
@click.option(
    "--records",
    type=click.Path(path_type=pathlib.Path),
    help=f"Folder of *.jsonl; default: {record.RESULTS}/SYSTEM.",
)
@click.option(
    "--strategy", default="horovod", type=click.Choice(list(project_cases.PATHS)), show_default=True
)
@click.option(
    "--precision", default="float32", type=click.Choice(["float32", "bfloat16"]), show_default=True
)
@click.option(
    "--share",
    default=project_cases.SHARE_OF_PEAK,
    type=click.FloatRange(0, 1, min_open=True),
    show_default=True,
    help="Of the device's peak, that a step reaches where nothing else tells its time.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON lines instead of tables.")
def main(
    name: str,
    ranks: str,
    records: pathlib.Path | None,
    strategy: str,
    precision: str,
    share: float,
    as_json: bool,
) -> None:
    """Say how a system's training would do with more ranks than were measured."""
    wanted = parse_ranks(ranks)
    system = systems.load(name)
    lines, problems = project_records.read(system, records)
    for problem in problems:
        click.echo(f"warning: {problem}", err=True)
    found = project(system, lines, wanted, strategy, precision, share)
    if as_json:
        for line in to_lines(found):
            click.echo(json.dumps(line))
    else:
        show(found)


def parse_ranks(text: str) -> list[int]:
    """Numbers of ranks in ascending order; of LOW..HIGH the doublings of LOW, and HIGH.

    Raises:
        click.BadParameter: anything else.
    """
    low, dots, high = text.partition("..")
    try:
        if not dots:
            numbers = sorted({int(number) for number in text.split(",")})
        else:
            first, last = int(low), int(high)
            doublings = [first << i for i in range(64) if first << i < last]
            numbers = [*doublings, last] if 0 < first <= last else []
    except ValueError:
        numbers = []
    if not numbers or numbers[0] < 1 or numbers[-1] > 2**20:
        raise click.BadParameter(
            f"--ranks {text}: expected LOW..HIGH or numbers with commas, from 1 to {2**20}"
        )
    return numbers


def project(
    system: systems.System,
    lines: Sequence[record.Line],
    ranks: Sequence[int],
    strategy: str = "horovod",
    precision: str = "float32",
    share: float = project_cases.SHARE_OF_PEAK,
) -> dict[str, Any]:
    """Everything that `show` and the report need.

    Returns:
        {"system", "strategy", "precision", "ranks", "links": what they rest on, "cases": of each
        network its curve and remedies, "gaps": sentences, "checks": [Check]}.
    """
    found: dict[str, Any] = {"system": system.name, "strategy": strategy, "precision": precision}
    found |= {"ranks": list(ranks), "links": "", "cases": [], "gaps": [], "checks": []}
    path = project_cases.find_path(lines, strategy)
    if path:
        found["checks"] += project_checks.check_links(lines, path)
    found["checks"] += project_checks.check_steps(system, lines, strategy, precision)
    try:
        network, found["links"] = project_cases.build_network(system, lines, strategy)
    except ValueError as error:
        found["gaps"].append(str(error))
        return found
    found["checks"] += project_checks.check_curves(system, network)
    for experiment in project_cases.WORKS:
        case = project_cases.build_case(
            system, lines, experiment, strategy, precision, network, share
        )
        if isinstance(case, str):
            found["gaps"].append(case)
        else:
            found["cases"].append(_project_case(case, network, ranks))
    return found


def _project_case(
    case: project_cases.Case, network: model.Network, ranks: Sequence[int]
) -> dict[str, Any]:
    """A network's curve over ranks, and what moves the place where it falls below ENOUGH."""
    one = case.step.compute
    curve = []
    for n in ranks:
        seconds = model.step_seconds(n, case.step, network)
        row = {"ranks": n, "seconds": seconds, "efficiency": one / seconds}
        curve.append({**row, "throughput": n * case.batch / seconds})
    remedies = []
    for name, step, through in vary(case, network):
        below = model.first_below(ENOUGH, ranks[-1], _efficiency(step, through))
        at_last = model.efficiency(ranks[-1], step, through)
        remedies.append({"name": name, "below": below, "efficiency": at_last})
    return {
        "experiment": case.experiment,
        "title": case.title,
        "batch": case.batch,
        "basis": case.basis,
        "step": dataclasses.asdict(case.step),
        "curve": curve,
        "remedies": remedies,
    }


def _efficiency(step: model.Step, network: model.Network) -> Any:
    return lambda n: model.efficiency(n, step, network)


def vary(
    case: project_cases.Case, network: model.Network
) -> Iterator[tuple[str, model.Step, model.Network]]:
    """A case as it is, and with one thing changed at a time."""
    step = case.step
    size = sum(step.buckets)
    yield "as it is", step, network
    for times in (2, 4):
        longer = {"compute": times * step.compute, "jitter": times**0.5 * step.jitter}
        yield f"batch x {times}", dataclasses.replace(step, **longer), network
    half = tuple(bucket // 2 for bucket in step.buckets)
    yield "float16 gradients", dataclasses.replace(step, buckets=half), network
    single = tuple(project_cases.tensor_sizes(project_cases.WORKS[case.experiment]))
    yield "no fusion", dataclasses.replace(step, buckets=single), network
    yield "one buffer", dataclasses.replace(step, buckets=(size,)), network
    if network.between:
        yield "ring of nodes", step, dataclasses.replace(network, hierarchical=True)
    if step.overlap < 0.5:
        yield "half overlapped", dataclasses.replace(step, overlap=0.5), network


def to_lines(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One object for each network, each check and each gap."""
    common = {key: found[key] for key in ("system", "strategy", "precision", "links")}
    for case in found["cases"]:
        yield {"what": "projection", **common, **case}
    for check in found["checks"]:
        yield {"what": "check", "of": check.what, **_numbers(check), "error": check.error}
    for gap in found["gaps"]:
        yield {"what": "gap", "gap": gap}


def _numbers(check: project_checks.Check) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(check).items() if key != "what"}


def describe_below(below: int | None, highest: int) -> str:
    """Where it falls below ENOUGH."""
    return f"at {below} ranks" if below else f"not up to {highest}"


def show(found: dict[str, Any]) -> None:
    """Tables for a terminal."""
    import rich.console
    import rich.table

    console = rich.console.Console(highlight=False)
    console.print(f"{found['system']}, {found['strategy']}, {found['precision']}")
    if found["links"]:
        console.print(f"Links {found['links']}", style="dim")
    for case in found["cases"]:
        title = f"{case['title']}, {case['batch']} patches a rank; a step: {case['basis']}"
        console.print(title, style="bold")
        table = rich.table.Table()
        for column in ("ranks", "step [s]", "patches/s", "efficiency"):
            table.add_column(column, justify="right")
        for row in case["curve"]:
            seconds, throughput = f"{row['seconds']:.4g}", f"{row['throughput']:.4g}"
            table.add_row(str(row["ranks"]), seconds, throughput, f"{row['efficiency']:.3f}")
        console.print(table)
        for remedy in case["remedies"]:
            where = describe_below(remedy["below"], found["ranks"][-1])
            console.print(
                f"  {remedy['name']}: below {ENOUGH} {where}; "
                f"{remedy['efficiency']:.3f} at {found['ranks'][-1]}"
            )
    for row in project_checks.summarise(found["checks"]):
        console.print(
            f"Not seen by its fit: {row['of']}: {row['count']} values, median error "
            f"{row['median_error']:.1%}, worst {row['worst']:+.1%}"
        )
    for gap in found["gaps"]:
        console.print(f"Gap: {gap}")
