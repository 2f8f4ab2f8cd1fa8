"""What a report is made of: chapters, plots with their tables, and figures in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

DISTURBED = "†"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under a head."""

    head: Sequence[str]
    """Names of columns."""
    rows: Sequence[Sequence[str]]
    """The first cell of each names the row."""
    caption: str = ""
    """A sentence, or nothing."""


@dataclasses.dataclass(frozen=True)
class Plot:
    """A figure, and its numbers for those who cannot see it or want to count."""

    title: str
    """What is drawn."""
    figure: dict[str, Any]
    """Data and layout as Plotly takes them."""
    table: Table
    """The same numbers."""
    caption: str = ""
    """How to read it."""


@dataclasses.dataclass(frozen=True)
class Section:
    """A chapter of the report."""

    title: str
    """Its heading."""
    text: Sequence[str] = ()
    """Sentences before the plots."""
    plots: Sequence[Plot] = ()
    """In order."""
    tables: Sequence[Table] = ()
    """Tables that no plot has."""
    gaps: Sequence[str] = ()
    """What is not there, in words."""


def median(figure: dict[str, Any]) -> float:
    """The median of a figure of a record."""
    return float(figure["median"])


def tell(figure: dict[str, Any] | None) -> str:
    """A figure in words: median, quartiles where there are several, and DISTURBED where it was."""
    if figure is None:
        return "–"
    mark = DISTURBED if figure.get("disturbed") else ""
    low, high = figure["quartiles"]
    if figure.get("repeats", 1) < 2 or low == high:
        return number(figure["median"]) + mark
    return f"{number(figure['median'])} ({number(low)} to {number(high)}){mark}"


def number(value: float | None) -> str:
    """Three significant digits, without an exponent as long as that can be read."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if not 1e-5 <= abs(value) < 1e7:
        return f"{value:.3g}"
    digits = max(0, 2 - len(str(int(abs(value)))) + 1) if abs(value) >= 1 else None
    text = f"{value:,.{digits}f}" if digits is not None else f"{float(f'{value:.3g}'):.8f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def size(count: float) -> str:
    """Bytes, as people say them."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
