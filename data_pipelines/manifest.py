"""manifest.json: what a data-set folder holds, under a checksum; and how such a folder comes to be.

The same for every format. A data set is a folder of files ("shards") of one format beside its
manifest, which adds what formats lack: the spec, counts, checksums, and where each record begins.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import google_crc32c

from data_pipelines import files
from data_pipelines import spec as contracts
from data_pipelines.spec import DataError, DatasetSpec

MANIFEST = "manifest.json"
VERSION = 1

Path = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of records."""

    file: str
    """Name inside the folder."""
    num_bytes: int
    """Size of the file."""
    crc32c: int
    """CRC-32C (Castagnoli, not masked) of the whole file."""
    offsets: tuple[int, ...]
    """First byte of each record."""

    def __post_init__(self) -> None:
        """Refuse a shard that contradicts itself or lies outside its folder."""
        ends = [*self.offsets, self.num_bytes]
        if ends[0] != 0 or any(b <= a for a, b in itertools.pairwise(ends)):
            raise DataError(f"{self.file}: offsets do not rise from 0 to {self.num_bytes} bytes")
        if pathlib.PurePath(self.file).name != self.file:
            raise DataError(f"shard {self.file!r} must be a file name without a folder")

    def to_json(self) -> dict[str, Any]:
        """Plain types, for the manifest."""
        return {
            "file": self.file,
            "count": len(self.offsets),
            "bytes": self.num_bytes,
            "crc32c": f"{self.crc32c:08x}",
            "offsets": list(self.offsets),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Shard:
        """The inverse of to_json."""
        offsets = tuple(map(int, values["offsets"]))
        if len(offsets) != values["count"]:
            raise DataError(f"{values['file']}: {len(offsets)} offsets, count {values['count']}")
        return cls(values["file"], int(values["bytes"]), int(values["crc32c"], 16), offsets)

    def check_crc(self, folder: Path) -> None:
        """Read the file and compare; its size is checked by Manifest.paths.

        Raises:
            DataError: the file's CRC is another.
        """
        path, found = pathlib.Path(folder) / self.file, 0
        with path.open("rb") as file:
            while piece := file.read(2**20):
                found = google_crc32c.extend(found, piece)
        if found != self.crc32c:
            raise DataError(f"{path}: file CRC {found:08x}, expected {self.crc32c:08x}")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a folder holds."""

    format: str
    """Name of the format module: "tfrecord"."""
    spec: DatasetSpec
    """What each example holds."""
    splits: Mapping[str, tuple[Shard, ...]]
    """Shards of each split in the order of their records; a split may have none."""
    provenance: Mapping[str, Any]
    """Where the pixels came from and how they were cut; free, for people."""

    def num_examples(self, split: str) -> int:
        """Number of examples of one split."""
        return sum(len(shard.offsets) for shard in self.splits[split])

    def paths(self, folder: Path, split: str) -> list[pathlib.Path]:
        """Files of a split.

        Raises:
            DataError: there is no such split, a file is missing, or it is of another size.
        """
        root = pathlib.Path(folder)
        if split not in self.splits:
            raise DataError(
                f"{root / MANIFEST}: no split {split!r}; it has {', '.join(self.splits) or 'none'}"
            )
        paths = [root / shard.file for shard in self.splits[split]]
        for path, shard in zip(paths, self.splits[split], strict=True):
            if not path.is_file():
                raise DataError(f"{path}: not found; {MANIFEST} lists it")
            found = path.stat().st_size
            if found != shard.num_bytes:
                raise DataError(f"{path}: {found} bytes, expected {shard.num_bytes} by {MANIFEST}")
        return paths


def read(folder: Path, expected_format: str) -> Manifest:
    """The manifest of a data set folder.

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
    if not isinstance(values, dict) or values.get("format") != expected_format:
        raise DataError(f'{path}: expected a JSON object with "format": "{expected_format}"')
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
        return Manifest(expected_format, spec, shards, dict(values["provenance"]))
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
        "provenance": manifest.provenance,
    }
    # Lists of numbers on one line: a line for each offset would bury the rest. (A JSON string has
    # no raw newline, so the pattern finds lists only.)
    text = contracts.json_text({**values, "crc32c": checksum(values)})
    text = re.sub(r"\[\n[\d,\s]+\]", lambda found: " ".join(found[0].split()), text)
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def checksum(values: Mapping[str, Any]) -> str:
    """CRC-32C of a manifest's content, whatever its layout."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return f"{google_crc32c.value(text.encode()):08x}"


@contextlib.contextmanager
def new_folder(target: pathlib.Path, overwrite: bool) -> Iterator[pathlib.Path]:
    """An empty folder to write a data set into; it takes the place of `target` at the end.

    Raises:
        DataError: `target` exists, and is not a data set that may be overwritten.
    """
    _check_target(target, overwrite)
    with files.replacing(target) as partial:
        shutil.rmtree(partial, ignore_errors=True)  # of a killed process that had our number
        partial.mkdir()
        yield partial
        _check_target(target, overwrite)  # again: it may have come while we wrote


def _check_target(target: pathlib.Path, overwrite: bool) -> None:
    """Refuse to write over anything but, when asked to, a data set."""
    if not target.exists():
        return
    if not overwrite:
        raise DataError(f"{target}: exists already; choose another folder, or overwrite it")
    if not (target / MANIFEST).is_file():
        raise DataError(f"{target}: not a data set (no {MANIFEST}), so it is not overwritten")
