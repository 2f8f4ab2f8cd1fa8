"""`python -m benchmarks learning_rate` at a tiny size, and how it judges a run."""

from __future__ import annotations

import json
import subprocess
import types

import click.testing
import pytest

import kerass2.fit
from benchmarks import learning_rate

TINY = """--experiment dsen2_20m_compact --set model.options.filters=8 --set model.options.blocks=1
    --set run.precision=float32 --data synthetic --batches 4 --patches 32"""


@pytest.fixture
def run(run_benchmark, tmp_path):
    def call(*more):
        return run_benchmark("learning_rate", *TINY.split(), *more, cwd=tmp_path)

    return call


def test_the_command_writes_every_run_and_a_figure(monkeypatch, tmp_path):
    """The first training in a process of its own, the others in this one."""
    begun = []

    def run(command, **options):
        begun.append(command)
        if len(begun) == 1:
            return subprocess.run(command, **options)
        found = click.testing.CliRunner().invoke(kerass2.fit.main, command[3:])
        assert found.exit_code == 0, found.output
        return subprocess.CompletedProcess(command, 0, found.output, "")

    monkeypatch.setattr(learning_rate, "subprocess", types.SimpleNamespace(run=run))
    path = tmp_path / "results" / "rules.jsonl"
    arguments = [*TINY.split(), "-o", str(path)]
    result = click.testing.CliRunner().invoke(learning_rate.main, arguments)
    assert result.exit_code == 0, result.output
    assert len(begun) == len(learning_rate.RULES)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["rule"], line["batch"], line["steps"]) for line in lines] == [
        (rule, 4, 8) for rule in learning_rate.RULES
    ]
    for line in lines:
        assert line["where"]["software"]["keras"]
        assert line["validation_rmse"] > 0
        assert len(line["losses"]) == line["steps"]
        assert f"{line['rule']}, batch {line['batch']}: " in result.stdout
    assert path.with_suffix(".svg").read_text().count("<svg") == 1


def test_each_rule_at_twice_the_reference():
    found = {
        rule: dict(s.split("=") for s in learning_rate.rule_settings(rule, 8, 4, 1e-3, 320))
        for rule in learning_rate.RULES
    }
    for settings in found.values():
        assert settings["run.global_batch"] == "8"
        assert settings["optimizer.reference_batch"] == "4"
        assert settings["optimizer.learning_rate"] == "0.001"
    options = "optimizer.schedule_options"
    plain, warmed, modified = (found[rule] for rule in learning_rate.RULES)
    assert plain["optimizer.schedule"] == warmed["optimizer.schedule"] == "linear"
    assert f"{options}.warmup_steps" not in plain
    assert warmed[f"{options}.warmup_steps"] == "4"  # a tenth of 40 steps
    assert modified["optimizer.schedule"] == "modified_linear"
    assert modified[f"{options}.halve_every"] == "20"  # a quarter of the steps at the reference


def losses(*values: float) -> list[dict[str, float]]:
    return [{"step": i, "loss": value} for i, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("values", "error", "exploded"),
    [
        ((2.0, 1.0), "", False),
        ((2.0, 9.0, 1.0), "", False),
        ((2.0, 9.0, 3.0), "", True),
        ((2.0, 1.0), "error: the loss is nan at step 3; ...", True),
        ((), "error: the loss is nan at step 1; ...", True),
    ],
)
def test_what_counts_as_exploded(values, error, exploded):
    found = learning_rate.summarise([*losses(*values), {"validation_rmse": 3.0}], error)
    assert found["exploded"] is exploded
    assert (found["validation_rmse"] is None) == bool(error)
    assert found["peak_loss"] == max(values, default=None)


def test_a_figure_with_exploded_runs(tmp_path):
    sound = learning_rate.summarise([*losses(2.0, 1.0), {"validation_rmse": 3.0}], "")
    bad = learning_rate.summarise(losses(2.0, 1e9), "error: the loss is inf at step 3; ...")
    lines = [
        {"rule": rule, "batch": batch, **(bad if rule == "linear" else sound)}
        for rule in learning_rate.RULES
        for batch in (4, 8)
    ]
    learning_rate.draw(lines, tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").stat().st_size > 1000


def test_wrong_sizes_are_refused(run):
    result = run("--batches", "4,many")
    assert result.returncode == 2
    assert "whole numbers are needed" in result.stderr
