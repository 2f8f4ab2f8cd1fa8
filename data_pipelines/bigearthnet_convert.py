"""A BigEarthNet archive to a data set for classification, with an account of every patch."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from data_pipelines import (
    bigearthnet,
    bigearthnet_choice,
    bigearthnet_lists,
    bigearthnet_patches,
    convert,
    files,
    journal,
    manifest,
    nomenclature,
    partial,
    record,
    store,
)
from data_pipelines.bigearthnet_choice import FAILED, REASONS, Choice
from data_pipelines.bigearthnet_lists import Lists
from data_pipelines.bigearthnet_parts import Job, Part, Patch
from data_pipelines.bigearthnet_patches import UPSAMPLERS, Upsampler
from data_pipelines.manifest import File, Manifest
from data_pipelines.spec import SPLITS, DataError

# The account: a row for each patch of the archive, beside the shards.
ACCOUNT = "patches.parquet"
# Bytes of a record beside its arrays, at most: name, header.
OVERHEAD = 2**10


@dataclasses.dataclass(frozen=True)
class Summary:
    """What became of an archive."""

    folder: pathlib.Path
    total: int
    """Patches in the archive: those written, and those left out by reason."""
    counts: Mapping[str, int]
    """Patches written, by split."""
    left_out: Mapping[str, int]
    """Patches left out, by reason (bigearthnet_choice.REASONS)."""
    classes: Mapping[str, Mapping[str, int]]
    """Class -> split -> patches that have it."""
    countries: Mapping[str, int]
    """Patches written, by country, where the metadata have it."""
    seasons: Mapping[str, int]
    """Patches written, by season."""
    failed: Mapping[str, str]
    """Patches that could not be read, and why."""
    absent: Sequence[str]
    """Names that a list gives a split, but that are not in the archive."""
    lists: Sequence[str]
    """Files that said what is excluded and what is in which split."""
    synthetic: bool


def convert_archive(
    archive: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    split: str = "official",
    upsample: str | tuple[str, Upsampler] = "none",
    lists: str | os.PathLike[str] | None = None,
    file_format: str = "tfrecord",
    processes: int | None = 1,
    scheduler: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Read, label and write the patches of an archive; the same files for any number of processes.

    Args:
        archive: see bigearthnet_patches.find_patches.
        folder: the data set to write; appears complete or not at all.
        num_classes: 43 or 19; of v2 there are 19 only. None: as many as the archive has.
        split: see bigearthnet_choice.choose.
        upsample: a key of UPSAMPLERS, or a name and what upsamples.
        lists: folder of the archive's lists or tables; None: the archive's, or the one around it.
        file_format: a key of store.FORMATS.
        processes: see convert.convert.
        scheduler: likewise.
        provenance: kept in the manifest, with the account.
        overwrite: replace an existing data set.
        resume: keep what a call with the same options had done when it was broken off.
        advance: called with (patches done, patches to read) now and then.

    Raises:
        DataError: bad options, lists that contradict each other, no patch that is left, or the disk
            is full or not to be written to. Nothing is then under the folder's name.
    """
    method, upsampler = _find_upsampler(upsample)
    root, target = pathlib.Path(archive).absolute(), pathlib.Path(folder).resolve()
    partial.tidy(target)
    manifest.check_target(target, overwrite)
    found = _open(root, num_classes, split, lists)
    facts = {
        **(provenance or {}),
        "num_classes": found.num_classes,
        "split": split,
        "upsample": method,
        "format": file_format,
        "lists": [os.path.basename(file) for file in found.known.files],
    }
    plan = facts | {"patches": _checksum(found), partial.STAMPS: _stamps(found)}
    with partial.partial_folder(target, plan, overwrite=overwrite, resume=resume) as unfinished:
        size = store.SHARD_BYTES
        job = Job(str(unfinished), found.num_classes, file_format, upsampler, shard_bytes=size)
        groups = _group(found.choice, job)

        def build(number: int) -> Part:
            name, patches = groups[number]
            return Part(number, name, tuple(map(found.patch, patches)))

        weights = [len(patches) for _, patches in groups]
        done = convert.run_parts(job, unfinished, weights, build, processes, scheduler, advance)
        summary = _summarise(target, found, groups, done)
        if not any(summary.counts.values()):
            raise partial.NothingLeft(_nothing_left(summary))
        _finish(unfinished, found, job, facts | _facts(summary), done)
    return summary


def _finish(
    unfinished: pathlib.Path,
    found: _Archive,
    job: Job,
    facts: Mapping[str, Any],
    done: Sequence[journal.Done],
) -> None:
    """Write the account and the manifest, beside the shards that the parts have left."""
    _write_account(unfinished / ACCOUNT, found, facts["failed"], done)
    splits = {
        name: tuple(itertools.chain(*(entry.splits.get(name, ()) for entry in done)))
        for name in SPLITS
    }
    account = File.of(unfinished, ACCOUNT)
    store.finish(unfinished, Manifest(job.file_format, job.spec, splits, facts, (account,)))


@dataclasses.dataclass(frozen=True)
class _Archive:
    """An archive, and what is wanted of it."""

    places: Mapping[str, str]
    """Patch -> where it lies."""
    known: Lists
    """What its lists and tables say."""
    choice: Choice
    """Patches by split, and those that are left out."""
    num_classes: int

    def patch(self, name: str) -> Patch:
        """What the process that reads a patch needs to know."""
        labels = self.known.labels.get(name) if self.known.labels else None
        return Patch(name, self.places[name], labels)


def _open(
    root: pathlib.Path,
    num_classes: int | None,
    split: str,
    lists: str | os.PathLike[str] | None,
) -> _Archive:
    """Look at an archive and its lists; see convert_archive. No pixel is read.

    Raises:
        DataError: no patch, lists that contradict each other, or of another nomenclature.
    """
    places = bigearthnet_patches.find_patches(root)
    known = find_lists(root, lists)
    num_classes = num_classes or (19 if known.labels else 43)
    known_labels = set(itertools.chain.from_iterable(known.labels.values()))
    nomenclature.check_names(known_labels, num_classes, known.files[0] if known.files else "")
    choice = bigearthnet_choice.choose(
        list(places),
        known,
        split,
        lambda name: bigearthnet.tile_from_json(pathlib.Path(places[name]), name),
    )
    return _Archive(places, known, choice, num_classes)


def find_lists(root: pathlib.Path, lists: str | os.PathLike[str] | None) -> Lists:
    """The archive's lists: of a given folder, or of the archive's or the one around it.

    Raises:
        DataError: the given folder has none, or they contradict each other.
    """
    if lists is None:
        return bigearthnet_lists.find_lists([root, root.parent])
    folder = pathlib.Path(lists)
    found = bigearthnet_lists.find_lists([folder])
    if not found.files:
        raise DataError(
            f"{folder}: no list of BigEarthNet; expected train.csv, val.csv, test.csv, "
            f"{bigearthnet_lists.SNOW}, {bigearthnet_lists.CLOUD} (or packed, .bz2 or .gz), or "
            f"{bigearthnet_lists.METADATA}"
        )
    return found


def _find_upsampler(upsample: str | tuple[str, Upsampler]) -> tuple[str, Upsampler | None]:
    """A method's name, and what it does.

    Raises:
        DataError: no such method.
    """
    if not isinstance(upsample, str):
        return upsample
    if upsample not in UPSAMPLERS:
        raise DataError(f"upsample {upsample!r}: expected one of {', '.join(UPSAMPLERS)}")
    return upsample, UPSAMPLERS[upsample]


def _group(choice: Choice, job: Job) -> list[tuple[str, list[str]]]:
    """Split and names of each part: of one split each, so that it fills one shard."""
    size = max(1, job.shard_bytes // (record.num_bytes(job.spec) + OVERHEAD))
    return [
        (name, names[start : start + size])
        for name, names in choice.splits.items()
        for start in range(0, len(names), size)
    ]


def _checksum(found: _Archive) -> str:
    """Changes when a patch, its place or its split does."""
    crc = 0
    for name, names in found.choice.splits.items():
        for patch in names:
            crc = zlib.crc32(f"{name} {patch} {found.places[patch]}".encode(), crc)
    return f"{crc:08x} of {len(found.places)}"


def _stamps(found: _Archive) -> dict[str, str]:
    """What changes when lists or an LMDB do; of half a million folders only their names count."""
    lmdbs = {place for name, place in found.places.items() if os.path.basename(place) != name}
    return {path: partial.stamp(path) for path in (*found.known.files, *sorted(lmdbs))}


def _summarise(
    folder: pathlib.Path,
    found: _Archive,
    groups: Sequence[tuple[str, list[str]]],
    done: Sequence[journal.Done],
) -> Summary:
    """The account in numbers."""
    left_out = collections.Counter(found.choice.left_out.values())
    failed: dict[str, str] = {}
    counts = dict.fromkeys(SPLITS, 0)
    names = nomenclature.class_names(found.num_classes)
    classes = {name: dict.fromkeys(SPLITS, 0) for name in names}
    written: list[str] = []
    for entry in done:
        split, patches = groups[entry.number]
        left_out.update(entry.notes["left_out"].values())
        failed |= entry.failed
        gone = entry.failed.keys() | entry.notes["left_out"].keys()
        mine = [name for name in patches if name not in gone]
        written += mine
        counts[split] += len(mine)
        for name, number in zip(names, entry.notes["classes"], strict=True):
            classes[name][split] += number
    left_out[FAILED] = len(failed)
    countries = (found.known.countries.get(name) or "unknown" for name in written)
    return Summary(
        folder,
        len(found.places),
        counts,
        {reason: left_out[reason] for reason in REASONS if left_out[reason]},
        classes,
        _tally(countries) if found.known.countries else {},
        _tally(map(bigearthnet_choice.season, written)),
        failed,
        found.choice.absent,
        found.known.files,
        any(entry.notes["synthetic"] for entry in done),
    )


def _tally(words: Iterable[str]) -> dict[str, int]:
    return dict(sorted(collections.Counter(words).items()))


def _facts(summary: Summary) -> dict[str, Any]:
    """What the manifest says of the archive."""
    values = dataclasses.asdict(summary)
    for name in ("folder", "counts", "lists", "absent"):
        del values[name]
    return values | {"absent": len(summary.absent)}


def _write_account(
    path: pathlib.Path,
    found: _Archive,
    failed: Mapping[str, str],
    done: Sequence[journal.Done],
) -> None:
    """A table: patch, its split or why it has none, country, season."""
    import pyarrow
    import pyarrow.parquet

    splits = {patch: name for name, patches in found.choice.splits.items() for patch in patches}
    reasons = dict(found.choice.left_out) | dict.fromkeys(failed, FAILED)
    for entry in done:
        reasons |= entry.notes["left_out"]
    names = list(found.places)
    table = pyarrow.table(
        {
            "patch_id": names,
            "split": [None if name in reasons else splits[name] for name in names],
            "left_out": [reasons.get(name) for name in names],
            "country": [found.known.countries.get(name) for name in names],
            "season": [bigearthnet_choice.season(name) for name in names],
        },
        schema=pyarrow.schema(
            [(n, pyarrow.string()) for n in ("patch_id", "split", "left_out", "country", "season")]
        ),
    )
    with files.replacing(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)


def _nothing_left(summary: Summary) -> str:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in summary.left_out.items())
    first = next(iter(summary.failed.values()), "")
    return f"no patch is left of {summary.total:,}: {reasons}" + (f"; {first}" if first else "")
