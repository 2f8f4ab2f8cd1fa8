"""The folder of a data set that is being made part by part: survives its process, to be resumed."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipelines import journal, manifest
from data_pipelines.spec import DataError, json_text

# Says what is being made, and that the folder is ours.
PLAN = "plan.json"
# Locked by the process that works here; the system lets go when it ends, however it ends.
LOCK = "lock"
# In a plan: path of a source -> its stamp.
STAMPS = "sources"
# Most paths that are kept there; of more, one for each folder around them.
MAX_STAMPS = 1000


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
        lock = open_folder(folder, plan, resume)
    except OSError as error:
        path = error.filename or folder
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    with lock:
        try:
            yield folder
        except BaseException as error:
            if isinstance(error, NothingLeft) or not journal.num_entries(folder):
                remove_folder(folder)
            raise
        manifest.check_target(target, overwrite)  # again: it may have come while we wrote
        _publish(folder, target)


def open_folder(folder: pathlib.Path, plan: Mapping[str, Any], resume: bool) -> Any:
    """Make the folder, or clean the one that is there; gives its open lock, to be closed.

    Args:
        folder: see path_of.
        plan: what is made (JSON types), kept in the folder.
        resume: keep what is there; else only the empty folder is.

    Raises:
        DataError: with resume, the plan is another; or another process is making this output.
        OSError: nothing can be written there.
    """
    _read_plan(folder)  # which refuses a folder that is not ours, before anything is put there
    lock = _lock(folder)
    try:
        found = _read_plan(folder)
        # Without a plan nor an entry there is nothing to go on with.
        if resume and (found or journal.num_entries(folder)):
            before = found or {}
            differing = [key for key in plan if before.get(key) != plan[key]]
            if differing:
                raise DataError(_differs(folder, before, plan, differing))
        else:
            _clear(folder)
            journal.write_atomically(folder / journal.JOURNAL / PLAN, json_text(dict(plan)))
    except BaseException:
        lock.close()
        raise
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
    if keys == [STAMPS] and isinstance(found.get(STAMPS), dict):
        # The sources are the same, or their number or names would differ, too.
        changed = [path for path, now in plan[STAMPS].items() if found[STAMPS].get(path) != now]
        others = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        return (
            f"{', '.join(changed[:1])}{others}: changed since {folder} was begun, so that old "
            "pixels and new would be mixed; begin again without resuming"
        )
    keys = [key for key in keys if key != STAMPS] or keys
    changes = ", ".join(f"{key} {found.get(key)!r}, now {plan[key]!r}" for key in keys)
    return (
        f"{folder}: was begun with other options: {changes}; resume with the same ones, or begin "
        "again without resuming"
    )


def _lock(folder: pathlib.Path) -> Any:
    """Hold the folder for this process; closing lets go."""
    import fcntl

    (folder / journal.JOURNAL).mkdir(parents=True, exist_ok=True)
    path = folder / journal.JOURNAL / LOCK
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Who held it may have removed or published the folder before letting go.
        ours = os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        ours = False
    except OSError:
        ours = True  # a file system without locks
    if not ours:
        file.close()
        raise DataError(f"{folder}: another process is making this data set")
    return file


def _clear(folder: pathlib.Path) -> None:
    """Remove everything but the lock, which this process holds; the plan goes first."""
    (folder / journal.JOURNAL / PLAN).unlink(missing_ok=True)
    for inside in (folder / journal.JOURNAL, folder):
        for path in inside.iterdir():
            if path.name not in (LOCK, journal.JOURNAL):
                journal.remove(path)


def remove_folder(folder: pathlib.Path) -> None:
    """Remove a folder whose lock this process holds; the lock goes last."""
    with contextlib.suppress(OSError):
        _clear(folder)
        (folder / journal.JOURNAL / LOCK).unlink()
        (folder / journal.JOURNAL).rmdir()
        folder.rmdir()


def tidy(target: pathlib.Path) -> None:
    """Remove the journal from a data set whose process was killed right after it had its name."""
    with contextlib.suppress(DataError, OSError):
        if (target / manifest.MANIFEST).is_file() and (target / journal.JOURNAL / PLAN).is_file():
            with _lock(target):
                shutil.rmtree(target / journal.JOURNAL)


def stamp(source: str) -> str:
    """What changes when a source does: names, sizes and times of the files at or below a path.

    No image is opened. Of a STAC item the files of this machine that it names count, too.
    """
    from data_pipelines import stac

    path = pathlib.Path(source)
    root = path.parent if path.suffix.lower() == ".xml" else path
    crc = _stamp_file(str(root), 0) if root.is_file() else 0
    for file in stac.local_files(path) if path.suffix.lower() == ".json" else ():
        crc = _stamp_file(str(file), crc)
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            # LMDB's lock changes with every reader.
            if not name.startswith(".") and name != "lock.mdb":
                crc = _stamp_file(os.path.join(folder, name), crc)
    return f"{crc:08x}"


def _stamp_file(path: str, crc: int) -> int:
    try:
        found = os.stat(path)
    except OSError as error:
        # Such as a link to nowhere: whether it matters shows when the source is read.
        return zlib.crc32(f"{path} {error.errno}".encode(), crc)
    return zlib.crc32(f"{path} {found.st_size} {found.st_mtime_ns}".encode(), crc)


def shorten(stamps: Mapping[str, str]) -> dict[str, str]:
    """Stamps for a plan: of many sources, one for each folder around them."""
    if len(stamps) <= MAX_STAMPS:
        return dict(stamps)
    crcs: dict[str, int] = {}
    for path, value in stamps.items():
        folder = os.path.dirname(path)
        crcs[folder] = zlib.crc32(f"{path} {value}".encode(), crcs.get(folder, 0))
    return {folder: f"{crc:08x}" for folder, crc in crcs.items()}


def clean(folder: pathlib.Path, done: list[journal.Done]) -> None:
    """Remove whatever no part in `done` accounts for: halves of files, or an early manifest."""
    kept = {shard.name for part in done for shards in part.splits.values() for shard in shards}
    for path in folder.iterdir():
        if path.name != journal.JOURNAL and path.name not in kept:
            journal.remove(path)


def _publish(folder: pathlib.Path, target: pathlib.Path) -> None:
    """Give the complete data set its name; what stood there, and the journal, go only then."""
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
    # Whatever breaks off before this can be resumed, and what is left after it does no harm.
    shutil.rmtree(target / journal.JOURNAL, ignore_errors=True)
