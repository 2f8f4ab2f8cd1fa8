"""`python -m benchmarks step`: what the loop, the ranks and the precision cost or bring.

Three ratios on one batch in memory, each from measurements that take turns in one run:
  loop over bare          the package's loop under single, against a bare tf.function step
  efficiency              2 ranks of one core each, against twice one rank of one core
  bfloat16 over float32   the loop in both precisions
and for a ResNet that keras.applications has too (patches of 120 px: --patch 120)
  loop over applications  the package's loop against a bare step of that network, same input
  bfloat16 over float32, applications   that network in both precisions
Where the loop gains less than ENOUGH from bfloat16, a profile names the layers (step_profile.py).

Every process makes step_rank.WARM_UP steps of each variant before it measures. A measurement is the
mean of step_rank.BLOCK steps; for the efficiency it is the median of `rounds` such means.
"""

from __future__ import annotations

import collections
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import click

from benchmarks import options, record, scaling, step_profile, turns
from benchmarks.step_rank import BLOCK, WARM_UP
from kerass2 import config

ENOUGH = 1.6


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@options.experiment
@options.count("--batch", 64, "Patches a step and rank; the paper has 128.")
@options.patch
@options.count("--rounds", 5, "Turns that each variant takes.")
@click.option(
    "--ranks/--no-ranks",
    default=True,
    show_default=True,
    help="Measure 2 ranks too, which is long.",
)
@options.settings
@record.output_options("step.jsonl")
def main(
    experiment: str,
    batch: int,
    patch: int,
    rounds: int,
    ranks: bool,
    settings: tuple[str, ...],
    output: pathlib.Path,
) -> None:
    """Measure the training step on this machine."""
    chosen = config.override(config.load(experiment), settings)
    case = {"experiment": chosen.to_json(), "batch": batch, "patch": patch, "rounds": rounds}
    what: dict[str, Any] = {"experiment": chosen.name, "batch": batch, "patch": patch}
    kinds = ("bare", "loop", "applications") if _has_twin(chosen) else ("bare", "loop")
    variants = [(kind, precision) for precision in options.PRECISIONS for kind in kinds]
    seconds = dict(zip(variants, _measure([], case, "single", variants), strict=True))
    for precision in options.PRECISIONS:
        bare, loop = (seconds[kind, precision] for kind in ("bare", "loop"))
        _report(output, "loop over bare", bare, loop, batch, {"precision": precision, **what})
        if _has_twin(chosen):
            theirs = seconds["applications", precision]
            of = {"precision": precision, **what}
            _report(output, "loop over applications", theirs, loop, batch, of)
    both = {"precision": "both", **what}
    for kind in kinds[1:]:
        name = "bfloat16 over float32" + (", applications" if kind == "applications" else "")
        float32, bfloat16 = (seconds[kind, precision] for precision in options.PRECISIONS)
        _report(output, name, float32, bfloat16, batch, both)
    loops = [statistics.median(seconds["loop", precision]) for precision in options.PRECISIONS]
    if _has_twin(chosen) and loops[0] / loops[1] < ENOUGH:
        _profile(output, case, what)
    if not ranks:
        return
    what["cores_used"] = cores = _two_cores()
    medians = _measure_ranks(case, cores)
    for precision in options.PRECISIONS:
        for strategy in scaling.DISTRIBUTED:
            alone, together = medians["single", precision], medians[strategy, precision]
            name, of = f"efficiency of 2 ranks, {strategy}", {"precision": precision, **what}
            _report(output, name, alone, together, 2 * batch, of, BLOCK * rounds)


def _profile(output: pathlib.Path, case: dict[str, Any], what: dict[str, Any]) -> None:
    """Time each layer by itself in a new process; append and print where the time goes."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "layers.json"
        script = [sys.executable, "-m", "benchmarks.step_profile"]
        subprocess.run([*script, json.dumps({**case, "output": str(path)})], check=True)
        rows = step_profile.summarise(json.loads(path.read_text()))
    record.append(output, "layers of a step", **what, unit="s", layers=rows)
    click.echo("layers, each alone: share of the sum in bfloat16; float32 over bfloat16")
    for row in rows:
        click.echo(f"  {row['layers']:<32} {row['share']:6.1%}  {row['ratio']:.2f}")


def _has_twin(experiment: config.Experiment) -> bool:
    """True for a ResNet of a depth that keras.applications has."""
    options = experiment.model.options
    plain = options.get("width", 64) == 64 and options.get("depth", 50) in (50, 101)
    return experiment.model.name == "resnet" and plain


def _two_cores() -> list[int]:
    """Two cores that this process may use; two physical ones where there are."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise click.ClickException("the efficiency of 2 ranks needs 2 cores, and here is 1")
    first = cores[0]
    other = [core for core in cores if core not in _siblings(first)]
    return [first, (other or cores[1:])[0]]


def _siblings(core: int) -> set[int]:
    """The hardware threads of a core's physical core; itself alone where Linux does not say."""
    path = pathlib.Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    try:
        text = path.read_text().strip()
    except OSError:
        return {core}
    ranges = [[int(end) for end in part.split("-")] for part in text.split(",")]
    return {core, *(i for ends in ranges for i in range(ends[0], ends[-1] + 1))}


def _measure_ranks(case: dict[str, Any], cores: list[int]) -> dict[tuple[str, str], list[float]]:
    """Seconds a step of one rank on the first core, and of two ranks on a core each.

    Medians of each turn's processes, which start anew in the order: single, horovod, multiworker.

    Returns:
      (strategy, precision) -> one median a turn.
    """
    launch = [sys.executable, "-m", "strategies.launch", "--workers", "2", "--strategy"]
    # The launcher shares the cores that it may use among its ranks: one each.
    prefixes = {name: [*turns.pinned(cores), *launch, name, "--"] for name in scaling.DISTRIBUTED}
    prefixes = {"single": turns.pinned(cores[:1]), **prefixes}
    variants = [("loop", precision) for precision in options.PRECISIONS]
    found: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    for _ in range(case["rounds"]):
        for strategy, prefix in prefixes.items():
            measured = _measure(prefix, case, strategy, variants)
            for precision, seconds in zip(options.PRECISIONS, measured, strict=True):
                found[strategy, precision].append(statistics.median(seconds))
    return found


def _measure(
    prefix: list[str], case: dict[str, Any], strategy: str, variants: list[tuple[str, str]]
) -> list[list[float]]:
    """Seconds a step of each variant, by new processes."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "seconds.json"
        case = {**case, "strategy": strategy, "variants": variants, "output": str(path)}
        rank = [sys.executable, "-m", "benchmarks.step_rank", json.dumps(case)]
        subprocess.run([*prefix, *rank], check=True)
        found: list[list[float]] = json.loads(path.read_text())
        return found


def _report(
    output: pathlib.Path,
    name: str,
    base: list[float],
    measured: list[float],
    patches: int,
    what: dict[str, Any],
    steps: int = BLOCK,
) -> None:
    """Append one record and print it.

    The ratio is the base's seconds a step over the measured ones, turn by turn; the throughput is
    of the measured ones, whose step takes `patches` on all ranks together.
    """
    ratios = [a / b for a, b in zip(base, measured, strict=True)]
    rates = [patches / seconds for seconds in measured]
    ratio = record.figure(ratios, "1", warm_up=WARM_UP, steps=steps)
    throughput = record.figure(rates, "patches/s", warm_up=WARM_UP, steps=steps)
    record.append(output, name, **what, ratio=ratio, throughput=throughput)
    click.echo(
        f"{name}, {what['precision']}: {record.tell(ratio, 3)}, "
        f"{throughput['median']:.1f} patches/s"
    )
