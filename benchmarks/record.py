"""Records: what was measured, where, with which software; one JSON line each.

Every figure has its unit, spread, number of repeats and of steps before them. A line is only ever
added. Version 2 adds the system, what disturbed a figure, and GPUs, host and load to "where";
lines of version 1 say the same in the same words and are read as the local system's.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import click
import numpy as np

from benchmarks import machine

VERSION = 2
READABLE = (1, VERSION)
LOCAL = "local"
RESULTS = pathlib.Path(machine.RESULTS)
# A figure whose quartiles lie further apart than this part of its median was disturbed. Measured on
# 2 cores: of 16 kinds of training step with nothing beside them the middle one lies 3 % apart and
# nine in ten at most 6 %; of 9 kinds of all-reduce beside a job that came and went 14 to 45 %.
WIDE = 0.15
# Labels that MLPerf's log has a name for (mllog/constants.py); it has none for patches a second.
MLPERF = {
    "global_batch": "global_batch_size",
    "train": "train_samples",
    "seed": "seed",
    "optimizer": "opt_name",
    "learning_rate": "opt_base_learning_rate",
    "accumulation_steps": "gradient_accumulation_steps",
}
_KEY = "benchmarks.system"

Line = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A line that is no record, or of a version that this code does not read."""

    path: pathlib.Path
    """The file."""
    line: int
    """Number of the line, from 1."""
    found: str
    """What is there instead."""

    def __str__(self) -> str:
        """In one line."""
        return f"{self.path}, line {self.line}: {self.found}"


def figure(
    values: Sequence[float],
    unit: str,
    *,
    warm_up: int = 0,
    steps: int = 1,
    whole: float | None = None,
) -> dict[str, Any]:
    """Median and quartiles of measurements; "disturbed": True where they are WIDE apart.

    Args:
      values: One number a measurement.
      unit: Of the values; "1" for a ratio.
      warm_up: Steps that each process makes of each variant before it measures.
      steps: Steps that each value rests on, of each variant.
      whole: What the values are parts of, and their spread is judged by; by default their median.
    """
    low, median, high = (
        float(q) for q in np.percentile(np.asarray(values, np.float64), (25, 50, 75))
    )
    found = {
        "median": median,
        "quartiles": [low, high],
        "repeats": len(values),
        "steps": steps,
        "warm_up": warm_up,
        "unit": unit,
    }
    disturbed = high - low > WIDE * (abs(median) if whole is None else whole)
    return {**found, "disturbed": True} if disturbed else found


def tell(found: dict[str, Any], places: int = 2) -> str:
    """A figure for a terminal: median and quartiles, and whether load disturbed it."""
    low, high = found["quartiles"]
    told = f"{found['median']:.{places}f} ({low:.{places}f} to {high:.{places}f})"
    return f"{told}, disturbed" if found.get("disturbed") else told


def where() -> dict[str, Any]:
    """This machine, its software and the commit."""
    return machine.describe()


def system() -> str:
    """The system that records are made for: --system of the command that runs."""
    context = click.get_current_context(silent=True)
    return LOCAL if context is None else str(context.meta.get(_KEY, LOCAL))


def output_options(name: str) -> Callable[[Any], Any]:
    """--system and -o of a benchmark, whose record has this name in the system's folder."""

    def keep(context: click.Context, _: click.Parameter, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", value):
            raise click.BadParameter(f"{value!r}: letters, digits, _, . and - make a name")
        context.meta[_KEY] = value
        return value

    def decorate(command: Any) -> Any:
        path = click.option(
            "-o",
            "--output",
            type=click.Path(path_type=pathlib.Path),
            default=lambda: RESULTS / system() / name,
            show_default=f"{RESULTS}/SYSTEM/{name}",
            help="Record to append to.",
        )
        named = click.option(
            "--system",
            default=LOCAL,
            show_default=True,
            callback=keep,
            expose_value=False,
            is_eager=True,
            help="What the record calls this machine: a name of benchmarks/systems.",
        )
        return named(path(command))

    return decorate


def append(output: pathlib.Path, what: str, /, **numbers: Any) -> Line:
    """Add one line to a record, and return it; lines that are there stay as they are.

    A last line that a run left unfinished stays too, as a line of its own that read() names.
    """
    named = {MLPERF[key]: value for key, value in numbers.items() if key in MLPERF}
    line: Line = {"version": VERSION, "what": what, "system": system(), **numbers}
    if named:
        line["mllog"] = named
    line["where"] = where()
    text = json.dumps(line) + "\n"
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("ab+") as file:
        if file.seek(0, 2):
            file.seek(-1, 2)
            text = text if file.read(1) == b"\n" else "\n" + text
        file.write(text.encode())
    return line


def read(folder: pathlib.Path) -> tuple[list[Line], list[Problem]]:
    """Lines of all *.jsonl of a folder (or of one file), and what else stands there.

    Files by name, lines as they were added. A damaged line does not keep the others from being
    read.
    """
    lines: list[Line] = []
    problems: list[Problem] = []
    for path in [folder] if folder.is_file() else sorted(folder.glob("*.jsonl")):
        for number, text in enumerate(path.read_bytes().splitlines(), 1):
            if not text.strip():
                continue
            found = _parse(text)
            if isinstance(found, str):
                problems.append(Problem(path, number, found))
            else:
                lines.append(found)
    return lines, problems


def _parse(text: bytes) -> Line | str:
    """A line, or what is wrong with it."""
    try:
        line = json.loads(text)
    except ValueError:
        shown = text[:40].decode(errors="replace")
        return f"damaged: no JSON: {shown!r}{'...' if len(text) > 40 else ''}"
    if not isinstance(line, dict) or "version" not in line:
        return "no record: a JSON object with a version is expected"
    if line["version"] not in READABLE:
        known = " and ".join(map(str, READABLE))
        return f"of version {line['version']}; this code reads {known}"
    if not isinstance(line.get("what"), str):
        return "damaged: it does not say what was measured"
    for key, value in line.items():
        if isinstance(value, dict) and "median" in value and not _is_figure(value):
            return f"damaged: {key} is no figure: {json.dumps(value)[:80]}"
    return {**line, "system": line.get("system", LOCAL)}


def _is_figure(value: dict[str, Any]) -> bool:
    quartiles = value.get("quartiles")
    if not isinstance(quartiles, list) or len(quartiles) != 2:
        return False
    numbers = [value["median"], *quartiles]
    sound = all(isinstance(n, int | float) and math.isfinite(n) for n in numbers)
    return sound and isinstance(value.get("unit"), str)


def compare(
    path: pathlib.Path,
    name: str,
    base: Sequence[float],
    measured: Sequence[float],
    what: dict[str, Any],
    warm_up: int = 0,
) -> None:
    """Append one record of seconds and print it; the ratio is base over measured, turn by turn."""
    ratios = [a / b for a, b in zip(base, measured, strict=True)]
    ratio = figure(ratios, "1", warm_up=warm_up)
    both = {"base": base, "measured": measured}
    seconds = {key: figure(values, "s", warm_up=warm_up) for key, values in both.items()}
    append(path, name, **what, ratio=ratio, seconds=seconds)
    click.echo(
        f"{name}: {tell(ratio)}, "
        f"{seconds['base']['median']:.2f} s against {seconds['measured']['median']:.2f} s"
    )
