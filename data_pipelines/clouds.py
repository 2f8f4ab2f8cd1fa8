"""How much of a window is cloud, by the masks of a granule."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from data_pipelines import sentinel2, strips
from data_pipelines.granule import Granule
from data_pipelines.spec import DataError
from data_pipelines.windows import Window


class Cloud:
    """Shares of cloud in windows of one mask, asked for from top to bottom."""

    def __init__(self, name: str, mask: Any, gsd: int) -> None:
        """`gsd`: that of the windows' pixels [m]."""
        self._gsd, self._mask_gsd = gsd, float(mask.attrs["gsd"])
        self._classified = name == "scl"
        self._shape = mask.shape
        self._rows = strips.Rows(mask.data[None], slice(0, mask.shape[1]))
        self._at: tuple[int, int] | None = None
        self._sums = np.zeros(0, np.int64)

    def share(self, window: Window) -> float:
        """How much of the mask's pixels that a window touches is cloud [1].

        Raises:
            DataError: the window is not inside the mask.
        """
        y = self._touched(window.y, window.height, self._shape[0])
        if self._at != y:
            rows = self._rows.read(*y)[0]
            cloudy = np.isin(rows, sentinel2.SCL_CLOUD) if self._classified else rows
            self._sums = np.concatenate([[0], np.cumsum(cloudy.sum(axis=0, dtype=np.int64))])
            self._at = y
        x = self._touched(window.x, window.width, self._shape[1])
        pixels = (y[1] - y[0]) * (x[1] - x[0])
        return float(self._sums[x[1]] - self._sums[x[0]]) / pixels

    def _touched(self, start: int, size: int, limit: int) -> tuple[int, int]:
        """First and last + 1 pixel of the mask."""
        first = math.floor(start * self._gsd / self._mask_gsd)
        last = math.ceil((start + size) * self._gsd / self._mask_gsd)
        if first < 0 or last > limit:
            raise DataError(f"a window at {start} of {size} px lies outside of its cloud mask")
        return first, last


def open_cloud(granule: Granule, gsd: int) -> Cloud:
    """The granule's cloud mask, or what its scene classification says.

    Args:
        granule: with masks.
        gsd: that of the windows' pixels [m].

    Raises:
        DataError: it has neither, or the mask does not cover it.
    """
    for name in ("cloud", "scl"):
        if name in granule.masks:
            _check_cover(granule, name)
            return Cloud(name, granule.masks[name], gsd)
    raise DataError(
        f"{granule.name}: no cloud mask, so patches cannot be chosen by cloud; found neither "
        "cloud nor scl"
    )


def _check_cover(granule: Granule, name: str) -> None:
    """Refuse a mask that ends before the granule does: ground without a mask is not clear."""
    mask = granule.masks[name]
    gsd = float(mask.attrs["gsd"])
    found = mask.shape[0] * gsd, mask.shape[1] * gsd
    expected = granule.shape[0] * 10, granule.shape[1] * 10
    if found[0] < expected[0] or found[1] < expected[1]:
        raise DataError(
            f"{granule.name}: mask {name} covers {found[0]:g} x {found[1]:g} m; the granule has "
            f"{expected[0]} x {expected[1]} m"
        )
