"""The table of parameters and operations, against the graph that TensorFlow executes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from typing import Any

import click.testing
import pytest
import tensorflow as tf

from kerass2 import backend, config, models
from kerass2.models import __main__ as command
from kerass2.models import cost

COMMAND = [sys.executable, "-m", "kerass2.models"]


def operations_of_graph(model: Any, size: int) -> dict[str, int]:
    """Operations by kind of node of the forward pass of one patch, from the nodes' shapes."""
    takes = models.describe(model)
    fine = takes["gsd"][next(reversed(takes["gsd"]))] / takes["scale"]
    specs = {
        key: tf.TensorSpec((1, round(size * fine / gsd), round(size * fine / gsd), len(bands)))
        for (key, bands), gsd in zip(takes["inputs"].items(), takes["gsd"].values(), strict=True)
    }
    graph = tf.function(model, autograph=False).get_concrete_function(specs).graph
    found = {"Conv2D": 0, "BatchMatMulV2": 0, "MatMul": 0}
    for node in graph.get_operations():
        if node.type not in found:
            continue
        a, b = (tensor.shape.as_list() for tensor in node.inputs)
        if node.type == "Conv2D":
            summed = b[0] * b[1] * b[2]
        else:
            transposed = node.type == "MatMul" and node.get_attr("transpose_a")
            summed = a[-2] if transposed else a[-1]
        found[node.type] += 2 * summed * math.prod(node.outputs[0].shape.as_list())
    return found


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("dsen2", {}, 32),
        ("s2x", {}, 32),
        ("s2x", {"fusion": "branches", "filters": 16, "blocks": 3}, 24),
        ("s6x", {"filters": 48, "block": 36}, 36),
        ("s6x", {"filters": 8, "block": 12}, 24),
        ("bicubic", {}, 12),
    ],
)
def test_operations_are_those_of_the_graph(
    monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any], size: int
) -> None:
    """All maps at once: of a loop a graph does not say how often it runs."""
    monkeypatch.setattr(backend, "is_on_processors", lambda: False)
    model = models.build(name, **options)
    found, graph = cost.count(model), operations_of_graph(model, size)
    assert found.of_patch(size) == sum(graph.values())
    assert found.convolutions * size**2 == graph["Conv2D"]
    assert (found.attention(size) > 0) == (graph["BatchMatMulV2"] > 0)


def test_attention_beside_convolutions() -> None:
    """facts.md: attention adds 8 % of the convolutions' work at 32 px, 74 % at 96, 297 % at 192."""
    found = cost.count(models.build("s2x"))
    for patch, percent in ((32, 8), (96, 74), (192, 297)):
        pairs = found.attention_per_key * patch**2
        assert 100 * pairs / found.convolutions == pytest.approx(percent, abs=1)


def test_command_prints_every_model_and_experiment() -> None:
    done = click.testing.CliRunner().invoke(command.main, ["--json"])
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert list(rows) == [*models.MODELS, *config.names()]
    assert rows["dsen2"]["parameters"] == rows["dsen2_20m"]["parameters"] == 1_789_574
    assert rows["dsen2_60m"]["parameters"] == 1_787_266
    assert rows["vdsen2"]["parameters"] == 37_802_246
    assert rows["vdsen2_60m"]["parameters"] == 37_797_634
    for name in config.names():
        assert rows[name]["task"] == config.load(name).data.task
    assert rows["bicubic"]["parameters"] == rows["bicubic"]["patch_operations"] == 0
    assert rows["superres_60m"]["patch"] == 96
    # On a raster attention counts for both lattices: 9 % more where it took 9 % before.
    row = rows["superres_20m"]
    assert row["raster"] == row["convolutions"] + 2 * row["attention"]
    assert rows["dsen2_20m"]["raster"] is None
    assert all(row["parameters"] <= 500_000 for row in rows.values() if "compact" in row["name"])


def test_table() -> None:
    done = subprocess.run([*COMMAND, "dsen2", "s2x"], capture_output=True, text=True, check=True)
    assert "1,789,574" in done.stdout
    assert "1,810,215" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_unknown_name() -> None:
    done = subprocess.run([*COMMAND, "s3x"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no model and no experiment 's3x'; there are: dsen2, vdsen2, s2x" in done.stderr


def test_help_answers_at_once() -> None:
    begin = time.perf_counter()
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True)
    assert "floating-point operations" in done.stdout
    assert time.perf_counter() - begin < 2  # 0.5 s on a quiet machine
