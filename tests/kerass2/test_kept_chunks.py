"""Chunks of a granule that the viewer keeps: the same pixels, each chunk read once."""

from __future__ import annotations

import collections
import concurrent.futures
import time

import dask.array
import numpy as np
import pytest
import xarray

from data_pipelines.granule import Granule
from kerass2.viewer import kept_chunks

PIXELS = np.arange(2 * 40 * 40, dtype=np.uint16).reshape(2, 40, 40)
CHUNK = 10 * 10 * 2  # bytes


@pytest.fixture
def reads() -> collections.Counter[tuple[int, ...]]:
    """How often each chunk was read."""
    return collections.Counter()


@pytest.fixture
def granule(reads: collections.Counter[tuple[int, ...]]) -> Granule:
    """One cube, whose chunks take a while."""

    def read(block_id: tuple[int, ...]) -> np.ndarray:
        reads[block_id] += 1
        time.sleep(0.01)
        band, y, x = block_id
        return PIXELS[band : band + 1, 10 * y : 10 * y + 10, 10 * x : 10 * x + 10]

    chunks = ((1, 1), (10,) * 4, (10,) * 4)
    data = dask.array.map_blocks(read, chunks=chunks, dtype=np.uint16, meta=PIXELS[:0])
    cube = xarray.DataArray(data, dims=("band", "y", "x"), attrs={"gsd": 10})
    return Granule(name="g", scene="g", place="g", cubes={"gsd10": cube})


def test_each_chunk_is_read_once(granule: Granule, reads) -> None:  # type: ignore[no-untyped-def]
    cube = kept_chunks.keep(granule).cubes["gsd10"]
    assert cube.attrs == {"gsd": 10} and cube.chunks == granule.cubes["gsd10"].chunks
    part = (0, slice(5, 33), slice(8, 21))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: np.asarray(cube.data[part]), range(8)))
    for each in found:
        np.testing.assert_array_equal(each, PIXELS[part])
    assert set(reads.values()) == {1} and len(reads) == 4 * 3
    np.testing.assert_array_equal(cube, PIXELS)
    assert set(reads.values()) == {1} and len(reads) == 32


def test_the_ones_used_last_are_held(granule: Granule, reads) -> None:  # type: ignore[no-untyped-def]
    data = kept_chunks.keep(granule, 2 * CHUNK).cubes["gsd10"].data
    for x in (0, 1, 0, 2, 0, 1):  # 2 takes the place of 1, which has not been used since
        value = np.asarray(data[0, 0, 10 * x])
        assert value == 10 * x
    assert reads == {(0, 0, 0): 1, (0, 0, 1): 2, (0, 0, 2): 1}
