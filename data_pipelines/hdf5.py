"""HDF5 shards under the keys of the classification paper, and one virtual file a split over them.

Ordinary HDF5 files (1.10 and later), uncompressed: data_10m, data_20m, data_60m, data_super (12
bands at 10 m), classes, patch_id; bands, units and the spec as attributes. `train.h5` beside the
shards shows them as one file to any program. Our reader asks the library where the chunks lie and
reads them itself, in every rank of an MPI program too. One file by HDF5's MPI driver: hdf5_joined.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import descriptor, record
from data_pipelines.located import Column, Located, LocatedReader
from data_pipelines.manifest import File, Shard
from data_pipelines.spec import DataError, DatasetSpec, TensorSpec

SUFFIX = ".h5"
# The paper's keys: Algorithm 1 and section 3 of the classification paper. Others are prefixed.
KEYS = {
    "inputs/bands": "data_super",
    "inputs/gsd10": "data_10m",
    "inputs/gsd20": "data_20m",
    "inputs/gsd60": "data_60m",
    "targets/labels": "classes",
}
PREFIXES = {"inputs": "input_", "targets": "target_"}
# Records a chunk.
CHUNK = 16
# The first version whose metadata, chunk index included, are all under checksums, so that the
# library finds damage in them instead of following it.
VERSION = ("v110", "v110")


def dataset_name(key: str) -> str:
    """Name in the file of a feature key: "inputs/gsd10" is data_10m."""
    group, name = key.split("/", 1)
    return KEYS.get(key) or PREFIXES[group] + name


class ShardWriter:
    """One shard, written 16 records at a time."""

    def __init__(self, folder: pathlib.Path, stem: str, spec: DatasetSpec) -> None:
        """Open `stem`.h5, which must not exist."""
        import h5py

        self._folder, self._name, self._spec = folder, stem + SUFFIX, spec
        self._names: list[bytes] = []
        self._crcs: list[int] = []
        self._waiting: dict[str, NDArray[Any]] = record.empty_rows(CHUNK, spec)
        self._array_bytes = record.num_bytes(spec)
        self.num_bytes = 0
        self._file = h5py.File(folder / self._name, "x", libver=VERSION, rdcc_nbytes=0)
        for key, tensor in record.features(spec):
            dataset = self._file.create_dataset(
                dataset_name(key),
                shape=(0, *tensor.shape),
                maxshape=(None, *tensor.shape),
                chunks=(CHUNK, *tensor.shape),
                dtype=record.stored_type(tensor),
            )
            describe(dataset, tensor)
        describe_file(self._file, spec)

    def size(self, patch_id: str) -> int:
        """Bytes that one more record would take, without the format's own."""
        return self._array_bytes + len(patch_id.encode())

    def add(self, arrays: record.Arrays, patch_id: str) -> None:
        """Append one example that record.check_example has passed."""
        for key, values in arrays.items():
            self._waiting[key][len(self._names) % CHUNK] = values
        self._names.append(patch_id.encode())
        self._crcs.append(record.record_crc(arrays, patch_id, self._spec))
        self.num_bytes += self.size(patch_id)
        if len(self._names) % CHUNK == 0:
            self._write()

    def _write(self) -> None:
        """Append the waiting records."""
        end = len(self._names)
        start = (end - 1) // CHUNK * CHUNK
        for key, values in self._waiting.items():
            dataset = self._file[dataset_name(key)]
            dataset.resize(end, axis=0)
            dataset[start:end] = values[: end - start]

    def close(self) -> Shard:
        """Finish the shard; it is on disk when this returns."""
        import h5py

        if len(self._names) % CHUNK:
            self._write()
        text = h5py.string_dtype(length=max(map(len, self._names), default=1))
        self._file["patch_id"] = np.array(self._names, text)
        self._file.close()
        descriptor.sync(self._folder / self._name)
        return Shard((File.of(self._folder, self._name),), self._crcs)

    def abandon(self) -> None:
        """Close the file without counting it."""
        # Again what made us abandon it, for instance a full disk.
        with contextlib.suppress(OSError, RuntimeError):
            self._file.close()


class Reader(LocatedReader):
    """The shards of one split. Safe to share between threads and across fork."""

    def __init__(self, folder: pathlib.Path, spec: DatasetSpec, shards: Sequence[Shard]) -> None:
        """Opens nothing yet."""
        super().__init__(folder, spec, shards, locate)


def locate(folder: pathlib.Path, spec: DatasetSpec, shard: Shard) -> Located:
    """Where the records of a shard lie; the file is closed again.

    Raises:
        DataError: unreadable, damaged, or not of the spec.
    """
    import h5py

    path = folder / shard.files[0].name
    try:
        with h5py.File(path, "r") as file:
            columns = {
                key: _locate_array(path, file[dataset_name(key)], tensor, shard.count)
                for key, tensor in record.features(spec)
            }
            names = file["patch_id"][()]
    except DataError:
        raise
    # What h5py raises depends on where the library stopped.
    except (OSError, LookupError, RuntimeError, ValueError, TypeError, ArithmeticError) as error:
        raise DataError(f"{path}: not readable as HDF5: {error}") from None
    if names.shape != (shard.count,) or names.dtype.kind != "S":
        raise DataError(f"{path}: patch_id is {names.dtype} {names.shape}")
    return Located(columns, names)


def _locate_array(path: pathlib.Path, dataset: Any, tensor: TensorSpec, count: int) -> Column:
    """The places of one dataset's chunks."""
    shape, dtype = (count, *tensor.shape), record.stored_type(tensor)
    if dataset.shape != shape or dataset.dtype != dtype:
        raise DataError(
            f"{path}: {dataset.name} is {dataset.dtype} {dataset.shape}, expected {dtype} {shape}"
        )
    records = dataset.chunks[0] if dataset.chunks else 0
    if dataset.chunks != (records, *tensor.shape) or dataset.id.get_create_plist().get_nfilters():
        raise DataError(
            f"{path}: {dataset.name} has chunks {dataset.chunks}, {dataset.compression}; "
            "expected whole records without compression"
        )
    chunks = np.full(-(-count // records), -1, np.int64)

    def found(info: Any) -> None:
        chunks[info.chunk_offset[0] // records] = info.byte_offset

    dataset.id.chunk_iter(found)
    return Column(path, records, chunks)


def write_extra(
    folder: pathlib.Path, spec: DatasetSpec, splits: Mapping[str, Sequence[Shard]]
) -> tuple[File, ...]:
    """Write `<split>.h5`: all shards of a split as one file, which holds no pixels itself."""
    extra = []
    for split, shards in splits.items():
        if shards:
            name = split + SUFFIX
            _write_master(folder, name, spec, [shard.files[0].name for shard in shards])
            descriptor.sync(folder / name)
            extra.append(File.of(folder, name))
    return tuple(extra)


def _write_master(
    folder: pathlib.Path, name: str, spec: DatasetSpec, shards: Sequence[str]
) -> None:
    """One file of virtual datasets over the shards beside it."""
    import h5py

    parts, width = [], 1
    for shard in shards:
        with h5py.File(folder / shard, "r") as file:
            parts.append((shard, len(file["patch_id"])))
            width = max(width, file["patch_id"].dtype.itemsize)
    with h5py.File(folder / name, "x", libver=VERSION) as file:
        for key, tensor in record.features(spec):
            dtype = record.stored_type(tensor)
            describe(_add_virtual(file, dataset_name(key), tensor.shape, dtype, parts), tensor)
        _add_virtual(file, "patch_id", (), h5py.string_dtype(length=width), parts)
        describe_file(file, spec)


def _add_virtual(
    file: Any,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    parts: Sequence[tuple[str, int]],
) -> Any:
    """A dataset that is the one of that name in the files `parts`, (file, records), joined."""
    from h5py import h5d, h5p, h5s, h5t

    # h5py.VirtualLayout does the same, but notes the time: the same records would give other bytes.
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)
    whole = (sum(count for _, count in parts), *shape)
    start = 0
    for shard, count in parts:
        target = h5s.create_simple(whole)
        target.select_hyperslab((start, *(0 for _ in shape)), (count, *shape))
        # Named without a folder: HDF5 looks for it beside this file.
        source = h5s.create_simple((count, *shape))
        properties.set_virtual(target, shard.encode(), name.encode(), source)
        start += count
    stored = h5t.py_create(dtype, logical=True)
    h5d.create(file.id, name.encode(), stored, h5s.create_simple(whole), properties)
    return file[name]


def describe(dataset: Any, tensor: TensorSpec) -> None:
    """Attributes of one array."""
    dataset.attrs["bands"] = list(tensor.bands)
    dataset.attrs["gsd"] = tensor.gsd
    dataset.attrs["scale"] = tensor.scale
    dataset.attrs["unit"] = tensor.unit


def describe_file(file: Any, spec: DatasetSpec) -> None:
    """Attributes of the file: what a program needs that does not read our manifest."""
    file.attrs["task"] = spec.task
    file.attrs["spec"] = json.dumps(spec.to_json())
