"""Regions of a granule as patches hold their pixels; and a bounded buffer for them."""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import cube, wald
from data_pipelines.granule import Granule, harmonise
from data_pipelines.windows import Window

# Chunks that are decoded at once: GDAL and numpy leave Python's lock while they work.
THREADS = min(4, os.cpu_count() or 1)

# Index of a granule, window [px of the target], and its arrays (y, x, band) by feature key.
Region = list[tuple[int, Window, dict[str, NDArray[np.uint16]]]]


class Buffer:
    """Regions, the last used ones, in a bounded number of bytes. Threads may share it."""

    def __init__(self, limit: int) -> None:
        """`limit` [bytes]; a region that is larger is held alone."""
        self.limit = limit
        self._regions: collections.OrderedDict[Any, tuple[int, Region]] = collections.OrderedDict()
        self._lock, self._loading = threading.Lock(), threading.Lock()

    def get(self, key: Any, size: int, load: Callable[[], Region]) -> Region:
        """A region; where it is not there, what was not used for longest makes room for it.

        Args:
            key: of the region.
            size: its bytes.
            load: reads it.
        """
        found = self._find(key)
        if found is not None:
            return found
        # One at a time: chunks are decoded side by side within it, and memory stays bounded.
        with self._loading:
            found = self._find(key)  # another thread may have read it meanwhile
            if found is not None:
                return found
            with self._lock:
                while self._regions and self.num_bytes + size > self.limit:
                    self._regions.popitem(last=False)
            region = load()
            with self._lock:
                self._regions[key] = size, region
            return region

    def _find(self, key: Any) -> Region | None:
        with self._lock:
            if key not in self._regions:
                return None
            self._regions.move_to_end(key)
            return self._regions[key][1]

    @property
    def num_bytes(self) -> int:
        """Bytes of all regions that it holds."""
        return sum(size for size, _ in self._regions.values())


def read_window(granule: Granule, task: cube.Task, window: Window) -> dict[str, NDArray[np.uint16]]:
    """All arrays of a window [px of the target] by feature key, pixel for pixel as `cube.cut`'s.

    Pixels without data stay 0, and spoil degraded ones beside them: see cube.usable.
    """
    arrays = {}
    shape = cube.target_shape(task, granule.shape)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        for name in task.inputs:
            inner = window.coarser(task.ratio(name)).finer(task.scale)
            radius = 0 if task.scale == 1 else wald.blur_radius(task.scale)
            # What does not fill a pixel of the coarsest degraded grid is not seen.
            height, width = (n * task.scale // task.ratio(name) for n in shape)
            view = inner.grown(radius).clipped(height, width)
            raw = _read_chunks(harmonise(granule.cubes[name]).data, view, pool)
            top, left = inner.y - view.y, inner.x - view.x
            if task.scale == 1:
                arrays[f"inputs/{name}"] = _as_patches(raw)
            else:
                below = view.y + view.height > inner.y + inner.height
                sides = top > 0, below, left > 0, view.x + view.width > inner.x + inner.width
                arrays[f"inputs/{name}"] = _degrade(raw, task.scale, sides, pool)
            if name == task.target:
                rows = raw[:, top : top + inner.height, left : left + inner.width]
                arrays[f"targets/{task.name}"] = _as_patches(rows)
    return arrays


def _read_chunks(data: Any, view: Window, pool: concurrent.futures.Executor) -> NDArray[np.uint16]:
    """(band, y, x) of a window of a numpy or dask array; its chunks are computed side by side."""
    whole = (slice(0, data.shape[0]), *view.slices)
    if not hasattr(data, "dask"):
        return np.asarray(data[whole])
    out = np.empty((data.shape[0], view.height, view.width), data.dtype)

    def read(piece: tuple[slice, slice, slice]) -> None:
        bands, y, x = piece
        block = data[piece].compute(scheduler="synchronous")
        out[bands, y.start - view.y : y.stop - view.y, x.start - view.x : x.stop - view.x] = block

    along = (_pieces(sizes, part) for sizes, part in zip(data.chunks, whole, strict=True))
    list(pool.map(read, itertools.product(*along)))
    return out


def _pieces(sizes: tuple[int, ...], along: slice) -> list[slice]:
    """The part of each chunk inside a range."""
    edges = [edge for edge in itertools.accumulate(sizes) if along.start < edge < along.stop]
    return [slice(a, b) for a, b in itertools.pairwise([along.start, *edges, along.stop])]


def _degrade(
    raw: NDArray[np.uint16],
    scale: int,
    inside: tuple[bool, bool, bool, bool],
    pool: concurrent.futures.Executor,
) -> NDArray[np.uint16]:
    """(y, x, band) after Wald's protocol, rounded; `inside`: see wald.degrade_view."""

    def degrade(band: NDArray[np.uint16]) -> NDArray[np.uint16]:
        return np.rint(wald.degrade_view(band, scale, inside=inside)).astype(np.uint16)

    return np.stack(list(pool.map(degrade, raw)), axis=-1)


def _as_patches(raw: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """(band, y, x) as (y, x, band) in memory of its own."""
    return np.ascontiguousarray(raw.transpose(1, 2, 0))
