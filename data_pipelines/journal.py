"""The journal of a partial data set: an entry for each part that is on disk."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from data_pipelines.manifest import Shard, checksum
from data_pipelines.spec import DataError

# Its folder inside the partial data set.
JOURNAL = "parts"


@dataclasses.dataclass(frozen=True)
class Done:
    """What came of a part."""

    number: int
    splits: Mapping[str, tuple[Shard, ...]]
    left_out: Mapping[str, int]
    """Patches left out by reason."""
    failed: Mapping[str, str]
    """Granules or patches that could not be read, and why."""
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Whatever else the summary needs (JSON types)."""

    def to_json(self) -> dict[str, Any]:
        """Plain types, for the journal."""
        shards = {name: [shard.to_json() for shard in g] for name, g in self.splits.items()}
        values = {**dataclasses.asdict(dataclasses.replace(self, splits={})), "splits": shards}
        return {**values, "crc32c": checksum(values)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Done:
        """The inverse of to_json; raises ValueError, KeyError or TypeError for anything else."""
        if values.pop("crc32c") != checksum(values):
            raise ValueError("damaged")
        splits = {
            name: tuple(map(Shard.from_json, shards)) for name, shards in values["splits"].items()
        }
        return cls(values["number"], splits, values["left_out"], values["failed"], values["notes"])


def read_entry(folder: pathlib.Path, number: int) -> Done | None:
    """What the journal says of a part; None if it must be done, again or at all.

    A part with a granule that failed is done again: what was wrong may have passed.
    """
    try:
        done = Done.from_json(json.loads(_entry(folder, number).read_bytes()))
        for shards in done.splits.values():
            for shard in shards:
                for file in shard.files:
                    file.check_size(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return None if done.failed or done.number != number else done


def num_entries(folder: pathlib.Path) -> int:
    """Parts that are noted as done."""
    return sum(1 for _ in (folder / JOURNAL).glob("[0-9]*.json"))


def _entry(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / JOURNAL / f"{number:05d}.json"


def write_entry(folder: pathlib.Path, done: Done) -> None:
    """Atomic: the entry is whole, or not there."""
    path = _entry(folder, done.number)
    write_atomically(path, json.dumps(done.to_json()))


def write_atomically(path: pathlib.Path, text: str) -> None:
    """A small file, whole or not there, on disk when this returns.

    Raises:
        DataError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def remove(path: pathlib.Path) -> None:
    """A file, or a folder with all that is in it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
