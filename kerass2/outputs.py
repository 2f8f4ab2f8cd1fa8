"""A prediction on disk: made window by window, by one process or many ranks, and resumed.

Windows go into a raw raster in a folder `.NAME.partial` beside the output, and a journal there
notes each one that is on disk. When all are, rank 0 makes the output of them, which then takes its
name.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from data_pipelines import descriptor, files, journal, partial, raster_formats
from data_pipelines.raw_raster import RawRaster
from data_pipelines.spec import DataError
from data_pipelines.windows import Window
from kerass2 import meaning, sharpen

if TYPE_CHECKING:
    from kerass2.sharpen import Plan
    from strategies.base import Strategy

Advance = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Target:
    """What is to be written for one granule."""

    path: pathlib.Path
    """The output, a file or a Zarr folder."""
    kind: str
    """A key of raster_formats.FORMATS."""
    stac: bool = False
    """Whether a STAC item is written beside it."""
    preview: bool = False
    """Whether a picture is written beside it."""

    @property
    def item(self) -> pathlib.Path:
        """The STAC item."""
        return self.path.with_suffix(".json")

    @property
    def picture(self) -> pathlib.Path:
        """The preview."""
        return self.path.with_suffix(".png")

    @property
    def paths(self) -> list[pathlib.Path]:
        """Everything that is written."""
        more = [(self.stac, self.item), (self.preview, self.picture)]
        return [self.path, *(path for wanted, path in more if wanted)]

    def is_done(self) -> bool:
        """Whether all of it is there."""
        return all(path.exists() for path in self.paths)

    def check(self, *, overwrite: bool) -> None:
        """Refuse an output that exists or cannot be made, before any work is done for it.

        Raises:
            DataError: it exists and overwrite is False, is of another kind than what stands there,
                or its folder is missing or cannot be written in.
        """
        folder = self.path.parent
        if not folder.is_dir():
            raise DataError(f"{self.path}: no folder {folder}")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise DataError(f"{self.path}: the folder {folder} is not writable")
        for path in self.paths:
            zarr = path == self.path and self.kind == "Zarr"
            if path.is_dir() and not (zarr and (path / "zarr.json").is_file()):
                raise DataError(f"{path}: a folder; expected the name of a file to write")
            if zarr and path.is_file():
                raise DataError(f"{path}: a file; expected a Zarr folder, or a new name")
            if path.exists() and not overwrite:
                raise DataError(f"{path}: exists; give --overwrite to replace it")


def write_output(
    plan: Plan,
    target: Target,
    strategy: Strategy,
    *,
    identity: Mapping[str, Any],
    overwrite: bool = False,
    resume: bool = False,
    advance: Advance | None = None,
) -> tuple[float, float]:
    """Make an output. Every rank of `strategy` calls it; it appears complete or not at all.

    Args:
        plan: what is made.
        target: where, and what beside it.
        strategy: shares the regions among its ranks.
        identity: all that the pixels depend on (JSON types): work that was begun with another is
            not resumed.
        overwrite: replace what stands there.
        resume: go on with what a broken-off call has left.
        advance: called with the number of regions done by this rank or found done.

    Returns:
        Seconds that the regions took, reading and computing, and the output after them.

    Raises:
        DataError: see Target.check, sharpen.make_regions and raster_formats.write_as. What was
            done is kept for `resume`.
    """
    folder = partial.path_of(target.path)
    raw = RawRaster(folder, meaning.describe_output(plan))
    regions = plan.regions
    with contextlib.ExitStack() as stack:
        with together(strategy, f"rank 0 could not begin {target.path}"):
            if strategy.is_chief:
                target.check(overwrite=overwrite)
                if target.stac and raw.description.crs is None:
                    raise DataError(f"{plan.granule.name}: has no CRS, which a STAC item needs")
                stack.enter_context(_working_folder(folder, identity, resume))
                raw.create()
        # By rank 0's view of the journal: a network file system may show another one elsewhere.
        wanted = np.zeros(len(regions))
        if strategy.is_chief:
            wanted[_missing(folder, len(regions))] = 1
        numbers = np.flatnonzero(strategy.sum(wanted)).tolist()
        if advance is not None:
            advance(len(regions) - len(numbers))
        mine = share(numbers, strategy.rank, strategy.world_size)
        times = [time.monotonic()]
        with together(strategy, f"{target.path}: another rank failed"):
            _make(plan, raw, folder, [(n, regions[n]) for n in mine], advance)
        times.append(time.monotonic())
        with together(strategy, f"{target.path}: rank 0 could not complete it"):
            if strategy.is_chief:
                _complete(plan, raw, folder, target, overwrite)
    return times[1] - times[0], time.monotonic() - times[1]


def share(numbers: Sequence[int], rank: int, world_size: int) -> Sequence[int]:
    """A rank's part of what is to do: neighbours, so that few chunks are read by two ranks."""
    first, end = (len(numbers) * r // world_size for r in (rank, rank + 1))
    return numbers[first:end]


@contextlib.contextmanager
def together(strategy: Strategy, message: str) -> Iterator[None]:
    """All ranks leave the block, or all raise: DataError is one rank's, the others must know."""
    failed: DataError | None = None
    try:
        yield
    except DataError as error:
        failed = error
    if strategy.sum(np.array([float(failed is not None)]))[0]:
        raise failed or DataError(message)


@contextlib.contextmanager
def _working_folder(
    folder: pathlib.Path, identity: Mapping[str, Any], resume: bool
) -> Iterator[None]:
    """The folder to work in, locked; after an error it stays if any region is done."""
    try:
        lock = partial.open_folder(folder, identity, resume)
    except OSError as error:
        path = error.filename or folder
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    with lock:
        try:
            yield
        except BaseException:
            if journal.num_entries(folder):
                kept = f"kept: {folder}; the same command with --resume goes on there"
                click.echo(kept, err=True)
            else:
                partial.remove_folder(folder)
            raise
        partial.remove_folder(folder)


def _entry(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / journal.JOURNAL / f"{number:06d}.json"


def _missing(folder: pathlib.Path, count: int) -> list[int]:
    """Regions that are not noted as done."""
    return [number for number in range(count) if not _entry(folder, number).is_file()]


def _make(
    plan: Plan,
    raw: RawRaster,
    folder: pathlib.Path,
    numbered: Sequence[tuple[int, Window]],
    advance: Advance | None,
) -> None:
    """Compute regions; each is written while the next one is computed."""

    def store(number: int, region: Window, pixels: Any) -> None:
        place = Window(region.y - plan.roi.y, region.x - plan.roi.x, region.height, region.width)
        raw.write(place, pixels)
        raw.sync()
        journal.write_atomically(_entry(folder, number), json.dumps(dataclasses.asdict(region)))
        if advance is not None:
            advance(1)

    try:
        with concurrent.futures.ThreadPoolExecutor(max_workers=1) as writer:
            waiting: collections.deque[concurrent.futures.Future[None]] = collections.deque()
            made = sharpen.make_regions(plan, [region for _, region in numbered])
            for (number, _), (region, pixels) in zip(numbered, made, strict=True):
                waiting.append(writer.submit(store, number, region, pixels))
                if len(waiting) > 1:
                    waiting.popleft().result()
            for future in waiting:
                future.result()
    finally:
        raw.close()


def _complete(
    plan: Plan, raw: RawRaster, folder: pathlib.Path, target: Target, overwrite: bool
) -> None:
    """Make the output, what stands beside it, and give them their names."""
    if left := _missing(folder, len(plan.regions)):
        raise DataError(f"{target.path}: {len(left)} windows are not noted as done; --resume them")
    made = {path: folder / f"output{path.suffix}" for path in target.paths}
    raster_formats.write_as(raw, target.kind, made[target.path])
    if target.preview:
        from kerass2 import preview

        try:
            preview.write(made[target.picture], plan, raw.vrt, target.path)
        except OSError as error:
            why = error.strerror or error
            raise DataError(f"{target.picture}: cannot be written: {why}") from error
    if target.stac:
        from data_pipelines import stac_item

        stac_item.write(
            made[target.item],
            raw.description,
            plan.granule,
            target.path,
            kind=target.kind,
            preview=target.picture if target.preview else None,
            models=[network.name for network in plan.networks],
        )
    target.check(overwrite=overwrite)  # again: it may have come while we computed
    for path, temporary in made.items():
        try:
            _sync(temporary)
            files.take_place(temporary, path)
        except OSError as error:
            raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    _remove_stale(target)


def _remove_stale(target: Target) -> None:
    """Remove item and picture of the output that stood here before; never a file of another."""
    from data_pipelines import stac_item
    from kerass2 import preview

    if not target.stac and stac_item.is_item_of(target.item, target.path):
        target.item.unlink()
    if not target.preview and preview.is_picture_of(target.picture, target.path):
        target.picture.unlink()


def _sync(path: pathlib.Path) -> None:
    """Return when a file, or each file of a folder, is on disk: what it was made of goes next."""
    for file in (path, *path.rglob("*")):
        if file.is_file():
            descriptor.sync(file)
