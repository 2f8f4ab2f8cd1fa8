"""Pixel windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines import windows
from data_pipelines.windows import Window

sizes = st.integers(1, 70)
boxes = st.builds(
    Window, st.integers(-40, 40), st.integers(-40, 40), st.integers(0, 30), st.integers(0, 30)
)


def painted(window: Window, margin: int = 100) -> np.ndarray:
    """The window as a mask, by numpy's own indexing."""
    mask = np.zeros((2 * margin, 2 * margin), bool)
    moved = Window(window.y + margin, window.x + margin, window.height, window.width)
    mask[moved.slices] = True
    return mask


@given(window=boxes, height=sizes, width=sizes)
def test_clipped_is_the_intersection_with_the_raster(
    window: Window, height: int, width: int
) -> None:
    clipped = window.clipped(height, width)
    both = painted(window) & painted(Window(0, 0, height, width))
    if clipped.height and clipped.width:
        np.testing.assert_array_equal(painted(clipped), both)
    else:
        assert not both.any()


@given(a=boxes, b=boxes, margin=st.integers(0, 12))
def test_windows_farther_than_a_margin_stay_apart_when_grown_by_it(
    a: Window, b: Window, margin: int
) -> None:
    assert a.distance(b) == b.distance(a)
    if a.height and a.width and b.height and b.width:
        meet = bool((painted(a.grown(margin)) & painted(b)).any())
        assert meet == (a.distance(b) < margin) or a.distance(b) == 0


@given(window=boxes, ratio=st.integers(1, 6))
def test_finer_and_coarser_are_inverse(window: Window, ratio: int) -> None:
    assert window.finer(ratio).coarser(ratio) == window


def test_coarser_refuses_to_cut_pixels() -> None:
    with pytest.raises(ValueError, match="does not nest"):
        Window(2, 3, 4, 4).coarser(2)


@given(height=sizes, width=sizes, size=st.integers(1, 20), stride=st.integers(1, 20))
def test_lattice_has_every_window_that_fits(
    height: int, width: int, size: int, stride: int
) -> None:
    expected = [
        (y, x)
        for y in range(height)
        for x in range(width)
        if not y % stride and not x % stride and y + size <= height and x + size <= width
    ]
    found = list(windows.lattice(height, width, size, stride))
    assert [(w.y, w.x) for w in found] == expected
    assert {(w.height, w.width) for w in found} <= {(size, size)}


@given(height=sizes, width=sizes, size=st.integers(1, 30), halo=st.integers(0, 9))
def test_tiles_fill_the_raster_once_and_see_their_halo(
    height: int, width: int, size: int, halo: int
) -> None:
    count = np.zeros((height, width), int)
    for core, view in windows.tiles(height, width, size, halo):
        count[core.slices] += 1
        assert view == core.grown(halo).clipped(height, width)
    assert (count == 1).all()


@pytest.mark.parametrize(
    "call", [lambda: windows.lattice(9, 9, 0, 1), lambda: windows.tiles(9, 9, 3, -1)]
)
def test_impossible_sizes_are_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="at least"):
        list(call())
    with pytest.raises(ValueError, match="negative"):
        Window(0, 0, -1, 3)
