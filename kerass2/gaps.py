"""Pixels without data in what a network reads: filled from the pixels beside them.

A gap reads as reflectance 0. Interpolation would take a quarter of it into the pixel beside the
gap, convolutions some of it into those that follow, and the mean of a block would be far off. The
output has no data in the gap itself, see sharpen.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# How far into a gap it is filled [px of 10 m]; whole pixels of every GSD, and past a block of
# 32 px, the mean of which a network may subtract. What lies deeper stays 0.
# Windows are read with as much more on each side, so that no value depends on the window.
REACH = 36


def fill(reflectance: NDArray[np.float32], ratio: int) -> None:
    """Fill gaps of (y, x, band) reflectance, 0 where there are no data, in place.

    Pixel after pixel from the gap's edge inwards: each is the mean of those of its eight neighbours
    that are known.

    Args:
        reflectance: of one cube.
        ratio: its pixel size over 10 m.
    """
    for band in range(reflectance.shape[2]):
        missing = reflectance[..., band] == 0
        if not missing.any() or missing.all():
            continue
        rows, columns = (_around(missing.any(axis=axis)) for axis in (1, 0))
        _fill_band(reflectance[rows, columns, band], missing[rows, columns], REACH // ratio)


def _around(flags: NDArray[np.bool_]) -> slice:
    """From before the first that is True to after the last: nothing else is looked at."""
    found = np.flatnonzero(flags)
    return slice(max(int(found[0]) - 1, 0), int(found[-1]) + 2)


def _fill_band(image: NDArray[np.float32], missing: NDArray[np.bool_], steps: int) -> None:
    """Ring after ring: only pixels beside those known since the last are looked at."""
    values, unknown = np.pad(image, 1), np.pad(missing, 1)
    flat, open_, width = values.reshape(-1), unknown.reshape(-1), values.shape[1]
    around = np.array([y * width + x for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x])
    # Beyond the image there is nothing: neither unknown nor known.
    known = np.pad(~missing, 1).reshape(-1)
    ring = np.flatnonzero(open_)
    ring = ring[known[ring[:, None] + around].any(axis=1)]
    for _ in range(steps):
        if not len(ring):
            break
        beside = ring[:, None] + around
        seen = known[beside]
        flat[ring] = np.where(seen, flat[beside], np.float32(0)).sum(1) / seen.sum(1)
        known[ring], open_[ring] = True, False
        ring = np.unique(beside[open_[beside]])
    image[...] = values[1:-1, 1:-1]
