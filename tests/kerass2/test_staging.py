"""A copy of the data on each node: made once, whole or not at all, checked, and read instead."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipelines.spec import DataError
from kerass2 import inputs, staging
from kerass2.config import ConfigError
from strategies.cluster import Cluster
from strategies.single import SingleStrategy


def stage(prepared, folder):
    data = inputs.open_data(prepared, "superres_20m")
    return data, staging.stage(data, folder, SingleStrategy(Cluster("none")))


def test_the_copy_is_read(prepared, tmp_path):
    data, staged = stage(prepared, tmp_path / "local")
    (copy,) = (tmp_path / "local").iterdir()
    assert copy.name == f"kerass2-{data.digest}"
    assert (staged.path, staged.digest) == (data.path, data.digest)
    indices = np.arange(3)
    batches = [each.open("train").read(indices) for each in (data, staged)]
    for name, expected in batches[0]["inputs"].items():
        np.testing.assert_array_equal(batches[1]["inputs"][name], expected)
    # A file that is no longer there is missed by what reads it, and by nothing else.
    next(copy.glob("train*")).unlink()
    data.open("train")
    with pytest.raises(DataError, match=f"{copy}.*not found"):
        staged.open("train")


def test_a_second_run_copies_nothing(prepared, tmp_path, monkeypatch):
    stage(prepared, tmp_path)
    monkeypatch.setattr(staging.shutil, "copytree", None)
    stage(prepared, tmp_path)


def test_a_damaged_copy_is_found(prepared, tmp_path):
    stage(prepared, tmp_path)
    (copy,) = tmp_path.iterdir()
    shard = next(copy.glob("train*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=f"{copy}.*delete it to have it copied again"):
        stage(prepared, tmp_path)


def test_no_room(prepared, tmp_path, monkeypatch):
    """Nothing is left of a copy that did not fit."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(staging.shutil, "copytree", full)
    with pytest.raises(DataError, match="No space left on device"):
        stage(prepared, tmp_path / "local")
    assert list((tmp_path / "local").iterdir()) == []


def test_a_product_cannot_be_copied(granule_folder, tmp_path):
    data = inputs.open_data(granule_folder, "superres_20m")
    with pytest.raises(ConfigError, match="is a product"):
        staging.stage(data, tmp_path, SingleStrategy(Cluster("none")))


def test_fit_trains_from_it(prepared, tmp_path, run_here):
    command = ["fit", "--data", prepared, "--stage", tmp_path / "local"]
    small = ["--set", "model.options.filters=8", "--set", "model.options.blocks=2"]
    result = run_here(*command, "--workdir", tmp_path / "run", "--steps", "1", *small)
    assert result.returncode == 0, result.stderr
    assert f"from its copy {tmp_path / 'local'}/kerass2-" in result.stderr
