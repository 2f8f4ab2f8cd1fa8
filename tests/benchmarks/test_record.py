"""Records: figures against numpy, lines that only grow, where they were made."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import types

import click
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import __main__ as benchmarks_main
from benchmarks import record


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30))
def test_a_figure_is_median_and_quartiles(values):
    figure = record.figure(values, "s", warm_up=3, steps=5)
    low, high = figure["quartiles"]
    assert figure["median"] == pytest.approx(np.median(values))
    assert [low, high] == pytest.approx(list(np.quantile(values, [0.25, 0.75])))
    assert low <= figure["median"] <= high
    del figure["median"], figure["quartiles"]
    assert figure == {"repeats": len(values), "steps": 5, "warm_up": 3, "unit": "s"}


def test_lines_are_added_and_those_there_stay(tmp_path):
    path = tmp_path / "deep" / "record.jsonl"
    lines = [record.append(path, "one", ratio=record.figure([1.0, 2.0], "1"))]
    before = path.read_bytes()
    lines.append(record.append(path, "two", precision="float32"))
    assert path.read_bytes().startswith(before)
    assert [json.loads(line) for line in path.read_text().splitlines()] == lines
    assert [line["what"] for line in lines] == ["one", "two"]
    assert all(line["version"] == record.VERSION for line in lines)


def test_where():
    where = record.where()
    assert where["cpu"]
    assert where["cores"] >= 1
    assert where["software"]["numpy"] == importlib.metadata.version("numpy")
    assert where["python"].startswith("3.")
    assert set(where) == {"time", "cpu", "cores", "python", "software", "commit"}


@pytest.mark.parametrize(("arguments", "ran"), [([], ["one", "two"]), (["two"], ["two"])])
def test_without_a_subcommand_all_run(monkeypatch, arguments, ran):
    done = []
    for name in ("one", "two"):
        command = click.Command(name, callback=lambda name=name: done.append(name))
        module = types.SimpleNamespace(main=command)
        monkeypatch.setitem(sys.modules, f"benchmarks.{name}", module)
    monkeypatch.setattr(benchmarks_main, "COMMANDS", {"one": "First.", "two": "Second."})
    result = CliRunner().invoke(benchmarks_main.group, arguments)
    assert result.exit_code == 0, result.output
    assert done == ran


def test_an_unknown_benchmark_is_an_error():
    assert CliRunner().invoke(benchmarks_main.group, ["speed"]).exit_code == 2
