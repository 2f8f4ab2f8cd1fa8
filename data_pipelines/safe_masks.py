"""Scene classification and cloud masks of Sentinel-2 products, lazily; a product may have none."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import safe_xml, sentinel2
from data_pipelines.safe_files import ProductFile, ProductFiles
from data_pipelines.spec import DataError

# Grid of L1C's cloud masks [m].
CLOUD_GSD = 60


def open_masks(
    files: ProductFiles, tile: safe_xml.Tile, facts: safe_xml.TileFacts
) -> dict[str, Any]:
    """The masks that a tile has.

    Returns:
        "scl": (y, x) uint8 scene classification of L2A at 20 m (60 m where that file is missing).
        "cloud": (y, x) bool: classes 8, 9 and 10 of `scl`, so without cloud shadow (3); without
        scl, opaque cloud and cirrus at 60 m of MSK_CLASSI (baseline 04.00 and later) or MSK_CLOUDS.
        Attributes gsd, crs, transform, as a cube's.

    Raises:
        DataError: a mask's header is damaged, or it is not where the XML says. Damaged pixels and
            polygons are found when they are read.
    """
    for gsd in (20, 60):
        file = files.find(*tile.images.get(("SCL", gsd), ()))
        if file is not None:
            scl = _open_image(file, facts, gsd)[0]
            cloud = scl.map_blocks(_is_cloud, dtype=bool, meta=np.empty((0, 0), bool))
            masks = {"scl": (scl, gsd), "cloud": (cloud, gsd)}
            return {name: _mask(name, *mask, facts) for name, mask in masks.items()}
    # B00: of all bands. Older L2A, and products whose SCL was left out, still have these.
    if file := files.find(*facts.masks.get("MSK_CLASSI", ())):
        # Opaque cloud, cirrus, snow.
        images = _open_image(file, facts, CLOUD_GSD, least=2)
        cloud = (images[0] != 0) | (images[1] != 0)
    elif file := files.find(*facts.masks.get("MSK_CLOUDS", ())):
        cloud = _open_polygons(file, facts)
    else:
        return {}
    return {"cloud": _mask("cloud", cloud, CLOUD_GSD, facts)}


def _mask(name: str, data: Any, gsd: int, facts: safe_xml.TileFacts) -> Any:
    import xarray

    attributes = {"gsd": float(gsd), "crs": facts.crs, "transform": facts.grids[gsd].transform}
    return xarray.DataArray(data, dims=("y", "x"), name=name, attrs=attributes)


def _open_image(file: ProductFile, facts: safe_xml.TileFacts, gsd: int, least: int = 1) -> Any:
    """(band, y, x) uint8 with at least so many bands, lazily."""
    from data_pipelines import safe, safe_jp2

    header, grid = safe_jp2.read_header(file), facts.grids[gsd]
    if header.dtype != "uint8" or header.num_bands < least:
        found = f"{header.num_bands} bands of {header.dtype}"
        raise DataError(f"{file}: {found}; expected {least} or more of uint8")
    safe.check_place(file, header, grid, facts.crs)
    images = [safe.place_image(file, header, grid, index + 1) for index in range(header.num_bands)]
    return safe.open_images(images, gsd)


def _is_cloud(block: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return np.isin(block, sentinel2.SCL_CLOUD)


def _open_polygons(file: ProductFile, facts: safe_xml.TileFacts) -> Any:
    """(y, x) bool: what the polygons of a GML cover, read when it is asked for."""
    import dask.array

    grid = facts.grids[CLOUD_GSD]
    # One chunk: 3 MB for a whole tile.
    return dask.array.map_blocks(
        functools.partial(_draw_polygons, file=file, grid=grid, crs=facts.crs),
        chunks=tuple((size,) for size in grid.shape),
        dtype=bool,
        meta=np.empty((0, 0), bool),
    )


def _draw_polygons(*, file: ProductFile, grid: safe_xml.Grid, crs: str) -> NDArray[np.bool_]:
    """(y, x): pixels whose middle lies in a polygon.

    Raises:
        DataError: damaged, or in another CRS.
    """
    from affine import Affine
    from rasterio import features

    shapes = read_polygons(file, crs)
    if not shapes:
        return np.zeros(grid.shape, bool)
    drawn: NDArray[np.uint8] = features.rasterize(
        shapes, out_shape=grid.shape, transform=Affine(*grid.transform), dtype="uint8"
    )
    return drawn.astype(bool)


def read_polygons(file: ProductFile, crs: str) -> list[Mapping[str, Any]]:
    """The polygons of a GML mask as GeoJSON geometries, coordinates in the CRS [m].

    Raises:
        DataError: damaged, or in another CRS.
    """
    root = safe_xml.parse(file.read_xml(), file)
    if root.tag != "Mask":
        raise DataError(f"{file}: root {root.tag}; expected Mask")
    for element in root.iter():
        name = element.get("srsName")
        if name is not None and not re.search(rf"\b{crs.partition(':')[2]}$", name):
            raise DataError(f"{file}: CRS {name}; the tile's is {crs}")
    polygons: list[Mapping[str, Any]] = []
    for polygon in root.iter("Polygon"):
        rings = [
            _ring(file, element)
            for side in ("exterior", "interior")
            for part in polygon.iter(side)
            for element in part.iter("posList")
        ]
        if not rings:
            raise DataError(f"{file}: a Polygon without posList")
        polygons.append({"type": "Polygon", "coordinates": rings})
    return polygons


def _ring(file: ProductFile, element: Any) -> list[tuple[float, float]]:
    """(x, y) of one posList."""
    text = (element.text or "").split()
    dimension = element.get("srsDimension", "2")
    try:
        numbers = np.array(text, np.float64)
    except ValueError as error:
        raise DataError(f"{file}: posList: {error}") from error
    step = int(dimension) if dimension in ("2", "3") else 0
    if not step or len(numbers) % step or len(numbers) < 4 * step or not np.isfinite(numbers).all():
        raise DataError(
            f"{file}: posList of {len(numbers)} numbers, srsDimension {dimension!r}; expected 4 or "
            "more points of 2 or 3"
        )
    points = numbers.reshape(-1, step)
    return [(float(x), float(y)) for x, y in points[:, :2]]
