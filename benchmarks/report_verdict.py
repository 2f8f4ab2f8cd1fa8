"""What the numbers say, in sentences; nothing here is not in a record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks import project_checks, report_quality
from benchmarks.project import ENOUGH
from benchmarks.report_scaling import (
    STRATEGIES,
    Line,
    order,
    published_values,
    select,
    select_scaling,
    tell_ranks,
    title_of,
)
from benchmarks.report_words import DISTURBED, median, number, tell
from benchmarks.systems import System

# What both are to be compared by: the all-reduce of the heaviest gradients.
HEAVIEST = "bigearthnet_ms"
# Kinds of lines of `benchmarks step`, in words.
STEPS = {
    "loop over bare": "the training loop's throughput over that of a bare step",
    "bfloat16 over float32": "throughput in bfloat16 over float32",
    "bfloat16 over float32, applications": "keras.applications' network in bfloat16 over float32",
    "loop over applications": "the training loop's throughput over keras.applications' network's",
    "efficiency of 2 ranks, horovod": "2 ranks of a core each over twice one, horovod",
    "efficiency of 2 ranks, multiworker": "2 ranks of a core each over twice one, multiworker",
}


def verdict(
    system: System, shown: System, records: Sequence[Line], projected: dict[str, Any]
) -> list[str]:
    """Sentences, the comparison of strategies first; `shown` has what is published beside."""
    sentences = [
        *_strategies(records),
        *_efficiency(records),
        *_steps(records),
        *_sums(records),
        *_readers(records),
        *_published(shown),
        *report_quality.sentences(shown, records),
        *_checks(projected),
        *_projected(projected),
        *_disturbed(records),
    ]
    if not records:
        sentences.insert(
            0, f"Nothing was measured on {system.name}: what follows is published or projected."
        )
    return sentences or ["These records compare nothing."]


def _strategies(records: Sequence[Line]) -> Iterator[str]:
    """Who is ahead, and whether the spread allows to say so."""
    for line in select(records, "strategies"):
        ratio = line["ratio"]
        low, high = ratio["quartiles"]
        scaling = f"{line.get('mode', 'weak')} scaling"
        ranks = tell_ranks(line)
        where = f"{title_of(line['experiment'])}, {scaling}, {line['precision']}, {ranks}"
        told = f"Horovod's throughput over multiworker's is {tell(ratio)}"
        if low <= 1 <= high or abs(median(ratio) - 1) < high - low:
            yield f"{where}: {told}: no difference beyond the spread."
        else:
            yield f"{where}: {told}: {'Horovod' if low > 1 else 'multiworker'} is ahead."


def _efficiency(records: Sequence[Line]) -> Iterator[str]:
    """The largest number of ranks of each strategy."""
    found = [line for line in select_scaling(records) if line["ranks"] > 1 and "efficiency" in line]
    for experiment in order([line["experiment"] for line in found]):
        for mode in order([line["mode"] for line in found if line["experiment"] == experiment]):
            of = [
                line for line in found if (line["experiment"], line["mode"]) == (experiment, mode)
            ]
            most = max(line["ranks"] for line in of)
            told = [
                f"{line['strategy']} {line['precision']} {tell(line['efficiency'])}"
                for line in of
                if line["ranks"] == most
            ]
            name = f"{title_of(experiment)}, {mode} scaling"
            yield f"{name}: efficiency at {most} ranks: {'; '.join(told)}."


def _steps(records: Sequence[Line]) -> Iterator[str]:
    """What `benchmarks step` measured: ranks, the loop, precision."""
    last = {
        (line["what"], line["precision"], title_of(line["experiment"])): tell(line["ratio"])
        for line in records
        if line["what"] in STEPS
    }
    for (what, precision, name), told in last.items():
        yield f"{name}, {STEPS[what]}{'' if precision == 'both' else f', {precision}'}: {told}."


def _readers(records: Sequence[Line]) -> Iterator[str]:
    """The fastest and the slowest way to read, at the most ranks."""
    found = select(records, "reading")
    for task in order([line["task"] for line in found]):
        most = max(line["ranks"] for line in found if line["task"] == task)
        of = [line for line in found if (line["task"], line["ranks"]) == (task, most)]
        of.sort(key=lambda line: -median(line["throughput"]))
        if len(of) > 1:
            told = [f"{line['source']} {tell(line['throughput'])}" for line in (of[0], of[-1])]
            yield f"Reading {task}, {most} ranks: {' to '.join(told)} patches/s."


def _sums(records: Sequence[Line]) -> Iterator[str]:
    """The paths of the heaviest gradients, against the best peer and the bound."""
    ratios = select(records, "allreduce ratio")
    for line in select(records, "allreduce"):
        path, ranks = line["path"], line["ranks"]
        if line.get("set") != HEAVIEST or not path.startswith(STRATEGIES) or line.get("settings"):
            continue
        told = f"{tell(line['algorithm_bandwidth'])} GB/s"
        if "over_bound" in line:
            told += f", {tell(line['over_bound'])} of the bound"
        for other in ratios:
            same = ("path", "ranks", "set", "settings")
            if all(other.get(key) == line.get(key) for key in same):
                told += f", {tell(other['ratio'])} of {other['base']}"
        yield f"{title_of(HEAVIEST)}'s gradients summed over {ranks} ranks by {path}: {told}."


def _published(system: System) -> Iterator[str]:
    """What follows from published curves."""
    for curve in system.curve:
        values = published_values(curve, "efficiency")
        if values:
            told = ", ".join(
                f"{number(v)} at {n}" for n, v in zip(curve.ranks, values, strict=True) if n > 4
            )
            name = f"{curve.title}, {curve.strategy}"
            yield f"Published, {name}: efficiency over {curve.ranks[0]} ranks: {told}."


def _checks(projected: dict[str, Any]) -> Iterator[str]:
    """How far the model is off on what its fit has not seen."""
    found = projected["checks"]
    for what in order([check.what for check in found if not check.size]):
        told = [
            f"{check.error:+.1%} at {check.ranks} ranks" for check in found if check.what == what
        ]
        yield f"The model against {what}: {', '.join(told)}."
    sums = [check for check in found if check.size]
    for row in project_checks.summarise(sums):
        yield (
            f"The model against all-reduces, {row['of']}: median error {row['median_error']:.1%}, "
            f"worst {row['worst']:+.1%} of {row['count']}."
        )


def _projected(projected: dict[str, Any]) -> Iterator[str]:
    """Where the model's efficiency falls below ENOUGH."""
    highest = projected["ranks"][-1]
    for case in projected["cases"]:
        first, *others = case["remedies"]
        name = f"{case['title']}, projected for {projected['strategy']} in {projected['precision']}"
        if first["below"] is None:
            last = f"{number(first['efficiency'])} at {highest} ranks"
            worse = [f"with {r['name']} at {r['below']}" for r in others if r["below"]]
            falls = f" It would fall below {', '.join(worse)} ranks." if worse else ""
            yield f"{name}: efficiency stays above {ENOUGH}: {last}.{falls}"
            continue
        devices = case["step"]["devices"]
        if devices and first["below"] > devices:
            yield (
                f"{name}: efficiency falls below {ENOUGH} at {first['below']} ranks, since there "
                f"is room for {devices} only: more take turns."
            )
            continue
        better = [
            f"{remedy['name']} (to {remedy['below']})"
            if remedy["below"]
            else f"{remedy['name']} (past {highest})"
            for remedy in others
            if (remedy["below"] or highest + 1) > first["below"]
        ]
        moves = (
            f" What moves that: {', '.join(better)}." if better else " Nothing tried moves that."
        )
        yield f"{name}: efficiency falls below {ENOUGH} at {first['below']} ranks.{moves}"


def _disturbed(records: Sequence[Line]) -> Iterator[str]:
    """How many figures load has disturbed."""
    every = [figure for line in records for figure in _figures(line)]
    marked = sum(bool(figure.get("disturbed")) for figure in every)
    if marked:
        yield (
            f"{marked} of {len(every)} figures were disturbed by load (marked {DISTURBED}): "
            "their quartiles lie far apart."
        )


def _figures(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if "median" in value and "quartiles" in value:
            yield value
        else:
            for part in value.values():
                yield from _figures(part)
