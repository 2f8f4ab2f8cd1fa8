"""A region of interest, as users name it: pixels, longitudes and latitudes, or a GeoJSON file."""

from __future__ import annotations

import json
import math
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from data_pipelines.spec import DataError
from data_pipelines.windows import Window

LONLAT = "EPSG:4326"
# Points along each edge of a box of longitudes and latitudes, whose edges are curves in a CRS.
DENSITY = 21
# What of a pixel a region may touch without taking it in [px]: 10 cm.
TOLERANCE = 0.01


def from_pixels(name: str, box: Sequence[int], shape: tuple[int, int]) -> Window:
    """The window of X0, Y0, X1, Y1 [px of 10 m] from the upper left corner; X1 and Y1 exclusive.

    Raises:
        DataError: empty, or not wholly inside the granule of this shape (y, x).
    """
    x0, y0, x1, y1 = box
    height, width = shape
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise DataError(
            f"{name}: ROI {x0},{y0},{x1},{y1}: expected 0 <= X0 < X1 <= {width} and "
            f"0 <= Y0 < Y1 <= {height} [px of 10 m]"
        )
    return Window(y0, x0, y1 - y0, x1 - x0)


def from_lonlat(
    name: str,
    box: Sequence[float],
    shape: tuple[int, int],
    crs: str | None,
    transform: Sequence[float] | None,
) -> Window:
    """The window around west, south, east, north [degree, WGS 84], clipped to the granule.

    Raises:
        DataError: no box, outside the granule, or a granule without a place.
    """
    west, south, east, north = box
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise DataError(
            f"{name}: ROI {west:g},{south:g},{east:g},{north:g}: expected LON0 < LON1 within 180 "
            "and LAT0 < LAT1 within 90 degrees"
        )
    steps = [k / (DENSITY - 1) for k in range(DENSITY)]
    points = [
        point
        for t in steps
        for point in (
            (west + t * (east - west), south),
            (west + t * (east - west), north),
            (west, south + t * (north - south)),
            (east, south + t * (north - south)),
        )
    ]
    return _around(name, points, shape, crs, transform)


def from_geojson(
    name: str,
    path: pathlib.Path,
    shape: tuple[int, int],
    crs: str | None,
    transform: Sequence[float] | None,
) -> Window:
    """The window around everything in a GeoJSON file (WGS 84), clipped to the granule.

    Raises:
        DataError: no GeoJSON, outside the granule, or a granule without a place.
    """
    try:
        points = list(_positions(json.loads(path.read_bytes())))
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: not readable as GeoJSON: {error!r}") from error
    if not points:
        raise DataError(f"{path}: GeoJSON without coordinates")
    return _around(name, points, shape, crs, transform)


def _positions(value: Any) -> Iterator[tuple[float, float]]:
    """All positions of a GeoJSON object. Source: RFC 7946."""
    kind = value["type"]
    if kind == "FeatureCollection":
        for feature in value["features"]:
            yield from _positions(feature)
    elif kind == "Feature":
        if value["geometry"] is not None:
            yield from _positions(value["geometry"])
    elif kind == "GeometryCollection":
        for geometry in value["geometries"]:
            yield from _positions(geometry)
    else:
        edges = kind not in ("Point", "MultiPoint")
        yield from _flat(value["coordinates"], edges)


def _flat(values: Any, edges: bool) -> Iterator[tuple[float, float]]:
    """Positions, and points of the straight lines of longitude and latitude between them."""
    if values and isinstance(values[0], int | float):
        lon, lat = float(values[0]), float(values[1])
        if not (-180 <= lon <= 180 and -90 <= lat <= 90):
            raise ValueError(f"position {lon:g},{lat:g}: expected longitude, latitude [degree]")
        yield lon, lat
        return
    last: list[tuple[float, float]] = []
    for inner in values:
        found = list(_flat(inner, edges))
        if edges and last and isinstance(inner[0], int | float):
            (west, south), (east, north) = last[0], found[0]
            for k in range(1, DENSITY - 1):
                t = k / (DENSITY - 1)
                yield west + t * (east - west), south + t * (north - south)
        yield from found
        last = found


def place_of(transform: Sequence[float], x: float, y: float) -> tuple[float, float]:
    """Where six numbers of an affine.Affine take a point; its own sign for this changed with 3."""
    a, b, c, d, e, f = transform
    return a * x + b * y + c, d * x + e * y + f


def _around(
    name: str,
    points: Sequence[tuple[float, float]],
    shape: tuple[int, int],
    crs: str | None,
    transform: Sequence[float] | None,
) -> Window:
    """The smallest window with all pixels that hold a point, clipped to the granule."""
    if crs is None or transform is None:
        raise DataError(f"{name}: has no CRS, so longitudes and latitudes have no place in it")
    import rasterio
    import rasterio.warp
    from affine import Affine

    lons, lats = zip(*points, strict=True)
    try:
        xs, ys = rasterio.warp.transform(LONLAT, crs, lons, lats)
    except rasterio.errors.CRSError as error:
        raise DataError(f"{name}: CRS {crs!r}: not known to GDAL: {error}") from error
    inverse = tuple(~Affine(*transform))[:6]
    places = [place_of(inverse, *point) for point in zip(xs, ys, strict=True)]
    if not all(math.isfinite(value) for place in places for value in place):
        raise DataError(f"{name}: the ROI has no place in {crs}")
    # A line that is meant to lie on the pixels' edge is off by rounding, and bends a little.
    x0, y0 = (math.floor(min(values) + TOLERANCE) for values in zip(*places, strict=True))
    x1, y1 = (math.ceil(max(values) - TOLERANCE) for values in zip(*places, strict=True))
    wanted = Window(y0, x0, max(y1 - y0, 1), max(x1 - x0, 1))
    found = wanted.clipped(*shape)
    if not found.height or not found.width:
        raise DataError(
            f"{name}: the ROI lies outside: rows {y0} to {y1}, columns {x0} to {x1} "
            f"of {shape[0]} x {shape[1]} px"
        )
    if found != wanted:
        warnings.warn(
            f"{name}: the ROI reaches beyond; only the {found.height} x {found.width} px inside "
            f"of {wanted.height} x {wanted.width} px are done",
            stacklevel=2,
        )
    return found
