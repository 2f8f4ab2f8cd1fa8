"""Sentinel-2 products as ESA delivers them (.SAFE, zip, MTD_*.xml), L1C and L2A, to granules.

What the pixels mean is read from the XML (safe_xml.py); pixels come from the JP2 files that it
names, by GDAL's JP2OpenJPEG driver. GDAL's SENTINEL2 driver (3.10.3) reads the same pixels of a
whole product, which the tests show, and stays out of the way here: without a word it gives zeros
for a missing file, puts an image of another size into a corner, and joins the tiles of a product.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import safe_files, safe_jp2, safe_masks, safe_xml, sentinel2
from data_pipelines.granule import Granule, build_cube, check_nesting, plane_of
from data_pipelines.safe_files import ProductFile, ProductFiles
from data_pipelines.spec import DataError
from data_pipelines.windows import Window

# Least edge of a dask chunk on the 10 m grid [px]. A chunk is whole tiles of its JP2 (ESA's have
# 1024 px at 10 m, 640 at 20 m, 192 at 60 m), so that none is decoded twice: chunks of 1080 px were
# measured at a third of the speed. Larger ones are no faster, and take more memory.
CHUNK = 1024


class ResampledPixels(UserWarning):
    """Images have fewer pixels than the XML says; they are repeated to fill the grid."""


@dataclasses.dataclass(frozen=True)
class Image:
    """One band in one file, on the grid that the XML says. Small, and may travel."""

    file: ProductFile
    shape: tuple[int, int]
    """Of the grid (y, x) [px]."""
    native: tuple[int, int]
    """Of the file (y, x) [px]."""
    dtype: str
    index: int = 1
    """Band in the file, from 1."""
    block: int = CHUNK
    """Edge of the file's tiles [px]."""


def open_product(path: pathlib.Path | str, bands: Sequence[str] | None = None) -> Iterator[Granule]:
    """The granules of a product, one a tile; no pixel is read before it is asked for.

    Args:
        path: .SAFE folder, zip with that folder in it, or the product's own XML.
        bands: names; default: the super-resolution bands, which leave B10 out. A cube holds those
            of its GSD, each in the file of that GSD.

    Yields:
        Granules with facts and with the masks that the product has. Cubes hold DN as stored, with
        the XML's offset and quantification as attributes. A cube of which all files are missing (a
        partial download) is not there.

    Raises:
        DataError: no product; XML, zip or an image missing or damaged; offsets missing; bands of
            different extents; a band that the level does not have.

    Warns:
        ResampledPixels: all images of a GSD have the same, smaller size than the XML says.
    """
    files = safe_files.find_product(pathlib.Path(path))
    product = safe_xml.read_product(files)
    if bands is None:
        wanted = {gsd: sentinel2.bands_at(gsd) for gsd in sentinel2.GSDS.values()}
    else:
        wanted = sentinel2.order_bands(product.level, bands)
    for tile in product.tiles:
        yield _open_tile(files, product, tile, wanted)


def _open_tile(
    files: ProductFiles,
    product: safe_xml.Product,
    tile: safe_xml.Tile,
    wanted: Mapping[int, Sequence[str]],
) -> Granule:
    """One tile of a product."""
    facts = safe_xml.read_tile(files, product, tile)
    cubes = {}
    for name, gsd in sentinel2.GSDS.items():
        found = _find_images(files, tile, wanted.get(gsd, ()), gsd)
        if found:
            images = _check_images(files, found, facts, gsd)
            cubes[name] = build_cube(
                open_images(list(images.values()), gsd),
                images,
                gsd,
                crs=facts.crs,
                transform=facts.grids[gsd].transform,
                offset=[product.offset[band] for band in images],
                quantification=[product.quantification] * len(images),
            )
    if not cubes:
        expected = ", ".join(band for bands in wanted.values() for band in bands)
        raise DataError(f"{files.path}: {tile.tile}: no image of {expected or 'no band'}")
    check_nesting(files.path, cubes)
    name = product.name if tile.tile in product.name else f"{product.name}_{tile.tile}"
    plane, origin = plane_of(next(iter(cubes.values()))) or ("", None)
    return Granule(
        name=name,
        scene=name,
        place=tile.tile,
        cubes=cubes,
        origin=origin,
        plane=plane,
        synthetic=product.synthetic,
        facts={
            "product": product.name,
            "level": product.level,
            "tile": tile.tile,
            "time": facts.time or product.time,
            "baseline": product.baseline,
            "spacecraft": product.spacecraft,
        },
        masks=safe_masks.open_masks(files, tile, facts),
    )


def _find_images(
    files: ProductFiles, tile: safe_xml.Tile, bands: Sequence[str], gsd: int
) -> dict[str, ProductFile]:
    """Band -> file; empty where all are missing.

    Raises:
        DataError: some are missing.
    """
    names = {band: tile.images.get((band, gsd), ()) for band in bands}
    found = {band: files.find(*names[band]) for band in bands}
    missing = [band for band, file in found.items() if file is None]
    if len(missing) == len(found):
        return {}
    if missing:
        where = ", ".join(
            (names[band] or (f"{tile.folder}: {band}, which the XML does not name",))[0]
            for band in missing
        )
        there = ", ".join(band for band in found if band not in missing)
        raise DataError(f"{files.path}: missing file {where}; found {there} of {gsd} m")
    return {band: file for band, file in found.items() if file is not None}


def _check_images(
    files: ProductFiles, found: Mapping[str, ProductFile], facts: safe_xml.TileFacts, gsd: int
) -> dict[str, Image]:
    """The images of one GSD, their headers held against each other and against the XML.

    Raises:
        DataError: of different sizes, or not where the XML says.
    """
    grid = facts.grids[gsd]
    images: dict[str, Image] = {}
    for band, file in found.items():
        header = safe_jp2.read_header(file)
        if header.dtype != "uint16" or header.num_bands != 1:
            raise DataError(
                f"{file}: {header.num_bands} bands of {header.dtype}; expected 1 of uint16"
            )
        check_place(file, header, grid, facts.crs)
        images[band] = place_image(file, header, grid)
        first = next(iter(images.values()))
        if header.shape != first.native:
            raise DataError(
                f"{files.path}: bands of different extents: {file} has {_size(header.shape)}, "
                f"{first.file} {_size(first.native)}; expected one size at {gsd} m"
            )
    native = next(iter(images.values())).native
    if native != grid.shape:
        warnings.warn(
            f"{files.path}: images of {gsd} m have {_size(native)} where the XML says "
            f"{_size(grid.shape)}: pixels are repeated",
            ResampledPixels,
            stacklevel=5,
        )
    return images


def check_place(file: ProductFile, header: safe_jp2.Header, grid: safe_xml.Grid, crs: str) -> None:
    """Hold an image's own CRS and corners, where it has them, and its size against the XML.

    A shift of less than a pixel of the image is taken for its pixels' centres, and the XML is
    believed.

    Raises:
        DataError: found and expected.
    """
    import rasterio

    (height, width), (rows, columns) = header.shape, grid.shape
    # Decimated products are known, never larger ones; the ratio may be rounded to whole pixels.
    if height > rows or width > columns or abs(height * columns - width * rows) > rows + columns:
        raise DataError(f"{file}: {_size(header.shape)}; the XML says {_size(grid.shape)}")
    if header.crs is not None and header.crs != rasterio.CRS.from_user_input(crs):
        raise DataError(f"{file}: CRS {header.crs.to_string()}; the XML says {crs}")
    if header.transform is None or header.crs is None:
        return
    a, b, x, d, e, y = header.transform
    step, _, left, _, _, top = grid.transform
    found = (x, y, x + a * width + b * height, y + d * width + e * height)
    expected = (left, top, left + step * columns, top - step * rows)
    if any(abs(v - w) >= max(abs(a), step) for v, w in zip(found, expected, strict=True)):
        raise DataError(
            f"{file}: lies from {_corners(found)}; the XML says {_corners(expected)} [m]"
        )


def _corners(box: tuple[float, ...]) -> str:
    """Both corners in words; northings have seven digits, so %g alone would round them."""
    left, top, right, bottom = (f"{value:.10g}" for value in box)
    return f"({left}, {top}) to ({right}, {bottom})"


def place_image(
    file: ProductFile, header: safe_jp2.Header, grid: safe_xml.Grid, index: int = 1
) -> Image:
    """A band of a file on a grid."""
    if header.shape != grid.shape:
        # Someone made it smaller after the manifest was written: its hash is that of other bytes.
        file = dataclasses.replace(file, digest=None)
    return Image(file, grid.shape, header.shape, header.dtype, index, header.block)


def _size(shape: tuple[int, int]) -> str:
    return f"{shape[0]} x {shape[1]} px"


def open_images(images: Sequence[Image], gsd: int) -> Any:
    """A dask array (band, y, x): a chunk is one band of whole tiles, CHUNK px of 10 m or more."""
    import dask.array

    edge = chunk_edge(images[0].block, gsd)
    sizes = [
        tuple(min(edge, total - start) for start in range(0, total, edge))
        for total in images[0].shape
    ]
    return dask.array.map_blocks(
        functools.partial(_read_chunk, images=tuple(images)),
        chunks=((1,) * len(images), *sizes),
        dtype=images[0].dtype,
        meta=np.empty((0, 0, 0), images[0].dtype),
    )


def chunk_edge(block: int, gsd: int) -> int:
    """Edge of a chunk [px] of a file with tiles of `block` px at `gsd` m."""
    return -(-CHUNK * 10 // (gsd * block)) * block


def _read_chunk(block_info: Any, *, images: tuple[Image, ...]) -> NDArray[Any]:
    """One dask chunk; dask says which by `block_info`."""
    (band, _), (y0, y1), (x0, x1) = block_info[None]["array-location"]
    return read_image(images[band], Window(y0, x0, y1 - y0, x1 - x0))[None]


def read_image(image: Image, window: Window) -> NDArray[Any]:
    """Pixels (y, x) of a window of the grid; where the file has fewer, the nearest ones.

    Raises:
        DataError: the file is missing or damaged.
    """
    if image.native == image.shape:
        return safe_jp2.read_pixels(image.file, window, image.index)
    # In integers: the middle of a pixel of the grid may fall on an edge between two of the file.
    (height, width), (rows, columns) = image.native, image.shape
    y = (2 * np.arange(window.y, window.y + window.height) + 1) * height // (2 * rows)
    x = (2 * np.arange(window.x, window.x + window.width) + 1) * width // (2 * columns)
    part = Window(int(y[0]), int(x[0]), int(y[-1] - y[0]) + 1, int(x[-1] - x[0]) + 1)
    pixels = safe_jp2.read_pixels(image.file, part, image.index)
    return pixels[np.ix_(y - y[0], x - x[0])]
