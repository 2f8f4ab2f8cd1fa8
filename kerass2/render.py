"""Tables for the terminal, in Markdown, CSV and LaTeX: people get four digits, CSV all."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kerass2.tables import Cell, Table

if TYPE_CHECKING:
    import rich.table

DIGITS = 4


def show(table: Table, style: str) -> None:
    """Print a table in one of the formats of RENDER, or as "table" for the terminal."""
    import click
    import rich.console

    if style != "table":
        click.echo(RENDER[style](table), nl=False)
        return
    shown = build_rich(table)
    # As wide as it needs: rich would cut names and numbers to the width of the terminal.
    needed = rich.console.Console(width=10_000).measure(shown).maximum
    rich.console.Console(width=needed).print(shown)
    for note in table.notes:
        click.echo(note)


def build_rich(table: Table) -> rich.table.Table:
    """For the terminal: a label that repeats the one above is left out, a unit stands below it."""
    import rich.box
    import rich.table
    import rich.text

    shown = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    kept = _columns_with_values(table)
    for number in kept:
        name = table.columns[number].replace(" [", "\n[").replace("_", "\n")
        right = number >= table.texts and table.columns[number] not in ("source", "note")
        shown.add_column(rich.text.Text(name), justify="right" if right else "left")
    above, repeated = "", 0
    for number, row in enumerate(table.rows):
        cells = [format_cell(row[column]) for column in kept]
        if table.texts > 1:
            repeated = repeated + 1 if cells[0] == above else 0
            above = cells[0]
            name, _, unit = above.partition(" [")
            cells[0] = name if not repeated else f"  [{unit}" if repeated == 1 and unit else ""
        shown.add_row(*map(rich.text.Text, cells), end_section=number in table.ends)
    return shown


def _columns_with_values(table: Table) -> list[int]:
    """Columns that are not empty from top to bottom."""
    return [
        column
        for column in range(len(table.columns))
        if any(row[column] is not None for row in table.rows)
    ]


def format_cell(cell: Cell) -> str:
    """A cell for people: four digits, "nan" for a value that does not exist, nothing for none."""
    if isinstance(cell, float):
        return f"{cell:#.{DIGITS}g}".rstrip(".") if math.isfinite(cell) else f"{cell}"
    return "" if cell is None else str(cell)


def to_csv(table: Table) -> str:
    """Comma-separated, all digits; a missing cell is empty, others may be nan or inf."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    # csv writes repr(float), which reads back as the same number.
    writer.writerows(table.rows)
    return text.getvalue()


def to_markdown(table: Table) -> str:
    """A pipe table (GitHub, Pandoc), with its notes."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    texts = table.texts
    rules = ["---" if i < texts else "---:" for i in range(len(table.columns))]
    lines = [table.caption, "", line(table.columns), line(rules)]
    lines += [line([format_cell(cell) for cell in row]) for row in table.rows]
    return "\n".join([*lines, *(f"\n{note}" for note in table.notes)]) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def to_latex(table: Table) -> str:
    """A table environment with the rules of booktabs, a package that its document must use."""

    def escape(text: str) -> str:
        return "".join(_LATEX.get(character, character) for character in text)

    def line(cells: Sequence[str]) -> str:
        # Braces: a cell that begins with [ would be taken for an option of the line before.
        return " & ".join(f"{{{text}}}" if text[:1] == "[" else text for text in cells) + r" \\"

    columns = "l" * table.texts + "r" * (len(table.columns) - table.texts)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{escape(table.caption)}}}"]
    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines += [line([escape(name) for name in table.columns]), r"\midrule"]
    for number, row in enumerate(table.rows):
        lines.append(line([escape(format_cell(cell)) for cell in row]))
        if number in table.ends and number < len(table.rows) - 1:
            lines.append(r"\midrule")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\footnotesize {escape(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


RENDER: dict[str, Callable[[Table], str]] = {
    "markdown": to_markdown,
    "csv": to_csv,
    "latex": to_latex,
}
