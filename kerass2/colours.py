"""Colours of pictures: bands shown as red, green and blue, and values shown dark and light."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

TRUE_COLOUR = ("B04", "B03", "B02")
# The first that an array has. B12, B8A, B05 and B08, B04, B03 show vegetation green and red.
FALSE_COLOURS = (("B12", "B8A", "B05"), ("B08", "B04", "B03"), ("B09", "B01", "B01"))
# From black to full light. The exponent lights up what is dark beside a road or a roof.
PERCENTILES, GAMMA = (2, 98), 0.7


def choose(bands: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """(kind, bands for red, green, blue): true colour where there is one, then false colour."""
    found = [("true colour", TRUE_COLOUR)] if set(TRUE_COLOUR) <= set(bands) else []
    any_three = tuple(bands[i] for i in (len(bands) - 1, len(bands) // 2, 0))
    false = next((c for c in FALSE_COLOURS if set(c) <= set(bands)), any_three)
    return [*found, ("false colour", false)]


def find_range(
    values: NDArray[Any], percentiles: Sequence[float] = PERCENTILES, *, least: float = 1.0
) -> tuple[NDArray[np.float64], float]:
    """Darkest value of each channel, and how far all three go: so colours stay apart.

    Args:
        values: (y, x, channel), NaN without data: such pixels do not count.
        percentiles: of each channel that are black, and as light as it gets; the widest
            channel's range is that of all.
        least: a flat image, which has no range of its own, has this one (0: 1).
    """
    flat = np.asarray(values, np.float64).reshape(-1, values.shape[-1])
    flat = flat[np.isfinite(flat).all(axis=1)]
    if not len(flat):
        return np.zeros(values.shape[-1]), 1.0
    low, high = np.percentile(flat, percentiles, axis=0)
    return low, max(float((high - low).max()), least) or 1.0


def stretch(
    values: NDArray[Any], low: Sequence[float] | NDArray[Any], spread: float, gamma: float = GAMMA
) -> NDArray[np.float64]:
    """(y, x, channel) of 0 to 1 by a range of find_range; NaN stays."""
    light = (np.asarray(values, np.float64) - np.asarray(low)) / spread
    found: NDArray[np.float64] = np.clip(light, 0, 1) ** gamma
    return found


def stretch_as(values: NDArray[Any], reference: NDArray[Any]) -> NDArray[np.float64]:
    """(y, x, channel) of 0 to 1 by the range of another array: pictures that can be compared."""
    return stretch(values, *find_range(reference))
