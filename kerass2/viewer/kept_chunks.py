"""A granule whose chunks stay in memory once they were read, the last ones used.

A chunk of a product is decoded as a whole, in a tenth of a second; tiles of a map, three bands of
each, ask for parts of the same few chunks in many turns.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from data_pipelines.granule import Granule

# What is held [bytes]: 128 chunks of 1024 px, of which a view of a whole screen at 1:4 in three
# bands of 10 m needs 90.
MOST = 256 * 2**20


def keep(granule: Granule, most: int = MOST) -> Granule:
    """The same granule: equal pixels, of which `most` bytes are held for the next time."""
    held = _Held(most)
    cubes = {}
    for name, cube in granule.cubes.items():
        lazy = hasattr(cube.data, "dask")
        cubes[name] = cube.copy(data=_lazy(held, cube.data)) if lazy else cube
    return dataclasses.replace(granule, cubes=cubes)


def _lazy(held: _Held, data: Any) -> Any:
    """A dask array that asks `held` first."""
    import dask.array

    # Of its own name: dask would else look into `held` for one.
    return dask.array.map_blocks(
        functools.partial(_read, held, data),
        chunks=data.chunks,
        dtype=data.dtype,
        meta=np.empty((0,) * data.ndim, data.dtype),
        name=f"kept-{data.name}",
    )


def _read(held: _Held, data: Any, block_id: tuple[int, ...]) -> NDArray[Any]:
    """One chunk; dask says which by `block_id`."""
    return held.find((data.name, block_id), data.blocks[block_id])


class _Held:
    """Chunks by their keys, the last one used last."""

    def __init__(self, most: int) -> None:
        self._most, self._size = most, 0
        self._chunks: collections.OrderedDict[Any, NDArray[Any]] = collections.OrderedDict()
        self._reading: dict[Any, threading.Lock] = {}
        self._changing = threading.Lock()

    def find(self, key: Any, lazy: Any) -> NDArray[Any]:
        """The chunk; read by the first thread that asks, others wait for it."""
        with self._changing:
            reading = self._reading.setdefault(key, threading.Lock())
        with reading:
            with self._changing:
                if key in self._chunks:
                    self._chunks.move_to_end(key)
                    return self._chunks[key]
            chunk: NDArray[Any] = lazy.compute(scheduler="synchronous")
            with self._changing:
                self._chunks[key] = chunk
                self._size += chunk.nbytes
                while self._size > self._most:
                    self._size -= self._chunks.popitem(last=False)[1].nbytes
        return chunk
