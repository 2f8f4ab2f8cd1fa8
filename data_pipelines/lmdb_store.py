"""LMDB shards in the community's layout (rico-hdl): key patch id, value safetensors.

Tasks "patches" and "bigearthnet" hold each band as a 2-D tensor under its name ("B02"), so that a
BigEarthNet written here is read wherever rico-hdl's is; other arrays stand under their feature key
("targets/labels").

Written by liblmdb, which any program may read them with. Ours does not: it reads each value at the
byte that the manifest gives for it. liblmdb follows damaged pages out of the file (a flipped byte
in its tree ended the process with SIGBUS in 12 of 600 trials, and raised an error in 35),
and lets a process open an environment once only.
"""

from __future__ import annotations

import array
import contextlib
import functools
import json
import mmap
import pathlib
import shutil
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import descriptor, record
from data_pipelines.descriptor import MAX_OPEN, Descriptor
from data_pipelines.manifest import MANIFEST, File, Shard
from data_pipelines.names import Names
from data_pipelines.spec import DataError, DatasetSpec, TensorSpec

SUFFIX = ".lmdb"
# Tasks whose inputs are stored band by band.
BY_BAND = ("patches", "bigearthnet")
DATA = "data.mdb"
# Bytes of records a transaction: what a writer holds in memory, and LMDB once more.
TRANSACTION_BYTES = 2**20
# LMDB's map at first; doubled whenever it is full.
MAP_BYTES = 16 * 2**20
# safetensors: bytes before the header, which give its length, and its names of types.
LENGTH_BYTES = 8
TYPES = {
    "BOOL": "?",
    **{f"I{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
}


def tensor_names(spec: DatasetSpec) -> dict[str, tuple[str, ...]]:
    """Tensors of a value, by feature key: one a band for the inputs of patches, else the key."""
    bands = [band for tensor in spec.inputs.values() for band in tensor.bands]
    images = all(len(tensor.shape) == 3 for tensor in spec.inputs.values())
    by_band = spec.task in BY_BAND and images and len(set(bands)) == len(bands)
    return {
        key: tensor.bands if by_band and key.startswith("inputs/") else (key,)
        for key, tensor in record.features(spec)
    }


def encode(arrays: record.Arrays, spec: DatasetSpec) -> bytes:
    """The value of one example."""
    import safetensors.numpy

    tensors: dict[str, NDArray[Any]] = {}
    for key, names in tensor_names(spec).items():
        values = arrays[key]
        parts = [values] if names == (key,) else np.moveaxis(values, -1, 0)
        tensors |= {n: np.ascontiguousarray(v) for n, v in zip(names, parts, strict=True)}
    return bytes(safetensors.numpy.save(tensors))


class ShardWriter:
    """One shard, written some MB a transaction."""

    def __init__(self, folder: pathlib.Path, stem: str, spec: DatasetSpec) -> None:
        """Make the folder `stem`.lmdb, which must not exist."""
        import lmdb

        self._folder, self._name, self._spec = folder, stem + SUFFIX, spec
        # Begins with the shard's name, so that who removes a broken-off shard finds it.
        self._growing = folder / f"{stem}.growing"
        shutil.rmtree(self._growing, ignore_errors=True)
        (folder / self._name).mkdir()
        with _as_data_error(self._growing):
            # Nothing of this survives a crash, so nothing of it need be synced or locked.
            self._environment = lmdb.open(
                str(self._growing), map_size=MAP_BYTES, sync=False, metasync=False, lock=False
            )
        self._waiting: dict[bytes, bytes] = {}
        self._waiting_bytes = 0
        self._keys = Names()
        self._crcs = array.array("q")
        self._array_bytes = record.num_bytes(spec)
        self.num_bytes = 0

    def size(self, patch_id: str) -> int:
        """Bytes that one more record would take, without the format's own."""
        return self._array_bytes + len(patch_id.encode())

    def add(self, arrays: record.Arrays, patch_id: str) -> None:
        """Append one example that record.check_example has passed.

        Raises:
            DataError: the shard holds a patch of that id; or writing failed.
        """
        key, value = patch_id.encode(), encode(arrays, self._spec)
        if key in self._waiting:
            self._refuse(patch_id)
        self._waiting[key] = value
        self._waiting_bytes += len(value)
        self._keys.append(patch_id)
        self._crcs.append(record.record_crc(arrays, patch_id, self._spec))
        self.num_bytes += self.size(patch_id)
        if self._waiting_bytes >= TRANSACTION_BYTES:
            self._write()

    def _refuse(self, patch_id: str) -> None:
        raise DataError(f"patch {patch_id}: comes twice; LMDB keeps one value a patch id")

    def _write(self) -> None:
        """Write the waiting records in one transaction."""
        import lmdb

        while self._waiting:
            with _as_data_error(self._growing):
                try:
                    with self._environment.begin(write=True) as transaction:
                        for key, value in self._waiting.items():
                            if not transaction.put(key, value, overwrite=False):
                                self._refuse(key.decode())
                    self._waiting, self._waiting_bytes = {}, 0
                except lmdb.MapFullError:
                    self._environment.set_mapsize(2 * self._environment.info()["map_size"])

    def close(self) -> Shard:
        """Finish the shard; it is on disk when this returns."""
        self._write()
        path = self._folder / self._name / DATA
        with _as_data_error(path):
            # Without the pages that transactions left free: the same records give the same bytes.
            with path.open("xb") as file:
                self._environment.copyfd(file.fileno(), compact=True)
            offsets = self._find_values(path)
        self.abandon()
        descriptor.sync(path)
        found = File.of(self._folder, f"{self._name}/{DATA}")
        return Shard((found,), self._crcs, offsets, self._keys)

    def _find_values(self, path: pathlib.Path) -> tuple[int, ...]:
        """First byte of each record's value in the finished file, in the order of writing.

        A compact copy has the values in the order of the keys, so each is found right behind the
        one before; and what is found there is the value, whatever LMDB does one day.
        """
        places, start = {}, 0
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
            self._environment.begin() as transaction,
        ):
            for key, value in transaction.cursor():
                place = data.find(value, start)
                if place < 0:
                    raise DataError(f"{path}: the value of {key.decode()} is not in one piece")
                places[key.decode()] = place
                # Small values share a page, which fills from its end.
                large = len(value) > mmap.PAGESIZE
                start = place + len(value) if large else max(place - mmap.PAGESIZE, 0)
        return tuple(places[key] for key in self._keys)

    def abandon(self) -> None:
        """Close and remove the working copy."""
        self._environment.close()
        shutil.rmtree(self._growing, ignore_errors=True)


class Reader:
    """The shards of one split. Safe to share between threads and across fork."""

    def __init__(self, folder: pathlib.Path, spec: DatasetSpec, shards: Sequence[Shard]) -> None:
        """Opens nothing yet.

        Raises:
            DataError: a shard without the keys or offsets of its records.
        """
        for shard in shards:
            if not len(shard.offsets) == len(shard.keys) == shard.count:
                raise DataError(
                    f"{folder / shard.name}: {MANIFEST} lacks keys or offsets of its records"
                )
        self._spec, self._shards = spec, shards
        self._paths = [folder / shard.files[0].name for shard in shards]
        self._counts = [shard.count for shard in shards]
        # An evicted descriptor closes when its last reader lets go of it.
        self._open = functools.lru_cache(MAX_OPEN)(Descriptor)
        self._layout = functools.lru_cache(MAX_OPEN)(
            lambda number: _read_layout(folder, spec, shards[number])
        )

    def read(self, positions: NDArray[np.int64]) -> tuple[dict[str, NDArray[Any]], list[str]]:
        """Arrays by feature key, stacked in the order asked for, and patch ids."""
        rows = record.empty_rows(len(positions), self._spec)
        names = [""] * len(positions)
        for number, run, numbers in record.runs(positions, self._counts):
            shard, path = self._shards[number], self._paths[number]
            layout, file = self._layout(number), self._open(path)
            for row, entry in zip(run.tolist(), numbers.tolist(), strict=True):
                where = f"{path}, record {entry}"
                data = file.read_all(shard.offsets[entry], layout.num_bytes, where)
                layout.decode(data, rows, row, where)
                names[row] = shard.keys[entry]
        return rows, names

    def read_some(
        self, positions: NDArray[np.int64], keys: Collection[str]
    ) -> dict[str, NDArray[Any]]:
        """Some arrays, stacked in the order asked for; nothing else is read."""
        rows = record.empty_rows(len(positions), self._spec, keys)
        for number, run, numbers in record.runs(positions, self._counts):
            shard, path = self._shards[number], self._paths[number]
            layout, file = self._layout(number), self._open(path)
            for row, entry in zip(run.tolist(), numbers.tolist(), strict=True):
                layout.read_some(file, shard.offsets[entry], rows, row, f"{path}, record {entry}")
        return rows


class _Layout:
    """Where the arrays of an example lie in a value; alike in all values of a shard."""

    def __init__(self, head: bytes, spec: DatasetSpec, where: str) -> None:
        """Read the head of a value: the length of safetensors' header, and the header.

        Raises:
            DataError: it is not of the spec.
        """
        self._head = head
        # (feature key, band of it or all of it, type, shape, first byte)
        self._parts: list[tuple[str, int | slice, np.dtype[Any], tuple[int, ...], int]] = []
        try:
            header = json.loads(head[LENGTH_BYTES:])
            tensors = dict(record.features(spec))
            for key, names in tensor_names(spec).items():
                for band, name in enumerate(names):
                    self._add(header, key, name, band if names != (key,) else None, tensors[key])
            self.num_bytes = len(head) + max(int(v["data_offsets"][1]) for v in header.values())
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise DataError(f"{where}: not safetensors of {spec.task}: {error!r}") from None

    def _add(self, header: Any, key: str, name: str, band: int | None, tensor: TensorSpec) -> None:
        """Note the place of one tensor."""
        found = header[name]
        dtype, shape = np.dtype(TYPES[found["dtype"]]), tuple(found["shape"])
        wanted = tensor.shape if band is None else tensor.shape[:-1]
        if dtype != record.stored_type(tensor) or shape != wanted:
            raise ValueError(f"{name} is {dtype} {shape}, expected {tensor.dtype} {wanted}")
        start, end = map(int, found["data_offsets"])
        if start < 0 or end - start != dtype.itemsize * int(np.prod(shape)):
            raise ValueError(f"{name} lies from byte {start} to {end}")
        start += len(self._head)
        self._parts.append((key, slice(None) if band is None else band, dtype, shape, start))

    def read_some(
        self,
        file: Descriptor,
        offset: int,
        rows: dict[str, NDArray[Any]],
        row: int,
        where: str,
    ) -> None:
        """Put the arrays that `rows` has, of the value at `offset`, into rows[key][row]."""
        for key, band, dtype, shape, start in self._parts:
            if key in rows:
                size = dtype.itemsize * int(np.prod(shape))
                values = np.frombuffer(file.read_all(offset + start, size, where), dtype)
                rows[key][row][..., band] = values.reshape(shape)

    def decode(self, data: bytes, rows: dict[str, NDArray[Any]], row: int, where: str) -> None:
        """Put the arrays of one value into rows[key][row].

        Raises:
            DataError: it begins otherwise than the first of its shard.
        """
        if not data.startswith(self._head):
            raise DataError(f"{where}: damaged: not the header of safetensors expected")
        for key, band, dtype, shape, start in self._parts:
            values = np.frombuffer(data, dtype, int(np.prod(shape)), start)
            rows[key][row][..., band] = values.reshape(shape)


def _read_layout(folder: pathlib.Path, spec: DatasetSpec, shard: Shard) -> _Layout:
    """Where the arrays lie in the values of a shard, by the header of its first."""
    path = folder / shard.files[0].name
    where, file, start = f"{path}, record 0", Descriptor(path), shard.offsets[0]
    length = int.from_bytes(file.read_all(start, LENGTH_BYTES, where), "little")
    if length > file.num_bytes:
        raise DataError(f"{where}: damaged: a header of {length} bytes")
    return _Layout(file.read_all(start, LENGTH_BYTES + length, where), spec, where)


@contextlib.contextmanager
def _as_data_error(path: pathlib.Path) -> Iterator[None]:
    """Turn liblmdb's errors into ours."""
    import lmdb

    try:
        yield
    except lmdb.Error as error:
        raise DataError(f"{path}: cannot be written: {error}") from error
