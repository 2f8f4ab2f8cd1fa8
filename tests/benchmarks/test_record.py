"""Records: figures against numpy, lines that only grow, where they were made, what is refused."""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import socket
import subprocess
import sys
import types

import click
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import __main__ as benchmarks_main
from benchmarks import machine, record


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30))
def test_a_figure_is_median_and_quartiles(values):
    figure = record.figure(values, "s", warm_up=3, steps=5)
    low, high = figure["quartiles"]
    assert figure.pop("disturbed", False) == (high - low > 0.15 * figure["median"])
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
    assert set(where) == {
        *("time", "host", "cpu", "gpus", "python", "software", "load", "cores", "commit"),
    }
    # Hosts are told apart and not named.
    assert where["host"] == machine.fingerprint(socket.gethostname())
    assert where["host"] != machine.fingerprint(socket.gethostname() + "x")
    assert socket.gethostname() not in json.dumps(where)


def test_gpus_are_what_their_driver_lists(tmp_path, monkeypatch):
    fake = tmp_path / "nvidia-smi"
    fake.write_text('#!/bin/sh\n[ "$1" = --query-gpu=name ] && printf "NVIDIA H100\\nP100\\n"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert machine.list_gpus() == ["NVIDIA H100", "P100"]
    fake.write_text("#!/bin/sh\necho no driver; exit 9\n")
    assert machine.list_gpus() == []


def test_only_records_may_differ_from_the_commit(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True)

    results = tmp_path / "benchmarks" / "results" / "local" / "step.jsonl"
    results.parent.mkdir(parents=True)
    results.write_text("{}\n")
    (tmp_path / "code.py").write_text("a\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    clean = machine.find_commit(tmp_path)
    assert clean
    assert len(clean) == 12
    results.write_text("{}\n{}\n")
    assert machine.find_commit(tmp_path) == clean
    (tmp_path / "code.py").write_text("b\n")
    assert machine.find_commit(tmp_path) == f"{clean}-dirty"
    assert machine.find_commit(tmp_path / "none") is None


def test_a_figure_says_whether_load_disturbed_it():
    assert "disturbed" not in record.figure([1.0, 1.02, 0.98, 1.05, 1.0], "s")
    assert record.figure([1.0, 1.0, 1.3, 1.4, 1.0], "s")["disturbed"] is True
    assert "disturbed" not in record.figure([3.0], "s")
    # A part of 1 % or 2 % of a step is no disturbed step; one of 10 % or 40 % is.
    assert "disturbed" not in record.figure([0.01, 0.02, 0.01, 0.02], "1", whole=1.0)
    assert record.figure([0.1, 0.4, 0.1, 0.4], "1", whole=1.0)["disturbed"] is True
    assert record.tell(record.figure([1.0, 1.0, 1.3, 1.4, 1.0], "s"), 1) == (
        "1.0 (1.0 to 1.3), disturbed"
    )
    assert record.tell(record.figure([3.0], "s")) == "3.00 (3.00 to 3.00)"


def test_labels_have_mlperfs_names_too(tmp_path):
    line = record.append(tmp_path / "r.jsonl", "scaling", global_batch=64, train=1000, ranks=2)
    assert line["mllog"] == {"global_batch_size": 64, "train_samples": 1000}
    assert "mllog" not in record.append(tmp_path / "r.jsonl", "other", ranks=2)


GOOD = {"version": 2, "what": "step", "ratio": record.figure([1.0, 2.0], "1"), "where": {}}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"version": 2, "what": "st', 'damaged: no JSON: \'{"version": 2, "what": "st\''),
        ("\xff\xfe", "damaged: no JSON"),
        ("[1, 2]", "no record: a JSON object with a version is expected"),
        ('{"what": "step"}', "no record: a JSON object with a version is expected"),
        (json.dumps({**GOOD, "version": 3}), "of version 3; this code reads 1 and 2"),
        ('{"version": 2}', "damaged: it does not say what was measured"),
        (
            json.dumps({**GOOD, "ratio": {"median": None, "quartiles": [1, 2], "unit": "1"}}),
            'damaged: ratio is no figure: {"median": null',
        ),
        (
            json.dumps({**GOOD, "ratio": {"median": 1.0, "unit": "1"}}),
            "damaged: ratio is no figure",
        ),
    ],
)
def test_what_is_no_record_is_named_and_the_others_are_read(tmp_path, text, found):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([json.dumps(GOOD).encode(), text.encode("latin-1"), b"", b""]))
    one = {"version": 1, "what": "of another day"}
    (tmp_path / "b.jsonl").write_text(json.dumps(one) + "\n")
    (tmp_path / "b.md").write_text("no record\n")
    lines, problems = record.read(tmp_path)
    assert lines == [{**GOOD, "system": "local"}, {**one, "system": "local"}]
    (problem,) = problems
    assert (problem.path, problem.line) == (path, 2)
    assert found in problem.found
    assert str(problem).startswith(f"{path}, line 2: ")
    assert record.read(path)[0] == lines[:1]


def test_kept_records_are_read_whole():
    root = pathlib.Path(record.__file__).parent / "results" / "local"
    lines, problems = record.read(root)
    assert problems == []
    assert len(lines) > 150


def test_an_unfinished_line_does_not_damage_the_next(tmp_path):
    path = tmp_path / "a.jsonl"
    whole = record.append(path, "one")
    with path.open("a") as file:
        file.write('{"version": 2, "what": "tw')  # the run died here
    last = record.append(path, "three")
    lines, problems = record.read(tmp_path)
    assert lines == [whole, last]
    assert [problem.line for problem in problems] == [2]


@pytest.mark.parametrize(
    ("options", "system", "path"),
    [
        ([], "local", "benchmarks/results/local/x.jsonl"),
        (["--system", "juwels"], "juwels", "benchmarks/results/juwels/x.jsonl"),
        (["--system=juwels", "-o", "here.jsonl"], "juwels", "here.jsonl"),
    ],
)
def test_a_command_names_its_system(tmp_path, monkeypatch, options, system, path):
    @click.command()
    @record.output_options("x.jsonl")
    def command(output):
        record.append(output, "one")

    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(command, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert json.loads(pathlib.Path(path).read_text())["system"] == system
    assert record.system() == "local"


def test_a_systems_name_is_no_path():
    @click.command()
    @record.output_options("x.jsonl")
    def command(output):
        raise AssertionError(output)

    result = CliRunner().invoke(command, ["--system", "../x"])
    assert result.exit_code == 2
    assert "letters, digits" in result.output


@pytest.mark.parametrize(("arguments", "ran"), [([], "all"), (["two"], "two")])
def test_without_a_subcommand_all_run(monkeypatch, arguments, ran):
    done = []
    for name in ("all", "two"):
        command = click.Command(name, callback=lambda name=name: done.append(name))
        module = types.SimpleNamespace(main=command)
        monkeypatch.setitem(sys.modules, f"benchmarks.{name}", module)
    monkeypatch.setattr(benchmarks_main, "COMMANDS", {"all": "First.", "two": "Second."})
    result = CliRunner().invoke(benchmarks_main.group, arguments)
    assert result.exit_code == 0, result.output
    assert done == [ran]


def test_an_unknown_benchmark_is_an_error():
    assert CliRunner().invoke(benchmarks_main.group, ["speed"]).exit_code == 2
