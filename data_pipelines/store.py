"""Data sets on disk in any format: written as a stream, read by position, under checksums.

A data set is a folder of shards `<split>-*.<format>` and a manifest.json. What formats share
stands here; each format's own file has a ShardWriter and a Reader.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import manifest, record
from data_pipelines import spec as contracts
from data_pipelines.manifest import Manifest, Path, Shard
from data_pipelines.record import Example
from data_pipelines.spec import Batch, DataError, DatasetSpec, Source

FORMATS = {
    "tfrecord": "data_pipelines.tfrecord",
    "hdf5": "data_pipelines.hdf5",
    "zarr": "data_pipelines.zarr_store",
    "lmdb": "data_pipelines.lmdb_store",
}
# Size of a shard: large enough for a parallel file system, small enough to copy.
SHARD_BYTES = 64 * 2**20
# Records that verify reads at once.
PIECE = 64

Splits = Mapping[str, tuple[Shard, ...]]


def write(
    folder: Path,
    spec: DatasetSpec,
    examples: Iterable[tuple[str, Example]],
    *,
    file_format: str = "tfrecord",
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
        file_format: a key of FORMATS.
        shard_bytes: most bytes of records in a shard, unless one record is larger.
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
        shards = write_shards(
            partial, spec, examples, file_format=file_format, shard_bytes=shard_bytes
        )
        listed = {s: shards.get(s, ()) for s in contracts.SPLITS if s in shards or s in splits}
        finish(partial, Manifest(file_format, spec, listed, dict(provenance or {})))
    return target


def write_shards(
    folder: pathlib.Path,
    spec: DatasetSpec,
    examples: Iterable[tuple[str, Example]],
    *,
    file_format: str,
    prefix: str = "",
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, tuple[Shard, ...]]:
    """Write examples as shards `<split>-<prefix>00000...`, one open for each split; no manifest.

    Args: see `write`; `prefix` keeps the shards of several calls apart.

    Returns:
        The shards of each split that has any, in the order of their records.
    """
    writer_class = _module(file_format).ShardWriter
    done: dict[str, list[Shard]] = {}
    writers: dict[str, Any] = {}
    try:
        for split, example in examples:
            if split not in contracts.SPLITS:
                raise DataError(f"split {split!r}: expected one of {', '.join(contracts.SPLITS)}")
            arrays, patch = record.check_example(example, spec)
            with _on_disk(folder):
                writer = writers.get(split)
                if writer and writer.num_bytes + writer.size(patch) > shard_bytes:
                    done[split].append(writer.close())
                    del writers[split]
                if split not in writers:
                    stem = f"{split}-{prefix}{len(done.setdefault(split, [])):05d}"
                    writers[split] = writer_class(folder, stem, spec)
                writers[split].add(arrays, patch)
        with _on_disk(folder):
            for split, writer in writers.items():
                done[split].append(writer.close())
    except BaseException:
        for writer in writers.values():
            writer.abandon()
        raise
    return {split: tuple(shards) for split, shards in done.items()}


def finish(folder: pathlib.Path, found: Manifest) -> Manifest:
    """Let the format add what other readers need, and write the manifest.

    Shards keep their names, so that one that fails here can be called again.

    Returns:
        The manifest as written: with what the format added.

    Raises:
        DataError: the disk is full, or the folder not to be written to.
    """
    write_extra = getattr(_module(found.format), "write_extra", None)
    with _on_disk(folder):
        extra = write_extra(folder, found.spec, found.splits) if write_extra else ()
        final = dataclasses.replace(found, extra=(*found.extra, *extra))
        manifest.write(folder, final)
    return final


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a data set of any format; raises DataError as manifest.read."""
    return manifest.read(folder, FORMATS)


def open_source(folder: Path, split: str) -> Source:
    """Random access to one split; reads the manifest and the size of each file, no record.

    Raises:
        DataError: no such split, or a file is missing, damaged or of another size than listed.
    """
    return _StoreSource(folder, split, read_manifest(folder))


def verify(
    folder: Path, advance: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, int]:
    """Read everything and check every checksum, count and shape.

    Args:
        folder: a data set.
        advance: called with (records done, records of all splits).

    Returns:
        Number of examples of each split.

    Raises:
        DataError: the first thing that is wrong.
    """
    found = read_manifest(folder)
    counts = {split: found.num_examples(split) for split in found.splits}
    done, total = 0, sum(counts.values())
    for split, shards in found.splits.items():
        source = _StoreSource(folder, split, found)
        for start in range(0, len(source), PIECE):
            stop = min(start + PIECE, len(source))
            source.read(np.arange(start, stop))
            done += stop - start
            advance(done, total)
        # Last, because the records' own checks say where the damage is.
        for shard in shards:
            for file in shard.files:
                file.check_crc(folder)
    for file in found.extra:
        file.check_size(folder)
        file.check_crc(folder)
    return counts


class _StoreSource:
    """A split on disk (a spec.Source). Safe to share between threads and across fork."""

    def __init__(self, folder: Path, split: str, found: Manifest) -> None:
        """See open_source."""
        self.spec, self.split = found.spec, split
        shards = found.check_files(folder, split)
        root = pathlib.Path(folder)
        self._reader = _module(found.format).Reader(root, found.spec, shards)
        self._targets = [f"targets/{name}" for name in found.spec.targets]
        self._crcs = np.concatenate([np.zeros(0, np.uint32), *(shard.crcs for shard in shards)])
        self._where = [(root / shard.name, shard.count) for shard in shards]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._crcs)

    def read(self, indices: Sequence[int] | NDArray[Any]) -> Batch:
        """Examples in the order asked for; see spec.Source."""
        positions = self._positions(indices)
        rows, names = self._reader.read(positions)
        self._check(positions, rows, names)
        batch: Batch = {"inputs": {}, "targets": {}, "patch_id": np.array(names, dtype=np.str_)}
        for key, values in rows.items():
            group, name = key.split("/", 1)
            batch[group][name] = values
        return batch

    def read_targets(self, indices: Sequence[int] | NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Targets alone, by name: of labels a thousandth of the bytes that their pixels have.

        Checksums are those of whole records, so these are not compared; `read` does that.
        """
        rows = self._reader.read_some(self._positions(indices), self._targets)
        return {key.split("/", 1)[1]: values for key, values in rows.items()}

    def _positions(self, indices: Sequence[int] | NDArray[Any]) -> NDArray[np.int64]:
        positions = np.asarray(indices, np.int64).reshape(-1)
        if positions.size and not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(
                f"positions {positions.min()} to {positions.max()} of {len(self)} records"
            )
        return positions

    def _check(
        self, positions: NDArray[np.int64], rows: record.Arrays, names: Sequence[str]
    ) -> None:
        """Compare what was read with the manifest's checksums.

        For every format: TFRecord's own CRCs pass a shard that has taken another's place.
        """
        found = np.array(record.record_crcs(rows, names, self.spec), np.uint32)
        wrong = np.flatnonzero(found != self._crcs[positions])
        if wrong.size:
            row = int(wrong[0])
            position = int(positions[row])
            raise DataError(
                f"{self._name(position)}: CRC of record {found[row]:08x}, expected "
                f"{self._crcs[position]:08x} by {manifest.MANIFEST}"
            )

    def _name(self, position: int) -> str:
        """Shard and record of a position in the split."""
        for path, count in self._where:
            if position < count:
                return f"{path}, record {position}"
            position -= count
        raise IndexError(position)


@contextlib.contextmanager
def _on_disk(folder: pathlib.Path) -> Iterator[None]:
    """Turn what the system says against writing (full disk, no permission) into a DataError."""
    try:
        yield
    except OSError as error:
        # HDF5's own words are a paragraph.
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise DataError(f"{error.filename or folder}: cannot be written: {reason}") from error


def _module(file_format: str) -> Any:
    """The module of a format.

    Raises:
        DataError: there is none of that name.
    """
    if file_format not in FORMATS:
        raise DataError(f"no format {file_format!r}; there are {', '.join(FORMATS)}")
    return importlib.import_module(FORMATS[file_format])
