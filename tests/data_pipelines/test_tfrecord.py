"""tfrecord.py against TensorFlow's own reader and writer, and its damage byte by byte."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import pathlib
import random
import shutil
from typing import Any

import numpy as np
import pytest
import store_cases
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from store_cases import SPEC, TEST, TRAIN, assert_is, make_example, make_examples, rewrite

from data_pipelines import example_proto, manifest, store, tfrecord
from data_pipelines.record import check_example
from data_pipelines.spec import DataError

SOME_FILE = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """40 training patches in shards of 4, 20 test patches."""
    path = tmp_path_factory.mktemp("tfrecord") / "data"
    return store.write(path, SPEC, make_examples(), shard_bytes=1800)


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


@pytest.mark.parametrize(("split", "numbers"), [("train", 40), ("test", 20)])
def test_tensorflow_reads_our_shards(folder: pathlib.Path, split: str, numbers: int) -> None:
    import tensorflow as tf

    shards = sorted(map(str, folder.glob(f"{split}-*.tfrecord")))
    keys = ["inputs/gsd10", "inputs/gsd20", "targets/superres_20m", "patch_id"]
    wanted = {key: tf.io.FixedLenFeature([], tf.string) for key in keys}
    expected = [e for name, e in make_examples() if name == split]
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


@pytest.mark.parametrize("length", [1, 2, 100, *range(118, 130), 300, 511])
def test_a_layout_tells_where_each_part_of_a_record_lies(length: int) -> None:
    arrays, _ = check_example(make_example(3), SPEC)
    name = "p" * length
    data = example_proto.frame(example_proto.encode(arrays, name, SPEC))
    layout = example_proto.find_layout(len(data), SPEC)
    assert layout is not None
    gaps, position = bytearray(), 0
    for key, gap in zip(layout.keys, layout.gaps, strict=False):
        gaps += data[position : position + gap]
        position += gap
        assert data[position : position + arrays[key].nbytes] == arrays[key].tobytes()
        position += arrays[key].nbytes
    gaps += data[position:]
    assert sorted(layout.keys) == sorted(arrays)
    assert layout.find_name(gaps, 0) == name.encode()
    for byte in range(len(gaps) - example_proto.FOOTER_BYTES):
        damaged = bytearray(gaps)
        damaged[byte] ^= 1
        assert layout.find_name(damaged, 0) != name.encode()


def test_a_size_that_no_record_has_gives_no_layout() -> None:
    arrays, _ = check_example(make_example(3), SPEC)
    sizes = {
        len(example_proto.frame(example_proto.encode(arrays, "p" * n, SPEC))) for n in range(1, 512)
    }
    for size in range(min(sizes) - 3, max(sizes) + 3):
        assert (example_proto.find_layout(size, SPEC) is not None) == (size in sizes)


def test_our_own_records_are_read_without_a_parser(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example_proto, "decode", None)
    source = store.open_source(folder, "train")
    assert_is(source.read([7, 8, 9, 3, 39, 0]), [TRAIN[i] for i in (7, 8, 9, 3, 39, 0)])


def test_records_of_another_writer_are_read_by_the_parser(copy: pathlib.Path) -> None:
    """Features in another order: as many bytes, other places."""
    found = store.read_manifest(copy).splits["train"][0]
    path = copy / found.name
    data, shuffled = path.read_bytes(), b""
    for start, stop in itertools.pairwise([*found.offsets, len(data)]):
        proto = example_proto.example_class().FromString(data[start + 12 : stop - 4])
        entries = []
        for key in reversed(sorted(proto.features.feature)):
            one = example_proto.example_class()()
            one.features.feature[key].CopyFrom(proto.features.feature[key])
            entries.append(one.features.SerializeToString())
        body = b"".join(entries)
        length = bytes([len(body) & 127 | 128, len(body) >> 7])  # a varint of two bytes
        shuffled += example_proto.frame(b"\n" + length + body)
    assert len(shuffled) == len(data)
    assert shuffled != data
    path.write_bytes(shuffled)
    source = store.open_source(copy, "train")
    assert_is(source.read([2, 1, 1]), [TRAIN[2], TRAIN[1], TRAIN[1]])


def test_shards_are_at_most_of_the_size_asked_for(folder: pathlib.Path) -> None:
    sizes = [path.stat().st_size for path in folder.glob("train-*.tfrecord")]
    assert len(sizes) == 10
    assert max(sizes) <= 1800


# --- damage ---------------------------------------------------------------------------------------


def test_every_flipped_byte_of_a_shard_is_found_by_record(copy: pathlib.Path) -> None:
    path = copy / "train-00001.tfrecord"
    good = path.read_bytes()
    shards = store.read_manifest(copy).splits["train"]
    offsets, first = shards[1].offsets, shards[0].count
    ends = [*offsets[1:], len(good)]
    source = store.open_source(copy, "train")
    for where in range(len(good)):
        with path.open("r+b", buffering=0) as file:  # in place: the source holds the file open
            file.seek(where)
            file.write(bytes([good[where] ^ 0x40]))
        record = int(np.searchsorted(offsets, where, side="right")) - 1
        for other in range(len(offsets)):
            # The frame's CRC of the data is the last of it: the data themselves are right.
            if other == record and where < ends[record] - example_proto.FOOTER_BYTES:
                with pytest.raises(DataError, match=rf"train-00001.tfrecord, record {record}: "):
                    source.read([first + other])
            else:
                assert_is(source.read([first + other]), [TRAIN[first + other]])
        with pytest.raises(DataError, match=r"train-00001\.tfrecord"):
            store.verify(copy)
        path.write_bytes(good)


def change_first_shard(copy: pathlib.Path, **changes: Any) -> None:
    """Change what the manifest says of it."""
    splits = json.loads((copy / "manifest.json").read_text())["splits"]
    splits["train"][0].update(changes)
    rewrite(copy / "manifest.json", splits=splits)


@pytest.mark.parametrize(
    "offsets", [[5, 434, 868, 1302], [0, 868, 434, 1302], [0, 434, 434, 1302], []]
)
def test_offsets_that_do_not_rise_are_refused(copy: pathlib.Path, offsets: list[int]) -> None:
    change_first_shard(copy, offsets=manifest.to_hex(offsets, 8))
    with pytest.raises(DataError, match=r"train-00000\.tfrecord: the offsets of its 4 records in"):
        store.open_source(copy, "train")


def test_offsets_outside_the_file_are_refused(copy: pathlib.Path) -> None:
    change_first_shard(copy, offsets=manifest.to_hex([0, 434, 868, 10**9], 8))
    with pytest.raises(DataError, match=r"json: .*train-00000\.tfrecord: an offset outside"):
        store.open_source(copy, "train")


@pytest.mark.parametrize("second", [1, 11, 15, 16, 400])
def test_offsets_between_records_are_refused(copy: pathlib.Path, second: int) -> None:
    offsets = store.read_manifest(copy).splits["train"][0].offsets
    change_first_shard(copy, offsets=manifest.to_hex([0, second, *offsets[2:]], 8))
    with pytest.raises(DataError, match=r"train-00000\.tfrecord, record 0: "):
        store.open_source(copy, "train").read([0])


def test_features_of_another_spec_are_named(copy: pathlib.Path) -> None:
    values = json.loads((copy / "manifest.json").read_text())
    values["spec"]["inputs"]["gsd10"].update(shape=[4, 4, 1], bands=["B02"])
    rewrite(copy / "manifest.json", spec=values["spec"])
    with pytest.raises(DataError, match="inputs/gsd10 has 64 bytes, expected 32"):
        store.open_source(copy, "train").read([0])
    values["spec"]["inputs"]["gsd60"] = values["spec"]["inputs"].pop("gsd10")
    rewrite(copy / "manifest.json", spec=values["spec"])
    with pytest.raises(DataError, match="feature inputs/gsd60 has 0 byte values, expected 1"):
        store.open_source(copy, "train").read([0])


def test_a_record_that_is_no_example_is_refused(copy: pathlib.Path) -> None:
    record = example_proto.frame(b"\xff\xff no protobuf")
    path = copy / "train-00000.tfrecord"
    path.write_bytes(record)
    file = {"file": path.name, "bytes": len(record), "crc32c": "0"}
    change_first_shard(copy, count=1, offsets="0" * 16, crc32c="0" * 8, files=[file])
    with pytest.raises(DataError, match=r"train-00000\.tfrecord, record 0: not an example of"):
        store.open_source(copy, "train").read([0])


# --- gzip -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The data set compressed."""
    return tfrecord.export_gzip(folder, tmp_path_factory.mktemp("gzip") / "data")


def assert_holds(packed: pathlib.Path) -> None:
    """All examples, in order."""
    for split, numbers in (("train", TRAIN), ("test", TEST)):
        for found, number in zip(tfrecord.read_gzip(packed, split), numbers, strict=True):
            batch = {g: {k: v[None] for k, v in found[g].items()} for g in ("inputs", "targets")}
            assert_is({**batch, "patch_id": np.array([found["patch_id"]])}, [number])


def test_gzip_holds_the_same_records_for_us_and_for_tensorflow(
    folder: pathlib.Path, packed: pathlib.Path
) -> None:
    import tensorflow as tf

    assert_holds(packed)
    paths = sorted(packed.glob("train-*.gz"))
    assert [path.name for path in paths] == [f"train-{i:05d}.tfrecord.gz" for i in range(10)]
    theirs = tf.data.TFRecordDataset(list(map(str, paths)), compression_type="GZIP")
    plain = tf.data.TFRecordDataset(sorted(map(str, folder.glob("train-*.tfrecord"))))
    assert list(theirs.as_numpy_iterator()) == list(plain.as_numpy_iterator())


def test_gzip_is_the_same_for_the_same_data_and_no_random_access(
    folder: pathlib.Path, packed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    again = tfrecord.export_gzip(folder, tmp_path / "again")
    for path in packed.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    with pytest.raises(DataError, match="format 'tfrecord_gzip'; expected one of tfrecord, hdf5"):
        store.open_source(packed, "train")
    with pytest.raises(DataError, match="format 'tfrecord'; expected one of tfrecord_gzip"):
        next(iter(tfrecord.read_gzip(folder, "train")))
    with pytest.raises(DataError, match="exists already"):
        tfrecord.export_gzip(folder, again)


def test_damage_is_not_exported(copy: pathlib.Path, tmp_path: pathlib.Path) -> None:
    path = copy / "test-00000.tfrecord"
    good = path.read_bytes()
    path.write_bytes(good[:300] + bytes([good[300] ^ 1]) + good[301:])
    with pytest.raises(DataError, match=r"test-00000\.tfrecord: file CRC"):
        tfrecord.export_gzip(copy, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


@SOME_FILE
@given(seed=st.integers(0, 2**32), split=st.sampled_from(["train", "test"]))
def test_damaged_gzip_is_found_or_harmless(
    packed: pathlib.Path, tmp_path: pathlib.Path, seed: int, split: str
) -> None:
    if not (tmp_path / "copy").exists():
        shutil.copytree(packed, tmp_path / "copy")
    path = tmp_path / "copy" / f"{split}-00001.tfrecord.gz"
    good = path.read_bytes()
    path.write_bytes(store_cases.damage(good, random.Random(seed)))
    try:
        assert_holds(tmp_path / "copy")  # gzip's header has bytes that mean nothing
    except DataError as error:
        assert str(path) in str(error)
    finally:
        path.write_bytes(good)


def test_a_gzip_of_other_records_is_found(packed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    copy = pathlib.Path(shutil.copytree(packed, tmp_path / "copy"))
    path = copy / "train-00000.tfrecord.gz"
    data = gzip.decompress(path.read_bytes())
    values = json.loads((copy / "manifest.json").read_text())
    arrays, name = make_example(0), make_example(0)["patch_id"]
    arrays["inputs"]["gsd10"][0, 0, 0] ^= 1
    flat = {f"{g}/{k}": v for g in ("inputs", "targets") for k, v in arrays[g].items()}
    other = example_proto.frame(example_proto.encode(flat, name, SPEC))
    for content, words in (
        (other + data[len(other) :], "record 0: CRC of record"),
        (data + other, "after record 3: more data"),
        (data[:-100], "record 3: truncated"),
    ):
        path.write_bytes(gzip.compress(content))
        values["splits"]["train"][0]["files"][0]["bytes"] = path.stat().st_size
        rewrite(copy / "manifest.json", splits=values["splits"])
        with pytest.raises(DataError, match=words):
            list(tfrecord.read_gzip(copy, "train"))
