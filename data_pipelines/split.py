"""Split by place: patches of two splits never see the same ground.

Where sources come from at least three places (tiles, scenes), a place goes to one split as a whole.
Else the ground is divided into blocks, and a block goes to one split: one or two places cannot fill
three splits as wholes, and a data set without validation or test is of less use than one whose
splits share a scene. Either way patches near one of another split are dropped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipelines.cube import Task, target_shape
from data_pipelines.granule import Granule
from data_pipelines.spec import SPLITS
from data_pipelines.windows import Window, lattice

# Shares of the patches: train, validation, test.
FRACTIONS = (0.8, 0.1, 0.1)
# Least edge of a block [px of 10 m]: 2.56 km, twice a BigEarthNet patch and more.
BLOCK = 256
# Blocks along the longer side of a large granule: the larger they are, the fewer patches lie near a
# border.
BLOCKS_ALONG = 10
# Orders of units that are tried for a split that leaves none empty and has the right shares.
ATTEMPTS = 16


@dataclasses.dataclass(frozen=True)
class Site:
    """What the split needs to know of a granule; see there."""

    name: str
    place: str
    shape: tuple[int, int]
    """[px of 10 m]."""
    plane: str = ""
    origin: tuple[int, int] | None = (0, 0)

    @classmethod
    def of(cls, granule: Granule) -> Site:
        """The site of a granule."""
        plane = granule.plane or granule.place
        return cls(granule.name, granule.place, granule.shape, plane, granule.origin)


@dataclasses.dataclass(frozen=True)
class Patches:
    """Where patches lie: parallel arrays, one entry a patch."""

    site: NDArray[np.int64]
    """Index of the site."""
    y: NDArray[np.int64]
    """First row in the granule [px of the target]."""
    x: NDArray[np.int64]
    """First column."""
    split: NDArray[np.int64]
    """Index in SPLITS."""

    def windows(self, site: int, size: int) -> list[tuple[Window, str]]:
        """Window and split of each patch of one site; sites are in ascending order."""
        first, last = np.searchsorted(self.site, [site, site + 1])
        return [
            (Window(int(y), int(x), size, size), SPLITS[split])
            for y, x, split in zip(
                self.y[first:last], self.x[first:last], self.split[first:last], strict=True
            )
        ]

    def counts(self) -> dict[str, int]:
        """Number of patches of each split."""
        return {name: int((self.split == i).sum()) for i, name in enumerate(SPLITS)}


def place_all(sites: Sequence[Site], task: Task, size: int, stride: int, split: str) -> Patches:
    """All patches of the lattice in one split; those of train may overlap, others do not."""
    step = stride if split == "train" else max(stride, size)
    site, y, x = _lattices(sites, task, size, step)
    return Patches(site, y, x, np.full(len(y), SPLITS.index(split)))


def place_patches(
    sites: Sequence[Site],
    task: Task,
    size: int,
    stride: int,
    *,
    seed: int = 0,
    fractions: Sequence[float] = FRACTIONS,
) -> Patches:
    """Where patches of all splits lie; the same for the same arguments.

    With one unit (place or block) all is train, with two the second is test; from three on every
    split gets patches if any choice that was tried leaves it some.

    Args:
        sites: where to cut.
        task: gives GSD and the gap between splits.
        size: edge of a patch [px of the target].
        stride: distance of training patches [px of the target]; patches of validation and test
            never overlap, so that each pixel counts once.
        seed: chooses among splits of equal worth.
        fractions: shares of train, validation, test.
    """
    unit_of_train, train = _units(sites, task, size, stride)
    unit_of_other, other = _units(sites, task, size, max(stride, size))
    keys = sorted({*unit_of_train, *unit_of_other}, key=repr)
    number = {key: i for i, key in enumerate(keys)}
    units = [np.array([number[k] for k in u], np.int64) for u in (unit_of_train, unit_of_other)]
    weights = np.bincount(units[0], minlength=len(keys))
    best: tuple[tuple[int, float], Patches] | None = None
    for attempt in range(ATTEMPTS):
        order = np.random.default_rng([seed, attempt]).permutation(len(keys))
        split = assign(weights, order, fractions)
        patches = _keep_apart(sites, task, size, split, (units[0], train), (units[1], other))
        filled = sum(count > 0 for count in patches.counts().values())
        shares = np.bincount(split, weights, len(SPLITS)) / max(weights.sum(), 1)
        score = filled, -float(np.abs(shares - fractions).sum())
        if best is None or score > best[0]:
            best = score, patches
    if best is None:
        raise ValueError("ATTEMPTS must be at least 1")
    return best[1]


def assign(
    weights: NDArray[np.int64], order: Iterable[int], fractions: Sequence[float]
) -> NDArray[np.int64]:
    """Split (index in SPLITS) of each unit: each in turn goes where the share is least filled.

    So the first three fill three splits; of two, the second is test.
    """
    split = np.zeros(len(weights), np.int64)
    filled = np.zeros(len(fractions))
    # Ties: train, test, validation: who has only two units wants a test.
    ranking = (0, 2, 1)
    for unit in order:
        chosen = min(ranking, key=lambda s: filled[s] / fractions[s])
        split[unit] = chosen
        filled[chosen] += max(int(weights[unit]), 1)
    return split


def _lattices(
    sites: Sequence[Site], task: Task, size: int, stride: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(site, y, x) of every window of every site [px of the target]."""
    rows = [
        (index, window.y, window.x)
        for index, site in enumerate(sites)
        for window in lattice(*target_shape(task, site.shape), size, stride)
    ]
    table = np.array(rows, np.int64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]


_Positions = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def _units(
    sites: Sequence[Site], task: Task, size: int, stride: int
) -> tuple[list[Hashable], _Positions]:
    """The unit that each window belongs to, and the windows."""
    positions = _lattices(sites, task, size, stride)
    whole = len({site.place for site in sites}) >= len(SPLITS)
    # Of such a place nobody knows which parts touch.
    lost = {site.place for site in sites if site.origin is None}
    ratio = task.gsd // 10
    longest = max((max(site.shape) for site in sites), default=0)
    block = max(BLOCK, 2 * size * ratio, longest // BLOCKS_ALONG)
    units: list[Hashable] = []
    for index, y, x in zip(*(array.tolist() for array in positions), strict=True):
        site = sites[index]
        if whole or site.origin is None or site.place in lost:
            units.append(site.place)
            continue
        if max(site.shape) <= block:  # never through a small granule
            centre = site.shape[0] // 2, site.shape[1] // 2
        else:
            centre = (y + size // 2) * ratio, (x + size // 2) * ratio
        cell = (site.origin[0] + centre[0]) // block, (site.origin[1] + centre[1]) // block
        units.append((site.plane, *cell))
    return units, positions


def _keep_apart(
    sites: Sequence[Site],
    task: Task,
    size: int,
    split: NDArray[np.int64],
    train: tuple[NDArray[np.int64], _Positions],
    other: tuple[NDArray[np.int64], _Positions],
) -> Patches:
    """Patches of each split without those nearer than the gap to one of another split.

    Test keeps all of its patches, validation those far from test, train those far from both: what
    is scarce loses least.
    """
    ratio = task.gsd // 10
    reach = (size + task.gap) * ratio
    kept: list[tuple[_Positions, int]] = []
    for index in (2, 1, 0):
        units, positions = train if index == 0 else other
        mine = split[units] == index
        site, y, x = (array[mine] for array in positions)
        corners = _corners(sites, site, y, x, ratio)
        far = np.ones(len(site), bool)
        for rivals, _ in kept:
            far &= ~_near(sites, site, corners, rivals, reach, ratio)
        kept.append(((site[far], y[far], x[far]), index))
    columns = [np.concatenate([positions[i] for positions, _ in kept]) for i in range(3)]
    splits = np.concatenate([np.full(len(positions[0]), i) for positions, i in kept])
    order = np.lexsort((columns[2], columns[1], columns[0]))
    site, y, x = (column[order] for column in columns)
    return Patches(site, y, x, splits[order])


def _corners(
    sites: Sequence[Site],
    site: NDArray[np.int64],
    y: NDArray[np.int64],
    x: NDArray[np.int64],
    ratio: int,
) -> NDArray[np.int64]:
    """(patch, 2) upper left corner in the plane [px of 10 m]."""
    origins = np.array([s.origin or (0, 0) for s in sites], np.int64).reshape(-1, 2)
    return origins[site] + np.stack([y, x], axis=1) * ratio


def _near(
    sites: Sequence[Site],
    site: NDArray[np.int64],
    corners: NDArray[np.int64],
    rivals: _Positions,
    reach: int,
    ratio: int,
) -> NDArray[np.bool_]:
    """Whether a rival of the same plane has its corner nearer than `reach` on both axes."""
    from scipy.spatial import cKDTree

    near = np.zeros(len(site), bool)
    planes = np.array([_plane_number(sites)[s.plane] for s in sites], np.int64)
    known = np.array([s.origin is not None for s in sites], bool)
    rival_corners = _corners(sites, *rivals, ratio)
    for plane in np.unique(planes[rivals[0]]):
        theirs = (planes[rivals[0]] == plane) & known[rivals[0]]
        mine = np.flatnonzero((planes[site] == plane) & known[site])
        if theirs.any() and mine.size:
            tree = cKDTree(rival_corners[theirs])
            distance, _ = tree.query(corners[mine], p=np.inf, distance_upper_bound=reach)
            near[mine] = distance < reach
    return near


def _plane_number(sites: Sequence[Site]) -> Mapping[str, int]:
    return {plane: i for i, plane in enumerate(dict.fromkeys(site.plane for site in sites))}
