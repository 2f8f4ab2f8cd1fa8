"""One part of a BigEarthNet data set: some patches of one split, read, labelled and written."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from data_pipelines import bigearthnet_patches, journal, nomenclature, parts, store
from data_pipelines.bigearthnet_choice import EMPTY, NO_CLASS
from data_pipelines.bigearthnet_patches import Upsampler
from data_pipelines.journal import Done
from data_pipelines.spec import DataError, DatasetSpec


@dataclasses.dataclass(frozen=True)
class Patch:
    """One patch to read."""

    name: str
    place: str
    """Its folder, or the LMDB that holds it."""
    labels: tuple[str, ...] | None = None
    """Names of its classes; None: they lie beside its pixels."""


@dataclasses.dataclass(frozen=True)
class Part:
    """What one process does at a time."""

    number: int
    split: str
    patches: tuple[Patch, ...]

    @property
    def prefix(self) -> str:
        """Begins the names of its shards, behind the split."""
        return f"{self.number:05d}-"

    @property
    def num_patches(self) -> int:
        """How many it reads."""
        return len(self.patches)

    @property
    def names(self) -> list[str]:
        """Of its patches."""
        return [patch.name for patch in self.patches]


@dataclasses.dataclass(frozen=True)
class Job:
    """What all parts have in common."""

    folder: str
    """The partial data set."""
    num_classes: int
    file_format: str
    upsample: Upsampler | None
    """Gives all bands at 10 m; None: they are kept as they are."""
    threads: int = 1
    """Cores for one process: no part of the work here uses more than one."""
    shard_bytes: int = store.SHARD_BYTES

    @property
    def spec(self) -> DatasetSpec:
        """What an example holds."""
        return bigearthnet_patches.build_spec(self.num_classes, upsampled=self.upsample is not None)

    def do(self, part: Part, advance: Callable[[int], None] = lambda done: None) -> Done:
        """Read and write a part, and note it in the journal once it is on disk.

        Args:
            part: which patches.
            advance: called with the number of patches that are done, left out or failed.

        Returns:
            With notes: `classes` (how many patches have each, in order of the classes), `left_out`
            (patch -> reason), `synthetic` (whether the first of them was made up).

        Raises:
            DataError: the disk is full, or the folder not to be written to. A patch that cannot be
                read is left out instead, and named in what is returned.
        """
        import rasterio

        folder = pathlib.Path(self.folder)
        parts.remove_shards(folder, part.prefix)
        left_out, failed = dict[str, str](), dict[str, str]()
        classes = [0] * self.num_classes
        with rasterio.Env(GDAL_CACHEMAX=parts.GDAL_CACHE, GDAL_NUM_THREADS=1):
            shards = store.write_shards(
                folder,
                self.spec,
                _count(_examples(self, part, left_out, failed, advance), classes),
                file_format=self.file_format,
                prefix=part.prefix,
                shard_bytes=self.shard_bytes,
            )
        advance(part.num_patches)
        notes = {
            "classes": classes,
            "left_out": left_out,
            "synthetic": _is_synthetic(part, failed),
        }
        counts = dict(collections.Counter(left_out.values()))
        done = Done(part.number, shards, counts, failed, notes)
        journal.write_entry(folder, done)
        return done


def _count(
    examples: Iterator[tuple[str, dict[str, Any]]], classes: list[int]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same, and how many of them have each class."""
    for split, example in examples:
        for index in example["targets"]["labels"].nonzero()[0].tolist():
            classes[index] += 1
        yield split, example


def _examples(
    job: Job,
    part: Part,
    left_out: dict[str, str],
    failed: dict[str, str],
    advance: Callable[[int], None],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Split and example of each patch that can be used."""
    for number, patch in enumerate(part.patches):
        try:
            example = _read(job, patch)
        except (DataError, OSError) as error:
            failed[patch.name] = str(error)
            continue
        if isinstance(example, str):
            left_out[patch.name] = example
        else:
            yield part.split, example
        if number % parts.REPORT == 0:
            advance(number)


def _read(job: Job, patch: Patch) -> dict[str, Any] | str:
    """An example, or why there is none.

    Raises:
        DataError: the patch is damaged, or its labels are.
    """
    labels = patch.labels
    if labels is None:
        labels = bigearthnet_patches.read_labels(patch.place, patch.name)
    row = nomenclature.encode(labels, job.num_classes, f"{patch.place}: {patch.name}")
    images = bigearthnet_patches.read_images(patch.place, patch.name)
    # After reading, so that a damaged patch is found whatever its labels.
    if not row.any():
        return NO_CLASS
    if not any(image.any() for image in images.values()):
        return EMPTY
    inputs: Any = images
    if job.upsample is not None:
        inputs = {"bands": job.upsample(images, patch.place, patch.name)}
        if not inputs["bands"].any():  # an upsampled tile that ends before the patch
            return EMPTY
    return {"inputs": inputs, "targets": {"labels": row}, "patch_id": patch.name}


def _is_synthetic(part: Part, failed: dict[str, str]) -> bool:
    """Whether the first patch that could be read was made up: an archive is so as a whole."""
    first = next((patch for patch in part.patches if patch.name not in failed), None)
    return first is not None and bigearthnet_patches.is_synthetic(first.place, first.name)
