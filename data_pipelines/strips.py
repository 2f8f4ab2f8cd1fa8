"""A cube from top to bottom: strips of rows, each dask chunk computed once, a row of them held."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import sentinel2, wald

# Why a pixel cannot be used; codes of Flags.
NO_DATA, SATURATED = 1, 2


class Rows:
    """Rows of a (band, y, x) array, asked for from top to bottom."""

    def __init__(self, data: Any, columns: slice) -> None:
        """Nothing is computed yet.

        Args:
            data: numpy, or dask: chunk by chunk it is computed in this thread, whatever scheduler
                is set, since a worker that asked its own cluster would wait for itself.
            columns: which columns to give.
        """
        self._data, self._columns = data, columns
        self._lazy = hasattr(data, "dask")
        if self._lazy:
            self._edges = [np.cumsum((0, *sizes)) for sizes in data.chunks[-2:]]
            width = columns.stop - columns.start
            self._start = self._stop = 0
            self._buffer = np.empty((data.shape[0], 0, width), data.dtype)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """(band, y, x) of some rows; `start` never falls from one call to the next."""
        if not self._lazy:
            rows: NDArray[Any] = self._data[:, start:stop, self._columns]
            return rows
        if stop > self._stop:
            self._load(start, stop)
        return self._buffer[:, start - self._start : stop - self._start]

    def _load(self, start: int, stop: int) -> None:
        """Forget the rows above `start`; compute whole rows of chunks until there is `stop`."""
        edges = self._edges[0]
        first = max(start, self._stop)
        stop = int(edges[np.searchsorted(edges, stop)])
        buffer = np.empty(
            (len(self._buffer), stop - start, self._buffer.shape[2]), self._data.dtype
        )
        buffer[:, : first - start] = self._buffer[:, self._buffer.shape[1] - (first - start) :]
        self._buffer, self._start, self._stop = buffer, start, stop
        for y in _pieces(edges, first, stop):
            for x in _pieces(self._edges[1], self._columns.start, self._columns.stop):
                # One at a time: all at once would be in memory twice when they are joined.
                block = self._data[:, y, x].compute(scheduler="synchronous")
                left = x.start - self._columns.start
                width = x.stop - x.start
                buffer[:, y.start - start : y.stop - start, left : left + width] = block


def _pieces(edges: NDArray[np.int64], start: int, stop: int) -> list[slice]:
    """The part of each chunk between `start` and `stop`."""
    inner = [int(edge) for edge in edges if start < edge < stop]
    bounds = [start, *inner, stop]
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]


class Flags:
    """Where rows of a cube hold pixels that cannot be used, in any band."""

    def __init__(self) -> None:
        """No rows yet."""
        self._parts: list[tuple[int, int, NDArray[np.uint8]]] = []
        self.stop = 0

    def add(self, start: int, pixels: NDArray[np.uint16]) -> None:
        """Look at rows (band, y, x) that begin at `start`."""
        self.stop = start + pixels.shape[1]
        if not pixels.size:
            return
        # Nearly all rows of most tiles: two passes and no temporary array.
        if pixels.min() > sentinel2.NO_DATA and pixels.max() < sentinel2.SATURATED:
            return
        codes = np.zeros(pixels.shape[1:], np.uint8)
        codes[(pixels == sentinel2.SATURATED).any(axis=0)] = SATURATED
        codes[(pixels == sentinel2.NO_DATA).any(axis=0)] = NO_DATA
        self._parts.append((start, self.stop, codes))

    def forget(self, start: int) -> None:
        """Rows above `start` are not asked for any more."""
        self._parts = [part for part in self._parts if part[1] > start]

    def find(self, rows: slice, columns: slice) -> int:
        """The code of what a window sees: NO_DATA before SATURATED, 0 for neither."""
        found = 0
        for start, stop, codes in self._parts:
            if start < rows.stop and rows.start < stop:
                view = codes[max(rows.start - start, 0) : rows.stop - start, columns]
                if (view == NO_DATA).any():
                    return NO_DATA
                found = max(found, int(view.max(initial=0)))
        return found

    def __bool__(self) -> bool:
        """Whether any of the rows that are kept has such pixels."""
        return bool(self._parts)


class Strip:
    """The rows of one cube that patches are cut from now, as patches hold them: (y, x, band).

    Rows and columns of the target are multiples of `ratio`.
    """

    def __init__(
        self, data: Any, *, scale: int, ratio: int, columns: slice, keep_original: bool
    ) -> None:
        """Nothing is read yet.

        Args:
            data: (band, y, x) uint16 DN, numpy or dask.
            scale: how much it is degraded; 1 leaves it as it is.
            ratio: pixels of the target along one degraded pixel.
            columns: which columns of the target are cut.
            keep_original: whether the pixels as they are belong to patches too: the target.
        """
        self._scale, self._ratio, self._keep = scale, ratio, keep_original
        self._radius = 0 if scale == 1 else wald.blur_radius(scale)
        self._height, self._width = data.shape[1:]
        view = self._view(columns, self._width)
        self._sides = columns.start > 0, self._fine(columns.stop) < self._width
        self._left, self._x = view.start, columns.start
        self._rows, self.flags = Rows(data, view), Flags()
        self._start = self._done = 0
        width = columns.stop - columns.start
        self.pixels = np.empty((0, width // ratio, data.shape[0]), np.uint16)
        self.original = np.empty((0, width, data.shape[0]), np.uint16)

    def _fine(self, position: int) -> int:
        """A position on the target's grid as one on the cube's."""
        return position * self._scale // self._ratio

    def _view(self, along: slice, size: int) -> slice:
        """What a range of the target sees in the cube."""
        start, stop = self._fine(along.start), self._fine(along.stop)
        return slice(max(start - self._radius, 0), min(stop + self._radius, size))

    def advance(self, start: int, stop: int, *, pixels: bool = True) -> None:
        """Hold the rows of the target from `start` to `stop`; neither ever falls.

        Args:
            start: first row [px of the target].
            stop: behind the last row.
            pixels: make what patches hold; else only look for pixels that cannot be used.
        """
        first = max(self._done, start)
        seen = self._view(slice(first, stop), self._height)
        self.flags.forget(self._view(slice(start, stop), self._height).start)
        raw = self._rows.read(seen.start, seen.stop)
        unseen = max(self.flags.stop, seen.start)
        self.flags.add(unseen, raw[:, unseen - seen.start :])
        if pixels:
            sides = first > 0, self._fine(stop) < self._height, *self._sides
            drop, add = start - self._start, stop - first
            self.pixels, rows = _grown(self.pixels, drop // self._ratio, add // self._ratio)
            self._degrade(raw, rows, sides)
            if self._keep:
                self.original, rows = _grown(self.original, drop, add)
                y, x = first - seen.start, self._x - self._left
                _transpose(raw[:, y : y + len(rows), x : x + rows.shape[1]], rows)
        self._start, self._done = start, stop

    def _degrade(
        self,
        raw: NDArray[np.uint16],
        out: NDArray[np.uint16],
        sides: tuple[bool, bool, bool, bool],
    ) -> None:
        """Fill (y, x, band) from rows (band, y, x) and what they see on their sides."""
        if self._scale == 1:
            _transpose(raw, out)
            return
        for band in range(len(raw)):
            values = wald.degrade_view(raw[band], self._scale, inside=sides)
            # Means of uint16 lie between 0 and 65535: nothing to clip.
            np.rint(values, out=values)
            out[:, :, band] = values

    def find(self, y: slice, x: slice) -> int:
        """What a window of the target sees that cannot be used; see Flags.find."""
        if not self.flags:
            return 0
        columns = self._view(x, self._width)
        local = slice(columns.start - self._left, columns.stop - self._left)
        return self.flags.find(self._view(y, self._height), local)


def _grown(
    rows: NDArray[np.uint16], drop: int, add: int
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """A new array without the first rows, with room for more; and that room.

    New, because patches are views of the old one.
    """
    kept = rows[drop:]
    out = np.empty((len(kept) + add, *rows.shape[1:]), np.uint16)
    out[: len(kept)] = kept
    return out, out[len(kept) :]


def _transpose(raw: NDArray[np.uint16], out: NDArray[np.uint16]) -> None:
    """(band, y, x) to (y, x, band)."""
    for band in range(len(raw)):
        out[:, :, band] = raw[band]
