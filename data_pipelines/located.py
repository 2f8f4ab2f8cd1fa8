"""Arrays that lie uncompressed at known places in files: read by position, with bare system calls.

HDF5's and Zarr's own libraries find the places once a shard; after that no lock of theirs, no event
loop and no state that a fork would share stands between a reader's threads and the files.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import record
from data_pipelines.descriptor import MAX_OPEN, Descriptor
from data_pipelines.manifest import Shard
from data_pipelines.spec import DataError, DatasetSpec


@dataclasses.dataclass(frozen=True)
class Column:
    """Where one array of each record of a shard lies."""

    path: pathlib.Path
    """The file."""
    chunk_records: int
    """Records that lie one after the other in a chunk."""
    chunks: NDArray[np.int64]
    """First byte of each chunk."""

    def __post_init__(self) -> None:
        """Refuse places that no file has."""
        if self.chunk_records < 1 or (self.chunks.size and self.chunks.min() < 0):
            raise DataError(f"{self.path}: damaged: a chunk of its arrays has no place")


@dataclasses.dataclass(frozen=True)
class Located:
    """Where the records of a shard lie."""

    columns: Mapping[str, Column]
    """By feature key."""
    names: NDArray[np.bytes_]
    """Patch ids in UTF-8, (record,)."""


class LocatedReader:
    """The shards of one split. Safe to share between threads and across fork."""

    def __init__(
        self,
        folder: pathlib.Path,
        spec: DatasetSpec,
        shards: Sequence[Shard],
        locate: Callable[[pathlib.Path, DatasetSpec, Shard], Located],
    ) -> None:
        """Opens nothing yet; `locate` finds the records of one shard."""
        self._spec = spec
        self._arrays = [
            (key, record.stored_type(tensor), tensor.num_bytes)
            for key, tensor in record.features(spec)
        ]
        self._paths = [folder / shard.name for shard in shards]
        self._counts = [shard.count for shard in shards]
        self._locate = functools.lru_cache(MAX_OPEN)(
            lambda number: locate(folder, spec, shards[number])
        )
        # An evicted descriptor closes when its last reader lets go of it.
        self._open = functools.lru_cache(MAX_OPEN)(Descriptor)

    def read(self, positions: NDArray[np.int64]) -> tuple[dict[str, NDArray[Any]], list[str]]:
        """Arrays by feature key, stacked in the order asked for, and patch ids."""
        rows = record.empty_rows(len(positions), self._spec)
        stored = {key: record.as_bytes(values) for key, values in rows.items()}
        names = [""] * len(positions)
        for shard, run, numbers in record.runs(positions, self._counts):
            located = self._locate(shard)
            for key, dtype, size in self._arrays:
                self._fill(rows[key], stored[key], run, numbers, located.columns[key], dtype, size)
            for row, number in zip(run.tolist(), numbers.tolist(), strict=True):
                try:
                    names[row] = located.names[number].decode()
                except UnicodeDecodeError as error:
                    where = f"{self._paths[shard]}, record {number}"
                    raise DataError(f"{where}: damaged patch id: {error}") from None
        return rows, names

    def read_some(
        self, positions: NDArray[np.int64], keys: Collection[str]
    ) -> dict[str, NDArray[Any]]:
        """Some arrays, stacked in the order asked for; nothing else is read."""
        rows = record.empty_rows(len(positions), self._spec, keys)
        stored = {key: record.as_bytes(values) for key, values in rows.items()}
        for shard, run, numbers in record.runs(positions, self._counts):
            columns = self._locate(shard).columns
            for key, dtype, size in self._arrays:
                if key in rows:
                    self._fill(rows[key], stored[key], run, numbers, columns[key], dtype, size)
        return rows

    def _fill(
        self,
        rows: NDArray[Any],
        stored: NDArray[np.uint8],
        run: NDArray[np.int64],
        numbers: NDArray[np.int64],
        column: Column,
        dtype: np.dtype[Any],
        size: int,
    ) -> None:
        """Read one array of neighbouring records, `size` bytes each, chunk by chunk.

        `stored` is a view of `rows` as (record, byte).
        """
        file, start = self._open(column.path), 0
        while start < len(numbers):
            first = int(numbers[start])
            chunk, skip = divmod(first, column.chunk_records)
            stop = int(np.searchsorted(numbers, first - skip + column.chunk_records))
            count = int(numbers[stop - 1]) - first + 1
            offset = int(column.chunks[chunk]) + skip * size
            done = 0
            if record.LITTLE_ENDIAN and count == stop - start:
                mine = [stored[row] for row in run[start:stop].tolist()]
                done = file.read_into(mine, offset)
            if done != count * size:
                data = file.read_all(offset, count * size, f"{column.path}, record {first}")
                values = np.frombuffer(data, dtype).reshape(count, *rows.shape[1:])
                rows[run[start:stop]] = values[numbers[start:stop] - first]
            start = stop
