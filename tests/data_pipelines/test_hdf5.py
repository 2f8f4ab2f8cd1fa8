"""hdf5.py as other programs see it (h5py, tensorflow-io), and its own damage."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import shutil
import sys
from typing import Any

import numpy as np
import pytest
from store_cases import SPEC, TEST, TRAIN, assert_is, make_example, make_examples

from data_pipelines import hdf5, hdf5_io, record, store
from data_pipelines.spec import DataError, DatasetSpec, TensorSpec

CLASSIFY = DatasetSpec(
    "bigearthnet",
    {
        "bands": TensorSpec((12, 12, 12), tuple(f"B{i:02d}" for i in range(12)), 10.0),
        "gsd10": TensorSpec((12, 12, 4), ("B02", "B03", "B04", "B08"), 10.0),
        "gsd20": TensorSpec((6, 6, 6), ("B05", "B06", "B07", "B8A", "B11", "B12"), 20.0),
        "gsd60": TensorSpec((2, 2, 2), ("B01", "B09"), 60.0),
        "10m": TensorSpec((2, 2, 1), ("radar",), 10.0),
    },
    {
        "labels": TensorSpec((43,), tuple(map(str, range(43))), 1200.0, "uint8", 1.0),
        "superres_20m": TensorSpec((4, 4, 1), ("B05",), 10.0),
    },
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """40 training patches in two shards or more, 20 test patches."""
    path = tmp_path_factory.mktemp("hdf5") / "data"
    return store.write(path, SPEC, make_examples(), file_format="hdf5", shard_bytes=6000)


def test_keys_are_those_of_the_paper(tmp_path: pathlib.Path) -> None:
    import h5py

    store.write(tmp_path / "d", CLASSIFY, make_examples(6, CLASSIFY), file_format="hdf5")
    expected = {"data_super", "data_10m", "data_20m", "data_60m", "input_10m", "classes"}
    expected |= {"target_superres_20m", "patch_id"}
    for name in ("train-00000.h5", "train.h5"):
        with h5py.File(tmp_path / "d" / name) as file:
            assert set(file) == expected
            assert json.loads(file.attrs["spec"]) == json.loads(json.dumps(CLASSIFY.to_json()))
            assert file.attrs["task"] == "bigearthnet"
            assert file["data_20m"].attrs["bands"].tolist() == list(CLASSIFY.inputs["gsd20"].bands)
            about = {key: file["data_60m"].attrs[key] for key in ("gsd", "scale", "unit")}
            assert about == {"gsd": 60.0, "scale": 1e-4, "unit": "1"}
            patch = make_example(1, CLASSIFY)
            np.testing.assert_array_equal(file["classes"][1], patch["targets"]["labels"])
            np.testing.assert_array_equal(file["data_super"][1], patch["inputs"]["bands"])


@pytest.mark.parametrize(("split", "numbers"), [("train", TRAIN), ("test", TEST)])
def test_h5py_reads_all_shards_as_one_file(
    folder: pathlib.Path, tmp_path: pathlib.Path, split: str, numbers: list[int]
) -> None:
    import h5py

    moved = shutil.copytree(folder, tmp_path / "moved")  # the master finds its shards beside it
    with h5py.File(moved / f"{split}.h5") as file:
        assert_is(
            {
                "inputs": {"gsd10": file["data_10m"][()], "gsd20": file["data_20m"][()]},
                "targets": {"superres_20m": file["target_superres_20m"][()]},
                "patch_id": file["patch_id"].asstr()[()],
            },
            numbers,
        )
        assert file["data_10m"].is_virtual
        one = file["data_20m"][len(numbers) - 1]
        np.testing.assert_array_equal(one, make_example(numbers[-1])["inputs"]["gsd20"])
        # Of ours and theirs at the same time.
        assert_is(store.open_source(moved, split).read([0]), numbers[:1])


def test_a_shard_open_elsewhere_is_still_read(folder: pathlib.Path) -> None:
    import h5py

    with h5py.File(folder / "train-00000.h5") as file:
        assert_is(store.open_source(folder, "train").read([0]), TRAIN[:1])
        assert len(file["patch_id"]) > 1
    with (
        h5py.File(folder / "train-00000.h5", locking=False),
        pytest.raises(DataError, match=r"train-00000\.h5: not readable as HDF5"),
    ):
        store.open_source(folder, "train").read([0])


CHANGES = {
    "gzip": ({"compression": "gzip"}, "expected whole records without compression"),
    "rows": ({"chunks": (4, 2, 4, 2)}, "expected whole records without compression"),
    "no chunks": ({}, "expected whole records without compression"),
    "dtype": ({"dtype": "int32"}, "data_10m is int32"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_file_laid_out_otherwise_is_refused(
    folder: pathlib.Path, tmp_path: pathlib.Path, case: str
) -> None:
    import h5py

    options, words = CHANGES[case]
    path = pathlib.Path(shutil.copytree(folder, tmp_path / "d")) / "train-00000.h5"
    size = path.stat().st_size
    with h5py.File(path, "a") as file:
        values = file["data_10m"][()]
        del file["data_10m"]
        file.create_dataset("data_10m", data=values, **options)
    with path.open("r+b") as file:  # of the size that the manifest lists
        file.truncate(size)
    with pytest.raises(DataError, match=rf"train-00000\.h5.*{words}|not readable"):
        source = store.open_source(path.parent, "train")
        source.read([0])


def test_chunk_that_was_never_written_is_refused(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    import h5py

    found = store.read_manifest(folder).splits["train"][0]
    with h5py.File(tmp_path / found.name, "w", libver=hdf5.VERSION) as file:
        for key, tensor in record.features(SPEC):
            shape, chunks = (found.count, *tensor.shape), (16, *tensor.shape)
            file.create_dataset(hdf5.dataset_name(key), shape, tensor.dtype, chunks=chunks)
        file["patch_id"] = np.array([b"x"] * found.count)
    with pytest.raises(DataError, match="a chunk of its arrays has no place"):
        hdf5.locate(tmp_path, SPEC, found)


# --- tensorflow-io --------------------------------------------------------------------------------

io = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_io") is None,
    reason="tensorflow-io is not installed",
)


@io
@pytest.mark.parametrize("batch", [1, 7, 100])
def test_tensorflow_io_gives_the_same_in_storage_order(folder: pathlib.Path, batch: int) -> None:
    for split, numbers in (("train", TRAIN), ("test", TEST)):
        start = 0
        for found in hdf5_io.build_dataset(folder, split, batch).as_numpy_iterator():
            found["patch_id"] = np.array([name.decode() for name in found["patch_id"]])
            size = len(found["patch_id"])
            assert size == min(batch, len(numbers) - start)
            assert_is(found, numbers[start : start + size])
            start += size
        assert start == len(numbers)


@io
def test_tensorflow_io_is_given_no_damaged_file(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    path = pathlib.Path(shutil.copytree(folder, tmp_path / "d")) / "train-00001.h5"
    good = path.read_bytes()
    path.write_bytes(good[:5000] + bytes([good[5000] ^ 1]) + good[5001:])
    with pytest.raises(DataError, match=r"train-00001\.h5: file CRC"):
        hdf5_io.build_dataset(path.parent, "train", 8)


@io
def test_a_tensorflow_io_for_another_tensorflow_is_said(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    def missing(*arguments: Any) -> None:
        raise NotImplementedError("unable to open file: libtensorflow_io.so")

    monkeypatch.setattr(hdf5_io._import().IODataset, "from_hdf5", missing)
    with pytest.raises(DataError, match=rf"was not made for TensorFlow {tf.__version__}; 0\.37"):
        hdf5_io.build_dataset(folder, "train", 8)


def test_what_tensorflow_io_cannot_read_is_refused(
    folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(tmp_path / "t", SPEC, make_examples(6), splits=["validation"])
    with pytest.raises(DataError, match="format 'tfrecord'; tensorflow-io reads hdf5 only"):
        hdf5_io.build_dataset(tmp_path / "t", "train", 8)
    with pytest.raises(DataError, match="batch 0: expected at least 1"):
        hdf5_io.build_dataset(folder, "train", 0)
    empty = store.write(tmp_path / "e", SPEC, [], splits=["validation"], file_format="hdf5")
    with pytest.raises(DataError, match="split validation holds no patches"):
        hdf5_io.build_dataset(empty, "validation", 8)
    monkeypatch.setitem(sys.modules, "tensorflow_io", None)
    with pytest.raises(DataError, match=r"tensorflow-io cannot be imported .*kerass2\[io\]"):
        hdf5_io.build_dataset(folder, "train", 8)
