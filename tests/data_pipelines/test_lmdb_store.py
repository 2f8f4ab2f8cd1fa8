"""lmdb_store.py: the community's layout, read by liblmdb, by safetensors and by bigearthnet.py."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from store_cases import SPEC, TRAIN, assert_is, make_example, make_examples

from data_pipelines import bigearthnet, lmdb_store, manifest, store
from data_pipelines.spec import DataError, DatasetSpec, TensorSpec

PATCHES = DatasetSpec(
    "patches",
    {
        "gsd10": TensorSpec((120, 120, 4), ("B02", "B03", "B04", "B08"), 10.0),
        "gsd20": TensorSpec((60, 60, 6), ("B05", "B06", "B07", "B8A", "B11", "B12"), 20.0),
        "gsd60": TensorSpec((20, 20, 2), ("B01", "B09"), 60.0),
    },
    {},
)


def make_patches(count: int) -> Iterator[tuple[str, dict]]:
    """Patches of BigEarthNet's sizes and names."""
    for number in range(count):
        name = f"S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_{number * 7 % count:02d}_57"
        yield "train", {**make_example(number, PATCHES), "patch_id": name}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """40 training patches in two shards or more, 20 test patches."""
    path = tmp_path_factory.mktemp("lmdb") / "data"
    return store.write(path, SPEC, make_examples(), file_format="lmdb", shard_bytes=6000)


def test_bigearthnet_patches_are_read_as_the_community_reads_them(tmp_path: pathlib.Path) -> None:
    store.write(tmp_path / "d", PATCHES, make_patches(20), file_format="lmdb", shard_bytes=2**21)
    shards = store.read_manifest(tmp_path / "d").splits["train"]
    assert len(shards) == 2
    expected = {patch["patch_id"]: patch["inputs"] for _, patch in make_patches(20)}
    source = store.open_source(tmp_path / "d", "train")
    batch = source.read(range(20))
    assert batch["patch_id"].tolist() == list(expected)
    for row, inputs in enumerate(expected.values()):
        for name, values in inputs.items():
            np.testing.assert_array_equal(batch["inputs"][name][row], values)
    found = {}
    for shard in shards:
        for granule in bigearthnet.open_lmdb(tmp_path / "d" / shard.name):
            found[granule.name] = granule.cubes
    assert set(found) == set(expected)
    for patch, cubes in found.items():
        for name, cube in cubes.items():
            bands = PATCHES.inputs[name].bands
            assert tuple(cube["band"].values) == bands
            pixels = np.moveaxis(cube.values, 0, -1)
            np.testing.assert_array_equal(pixels, expected[patch][name])


def test_liblmdb_and_safetensors_read_every_value(folder: pathlib.Path) -> None:
    import lmdb
    import safetensors.numpy

    start = 0
    for shard in store.read_manifest(folder).splits["train"]:
        path = folder / shard.name
        with lmdb.open(str(path), readonly=True, lock=False) as environment:
            assert environment.stat()["entries"] == shard.count
            with environment.begin() as transaction:
                for number, key in zip(TRAIN[start:], shard.keys, strict=False):
                    tensors = safetensors.numpy.load(transaction.get(key.encode()))
                    patch = make_example(number)
                    assert patch["patch_id"] == key
                    assert set(tensors) == {
                        "inputs/gsd10",
                        "inputs/gsd20",
                        "targets/superres_20m",
                    }
                    for name, values in tensors.items():
                        group, short = name.split("/")
                        np.testing.assert_array_equal(values, patch[group][short])
        assert [file.name for file in path.iterdir()] == ["data.mdb"]
        start += shard.count


def test_offsets_are_those_of_the_values(folder: pathlib.Path) -> None:
    shard = store.read_manifest(folder).splits["train"][0]
    data = (folder / shard.files[0].name).read_bytes()
    for number, offset in zip(TRAIN, shard.offsets, strict=False):
        patch = make_example(number)
        arrays = {f"{g}/{k}": v for g in ("inputs", "targets") for k, v in patch[g].items()}
        value = lmdb_store.encode(arrays, SPEC)
        assert data[offset : offset + len(value)] == value


@pytest.mark.parametrize("edge", [4, 64, 200])
def test_files_are_as_small_as_their_content(tmp_path: pathlib.Path, edge: int) -> None:
    """No sparse tail of LMDB's map, no pages left by transactions, in-page and large values."""
    spec = DatasetSpec("t", {"gsd10": TensorSpec((edge, edge, 4), tuple("abcd"), 10.0)}, {})
    examples = [("train", {**make_example(i, spec), "patch_id": f"{i:09d}"}) for i in range(70)]
    store.write(tmp_path / "d", spec, examples, file_format="lmdb")
    path = tmp_path / "d" / "train-00000.lmdb" / "data.mdb"
    content = 70 * edge * edge * 8
    assert path.stat().st_size < 1.1 * content + 70 * 4096 + 20_000
    assert path.stat().st_blocks * 512 >= path.stat().st_size // 2
    assert store.verify(tmp_path / "d") == {"train": 70}
    for left in (tmp_path / "d").iterdir():
        assert left.name in ("manifest.json", "train-00000.lmdb")


def test_the_map_grows_with_the_shard(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmdb_store, "MAP_BYTES", 2**16)
    monkeypatch.setattr(lmdb_store, "TRANSACTION_BYTES", 2**19)
    store.write(tmp_path / "d", PATCHES, make_patches(20), file_format="lmdb")
    assert store.verify(tmp_path / "d") == {"train": 20}


def test_what_a_killed_writer_left_is_not_mixed_in(tmp_path: pathlib.Path) -> None:
    code = (
        "import os, pathlib, sys, store_cases; from data_pipelines import lmdb_store\n"
        "lmdb_store.TRANSACTION_BYTES = 1\n"
        "writer = lmdb_store.ShardWriter(pathlib.Path(sys.argv[1]), 'train-3-00000',\n"
        "                                store_cases.SPEC)\n"
        "patch = store_cases.make_example(0)\n"
        "arrays = {f'{g}/{k}': v for g in ('inputs', 'targets') for k, v in patch[g].items()}\n"
        "writer.add(arrays, patch['patch_id'])\n"
        "os._exit(0)"
    )
    paths = os.pathsep.join(map(str, (pathlib.Path(__file__).parent, pathlib.Path.cwd())))
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths},
        check=True,
        timeout=60,
    )
    assert len(list(tmp_path.glob("train-3-*"))) == 2
    shutil.rmtree(tmp_path / "train-3-00000.lmdb")
    found = store.write_shards(tmp_path, SPEC, make_examples(3), file_format="lmdb", prefix="3-")
    made = store.finish(tmp_path, manifest.Manifest("lmdb", SPEC, found, {}))
    assert store.verify(tmp_path) == {"train": 2, "test": 1}
    names = {shard.name for shards in made.splits.values() for shard in shards}
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json", *names}


def test_manifests_with_keys_as_a_list_are_read(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """As they were written at first."""
    copy = pathlib.Path(shutil.copytree(folder, tmp_path / "d"))
    path = copy / "manifest.json"
    values = json.loads(path.read_text())
    del values["crc32c"]
    for shards in values["splits"].values():
        for shard in shards:
            shard["keys"] = shard["keys"].split("\0")[:-1]
    path.write_text(json.dumps({**values, "crc32c": manifest.checksum(values)}))
    assert_is(store.open_source(copy, "train").read(range(40)), TRAIN)
    assert store.verify(copy) == {"train": 40, "test": 20}
    assert store.read_manifest(copy) == store.read_manifest(folder)


@pytest.mark.parametrize("between", [0, 5])
def test_a_patch_that_comes_twice_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, between: int
) -> None:
    monkeypatch.setattr(lmdb_store, "TRANSACTION_BYTES", 1000)
    twice = [*make_examples(between + 1), ("train", make_example(0))]
    with pytest.raises(DataError, match=r"patch T32UMA/000_0: comes twice"):
        store.write(tmp_path / "d", SPEC, twice, file_format="lmdb")
    assert not any(tmp_path.iterdir())


def test_bands_have_names_of_their_own_only_where_they_can(folder: pathlib.Path) -> None:
    names = lmdb_store.tensor_names(PATCHES)
    assert names["inputs/gsd60"] == ("B01", "B09")
    labels = TensorSpec((43,), tuple(map(str, range(43))), 1200.0, "uint8", 1.0)
    image = TensorSpec((2, 2, 1), ("B02",), 10.0)
    with_labels = DatasetSpec("patches", PATCHES.inputs, {"labels": labels})
    assert lmdb_store.tensor_names(with_labels)["targets/labels"] == ("targets/labels",)
    twice = DatasetSpec("patches", {**PATCHES.inputs, "super": image}, {})
    assert lmdb_store.tensor_names(twice)["inputs/gsd60"] == ("inputs/gsd60",)
    assert lmdb_store.tensor_names(SPEC)["inputs/gsd10"] == ("inputs/gsd10",)


def test_damaged_pages_that_liblmdb_would_follow_are_harmless(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Its root page points outside of the file: our reader does not ask, verify says so."""
    copy = pathlib.Path(shutil.copytree(folder, tmp_path / "d"))
    path = copy / "train-00000.lmdb" / "data.mdb"
    data = bytearray(path.read_bytes())
    for page in (0, 4096):
        data[page + 16 + 24 + 48 + 40 : page + 16 + 24 + 48 + 48] = (10**9).to_bytes(8, "little")
    path.write_bytes(data)
    assert_is(store.open_source(copy, "train").read(range(40)), TRAIN)
    with pytest.raises(DataError, match=r"train-00000\.lmdb/data\.mdb: file CRC"):
        store.verify(copy)
