"""Split by place: patches of two splits never see the same ground.

Where sources come from at least three places (tiles, scenes), a place goes to one split as a whole.
Else the ground is divided into blocks, and a block goes to one split: one or two places cannot fill
three splits as wholes, and a data set without validation or test is of less use than one whose
splits share a scene. Either way patches near one of another split are dropped.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.cube import Task, target_shape
from data_pipelines.granule import Granule
from data_pipelines.spec import SPLITS
from data_pipelines.windows import Window

# Shares of the patches: train, validation, test.
FRACTIONS = (0.8, 0.1, 0.1)
# Least edge of a block [px of 10 m]: 2.56 km, twice a BigEarthNet patch and more.
BLOCK = 256
# Blocks along the longer side of a large granule: the larger they are, the fewer patches lie near a
# border.
BLOCKS_ALONG = 10
# Orders of units that are tried for a split that leaves none empty and has the right shares.
ATTEMPTS = 16


# (site, y, x) of patches, parallel arrays. 32 bits: a data set of 45 whole tiles has 5 million.
_Positions = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]


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

    site: NDArray[np.int32]
    """Index of the site, ascending."""
    y: NDArray[np.int32]
    """First row in the granule [px of the target]."""
    x: NDArray[np.int32]
    """First column."""
    split: NDArray[np.int8]
    """Index in SPLITS."""

    def of(self, site: int) -> Patches:
        """Those of one site."""
        first, last = np.searchsorted(self.site, [site, site + 1])
        return self.take(slice(int(first), int(last)))

    def take(self, which: Any) -> Patches:
        """Some of them: a slice, a mask, or ascending positions."""
        return Patches(self.site[which], self.y[which], self.x[which], self.split[which])

    def windows(self, site: int, size: int) -> list[tuple[Window, str]]:
        """Window and split of each patch of one site, from top to bottom."""
        return list(self.of(site).each(size))

    def each(self, size: int) -> Iterator[tuple[Window, str]]:
        """Window and split of each patch, in order; made one by one, for there may be millions."""
        for start in range(0, len(self.y), 1024):
            columns = (v[start : start + 1024].tolist() for v in (self.y, self.x, self.split))
            for y, x, split in zip(*columns, strict=True):
                yield Window(y, x, size, size), SPLITS[split]

    def counts(self) -> dict[str, int]:
        """Number of patches of each split."""
        return {name: int((self.split == i).sum()) for i, name in enumerate(SPLITS)}


def place_all(sites: Sequence[Site], task: Task, size: int, stride: int, split: str) -> Patches:
    """All patches of the lattice in one split; those of train may overlap, others do not."""
    step = stride if split == "train" else max(stride, size)
    site, y, x = _lattices(sites, task, size, step)
    return Patches(site, y, x, np.full(len(y), SPLITS.index(split), np.int8))


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
    keys_of_train, train = _units(sites, task, size, stride)
    keys_of_other, other = _units(sites, task, size, max(stride, size))
    keys, number = np.unique(
        np.concatenate([keys_of_train, keys_of_other]), axis=0, return_inverse=True
    )
    number = _by_name(sites, keys)[number.reshape(-1)]
    units = number[: len(keys_of_train)], number[len(keys_of_train) :]
    weights = np.bincount(units[0], minlength=len(keys))
    choices = [
        assign(weights, np.random.default_rng([seed, attempt]).permutation(len(keys)), fractions)
        for attempt in range(ATTEMPTS)
    ]

    def deviation(split: NDArray[np.int64]) -> float:
        shares = np.bincount(split, weights, len(SPLITS)) / max(weights.sum(), 1)
        return float(np.abs(shares - fractions).sum())

    # To look for near neighbours costs most, so it begins with the best shares and ends with the
    # first choice that fills as many splits as there can be.
    best: tuple[int, Patches] | None = None
    for split in sorted(choices, key=deviation):
        patches = _keep_apart(sites, task, size, split, (units[0], train), (units[1], other))
        filled = sum(count > 0 for count in patches.counts().values())
        if best is None or filled > best[0]:
            best = filled, patches
        if filled == min(len(keys), len(SPLITS)):
            break
    if best is None:
        raise ValueError("ATTEMPTS must be at least 1")
    return best[1]


def thin_out(sites: Sequence[Site], patches: Patches, per_tile: int, *, seed: int = 0) -> Patches:
    """At most so many patches of each place, drawn at random; in order as before.

    The draw depends on the seed and on the place alone: not on its neighbours, nor on the machine.
    """
    if per_tile < 1:
        raise ValueError(f"{per_tile} patches a tile: at least 1")
    places = {s.place: i for i, s in enumerate(sites)}
    place_of = np.array([places[s.place] for s in sites], np.int32)[patches.site]
    order = np.argsort(place_of, kind="stable")
    bounds = np.flatnonzero(np.diff(place_of[order])) + 1
    chosen = []
    for mine in np.split(order, bounds):
        if len(mine) > per_tile:
            place = sites[int(patches.site[mine[0]])].place
            rng = np.random.default_rng([seed, zlib.crc32(place.encode())])
            mine = rng.choice(mine, per_tile, replace=False)
        chosen.append(mine)
    return patches.take(np.sort(np.concatenate(chosen)))


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


def _lattices(sites: Sequence[Site], task: Task, size: int, stride: int) -> _Positions:
    """(site, y, x) of every window of every site [px of the target]."""
    parts: list[tuple[NDArray[np.int32], ...]] = []
    for index, site in enumerate(sites):
        height, width = target_shape(task, site.shape)
        y, x = (np.arange(0, n - size + 1, stride, dtype=np.int32) for n in (height, width))
        rows, columns = np.repeat(y, len(x)), np.tile(x, len(y))
        parts.append((np.full(len(rows), index, np.int32), rows, columns))
    empty = np.zeros(0, np.int32)
    site_, y, x = (np.concatenate([empty, *(part[i] for part in parts)]) for i in range(3))
    return site_, y, x


def _units(
    sites: Sequence[Site], task: Task, size: int, stride: int
) -> tuple[NDArray[np.int64], _Positions]:
    """The unit that each window belongs to, as a row of _unit_keys, and the windows."""
    site, y, x = positions = _lattices(sites, task, size, stride)
    whole = len({s.place for s in sites}) >= len(SPLITS)
    # Of such a place nobody knows which parts touch.
    lost = {s.place for s in sites if s.origin is None}
    ratio = task.gsd // 10
    longest = max((max(s.shape) for s in sites), default=0)
    block = max(BLOCK, 2 * size * ratio, longest // BLOCKS_ALONG)
    places = {place: i for i, place in enumerate(sorted({s.place for s in sites}))}
    planes = _plane_number(sites)
    keys = np.empty((len(site), 4), np.int64)
    bounds = np.searchsorted(site, np.arange(len(sites) + 1))
    for index, s in enumerate(sites):
        rows = slice(int(bounds[index]), int(bounds[index + 1]))
        if whole or s.origin is None or s.place in lost:
            keys[rows] = (0, places[s.place], 0, 0)
            continue
        if max(s.shape) <= block:  # never through a small granule
            centre_y, centre_x = (np.array(n // 2) for n in s.shape)
        else:
            centre_y, centre_x = ((v[rows] + size // 2) * ratio for v in (y, x))
        keys[rows, :2] = (1, planes[s.plane])
        keys[rows, 2] = (s.origin[0] + centre_y) // block
        keys[rows, 3] = (s.origin[1] + centre_x) // block
    return keys, positions


def _by_name(sites: Sequence[Site], keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rank of each unit by the text of its name, which draws go by: not by numbers of ours."""
    places = sorted({s.place for s in sites})
    planes = list(_plane_number(sites))
    names = [
        repr((planes[first], y, x) if kind else places[first])
        for kind, first, y, x in keys.tolist()
    ]
    rank = np.empty(len(names), np.int64)
    rank[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    return rank


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
    splits = np.concatenate([np.full(len(positions[0]), i, np.int8) for positions, i in kept])
    order = np.lexsort((columns[2], columns[1], columns[0]))
    site, y, x = (column[order] for column in columns)
    return Patches(site, y, x, splits[order])


def _corners(
    sites: Sequence[Site],
    site: NDArray[np.int32],
    y: NDArray[np.int32],
    x: NDArray[np.int32],
    ratio: int,
) -> NDArray[np.int64]:
    """(patch, 2) upper left corner in the plane [px of 10 m]."""
    origins = np.array([s.origin or (0, 0) for s in sites], np.int64).reshape(-1, 2)
    return origins[site] + np.stack([y, x], axis=1) * ratio


def _near(
    sites: Sequence[Site],
    site: NDArray[np.int32],
    corners: NDArray[np.int64],
    rivals: _Positions,
    reach: int,
    ratio: int,
) -> NDArray[np.bool_]:
    """Whether a rival of the same plane has its corner nearer than `reach` on both axes."""
    from scipy.spatial import cKDTree

    near = np.zeros(len(site), bool)
    number = _plane_number(sites)
    planes = np.array([number[s.plane] for s in sites], np.int64)
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
