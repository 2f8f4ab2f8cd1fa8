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
# Pixels that are filtered at once: 0.5 MB of float32, which stays in the cache between the taps.
PIECE = 2**17


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
    values = np.asarray(array)
    out = np.empty((*values.shape[:-2], height // scale, width // scale), np.float32)
    for index in np.ndindex(values.shape[:-2]):
        degrade_view(values[index], scale, sigma=sigma, out=out[index])
    return out


def degrade_view(
    view: NDArray[Any],
    scale: int,
    *,
    sigma: float | None = None,
    inside: tuple[bool, bool, bool, bool] = (False, False, False, False),
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """`degrade` for a part of one band, with what it sees of its neighbours.

    Args:
        view: (y, x) numbers of any type.
        scale: see `degrade`.
        sigma: see `degrade`.
        inside: whether the view has blur_radius more pixels at its (top, bottom, left, right),
            because the raster goes on there; else that side is the raster's edge and is mirrored.
        out: (y / scale, x / scale) float32 to write to.

    Returns:
        `out`, of the view without those extra pixels; the same values whatever the parts.
    """
    radius, taps = blur_radius(scale, sigma), weights(scale, sigma)
    top, bottom, left, right = (0 if more else radius for more in inside)
    height, width = view.shape[0] + top + bottom, view.shape[1] + left + right
    num_rows, num_columns = (height - 2 * radius) // scale, (width - 2 * radius) // scale
    if out is None:
        out = np.empty((num_rows, num_columns), np.float32)
    step = max(1, PIECE // (width * scale))
    for start in range(0, num_rows, step):
        stop = min(start + step, num_rows)
        rows = _padded_rows(view, start * scale - top, stop * scale + 2 * radius - top, left, right)
        rows = _taps(rows, taps, scale)
        out[start:stop] = _taps_along_rows(rows, taps, scale, num_columns)
    return out


def _padded_rows(
    view: NDArray[Any], start: int, stop: int, left: int, right: int
) -> NDArray[np.float32]:
    """Rows `start` to `stop` as float32, with `left` and `right` more columns.

    What lies outside of the view is mirrored with the edge pixel repeated.
    """
    height, width = view.shape
    rows = np.empty((stop - start, left + width + right), np.float32)
    first, last = max(start, 0), min(stop, height)
    rows[first - start : last - start, left : left + width] = view[first:last]
    for row in (*range(start, first), *range(last, stop)):
        rows[row - start, left : left + width] = view[_mirrored(row, height)]
    for column in (*range(-left, 0), *range(width, width + right)):
        rows[:, left + column] = rows[:, left + _mirrored(column, width)]
    return rows


def _mirrored(index: int, size: int) -> int:
    """The position inside that a position outside repeats."""
    index %= 2 * size
    return index if index < size else 2 * size - 1 - index


def _taps(rows: NDArray[np.float32], taps: NDArray[np.float32], scale: int) -> NDArray[np.float32]:
    """Weighted sums of neighbouring rows, every scale-th one."""
    last = (len(rows) - len(taps)) // scale * scale + 1
    return _weighted_sum([rows[tap : tap + last : scale] for tap in range(len(taps))], taps)


def _taps_along_rows(
    rows: NDArray[np.float32], taps: NDArray[np.float32], scale: int, num_columns: int
) -> NDArray[np.float32]:
    """`_taps` along x.

    Columns are first sorted by phase, so that every sum runs over neighbours in memory: 3 times
    faster than steps of `scale`.
    """
    phases = [np.ascontiguousarray(rows[:, phase::scale]) for phase in range(scale)]
    return _weighted_sum(
        [
            phases[tap % scale][:, tap // scale : tap // scale + num_columns]
            for tap in range(len(taps))
        ],
        taps,
    )


def _weighted_sum(
    terms: list[NDArray[np.float32]], taps: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Sum of term x tap. Taps are symmetric: two terms share a product.

    One fixed order of additions, so that a pixel is the same in every part of a raster.
    """
    num_pairs = len(terms) // 2
    out = terms[0] + terms[-1] if num_pairs else np.zeros_like(terms[0])
    out *= taps[0] if num_pairs else 0
    product = np.empty_like(out)
    for tap in range(1, num_pairs):
        np.add(terms[tap], terms[-1 - tap], out=product)
        product *= taps[tap]
        out += product
    if len(terms) % 2:
        np.multiply(terms[num_pairs], taps[num_pairs], out=product)
        out += product
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
    apply = functools.partial(_degrade_block, scale=scale, sigma=sigma)
    coarse = tuple(tuple(size // scale for size in sizes) for sizes in chunks)
    return padded.map_blocks(
        apply, chunks=(*array.chunks[:-2], *coarse), dtype=np.float32, meta=np.empty(0, np.float32)
    )


def _degrade_block(block: NDArray[Any], scale: int, sigma: float | None) -> NDArray[np.float32]:
    """A chunk that dask has given the blur's radius of extra pixels on every side."""
    radius = blur_radius(scale, sigma)
    grid = tuple((n - 2 * radius) // scale for n in block.shape[-2:])
    out = np.empty((*block.shape[:-2], *grid), np.float32)
    for index in np.ndindex(block.shape[:-2]):
        degrade_view(block[index], scale, sigma=sigma, inside=(True,) * 4, out=out[index])
    return out


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
