"""One part of a conversion: some granules cut, written as shards of their own, and noted.

Parts do not depend on how many processes there are, so neither does what is written. A part that
is noted in its journal entry is on disk; one that is not is done again from its beginning. A
process that does parts needs neither TensorFlow nor Keras.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from data_pipelines import cube, journal, split, store
from data_pipelines.granule import Granule, open_granules
from data_pipelines.journal import Done
from data_pipelines.spec import SPLITS, DataError
from data_pipelines.windows import Window

# Granules are added to a part until it has this many bytes of patches; a granule is never divided.
PART_BYTES = 64 * 2**20
# Memory for GDAL's decoded blocks in a process [MB]; its default, 5 % of the machine's, adds up.
GDAL_CACHE = 64
# Patches between two calls of `advance`.
REPORT = 256

# A path, or a function that opens granules.
Source = str | Callable[[], Iterable[Granule]]
Advance = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Piece:
    """One granule of a part: where it is opened again, and where its patches lie."""

    source: Source
    index: int
    """Which of the granules in the source."""
    name: str
    patches: split.Patches


@dataclasses.dataclass(frozen=True)
class Part:
    """What one process does at a time."""

    number: int
    pieces: tuple[Piece, ...]

    @property
    def prefix(self) -> str:
        """Begins the names of its shards, behind the split."""
        return f"{self.number:05d}-"

    @property
    def num_patches(self) -> int:
        """Patches that are placed."""
        return sum(len(piece.patches.split) for piece in self.pieces)

    @property
    def names(self) -> list[str]:
        """Of its granules."""
        return [piece.name for piece in self.pieces]


@dataclasses.dataclass(frozen=True)
class Job:
    """What all parts of a conversion have in common."""

    folder: str
    """The partial data set."""
    task: str
    size: int
    """Edge of a patch [px of the target]."""
    file_format: str
    max_cloud: float | None
    threads: int = 1
    """Cores on which GDAL may decode for one process."""
    shard_bytes: int = store.SHARD_BYTES

    def do(self, part: Part, advance: Advance) -> Done:
        """See do_part."""
        return do_part(self, part, advance)


class _GranuleFailed(Exception):
    """A granule could not be read; the cause says why. Not a failure of what is written."""


def group(weights: Sequence[int], limit: int) -> list[range]:
    """Neighbours in groups of about `limit`; one that has as much is a group of its own."""
    groups, start, total = [], 0, 0
    for index, weight in enumerate(weights):
        if index > start and weight >= limit:
            groups.append(range(start, index))
            start, total = index, 0
        total += weight
        if total >= limit:
            groups.append(range(start, index + 1))
            start, total = index + 1, 0
    if start < len(weights):
        groups.append(range(start, len(weights)))
    return groups


def do_part(job: Job, part: Part, advance: Advance = lambda done: None) -> Done:
    """Cut and write a part, and note it in the journal once it is on disk.

    Args:
        job: what to do.
        part: of which granules.
        advance: called with the number of patches that are done, left out or failed.

    Raises:
        DataError: the disk is full, or the folder not to be written to. A granule that cannot be
            read is left out instead, and named in what is returned.
    """
    import dask
    import rasterio

    folder = pathlib.Path(job.folder)
    remove_shards(folder, part.prefix)
    left_out: dict[str, int] = {}
    failed: dict[str, str] = {}
    # A process that asked its own cluster to compute would wait for itself.
    # Threads are named, because by default GDAL decodes a JPEG 2000 on all cores of the machine.
    options = {"GDAL_CACHEMAX": GDAL_CACHE, "GDAL_NUM_THREADS": job.threads}
    with dask.config.set(scheduler="synchronous"), rasterio.Env(**options):
        try:
            shards = store.write_shards(
                folder,
                cube.build_spec(cube.find_task(job.task), job.size),
                _examples(job, part, left_out, failed, advance),
                file_format=job.file_format,
                prefix=part.prefix,
                shard_bytes=job.shard_bytes,
            )
        except _GranuleFailed as error:
            remove_shards(folder, part.prefix)
            shards, left_out = {}, {}
            failed[part.pieces[0].name] = str(error)
    advance(part.num_patches)
    done = Done(part.number, shards, left_out, failed)
    journal.write_entry(folder, done)
    return done


def _examples(
    job: Job, part: Part, left_out: dict[str, int], failed: dict[str, str], advance: Advance
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Split and example of each usable patch.

    Of several granules each is cut as a whole before its first patch is given on, so that one that
    fails leaves nothing behind; they are small. A part of one granule may be a whole tile: it is
    passed on patch by patch, and if it fails the part is empty.
    """
    task, before = cube.find_task(job.task), 0
    for piece, granule in _open(part.pieces):
        alone, found = len(part.pieces) == 1, dict[str, int]()
        windows = (window for window, _ in piece.patches.each(job.size))
        if isinstance(granule, Exception):
            failed[piece.name] = str(granule)
            examples: Iterable[Any] = ()
        else:
            tally = left_out if alone else found
            examples = _with_splits(
                piece.patches.each(job.size),
                _guarded(cube.cut(granule, task, windows, max_cloud=job.max_cloud, left_out=tally)),
            )
            if not alone:
                try:
                    examples = list(examples)
                except _GranuleFailed as error:
                    failed[piece.name] = str(error)
                    examples, found = (), {}
        if alone and failed:
            raise _GranuleFailed(failed[piece.name])
        for number, each in enumerate(examples):
            yield each
            if alone and number % REPORT == 0:
                advance(number + sum(left_out.values()))
        for reason, count in found.items():
            left_out[reason] = left_out.get(reason, 0) + count
        before += len(piece.patches.split)
        advance(before)


def _with_splits(
    placed: Iterator[tuple[Window, str]], patches: Iterator[tuple[Window, dict[str, Any]]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Split and example of each patch; both come from top to bottom, patches with gaps."""
    for window, example in patches:
        yield next(split for other, split in placed if other == window), example


def _guarded(patches: Iterator[Any]) -> Iterator[Any]:
    """The same, with what goes wrong marked as the granule's fault."""
    try:
        yield from patches
    except (DataError, OSError) as error:
        raise _GranuleFailed(str(error)) from error


def _open(pieces: Iterable[Piece]) -> Iterator[tuple[Piece, Granule | Exception]]:
    """The granule of each piece, or why it cannot be opened."""
    for source, group in itertools.groupby(pieces, key=lambda piece: piece.source):
        mine = list(group)
        waiting = iter(mine)
        try:
            for granule in _reopen(source, mine):
                piece = next(waiting)
                if granule.name == piece.name:
                    yield piece, granule
                else:
                    found = f"{source}: now holds {granule.name} where {piece.name} was"
                    yield piece, DataError(f"{found}; it has changed meanwhile")
            missing: Exception = DataError(f"{source}: holds fewer granules than before")
        except (DataError, OSError) as error:
            missing = error
        for piece in waiting:
            yield piece, missing


def _reopen(source: Source, pieces: Sequence[Piece]) -> Iterator[Granule]:
    """Granules of neighbouring pieces of one source."""
    if isinstance(source, str) and pathlib.Path(source, "data.mdb").is_file():
        from data_pipelines import bigearthnet

        # By name: to pass over half a million others would take an hour.
        return bigearthnet.open_lmdb(pathlib.Path(source), names=[piece.name for piece in pieces])
    granules = open_granules(source) if isinstance(source, str) else iter(source())
    wanted = {piece.index for piece in pieces}
    first, last = min(wanted), max(wanted)
    return (
        granule
        for index, granule in enumerate(itertools.islice(granules, last + 1))
        if index >= first and index in wanted
    )


def remove_shards(folder: pathlib.Path, prefix: str) -> None:
    """Remove what an attempt at a part that was broken off has left."""
    for name in SPLITS:
        for path in folder.glob(f"{name}-{prefix}*"):
            journal.remove(path)
