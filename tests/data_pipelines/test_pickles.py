"""Pickles in what others have made are never run: a pickle is a program."""

from __future__ import annotations

import os
import pathlib
import pickle
from typing import Any

import numpy as np
import pytest

from data_pipelines import granule, sentinel2
from data_pipelines.spec import DataError

V1 = "S2A_MSIL2A_20170613T101031_87_48"


class Malicious:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: pathlib.Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._mark),)


@pytest.fixture
def mark(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder that does not exist unless someone unpickles."""
    path = tmp_path / "mark"
    pickle.loads(pickle.dumps(Malicious(path)))
    assert path.is_dir(), "the pickle does what it should"
    path.rmdir()
    return path


@pytest.mark.parametrize("member", ["im10", "bands20", "meta"])
def test_npz(tmp_path: pathlib.Path, mark: pathlib.Path, member: str) -> None:
    arrays: dict[str, Any] = {}
    for gsd in (10, 20, 60):
        bands = sentinel2.bands_at(gsd)
        arrays[f"im{gsd}"] = np.ones((len(bands), 120 // gsd, 120 // gsd), np.uint16)
        arrays[f"bands{gsd}"] = np.array(bands)
    path = tmp_path / "scene.npz"
    np.savez(path, **arrays)
    granule.open_granule(path)
    np.savez(path, **arrays | {member: np.array([Malicious(mark)], dtype=object)})
    with pytest.raises(DataError, match=r"scene.npz: not readable as .npz: Object arrays"):
        granule.open_granule(path)
    assert not mark.exists()


def test_a_bare_pickle_named_npz(tmp_path: pathlib.Path, mark: pathlib.Path) -> None:
    path = tmp_path / "scene.npz"
    path.write_bytes(pickle.dumps(Malicious(mark)))
    with pytest.raises(DataError, match=r"scene.npz: not readable as .npz"):
        granule.open_granule(path)
    assert not mark.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_lmdb_as_of_bigearthnet_v1(
    tmp_path: pathlib.Path, mark: pathlib.Path, protocol: int
) -> None:
    lmdb = pytest.importorskip("lmdb")
    value = pickle.dumps({"B02": Malicious(mark)}, protocol)
    folder = str(tmp_path / "db")
    with lmdb.open(folder, map_size=2**20) as environment, environment.begin(write=True) as writing:
        writing.put(V1.encode(), value)
    found = granule.open_granule(folder)
    for cube in found.cubes.values():
        with pytest.raises(DataError, match=f"{V1}: not readable as safetensors"):
            cube.compute(scheduler="synchronous")
    assert not mark.exists()
