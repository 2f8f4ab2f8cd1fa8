"""TFRecord data sets: written as a stream, read by position, all under checksums. No TensorFlow.

A data set is a folder of shards `<split>-00000.tfrecord` and a manifest.json. Shards are plain
TFRecord files of tf.train.Example messages that any TensorFlow program reads: one bytes feature an
array ("inputs/gsd10", "targets/superres_20m", ...: C order, little-endian) and "patch_id". The
manifest adds what the format lacks: spec, counts, checksums, and the byte offset of each record,
which makes a shard random access.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import re
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory, text_format
from numpy.typing import NDArray

from data_pipelines import files
from data_pipelines import spec as contracts
from data_pipelines.spec import Batch, DataError, DatasetSpec, TensorSpec

MANIFEST = "manifest.json"
VERSION = 1
SHARD_BYTES = 64 * 2**20
# Bytes around the data of a record: length (uint64) and its CRC (uint32); CRC of the data (uint32).
HEADER_BYTES, FOOTER_BYTES = 12, 4
# Shards that a source keeps open: a BigEarthNet has 1500, a process usually 1024 descriptors.
MAX_OPEN_SHARDS = 128

Example = Mapping[str, Any]
Path = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of records."""

    file: str
    """Name inside the folder."""
    num_bytes: int
    """Size of the file."""
    crc32c: int
    """CRC-32C (Castagnoli, not masked) of the whole file."""
    offsets: tuple[int, ...]
    """First byte of each record."""

    def __post_init__(self) -> None:
        """Refuse a shard that contradicts itself or lies outside its folder."""
        ends = [*self.offsets, self.num_bytes]
        smallest = HEADER_BYTES + FOOTER_BYTES
        if ends[0] != 0 or any(b - a < smallest for a, b in itertools.pairwise(ends)):
            raise DataError(f"{self.file}: offsets do not rise from 0 to {self.num_bytes} bytes")
        if pathlib.PurePath(self.file).name != self.file:
            raise DataError(f"shard {self.file!r} must be a file name without a folder")

    def to_json(self) -> dict[str, Any]:
        """Plain types, for the manifest."""
        return {
            "file": self.file,
            "count": len(self.offsets),
            "bytes": self.num_bytes,
            "crc32c": f"{self.crc32c:08x}",
            "offsets": list(self.offsets),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Shard:
        """The inverse of to_json."""
        offsets = tuple(map(int, values["offsets"]))
        if len(offsets) != values["count"]:
            raise DataError(f"{values['file']}: {len(offsets)} offsets, count {values['count']}")
        return cls(values["file"], int(values["bytes"]), int(values["crc32c"], 16), offsets)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a folder holds."""

    spec: DatasetSpec
    """What each example holds."""
    splits: Mapping[str, tuple[Shard, ...]]
    """Shards of each split in the order of their records; a split may have none."""
    provenance: Mapping[str, Any]
    """Where the pixels came from and how they were cut; free, for people."""

    def num_examples(self, split: str) -> int:
        """Number of examples of one split."""
        return sum(len(shard.offsets) for shard in self.splits[split])


def write(
    folder: Path,
    spec: DatasetSpec,
    examples: Iterable[tuple[str, Example]],
    *,
    shard_bytes: int = SHARD_BYTES,
    provenance: Mapping[str, Any] | None = None,
    splits: Sequence[str] = (),
    overwrite: bool = False,
) -> pathlib.Path:
    """Write a data set; the folder appears complete or not at all.

    Args:
        folder: where to; must not exist, unless `overwrite` and it is a data set.
        spec: what each example holds; each example is checked against it.
        examples: (split, {"inputs": {name: (y, x, band)}, "targets": {...}, "patch_id": str}),
            splits in any order; consumed one at a time, so memory does not grow with the data.
        shard_bytes: size at which the next shard begins.
        provenance: kept in the manifest as it is (JSON types).
        splits: splits to list in the manifest even when no example falls into them.
        overwrite: replace an existing data set once the new one is complete.

    Returns:
        The folder, absolute.

    Raises:
        DataError: the folder exists, or an example is not of the spec; the message names the patch.
    """
    target = pathlib.Path(folder).resolve()
    _check_target(target, overwrite)
    with files.replacing(target) as partial:
        shutil.rmtree(partial, ignore_errors=True)  # of a killed process that had our number
        partial.mkdir()
        shards = _write_shards(partial, spec, examples, shard_bytes, splits)
        _write_manifest(partial, Manifest(spec, shards, dict(provenance or {})))
        _check_target(target, overwrite)  # again: it may have come while we wrote
    return target


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a data set folder.

    Raises:
        DataError: it is missing, damaged, or of another version.
    """
    path = pathlib.Path(folder) / MANIFEST
    try:
        values = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{path}: not found; expected a folder made by `kerass2 prepare`, which holds one"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged, expected JSON: {error}") from None
    if not isinstance(values, dict) or values.get("format") != "tfrecord":
        raise DataError(f'{path}: expected a JSON object with "format": "tfrecord"')
    if values.get("version") != VERSION:
        raise DataError(f"{path}: version {values.get('version')!r}, expected {VERSION}")
    found, expected = values.pop("crc32c", None), _checksum(values)
    if found != expected:
        raise DataError(f"{path}: damaged or edited: checksum {found!r}, expected {expected!r}")
    try:
        shards = {
            split: tuple(map(Shard.from_json, group)) for split, group in values["splits"].items()
        }
        spec = DatasetSpec.from_json(values["spec"])
        return Manifest(spec, shards, dict(values["provenance"]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{path}: not a manifest of version {VERSION}: {error!r}") from None


def open_source(folder: Path, split: str) -> TFRecordSource:
    """Random access to one split; reads the manifest and the size of each shard, no record.

    Raises:
        DataError: no such split, or a shard is missing or of another size than the manifest says.
    """
    root = pathlib.Path(folder)
    manifest = read_manifest(root)
    if split not in manifest.splits:
        raise DataError(
            f"{root / MANIFEST}: no split {split!r}; it has {', '.join(manifest.splits) or 'none'}"
        )
    for shard in manifest.splits[split]:
        path = root / shard.file
        if not path.is_file():
            raise DataError(f"{path}: not found; {MANIFEST} lists it")
        found = path.stat().st_size
        if found != shard.num_bytes:
            raise DataError(f"{path}: {found} bytes, expected {shard.num_bytes} by {MANIFEST}")
    return TFRecordSource(root, split, manifest)


def verify(folder: Path) -> dict[str, int]:
    """Read everything and check every checksum, count and shape.

    Returns:
        Number of examples of each split.

    Raises:
        DataError: the first thing that is wrong.
    """
    counts = {}
    for split, shards in read_manifest(folder).splits.items():
        source = open_source(folder, split)
        for start in range(0, len(source), 64):
            source.read(range(start, min(start + 64, len(source))))
        # Last, because the records' own checks say where the damage is. It finds shards swapped.
        for shard in shards:
            path = pathlib.Path(folder) / shard.file
            found = _file_crc(path)
            if found != shard.crc32c:
                raise DataError(f"{path}: file CRC {found:08x}, expected {shard.crc32c:08x}")
        counts[split] = len(source)
    return counts


class TFRecordSource:
    """A split on disk (a spec.Source). Safe to share between threads and across fork."""

    def __init__(self, folder: pathlib.Path, split: str, manifest: Manifest) -> None:
        """See open_source, which checks first."""
        self.spec = manifest.spec
        self.split = split
        self._shards = manifest.splits[split]
        self._paths = [folder / shard.file for shard in self._shards]
        counts = [len(shard.offsets) for shard in self._shards]
        self._first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        self._bounds = [np.array([*s.offsets, s.num_bytes], np.int64) for s in self._shards]
        # An evicted descriptor closes when its last reader lets go of it.
        self._open = functools.lru_cache(MAX_OPEN_SHARDS)(_Descriptor)

    def __len__(self) -> int:
        """Number of examples."""
        return int(self._first[-1])

    def read(self, indices: Sequence[int] | NDArray[Any]) -> Batch:
        """Examples in the order asked for; see spec.Source.

        Neighbouring records are read in one piece.
        """
        positions = np.asarray(indices, np.int64).reshape(-1)
        if positions.size and not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(
                f"positions {positions.min()} to {positions.max()} of {len(self)} records"
            )
        rows: dict[str, NDArray[Any]] = {
            key: np.empty((len(positions), *spec.shape), spec.dtype)
            for key, spec in _features(self.spec)
        }
        names = [""] * len(positions)
        order = np.argsort(positions, kind="stable")
        for run in self._runs(positions, order):
            records = self._read_run(int(positions[run[0]]), int(positions[run[-1]]))
            for row, where in zip(run, positions[run] - positions[run[0]], strict=True):
                arrays, names[row] = records[where]
                for key, value in arrays.items():
                    rows[key][row] = value
        batch: Batch = {"inputs": {}, "targets": {}, "patch_id": np.array(names, dtype=np.str_)}
        for key, values in rows.items():
            group, name = key.split("/", 1)
            batch[group][name] = values
        return batch

    def _runs(self, positions: NDArray[Any], order: NDArray[Any]) -> list[NDArray[Any]]:
        """Rows of `positions`, grouped into records that lie one after the other in one shard."""
        if not order.size:
            return []
        ordered = positions[order]
        shards = np.searchsorted(self._first, ordered, side="right")
        breaks = np.flatnonzero((np.diff(ordered) > 1) | (np.diff(shards) > 0)) + 1
        return np.split(order, breaks)

    def _read_run(self, first: int, last: int) -> list[tuple[dict[str, NDArray[Any]], str]]:
        """Arrays and patch id of the records first..last (positions in the split, one shard)."""
        number = int(np.searchsorted(self._first, first, side="right")) - 1
        path, start = self._paths[number], int(self._first[number])
        bounds = self._bounds[number][first - start : last - start + 2]
        data = self._open(path).read(int(bounds[0]), int(bounds[-1] - bounds[0]))
        records = []
        for record, (low, high) in enumerate(itertools.pairwise((bounds - bounds[0]).tolist())):
            where = f"{path}, record {first - start + record}"
            payload = _unframe(data[low:high], high - low, where)
            records.append(_decode(payload, self.spec, where))
        return records


class _Descriptor:
    """A file open for reading by position, without a cursor that threads or forks would share."""

    def __init__(self, path: pathlib.Path) -> None:
        try:
            self._number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from None
        self._path = path

    def __del__(self) -> None:
        if hasattr(self, "_number"):
            os.close(self._number)

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes; fewer only at the end of the file."""
        try:
            data = os.pread(self._number, size, offset)
            while len(data) < size:  # one call returns at most 2 GiB
                more = os.pread(self._number, size - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise DataError(f"{self._path}: {error.strerror}") from None
        return data


# --- records: the TFRecord frame and the tf.train.Example inside ---------------------------------


def masked_crc(data: bytes) -> int:
    """CRC-32C as TFRecord stores it: rotated right by 15 bits, plus a constant.

    Source: tensorflow/core/lib/hash/crc32c.h (Mask).
    """
    crc = int(google_crc32c.value(data))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    """One TFRecord record around `data`."""
    length = struct.pack("<Q", len(data))
    crcs = struct.pack("<I", masked_crc(length)), struct.pack("<I", masked_crc(data))
    return length + crcs[0] + data + crcs[1]


def _unframe(record: bytes, size: int, where: str) -> bytes:
    """The data of one record that should be `size` bytes long with its frame."""
    if len(record) != size:
        raise DataError(f"{where}: truncated: {len(record)} bytes, expected {size}")
    length, length_crc = struct.unpack_from("<QI", record)
    if masked_crc(record[:8]) != length_crc:
        found = masked_crc(record[:8])
        raise DataError(f"{where}: CRC of length {found:08x}, expected {length_crc:08x}")
    if length != size - HEADER_BYTES - FOOTER_BYTES:
        expected = size - HEADER_BYTES - FOOTER_BYTES
        raise DataError(f"{where}: {length} bytes of data, expected {expected} by {MANIFEST}")
    data = record[HEADER_BYTES:-FOOTER_BYTES]
    (data_crc,) = struct.unpack_from("<I", record, size - FOOTER_BYTES)
    if masked_crc(data) != data_crc:
        raise DataError(f"{where}: CRC of data {masked_crc(data):08x}, expected {data_crc:08x}")
    return data


# What we use of tensorflow/core/example/example.proto and feature.proto: features are lists of
# bytes; lists of floats and integers, which we never write, are skipped as unknown fields.
_EXAMPLE_PROTO = """
name: "kerass2/example.proto" package: "tensorflow" syntax: "proto3"
message_type { name: "BytesList"
  field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
message_type { name: "Feature"
  field { name: "bytes_list" number: 1 label: LABEL_OPTIONAL
          type: TYPE_MESSAGE type_name: ".tensorflow.BytesList" } }
message_type { name: "Features"
  field { name: "feature" number: 1 label: LABEL_REPEATED
          type: TYPE_MESSAGE type_name: ".tensorflow.Features.FeatureEntry" }
  nested_type { name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "value" number: 2 label: LABEL_OPTIONAL
            type: TYPE_MESSAGE type_name: ".tensorflow.Feature" } } }
message_type { name: "Example"
  field { name: "features" number: 1 label: LABEL_OPTIONAL
          type: TYPE_MESSAGE type_name: ".tensorflow.Features" } }
"""


@functools.cache
def example_class() -> Any:
    """The message class of tf.train.Example, made without TensorFlow.

    In a descriptor pool of its own, because TensorFlow registers the same names in the default one.
    """
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(_EXAMPLE_PROTO, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


def _features(spec: DatasetSpec) -> Iterator[tuple[str, TensorSpec]]:
    """Feature key and spec of each array."""
    for group, tensors in (("inputs", spec.inputs), ("targets", spec.targets)):
        for name, tensor in tensors.items():
            yield f"{group}/{name}", tensor


def _stored(spec: TensorSpec) -> np.dtype[Any]:
    """The type on disk: little-endian on any machine."""
    return np.dtype(spec.dtype).newbyteorder("<")


def _encode(example: Example, spec: DatasetSpec) -> bytes:
    """The tf.train.Example of one example.

    Raises:
        DataError: it is not of the spec.
    """
    patch = example.get("patch_id")
    if not isinstance(patch, str) or not patch:
        raise DataError(f"patch_id {patch!r}: expected a text that is not empty")
    for group, tensors in (("inputs", spec.inputs), ("targets", spec.targets)):
        found = example.get(group, {})
        if set(found) != set(tensors):
            raise DataError(f"patch {patch}: {group} {sorted(found)}, expected {sorted(tensors)}")
    proto = example_class()()
    for key, tensor in _features(spec):
        group, name = key.split("/", 1)
        value = np.asarray(example[group][name])
        if value.shape != tensor.shape or value.dtype != np.dtype(tensor.dtype):
            raise DataError(
                f"patch {patch}: {key} is {value.dtype} {value.shape}, "
                f"expected {tensor.dtype} {tensor.shape}"
            )
        data = value.astype(_stored(tensor), copy=False).tobytes()
        proto.features.feature[key].bytes_list.value.append(data)
    proto.features.feature["patch_id"].bytes_list.value.append(patch.encode())
    # Deterministic: the same examples give the same bytes, whatever order a map happens to have.
    return bytes(proto.SerializeToString(deterministic=True))


def _decode(data: bytes, spec: DatasetSpec, where: str) -> tuple[dict[str, NDArray[Any]], str]:
    """Arrays (as stored, by feature key) and patch id of one tf.train.Example."""
    raw = {}
    try:
        features = example_class().FromString(data).features.feature
        for key in [*(key for key, _ in _features(spec)), "patch_id"]:
            values = features[key].bytes_list.value if key in features else []
            if len(values) != 1:
                raise DataError(f"feature {key} has {len(values)} byte values, expected 1")
            raw[key] = values[0]
        patch = raw["patch_id"].decode()
        arrays = {}
        for key, tensor in _features(spec):
            if len(raw[key]) != tensor.num_bytes:
                raise DataError(f"{key} has {len(raw[key])} bytes, expected {tensor.num_bytes}")
            arrays[key] = np.frombuffer(raw[key], _stored(tensor)).reshape(tensor.shape)
    except (message.DecodeError, ValueError) as error:
        raise DataError(f"{where}: not an example of {spec.task}: {error}") from None
    return arrays, patch


# --- folders: shards, manifest, replacement ------------------------------------------------------


class _ShardWriter:
    """The shards of one split, one open at a time."""

    def __init__(self, folder: pathlib.Path, split: str, shard_bytes: int) -> None:
        self._folder, self._split, self._limit = folder, split, shard_bytes
        self._file: BinaryIO | None = None
        self._size = self._crc = 0
        self._offsets = array.array("q")
        self.shards: list[Shard] = []

    def add(self, record: bytes) -> None:
        """Append one framed record, in a new shard where this one is full."""
        if self._file is None or (self._offsets and self._size + len(record) > self._limit):
            self.close()
            self._file = (self._folder / self._name()).open("xb")
        self._offsets.append(self._size)
        self._file.write(record)
        self._size += len(record)
        self._crc = google_crc32c.extend(self._crc, record)

    def close(self) -> None:
        """Finish the open shard, on disk before the folder gets its name."""
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        self.shards.append(Shard(self._name(), self._size, self._crc, tuple(self._offsets)))
        self._size = self._crc = 0
        self._offsets = array.array("q")

    def abandon(self) -> None:
        """Close the file without counting it."""
        if self._file is not None:
            self._file.close()

    def _name(self) -> str:
        return f"{self._split}-{len(self.shards):05d}.tfrecord"


def _write_shards(
    folder: pathlib.Path,
    spec: DatasetSpec,
    examples: Iterable[tuple[str, Example]],
    shard_bytes: int,
    splits: Sequence[str],
) -> dict[str, tuple[Shard, ...]]:
    """Write all records; the shards of each split."""
    writers: dict[str, _ShardWriter] = {}
    with contextlib.ExitStack() as stack:

        def writer(split: str) -> _ShardWriter:
            if split not in contracts.SPLITS:
                raise DataError(f"split {split!r}: expected one of {', '.join(contracts.SPLITS)}")
            if split not in writers:
                writers[split] = _ShardWriter(folder, split, shard_bytes)
                stack.callback(writers[split].abandon)
            return writers[split]

        for split in splits:
            writer(split)
        for split, example in examples:
            writer(split).add(frame(_encode(example, spec)))
        for split_writer in writers.values():
            split_writer.close()
    return {split: tuple(writers[split].shards) for split in contracts.SPLITS if split in writers}


def _write_manifest(folder: pathlib.Path, manifest: Manifest) -> None:
    values: dict[str, Any] = {
        "format": "tfrecord",
        "version": VERSION,
        "spec": manifest.spec.to_json(),
        "splits": {
            split: [s.to_json() for s in shards] for split, shards in manifest.splits.items()
        },
        "provenance": manifest.provenance,
    }
    # Lists of numbers on one line: a line for each offset would bury the rest. (A JSON string has
    # no raw newline, so the pattern finds lists only.)
    text = contracts.json_text({**values, "crc32c": _checksum(values)})
    text = re.sub(r"\[\n[\d,\s]+\]", lambda found: " ".join(found[0].split()), text)
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _checksum(values: Mapping[str, Any]) -> str:
    """CRC-32C of a manifest's content, whatever its layout."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return f"{google_crc32c.value(text.encode()):08x}"


def _file_crc(path: pathlib.Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while piece := file.read(2**20):
            crc = google_crc32c.extend(crc, piece)
    return crc


def _check_target(target: pathlib.Path, overwrite: bool) -> None:
    """Refuse to write over anything but, when asked to, a data set."""
    if not target.exists():
        return
    if not overwrite:
        raise DataError(f"{target}: exists already; choose another folder, or overwrite it")
    if not (target / MANIFEST).is_file():
        raise DataError(f"{target}: not a data set (no {MANIFEST}), so it is not overwritten")
