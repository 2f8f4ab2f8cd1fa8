"""`python -m benchmarks large_batch`: its rules, how it judges a run, and its figure."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import click
import pytest

from benchmarks import large_batch
from kerass2 import config

TINY = """--count 60 --edge 16 --epochs 2 --batches 4,8 --set model.options.width=4
    --set model.options.depth=10 --set run.precision=float32"""


@pytest.mark.slow
def test_the_command_writes_every_run_and_a_figure(
    run_benchmark: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "results" / "batches.jsonl"
    result = run_benchmark("large_batch", *TINY.split(), "-o", path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["batch"], line["rule"]) for line in lines] == [
        (batch, rule) for batch in (4, 8) for rule in large_batch.RULES
    ]
    assert all(line["validation_ap"] is not None or line["error"] for line in lines)
    assert path.with_suffix(".svg").read_text().count("<svg") == 1
    for rule in large_batch.RULES:
        assert f"{rule}: breaks at " in result.stdout


def test_each_rule_as_an_experiment() -> None:
    found = {}
    for rule in large_batch.RULES:
        settings = large_batch.rule_settings(rule, 4096, 64, patches=10_400, epochs=50)
        found[rule] = config.override(config.load("bigearthnet_ms_compact"), settings)
        assert (found[rule].run.global_batch, found[rule].run.accumulation_steps) == (4096, 64)
        assert (found[rule].run.steps, found[rule].run.epochs) == (100, None)
    plain, warm, lars = (each.optimizer for each in found.values())
    assert plain.schedule_options == {"warmup_steps": 0, "drop_steps": [30, 60, 80]}
    assert warm.schedule_options == {"warmup_steps": 5, "drop_steps": [30, 60, 80]}
    assert lars.schedule_options == {"warmup_steps": 5, "power": 2.0}
    assert [each.learning_rate for each in (plain, warm, lars)] == [0.1, 0.1, 0.4]
    assert (lars.name, lars.options) == ("lars", {"weight_decay": 5e-4})
    # What comes with the package for large batches says the same.
    published = config.load("bigearthnet_ms_lars")
    assert (published.optimizer.learning_rate, published.optimizer.options) == (0.4, lars.options)
    assert found["lars"].model.options["l2"] == published.model.options["l2"] == 0.0


def run(*losses: float, error: str = "", ap: float = 0.5) -> dict[str, object]:
    log: list[dict[str, float]] = [{"loss": loss} for loss in losses]
    scores = dict.fromkeys(large_batch.SCORES, ap)
    return large_batch.summarise([*log, scores], error, 0.5)


def test_what_counts_as_broken() -> None:
    base = run(2.0, 1.0)
    assert base["losses"] == [[0.5, 2.0], [1.0, 1.0]]
    assert not large_batch.is_broken(base, [])
    assert not large_batch.is_broken(run(2.0, 1.0, ap=0.46), [base])
    assert large_batch.is_broken(run(2.0, 1.0, ap=0.44), [base])
    assert large_batch.is_broken(run(2.0, 3.0), [base])
    assert large_batch.is_broken(run(2.0, 1.0, error="the loss is nan at step 3"), [base])
    assert large_batch.is_broken(run(error="the loss is nan at step 1"), [base])


def test_a_figure_with_broken_runs(tmp_path: pathlib.Path) -> None:
    lines = [
        {"rule": rule, "batch": batch, "broken": batch == 128, **found}
        for rule in large_batch.RULES
        for batch, found in ((64, run(2.0, 1.0)), (128, run(2.0, error="nan")))
    ]
    large_batch.draw(lines, tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").stat().st_size > 1000
    assert "BROKEN: nan" in large_batch.describe(lines[1])


@pytest.mark.parametrize("text", ["4,many", "", "64,100", "0,4"])
def test_wrong_batches_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match=f"--batches {text}: "):
        large_batch.parse_batches(text)
    assert large_batch.parse_batches("512,64") == [64, 512]
