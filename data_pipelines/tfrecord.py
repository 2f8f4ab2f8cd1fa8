"""TFRecord data sets: written as a stream, read by position, all under checksums. No TensorFlow.

A data set is a folder of shards `<split>-00000.tfrecord` and a manifest.json. Shards are plain
TFRecord files of tf.train.Example messages that any TensorFlow program reads: one bytes feature an
array ("inputs/gsd10", "targets/superres_20m", ...: C order, little-endian) and "patch_id". The
manifest's byte offset of each record makes a shard random access.
"""

from __future__ import annotations

import array
import contextlib
import functools
import itertools
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from data_pipelines import example_proto, manifest
from data_pipelines import spec as contracts
from data_pipelines.example_proto import Example
from data_pipelines.manifest import Manifest, Path, Shard
from data_pipelines.spec import Batch, DataError, DatasetSpec

SHARD_BYTES = 64 * 2**20
# Shards that a source keeps open: a BigEarthNet has 1500, a process usually 1024 descriptors.
MAX_OPEN_SHARDS = 128


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
    with manifest.new_folder(target, overwrite) as partial:
        shards = _write_shards(partial, spec, examples, shard_bytes, splits)
        manifest.write(partial, Manifest("tfrecord", spec, shards, dict(provenance or {})))
    return target


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a data set of this format; raises DataError as manifest.read."""
    return manifest.read(folder, "tfrecord")


def open_source(folder: Path, split: str) -> TFRecordSource:
    """Random access to one split; reads the manifest and the size of each shard, no record.

    Raises:
        DataError: no such split, or a file is missing, damaged or of another size than listed.
    """
    return TFRecordSource(folder, split, read_manifest(folder))


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
            shard.check_crc(folder)
        counts[split] = len(source)
    return counts


class TFRecordSource:
    """A split on disk (a spec.Source). Safe to share between threads and across fork."""

    def __init__(self, folder: Path, split: str, manifest: Manifest) -> None:
        """See open_source."""
        self.spec = manifest.spec
        self.split = split
        self._paths = manifest.paths(folder, split)
        shards = manifest.splits[split]
        counts = [len(shard.offsets) for shard in shards]
        self._first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        self._bounds = [np.array([*s.offsets, s.num_bytes], np.int64) for s in shards]
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
            for key, spec in example_proto.features(self.spec)
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
            payload = example_proto.unframe(data[low:high], high - low, where)
            records.append(example_proto.decode(payload, self.spec, where))
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
            writer(split).add(example_proto.frame(example_proto.encode(example, spec)))
        for split_writer in writers.values():
            split_writer.close()
    return {split: tuple(writers[split].shards) for split in contracts.SPLITS if split in writers}
