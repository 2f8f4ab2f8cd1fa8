"""Which patches of a BigEarthNet archive go to which split, and why the others are left out.

Of v1's 590,326 patches 519,339 are in neither list of exclusions, and 519,284 of these in an
official split; the other 55 have no class of 19. The classification paper (Sedona et al. 2019) says
519,226: which 58 patches it lacks is not known.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from data_pipelines import bigearthnet_lists, split
from data_pipelines.bigearthnet import parse_name
from data_pipelines.bigearthnet_lists import Lists
from data_pipelines.spec import SPLITS, DataError

# Why a patch is left out. The first that holds counts, so that each patch is counted once.
SNOW, CLOUD = "seasonal snow", "cloud or shadow"
UNKNOWN = "not in the metadata"
NO_SPLIT = "in no split"
# Found out when it is read.
NO_CLASS = "none of the 19 classes"
EMPTY = "all pixels zero"
FAILED = "could not be read"
REASONS = (SNOW, CLOUD, UNKNOWN, NO_SPLIT, NO_CLASS, EMPTY, FAILED)
# Shares of a split at random: those of v1's official one.
FRACTIONS = (0.52, 0.24, 0.24)
SEASONS = ("winter", "spring", "summer", "autumn")
# What --split takes beside words and paths; how names of v2 end, after their tile.
_SEEDED = re.compile(r"(?P<kind>random|tiles):(?P<seed>[0-9]+)")
_TILE = re.compile(r"_T\d\d[A-Z]{3}_\d+_\d+$")


@dataclasses.dataclass(frozen=True)
class Choice:
    """What becomes of each patch."""

    splits: Mapping[str, list[str]]
    """Names of the patches of each split, in the archive's order."""
    left_out: Mapping[str, str]
    """Name -> reason."""
    absent: Sequence[str]
    """Names that have a split but are not in the archive."""


def choose(
    names: Sequence[str],
    lists: Lists,
    how: str = "official",
    find_tile: Callable[[str], str | None] = lambda name: None,
) -> Choice:
    """Decide by names, lists and tiles; no pixel is read.

    Args:
        names: all patches of the archive.
        lists: what is known of them.
        how: "official" (that of the lists), "random:SEED" (each patch by itself), "tiles:SEED"
            (whole tiles, so that no place is in two splits, but for the rims of 10 km where
            neighbouring tiles overlap), or a path: see bigearthnet_lists.read_splits.
        find_tile: tile of a patch whose name has none, as in v1; asked for "tiles" only.

    Raises:
        DataError: no such split, lists of another version, a patch whose tile is not known, or none
            of the patches has a split.
    """
    _check_version(names, lists)
    left_out: dict[str, str] = {}
    usable = []
    for name in names:
        if name in lists.snow:
            left_out[name] = SNOW
        elif name in lists.cloud:
            left_out[name] = CLOUD
        elif lists.labels and name not in lists.labels:
            left_out[name] = UNKNOWN
        else:
            usable.append(name)
    given = _find_splits(usable, lists, how, find_tile)
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    for name in usable:
        if name in given:
            splits[given[name]].append(name)
        else:
            left_out[name] = NO_SPLIT
    there = set(names)
    absent = sorted(name for name in given if name not in there)
    if not any(splits.values()):
        raise DataError(
            f"no patch is left of {len(names):,}: {describe(left_out.values())}; "
            f"{len(absent):,} patches have a split but are not there"
        )
    return Choice(splits, left_out, absent)


def describe(reasons: Iterable[str]) -> str:
    """Reasons and how often each holds, as text."""
    counts = collections.Counter(reasons)
    return ", ".join(f"{counts[reason]:,} {reason}" for reason in REASONS if counts[reason])


def season(name: str) -> str:
    """Of the meteorological seasons the one in which a patch was taken, by its name."""
    date = re.search(r"_(\d{4})(\d{2})(\d{2})T", name)
    return SEASONS[int(date[2]) % 12 // 3] if date else "unknown"


def _check_version(names: Sequence[str], lists: Lists) -> None:
    """Refuse lists of the other version of the archive, which would exclude nothing."""
    if not names:
        return
    mine = _TILE.search(names[0]) is not None
    for group in (lists.splits, lists.snow, lists.cloud, lists.labels):
        first = next(iter(group), None)
        if first is not None and (_TILE.search(first) is not None) != mine:
            raise DataError(
                f"{', '.join(lists.files)}: lists of another version: they name {first}, the "
                f"archive holds {names[0]}"
            )


def _find_splits(
    names: Sequence[str], lists: Lists, how: str, find_tile: Callable[[str], str | None]
) -> Mapping[str, str]:
    """Name -> split."""
    if match := _SEEDED.fullmatch(how):
        seed = int(match["seed"])
        if match["kind"] == "random":
            return _by_hash(names, seed)
        return _by_tile(names, seed, find_tile)
    if how != "official":
        if not pathlib.Path(how).exists():
            raise DataError(
                f"--split {how}: expected official, random:SEED or tiles:SEED (a whole number of "
                "at least 0), or a file or folder of splits that exists"
            )
        return bigearthnet_lists.read_splits(pathlib.Path(how)).splits
    if not lists.splits:
        raise DataError(
            "no official split found; expected metadata.parquet (v2), or train.csv, val.csv and "
            "test.csv (v1), in the archive's folder, the one around it, or --lists FOLDER; or "
            "--split random:SEED or tiles:SEED"
        )
    return lists.splits


def _by_hash(names: Sequence[str], seed: int) -> dict[str, str]:
    """Each patch by itself: what is added to an archive, or missing, changes no other."""
    bounds = list(itertools.accumulate(FRACTIONS))[:-1]
    found = {}
    for name in names:
        digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
        draw = int.from_bytes(digest, "big") / 2**64
        found[name] = SPLITS[sum(draw >= bound for bound in bounds)]
    return found


def _by_tile(
    names: Sequence[str], seed: int, find_tile: Callable[[str], str | None]
) -> dict[str, str]:
    """Whole tiles, each to the split whose share is least filled.

    Of all dates: a product of v1 is no place, for another one shows the same ground.

    Raises:
        DataError: the tile of a patch is not known.
    """
    places = []
    for name in names:
        tile = parse_name(name)[1] or find_tile(name)
        if tile is None:
            raise DataError(
                f"{name}: of which tile is not known; --split tiles:{seed} expects it in the name "
                "(v2) or as tile_source in the labels (v1)"
            )
        places.append(tile)
    unique, number = np.unique(np.array(places, dtype=str), return_inverse=True)
    weights = np.bincount(number, minlength=len(unique))
    order = np.random.default_rng(seed).permutation(len(unique))
    of_place = split.assign(weights, order, FRACTIONS)
    return {name: SPLITS[of_place[index]] for name, index in zip(names, number, strict=True)}
