"""`python -m benchmarks report`: a system's records as one HTML page and as markdown.

The page holds Plotly itself, so that it needs no network and can be mailed; below each plot stand
its numbers. The markdown has the same chapters as tables, and the README's table.
"""

from __future__ import annotations

import datetime
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import click

from benchmarks import project, project_records, record, systems, table
from benchmarks.report_words import to_lines
from data_pipelines.files import replacing
from data_pipelines.spec import DataError

TEMPLATE = pathlib.Path(__file__).parent / "templates" / "report.html"
PAGE, MARKDOWN = "report.html", "report.md"
RANKS = "1..1024"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--system",
    "name",
    default=systems.LOCAL,
    show_default=True,
    help="A name of benchmarks/systems, or the path of such a file.",
)
@click.option(
    "--records",
    type=click.Path(path_type=pathlib.Path),
    help=f"Folder of *.jsonl; default: {record.RESULTS}/SYSTEM.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=pathlib.Path),
    help=f"Folder for {PAGE} and {MARKDOWN}; default: report-SYSTEM.",
)
@click.option("--beside", multiple=True, help="System whose published figures are drawn too.")
@click.option("--overwrite", is_flag=True, help="Replace a report that is there.")
def main(
    name: str,
    records: pathlib.Path | None,
    output: pathlib.Path | None,
    beside: tuple[str, ...],
    overwrite: bool,
) -> None:
    """Write a system's measured, published and projected figures as a page and as markdown."""
    system = systems.load(name)
    written, problems = build_report(
        system,
        records,
        output or pathlib.Path(f"report-{system.name}"),
        beside=[systems.load(other) for other in beside],
        overwrite=overwrite,
    )
    for problem in problems:
        click.echo(f"warning: {problem}", err=True)
    for path in written:
        click.echo(f"wrote {path}")


def build_report(
    system: systems.System,
    records: pathlib.Path | None,
    output: str | os.PathLike[str],
    *,
    beside: Sequence[systems.System] = (),
    overwrite: bool = False,
) -> tuple[list[pathlib.Path], list[record.Problem]]:
    """Write the page and the markdown.

    Args:
        system: what they are about.
        records: folder of records; None: the system's own, which need not be there as long as
            something is published.
        output: folder to write into.
        beside: systems whose published figures are drawn too.
        overwrite: whether to replace what is there.

    Returns:
        The files, and the lines of the records that could not be read.

    Raises:
        DataError: the files are there already, there is no such folder of records, or nothing is
            measured or published.
    """
    import jinja2

    plotly = read_plotly()
    folder = pathlib.Path(output)
    paths = [folder / PAGE, folder / MARKDOWN]
    there = [path for path in paths if path.exists()]
    if there and not overwrite:
        raise DataError(f"{there[0]} is there already; expected another -o, or --overwrite")
    lines, problems = project_records.read(system, records)
    if not (lines or system.curve or system.quality):
        looked = records or record.RESULTS / system.name
        raise DataError(
            f"{looked}: no record of {system.name}, and nothing published stands in its file; "
            f"expected lines made by `python -m benchmarks all --system {system.name}`"
        )
    described = describe(system, lines, problems, beside)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals |= {"to_script": to_script, "is_word": is_word}
    page = environment.get_template(TEMPLATE.name).render(**described, plotly=plotly)
    texts = (page, "\n".join(to_markdown(described)) + "\n")
    for path, text in zip(paths, texts, strict=True):
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return paths, problems


def read_plotly() -> str:
    """The script that draws in the page.

    Raises:
        DataError: Plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise DataError(
            f"the report needs Plotly to draw: {error}; expected `pip install plotly`"
        ) from error
    script: str = get_plotlyjs()
    return script


def publish(system: systems.System, beside: Sequence[systems.System]) -> systems.System:
    """A system with what is published of others, named after them."""
    curves, quality = list(system.curve), list(system.quality)
    for other in beside:
        for curve in other.curve:
            on = {"strategy": f"{curve.strategy} on {other.name}"}
            curves.append(curve.model_copy(update=on))
        for scores in other.quality:
            named = {"title": f"{scores.title} on {other.name}"}
            named["source"] = f"{scores.source}; on {other.name}"
            quality.append(scores.model_copy(update=named))
    return system.model_copy(update={"curve": tuple(curves), "quality": tuple(quality)})


def describe(
    system: systems.System,
    lines: Sequence[record.Line],
    problems: Sequence[record.Problem],
    beside: Sequence[systems.System] = (),
) -> dict[str, Any]:
    """Everything that the page and the markdown show."""
    from benchmarks import (
        report_measures,
        report_quality,
        report_scaling,
        report_strategies,
        report_verdict,
    )

    # Ranks past the devices of a machine that is alone take turns: no more than show it.
    ranks = RANKS if system.nodes != 1 else f"1..{2 * system.node.devices}"
    projected = project.project(system, lines, project.parse_ranks(ranks))
    shown = publish(system, beside)
    sections = [
        report_scaling.scaling(shown, lines, projected),
        report_quality.quality(shown, lines),
        report_strategies.strategies(lines),
        report_measures.all_reduce(system, lines),
        report_strategies.shares(lines),
        report_measures.pipelines(lines),
        report_measures.prediction(lines),
        report_strategies.others(lines),
        report_measures.projection(projected),
        report_measures.environment(system, lines),
    ]
    also = [f"--beside {other.name}" for other in beside]
    return {
        "title": system.title,
        "subtitle": f"{system.name} · {len(lines)} records",
        "verdict": report_verdict.verdict(system, shown, lines, projected),
        "problems": [str(problem) for problem in problems],
        "sections": [each for each in sections if not each.is_empty()],
        "readme": table.make(lines),
        "command": " ".join([f"python -m benchmarks report --system {system.name}", *also]),
        "created": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }


def to_markdown(described: dict[str, Any]) -> Iterator[str]:
    """The same as tables: a line at a time."""
    yield f"# {described['title']}"
    yield from ("", described["subtitle"], "", "## What the numbers say", "")
    yield from (f"- {sentence}" for sentence in described["verdict"])
    if described["problems"]:
        yield from ("", "## Lines that could not be read", "")
        yield from (f"- {problem}" for problem in described["problems"])
    for section in described["sections"]:
        yield from ("", f"## {section.title}")
        for text in (*section.text, *section.gaps):
            yield from ("", text)
        for plot in section.plots:
            yield from ("", f"### {plot.title}")
            if plot.caption:
                yield from ("", plot.caption)
            yield from _markdown_table(plot.table)
        for each in section.tables:
            yield from _markdown_table(each)
    if described["readme"].rows:
        yield from ("", "## The README's table")
        yield from _markdown_table(described["readme"])
    yield from ("", f"Made by `{described['command']}`, {described['created']}.")


def _markdown_table(shown: Any) -> Iterator[str]:
    """A table with an empty line before it."""
    yield ""
    if shown.caption:
        yield from (f"{shown.caption}:", "")
    yield from to_lines(shown)


def is_word(cell: str) -> bool:
    """Whether a cell begins with a word, not with a number or what stands for none."""
    first = (cell.split() or ["–"])[0].rstrip("†%;,")
    return not set(first) <= set("0123456789.,+-−–")


def to_script(figure: dict[str, Any]) -> str:
    """A figure as JSON that may stand in a page: no sign in it ends or begins a tag."""
    text = json.dumps(figure)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


if __name__ == "__main__":
    from kerass2 import cli

    cli.run(main)
