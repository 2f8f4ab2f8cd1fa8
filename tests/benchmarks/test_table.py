"""The README's table: the newest line of each figure, marks of load, gaps, the README itself."""

from __future__ import annotations

import pathlib
import re

import click.testing
import pytest

from benchmarks import record, table

README = pathlib.Path(__file__).parents[2] / "README.md"
KEPT = pathlib.Path(record.__file__).parent / "results" / "local"


def fill(path: pathlib.Path) -> None:
    quiet, loud = record.figure([0.5], "1"), record.figure([0.2, 0.9, 1.0], "1")
    sums = {"path": "horovod-gloo", "ranks": 2, "bytes": 94_000_000, "set": "bigearthnet_ms"}
    for figure, settings in ((quiet, {}), (loud, {}), (quiet, {"settings": "A=1"})):
        record.append(path, "allreduce", **sums, **settings, algorithm_bandwidth=figure)
    ratio = record.figure([1.0021], "1")
    record.append(path, "harness over plain", experiment="superres_20m", ratio=ratio)
    for batch, size in ((64, 32), (16, 48)):
        what = {"experiment": "superres_60m", "precision": "float32", "batch": batch, "patch": size}
        what |= {"ranks": 2, "cores_each": 1, "mode": "weak"}
        record.append(path, "strategies", **what, ratio=quiet)
    record.append(path, "loop over bare", experiment="superres_20m", batch=8, ratio=quiet)


def call(folder: pathlib.Path, *options: object) -> click.testing.Result:
    arguments = ["-o", str(folder), *map(str, options)]
    return click.testing.CliRunner().invoke(table.main, arguments)


def test_the_newest_line_of_each_figure_makes_a_row(tmp_path: pathlib.Path) -> None:
    fill(tmp_path / "a.jsonl")
    with (tmp_path / "b.jsonl").open("w") as file:
        file.write('{"version": 2, "wh')
    result = call(tmp_path)
    assert result.exit_code == 0, result.output
    rows = [line.split(" | ")[1:] for line in result.stdout.splitlines() if line.startswith("| ")]
    assert rows[2:] == [
        ["0.50, –", "`python -m benchmarks scaling` |"],
        ["0.90†, –; –; –", "`python -m benchmarks allreduce` |"],
        ["1.002", "`python -m benchmarks harness` |"],
    ]
    assert result.stdout.endswith(f"{table.NOTE}\n")
    assert "b.jsonl, line 1: damaged" in result.stderr


def test_without_records_it_says_so(tmp_path: pathlib.Path) -> None:
    result = call(tmp_path)
    assert result.exit_code == 1
    assert f"{tmp_path}: no record that the table is made of" in result.output


def test_every_figure_of_the_table_is_in_the_kept_records() -> None:
    """A label that no benchmark writes any more would leave a hole without an error."""
    lines, _ = record.read(KEPT)
    found = {row.text for row in table.ROWS if any(f.find(lines) for g in row.groups for f in g)}
    # Measured after the others.
    late = ("S6x, 2 ranks", "of S2x's step on 2 ranks")
    assert [r.text for r in table.ROWS if r.text not in found and not r.text.startswith(late)] == []
    assert len(table.make(lines).rows) == len(found)


def test_the_readme_has_what_the_command_prints(tmp_path: pathlib.Path) -> None:
    page = tmp_path / "README.md"
    older = re.sub(f"({table.BEGIN}.*?)\\d\\.\\d\\d", r"\g<1>9.99", README.read_text(), flags=re.S)
    page.write_text(older)
    assert page.read_text() != README.read_text()
    result = call(KEPT, "--into", page)
    assert result.exit_code == 0, result.output
    same = page.read_text() == README.read_text()
    assert same, "records have changed: python -m benchmarks table --into README.md"


@pytest.mark.parametrize(
    "text", ["", table.BEGIN, table.END + table.BEGIN, table.BEGIN + 2 * table.END]
)
def test_a_file_without_its_marks_stays(text: str, tmp_path: pathlib.Path) -> None:
    fill(tmp_path / "a.jsonl")
    page = tmp_path / "page.md"
    page.write_text(text)
    result = call(tmp_path, "--into", page)
    assert result.exit_code == 1
    assert "each once, in order" in result.output
    assert page.read_text() == text
