"""Granules to a data set on disk: place the patches, cut them part by part, write them."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines import cube, journal, manifest, partial, partition, parts, store, workers
from data_pipelines.granule import Granule, list_sources, open_granules
from data_pipelines.manifest import Manifest
from data_pipelines.parts import Part, Piece, Source
from data_pipelines.placement import Placement, Survey, choose_stride, place, place_surveyed
from data_pipelines.spec import SPLITS, DataError, DatasetSpec

__all__ = ["Placement", "Summary", "choose_stride", "convert", "expand", "open_all", "place"]


# What Piece needs of each granule, and sources that cannot be opened.
_Pieces = list[tuple[Source, int, str]]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a conversion wrote."""

    folder: pathlib.Path
    counts: Mapping[str, int]
    """Patches of each split."""
    granules: int
    """How many were cut."""
    scenes: int
    left_out: Mapping[str, int]
    """Patches that were placed but not written, by reason."""
    failed: Mapping[str, str]
    """Sources and granules that could not be read, and why; the rest is written."""
    synthetic: bool
    """Whether any granule was made up, not measured."""
    unplaced: Sequence[str] = ()
    """Granules in which no patch was placed: too small, or all too near to another split."""

    @property
    def dropped(self) -> int:
        """Patches that were placed but not written."""
        return sum(self.left_out.values())


def open_all(paths: Sequence[str | os.PathLike[str]]) -> Iterator[Granule]:
    """Granules of several sources, one after the other."""
    for path in paths:
        yield from open_granules(path)


def convert(
    sources: Sequence[str | os.PathLike[str]] | Callable[[], Iterable[Granule]],
    folder: str | os.PathLike[str],
    task_name: str,
    *,
    file_format: str = "tfrecord",
    processes: int | None = 1,
    scheduler: str | None = None,
    max_cloud: float | None = None,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    advance: Callable[[int, int], None] = lambda done, total: None,
    **options: Any,
) -> Summary:
    """Cut granules into patches and write them; the same files for any number of processes.

    Args:
        sources: paths; or a function that gives the granules, which is called several times: to
            place patches, and to cut them part by part.
        folder: the data set to write; appears complete or not at all.
        task_name: a key of cube.TASKS.
        file_format: a key of store.FORMATS.
        processes: how many cut, of one core each; None: one for each core. Where there are fewer
            parts, there is one for each part, and it decodes on several cores.
        scheduler: address of a dask scheduler instead, whose workers see the same files.
        max_cloud: leave out patches of which a mask says that more than this share is cloud.
        provenance: kept in the manifest, with Placement.facts and what was left out.
        overwrite: replace an existing data set.
        resume: keep what a call with the same options had done when it was broken off.
        advance: called with (patches done, patches placed) now and then.
        **options: how patches are placed: placement.place_surveyed.

    Raises:
        DataError: bad options, no patch at all, no source that can be read, or the disk is full or
            not to be written to. Nothing is then under the folder's name.
    """
    task = cube.find_task(task_name)
    target = pathlib.Path(folder).resolve()
    partial.tidy(target)
    manifest.check_target(target, overwrite)
    survey, pieces, failed, stamps = _survey(expand(sources), max_cloud)
    if not survey.sites:
        raise DataError(_list(failed))
    placed = place_surveyed(survey, task, **options)
    spec = cube.build_spec(task, placed.size)
    facts = {**(provenance or {}), **placed.facts, "max_cloud": max_cloud, "format": file_format}
    plan = _plan(placed, options, pieces, facts) | {partial.STAMPS: partial.shorten(stamps)}
    with partial.partial_folder(target, plan, overwrite=overwrite, resume=resume) as unfinished:
        job = parts.Job(str(unfinished), task_name, placed.size, file_format, max_cloud)
        done = _do_parts(job, spec, placed, pieces, processes, scheduler, advance)
        left_out = _sum(entry.left_out for entry in done)
        failed |= {name: why for entry in done for name, why in entry.failed.items()}
        splits = {
            name: tuple(itertools.chain(*(entry.splits.get(name, ()) for entry in done)))
            for name in SPLITS
        }
        if not any(splits.values()):
            raise partial.NothingLeft(_nothing_left(placed, left_out, failed, max_cloud))
        facts |= {"left_out": left_out, "failed": failed, "unplaced": _unplaced(placed)}
        written = store.finish(unfinished, Manifest(file_format, spec, splits, facts))
    return Summary(
        target,
        {name: written.num_examples(name) for name in SPLITS},
        len(survey.sites) - sum(len(entry.failed) for entry in done),
        len(survey.scenes),
        left_out,
        failed,
        survey.synthetic,
        _unplaced(placed),
    )


def _unplaced(placed: Placement) -> list[str]:
    """Names of the granules without a patch."""
    counts = np.bincount(placed.patches.site, minlength=len(placed.sites))
    return [site.name for site, count in zip(placed.sites, counts, strict=True) if not count]


def _do_parts(
    job: parts.Job,
    spec: DatasetSpec,
    placed: Placement,
    pieces: _Pieces,
    processes: int | None,
    scheduler: str | None,
    advance: Callable[[int, int], None],
) -> list[journal.Done]:
    """Do what the journal does not say is done, the largest part first; all parts in order."""
    groups, counts = _group(placed, spec)
    folder = pathlib.Path(job.folder)

    def build(number: int) -> Part:
        mine = [site for site in groups[number] if counts[site]]
        return Part(number, tuple(Piece(*pieces[site], placed.patches.of(site)) for site in mine))

    weights = [int(counts[list(group)].sum()) for group in groups]
    return run_parts(job, folder, weights, build, processes, scheduler, advance)


def run_parts(
    job: Any,
    folder: pathlib.Path,
    weights: Sequence[int],
    build: Callable[[int], workers.Part],
    processes: int | None,
    scheduler: str | None,
    advance: Callable[[int, int], None],
) -> list[journal.Done]:
    """Do what the journal in `folder` does not say is done, the largest part first.

    Args:
        job: a workers.Job, a dataclass with a field `threads`: cores for one process.
        folder: the partial data set.
        weights: patches of each part; one without any is passed over.
        build: a part by its number.
        processes: see convert.
        scheduler: likewise.
        advance: likewise.

    Returns:
        What came of all parts, in their order.
    """
    entries = (journal.read_entry(folder, number) for number in range(len(weights)))
    done = {entry.number: entry for entry in entries if entry is not None}
    partial.clean(folder, list(done.values()))
    before, total = sum(weights[number] for number in done), sum(weights)
    advance(before, total)
    order = [n for n in partition.largest_first(weights) if n not in done and weights[n]]
    cores = workers.num_cores() if processes is None else processes
    running = max(1, min(cores, len(order)))
    doing = workers.do_parts(
        dataclasses.replace(job, threads=1 if scheduler else max(1, cores // running)),
        order,
        build,
        processes=running,
        scheduler=scheduler,
        advance=lambda more: advance(before + more, total),
    )
    # Closed here, so that after an error no worker writes any more when the folder is let go.
    with contextlib.closing(doing) as found:
        done |= {entry.number: entry for entry in found}
    return [done[number] for number in sorted(done)]


def expand(
    sources: Sequence[str | os.PathLike[str]] | Callable[[], Iterable[Granule]],
) -> Iterator[Source]:
    """Sources one by one: a folder of many is divided, so that each can be opened by itself."""
    if callable(sources):
        yield sources
        return
    for source in sources:
        # Absolute, because a worker may have been started in another folder.
        path = pathlib.Path(source).absolute()
        try:
            inside = list_sources(path)
        except DataError:
            inside = [path]  # opening it says the same, and the other sources are done
        yield from map(str, inside)


def _survey(
    sources: Iterable[Source], max_cloud: float | None
) -> tuple[Survey, _Pieces, dict[str, str], dict[str, str]]:
    """Look at every granule once; no pixel is read. The last: sources and their stamps."""
    survey, pieces, failed, stamps = Survey(), _Pieces(), dict[str, str](), dict[str, str]()
    for source in sources:
        granules = iter(source()) if callable(source) else _guarded(source)
        for index in itertools.count():
            try:
                granule = next(granules, None)
            except (DataError, OSError) as error:
                failed[_name(source)] = str(error)
                break
            if granule is None:
                break
            if max_cloud is not None and not granule.masks:
                failed[granule.name] = (
                    f"{granule.name}: no cloud mask, so patches cannot be chosen by cloud"
                )
                continue
            try:
                survey.add(granule)
            except DataError as error:
                failed[granule.name if callable(source) else source] = f"{_name(source)}: {error}"
                continue
            pieces.append((source, index, granule.name))
            if not callable(source) and source not in stamps:
                stamps[source] = partial.stamp(source)
    return survey, pieces, failed, stamps


def _guarded(source: str) -> Iterator[Granule]:
    """Granules of a path, which is first looked at when the first is asked for."""
    yield from open_granules(source)


def _name(source: Source) -> str:
    return source if isinstance(source, str) else "source"


def _group(placed: Placement, spec: DatasetSpec) -> tuple[list[range], np.ndarray]:
    """Sites of each part, and the number of patches of each site."""
    counts = np.bincount(placed.patches.site, minlength=len(placed.sites))
    patch_bytes = sum(t.num_bytes for t in (*spec.inputs.values(), *spec.targets.values()))
    # A large granule is a part even if few patches are drawn from it: its chunks are the work.
    weights = [
        max(int(count) * patch_bytes, site.shape[0] * site.shape[1] * 8) if count else 0
        for count, site in zip(counts, placed.sites, strict=True)
    ]
    return parts.group(weights, parts.PART_BYTES), counts


def _plan(
    placed: Placement, options: Mapping[str, Any], pieces: _Pieces, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """What a partial data set must have in common with the one that goes on with it."""
    names = {"scenes", "synthetic", "gap", "receptive_radius"}
    chosen = {key: value for key, value in facts.items() if key not in names}
    patches = placed.patches
    crc = 0
    for values in (patches.site, patches.y, patches.x, patches.split):
        crc = zlib.crc32(values.tobytes(), crc)
    for source, index, name in pieces:
        crc = zlib.crc32(f"{_name(source)} {index} {name}".encode(), crc)
    fractions = list(options.get("fractions", ()))
    return {**chosen, "fractions": fractions, "granules": len(pieces), "places": f"{crc:08x}"}


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Numbers by reason, in the order of the reasons."""
    total = dict.fromkeys(cube.REASONS[1:], 0)
    for each in counts:
        for reason, count in each.items():
            total[reason] += count
    return {reason: count for reason, count in total.items() if count}


def _nothing_left(
    placed: Placement,
    left_out: Mapping[str, int],
    failed: Mapping[str, str],
    max_cloud: float | None,
) -> str:
    """Why no patch is left."""
    if failed and not left_out:
        return _list(failed)
    why = ", ".join(f"{count} for {reason}" for reason, count in left_out.items())
    limit = "" if max_cloud is None else f" (allowed: {max_cloud:g} of a patch)"
    others = f"; {_list(failed)}" if failed else ""
    first = placed.sites[0].name
    return (
        f"no patch is left of {len(placed.patches.split)} that were placed ({first}, ...): left "
        f"out {why}{limit}{others}"
    )


def _list(failed: Mapping[str, str]) -> str:
    """Errors of several sources as one text."""
    return "; ".join(failed.values()) or "no granule in the sources"
