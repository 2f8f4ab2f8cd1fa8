"""TFRecord shards: written as a stream, read by position, all under checksums. No TensorFlow.

Plain TFRecord files of tf.train.Example messages that any TensorFlow program reads: one bytes
feature an array ("inputs/gsd10", "targets/superres_20m", ...: C order, little-endian) and
"patch_id". The manifest's byte offset of each record makes a shard random access. Compressed by
gzip they have none: export_gzip and read_gzip are for sending data on, not for training.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import functools
import gzip
import itertools
import os
import pathlib
import shutil
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from data_pipelines import example_proto, manifest, record
from data_pipelines.descriptor import MAX_OPEN, Descriptor, sync
from data_pipelines.manifest import MANIFEST, File, Path, Shard
from data_pipelines.spec import DataError, DatasetSpec

SUFFIX = ".tfrecord"
# Names in the manifest; the second is no random access, so store.py does not open it.
FORMAT, FORMAT_GZIP = "tfrecord", "tfrecord_gzip"


class ShardWriter:
    """One shard, written record by record."""

    def __init__(self, folder: pathlib.Path, stem: str, spec: DatasetSpec) -> None:
        """Open `stem`.tfrecord, which must not exist."""
        self._name, self._spec = stem + SUFFIX, spec
        self._file = (folder / self._name).open("xb")
        self._crc = 0
        self._sizes: dict[int, int] = {}
        self._offsets, self._crcs = array.array("q"), array.array("q")
        self.num_bytes = 0

    def size(self, patch_id: str) -> int:
        """Bytes that one more record would take."""
        length = len(patch_id.encode())
        if length not in self._sizes:
            arrays = record.empty_rows(1, self._spec)
            data = example_proto.encode({k: v[0] for k, v in arrays.items()}, patch_id, self._spec)
            self._sizes[length] = len(example_proto.frame(data))
        return self._sizes[length]

    def add(self, arrays: record.Arrays, patch_id: str) -> None:
        """Append one example that record.check_example has passed."""
        data = example_proto.frame(example_proto.encode(arrays, patch_id, self._spec))
        self._file.write(data)
        self._offsets.append(self.num_bytes)
        self._crcs.append(record.record_crc(arrays, patch_id, self._spec))
        self.num_bytes += len(data)
        self._crc = google_crc32c.extend(self._crc, data)

    def close(self) -> Shard:
        """Finish the shard; it is on disk when this returns."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        file = File(self._name, self.num_bytes, self._crc)
        return Shard((file,), self._crcs, self._offsets)

    def abandon(self) -> None:
        """Close the file without counting it."""
        # Again what made us abandon it, for instance a full disk.
        with contextlib.suppress(OSError):
            self._file.close()


class Reader:
    """The shards of one split. Safe to share between threads and across fork."""

    def __init__(self, folder: pathlib.Path, spec: DatasetSpec, shards: Sequence[Shard]) -> None:
        """Opens nothing yet.

        Raises:
            DataError: a shard's offsets are not those of its records.
        """
        for shard in shards:
            ends = [*shard.offsets, shard.files[0].num_bytes]
            rises = all(low < high for low, high in itertools.pairwise(ends))
            if len(shard.offsets) != shard.count or ends[0] != 0 or not rises:
                raise DataError(
                    f"{folder / shard.name}: the offsets of its {shard.count} records in "
                    f"{MANIFEST} do not rise from 0 to {ends[-1]} bytes"
                )
        self._spec = spec
        self._paths = [folder / shard.files[0].name for shard in shards]
        self._counts = [shard.count for shard in shards]
        self._bounds = [array.array("q", [*s.offsets, s.files[0].num_bytes]) for s in shards]
        # An evicted descriptor closes when its last reader lets go of it.
        self._open = functools.lru_cache(MAX_OPEN)(Descriptor)
        self._layout = functools.lru_cache(MAX_OPEN)(
            lambda num_bytes: example_proto.find_layout(num_bytes, spec)
        )

    def read(self, positions: NDArray[np.int64]) -> tuple[dict[str, NDArray[Any]], list[str]]:
        """Arrays by feature key, stacked in the order asked for, and patch ids.

        Neighbouring records are read in one piece, and records that ShardWriter has written without
        a parser: straight to where their arrays belong.
        """
        rows = record.empty_rows(len(positions), self._spec)
        stored = {key: record.as_bytes(values) for key, values in rows.items()}
        names = [""] * len(positions)
        for shard, run, numbers in record.runs(positions, self._counts):
            if self._scatter(stored, names, shard, run.tolist(), numbers.tolist()):
                continue
            examples = self._read_run(shard, int(numbers[0]), int(numbers[-1]))
            for row, number in zip(run.tolist(), (numbers - numbers[0]).tolist(), strict=True):
                arrays, names[row] = examples[number]
                for key, value in arrays.items():
                    rows[key][row] = value
        return rows, names

    def read_some(
        self, positions: NDArray[np.int64], keys: Collection[str]
    ) -> dict[str, NDArray[Any]]:
        """Some arrays, stacked in the order asked for; of records as we write them nothing else."""
        rows = record.empty_rows(len(positions), self._spec, keys)
        stored = {key: record.as_bytes(values) for key, values in rows.items()}
        for shard, run, numbers in record.runs(positions, self._counts):
            path, bounds = self._paths[shard], self._bounds[shard]
            for row, number in zip(run.tolist(), numbers.tolist(), strict=True):
                layout = self._layout(bounds[number + 1] - bounds[number])
                if layout is None or not record.LITTLE_ENDIAN:
                    arrays, _ = self._read_run(shard, number, number)[0]
                    for key, values in rows.items():
                        values[row] = arrays[key]
                    continue
                for key, values in stored.items():
                    start = bounds[number] + layout.find_start(key, self._spec)
                    where = f"{path}, record {number}"
                    data = self._open(path).read_all(start, values.shape[1], where)
                    values[row] = np.frombuffer(data, np.uint8)
        return rows

    def _scatter(
        self,
        stored: Mapping[str, NDArray[np.uint8]],
        names: list[str],
        shard: int,
        run: Sequence[int],
        numbers: Sequence[int],
    ) -> bool:
        """Read neighbouring records to their rows; False where they are not as we write them.

        Args:
            stored: (record, byte) of each array, by feature key.
            names: patch ids, to be filled.
            shard: which shard.
            run: the rows to fill.
            numbers: the records of the shard, ascending.
        """
        bounds = self._bounds[shard][numbers[0] : numbers[-1] + 2]
        found = [self._layout(stop - start) for start, stop in itertools.pairwise(bounds)]
        layouts = [layout for layout in found if layout]
        # Fewer: a record of another writer; more: one that is asked for twice.
        if not len(layouts) == len(found) == len(run) or not record.LITTLE_ENDIAN:
            return False
        gaps = bytearray(sum(layout.num_bytes for layout in layouts))
        view, position = memoryview(gaps), 0
        buffers: list[Any] = []
        for row, layout in zip(run, layouts, strict=True):
            for key, gap in zip(layout.keys, layout.gaps, strict=False):
                buffers += (view[position : position + gap], stored[key][row])
                position += gap
            buffers.append(view[position : position + layout.gaps[-1]])
            position += layout.gaps[-1]
        size = bounds[-1] - bounds[0]
        if self._open(self._paths[shard]).read_into(buffers, bounds[0]) != size:
            return False
        position = 0
        for row, layout in zip(run, layouts, strict=True):
            name = layout.find_name(gaps, position)
            if name is None:
                return False
            position += layout.num_bytes
            names[row] = name.decode(errors="replace")  # a damaged one fails its CRC
        return True

    def _read_run(
        self, shard: int, first: int, last: int
    ) -> list[tuple[dict[str, NDArray[Any]], str]]:
        """Arrays and patch id of the records first..last of one shard."""
        path, bounds = self._paths[shard], self._bounds[shard][first : last + 2]
        data = memoryview(self._open(path).read(bounds[0], bounds[-1] - bounds[0]))
        examples = []
        ends = [bound - bounds[0] for bound in bounds]
        for number, (low, high) in enumerate(itertools.pairwise(ends), first):
            where = f"{path}, record {number}"
            payload = example_proto.unframe(data[low:high], high - low, where)
            examples.append(example_proto.decode(payload, self._spec, where))
        return examples


def export_gzip(folder: Path, target: Path, *, overwrite: bool = False) -> pathlib.Path:
    """Copy a data set of TFRecord shards as `.tfrecord.gz`, its manifest beside them.

    For tf.data.TFRecordDataset(..., compression_type="GZIP") and read_gzip, from first to last.

    Raises:
        DataError: a shard is damaged, or `target` exists already.
    """
    found, root = manifest.read(folder, [FORMAT]), pathlib.Path(target).resolve()
    splits = {split: found.check_files(folder, split) for split in found.splits}
    with manifest.new_folder(root, overwrite) as partial:
        for split, shards in splits.items():
            splits[split] = tuple(_compress(pathlib.Path(folder), partial, s) for s in shards)
        manifest.write(partial, dataclasses.replace(found, format=FORMAT_GZIP, splits=splits))
    return root


def _compress(folder: pathlib.Path, target: pathlib.Path, shard: Shard) -> Shard:
    """Write one shard's compressed copy: the same bytes for the same shard."""
    shard.files[0].check_crc(folder)
    name = shard.name + ".gz"
    with (
        (folder / shard.name).open("rb") as source,
        (target / name).open("xb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed,
    ):
        shutil.copyfileobj(source, packed, 2**20)
    sync(target / name)
    return Shard((File.of(target, name),), shard.crcs)


def read_gzip(folder: Path, split: str) -> Iterator[record.Example]:
    """Examples of one split of a folder made by export_gzip, in storage order, one at a time.

    Raises:
        DataError: no such split, or the shard is damaged; the message names file and record.
    """
    found = manifest.read(folder, [FORMAT_GZIP])
    for shard in found.check_files(folder, split):
        path = pathlib.Path(folder) / shard.name
        for number, data in enumerate(_unpack(path, shard.count)):
            where = f"{path}, record {number}"
            arrays, patch = example_proto.decode(data, found.spec, where)
            crc, expected = record.record_crc(arrays, patch, found.spec), shard.crcs[number]
            if crc != expected:
                raise DataError(f"{where}: CRC of record {crc:08x}, expected {expected:08x}")
            groups: dict[str, Any] = {"inputs": {}, "targets": {}}
            for key, values in arrays.items():
                group, name = key.split("/", 1)
                groups[group][name] = values
            yield {**groups, "patch_id": patch}


def _unpack(path: pathlib.Path, count: int) -> Iterator[bytes]:
    """The data of each record of a compressed shard, by its frame."""
    where = str(path)
    try:
        with gzip.open(path) as file:
            for number in range(count):
                where = f"{path}, record {number}"
                head = file.read(example_proto.HEADER_BYTES)
                size = example_proto.frame_bytes(head, where)
                whole = head + file.read(size - len(head))
                yield example_proto.unframe(memoryview(whole), size, where)
            where = f"{path}, after record {count - 1}"
            # The last read makes gzip compare its own length and CRC.
            if file.read(1):
                raise DataError(f"{where}: more data, expected {count} records")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{where}: damaged: {error}") from None
