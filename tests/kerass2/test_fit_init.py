"""kerass2.fit --init: the weights that a run starts from, and what its records say of them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from kerass2 import models

SETTINGS = (
    "--set=model.options.filters=8",
    "--set=model.options.blocks=2",
    "--set=run.precision=float32",
    "--set=run.global_batch=12",
    "--set=optimizer.learning_rate=1e-14",  # weights stay where they start
)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    path = tmp_path_factory.mktemp("start") / "dsen2.keras"
    models.build("dsen2", filters=8, blocks=2).save(path)
    return path


def weights(path):
    return models.load_model(path).get_weights()


@pytest.mark.parametrize("strategy", ["single", "horovod", "multiworker"])
def test_a_run_starts_from_the_file(run_lightly, run_here, prepared, start, tmp_path, strategy):
    if strategy == "horovod":
        pytest.importorskip("horovod", reason="Horovod is not built here")
    given = ("dsen2_20m_compact", "--data", prepared, "--workdir", tmp_path / "w", *SETTINGS)
    more = ("--init", start, "--steps", 2, "--strategy", strategy)
    result = run_lightly("fit", *given, *more)
    assert result.returncode == 0, result.stderr
    assert f"weights  dsen2's, {start}" in result.stdout
    for found, expected in zip(
        weights(tmp_path / "w" / "model.keras"), weights(start), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-7)
    record = json.loads((tmp_path / "w" / "data.json").read_text())["init"]
    assert record["path"] == str(start)
    assert len(record["digest"]) == 12
    if strategy != "single":
        return
    refused = run_here("fit", *given, *more, "--resume")
    assert refused.returncode == 2
    assert "--init" in refused.stderr
    resumed = run_lightly("fit", *given, "--steps", 3, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads((tmp_path / "w" / "data.json").read_text())["init"] == record
    # Killed before the first checkpoint: what it was begun with is what it begins with again.
    shutil.rmtree(tmp_path / "w" / "checkpoints")
    anew = run_lightly("fit", *given, "--steps", 2, "--resume")
    assert anew.returncode == 0, anew.stderr
    assert f"weights  dsen2's, {start}" in anew.stdout


def test_files_that_do_not_fit(run_here, prepared, start, tmp_path):
    given = ("dsen2_20m_compact", "--data", prepared, "--workdir", tmp_path / "w", *SETTINGS)
    for more, message in (
        (("--init", tmp_path / "missing.npz"), "missing.npz: no readable file of weights"),
        (("--init", start, "--set=model.options.blocks=3"), "only the model has block3_conv1"),
    ):
        result = run_here("fit", *given, *more, "--steps", 2)
        assert result.returncode == 1, result.stderr
        assert message in result.stderr
        assert "Traceback" not in result.stderr
        assert not (tmp_path / "w").exists()
