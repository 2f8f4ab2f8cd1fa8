"""The folder of a data set that is being made part by part: survives its process, to be resumed."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipelines import journal, manifest
from data_pipelines.spec import DataError, json_text

# Says what is being made, and that the folder is ours.
PLAN = "plan.json"
# Locked by the process that works here; the system lets go when it ends, however it ends.
LOCK = "lock"


class NothingLeft(DataError):
    """All was done, and nothing came of it."""


def path_of(target: pathlib.Path) -> pathlib.Path:
    """Where the parts of a data set lie until it is complete."""
    return target.with_name(f".{target.name}.partial")


@contextlib.contextmanager
def partial_folder(
    target: pathlib.Path, plan: Mapping[str, Any], *, overwrite: bool, resume: bool
) -> Iterator[pathlib.Path]:
    """A folder `.NAME.partial` beside `target` to write parts into; at the end it takes its place.

    An interruption or an error leaves it, for `resume`, if any part is done; NothingLeft removes
    it, since it would come again.

    Args:
        target: the data set.
        plan: what is made (JSON types): work under another plan is never mixed in.
        overwrite: replace a data set that stands at `target`.
        resume: keep what a broken-off call with the same plan has done.

    Raises:
        DataError: `target` exists, the plan is another, another process is at work, or nothing can
            be written there.
    """
    manifest.check_target(target, overwrite)
    folder = path_of(target)
    try:
        lock = _prepare(folder, plan, resume)
    except OSError as error:
        path = error.filename or folder
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    with lock:
        try:
            yield folder
        except BaseException as error:
            if isinstance(error, NothingLeft) or not journal.num_entries(folder):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        manifest.check_target(target, overwrite)  # again: it may have come while we wrote
        _publish(folder, target)


def _prepare(folder: pathlib.Path, plan: Mapping[str, Any], resume: bool) -> Any:
    """Make the folder, or clean the one that is there; gives its open lock."""
    found = _read_plan(folder)
    if found is not None:
        lock = _lock(folder)
        if resume:
            differing = [key for key in plan if found.get(key) != plan[key]]
            if differing:
                lock.close()
                raise DataError(_differs(folder, found, plan, differing))
            return lock
        lock.close()
        shutil.rmtree(folder)
    (folder / journal.JOURNAL).mkdir(parents=True)
    lock = _lock(folder)
    journal.write_atomically(folder / journal.JOURNAL / PLAN, json_text(dict(plan)))
    return lock


def _read_plan(folder: pathlib.Path) -> dict[str, Any] | None:
    """The plan of a folder that is there; None if there is none, or nothing worth keeping."""
    if not folder.exists():
        return None
    try:
        plan = json.loads((folder / journal.JOURNAL / PLAN).read_bytes())
    except FileNotFoundError:
        # Killed before the plan was on disk: then there is at most an empty journal.
        if not (folder / journal.JOURNAL).is_dir() and any(folder.iterdir()):
            raise DataError(
                f"{folder}: not a partial data set (no {journal.JOURNAL}/{PLAN}); remove it"
            ) from None
        return {}
    except ValueError:
        return {}
    return plan if isinstance(plan, dict) else {}


def _differs(
    folder: pathlib.Path, found: Mapping[str, Any], plan: Mapping[str, Any], keys: list[str]
) -> str:
    changes = ", ".join(f"{key} {found.get(key)!r}, now {plan[key]!r}" for key in keys)
    return (
        f"{folder}: was begun with other options: {changes}; resume with the same ones, or begin "
        "again without resuming"
    )


def _lock(folder: pathlib.Path) -> Any:
    """Hold the folder for this process; closing lets go."""
    import fcntl

    (folder / journal.JOURNAL).mkdir(exist_ok=True)
    file = (folder / journal.JOURNAL / LOCK).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise DataError(f"{folder}: another process is making this data set") from None
    except OSError:
        pass  # a file system without locks
    return file


def clean(folder: pathlib.Path, done: list[journal.Done]) -> None:
    """Remove whatever no part in `done` accounts for: halves of files, or names already final."""
    kept = {shard.name for part in done for shards in part.splits.values() for shard in shards}
    for path in folder.iterdir():
        if path.name != journal.JOURNAL and path.name not in kept:
            journal.remove(path)


def _publish(folder: pathlib.Path, target: pathlib.Path) -> None:
    """Give the complete data set its name; what stood there goes only then."""
    shutil.rmtree(folder / journal.JOURNAL)
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    replaced = target.exists()
    if replaced:
        target.rename(old)
    try:
        folder.rename(target)
    except BaseException:
        if replaced:
            old.rename(target)
        raise
    if replaced:
        shutil.rmtree(old)
