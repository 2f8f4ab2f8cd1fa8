"""Wald's protocol: degrade all bands by one ratio, so that the original ones are the truth.

Each band is blurred with a gaussian of sigma = 1 / scale pixels, then averaged over scale x scale
pixels (Lanaras et al. 2018, DSen2). Both steps are linear and separable, so they run
as one strided filter along y, then along x: about 4 times faster than in turn.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.spec import DataError

# The gaussian is cut off at this many sigma, as scipy.ndimage does by default.
TRUNCATE = 4.0


def blur_radius(scale: int, sigma: float | None = None) -> int:
    """Pixels of the fine grid that a degraded pixel sees beyond its own scale x scale pixels."""
    return int(TRUNCATE * (1 / scale if sigma is None else sigma) + 0.5)


def weights(scale: int, sigma: float | None = None) -> NDArray[np.float32]:
    """The blur and the mean as one filter of scale + 2 * blur_radius taps that add to 1."""
    if scale < 1 or (sigma is not None and not sigma > 0):
        raise ValueError(f"scale {scale} must be at least 1 and sigma {sigma} positive")
    width = 1 / scale if sigma is None else sigma
    radius = blur_radius(scale, sigma)
    gaussian = np.exp(-0.5 * (np.arange(-radius, radius + 1) / width) ** 2)
    return np.convolve(gaussian / gaussian.sum(), np.full(scale, 1 / scale)).astype(np.float32)


def degrade(array: Any, scale: int, *, sigma: float | None = None) -> Any:
    """Blur and average an array down by `scale`.

    Edges are mirrored with the edge pixel repeated (scipy.ndimage's mode "reflect"). A dask array,
    or an xarray.DataArray with one inside, stays lazy and gets the same pixels as in memory.

    Args:
        array: (..., y, x) numbers of any type and unit: numpy, dask, or xarray.DataArray
            (band, y, x).
        scale: how many times larger the new pixels are; divides both y and x.
        sigma: width of the gaussian [px of the fine grid]; None is 1 / scale.

    Returns:
        (..., y / scale, x / scale) float32 of the same kind; a DataArray keeps its bands and gets
        the attributes `gsd` and `transform` of the new grid where it had them.

    Raises:
        DataError: scale does not divide the array's size.
    """
    height, width = array.shape[-2:]
    if height % scale or width % scale:
        raise DataError(f"{height} x {width} px are not divisible by the scale {scale}")
    if hasattr(array, "coords"):
        return _degrade_xarray(array, scale, sigma)
    if hasattr(array, "dask"):
        return _degrade_dask(array, scale, sigma)
    radius = blur_radius(scale, sigma)
    edges = [(0, 0)] * (array.ndim - 2) + [(radius, radius)] * 2
    return _filter(np.pad(np.asarray(array), edges, mode="symmetric"), weights(scale, sigma), scale)


def _filter(padded: NDArray[Any], taps: NDArray[np.float32], scale: int) -> NDArray[np.float32]:
    """Strided filter of an array that has the blur's radius of extra pixels on every side."""
    grid = tuple((n - len(taps)) // scale + 1 for n in padded.shape[-2:])
    out = np.empty((*padded.shape[:-2], *grid), np.float32)
    # About 1 MB a piece: rows that stay in the cache between the taps.
    step = max(1, 2**18 // (padded.shape[-1] * scale))
    for index in np.ndindex(padded.shape[:-2]):
        for start in range(0, grid[0], step):
            stop = min(start + step, grid[0])
            rows = padded[index][start * scale : (stop - 1) * scale + len(taps)].astype(np.float32)
            rows = _taps(rows, taps, scale)
            out[index][start:stop] = _taps(rows.T, taps, scale).T
    return out


def _taps(rows: NDArray[np.float32], taps: NDArray[np.float32], scale: int) -> NDArray[np.float32]:
    """Weighted sums of neighbouring rows, every scale-th one. One fixed order of additions."""
    num_rows = (len(rows) - len(taps)) // scale + 1
    last = (num_rows - 1) * scale + 1
    out: NDArray[np.float32] = rows[:last:scale] * taps[0]
    for tap in range(1, len(taps)):
        out += rows[tap : tap + last : scale] * taps[tap]
    return out


def _degrade_dask(array: Any, scale: int, sigma: float | None) -> Any:
    """`degrade` chunk by chunk; chunks overlap by the blur's radius."""
    from dask.array import overlap

    radius = blur_radius(scale, sigma)
    smallest = -(-max(radius, 1) // scale) * scale
    chunks = tuple(_chunks(sizes, scale, smallest) for sizes in array.chunks[-2:])
    array = array.rechunk((*array.chunks[:-2], *chunks))
    y, x = array.ndim - 2, array.ndim - 1
    # dask's "reflect" repeats the edge pixel, as scipy.ndimage's does.
    padded = overlap.overlap(array, {y: radius, x: radius}, {y: "reflect", x: "reflect"})
    apply = functools.partial(_filter, taps=weights(scale, sigma), scale=scale)
    coarse = tuple(tuple(size // scale for size in sizes) for sizes in chunks)
    return padded.map_blocks(
        apply, chunks=(*array.chunks[:-2], *coarse), dtype=np.float32, meta=np.empty(0, np.float32)
    )


def _chunks(sizes: tuple[int, ...], scale: int, smallest: int) -> tuple[int, ...]:
    """Chunk sizes near the given ones: multiples of scale, none below `smallest`."""
    total, size = sum(sizes), max(max(sizes) // scale * scale, smallest)
    chunks = [size] * (total // size)
    rest = total - sum(chunks)
    if rest >= smallest or not chunks:
        chunks.append(rest)
    else:
        chunks[-1] += rest
    return tuple(chunk for chunk in chunks if chunk)


def _degrade_xarray(array: Any, scale: int, sigma: float | None) -> Any:
    """`degrade` with names kept."""
    import xarray

    attributes = dict(array.attrs)
    if "gsd" in attributes:
        attributes["gsd"] = attributes["gsd"] * scale
    if attributes.get("transform") is not None:
        a, b, c, d, e, f = attributes["transform"]
        attributes["transform"] = (a * scale, b * scale, c, d * scale, e * scale, f)
    coords = {"band": array.coords["band"]} if "band" in array.coords else None
    values = degrade(array.data, scale, sigma=sigma)
    return xarray.DataArray(values, coords, array.dims, array.name, attributes)
