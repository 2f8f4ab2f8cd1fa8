"""`python -m benchmarks classification` at a tiny size, and the numbers that it rests on."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks import classification, classification_data
from data_pipelines import bigearthnet_patches, store, synthetic_patches
from data_pipelines.bigearthnet import BANDS
from kerass2 import schedules

TINY = """--count 60 --edge 16 --epochs 1 --batch 8 --note tests
    --set model.options.width=4 --set model.options.depth=10 --set run.precision=float32"""


@pytest.mark.slow
def test_the_command_writes_every_method_and_a_table(
    run_benchmark: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "results" / "labels.jsonl"
    result = run_benchmark("classification", *TINY.split(), "-o", path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    methods = list(classification.VARIANTS)
    trained = [line["method"] for line in lines if line["what"] == "classification training"]
    assert trained == methods
    scored = [line for line in lines if line["what"] == "classification"]
    both = [(tuned, name) for tuned in (False, True) for name in ("prior", *methods)]
    assert [(line["tuned"], line["method"]) for line in scored] == both
    assert all(len(line["classes"]) == 43 for line in scored)
    table = path.with_suffix(".md").read_text()
    assert table in result.stdout
    assert table.count("\n| ") == 2 * (1 + 1 + len(methods))


def test_the_schedule_is_the_papers_in_fewer_steps() -> None:
    found = dict(
        setting.split("=", 1) for setting in classification.schedule(10_400, 256, epochs=25)
    )
    options = json.loads(found["optimizer.schedule_options"])
    assert (found["run.global_batch"], found["run.steps"]) == ("256", "1000")
    rate = schedules.build(
        "linear", learning_rate=0.1, global_batch=256, reference_batch=256, num_steps=1000,
        **options,
    )  # fmt: skip
    rates = [float(rate(step)) for step in (299, 300, 599, 600, 799, 800)]
    assert rates == pytest.approx([0.1, 0.01, 0.01, 0.001, 0.001, 0.0001])


def test_small_patches_are_means_of_large_ones(tmp_path: pathlib.Path) -> None:
    folder = classification_data.make(tmp_path, 24, 30)
    found = store.read_manifest(folder)
    assert found.spec == classification_data.build_spec(30)
    assert found.spec.inputs["bands"].gsd == 40.0
    assert found.provenance["synthetic"]
    assert sum(found.num_examples(split) for split in found.splits) == 24
    batch = store.open_source(folder, "train").read([1])
    plan = synthetic_patches.build_plan(24)
    index = [plan.name(i) for i in range(24)].index(str(batch["patch_id"][0]))
    np.testing.assert_array_equal(batch["targets"]["labels"][0], plan.labels[index])
    fine = bigearthnet_patches.upsample_bilinear(synthetic_patches.render(plan, index))
    means = fine.reshape(30, 4, 30, 4, len(BANDS)).astype(float).mean(axis=(1, 3))
    np.testing.assert_allclose(batch["inputs"]["bands"][0], means, atol=0.51)
    assert classification_data.make(tmp_path, 24, 30) == folder  # as it was


@pytest.mark.parametrize("coarse", [40, 32, 7])
def test_shrinking_keeps_the_mean(coarse: int) -> None:
    weights = classification_data.shrinking(120, coarse)
    assert weights.shape == (coarse, 120)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(weights.sum(axis=0), coarse / 120, rtol=1e-4)
    assert (np.count_nonzero(weights, axis=1) <= 120 / coarse + 2).all()
