"""The report's chapter on scores: measured ones beside published ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.project_cases import WORKS
from benchmarks.quality import unit_of
from benchmarks.report_plots import Series, lines
from benchmarks.report_scaling import Line, order, select, title_of
from benchmarks.report_words import Plot, Section, Table, median, number, tell
from benchmarks.systems import Quality, System

# What is drawn, where it is there; the table has all.
PREFERRED = ("rmse", "f1")


def quality(system: System, records: Sequence[Line]) -> Section:
    """Scores against the global batch, beside published ones (tables 1 and 2, figure 6 in form)."""
    found = select(records, "quality")
    plots, gaps = [], []
    experiments = [*(q.experiment for q in system.quality), *(line["experiment"] for line in found)]
    for experiment in order(experiments, list(WORKS)):
        of = [line for line in found if line["experiment"] == experiment]
        published = [q for q in system.quality if q.experiment == experiment]
        plots += [_plot(experiment, of, one) for one in published or [None]]
        if not of:
            gaps += [f"{one.title}: published, not measured here." for one in published]
    if not plots:
        gaps.append("No record of quality, and nothing published of this system.")
    return Section("Quality against ranks, batch and time", (), plots, (), gaps)


def sentences(system: System, records: Sequence[Line]) -> Iterator[str]:
    """What the plots show, in words."""
    for plot in quality(system, records).plots:
        told = [
            ", ".join(f"{number(y)} at {x:g}" for x, y in zip(one["x"], one["y"], strict=True))
            for one in plot.figure["data"]
        ]
        names = [one["name"] for one in plot.figure["data"]]
        lines_ = [f"{name}: {text}" for name, text in zip(names, told, strict=True)]
        yield f"{plot.title}: {'; '.join(lines_)}."


def _plot(experiment: str, of: Sequence[Line], published: Quality | None) -> Plot:
    """The first metric that both have, and a table of all."""
    measured = _metrics(of)
    metrics = order([*(published.metrics if published else ()), *measured])
    both = [name for name in metrics if name in measured or not measured] or metrics
    shown = next((name for name in PREFERRED if name in both), both[0])
    unit = unit_of(shown)
    series, rows, level = _measured(of, shown), [], _level(of, shown)
    if published:
        before, level_of = _published(published, shown)
        level = level_of or level
        series = [*before, *series]
        for row in published.row:
            scores = dict(zip(published.metrics, row.scores, strict=True))
            time = f"{row.hours:g} h" if row.hours else "–"
            cells = [
                f"{row.method}, published",
                str(row.ranks or "–"),
                str(row.global_batch or "–"),
            ]
            rows.append([*cells, time, *(_printed(scores.get(metric)) for metric in metrics)])
    for line in of:
        cells = [f"{line['strategy']}, measured", str(line["ranks"]), str(line["global_batch"])]
        rows.append([*cells, str(line.get("budget", "–")), *(tell(line.get(m)) for m in metrics)])
    return lines(
        f"{title_of(experiment)}: {shown} against the global batch",
        series,
        x="global batch [patches]",
        y=shown if unit == "1" else f"{shown} [{unit}]",
        from_zero=False,
        level=level,
        table=Table(["", "ranks", "global batch", "time", *metrics], rows),
        caption=f"Published: {published.source}." if published else "",
    )


def _printed(score: float | None) -> str:
    """A score as the paper prints it."""
    return "–" if score is None else f"{score:g}"


def _metrics(of: Sequence[Line]) -> list[str]:
    """Metrics of the model itself; those of other methods are called "METRIC METHOD"."""
    every = order(
        [k for line in of for k, v in line.items() if isinstance(v, dict) and "median" in v]
    )
    return [name for name in every if name.rpartition(" ")[0] not in every]


def _level(of: Sequence[Line], metric: str) -> tuple[float, str] | None:
    """What bicubic interpolation of the same patches has."""
    name = f"{metric} bicubic"
    found = [median(line[name]) for line in of if name in line and metric in line]
    near = found and found[0] < 2 * max(median(line[metric]) for line in of if metric in line)
    return (found[0], "bicubic") if near else None


def _published(published: Quality, metric: str) -> tuple[list[Series], tuple[float, str] | None]:
    """A line a method, and the level of the one that was not trained; none without the metric."""
    if metric not in published.metrics:
        return [], None
    place = published.metrics.index(metric)
    trained = [row for row in published.row if row.global_batch]
    series = []
    for method in order([row.method for row in trained]):
        points = [row for row in trained if row.method == method]
        x = [row.global_batch for row in points if row.global_batch]
        y = [row.scores[place] for row in points]
        series.append(Series(f"{method}, published", x, y, "published" if len(x) > 1 else ""))
    other = next((row for row in published.row if not row.global_batch), None)
    # A level far outside would press the lines together: then the table alone has it.
    near = other is not None and trained and other.scores[place] < 2 * trained[-1].scores[place]
    return series, (other.scores[place], other.method) if other and near else None


def _measured(of: Sequence[Line], metric: str) -> list[Series]:
    """A line for each strategy, number of ranks and length of training."""
    found = [line for line in of if metric in line]
    series = []
    for kind in order([_kind(line) for line in found]):
        points = [line for line in found if _kind(line) == kind]
        points.sort(key=lambda line: line["global_batch"])
        figures = [line[metric] for line in points]
        low, high = ([figure["quartiles"][i] for figure in figures] for i in (0, 1))
        disturbed = [bool(figure.get("disturbed")) for figure in figures]
        x = [line["global_batch"] for line in points]
        series.append(Series(kind, x, list(map(median, figures)), "", low, high, disturbed))
    return series


def _kind(line: Line) -> str:
    """What stays the same along a line of the plot."""
    ranks = f"{line['ranks']} rank{'s' if line['ranks'] > 1 else ''}"
    return f"{line['strategy']}, {ranks}, {line.get('budget', 'one length')}"
