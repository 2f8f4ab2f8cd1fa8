"""Pixel windows: pure arithmetic, used by cutting and by prediction."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True, order=True)
class Window:
    """A rectangle of pixels; may reach outside a raster until it is clipped."""

    y: int
    """First row [px]."""
    x: int
    """First column [px]."""
    height: int
    """Number of rows [px]."""
    width: int
    """Number of columns [px]."""

    def __post_init__(self) -> None:
        """Refuse windows of negative size."""
        if self.height < 0 or self.width < 0:
            raise ValueError(f"{self}: height and width must not be negative")

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the last two axes of a (..., y, x) array."""
        return slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)

    def grown(self, margin: int) -> Window:
        """`margin` pixels more on every side; fewer where it is negative."""
        size = self.height + 2 * margin, self.width + 2 * margin
        return Window(self.y - margin, self.x - margin, *size)

    def clipped(self, height: int, width: int) -> Window:
        """The part inside a raster of (height, width) pixels; empty where there is none."""
        y, x = (min(max(a, 0), n) for a, n in ((self.y, height), (self.x, width)))
        stop_y = min(max(self.y + self.height, y), height)
        stop_x = min(max(self.x + self.width, x), width)
        return Window(y, x, stop_y - y, stop_x - x)

    def finer(self, ratio: int) -> Window:
        """The same ground on a grid whose pixels are `ratio` times smaller."""
        return Window(self.y * ratio, self.x * ratio, self.height * ratio, self.width * ratio)

    def coarser(self, ratio: int) -> Window:
        """The same ground on a grid whose pixels are `ratio` times larger.

        Raises:
            ValueError: the window cuts through pixels of that grid.
        """
        values = self.y, self.x, self.height, self.width
        if any(value % ratio for value in values):
            raise ValueError(f"{self} does not nest in pixels {ratio} times larger")
        return Window(*(value // ratio for value in values))

    def distance(self, other: Window) -> int:
        """Pixels between two windows along the axis where they are farther apart; 0 if they touch.

        Windows whose distance is at least r share nothing after either grew by r on one side.
        """
        down = max(other.y - self.y - self.height, self.y - other.y - other.height)
        right = max(other.x - self.x - self.width, self.x - other.x - other.width)
        return max(down, right, 0)


def lattice(height: int, width: int, size: int, stride: int) -> Iterator[Window]:
    """Square windows wholly inside a raster, row by row, the first at (0, 0).

    Args:
        height: rows of the raster [px].
        width: columns of the raster [px].
        size: edge of a window [px].
        stride: distance from one window to the next [px]; below `size` they overlap.

    Raises:
        ValueError: size or stride is below 1.
    """
    if size < 1 or stride < 1:
        raise ValueError(f"size {size} and stride {stride} must be at least 1")
    for y in range(0, height - size + 1, stride):
        for x in range(0, width - size + 1, stride):
            yield Window(y, x, size, size)


def tiles(height: int, width: int, size: int, halo: int = 0) -> Iterator[tuple[Window, Window]]:
    """Pairs (core, view) whose cores fill a raster without overlap, row by row.

    A view is its core with `halo` pixels more on every side, clipped to the raster. The last core
    of a row or column has what is left.

    Raises:
        ValueError: size is below 1 or halo below 0.
    """
    if size < 1 or halo < 0:
        raise ValueError(f"size {size} must be at least 1, halo {halo} at least 0")
    for y in range(0, height, size):
        for x in range(0, width, size):
            core = Window(y, x, size, size).clipped(height, width)
            yield core, core.grown(halo).clipped(height, width)
