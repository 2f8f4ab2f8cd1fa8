"""One example as a record: the order of its arrays, what is checked, and its checksum.

The same for every format, so that data sets of two formats can be compared record by record.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from data_pipelines import memory
from data_pipelines.spec import DataError, DatasetSpec, TensorSpec

# {"inputs": {name: (y, x, band)}, "targets": {...}, "patch_id": text}
Example = Mapping[str, Any]
# Arrays of one example, or of several along a new first axis, by feature key.
Arrays = Mapping[str, NDArray[Any]]

# Longest patch id in bytes: LMDB's longest key.
MAX_NAME = 511
# Whether arrays in memory have the bytes that files have.
LITTLE_ENDIAN = sys.byteorder == "little"


def features(spec: DatasetSpec) -> Iterator[tuple[str, TensorSpec]]:
    """Feature key ("inputs/gsd10", "targets/superres_20m") and spec of each array, in order."""
    for group, tensors in (("inputs", spec.inputs), ("targets", spec.targets)):
        for name, tensor in tensors.items():
            yield f"{group}/{name}", tensor


def stored_type(spec: TensorSpec) -> np.dtype[Any]:
    """The type on disk: little-endian on any machine."""
    return np.dtype(spec.dtype).newbyteorder("<")


def check_example(example: Example, spec: DatasetSpec) -> tuple[dict[str, NDArray[Any]], str]:
    """Arrays by feature key, and the patch id.

    Raises:
        DataError: the example is not of the spec; the message names the patch.
    """
    patch = _check_name(example.get("patch_id"))
    for group, tensors in (("inputs", spec.inputs), ("targets", spec.targets)):
        found = example.get(group, {})
        if set(found) != set(tensors):
            raise DataError(f"patch {patch}: {group} {sorted(found)}, expected {sorted(tensors)}")
    arrays = {}
    for key, tensor in features(spec):
        group, name = key.split("/", 1)
        value = np.asarray(example[group][name])
        if value.shape != tensor.shape or value.dtype != np.dtype(tensor.dtype):
            raise DataError(
                f"patch {patch}: {key} is {value.dtype} {value.shape}, "
                f"expected {tensor.dtype} {tensor.shape}"
            )
        arrays[key] = value
    return arrays, patch


def _check_name(name: Any) -> str:
    """A patch id that every format can hold: HDF5 pads its texts with NUL, LMDB's keys end."""
    expected = f"expected a text of 1 to {MAX_NAME} bytes in UTF-8, without NUL"
    if not isinstance(name, str) or not name or "\0" in name:
        raise DataError(f"patch_id {name!r}: {expected}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise DataError(f"patch_id {name!r}: {expected}") from None
    if size > MAX_NAME:
        raise DataError(f"patch_id {name!r} is {size} bytes: {expected}")
    return name


def num_bytes(spec: DatasetSpec) -> int:
    """Bytes of the arrays of one example."""
    return sum(tensor.num_bytes for _, tensor in features(spec))


def record_crc(arrays: Arrays, patch_id: str, spec: DatasetSpec) -> int:
    """CRC-32C of one example: its arrays' bytes (C order, little-endian) in order, then its id."""
    rows = {key: arrays[key][np.newaxis] for key, _ in features(spec)}
    return record_crcs(rows, [patch_id], spec)[0]


def record_crcs(rows: Arrays, names: Sequence[str], spec: DatasetSpec) -> list[int]:
    """record_crc of several examples, their arrays stacked along a first axis."""
    stored = [as_bytes(rows[key].astype(stored_type(t), copy=False)) for key, t in features(spec)]
    crcs = []
    for row, name in enumerate(names):
        crc = 0
        for values in stored:
            # Arrays as they are: bytes of each would be a copy.
            crc = google_crc32c.extend(crc, values[row])
        crcs.append(int(google_crc32c.extend(crc, name.encode())))
    return crcs


def as_bytes(rows: NDArray[Any]) -> NDArray[np.uint8]:
    """(record, byte) of arrays stacked along their first axis; a view where they are contiguous."""
    size = math.prod(rows.shape[1:]) * rows.itemsize
    return np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), size)


def runs(
    positions: NDArray[np.int64], counts: Sequence[int]
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """Positions in a split, grouped into records that lie one after the other in one shard.

    Args:
        positions: which records, in any order; some may come twice.
        counts: records of each shard.

    Yields:
        The shard, the rows of `positions` by ascending record, and the record in the shard of each.
    """
    if not positions.size:
        return
    first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    order = np.argsort(positions, kind="stable")
    ordered = positions[order]
    shards = np.searchsorted(first, ordered, side="right") - 1
    numbers = ordered - first[shards]
    breaks = np.flatnonzero((np.diff(ordered) > 1) | (np.diff(shards) > 0)) + 1
    for start, stop in itertools.pairwise([0, *breaks.tolist(), len(order)]):
        yield int(shards[start]), order[start:stop], numbers[start:stop]


def empty_rows(
    number: int, spec: DatasetSpec, keys: Collection[str] | None = None
) -> dict[str, NDArray[Any]]:
    """Arrays for that many examples, to be filled, by feature key: all of them, or `keys`."""
    return {
        key: memory.empty((number, *tensor.shape), tensor.dtype)
        for key, tensor in features(spec)
        if keys is None or key in keys
    }
