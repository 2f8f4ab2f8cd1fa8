"""Zarr v3 shards: a group with one sharded array a feature, any Zarr v3 reader opens it.

A `train-*.zarr` holds inputs/gsd10, ... and patch_id. Each array is one file (a Zarr shard of
chunks of 16 records under CRC-32C, their index at its end), so that a data set has few files. That
file is written and read here, record by record, in the bytes of Zarr's sharding codec: zarr-python
would hold it in memory whole to write it, and takes about 1 ms for each read.

Source: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html
"""

from __future__ import annotations

import array
import contextlib
import json
import pathlib
import struct
from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from data_pipelines import descriptor, record
from data_pipelines.located import Column, Located, LocatedReader
from data_pipelines.manifest import File, Shard
from data_pipelines.spec import DataError, DatasetSpec, TensorSpec

SUFFIX = ".zarr"
# Records a chunk.
CHUNK = 16
CRC_BYTES = 4


class ShardWriter:
    """One shard, written 16 records at a time."""

    def __init__(self, folder: pathlib.Path, stem: str, spec: DatasetSpec) -> None:
        """Make the folder `stem`.zarr, which must not exist."""
        self._folder, self._name, self._spec = folder, stem + SUFFIX, spec
        (folder / self._name).mkdir()
        self._arrays = {
            key: _ArrayWriter(folder / self._name / key / _shard_file(tensor))
            for key, tensor in record.features(spec)
        }
        self._waiting = record.empty_rows(CHUNK, spec)
        self._names: list[str] = []
        self._crcs = array.array("q")
        self._array_bytes = record.num_bytes(spec)
        self.num_bytes = 0

    def size(self, patch_id: str) -> int:
        """Bytes that one more record would take, without the format's own."""
        return self._array_bytes + len(patch_id.encode())

    def add(self, arrays: record.Arrays, patch_id: str) -> None:
        """Append one example that record.check_example has passed."""
        for key, values in arrays.items():
            self._waiting[key][len(self._names) % CHUNK] = values
        self._names.append(patch_id)
        self._crcs.append(record.record_crc(arrays, patch_id, self._spec))
        self.num_bytes += self.size(patch_id)
        if len(self._names) % CHUNK == 0:
            self._write()

    def _write(self) -> None:
        """Append the waiting chunk."""
        for key, tensor in record.features(self._spec):
            stored = self._waiting[key].astype(record.stored_type(tensor), copy=False)
            self._arrays[key].add(stored.tobytes())

    def close(self) -> Shard:
        """Finish the shard; it is on disk when this returns."""
        if used := len(self._names) % CHUNK:
            for values in self._waiting.values():
                values[used:] = 0
            self._write()
        data = [
            File(f"{self._name}/{key}/{_shard_file(tensor)}", *self._arrays[key].close())
            for key, tensor in record.features(self._spec)
        ]
        root = self._folder / self._name
        _write_metadata(root, self._spec, self._names)
        known = {file.name for file in data}
        names = sorted(str(p.relative_to(self._folder)) for p in root.rglob("*") if p.is_file())
        for name in set(names) - known:
            descriptor.sync(self._folder / name)
        small = [File.of(self._folder, name) for name in names if name not in known]
        return Shard((*data, *small), self._crcs)

    def abandon(self) -> None:
        """Close the files without counting them."""
        for writer in self._arrays.values():
            writer.abandon()


class _ArrayWriter:
    """The one file of one array: chunks, then their index."""

    def __init__(self, path: pathlib.Path) -> None:
        path.parent.mkdir(parents=True)
        self._file = path.open("xb")
        self._crc = self._size = 0
        self._index = array.array("Q")

    def _append(self, data: bytes) -> None:
        """Write the bytes and their CRC-32C: Zarr's crc32c codec."""
        data += struct.pack("<I", google_crc32c.value(data))
        self._file.write(data)
        self._crc = google_crc32c.extend(self._crc, data)
        self._size += len(data)

    def add(self, chunk: bytes) -> None:
        """Append one chunk."""
        self._index.extend((self._size, len(chunk) + CRC_BYTES))
        self._append(chunk)

    def close(self) -> tuple[int, int]:
        """Append the index; size and CRC of the file."""
        self._append(np.array(self._index, "<u8").tobytes())
        self._file.flush()
        descriptor.sync(pathlib.Path(self._file.name))
        self._file.close()
        return self._size, self._crc

    def abandon(self) -> None:
        """Close the file without what still waits in its buffer."""
        # Again what made us abandon it, for instance a full disk.
        with contextlib.suppress(OSError):
            self._file.close()


def _shard_file(tensor: TensorSpec) -> str:
    """Where Zarr looks for the first chunk of an array: here the only one."""
    return "/".join(["c", "0", *("0" for _ in tensor.shape)])


def _write_metadata(root: pathlib.Path, spec: DatasetSpec, names: Sequence[str]) -> None:
    """What zarr-python writes around the data: zarr.json of each node, and the patch ids."""
    import zarr
    from zarr.codecs import BytesCodec, Crc32cCodec

    about: dict[str, Any] = {"task": spec.task, "spec": spec.to_json()}
    group = zarr.open_group(str(root), mode="a", zarr_format=3, attributes=about)
    for key, tensor in record.features(spec):
        chunks = -(-len(names) // CHUNK)
        group.create_array(
            key,
            shape=(len(names), *tensor.shape),
            chunks=(CHUNK, *tensor.shape),
            shards=(chunks * CHUNK, *tensor.shape),
            dtype=record.stored_type(tensor),
            filters=None,
            serializer=BytesCodec(endian="little"),
            compressors=[Crc32cCodec()],
            dimension_names=("patch", *_axes(key, tensor)),
            attributes={
                "bands": list(tensor.bands),
                "gsd": tensor.gsd,
                "scale": tensor.scale,
                "unit": tensor.unit,
            },
        )
    ids = group.create_array(
        "patch_id", shape=(len(names),), chunks=(len(names),), dtype=str, compressors=None
    )
    ids[:] = np.array(names, object)


def _axes(key: str, tensor: TensorSpec) -> tuple[str | None, ...]:
    """Names of a record's axes: (y_gsd10, x_gsd10, band_gsd10) for pixels of inputs/gsd10.

    Of its own for each array: xarray takes axes of one name for one axis.
    """
    names = [f"{axis}_{key.split('/', 1)[1]}" for axis in ("y", "x", "band")]
    unnamed = [None] * (len(tensor.shape) - 3)
    return (*unnamed, *names[-len(tensor.shape) :])


class Reader(LocatedReader):
    """The shards of one split. Safe to share between threads and across fork."""

    def __init__(self, folder: pathlib.Path, spec: DatasetSpec, shards: Sequence[Shard]) -> None:
        """Opens nothing yet."""
        super().__init__(folder, spec, shards, locate)


def locate(folder: pathlib.Path, spec: DatasetSpec, shard: Shard) -> Located:
    """Where the records of a shard lie.

    Raises:
        DataError: a file is missing, damaged, or not of the spec.
    """
    root = folder / shard.name
    data = {key: root / key / _shard_file(tensor) for key, tensor in record.features(spec)}
    files = {folder / file.name: file for file in shard.files}
    # Small, and under no checksum of their own.
    for path in files.keys() - set(data.values()):
        files[path].check_size(folder)
        files[path].check_crc(folder)
    columns = {}
    for key, tensor in record.features(spec):
        if data[key] not in files:
            raise DataError(f"{root}: no array {key}; expected {', '.join(data)}")
        records = _chunk_records(root / key / "zarr.json", tensor, shard.count)
        columns[key] = Column(data[key], records, _read_index(data[key], records, shard.count))
    return Located(columns, _read_names(root / "patch_id" / "c" / "0", shard.count))


def _chunk_records(path: pathlib.Path, tensor: TensorSpec, count: int) -> int:
    """Records a chunk, by an array's metadata."""
    try:
        values = json.loads(path.read_bytes())
        shape, dtype = values["shape"], values["data_type"]
        chunk = values["codecs"][0]["configuration"]["chunk_shape"]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path}: not the metadata of a sharded array: {error!r}") from None
    wanted = [count, *tensor.shape], np.dtype(tensor.dtype).name
    if (shape, dtype) != wanted:
        raise DataError(f"{path}: {dtype} {shape}, expected {wanted[1]} {wanted[0]}")
    return int(chunk[0])


def _read_index(path: pathlib.Path, records: int, count: int) -> NDArray[np.int64]:
    """First byte of each chunk, by the index at the end of a Zarr shard."""
    file = descriptor.Descriptor(path)
    size = -(-count // records) * 16
    start = file.num_bytes - size - CRC_BYTES
    data = file.read_all(max(start, 0), size + CRC_BYTES, str(path))
    (expected,) = struct.unpack("<I", data[size:])
    if start < 0 or (found := google_crc32c.value(data[:size])) != expected:
        raise DataError(f"{path}: CRC of the index {found:08x}, expected {expected:08x}")
    return np.frombuffer(data[:size], "<u8").reshape(-1, 2)[:, 0].astype(np.int64)


def _read_names(path: pathlib.Path, count: int) -> NDArray[np.bytes_]:
    """Patch ids in UTF-8: Zarr's vlen-utf8 codec (a count, then length and bytes of each)."""
    names, position = [], 4
    try:
        data = path.read_bytes()
        for _ in range(count):
            (length,) = struct.unpack_from("<I", data, position)
            names.append(data[position + 4 : position + 4 + length])
            position += 4 + length
    except (OSError, struct.error) as error:
        raise DataError(f"{path}: not {count} patch ids: {error}") from None
    return np.array(names, np.bytes_)
