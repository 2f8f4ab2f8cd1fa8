"""The report's chapters on a training step: strategies side by side, and where its time goes."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.report_plots import bars, dots
from benchmarks.report_scaling import Line, select, tell_ranks, title_of
from benchmarks.report_words import Section, Table, median, tell

# Kinds of lines that have a place of their own, and what every line has.
SHOWN = ("strategies", "allreduce ratio")
HIDDEN = ("version", "what", "system", "note", "patch", "base")


def strategies(records: Sequence[Line]) -> Section:
    """Horovod's throughput over multiworker's, measured in turns."""
    found = select(records, "strategies")
    if not found:
        gap = "Horovod and multiworker were not measured in turns: no record of strategies."
        return Section("Strategies side by side", gaps=[gap])
    names = [
        f"{title_of(line['experiment'])}, {line.get('mode', 'weak')}, {line['precision']}, "
        f"{tell_ranks(line)}"
        for line in found
    ]
    ratios = [line["ratio"] for line in found]
    table = Table(
        ["", "Horovod over multiworker", "repeats"],
        [[name, tell(r), str(r["repeats"])] for name, r in zip(names, ratios, strict=True)],
    )
    plot = dots(
        "Throughput, Horovod over multiworker",
        names,
        ratios,
        x="ratio",
        table=table,
        level=1.0,
        caption="Measured in turns in one run, A B A B; right of 1 Horovod is ahead.",
    )
    return Section("Strategies side by side", (), [plot])


def shares(records: Sequence[Line]) -> Section:
    """What a step's time goes into."""
    found = select(records, "shares")
    if not found:
        return Section("Where a step's time goes", gaps=["No record of shares."])
    kinds = ("compute", "communication", "input", "rest")
    names = [
        f"{title_of(line['experiment'])}, {line['strategy']}, {line['precision']}, "
        f"{tell_ranks(line)}"
        for line in found
    ]
    rows = [
        [name, *(tell(line.get(kind)) for kind in kinds), tell(line.get("seconds"))]
        for name, line in zip(names, found, strict=True)
    ]
    values = [[median(line[kind]) if kind in line else None for line in found] for kind in kinds]
    plot = bars(
        "Shares of a training step",
        names,
        list(zip(kinds, values, strict=True)),
        x="share of a step",
        stacked=True,
        table=Table(["", *kinds, "step [s]"], rows),
    )
    return Section("Where a step's time goes", (), [plot])


def others(records: Sequence[Line]) -> Section:
    """Ratios that no other chapter shows."""
    rows = []
    for line in records:
        if line["what"] not in SHOWN and isinstance(line.get("ratio"), dict):
            labels = [
                f"{key} {value}"
                for key, value in line.items()
                if key not in HIDDEN and isinstance(value, str | int) and value != ""
            ]
            rows.append([line["what"], tell(line["ratio"]), ", ".join(labels)])
    tables = [Table(["what", "ratio", "of"], rows)] if rows else []
    return Section("Other comparisons", (), (), tables)
