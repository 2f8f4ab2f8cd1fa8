"""tfrecord.py against TensorFlow's own reader and writer, and against damage of every kind."""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data_pipelines import example_proto, manifest, tfrecord
from data_pipelines.spec import DataError, DatasetSpec, TensorSpec

SPEC = DatasetSpec(
    "superres_20m",
    {
        "gsd10": TensorSpec((4, 4, 2), ("B02", "B03"), 20.0),
        "gsd20": TensorSpec((2, 2, 3), ("B05", "B06", "B07"), 40.0, "int16", 1e-3),
    },
    {"superres_20m": TensorSpec((4, 4, 3), ("B05", "B06", "B07"), 20.0, "float32", 1.0)},
)
SOME_FILE = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def make_example(number: int, spec: DatasetSpec = SPEC) -> dict:
    """Random pixels over the whole range of their type, or reflectance for floats."""
    rng = np.random.default_rng(number)

    def values(tensor: TensorSpec) -> np.ndarray:
        if np.dtype(tensor.dtype).kind == "f":
            return rng.random(tensor.shape, np.float32).astype(tensor.dtype)
        limits = np.iinfo(tensor.dtype)
        size = (limits.min, limits.max, tensor.shape)
        return rng.integers(*size, dtype=tensor.dtype, endpoint=True)

    return {
        "inputs": {name: values(tensor) for name, tensor in spec.inputs.items()},
        "targets": {name: values(tensor) for name, tensor in spec.targets.items()},
        "patch_id": f"T32UMA_{number:03d}_é",
    }


def make_examples(count: int) -> Iterator[tuple[str, dict]]:
    """Two of three patches for training, the third for testing, interleaved."""
    return (("test" if i % 3 == 2 else "train", make_example(i)) for i in range(count))


def assert_is(batch: dict, numbers: list[int]) -> None:
    """The batch holds make_example of these numbers, bit for bit."""
    expected = [make_example(number) for number in numbers]
    assert batch["patch_id"].tolist() == [e["patch_id"] for e in expected]
    for group, tensors in (("inputs", SPEC.inputs), ("targets", SPEC.targets)):
        assert list(batch[group]) == list(tensors)
        for name, tensor in tensors.items():
            values = batch[group][name]
            assert values.dtype == np.dtype(tensor.dtype)
            assert values.shape == (len(numbers), *tensor.shape)
            for row, e in zip(values, expected, strict=True):
                np.testing.assert_array_equal(row, e[group][name])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """20 training patches in shards of 4 or fewer, 10 test patches."""
    path = tmp_path_factory.mktemp("tfrecord") / "data"
    provenance = {"source": "tests", "[\n1,\n2]": [1, 2]}
    return tfrecord.write(path, SPEC, make_examples(30), shard_bytes=1800, provenance=provenance)


@pytest.fixture
def copy(folder: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A data set to damage."""
    return pathlib.Path(shutil.copytree(folder, tmp_path / "copy"))


# --- the format, against TensorFlow ---------------------------------------------------------------


def crc32c_bitwise(data: bytes) -> int:
    """CRC-32C from its definition (reflected polynomial 0x82F63B78), one bit at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@given(st.binary(max_size=50))
@example(b"123456789")
def test_masked_crc_follows_its_definition(data: bytes) -> None:
    masked = example_proto.masked_crc(data) - 0xA282EAD8 & 0xFFFFFFFF
    assert (masked << 15 | masked >> 17) & 0xFFFFFFFF == crc32c_bitwise(data)


def test_frames_are_byte_for_byte_those_of_tensorflow(tmp_path: pathlib.Path) -> None:
    import tensorflow as tf

    records = [b"", b"a", b"\0" * 9, os.urandom(70_000)]
    with tf.io.TFRecordWriter(str(tmp_path / "records")) as writer:
        for record in records:
            writer.write(record)
    ours = b"".join(map(example_proto.frame, records))
    assert ours == (tmp_path / "records").read_bytes()


def test_examples_are_those_of_tensorflow_both_ways(folder: pathlib.Path) -> None:
    import tensorflow as tf

    features = {"patch_id": b"p", "inputs/gsd10": bytes(range(256)), "empty": b""}
    ours = example_proto.example_class()()
    theirs = tf.train.Example()
    for key, value in features.items():
        ours.features.feature[key].bytes_list.value.append(value)
        theirs.features.feature[key].bytes_list.value.append(value)
    data = theirs.SerializeToString(deterministic=True)
    assert ours.SerializeToString(deterministic=True) == data
    theirs.features.feature["other"].int64_list.value.extend([1, 2])  # unknown to us: skipped
    back = example_proto.example_class().FromString(theirs.SerializeToString())
    assert back.features.feature["inputs/gsd10"].bytes_list.value[0] == features["inputs/gsd10"]
    for record in tf.data.TFRecordDataset(str(folder / "train-00000.tfrecord")):
        parsed = tf.train.Example.FromString(record.numpy())
        assert parsed.SerializeToString(deterministic=True) == record.numpy()


@pytest.mark.parametrize(("split", "numbers"), [("train", 20), ("test", 10)])
def test_tensorflow_reads_our_shards(folder: pathlib.Path, split: str, numbers: int) -> None:
    import tensorflow as tf

    shards = sorted(map(str, folder.glob(f"{split}-*.tfrecord")))
    keys = ["inputs/gsd10", "inputs/gsd20", "targets/superres_20m", "patch_id"]
    wanted = {key: tf.io.FixedLenFeature([], tf.string) for key in keys}
    expected = [e for name, e in make_examples(30) if name == split]
    records = list(tf.data.TFRecordDataset(shards))
    assert len(records) == numbers
    for record, e in zip(records, expected, strict=True):
        found = tf.io.parse_single_example(record, wanted)
        assert found["patch_id"].numpy().decode() == e["patch_id"]
        for key in keys[:-1]:
            group, name = key.split("/")
            values = e[group][name]
            decoded = tf.io.decode_raw(found[key], values.dtype).numpy().reshape(values.shape)
            np.testing.assert_array_equal(decoded, values)


def test_reading_imports_no_tensorflow(folder: pathlib.Path) -> None:
    code = (
        "import sys; from data_pipelines import batching, tfrecord\n"
        f"tfrecord.open_source({str(folder)!r}, 'train').read([1])\n"
        "sys.exit('tensorflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- reading --------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 19), max_size=30))
@example([])
@example(list(range(20)))
@example([19, 3, 3, 3, 4, 0])
def test_records_come_in_the_order_asked_for(folder: pathlib.Path, positions: list[int]) -> None:
    source = tfrecord.open_source(folder, "train")
    train = [i for i in range(30) if i % 3 != 2]
    assert len(source) == 20
    assert source.spec == SPEC
    assert source.split == "train"
    assert_is(source.read(positions), [train[p] for p in positions])
    assert_is(source.read(np.array(positions, np.int64)), [train[p] for p in positions])


@pytest.mark.parametrize("positions", [[20], [-1], [0, 1, 2**40]])
def test_positions_outside_are_refused(folder: pathlib.Path, positions: list[int]) -> None:
    with pytest.raises(IndexError, match="of 20 records"):
        tfrecord.open_source(folder, "train").read(positions)


def test_threads_share_a_source_with_few_descriptors(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tfrecord, "MAX_OPEN_SHARDS", 2)
    source = tfrecord.open_source(folder, "train")
    train = [i for i in range(30) if i % 3 != 2]
    before = len(os.listdir("/proc/self/fd"))

    def read(seed: int) -> None:
        positions = np.random.default_rng(seed).integers(0, 20, 8).tolist()
        assert_is(source.read(positions), [train[p] for p in positions])

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(100)))
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_forks_share_a_source(folder: pathlib.Path) -> None:
    code = (
        "import os, sys; from data_pipelines import tfrecord\n"
        f"source = tfrecord.open_source({str(folder)!r}, 'train')\n"
        "expected = source.read(range(20))['patch_id'].tolist()\n"
        "children = [os.fork() for _ in range(2)]\n"
        "same = all(source.read([i])['patch_id'][0] == expected[i] for _ in range(50)\n"
        "           for i in range(20))\n"
        "if 0 in children: os._exit(not same)\n"
        "sys.exit(any(os.waitpid(c, 0)[1] for c in children) or not same)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- writing --------------------------------------------------------------------------------------


def test_manifest_says_what_was_written(folder: pathlib.Path) -> None:
    manifest = tfrecord.read_manifest(folder)
    assert manifest.spec == SPEC
    assert manifest.provenance == {"source": "tests", "[\n1,\n2]": [1, 2]}
    assert list(manifest.splits) == ["train", "test"]
    assert manifest.num_examples("train") == 20
    assert tfrecord.verify(folder) == {"train": 20, "test": 10}
    listed = {shard.file for shards in manifest.splits.values() for shard in shards}
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *listed}
    for shard in manifest.splits["train"]:
        assert (folder / shard.file).stat().st_size == shard.num_bytes <= 1800
        assert shard.crc32c == crc32c_bitwise((folder / shard.file).read_bytes())
    assert len(manifest.splits["train"]) > 3
    assert max(map(len, (folder / "manifest.json").read_text().splitlines())) < 120


def test_a_record_larger_than_a_shard_gets_its_own(tmp_path: pathlib.Path) -> None:
    tfrecord.write(tmp_path / "d", SPEC, make_examples(3), shard_bytes=1)
    assert tfrecord.verify(tmp_path / "d") == {"train": 2, "test": 1}
    assert (tmp_path / "d" / "train-00001.tfrecord").is_file()


def test_the_same_examples_give_the_same_bytes(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    again = tfrecord.write(tmp_path / "a" / "b", SPEC, make_examples(30), shard_bytes=1800)
    for path in folder.glob("*.tfrecord"):
        assert path.read_bytes() == (again / path.name).read_bytes()


def test_big_endian_arrays_are_the_same_numbers(tmp_path: pathlib.Path) -> None:
    patch = make_example(0)
    patch["inputs"] = {k: v.astype(v.dtype.newbyteorder(">")) for k, v in patch["inputs"].items()}
    patch["inputs"]["gsd10"] = np.asfortranarray(patch["inputs"]["gsd10"])
    with pytest.raises(DataError, match="patch T32UMA_000_é: inputs/gsd10 is >u2"):
        tfrecord.write(tmp_path / "d", SPEC, [("train", patch)])
    patch["inputs"] = {k: v.astype(v.dtype.newbyteorder("=")) for k, v in patch["inputs"].items()}
    tfrecord.write(tmp_path / "d", SPEC, [("train", patch)])
    assert_is(tfrecord.open_source(tmp_path / "d", "train").read([0]), [0])


def test_splits_may_be_empty_or_absent(tmp_path: pathlib.Path) -> None:
    tfrecord.write(tmp_path / "d", SPEC, [], splits=["validation"])
    assert tfrecord.verify(tmp_path / "d") == {"validation": 0}
    source = tfrecord.open_source(tmp_path / "d", "validation")
    assert len(source) == 0
    assert source.read([])["inputs"]["gsd10"].shape == (0, 4, 4, 2)
    with pytest.raises(DataError, match="no split 'train'; it has validation"):
        tfrecord.open_source(tmp_path / "d", "train")


def test_memory_does_not_grow_with_the_data_set(tmp_path: pathlib.Path) -> None:
    bands = tuple("abcd")
    spec = DatasetSpec("t", {"gsd10": TensorSpec((64, 64, 4), bands, 10.0)}, {})
    image = np.zeros((64, 64, 4), np.uint16)

    def stream() -> Iterator[tuple[str, dict]]:
        for i in range(2000):  # 65 MB
            yield "train", {"inputs": {"gsd10": image}, "targets": {}, "patch_id": str(i)}

    tracemalloc.start()
    try:
        tfrecord.write(tmp_path / "d", spec, stream())
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()


def test_an_existing_folder_is_refused_and_kept(
    folder: pathlib.Path, copy: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    def never() -> Iterator[tuple[str, dict]]:
        raise RuntimeError("read before the check")
        yield

    with pytest.raises(DataError, match="exists already"):
        tfrecord.write(copy, SPEC, never())
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").touch()
    with pytest.raises(DataError, match="not a data set"):
        tfrecord.write(other, SPEC, never(), overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="not a data set"):
        tfrecord.write(tmp_path / "file", SPEC, never(), overwrite=True)
    assert tfrecord.verify(copy) == {"train": 20, "test": 10}
    assert (other / "thesis.txt").exists()


def test_overwrite_replaces_when_the_new_one_is_complete(copy: pathlib.Path) -> None:
    old = tfrecord.open_source(copy, "train")
    old.read([0])

    def watched() -> Iterator[tuple[str, dict]]:
        for item in make_examples(6):
            assert tfrecord.read_manifest(copy).num_examples("train") == 20
            yield item

    tfrecord.write(copy, SPEC, watched(), overwrite=True)
    assert tfrecord.verify(copy) == {"train": 4, "test": 2}
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("exists", [False, True])
def test_an_exception_leaves_nothing_behind(
    copy: pathlib.Path, error: type[BaseException], exists: bool
) -> None:
    def failing() -> Iterator[tuple[str, dict]]:
        yield from make_examples(9)
        raise error("the disk of the source is gone")

    with pytest.raises(error, match="is gone"):
        tfrecord.write(copy if exists else copy.with_name("new"), SPEC, failing(), overwrite=True)
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]
    assert tfrecord.verify(copy) == {"train": 20, "test": 10}


WRONG = {
    "shape": (("inputs", "gsd10", np.zeros((4, 5, 2), np.uint16)), "uint16 (4, 5, 2), expected"),
    "dtype": (("inputs", "gsd10", np.zeros((4, 4, 2), np.int32)), "int32 (4, 4, 2), expected"),
    "target": (("targets", "superres_20m", np.zeros((4, 4, 2), "f4")), "targets/superres_20m is"),
    "extra": (("inputs", "gsd60", np.zeros(1)), "inputs ['gsd10', 'gsd20', 'gsd60'], expected"),
    "missing": (("targets", "superres_20m", None), "targets [], expected ['superres_20m']"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_example_of_another_kind_is_named(tmp_path: pathlib.Path, case: str) -> None:
    (group, name, value), words = WRONG[case]
    patch = make_example(7)
    patch[group] = {k: v for k, v in {**patch[group], name: value}.items() if v is not None}
    with pytest.raises(DataError) as caught:
        tfrecord.write(tmp_path / "d", SPEC, [*make_examples(4), ("train", patch)])
    assert "patch T32UMA_007_é: " in str(caught.value)
    assert words in str(caught.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("patch_id", [None, "", b"bytes", 3])
def test_a_patch_needs_a_name(tmp_path: pathlib.Path, patch_id: object) -> None:
    with pytest.raises(DataError, match="patch_id"):
        tfrecord.write(tmp_path / "d", SPEC, [("train", {**make_example(0), "patch_id": patch_id})])


def test_a_split_of_another_name_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="split 'dev': expected one of train, validation, test"):
        tfrecord.write(tmp_path / "d", SPEC, [("dev", make_example(0))])


# --- damage ---------------------------------------------------------------------------------------


def read_all(folder: pathlib.Path) -> dict[str, dict]:
    """Every record of the data set."""
    sources = [tfrecord.open_source(folder, split) for split in ("train", "test")]
    return {source.split: source.read(range(len(source))) for source in sources}


def assert_right_or_refused(folder: pathlib.Path) -> bool:
    """Reading gives the right data (False) or a DataError that names a file (True)."""
    try:
        data = read_all(folder)
    except DataError as error:
        assert str(folder) in str(error)
        return True
    assert_is(data["train"], [i for i in range(30) if i % 3 != 2])
    assert_is(data["test"], [i for i in range(30) if i % 3 == 2])
    return False


@SOME_FILE
@given(data=st.data())
def test_damaged_shards_are_found(copy: pathlib.Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(copy.glob("*.tfrecord"))), label="shard")
    good = path.read_bytes()
    kind = data.draw(st.sampled_from(["flip", "cut", "drop", "append"]), label="kind")
    where = data.draw(st.integers(0, len(good) - 1), label="where")
    bad = {
        "flip": good[:where]
        + bytes([good[where] ^ data.draw(st.integers(1, 255), label="bits")])
        + good[where + 1 :],
        "cut": good[:where],
        "drop": good[:where] + good[where + 1 :],
        "append": good + good[where : where + 1],
    }[kind]
    path.write_bytes(bad)
    try:
        assert assert_right_or_refused(copy)
        with pytest.raises(DataError):
            tfrecord.verify(copy)
    finally:
        path.write_bytes(good)


def test_every_flipped_byte_of_a_shard_is_found_by_record(copy: pathlib.Path) -> None:
    path = copy / "train-00001.tfrecord"
    good = path.read_bytes()
    offsets = tfrecord.read_manifest(copy).splits["train"][1].offsets
    source = tfrecord.open_source(copy, "train")
    first = len(tfrecord.read_manifest(copy).splits["train"][0].offsets)
    for where in range(len(good)):
        with path.open("r+b", buffering=0) as file:  # in place: the source holds the file open
            file.seek(where)
            file.write(bytes([good[where] ^ 0x40]))
        record = int(np.searchsorted(offsets, where, side="right")) - 1
        for other in range(len(offsets)):
            if other == record:
                with pytest.raises(DataError, match=rf"train-00001.tfrecord, record {record}: "):
                    source.read([first + other])
            else:
                source.read([first + other])
        path.write_bytes(good)


@SOME_FILE
@given(data=st.data())
def test_a_damaged_manifest_is_found(copy: pathlib.Path, data: st.DataObject) -> None:
    path = copy / "manifest.json"
    good = path.read_bytes()
    where = data.draw(st.integers(0, len(good) - 1), label="where")
    bits = data.draw(st.integers(0, 255), label="bits")
    path.write_bytes(
        good[:where] + (bytes([good[where] ^ bits]) + good[where + 1 :] if bits else b"")
    )
    try:
        assert_right_or_refused(copy)  # white space and the case of \u escapes may change
    finally:
        path.write_bytes(good)


def rewrite(path: pathlib.Path, **changes: object) -> None:
    """Change the manifest and make its checksum fit."""
    values = json.loads(path.read_text())
    values.update(changes)
    del values["crc32c"]
    values["crc32c"] = manifest.checksum(values)
    path.write_text(json.dumps(values))


def test_errors_name_file_found_and_expected(copy: pathlib.Path) -> None:
    manifest, shard = copy / "manifest.json", copy / "train-00002.tfrecord"
    good, record = manifest.read_text(), shard.read_bytes()

    def message(folder: pathlib.Path = copy, split: str = "train") -> str:
        with pytest.raises(DataError) as caught:
            tfrecord.open_source(folder, split)
        return str(caught.value)

    assert message(split="dev") == f"{manifest}: no split 'dev'; it has train, test"
    shard.write_bytes(record[:100])
    assert message() == f"{shard}: 100 bytes, expected {len(record)} by manifest.json"
    shard.unlink()
    assert message() == f"{shard}: not found; manifest.json lists it"
    shard.write_bytes(record)
    manifest.write_text(good[:200])
    assert message().startswith(f"{manifest}: damaged, expected JSON: ")
    manifest.write_text(good.replace('"count": 4', '"count": 5'))
    assert "damaged or edited: checksum" in message()
    manifest.write_text("[]")
    assert 'expected a JSON object with "format": "tfrecord"' in message()
    manifest.write_text(good)
    rewrite(manifest, version=2)
    assert message() == f"{manifest}: version 2, expected 1"
    for changes in ({"spec": None}, {"splits": {"train": [{}]}}, {"splits": []}, {"provenance": 0}):
        manifest.write_text(good)
        rewrite(manifest, **changes)
        assert message().startswith(f"{manifest}: ")
    manifest.unlink()
    assert message().startswith(f"{manifest}: not found; expected a folder made by")
    assert "not found" in message(copy / "nothing")
    assert "not found" in message(shard)


@pytest.mark.parametrize(
    "change",
    [
        {"offsets": [0]},
        {"offsets": [5, 434, 868, 1302]},
        {"offsets": [0, 868, 434, 1302]},
        {"offsets": [0, 434, 868, 10**9]},
        {"file": "../train-00000.tfrecord"},
        {"crc32c": "no number"},
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(copy: pathlib.Path, change: dict) -> None:
    path = copy / "manifest.json"
    splits = json.loads(path.read_text())["splits"]
    splits["train"][0].update(change)
    rewrite(path, splits=splits)
    with pytest.raises(DataError, match=r"manifest\.json: not a manifest of version 1"):
        tfrecord.read_manifest(copy)


@pytest.mark.parametrize("second", [1, 11, 15, 16, 433])
def test_offsets_between_records_are_refused(copy: pathlib.Path, second: int) -> None:
    splits = json.loads((copy / "manifest.json").read_text())["splits"]
    splits["train"][0]["offsets"][1] = second
    rewrite(copy / "manifest.json", splits=splits)
    with pytest.raises(DataError, match=r"train-00000\.tfrecord, record 0: "):
        tfrecord.open_source(copy, "train").read([0])


def test_records_of_another_spec_are_refused(copy: pathlib.Path) -> None:
    values = json.loads((copy / "manifest.json").read_text())
    values["spec"]["inputs"]["gsd10"].update(shape=[4, 4, 1], bands=["B02"])
    rewrite(copy / "manifest.json", spec=values["spec"])
    with pytest.raises(DataError, match="inputs/gsd10 has 64 bytes, expected 32"):
        read_all(copy)
    values["spec"]["inputs"]["gsd60"] = values["spec"]["inputs"].pop("gsd10")
    rewrite(copy / "manifest.json", spec=values["spec"])
    with pytest.raises(DataError, match="feature inputs/gsd60 has 0 byte values, expected 1"):
        read_all(copy)


def test_a_record_that_is_no_example_is_refused(copy: pathlib.Path) -> None:
    splits = json.loads((copy / "manifest.json").read_text())["splits"]
    record = example_proto.frame(b"\xff\xff no protobuf")
    (copy / "train-00000.tfrecord").write_bytes(record)
    splits["train"] = [{**splits["train"][0], "count": 1, "offsets": [0], "bytes": len(record)}]
    rewrite(copy / "manifest.json", splits=splits)
    with pytest.raises(DataError, match=r"train-00000\.tfrecord, record 0: not an example of"):
        read_all(copy)


def test_a_shard_that_shrinks_while_open_is_found(copy: pathlib.Path) -> None:
    source = tfrecord.open_source(copy, "train")
    source.read([0])
    os.truncate(copy / "train-00000.tfrecord", 500)
    with pytest.raises(DataError, match=r"train-00000\.tfrecord, record 1: truncated: \d+ bytes"):
        source.read([0, 1, 2])
    (copy / "train-00003.tfrecord").unlink()
    with pytest.raises(DataError, match=r"train-00003\.tfrecord: No such file"):
        source.read([13])


def test_verify_finds_shards_that_changed_places(copy: pathlib.Path) -> None:
    a, b = copy / "train-00000.tfrecord", copy / "train-00001.tfrecord"
    one, two = a.read_bytes(), b.read_bytes()
    assert len(one) == len(two)
    a.write_bytes(two)
    b.write_bytes(one)
    with pytest.raises(DataError, match=r"train-00000\.tfrecord: file CRC \w+, expected"):
        tfrecord.verify(copy)
