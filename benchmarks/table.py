"""`python -m benchmarks table`: the newest figures of a system's records as a table in markdown.

Of each thing that was measured the last line counts; a figure that load disturbed has a mark.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

import click

from benchmarks import record

HEAD = "| what | figure | command |\n|---|---|---|"
DISTURBED = " (disturbed)"
# Labels that tell lines of one kind apart; others, such as the batch, stand in the record.
LABELS = ("path", "base", "set", "strategy", "experiment", "model", "precision", "mode", "ranks")
LABELS += ("cores_each", "bytes", "size", "budget", "global_batch", "settings", "ratio_of")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@record.output_options("")
def main(output: pathlib.Path) -> None:
    """Print a table of the records of a system; -o: their folder."""
    lines, problems = record.read(output)
    for problem in problems:
        click.echo(f"left out: {problem}", err=True)
    rows = make_rows(lines)
    if not rows:
        raise click.ClickException(f"{output}: no record of {', '.join(ROWS)}")
    click.echo("\n".join([HEAD, *rows]))


def make_rows(lines: Sequence[record.Line]) -> list[str]:
    """A row for each kind of line, case by case."""
    newest: dict[str, dict[str, record.Line]] = {}
    for line in lines:
        if line["what"] in ROWS:
            case = ", ".join(f"{key} {line[key]}" for key in LABELS if key in line)
            newest.setdefault(line["what"], {})[case] = line
    rows = []
    for what, (command, describe) in ROWS.items():
        for line in newest.get(what, {}).values():
            text = describe(line)
            if text:
                rows.append(f"| {text[0]} | {text[1]} | `python -m benchmarks {command}` |")
    return rows


def _number(line: record.Line, name: str, places: int = 2) -> str:
    found = line[name]
    return f"{found['median']:.{places}f}" + (DISTURBED if found.get("disturbed") else "")


def _sums(line: record.Line) -> tuple[str, str] | None:
    if not line["set"] or line.get("settings"):
        return None
    what = f"gradients of {line['set']}, {line['bytes'] / 1e6:.0f} MB, summed by {line['path']}, "
    share = f", {_number(line, 'over_bound')} of the bound" if "over_bound" in line else ""
    return f"{what}{line['ranks']} ranks", f"{_number(line, 'algorithm_bandwidth')} GB/s{share}"


def _sum_ratio(line: record.Line) -> tuple[str, str] | None:
    if not line["set"] or line.get("settings"):
        return None
    what = f"the same, {line['path']} over {line['base']}: {line['set']}, {line['ranks']} ranks"
    return what, _number(line, "ratio")


def _scaling(line: record.Line) -> tuple[str, str] | None:
    turns = line["ranks"] * line.get("cores_each", 0) > line["where"]["cores"]
    if line["ranks"] == 1 or turns:
        return None
    name = f"{line['experiment']}, {line['mode']}, {line['precision']}, {line['strategy']}"
    epoch = f"an epoch {line['epoch_seconds']['mean']:.0f} s"
    found = f"efficiency {_number(line, 'efficiency')}, {epoch}"
    return f"{name}, {line['ranks']} ranks", found


def _strategies(line: record.Line) -> tuple[str, str]:
    name = f"{line['experiment']}, {line.get('mode', 'weak')}, {line['precision']}"
    return f"{name}, {line['ranks']} ranks: horovod over multiworker", _number(line, "ratio", 3)


def _shares(line: record.Line) -> tuple[str, str]:
    parts = ("compute", "communication", "input", "rest")
    found = ", ".join(f"{part} {line[part]['median']:.0%}" for part in parts)
    name = f"a step of {line['experiment']}, {line['precision']}, {line['strategy']}"
    return f"{name}, {line['ranks']} ranks", found


def _predict(line: record.Line) -> tuple[str, str]:
    name = f"{line['model']}, {line['precision']}, {line['size']} px in memory"
    return name, f"{_number(line, 'throughput', 3)} Mpx/s"


def _harness(line: record.Line) -> tuple[str, str]:
    return "seconds a step with the harness over without", _number(line, "ratio", 4)


# Kind of line -> its command, and its row.
ROWS: dict[str, tuple[str, Callable[[record.Line], tuple[str, str] | None]]] = {
    "allreduce": ("allreduce", _sums),
    "allreduce ratio": ("allreduce", _sum_ratio),
    "scaling": ("scaling", _scaling),
    "strategies": ("scaling", _strategies),
    "shares": ("shares", _shares),
    "predict": ("predict", _predict),
    "harness over plain": ("harness", _harness),
}
