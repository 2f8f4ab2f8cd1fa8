"""`python -m benchmarks networks` at a tiny size, and what its small networks stand for."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import networks
from kerass2 import config, models
from kerass2.models import cost

TINY = "--count 60 --edge 24 --epochs 1 --batch 8 --note tests --set run.precision=float32"


@pytest.mark.slow
def test_the_command_writes_both_networks_and_a_table(
    run_benchmark: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "results" / "networks.jsonl"
    options = ("--folder", tmp_path / "kept", "-o", path)
    result = run_benchmark("networks", *TINY.split(), *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["network"] for line in lines] == list(networks.NETWORKS)
    for line in lines:
        assert line["edge"] == 24
        assert line["tested"] > 0
        assert 0 <= line["scores"]["F1"] <= 1
        assert line["operations"] > 2 * line["parameters"] / 24**2
    assert lines[0]["operations"] > 2 * lines[1]["operations"]
    assert path.with_suffix(".md").read_text() in result.stdout
    # On data that somebody has prepared, another split.
    (data,) = (each for each in (tmp_path / "kept").iterdir() if (each / "manifest.json").is_file())
    given = ("--data", data, "--split", "validation", "--epochs", 1, "--batch", 8)
    result = run_benchmark("networks", *given, "-o", path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "of the validation split scored" in result.stdout


def test_the_small_networks_keep_the_ratio_of_the_large_ones() -> None:
    def operations(name: str, options: dict[str, Any], edge: int) -> int:
        return cost.count_classifier(models.build(name, **options), edge).of_patch(edge)

    small = [operations(name, options, 60) for name, options in networks.NETWORKS.values()]
    names = ("bigearthnet_ms", "bigearthnet_ms_wide")
    large = [config.load(name).model for name in names]
    full = [operations(model.name, dict(model.options), 120) for model in large]
    assert small[0] / small[1] == pytest.approx(full[0] / full[1], rel=0.3)


def test_the_table_has_scores_and_costs() -> None:
    scores = {"F1": 0.5, "F1 macro": 0.25, "AP": 0.6, "AP macro": 0.3}
    line = {
        "network": "small", "parameters": 12_345, "operations": 250_000_000, "seconds": 61.4,
        "scores": scores, "synthetic": False, "train": 4000, "tested": 1000, "edge": 60,
        "split": "test", "epochs": 12, "batch": 32, "settings": (), "note": "quiet",
    }  # fmt: skip
    text = networks.tabulate([line])
    assert "| small | 12,345 | 250.0 | 61 | 0.500 | 0.250 | 0.600 | 0.300 | 2.00 |" in text
    assert "4,000 real patches of 60 px" in text
    assert "batches of 32. quiet." in text
