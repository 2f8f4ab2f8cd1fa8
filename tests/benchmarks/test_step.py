"""`python -m benchmarks step` runs on a tiny model and writes what it says; no time is judged."""

from __future__ import annotations

import json
import os
import pathlib
import tempfile

import click.testing
import pytest

from benchmarks import record, step, step_profile, step_rank
from kerass2 import config, models

TINY = """--experiment dsen2_20m_compact --set model.options.filters=8 --set model.options.blocks=1
    --batch 2 --patch 16 --rounds 1"""


def check_figure(figure, unit, steps):
    assert figure["unit"] == unit
    assert 0 < figure["quartiles"][0] <= figure["median"] <= figure["quartiles"][1]
    assert figure["repeats"] == 1
    assert figure["steps"] == steps
    assert figure["warm_up"] == step_rank.WARM_UP


@pytest.fixture
def call(monkeypatch):
    """The command in this process, as the single ranks: TensorFlow is there already."""
    measure = step._measure

    def measure_here(prefix, case, strategy, variants):
        if strategy != "single":
            return measure(prefix, case, strategy, variants)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "seconds.json"
            whole = {**case, "strategy": strategy, "variants": variants, "output": str(path)}
            step_rank.main(json.loads(json.dumps(whole)))
            return json.loads(path.read_text())

    monkeypatch.setattr(step, "_measure", measure_here)
    return lambda *words: click.testing.CliRunner().invoke(step.main, list(map(str, words)))


@pytest.mark.horovod
def test_the_command_writes_every_ratio(call, tmp_path):
    path = tmp_path / "results" / "step.jsonl"
    path.parent.mkdir()
    path.write_text('{"version": 1, "what": "of another day"}\n')
    result = call(*TINY.split(), "-o", path)
    assert result.exit_code == 0, result.output
    first, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert first == {"version": 1, "what": "of another day"}
    both = ("float32", "bfloat16")
    assert [(line["what"], line["precision"]) for line in lines] == [
        *(("loop over bare", precision) for precision in both),
        ("bfloat16 over float32", "both"),
        *(
            (f"efficiency of 2 ranks, {strategy}", precision)
            for precision in both
            for strategy in ("horovod", "multiworker")
        ),
    ]
    for line in lines:
        assert line["version"] == record.VERSION
        check_figure(line["ratio"], "1", step_rank.BLOCK)
        check_figure(line["throughput"], "patches/s", step_rank.BLOCK)
        assert (line["batch"], line["patch"]) == (2, 16)
        assert line["where"]["software"]["keras"]
        if line["what"].startswith("efficiency"):
            assert len(set(line["cores_used"])) == 2
        assert f"{line['what']}, {line['precision']}: {line['ratio']['median']:.3f}" in (
            result.stdout
        )


def test_the_batch_is_what_a_classifier_takes():
    takes = models.describe(models.build("resnet", depth=10, width=4, classes=7))
    batch = step_rank.draw(takes, {"batch": 2, "patch": 36}, rank=0)
    assert {key: tuple(value.shape) for key, value in batch["inputs"].items()} == {
        "gsd10": (2, 36, 36, 4),
        "gsd20": (2, 18, 18, 6),
        "gsd60": (2, 6, 6, 2),
    }
    labels = batch["targets"]["labels"].numpy()
    assert labels.shape == (2, 7)
    assert set(labels.ravel()) == {0.0, 1.0}


def test_the_profile_has_every_layer_once():
    options = {"depth": 14, "width": 2, "classes": 3}
    model = models.build("resnet", **options, dtype="mixed_bfloat16")
    found = step_profile.time_layers(model, batch=1, patch=36)
    assert set(found) == {layer.name for layer in model.layers} - set(model.input)
    assert found["conv2_block1_2_conv"]["kind"] == "Conv2D"
    assert all(each["seconds"] > 0 for each in found.values())


def test_the_profile_names_what_costs_most():
    def layers(*seconds):
        names = (("a", "Conv2D"), ("b", "Conv2D"), ("c", "BatchNormalization"))
        pairs = zip(names, seconds, strict=True)
        return {name: {"kind": kind, "seconds": each} for (name, kind), each in pairs}

    rows = step_profile.summarise({"float32": layers(4, 2, 2), "bfloat16": layers(1, 1, 6)})
    assert [row["layers"] for row in rows[:3]] == ["1 x BatchNormalization", "2 x Conv2D", "c"]
    assert [row["ratio"] for row in rows] == [2 / 6, 3, 2 / 6, 4, 2]
    assert rows[1]["share"] == 0.25


@pytest.mark.parametrize(
    ("experiment", "settings", "expected"),
    [
        ("bigearthnet_ms", (), True),
        ("bigearthnet_rgb", ("model.options.depth=101",), True),
        ("bigearthnet_ms", ("model.options.depth=18",), False),
        ("bigearthnet_ms_compact", (), False),
        ("superres_20m", (), False),
    ],
)
def test_which_experiments_keras_applications_has_too(experiment, settings, expected):
    assert step._has_twin(config.override(config.load(experiment), settings)) is expected


def test_ranks_take_two_cores_of_many(monkeypatch):
    """On a larger machine too: one rank on the first core, the launcher of two on both."""
    started = []

    def measure(prefix, case, strategy, variants):
        started.append((prefix[:3], strategy))
        assert variants == [("loop", "float32"), ("loop", "bfloat16")]
        return [[2.0, 1.0, 4.0], [1.0, 8.0, 5.0]]

    monkeypatch.setattr(step, "_measure", measure)
    medians = step._measure_ranks({"rounds": 2}, [4, 7])
    assert started == 2 * [
        (["taskset", "-c", "4"], "single"),
        (["taskset", "-c", "4,7"], "horovod"),
        (["taskset", "-c", "4,7"], "multiworker"),
    ]
    assert medians == {
        (strategy, precision): 2 * [median]
        for strategy in ("single", "horovod", "multiworker")
        for precision, median in (("float32", 2.0), ("bfloat16", 5.0))
    }


@pytest.mark.parametrize(
    ("cores", "siblings", "chosen"),
    [
        ({0, 1}, {0}, [0, 1]),
        ({0, 1}, {0, 1}, [0, 1]),  # one physical core: its two threads
        ({0, 1, 2, 3}, {0, 1}, [0, 2]),
        ({6, 2, 4}, {2, 66}, [2, 4]),
    ],
)
def test_two_cores(monkeypatch, cores, siblings, chosen):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: cores)
    monkeypatch.setattr(step, "_siblings", lambda core: siblings)
    assert step._two_cores() == chosen


def test_one_core_is_too_few(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3})
    with pytest.raises(click.ClickException, match="needs 2 cores"):
        step._two_cores()


@pytest.mark.parametrize(
    ("text", "expected"), [("0,64", {0, 64}), ("0-3", {0, 1, 2, 3}), ("0-1,8-9", {0, 1, 8, 9})]
)
def test_siblings(monkeypatch, text, expected):
    monkeypatch.setattr(pathlib.Path, "read_text", lambda path: f"{text}\n")
    assert step._siblings(0) == expected
