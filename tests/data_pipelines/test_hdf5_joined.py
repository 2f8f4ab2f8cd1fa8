"""One HDF5 file of a split, by one process and by several under MPI."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
from store_cases import SPEC, make_examples

from data_pipelines import hdf5_joined, store
from data_pipelines.spec import DataError

# Debian's Python 3.11 with python3-h5py-mpi; PyPI's h5py has no MPI, and Debian's wants its numpy.
PYTHON = "/usr/bin/python3"
# What else `kerass2.data join` imports, from this environment.
LENT = ["click", "google_crc32c", "pydantic", "pydantic_core", "annotated_types"]
LENT += ["typing_extensions", "typing_inspection"]
# One machine may have fewer cores than ranks, and root runs CI.
MPIRUN = ("mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", "3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Not HDF5: that of Debian is too old for our reader."""
    path = tmp_path_factory.mktemp("joined") / "data"
    store.write(path.with_name("hdf5"), SPEC, make_examples(), file_format="hdf5", shard_bytes=6000)
    return store.write(path, SPEC, make_examples(), file_format="lmdb", shard_bytes=6000)


@pytest.fixture(scope="module")
def path_of_debian(tmp_path_factory: pytest.TempPathFactory) -> str:
    """PYTHONPATH for Debian's Python; skips where it has no h5py with MPI."""
    folder, root = tmp_path_factory.mktemp("lent"), pathlib.Path(hdf5_joined.__file__).parents[1]
    for name in LENT:
        place = pathlib.Path(str(importlib.util.find_spec(name).origin))  # type: ignore[union-attr]
        place = place.parent if place.name == "__init__.py" else place
        (folder / place.name).symlink_to(place)
    path = f"{root}:{folder}"
    if shutil.which("mpirun") is None:
        pytest.skip("no mpirun")
    probe = f"import h5py._debian_h5py_mpi, {', '.join(LENT)}"
    done = subprocess.run([PYTHON, "-c", probe], env={"PYTHONPATH": path}, check=False)
    if done.returncode:
        pytest.skip("no Python 3.11 with h5py built with MPI (Debian: python3-h5py-mpi)")
    return path


def run(python: str, path: str, *words: str) -> subprocess.CompletedProcess[str]:
    """kerass2.data join under mpirun, by that Python."""
    return subprocess.run(
        [*MPIRUN, python, "-m", "kerass2.data", "join", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=120,
        check=False,
    )


def assert_holds(path: pathlib.Path, folder: pathlib.Path, split: str) -> None:
    """As h5py reads it, the file holds the split in its order, under the names of our shards."""
    expected = store.open_source(folder, split)
    batch = expected.read(np.arange(len(expected)))
    with h5py.File(path) as file, h5py.File(folder.with_name("hdf5") / f"{split}.h5") as virtual:
        assert set(file) == set(virtual)
        assert file["patch_id"].asstr()[:].tolist() == batch["patch_id"].tolist()
        for name in file:
            np.testing.assert_array_equal(file[name][()], virtual[name][()])
            assert {k: np.asarray(v).tolist() for k, v in file[name].attrs.items()} == {
                k: np.asarray(v).tolist() for k, v in virtual[name].attrs.items()
            }
        assert dict(file.attrs) == dict(virtual.attrs)


@pytest.mark.parametrize("mpi", [False, True], ids=["alone", "three ranks"])
def test_file_holds_the_split(
    folder: pathlib.Path, tmp_path: pathlib.Path, mpi: bool, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "train.h5"
    if mpi:
        lent = request.getfixturevalue("path_of_debian")
        done = run(PYTHON, lent, str(folder), "-o", str(path))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("wrote ") == 1
    else:
        assert hdf5_joined.join(folder, "train", path, world_size=1) == 40
    assert_holds(path, folder, "train")
    assert [each.name for each in tmp_path.iterdir()] == ["train.h5"]


@pytest.mark.parametrize("mpi", [False, True], ids=["alone", "three ranks"])
def test_damage_leaves_what_was_there(
    folder: pathlib.Path, tmp_path: pathlib.Path, mpi: bool, request: pytest.FixtureRequest
) -> None:
    """One rank finds a record with another checksum; all of them end."""
    broken, path = tmp_path / "data", tmp_path / "train.h5"
    shutil.copytree(folder, broken)
    shard = sorted(broken.glob("train-*/data.mdb"))[-1]
    place = store.open_source(folder, "train").read([39])["inputs"]["gsd10"].tobytes()
    content = shard.read_bytes()
    assert content.count(place) == 1
    shard.write_bytes(content.replace(place, bytes(len(place))))
    path.write_text("old")
    if mpi:
        lent = request.getfixturevalue("path_of_debian")
        done = run(PYTHON, lent, str(broken), "-o", str(path), "--overwrite")
        assert done.returncode != 0
        assert str(shard.parent) in done.stderr
    else:
        with pytest.raises(DataError, match=shard.parent.name):
            hdf5_joined.join(broken, "train", path, world_size=1, overwrite=True)
    assert path.read_text() == "old"
    assert {each.name for each in tmp_path.iterdir()} == {"data", "train.h5"}


def test_what_cannot_be_done_is_refused(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "train.h5"
    with pytest.raises(DataError, match="no split 'validation'"):
        hdf5_joined.join(folder, "validation", path, world_size=1)
    path.write_text("old")
    with pytest.raises(DataError, match=r"train\.h5 is there already: --overwrite"):
        hdf5_joined.join(folder, "train", path, world_size=1)


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun")
def test_ranks_without_mpi_in_h5py_say_so(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    root = str(pathlib.Path(hdf5_joined.__file__).parents[1])
    done = run(sys.executable, root, str(folder), "-o", str(tmp_path / "train.h5"))
    assert done.returncode != 0
    assert "3 processes were started, but this h5py" in done.stderr
    assert not list(tmp_path.iterdir())
