"""Plots of the report: what Plotly draws in the page, each with the table of its numbers.

Colours keep a contrast of 3 to 1 or more on the light and on the dark page, so that one figure
serves both; the page itself sets text, grid and background (templates/report.html).
"""

from __future__ import annotations

import dataclasses
import html
import json
import math
import textwrap
from collections.abc import Sequence
from typing import Any

from benchmarks.report_words import Plot, Table, median, size

# Luminance between 0.145 and 0.30, told apart by hue; marks and dashes tell them apart as well.
COLOURS = (
    "#2f7fc1",
    "#d2601a",
    "#2e9456",
    "#a35bc4",
    "#c9453f",
    "#8f7d12",
    "#1a919d",
    "#c2558f",
    "#9a6a3a",
    "#5a73d6",
    "#7b7f86",
)
# Series that come again keep their colour.
FIXED = {
    "horovod": 0,
    "multiworker": 1,
    "single": 2,
    "published": 3,
    "projected": 10,
    "ideal": 10,
    "horovod-gloo": 0,
    "multiworker-ring": 1,
    "torch-gloo": 2,
    "horovod-mpi": 6,
    "mpi4py": 3,
    "tcp": 10,
    "memory-copy": 8,
    "parameter-server": 4,
    "horovod-nccl": 9,
    "multiworker-nccl": 7,
}
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "pentagon")


@dataclasses.dataclass(frozen=True)
class Series:
    """A line of a plot."""

    name: str
    """In the legend."""
    x: Sequence[float]
    """Values."""
    y: Sequence[float | None]
    """Values; None breaks the line: a gap."""
    key: str = ""
    """Which colour of FIXED; the name by default."""
    low: Sequence[float | None] | None = None
    """Lower ends of the error bars."""
    high: Sequence[float | None] | None = None
    """Upper ends."""
    disturbed: Sequence[bool] = ()
    """Marks these points hollow."""
    dash: str = "solid"
    """solid, dash, dot or dashdot."""
    marks: bool = True
    """Whether points are drawn."""


def lines(
    title: str,
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    log_x: bool = True,
    log_y: bool = False,
    from_zero: bool = True,
    level: tuple[float, str] | None = None,
    table: Table,
    caption: str = "",
) -> Plot:
    """Lines over a common axis.

    Args:
        title: Of the plot.
        series: What is drawn.
        x: Name of the axis, with its unit.
        y: Likewise.
        log_x: Logarithmic, with a tick at each value that occurs.
        log_y: Logarithmic.
        from_zero: Whether a linear y begins at 0.
        level: A horizontal line and its name.
        table: The same numbers.
        caption: How to read it.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    for place, one in enumerate(series):
        figure.add_trace(_scatter(one, place))
    xs = sorted({value for one in series for value in one.x})
    figure.update_xaxes(title_text=x, type="log" if log_x else "linear", tickangle=0)
    if log_x:
        # "16.8 MB" takes twice the room of "1024".
        shown = thin(xs, 4 if x == "bytes" else 8)
        text = [size(value) if x == "bytes" else f"{value:g}" for value in shown]
        figure.update_xaxes(tickvals=shown, ticktext=text)
    figure.update_yaxes(title_text=y, type="log" if log_y else "linear")
    if log_y:
        shown = decades([value for one in series for value in one.y if value])
        figure.update_yaxes(tickvals=shown, ticktext=[_tick(value) for value in shown])
    elif from_zero:
        figure.update_yaxes(rangemode="tozero")
    if level:
        figure.add_hline(y=level[0], line_dash="dot", line_width=1.5, line_color=COLOURS[-1])
        figure.add_annotation(
            text=level[1],
            x=0,
            xref="paper",
            xanchor="left",
            y=math.log10(level[0]) if log_y else level[0],
            yanchor="bottom",
            showarrow=False,
        )
    return Plot(title, _finish(figure), table, caption)


def _tick(value: float) -> str:
    """A tick's text, all small ones alike."""
    return f"{value:,g}" if value >= 1e-3 else f"{value:.0e}"


def thin(values: Sequence[float], most: int = 8) -> list[float]:
    """Ticks of a logarithmic axis among ascending values: far enough apart for a phone.

    Args:
        values: Of the points.
        most: Ticks that the axis has room for.
    """
    if len(values) < 2:
        return list(values)
    least = math.log(values[-1] / values[0]) / most
    kept = [values[0]]
    for value in values[1:]:
        if math.log(value / kept[-1]) >= least:
            kept.append(value)
    return kept


def decades(values: Sequence[float]) -> list[float]:
    """Ticks of a logarithmic axis: the fewer of each decade, the more decades there are."""
    low, high = min(values) / 1.3, max(values) * 1.3
    spread = high / low
    digits = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if spread < 12 else (1.0, 2.0, 5.0)
    if spread >= 300:
        digits = (1.0,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [float(f"{digit}e{power}") for power in powers for digit in digits]
    return [value for value in every if low <= value <= high]


def _scatter(one: Series, place: int) -> Any:
    """One line with its marks and error bars."""
    import plotly.graph_objects as go

    colour = COLOURS[FIXED.get(one.key or one.name, place) % len(COLOURS)]
    symbol = SYMBOLS[place % len(SYMBOLS)]
    hollow = [*one.disturbed, *[False] * (len(one.x) - len(one.disturbed))]
    bars = None
    if one.low is not None and one.high is not None:
        up = [_difference(high, y) for high, y in zip(one.high, one.y, strict=True)]
        down = [_difference(y, low) for low, y in zip(one.low, one.y, strict=True)]
        bars = {"type": "data", "symmetric": False, "array": up, "arrayminus": down}
        bars |= {"thickness": 1.2, "width": 4}
    return go.Scatter(
        name=one.name,
        x=list(one.x),
        y=list(one.y),
        mode="lines+markers" if one.marks else "lines",
        line={"color": colour, "dash": one.dash, "width": 2},
        marker={
            "color": colour,
            "size": 8,
            "symbol": [f"{symbol}-open" if open_ else symbol for open_ in hollow],
        },
        error_y=bars,
        connectgaps=False,
        hovertemplate="%{x}: %{y:.4g}<extra>" + one.name + "</extra>",
    )


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def bars(
    title: str,
    names: Sequence[str],
    series: Sequence[tuple[str, Sequence[float | None]]],
    *,
    x: str,
    table: Table,
    stacked: bool = False,
    caption: str = "",
) -> Plot:
    """Horizontal bars, so that names of any length can be read on a phone.

    Args:
        title: Of the plot.
        names: Of the bars, the first on top.
        series: Name and values of each colour.
        x: Name of the axis, with its unit.
        table: The same numbers.
        stacked: Colours one behind the other.
        caption: How to read it.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    for place, (name, values) in enumerate(series):
        figure.add_trace(
            go.Bar(
                name=name,
                y=[wrap(each) for each in names],
                x=list(values),
                orientation="h",
                marker={"color": COLOURS[FIXED.get(name, place) % len(COLOURS)]},
                hovertemplate="%{y}: %{x:.4g}<extra>" + name + "</extra>",
            )
        )
    figure.update_layout(barmode="stack" if stacked else "group", showlegend=len(series) > 1)
    figure.update_xaxes(title_text=x, rangemode="tozero", nticks=4)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    rows = 1 if stacked else max(1, len(series))
    figure.update_layout(height=_height(names, 26 * rows + 14))
    return Plot(title, _finish(figure), table, caption)


def dots(
    title: str,
    names: Sequence[str],
    figures: Sequence[dict[str, Any]],
    *,
    x: str,
    table: Table,
    level: float | None = None,
    caption: str = "",
) -> Plot:
    """Medians with their quartiles beside names, the axis as long as they need it.

    Args:
        title: Of the plot.
        names: Of the figures, the first on top.
        figures: As records have them.
        x: Name of the axis, with its unit.
        table: The same numbers.
        level: Where a line is drawn across.
        caption: How to read it.
    """
    import plotly.graph_objects as go

    middle = [median(figure) for figure in figures]
    up = [figure["quartiles"][1] - value for figure, value in zip(figures, middle, strict=True)]
    down = [value - figure["quartiles"][0] for figure, value in zip(figures, middle, strict=True)]
    open_ = ["circle-open" if figure.get("disturbed") else "circle" for figure in figures]
    spread = {"type": "data", "symmetric": False, "array": up, "arrayminus": down}
    drawn = go.Figure(
        go.Scatter(
            x=middle,
            y=[wrap(name) for name in names],
            mode="markers",
            marker={"color": COLOURS[0], "size": 9, "symbol": open_},
            error_x={**spread, "thickness": 1.5, "width": 5},
            hovertemplate="%{y}: %{x:.4g}<extra></extra>",
        )
    )
    drawn.update_xaxes(title_text=x, nticks=4)
    drawn.update_yaxes(range=[len(names) - 0.4, -0.6])
    if level is not None:
        drawn.add_vline(x=level, line_dash="dot", line_width=1.5, line_color=COLOURS[-1])
    drawn.update_layout(height=_height(names, 34))
    return Plot(title, _finish(drawn), table, caption)


def wrap(name: str) -> str:
    """A name in lines that leave a phone room for what is drawn beside it."""
    return "<br>".join(textwrap.wrap(html.escape(name, quote=False), 22))


def _height(names: Sequence[str], least: int) -> int:
    """Pixels of a plot with a row for each name, all as high as the name of the most lines."""
    most = max(wrap(name).count("<br>") + 1 for name in names)
    return max(200, 130 + len(names) * max(least, 18 * most + 6))


def _finish(figure: Any) -> dict[str, Any]:
    """Margins and legend that suit a phone too; no template: the page gives colours."""
    figure.update_layout(
        template="none",
        margin={"l": 62, "r": 14, "t": 34, "b": 48},
        # At the foot; the page makes room for as many rows as it takes.
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        legend_traceorder="normal",
        hovermode="closest",
    )
    if figure.layout.height is None:
        figure.update_layout(height=340)
    figure.update_xaxes(automargin=True, title_standoff=8)
    figure.update_yaxes(automargin=True, title_standoff=8)
    drawn: dict[str, Any] = json.loads(figure.to_json())
    return drawn
