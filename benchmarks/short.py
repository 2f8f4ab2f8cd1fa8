"""`python -m benchmarks short`: ratios of minutes, against those that are kept (make bench-short).

No time is judged, only ratios of times that take turns in one run, which hold on any machine of a
class: each must not fall below its kept median by more than its band. That is three times the
spread of the kept record (its quartiles' distance over its median), and never less than the
ratio's own least band: so much a ratio differs between machines and hours of one class. What falls
below is measured again, and fails where it falls below again; a better ratio never fails, since a
slower disk makes some: it is named, to be kept.
"""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import click

from benchmarks import allreduce, machine, record, scaling, turns
from kerass2 import config

KEPT = machine.ROOT / machine.RESULTS / "baseline" / "short.jsonl"
WHAT = "short"
SPREADS = 3
# Ratio -> least band, a part of the kept median.
LEAST = {
    # Of a loop whose steps take a quarter of a second the rest is noise.
    "loop over bare": 0.15,
    # By the processor's matrix units: compared on the same processor only.
    "bfloat16 over float32": 0.25,
    # Two cores share caches and memory, more or less of them.
    "2 ranks over 1, horovod": 0.25,
    "2 ranks over 1, multiworker": 0.25,
    # Files in memory here and there; a GeoTIFF a band costs system calls.
    "tfrecord over geotiff": 0.6,
    "attention in blocks over whole": 0.4,
    # Connections of one host: as its kernel makes them.
    "all-reduce, horovod over tcp": 0.5,
    "all-reduce, multiworker over horovod": 0.5,
}
SAME_CPU = ("bfloat16 over float32",)
MODEL = ("model.options.filters=128", "model.options.blocks=2")
ROUNDS = 5
WARM_UP = 2

Ratios = dict[str, list[float]]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--keep", is_flag=True, help="Compare with nothing; add to the kept records.")
@click.option("--only", multiple=True, type=click.Choice(list(LEAST)), help="Default: all.")
@click.option("--kept", type=click.Path(path_type=pathlib.Path), default=KEPT, help="Kept records.")
@click.option(
    "-o", "--output", type=click.Path(path_type=pathlib.Path), help="Record to append to."
)
def main(
    keep: bool, only: tuple[str, ...], kept: pathlib.Path, output: pathlib.Path | None
) -> None:
    """Compare this code's ratios with the kept ones."""
    names = [name for name in LEAST if name in only or not only]
    before = {} if keep else read_kept(kept, names)
    with tempfile.TemporaryDirectory() as folder:
        path = kept if keep else output or pathlib.Path(folder) / "short.jsonl"
        lines = measure(names, path)
        if keep:
            return
        low = [name for name in names if judge(name, lines.get(name), before[name])]
        again = measure(low, path) if low else {}
        failed = [name for name in low if judge(name, again.get(name), before[name])]
    for name in failed:
        click.echo(f"kept:     {json.dumps(before[name])}")
        click.echo(f"measured: {json.dumps(again.get(name) or lines.get(name))}")
    if failed:
        raise click.ClickException(
            f"below the kept ratio, twice: {', '.join(failed)} (the records above). If it is "
            "meant: python -m benchmarks short --keep"
        )


def read_kept(path: pathlib.Path, names: list[str]) -> dict[str, record.Line]:
    """The last kept line of each ratio.

    Raises:
        click.ClickException: there is none, or a line is damaged.
    """
    lines, problems = record.read(path) if path.is_file() else ([], [])
    if problems:
        raise click.ClickException(f"the kept records are damaged: {problems[0]}")
    found = {line["ratio_of"]: line for line in lines if line["what"] == WHAT}
    if missing := [name for name in names if name not in found]:
        raise click.ClickException(
            f"{path} keeps nothing of {', '.join(missing)}: python -m benchmarks short --keep"
        )
    return found


def band(name: str, kept: Mapping[str, Any]) -> tuple[float, float]:
    """The least ratio that is no fall, and the largest that needs no keeping."""
    low, high = kept["quartiles"]
    width = max(LEAST[name], SPREADS * (high - low) / kept["median"])
    return kept["median"] * (1 - width), kept["median"] * (1 + width)


def judge(name: str, line: record.Line | None, kept: record.Line) -> bool:
    """True where a ratio has fallen below its band, or was not measured; says what is."""
    if line is None:
        click.echo(f"{name}: not measured (its error above)")
        return True
    found = line["ratio"]["median"]
    low, high = band(name, kept["ratio"])
    told = f"{name}: {found:.3f}, kept {kept['ratio']['median']:.3f} (least {low:.3f})"
    if name in SAME_CPU and line["where"]["cpu"] != kept["where"]["cpu"]:
        click.echo(f"{told}: another processor, not compared")
        return False
    better = ": better than its band, keep it" if found > high else ""
    click.echo(told + (": BELOW" if found < low else better))
    return bool(found < low)


def measure(names: list[str], path: pathlib.Path) -> dict[str, record.Line]:
    """Lines of the ratios that could be measured, appended to a record."""
    found: Ratios = {}
    for wanted, ratios in GROUPS.items():
        if set(wanted) & set(names):
            found |= ratios()
    return {
        name: record.append(
            path, WHAT, ratio_of=name, ratio=record.figure(found[name], "1", warm_up=WARM_UP)
        )
        for name in names
        if name in found
    }


def _over(
    measured: list[float] | None, base: list[float] | None, factor: float = 1.0
) -> list[float]:
    """Rates of `measured` over those of `base`, turn by turn, from seconds."""
    if not measured or not base:
        return []
    return [factor * b / m for m, b in zip(measured, base, strict=True)]


def _steps() -> Ratios:
    """Loop and bare step, both precisions, on one rank; the loop on two."""
    experiment = config.override(config.load("superres_20m"), MODEL)
    case = {"experiment": experiment.to_json(), "patch": 32}
    keys = [("single", 1), ("horovod", 2), ("multiworker", 2)]
    starts = {name: scaling.start(name, ranks, 2, case) for name, ranks in keys}
    asked = {"bare": ("float32", "bare"), "loop": ("float32", "loop"), "half": ("bfloat16", "loop")}
    found: Ratios = {}
    with turns.open_jobs(starts) as jobs:
        for _ in range(ROUNDS):
            for name in list(jobs):
                for kind, (precision, what) in asked.items():
                    if name != "single" and kind != "loop":
                        continue
                    request = scaling.request(precision, 8, 2, kind=what)
                    one = turns.take_turns({name: jobs[name]}, {name: request}, 1)
                    if name not in one:
                        del jobs[name]
                        break
                    found.setdefault(f"{name} {kind}", []).extend(one[name])
    loop = found.get("single loop")
    ratios = {
        "loop over bare": _over(loop, found.get("single bare")),
        "bfloat16 over float32": _over(found.get("single half"), loop),
        **{
            f"2 ranks over 1, {n}": _over(found.get(f"{n} loop"), loop, 2)
            for n in scaling.DISTRIBUTED
        },
    }
    return {name: values for name, values in ratios.items() if len(values) == ROUNDS}


def _reading() -> Ratios:
    """Shuffled native patches on one rank."""
    from benchmarks import pipeline_data, pipeline_reading

    readers = ["tfrecord", "geotiff"]
    with tempfile.TemporaryDirectory() as folder:
        case = pipeline_data.make(pathlib.Path(folder), "patches", 1440, readers)
        request = {**case, "batch": 32, "rounds": ROUNDS, "seconds": 0.7, "readers": readers}
        rates = pipeline_reading.sum_of_ranks(request, 1)
    pairs = zip(rates["tfrecord"], rates["geotiff"], strict=True)
    return {"tfrecord over geotiff": [fast / slow for fast, slow in pairs]}


def _attention() -> Ratios:
    """A call on one window, whose attention is in blocks or over all of it."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.short_rank",
        json.dumps({"size": 128, "filters": 32}),
    ]
    starts = {"attention": lambda: turns.Job("attention", [command], 1)}
    with turns.open_jobs(starts) as jobs:
        found: dict[str, list[float]] = {"blocks": [], "whole": []}
        for job in jobs.values():
            for _ in range(ROUNDS):
                for name, block in (("blocks", 32), ("whole", 0)):
                    request = {"block": block, "steps": 2, "warm_up": 1}
                    found[name].append(job.slowest(request))
    ratios = _over(found["blocks"], found["whole"])
    return {"attention in blocks over whole": ratios} if ratios else {}


def _sums() -> Ratios:
    """Sums of 16 MB by two ranks."""
    found: Ratios = {}
    with tempfile.TemporaryDirectory() as folder:
        starts = {
            path: allreduce.start(path, 2, pathlib.Path(folder), sys.executable)
            for path in ("horovod-gloo", "multiworker-ring", "tcp")
        }
        with turns.open_jobs(starts) as jobs:
            request = {"tensors": [2**24], "steps": 8, "warm_up": WARM_UP}
            found = turns.take_turns(jobs, dict.fromkeys(jobs, request), ROUNDS)
    horovod = found.get("horovod-gloo")
    ratios = {
        "all-reduce, horovod over tcp": _over(horovod, found.get("tcp")),
        "all-reduce, multiworker over horovod": _over(found.get("multiworker-ring"), horovod),
    }
    return {name: values for name, values in ratios.items() if values}


# Ratios -> what measures them together.
GROUPS: dict[tuple[str, ...], Callable[[], Ratios]] = {
    tuple(list(LEAST)[:4]): _steps,
    ("tfrecord over geotiff",): _reading,
    ("attention in blocks over whole",): _attention,
    tuple(list(LEAST)[6:]): _sums,
}
