"""Pixels without data in what a network reads: filled from the pixels beside them.

A gap reads as reflectance 0. Interpolation would take a quarter of it into the pixel beside the
gap, convolutions some of it into those that follow, and the mean of a block would be far off. The
output has no data in the gap itself, see sharpen.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# How far into a gap it is filled [px of 10 m]; whole pixels of every GSD. What lies deeper stays 0.
# Windows are read with as much more on each side, so that no value depends on the window.
REACH = 12


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
    for _ in range(steps):
        known = ~missing
        counts = _sums_of_nine(known.astype(np.float32))
        new = missing & (counts > 0)
        if not new.any():
            return
        sums = _sums_of_nine(np.where(known, image, np.float32(0)))
        image[new] = sums[new] / counts[new]
        missing = missing & ~new


def _sums_of_nine(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sum of each pixel and its eight neighbours, in one order wherever the image is cut."""
    padded = np.pad(image, 1)
    across = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    total: NDArray[np.float32] = across[:-2] + across[1:-1] + across[2:]
    return total
