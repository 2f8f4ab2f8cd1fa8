"""One record of a TFRecord file: the frame with its CRCs, and the tf.train.Example inside.

No TensorFlow: its message classes are made here from their field numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import struct
from typing import Any

import google_crc32c
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory, text_format
from numpy.typing import NDArray

from data_pipelines.manifest import MANIFEST
from data_pipelines.record import MAX_NAME, Arrays, empty_rows, features, stored_type
from data_pipelines.spec import DataError, DatasetSpec

# Bytes around the data of a record: length (uint64) and its CRC (uint32); CRC of the data (uint32).
HEADER_BYTES, FOOTER_BYTES = 12, 4


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


def frame_bytes(head: bytes, where: str) -> int:
    """Size of the record that begins with these HEADER_BYTES or more.

    Raises:
        DataError: they are fewer, or damaged; begins with `where`.
    """
    if len(head) < HEADER_BYTES:
        raise DataError(f"{where}: truncated: {len(head)} bytes, expected {HEADER_BYTES}")
    length, length_crc = struct.unpack_from("<QI", head)
    if (found := masked_crc(head[:8])) != length_crc:
        raise DataError(f"{where}: CRC of length {found:08x}, expected {length_crc:08x}")
    return HEADER_BYTES + int(length) + FOOTER_BYTES


def unframe(record: memoryview, size: int, where: str) -> bytes:
    """The data of one record that should be `size` bytes long with its frame.

    The CRC of the data is not compared: store.py compares that of the example in it.

    Raises:
        DataError: it is cut short, or its length does not fit; begins with `where`.
    """
    if len(record) < max(size, HEADER_BYTES + FOOTER_BYTES):
        raise DataError(f"{where}: truncated: {len(record)} bytes, expected {size}")
    if (found := frame_bytes(bytes(record[:HEADER_BYTES]), where)) != size:
        raise DataError(f"{where}: a record of {found} bytes, expected {size} by {MANIFEST}")
    return bytes(record[HEADER_BYTES:-FOOTER_BYTES])


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


def encode(arrays: Arrays, patch_id: str, spec: DatasetSpec) -> bytes:
    """The tf.train.Example of one example that record.check_example has passed."""
    proto = example_class()()
    for key, tensor in features(spec):
        data = arrays[key].astype(stored_type(tensor), copy=False).tobytes()
        proto.features.feature[key].bytes_list.value.append(data)
    proto.features.feature["patch_id"].bytes_list.value.append(patch_id.encode())
    # Deterministic: the same examples give the same bytes, whatever order a map happens to have.
    return bytes(proto.SerializeToString(deterministic=True))


def decode(data: bytes, spec: DatasetSpec, where: str) -> tuple[dict[str, NDArray[Any]], str]:
    """Arrays (as stored, by feature key) and patch id of one tf.train.Example.

    Raises:
        DataError: it is not of the spec; begins with `where`.
    """
    raw = {}
    try:
        found = example_class().FromString(data).features.feature
        for key in [*(key for key, _ in features(spec)), "patch_id"]:
            values = found[key].bytes_list.value if key in found else []
            if len(values) != 1:
                raise DataError(f"feature {key} has {len(values)} byte values, expected 1")
            raw[key] = values[0]
        patch = raw["patch_id"].decode()
        arrays = {}
        for key, tensor in features(spec):
            dtype = stored_type(tensor)
            size = math.prod(tensor.shape) * dtype.itemsize
            if len(raw[key]) != size:
                raise DataError(f"{key} has {len(raw[key])} bytes, expected {size}")
            arrays[key] = np.frombuffer(raw[key], dtype).reshape(tensor.shape)
    except (message.DecodeError, ValueError) as error:
        raise DataError(f"{where}: not an example of {spec.task}: {error}") from None
    return arrays, patch


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the parts of a record lie in it, as `encode` and `frame` make it.

    Between arrays there are gaps: the frame, the keys and lengths of protobuf, the patch id. All
    records of one spec whose patch ids are of one length are alike in all of it but the patch id
    and the CRC at their end, so that arrays can be read without a parser.
    """

    keys: tuple[str, ...]
    """Feature keys in the order of the file."""
    gaps: tuple[int, ...]
    """Bytes before each array, and behind the last one."""
    before: bytes
    """What the gaps, joined, hold before the patch id."""
    behind: bytes
    """What they hold behind it, before the CRC."""
    num_bytes: int
    """Size of the gaps together."""

    def find_name(self, gaps: bytearray, start: int) -> bytes | None:
        """The patch id of a record whose gaps begin at `start`; None where they are not these."""
        begin = start + len(self.before)
        stop = start + self.num_bytes - FOOTER_BYTES
        end = stop - len(self.behind)
        if gaps[start:begin] != self.before or gaps[end:stop] != self.behind:
            return None
        return bytes(gaps[begin:end])

    def find_start(self, key: str, spec: DatasetSpec) -> int:
        """First byte of an array, counted from the record's."""
        number, sizes = self.keys.index(key), dict(features(spec))
        before = sum(sizes[other].num_bytes for other in self.keys[:number])
        return before + sum(self.gaps[: number + 1])


def find_layout(num_bytes: int, spec: DatasetSpec) -> Layout | None:
    """The layout of records of that many bytes with their frame; None where `encode` makes none."""
    # A longer name may also take a byte more for each of the lengths around it.
    longest = num_bytes - len(_sample(spec, "a")) + 1
    for length in range(longest, max(longest - 8, 0), -1):
        if length <= MAX_NAME and len(_sample(spec, "a" * length)) == num_bytes:
            return _build_layout(spec, length)
    return None


def _sample(spec: DatasetSpec, name: str, full: str = "") -> bytes:
    """A record of zeros; the array of key `full` of ones in every bit."""
    arrays = {key: values[0] for key, values in empty_rows(1, spec).items()}
    for key, values in arrays.items():
        values.view(np.uint8)[...] = 255 if key == full else 0
    return frame(encode(arrays, name, spec))


def _build_layout(spec: DatasetSpec, length: int) -> Layout:
    """See where records differ when one part of them does."""
    plain = _sample(spec, "a" * length)
    zeros = np.frombuffer(plain, np.uint8)[:-FOOTER_BYTES]
    starts = {}
    for key, tensor in features(spec):
        ones = np.frombuffer(_sample(spec, "a" * length, key), np.uint8)[:-FOOTER_BYTES]
        starts[key] = int(np.flatnonzero(zeros != ones)[0]), tensor.num_bytes
    other = np.frombuffer(_sample(spec, "b" * length), np.uint8)[:-FOOTER_BYTES]
    name = int(np.flatnonzero(zeros != other)[0])
    gaps, fixed, position, before = [], b"", 0, 0
    keys = sorted(starts, key=lambda key: starts[key])
    for start, size in [*(starts[key] for key in keys), (len(plain), 0)]:
        if position <= name < start:
            before = len(fixed) + name - position
        gaps.append(start - position)
        fixed += plain[position:start]
        position = start + size
    behind = fixed[before + length : -FOOTER_BYTES]
    return Layout(tuple(keys), tuple(gaps), fixed[:before], behind, len(fixed))
