"""zarr_store.py as zarr-python and xarray see it, and its own damage."""

from __future__ import annotations

import json
import pathlib
import shutil

import google_crc32c
import numpy as np
import pytest
from store_cases import SPEC, TRAIN, assert_is, make_example, make_examples

from data_pipelines import store, zarr_store
from data_pipelines.spec import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """40 training patches in two shards or more, 20 test patches."""
    path = tmp_path_factory.mktemp("zarr") / "data"
    return store.write(path, SPEC, make_examples(), file_format="zarr", shard_bytes=6000)


def test_zarr_python_reads_our_shards(folder: pathlib.Path) -> None:
    import zarr

    start = 0
    for shard in store.read_manifest(folder).splits["train"]:
        group = zarr.open_group(str(folder / shard.name), mode="r")
        assert group.metadata.zarr_format == 3
        found = {
            "inputs": {name: group[f"inputs/{name}"][:] for name in SPEC.inputs},
            "targets": {name: group[f"targets/{name}"][:] for name in SPEC.targets},
            "patch_id": np.array(group["patch_id"][:].tolist()),
        }
        assert_is(found, TRAIN[start : start + shard.count])
        last = TRAIN[start + shard.count - 1]
        one = group["inputs/gsd20"][shard.count - 1]
        np.testing.assert_array_equal(one, make_example(last)["inputs"]["gsd20"])
        start += shard.count
    assert start == 40


def test_shards_are_sharded_checked_and_described(folder: pathlib.Path) -> None:
    import zarr

    shard = store.read_manifest(folder).splits["train"][0]
    group = zarr.open_group(str(folder / shard.name), mode="r")
    assert group.attrs["task"] == "superres_20m"
    assert group.attrs["spec"] == json.loads(json.dumps(SPEC.to_json()))
    array = group["inputs/gsd10"]
    assert array.attrs.asdict() == {
        "bands": ["B02", "B03"],
        "gsd": 20.0,
        "scale": 1e-4,
        "unit": "1",
    }
    assert array.metadata.dimension_names == ("patch", "y_gsd10", "x_gsd10", "band_gsd10")
    assert array.shards == (-(-shard.count // 16) * 16, 4, 4, 2)
    assert array.chunks == (16, 4, 4, 2)
    (codec,) = array.metadata.codecs
    assert [inner.to_dict()["name"] for inner in codec.codecs] == ["bytes", "crc32c"]
    # zarr.json of 6 nodes, patch ids, and one file an array, however many records.
    assert len(shard.files) == 6 + 1 + 3 + 1


def test_zarr_python_finds_a_flipped_byte_too(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    import zarr

    root = pathlib.Path(shutil.copytree(folder / "train-00000.zarr", tmp_path / "x.zarr"))
    path = root / "inputs" / "gsd10" / "c" / "0" / "0" / "0" / "0"
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"(?i)checksum|crc"):
        zarr.open_group(str(root), mode="r")["inputs/gsd10"][0]


def test_xarray_opens_a_group(folder: pathlib.Path) -> None:
    import xarray

    with xarray.open_zarr(
        folder / "train-00000.zarr", group="inputs/", consolidated=False, chunks=None
    ) as found:
        assert found["gsd10"].dims == ("patch", "y_gsd10", "x_gsd10", "band_gsd10")
        image = make_example(TRAIN[1])["inputs"]["gsd10"]
        np.testing.assert_array_equal(found["gsd10"].isel(patch=1).values, image)


def test_a_changed_index_is_found_whatever_its_checksum(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    copy = pathlib.Path(shutil.copytree(folder, tmp_path / "d"))
    path = copy / "train-00000.zarr" / "inputs" / "gsd10" / "c" / "0" / "0" / "0" / "0"
    good = path.read_bytes()
    chunks = -(-store.read_manifest(copy).splits["train"][0].count // 16)
    size = chunks * 16
    for first in (2**64 - 1, 2**63 + 5, len(good), len(good) - 30, 4):
        index = np.frombuffer(good[-size - 4 : -4], "<u8").copy()
        index[0] = first
        crc = int(google_crc32c.value(index.tobytes())).to_bytes(4, "little")
        path.write_bytes(good[: -size - 4] + index.tobytes() + crc)
        with pytest.raises(DataError, match=r"gsd10.*(no place|truncated)|CRC of record"):
            store.open_source(copy, "train").read([0])
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(DataError, match="CRC of the index"):
        store.open_source(copy, "train").read([0])


@pytest.mark.parametrize("name", ["zarr.json", "inputs/gsd10/zarr.json", "patch_id/c/0"])
def test_damaged_metadata_are_found_when_a_shard_is_first_read(
    folder: pathlib.Path, tmp_path: pathlib.Path, name: str
) -> None:
    copy = pathlib.Path(shutil.copytree(folder, tmp_path / "d"))
    path = copy / "train-00000.zarr" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    source = store.open_source(copy, "train")
    with pytest.raises(DataError, match=rf"{name}: file CRC"):
        source.read([0])
    last = len(source) - 1
    assert_is(source.read([last]), [TRAIN[last]])


def test_metadata_of_another_kind_are_refused(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    good = (folder / "train-00000.zarr" / "inputs" / "gsd10" / "zarr.json").read_text()
    tensor, count = SPEC.inputs["gsd10"], store.read_manifest(folder).splits["train"][0].count
    path = tmp_path / "zarr.json"
    for text, words in (
        ("{}", "not the metadata of a sharded array"),
        ("[", "not the metadata of a sharded array"),
        (good.replace('"sharding_indexed"', '"x"').replace("chunk_shape", "y"), "not the metadata"),
        (good.replace("uint16", "int16"), "int16 .*, expected uint16"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=words):
            zarr_store._chunk_records(path, tensor, count)
    path.write_text(good)
    assert zarr_store._chunk_records(path, tensor, count) == 16
    with pytest.raises(DataError, match="not 3 patch ids"):
        zarr_store._read_names(tmp_path / "nothing", 3)
    path.write_bytes(b"\3\0\0\0\1\0\0\0a")
    with pytest.raises(DataError, match="not 3 patch ids"):
        zarr_store._read_names(path, 3)
