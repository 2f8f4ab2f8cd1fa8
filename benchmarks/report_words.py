"""What a report is made of: chapters, plots with their tables, and figures in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
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


def to_lines(table: Table) -> Iterator[str]:
    """A table in markdown, without its caption."""
    for row in (table.head, ["---"] * len(table.head), *table.rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


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

    def is_empty(self) -> bool:
        """Whether it says nothing, not even that something is not there."""
        return not (self.text or self.plots or self.tables or self.gaps)


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
    rounded = float(f"{value:.3g}") if abs(value) < 1000 else value
    return f"{rounded:,.{max(0, 2 - math.floor(math.log10(abs(rounded))))}f}"


def size(count: float) -> str:
    """Bytes, as people say them."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
