"""Split by place: no two splits see the same ground."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import cube, split
from data_pipelines.split import Site

TASK = cube.TASKS["superres_20m"]
BIG = cube.TASKS["superres_60m"]


def boxes(
    sites: list[Site], patches: split.Patches, task: cube.Task, size: int
) -> dict[str, dict[str, np.ndarray]]:
    """{plane: {split: (n, 2) corners}} [px of the target], from origins in px of 10 m."""
    ratio = task.gsd / 10
    result: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for index, site in enumerate(sites):
        for window, name in patches.windows(index, size):
            if site.origin is not None:
                corner = (site.origin[0] / ratio + window.y, site.origin[1] / ratio + window.x)
                result.setdefault(site.plane, {}).setdefault(name, []).append(corner)
    return {p: {k: np.array(v) for k, v in g.items()} for p, g in result.items()}


def least_gap(sites: list[Site], patches: split.Patches, task: cube.Task, size: int) -> float:
    """Least distance between patches of two splits [px of the target], the slow way."""
    gaps = [np.inf]
    for group in boxes(sites, patches, task, size).values():
        for a, b in itertools.combinations(group.values(), 2):
            apart = np.abs(a[:, None] - b[None]).max(axis=-1) - size
            gaps.append(float(apart.min()))
    return min(gaps)


granules = st.lists(
    st.builds(
        Site,
        name=st.uuids().map(str),
        place=st.sampled_from(["T1", "T2", "T3", "T4"]),
        shape=st.sampled_from([(120, 120), (600, 420), (1100, 900)]),
        plane=st.sampled_from(["EPSG:1", "EPSG:2"]),
        origin=st.tuples(st.integers(-2000, 2000), st.integers(-2000, 2000)) | st.none(),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=40, deadline=None)
@given(
    sites=granules,
    size=st.sampled_from([16, 32]),
    stride=st.sampled_from([8, 24, 32]),
    seed=st.integers(0, 99),
)
def test_splits_keep_the_receptive_field_apart(
    sites: list[Site], size: int, stride: int, seed: int
) -> None:
    patches = split.place_patches(sites, TASK, size, stride, seed=seed)
    assert least_gap(sites, patches, TASK, size) >= TASK.gap >= cube.RECEPTIVE_RADIUS
    # Ground of which the position is unknown is in one split only.
    for place in {site.place for site in sites if site.origin is None}:
        names = {
            name
            for index, site in enumerate(sites)
            for _, name in patches.windows(index, size)
            if site.place == place
        }
        assert len(names) <= 1


@pytest.mark.parametrize("seed", range(5))
def test_neighbouring_bigearthnet_patches(seed: int) -> None:
    """A whole 12 x 12 of patches that touch: crops at the borders of blocks go."""
    sites = [
        Site(f"p{r}_{c}", "T33UUP", (120, 120), "T33UUP", (r * 120, c * 120))
        for r in range(12)
        for c in range(12)
    ]
    patches = split.place_patches(sites, TASK, 32, 4, seed=seed)
    assert least_gap(sites, patches, TASK, 32) >= TASK.gap
    counts = patches.counts()
    assert all(counts.values())
    assert counts["train"] > 0.4 * len(sites) * 64


@pytest.mark.parametrize(
    ("task", "side", "size"), [(TASK, 1536, 32), (TASK, 600, 32), (BIG, 5490, 96)]
)
def test_one_granule_is_split_in_blocks(task: cube.Task, side: int, size: int) -> None:
    sites = [Site("g", "g", (side, side), "g", (0, 0))]
    patches = split.place_patches(sites, task, size, size // 2)
    assert least_gap(sites, patches, task, size) >= task.gap
    assert all(patches.counts().values())
    assert patches.counts()["train"] > patches.counts()["test"]


def test_three_tiles_are_split_as_wholes_in_the_right_shares() -> None:
    sites = [
        Site(f"s{i}", f"T{i // 2}", (600, 600), f"T{i // 2}", (i % 2 * 600, 0)) for i in range(60)
    ]
    patches = split.place_patches(sites, TASK, 32, 32)
    by_place: dict[str, set[str]] = {}
    for index, site in enumerate(sites):
        by_place.setdefault(site.place, set()).update(n for _, n in patches.windows(index, 32))
    assert all(len(names) == 1 for names in by_place.values())
    counts = patches.counts()
    shares = {name: count / sum(counts.values()) for name, count in counts.items()}
    assert shares == pytest.approx({"train": 0.8, "validation": 0.1, "test": 0.1}, abs=0.03)


def test_it_is_the_same_again_and_the_seed_matters() -> None:
    sites = [Site(f"s{i}", f"T{i}", (600, 600), f"T{i}", (0, 0)) for i in range(20)]
    one, two, other = (split.place_patches(sites, TASK, 32, 16, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.split, two.split)
    assert one.split.shape != other.split.shape or (one.split != other.split).any()


@pytest.mark.parametrize(
    ("count", "filled"),
    [(1, {"train"}), (2, {"train", "test"}), (3, {"train", "validation", "test"})],
)
def test_few_places(count: int, filled: set[str]) -> None:
    sites = [Site(f"s{i}", f"T{i}", (120, 120), f"T{i}", (0, 0)) for i in range(count)]
    counts = split.place_patches(sites, TASK, 32, 16).counts()
    assert {name for name, n in counts.items() if n} == filled


def test_validation_and_test_patches_do_not_overlap() -> None:
    sites = [Site(f"s{i}", f"T{i}", (600, 600), f"T{i}", (0, 0)) for i in range(3)]
    patches = split.place_patches(sites, TASK, 32, 4)
    for index in range(3):
        found = patches.windows(index, 32)
        if found[0][1] != "train":
            assert all(w.y % 32 == 0 and w.x % 32 == 0 for w, _ in found)
            assert len(found) == 81


def test_everything_into_one_split() -> None:
    sites = [Site("a", "T1", (600, 600)), Site("b", "T2", (120, 120))]
    patches = split.place_all(sites, TASK, 32, 16, "test")
    assert patches.counts() == {"train": 0, "validation": 0, "test": 82}
    assert split.place_all(sites, TASK, 32, 16, "train").counts()["train"] > 82


NATIVE = cube.TASKS["patches"]


@pytest.mark.parametrize("places", [1, 3])
def test_native_patches_lie_side_by_side(places: int) -> None:
    sites = [Site(f"g{i}", f"T{i}", (3660, 3660), f"T{i}", (0, 0)) for i in range(places)]
    patches = split.place_patches(sites, NATIVE, 120, 120)
    assert all(patches.counts().values())
    assert least_gap(sites, patches, NATIVE, 120) >= 0
    corners = {(s, y, x) for s, y, x in zip(patches.site, patches.y, patches.x, strict=True)}
    assert len(corners) == len(patches.y) <= places * 30 * 30
    assert len(patches.y) > 0.8 * places * 30 * 30
    assert (patches.y % 120 == 0).all()


def test_tiles_are_thinned_out() -> None:
    sites = [
        Site("a1", "T1", (600, 600), "T1", (0, 0)),
        Site("b", "T2", (600, 600), "T2", (0, 0)),
        Site("a2", "T1", (600, 600), "T1", (600, 0)),
        Site("c", "T3", (100, 100), "T3", (0, 0)),
    ]
    patches = split.place_all(sites, TASK, 32, 16, "train")
    thin = split.thin_out(sites, patches, 50, seed=3)
    per_site = np.bincount(thin.site, minlength=4)
    assert per_site[0] + per_site[2] == per_site[1] == 50
    assert per_site[0] > 10 < per_site[2]
    assert per_site[3] == 4  # all that there are
    rows = [(s, y, x) for s, y, x in zip(thin.site, thin.y, thin.x, strict=True)]
    assert rows == sorted(set(rows))
    again = split.thin_out(sites, patches, 50, seed=3)
    np.testing.assert_array_equal(thin.y, again.y)
    other = split.thin_out(sites, patches, 50, seed=4)
    assert (thin.y != other.y).any()
    # A tile's draw does not depend on the others.
    alone = split.thin_out(
        sites[1:2], split.place_all(sites[1:2], TASK, 32, 16, "train"), 50, seed=3
    )
    mine = thin.of(1)
    np.testing.assert_array_equal(alone.y, mine.y)
    np.testing.assert_array_equal(alone.x, mine.x)
    with pytest.raises(ValueError, match="at least 1"):
        split.thin_out(sites, patches, 0)
