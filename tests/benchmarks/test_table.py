"""The README's table: the newest line of each case, marks of load, and what is left out."""

from __future__ import annotations

import pathlib

import click.testing

from benchmarks import record, table


def fill(path: pathlib.Path) -> None:
    quiet, loud = record.figure([0.5], "1"), record.figure([0.2, 0.9, 1.0], "1")
    sums = {"path": "horovod-gloo", "ranks": 2, "bytes": 94_000_000, "tensors": 161}
    for figure in (quiet, loud):
        record.append(
            path, "allreduce", **sums, set="bigearthnet_ms", algorithm_bandwidth=figure,
            over_bound=quiet,
        )  # fmt: skip
    record.append(path, "allreduce", **sums, set="", algorithm_bandwidth=quiet, over_bound=quiet)
    record.append(path, "harness over plain", ratio=record.figure([1.0021], "1"))
    record.append(path, "loop over bare", ratio=quiet)


def call(folder: pathlib.Path) -> click.testing.Result:
    return click.testing.CliRunner().invoke(table.main, ["-o", str(folder)])


def test_the_newest_line_of_each_case_makes_a_row(tmp_path: pathlib.Path) -> None:
    fill(tmp_path / "a.jsonl")
    with (tmp_path / "b.jsonl").open("w") as file:
        file.write('{"version": 2, "wh')
    result = call(tmp_path)
    assert result.exit_code == 0, result.output
    rows = [line for line in result.stdout.splitlines() if line.startswith("| ")]
    assert rows[1:] == [
        "| gradients of bigearthnet_ms, 94 MB, summed by horovod-gloo, 2 ranks | "
        "0.90 (disturbed) GB/s, 0.50 of the bound | `python -m benchmarks allreduce` |",
        "| seconds a step with the harness over without | 1.0021 | "
        "`python -m benchmarks harness` |",
    ]
    assert "b.jsonl, line 1: damaged" in result.stderr


def test_without_records_it_says_so(tmp_path: pathlib.Path) -> None:
    result = call(tmp_path)
    assert result.exit_code == 1
    assert f"{tmp_path}: no record of allreduce" in result.output
