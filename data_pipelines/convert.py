"""Granules to a data set on disk: place the patches, cut them, write them."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from data_pipelines import cube, split, tfrecord
from data_pipelines.granule import Granule, open_granules
from data_pipelines.spec import SPLITS, DataError

# Training patches overlap by half: twice as many in each direction as fit side by side.
OVERLAP = 2
FORMATS = ("tfrecord",)


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a conversion wrote."""

    folder: pathlib.Path
    counts: Mapping[str, int]
    """Patches of each split."""
    granules: int
    scenes: int
    dropped: int
    """Patches that were placed, but held pixels without data."""
    synthetic: bool
    """Whether any granule was made up, not measured."""


def open_all(paths: Sequence[str | os.PathLike[str]]) -> Iterator[Granule]:
    """Granules of several sources, one after the other."""
    for path in paths:
        yield from open_granules(path)


def convert(
    open_sources: Callable[[], Iterable[Granule]],
    folder: str | os.PathLike[str],
    task_name: str,
    *,
    only_split: str | None = None,
    patch_size: int | None = None,
    stride: int | None = None,
    seed: int = 0,
    fractions: Sequence[float] = split.FRACTIONS,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Cut granules into patches under Wald's protocol and write them as TFRecord.

    Args:
        open_sources: gives the granules; called twice (to place patches, to cut them), so that
            no more than one is in memory.
        folder: the data set to write; appears complete or not at all.
        task_name: a key of cube.TASKS.
        only_split: put all patches into this split; None splits by place.
        patch_size: edge of a patch [px of the target]; None is the task's.
        stride: distance of training patches [px of the target]; None is half the patch.
        seed: for the choice of places.
        fractions: shares of train, validation, test.
        provenance: kept in the manifest, with what was chosen here: patch_size, stride, seed,
            split, scenes; synthetic (any granule was made up); gap, the least distance of patches
            of two splits, and receptive_radius, the models' part of it [px of the target].
        overwrite: replace an existing data set.
        advance: called with (patches done, patches placed) after each.

    Raises:
        DataError: bad input, or no patch at all; nothing is written then.
    """
    task = cube.find_task(task_name)
    size = task.patch_size if patch_size is None else patch_size
    spec = cube.build_spec(task, size)
    step = _stride(task, size, stride)
    sites, scenes, synthetic = _survey(open_sources())
    if only_split is None:
        patches = split.place_patches(sites, task, size, step, seed=seed, fractions=fractions)
    else:
        patches = split.place_all(sites, task, size, step, only_split)
    if not len(patches.split):
        largest = max((site.shape for site in sites), default=(0, 0))
        raise DataError(
            f"no patch fits: {task.name} needs {size} px of {task.gsd} m after degradation by "
            f"{task.scale}; the largest source has {largest[0]} x {largest[1]} px of 10 m"
        )
    counts = dict.fromkeys(SPLITS, 0)

    def examples() -> Iterator[tuple[str, dict[str, Any]]]:
        done, total = 0, len(patches.split)
        for index, granule in enumerate(open_sources()):
            names = dict(patches.windows(index, size))
            for number, (window, example) in enumerate(cube.cut(granule, task, names), done + 1):
                counts[names[window]] += 1
                yield names[window], example
                advance(number, total)
            done += len(names)
            advance(done, total)  # those without data too
        if not any(counts.values()):
            raise DataError(f"no patch is free of pixels without data ({sites[0].name}, ...)")

    facts = {
        **(provenance or {}),
        "patch_size": size,
        "stride": step,
        "split": only_split or "by place",
        "seed": seed,
        "gap": task.gap,
        "receptive_radius": cube.RECEPTIVE_RADIUS,
        "scenes": scenes,
        "synthetic": synthetic,
    }
    path = tfrecord.write(
        folder, spec, examples(), provenance=facts, splits=SPLITS, overwrite=overwrite
    )
    dropped = len(patches.split) - sum(counts.values())
    return Summary(path, counts, len(sites), len(scenes), dropped, synthetic)


def _stride(task: cube.Task, size: int, stride: int | None) -> int:
    """The stride that was asked for, or half the patch; whole pixels of the degraded grids."""
    if stride is None:
        return max(size // OVERLAP // task.scale, 1) * task.scale
    if stride < 1 or stride % task.scale:
        raise DataError(f"stride {stride}: {task.name} needs a positive multiple of {task.scale}")
    return stride


def _survey(granules: Iterable[Granule]) -> tuple[list[split.Site], list[str], bool]:
    """Sites, scenes, and whether any granule is made up.

    Raises:
        DataError: two granules of one name, whose patches could not be told apart.
    """
    sites: dict[str, split.Site] = {}
    scenes: dict[str, None] = {}
    synthetic = False
    for granule in granules:
        if granule.name in sites:
            raise DataError(f"two sources are named {granule.name}; expected each once")
        sites[granule.name] = split.Site.of(granule)
        scenes[granule.scene] = None
        synthetic |= granule.synthetic
    return list(sites.values()), list(scenes), synthetic
