"""The report's chapters on training: scaling beside what is published, strategies, shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.project_cases import WORKS
from benchmarks.report_plots import Series, lines
from benchmarks.report_words import DISTURBED, Plot, Section, Table, median, number, tell
from benchmarks.systems import Curve, System

Line = dict[str, Any]
STRATEGIES = ("horovod", "multiworker")
DASHES = {"float32": "solid", "bfloat16": "dash", "float16": "dot"}
QUANTITIES = {
    "throughput": "Throughput [patches/s]",
    "speed_up": "Speed-up",
    "efficiency": "Efficiency",
    "epoch_seconds": "Time per epoch [s]",
}


def title_of(experiment: str) -> str:
    """The network's name in the papers, else the experiment's."""
    return WORKS[experiment].title if experiment in WORKS else experiment


def tell_ranks(line: Line) -> str:
    """How many ranks, and whether they had to share cores."""
    ranks = line["ranks"]
    told = f"{ranks} rank{'s' if ranks > 1 else ''}"
    crowded = ranks * line.get("cores_each", 0) > line.get("where", {}).get("cores", 0)
    return f"{told} on shared cores" if crowded and "cores_each" in line else told


def select(records: Sequence[Line], what: str) -> list[Line]:
    """Lines of one kind."""
    return [line for line in records if line["what"] == what]


def select_scaling(records: Sequence[Line]) -> list[Line]:
    """Curves over ranks that had cores of their own.

    Ranks that take turns on the same cores say how well the model knows that, and nothing of
    scaling.
    """

    def curve(line: Line) -> tuple[Any, ...]:
        keys = ("experiment", "mode", "precision", "strategy", "cores_each")
        return tuple(line.get(key) for key in keys)

    found = select(records, "scaling")
    most: dict[tuple[Any, ...], int] = {}
    for line in found:
        most[curve(line)] = max(line["ranks"], most.get(curve(line), 0))
    return [
        line
        for line in found
        if most[curve(line)] * line.get("cores_each", 0) <= line.get("where", {}).get("cores", 0)
        or "cores_each" not in line
    ]


def order(values: Sequence[Any], first: Sequence[Any] = ()) -> list[Any]:
    """Each value once, those of `first` in front, the others as they came."""
    there = list(dict.fromkeys(values))
    return [value for value in first if value in there] + [v for v in there if v not in first]


def scaling(system: System, records: Sequence[Line], projected: dict[str, Any]) -> Section:
    """Throughput, speed-up, efficiency, time per epoch against ranks (figures 3 to 5 in form)."""
    found = select_scaling(records)
    plots: list[Plot] = []
    gaps: list[str] = []
    tables = []
    wanted = [*(line["experiment"] for line in found), *(c.experiment for c in system.curve)]
    for experiment in order(wanted, list(WORKS)):
        curves = [curve for curve in system.curve if curve.experiment == experiment]
        of = [line for line in found if line["experiment"] == experiment]
        for mode in order([line["mode"] for line in of], ("weak", "strong")) or ["weak"]:
            lines_of = [line for line in of if line["mode"] == mode]
            gaps += missing(lines_of)
            chosen = [curve for curve in curves if curve.mode == mode]
            plots += _scaling_plots(experiment, mode, lines_of, chosen, projected)
            tables += _over_published(lines_of, chosen)
    for experiment, work in WORKS.items():
        if experiment not in wanted:
            gaps.append(f"{work.title}: neither measured nor published with several ranks here.")
    return Section("Scaling", (), plots, tables, gaps)


def missing(of: Sequence[Line]) -> list[str]:
    """Sentences on ranks at which one strategy was measured and another was not."""
    sentences = []
    several = [line for line in of if line["ranks"] > 1]
    for precision in order([line["precision"] for line in several]):
        for ranks in sorted({line["ranks"] for line in several if line["precision"] == precision}):
            there = {
                line["strategy"]
                for line in several
                if (line["precision"], line["ranks"]) == (precision, ranks)
            }
            sentences += [
                f"{title_of(of[0]['experiment'])}, {precision}, {of[0]['mode']} scaling, {ranks} "
                f"ranks: no record of {strategy}."
                for strategy in STRATEGIES
                if strategy not in there
            ]
    return sentences


def _scaling_plots(
    experiment: str,
    mode: str,
    of: Sequence[Line],
    curves: Sequence[Curve],
    projected: dict[str, Any],
) -> list[Plot]:
    """A plot of each quantity that is there."""
    title = f"{title_of(experiment)}, {mode} scaling"
    plots = []
    for quantity, name in QUANTITIES.items():
        series = [*_measured(of, quantity), *_published(curves, quantity)]
        real = [x for one in series for x, y in zip(one.x, one.y, strict=True) if y is not None]
        if not real:
            continue
        ideal = _ideal(series[0], quantity) if quantity != "efficiency" else []
        if mode == "weak":
            epoch = next((curve.epoch_patches for curve in curves if curve.epoch_patches), None)
            series += _projected(projected, experiment, quantity, min(real), max(real), epoch)
        series += ideal
        captions = [*_batches(of), *(f"Published: {curve.source}." for curve in curves)]
        if quantity == "epoch_seconds" and of:
            captions.append("Bars of what was measured: standard deviation over runs.")
        plots.append(
            lines(
                f"{name.partition(' [')[0]}: {title}",
                series,
                x="ranks",
                y=name,
                log_y=quantity != "efficiency",
                level=(1.0, "ideal") if quantity == "efficiency" else None,
                table=_table_of(series),
                caption=" ".join(captions),
            )
        )
    return plots


def _batches(of: Sequence[Line]) -> list[str]:
    """How many patches were measured, and how large."""
    if not of:
        return []
    line = of[0]
    whose = "a rank" if line["mode"] == "weak" else "of all ranks"
    count = line["global_batch"] // (line["ranks"] if line["mode"] == "weak" else 1)
    edge = f" of {line['patch']} px" if "patch" in line else ""
    return [f"Measured: steps of {count} patches{edge} {whose}."]


def _measured(of: Sequence[Line], quantity: str) -> list[Series]:
    """A line for each strategy and precision, with gaps where ranks were not measured."""
    found = []
    every = sorted({line["ranks"] for line in of})
    for precision in order([line["precision"] for line in of], tuple(DASHES)):
        for strategy in order([line["strategy"] for line in of], STRATEGIES):
            by_ranks = {
                line["ranks"]: line[quantity]
                for line in of
                if quantity in line
                and line["precision"] == precision
                and (line["strategy"] == strategy)
            }
            if not by_ranks:
                continue
            figures = [by_ranks.get(ranks) for ranks in every]
            middle, low, high = zip(*(_ends(figure) for figure in figures), strict=True)
            found.append(
                Series(
                    f"{strategy}, {precision}",
                    every,
                    middle,
                    strategy,
                    low,
                    high,
                    [bool(figure and figure.get("disturbed")) for figure in figures],
                    DASHES.get(precision, "dot"),
                )
            )
    return found


def _ends(figure: dict[str, Any] | None) -> tuple[float | None, float | None, float | None]:
    """A point and the ends of its bar: mean and deviation over runs as the papers, or quartiles."""
    if figure is None:
        return None, None, None
    if "mean" in figure:
        mean, deviation = float(figure["mean"]), float(figure["std"])
        return mean, mean - deviation, mean + deviation
    low, high = figure["quartiles"]
    return median(figure), float(low), float(high)


def _published(curves: Sequence[Curve], quantity: str) -> list[Series]:
    """What papers print, and what follows from it by division."""
    found = []
    for curve in curves:
        values = published_values(curve, quantity)
        if values:
            about = ", about" if curve.approximate else ""
            name = f"published, {curve.strategy}{about}"
            found.append(Series(name, list(curve.ranks), values, "published"))
    return found


def published_values(curve: Curve, quantity: str) -> list[float]:
    """Values of a quantity that a published curve gives; none where it does not give it.

    Speed-up counts from the fewest ranks that are published, as if those had scaled ideally.
    """
    if quantity == curve.quantity:
        return list(curve.values)
    first, base = curve.ranks[0], curve.values[0]
    if quantity not in ("speed_up", "efficiency") or len(curve.ranks) < 2:
        return []
    epochs = curve.quantity == "epoch_seconds"
    speed_up = [first * (base / v if epochs else v / base) for v in curve.values]
    if quantity == "speed_up":
        return speed_up
    return [s / n for s, n in zip(speed_up, curve.ranks, strict=True)]


def _projected(
    projected: dict[str, Any],
    experiment: str,
    quantity: str,
    lowest: float,
    highest: float,
    epoch: int | None,
) -> list[Series]:
    """The model's line (project.py), not much further than what is measured or published."""
    if quantity == "speed_up" or (quantity == "epoch_seconds" and epoch is None):
        return []
    found = []
    for case in projected["cases"]:
        rows = [r for r in case["curve"] if lowest <= r["ranks"] <= 2 * highest]
        if case["experiment"] == experiment:
            name = f"projected, {projected['strategy']}, {projected['precision']}"
            x = [row["ranks"] for row in rows]
            y = [
                epoch / row["throughput"] if quantity == "epoch_seconds" else row[quantity]
                for row in rows
            ]
            found.append(Series(name, x, y, "projected", dash="dot", marks=False))
    return found


def _ideal(one: Series, quantity: str) -> list[Series]:
    """A straight line through a series' first value."""
    pairs = [(x, y) for x, y in zip(one.x, one.y, strict=True) if y is not None]
    (x, y), last = pairs[0], pairs[-1][0]
    if last == x:
        return []
    end = y * x / last if quantity == "epoch_seconds" else y * last / x
    return [Series("ideal", [x, last], [y, end], "ideal", dash="dashdot", marks=False)]


def _table_of(series: Sequence[Series]) -> Table:
    """The numbers of lines over one axis."""
    shown = [one for one in series if one.key != "ideal"]
    every = sorted({x for one in shown for x in one.x})
    rows = []
    for x in every:
        cells = [f"{x:g}"]
        for one in shown:
            found = [i for i, value in enumerate(one.x) if value == x]
            cells.append(_cell(one, found[0]) if found else "–")
        rows.append(cells)
    return Table(["ranks", *(one.name for one in shown)], rows)


def _cell(one: Series, place: int) -> str:
    """A value, its quartiles and its mark."""
    low, high = (ends[place] if ends else None for ends in (one.low, one.high))
    spread = (
        "" if low is None or high is None or low == high else f" ({number(low)} to {number(high)})"
    )
    mark = DISTURBED if place < len(one.disturbed) and one.disturbed[place] else ""
    return f"{number(one.y[place])}{spread}{mark}"


def _over_published(of: Sequence[Line], curves: Sequence[Curve]) -> list[Table]:
    """Measured over published, at the ranks that both have."""
    rows = []
    for curve in curves:
        for n, value in zip(curve.ranks, curve.values, strict=True):
            for line in of:
                if line["ranks"] == n and curve.quantity in line:
                    ratio = number(median(line[curve.quantity]) / value)
                    who = f"{line['strategy']}, {line['precision']}"
                    values = (tell(line[curve.quantity]), curve.strategy, number(value), ratio)
                    rows.append([str(n), who, *values])
    if not rows:
        return []
    name = f"{title_of(of[0]['experiment'])}: {curves[0].quantity.replace('_', ' ')}"
    head = ["ranks", "measured with", "measured", "published with", "published"]
    head.append("measured over published")
    return [Table(head, rows, name)]
