"""manifest.json: what a data-set folder holds, under a checksum; and how such a folder comes to be.

The same for every format. A data set is a folder of shards of one format beside its manifest,
which adds what formats lack: the spec, counts, checksums, and where each record begins.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np

from data_pipelines import files
from data_pipelines.names import Names
from data_pipelines.spec import DataError, DatasetSpec

MANIFEST = "manifest.json"
VERSION = 2

Path = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class File:
    """One file of a data set."""

    name: str
    """Path inside the folder, with "/"."""
    num_bytes: int
    """Its size."""
    crc32c: int
    """CRC-32C (Castagnoli, not masked) of the whole of it."""

    def __post_init__(self) -> None:
        """Refuse a file that lies outside its folder."""
        path = pathlib.PurePosixPath(self.name)
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise DataError(f"file {self.name!r} must lie inside the folder of the data set")

    def to_json(self) -> dict[str, Any]:
        """Plain types, for the manifest."""
        return {"file": self.name, "bytes": self.num_bytes, "crc32c": f"{self.crc32c:08x}"}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> File:
        """The inverse of to_json."""
        return cls(str(values["file"]), int(values["bytes"]), int(values["crc32c"], 16))

    @classmethod
    def of(cls, folder: Path, name: str) -> File:
        """The file as it is now; reads the whole of it."""
        path, crc, size = pathlib.Path(folder) / name, 0, 0
        with path.open("rb") as file:
            while piece := file.read(2**20):
                crc = google_crc32c.extend(crc, piece)
                size += len(piece)
        return cls(name, size, crc)

    def check_size(self, folder: Path) -> None:
        """Whether it is there and of its size.

        Raises:
            DataError: it is not; the message names the file.
        """
        path = pathlib.Path(folder) / self.name
        if not path.is_file():
            raise DataError(f"{path}: not found; {MANIFEST} lists it")
        found = path.stat().st_size
        if found != self.num_bytes:
            raise DataError(f"{path}: {found} bytes, expected {self.num_bytes} by {MANIFEST}")

    def check_crc(self, folder: Path) -> None:
        """Read the whole of it and compare.

        Raises:
            DataError: its CRC is another.
        """
        found = File.of(folder, self.name).crc32c
        if found != self.crc32c:
            path = pathlib.Path(folder) / self.name
            raise DataError(f"{path}: file CRC {found:08x}, expected {self.crc32c:08x}")


@dataclasses.dataclass(frozen=True)
class Shard:
    """Records that were written together: one file, or in Zarr a folder of them."""

    files: tuple[File, ...]
    """What it consists of, the main one first."""
    crcs: Sequence[int]
    """record.record_crc of each record; kept as an array of 4 bytes each."""
    offsets: Sequence[int] = ()
    """First byte of each record in the first file; TFRecord and LMDB. An array of 8 bytes each."""
    keys: Names = dataclasses.field(default_factory=Names)
    """Key of each record; LMDB only, whose file has them sorted."""

    def __post_init__(self) -> None:
        """Refuse a shard that contradicts itself."""
        if not self.files:
            raise DataError("a shard without a file")
        for name, values in (("offsets", self.offsets), ("keys", self.keys)):
            if values and len(values) != len(self.crcs):
                raise DataError(f"{self.name}: {len(values)} {name} for {len(self.crcs)} records")
        # A data set may have millions of records: a Python object for each would be felt.
        object.__setattr__(self, "crcs", array.array("I", self.crcs))
        object.__setattr__(self, "offsets", array.array("q", self.offsets))
        size = self.files[0].num_bytes
        if self.offsets and not 0 <= min(self.offsets) <= max(self.offsets) < size:
            raise DataError(f"{self.name}: an offset outside its {size} bytes")

    @property
    def name(self) -> str:
        """First part of its files' paths: what stands in the folder."""
        return pathlib.PurePosixPath(self.files[0].name).parts[0]

    @property
    def count(self) -> int:
        """Number of records."""
        return len(self.crcs)

    def to_json(self) -> dict[str, Any]:
        """Plain types, for the manifest; numbers as hexadecimal digits, see to_hex."""
        values: dict[str, Any] = {
            "files": [file.to_json() for file in self.files],
            "count": self.count,
            "crc32c": to_hex(self.crcs, 4),
        }
        if self.offsets:
            values["offsets"] = to_hex(self.offsets, 8)
        return {**values, "keys": self.keys.to_text()} if self.keys else values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Shard:
        """The inverse of to_json."""
        keys = values.get("keys", "")
        shard = cls(
            tuple(map(File.from_json, values["files"])),
            from_hex(values["crc32c"], 4),
            from_hex(values.get("offsets", ""), 8),
            # At first they were a list.
            Names.from_text(keys) if isinstance(keys, str) else Names(map(str, keys)),
        )
        if shard.count != values["count"]:
            raise DataError(f"{shard.name}: {shard.count} checksums, count {values['count']}")
        return shard


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a folder holds."""

    format: str
    """Name of the format: "tfrecord", "hdf5", "zarr", "lmdb"."""
    spec: DatasetSpec
    """What each example holds."""
    splits: Mapping[str, tuple[Shard, ...]]
    """Shards of each split in the order of their records; a split may have none."""
    provenance: Mapping[str, Any]
    """Where the pixels came from and how they were cut; free, for people."""
    extra: tuple[File, ...] = ()
    """Files for other readers, which ours do not open: HDF5's virtual master."""

    def num_examples(self, split: str) -> int:
        """Number of examples of one split."""
        return sum(shard.count for shard in self.splits[split])

    def check_files(self, folder: Path, split: str) -> tuple[Shard, ...]:
        """The shards of a split, whose files are all there and of their sizes.

        Raises:
            DataError: there is no such split, a file is missing, or it is of another size.
        """
        if split not in self.splits:
            path = pathlib.Path(folder) / MANIFEST
            raise DataError(
                f"{path}: no split {split!r}; it has {', '.join(self.splits) or 'none'}"
            )
        for shard in self.splits[split]:
            for file in shard.files:
                file.check_size(folder)
        return self.splits[split]


def to_hex(numbers: Sequence[int], num_bytes: int) -> str:
    """Numbers as one text of hexadecimal digits, 2 a byte, the highest first, without gaps."""
    return np.asarray(numbers, f">u{num_bytes}").tobytes().hex()


def from_hex(text: str, num_bytes: int) -> Sequence[int]:
    """The inverse of to_hex; raises ValueError or TypeError for anything else."""
    numbers: list[int] = np.frombuffer(bytes.fromhex(text), f">u{num_bytes}").tolist()
    return numbers


def read(folder: Path, formats: Collection[str]) -> Manifest:
    """The manifest of a data set folder of one of these formats.

    Raises:
        DataError: it is missing, damaged, or of another format or version.
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
    if not isinstance(values, dict) or values.get("format") not in formats:
        found = values.get("format") if isinstance(values, dict) else values
        raise DataError(f"{path}: format {found!r}; expected one of {', '.join(formats)}")
    if values.get("version") != VERSION:
        raise DataError(f"{path}: version {values.get('version')!r}, expected {VERSION}")
    found, expected = values.pop("crc32c", None), checksum(values)
    if found != expected:
        raise DataError(f"{path}: damaged or edited: checksum {found!r}, expected {expected!r}")
    try:
        shards = {
            split: tuple(map(Shard.from_json, group)) for split, group in values["splits"].items()
        }
        spec = DatasetSpec.from_json(values["spec"])
        extra = tuple(map(File.from_json, values["extra"]))
        return Manifest(values["format"], spec, shards, dict(values["provenance"]), extra)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{path}: not a manifest of version {VERSION}: {error!r}") from None


def write(folder: pathlib.Path, manifest: Manifest) -> None:
    """Write manifest.json, on disk when this returns."""
    values: dict[str, Any] = {
        "format": manifest.format,
        "version": VERSION,
        "spec": manifest.spec.to_json(),
        "splits": {
            split: [s.to_json() for s in shards] for split, shards in manifest.splits.items()
        },
        "extra": [file.to_json() for file in manifest.extra],
        "provenance": manifest.provenance,
    }
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        file.writelines(_encode({**values, "crc32c": checksum(values)}))
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def _encode(values: Mapping[str, Any]) -> Iterator[str]:
    """JSON in pieces, for the whole is megabytes; indented, but shapes on one line."""
    numbers = ""
    for piece in json.JSONEncoder(indent=2).iterencode(values):
        if not numbers and not re.match(r"\[\n\s*\d", piece):
            yield piece
            continue
        numbers += piece
        if piece == "]":
            # A JSON string has no raw newline, so the pattern finds lists only.
            yield re.sub(r"\[\n[\d,\s]+\]", lambda found: " ".join(found[0].split()), numbers)
            numbers = ""


def checksum(values: Mapping[str, Any]) -> str:
    """CRC-32C of a manifest's content, whatever its layout."""
    crc = 0
    for piece in json.JSONEncoder(sort_keys=True, separators=(",", ":")).iterencode(values):
        crc = google_crc32c.extend(crc, piece.encode())
    return f"{crc:08x}"


@contextlib.contextmanager
def new_folder(target: pathlib.Path, overwrite: bool) -> Iterator[pathlib.Path]:
    """An empty folder to write a data set into; it takes the place of `target` at the end.

    Raises:
        DataError: `target` exists, and is not a data set that may be overwritten; or the folder
            around it is not to be written to.
    """
    check_target(target, overwrite)
    with contextlib.ExitStack() as stack:
        try:
            partial = stack.enter_context(files.replacing(target))
            shutil.rmtree(partial, ignore_errors=True)  # of a killed process that had our number
            partial.mkdir()
        except OSError as error:
            raise DataError(f"{target}: cannot be written: {error.strerror}") from error
        yield partial
        check_target(target, overwrite)  # again: it may have come while we wrote


def check_target(target: pathlib.Path, overwrite: bool) -> None:
    """Refuse to write over anything but, when asked to, a data set.

    Raises:
        DataError: `target` exists, and is not a data set that may be overwritten.
    """
    if not target.exists():
        return
    if not overwrite:
        raise DataError(f"{target}: exists already; choose another folder, or overwrite it")
    if not (target / MANIFEST).is_file():
        raise DataError(f"{target}: not a data set (no {MANIFEST}), so it is not overwritten")
