"""Where patches of several granules are cut: surveyed from what granules say of themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_pipelines import cube, split
from data_pipelines.granule import Granule
from data_pipelines.spec import DataError

# Training patches overlap by half: twice as many in each direction as fit side by side.
OVERLAP = 2


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where patches are cut, and what a manifest says of it."""

    sites: Sequence[split.Site]
    """One for each granule, in their order."""
    patches: split.Patches
    """All that are placed; which of them are usable only their pixels say."""
    size: int
    """Edge of a patch [px of the target]."""
    facts: Mapping[str, Any]
    """patch_size, stride, seed, split, patches_per_tile, scenes; synthetic (any granule was made
    up); gap, the least distance of patches of two splits, and receptive_radius, the models' part of
    it [px of the target]."""


class Survey:
    """What must be known of all granules before the first patch is cut."""

    def __init__(self) -> None:
        """No granule yet."""
        self.sites: list[split.Site] = []
        self.scenes: dict[str, None] = {}
        self.synthetic = False
        self._names: set[str] = set()

    def add(self, granule: Granule) -> None:
        """Take note of a granule; no pixel is read.

        Raises:
            DataError: there is one of that name, so that patches could not be told apart.
        """
        if granule.name in self._names:
            raise DataError(f"two sources are named {granule.name}; expected each once")
        self._names.add(granule.name)
        self.sites.append(split.Site.of(granule))
        self.scenes[granule.scene] = None
        self.synthetic |= granule.synthetic


def place(granules: Iterable[Granule], task: cube.Task, **options: Any) -> Placement:
    """Survey granules and place patches; `options` and errors: place_surveyed."""
    survey = Survey()
    for granule in granules:
        survey.add(granule)
    return place_surveyed(survey, task, **options)


def place_surveyed(
    survey: Survey,
    task: cube.Task,
    *,
    only_split: str | None = None,
    patch_size: int | None = None,
    stride: int | None = None,
    seed: int = 0,
    fractions: Sequence[float] = split.FRACTIONS,
    patches_per_tile: int | None = None,
) -> Placement:
    """Place the patches of all granules; the same for the same arguments.

    Args:
        survey: the granules.
        task: what to cut.
        only_split: put all patches into this split; None splits by place.
        patch_size: edge of a patch [px of the target]; None is the task's.
        stride: distance of training patches [px of the target]; None is the task's.
        seed: for the choice of places, and of patches.
        fractions: shares of train, validation, test.
        patches_per_tile: draw at most so many of each place, of all splits together.

    Raises:
        DataError: a size does not nest, or no patch fits.
    """
    size = task.patch_size if patch_size is None else patch_size
    cube.check_multiple(task, "patch size", size)
    step = choose_stride(task, size, stride)
    sites = survey.sites
    if only_split is None:
        patches = split.place_patches(sites, task, size, step, seed=seed, fractions=fractions)
    else:
        patches = split.place_all(sites, task, size, step, only_split)
    if not len(patches.split):
        raise DataError(_no_patch_fits(sites, task, size))
    if patches_per_tile is not None:
        patches = split.thin_out(sites, patches, patches_per_tile, seed=seed)
    facts = {
        "patch_size": size,
        "stride": step,
        "split": only_split or "by place",
        "seed": seed,
        "patches_per_tile": patches_per_tile,
        "gap": task.gap,
        "receptive_radius": cube.RECEPTIVE_RADIUS,
        "scenes": list(survey.scenes),
        "synthetic": survey.synthetic,
    }
    return Placement(sites, patches, size, facts)


def choose_stride(task: cube.Task, size: int, stride: int | None) -> int:
    """The stride that was asked for, or the task's usual one; whole pixels of the coarsest input.

    Raises:
        DataError: it does not nest.
    """
    if stride is None:
        if not task.overlapping:
            return size
        return max(size // OVERLAP // task.multiple, 1) * task.multiple
    cube.check_multiple(task, "stride", stride)
    return stride


def _no_patch_fits(sites: Sequence[split.Site], task: cube.Task, size: int) -> str:
    largest = max((site.shape for site in sites), default=(0, 0))
    after = f" after degradation by {task.scale}" if task.scale > 1 else ""
    return (
        f"no patch fits: {task.name} needs {size} px of {task.gsd} m{after}; the largest source "
        f"has {largest[0]} x {largest[1]} px of 10 m"
    )
