"""Files of labels: CSV, GeoJSON, GeoParquet, and a raster of probabilities."""

from __future__ import annotations

import csv
import json
import math
import os
import pathlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import files
from data_pipelines.spec import DataError
from kerass2.label_places import Places

if TYPE_CHECKING:
    from kerass2.outputs import Target

LONLAT = "EPSG:4326"
# Digits behind the point: of probabilities, and of degrees (1e-7 are 1 cm).
DIGITS, DEGREE_DIGITS = 6, 7

# Corners (longitude, latitude) of each place, counterclockwise; None where it is not known.
Rings = Sequence[Sequence[tuple[float, float]] | None]


class Labelled:
    """Places with their probabilities, NaN in places without data."""

    def __init__(
        self,
        places: Places,
        classes: Sequence[str],
        probabilities: NDArray[np.float32],
        thresholds: NDArray[np.float64],
        model: str,
    ) -> None:
        """`probabilities` (place, class); `thresholds` (class,); `model` is a file's name."""
        self.places, self.classes, self.model = places, tuple(classes), model
        self.probabilities, self.thresholds = probabilities, thresholds

    def rows(self) -> Iterator[tuple[str, list[str] | None, list[float | None]]]:
        """Name, labels and rounded probabilities of each place; None where there are no data."""
        for name, values in zip(self.places.find_names(), self.probabilities, strict=True):
            if np.isnan(values).any():
                yield name, None, [None] * len(self.classes)
                continue
            chosen = np.flatnonzero(values >= self.thresholds)
            rounded: list[float | None] = [round(float(value), DIGITS) for value in values]
            yield name, [self.classes[number] for number in chosen], rounded

    def facts(self) -> dict[str, str]:
        """What a file says of itself."""
        from data_pipelines import geotiff

        made_up = geotiff.SYNTHETIC_TAGS if self.places.synthetic else {}
        return {"SOURCE": self.places.name, "MODEL": self.model, **made_up}

    def rings(self) -> Rings:
        """Outlines in longitudes and latitudes."""
        import rasterio.warp

        outlines = [self.places.outline(number) for number in range(self.places.count)]
        rings: list[Sequence[tuple[float, float]] | None] = [None] * len(outlines)
        for crs in {outline[0] for outline in outlines if outline}:
            numbers = [n for n, outline in enumerate(outlines) if outline and outline[0] == crs]
            corners = [point for n in numbers for point in (outlines[n] or ("", ()))[1]]
            try:
                lons, lats = rasterio.warp.transform(crs, LONLAT, *zip(*corners, strict=True))
            except rasterio.errors.CRSError as error:
                raise DataError(f"{self.places.name}: CRS {crs!r}: {error}") from error
            points = list(zip(lons, lats, strict=True))
            for place, n in enumerate(numbers):
                four = points[4 * place : 4 * place + 4]
                rings[n] = [(round(x, DEGREE_DIGITS), round(y, DEGREE_DIGITS)) for x, y in four]
        return rings


def write(found: Labelled, target: Target) -> None:
    """Write labels; whole or not at all.

    Raises:
        DataError: a raster of places that form no grid, or the file cannot be written.
    """
    try:
        with files.replacing(target.path) as temporary:
            WRITERS[target.kind](found, temporary)
    except OSError as error:
        raise DataError(f"{target.path}: cannot be written: {error.strerror or error}") from error


def _write_csv(found: Labelled, path: pathlib.Path) -> None:
    """Name, middle [degree], labels with semicolons between them, and each class' probability."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", "longitude", "latitude", "labels", *found.classes])
        for (name, labels, values), ring in zip(found.rows(), found.rings(), strict=True):
            middle: Sequence[Any] = ("", "")
            if ring is not None:
                middle = [round(sum(axis) / 4, DEGREE_DIGITS) for axis in zip(*ring, strict=True)]
            cells = ["" if value is None else value for value in values]
            writer.writerow([name, *middle, "; ".join(labels or ()), *cells])


def _write_geojson(found: Labelled, path: pathlib.Path) -> None:
    """RFC 7946: a feature for each place; labels and probabilities are null without data."""
    features = []
    for (name, labels, values), ring in zip(found.rows(), found.rings(), strict=True):
        known = dict(zip(found.classes, values, strict=True))
        features.append(
            {
                "type": "Feature",
                "id": name,
                "properties": {"name": name, "labels": labels, **known},
                "geometry": ring and {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
            }
        )
    whole = {"type": "FeatureCollection", **found.facts(), "features": features}
    path.write_text(json.dumps(whole, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_geoparquet(found: Labelled, path: pathlib.Path) -> None:
    """GeoParquet 1.1: polygons as WKB, in longitudes and latitudes (OGC:CRS84, its default)."""
    import pyarrow
    import pyarrow.parquet

    rings, rows = found.rings(), list(found.rows())
    columns: dict[str, Any] = {
        "name": [name for name, _, _ in rows],
        "labels": pyarrow.array([labels for _, labels, _ in rows], pyarrow.list_(pyarrow.string())),
        "geometry": pyarrow.array([ring and _to_wkb(ring) for ring in rings], pyarrow.binary()),
    }
    for number, name in enumerate(found.classes):
        values = [values[number] for _, _, values in rows]
        columns[name] = pyarrow.array(values, pyarrow.float32())
    table = pyarrow.table(columns)
    about = {"encoding": "WKB", "geometry_types": ["Polygon"], "orientation": "counterclockwise"}
    geo = {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {"geometry": {**about, **_bounds(rings)}},
    }
    metadata = {"geo": json.dumps(geo), **found.facts()}
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), path)


def _bounds(rings: Rings) -> dict[str, list[float]]:
    points = [point for ring in rings if ring for point in ring]
    if not points:
        return {}
    lons, lats = zip(*points, strict=True)
    return {"bbox": [min(lons), min(lats), max(lons), max(lats)]}


def _to_wkb(ring: Sequence[tuple[float, float]]) -> bytes:
    """A polygon of one ring. Source: OGC 06-103r4, section 8: byte order, type 3, rings, points."""
    closed = [*ring, ring[0]]
    numbers = [value for point in closed for value in point]
    return struct.pack(f"<BIII{len(numbers)}d", 1, 3, 1, len(closed), *numbers)


def _write_cog(found: Labelled, path: pathlib.Path) -> None:
    """A band of probabilities for each class, described by its name; NaN is no data."""
    import affine
    import rasterio.shutil

    from data_pipelines import raster

    grid = found.places.grid
    if grid is None:
        raise DataError(
            f"{found.places.name}: patches form no grid, so no raster; expected an output .csv, "
            ".geojson or .parquet"
        )
    pixels = found.probabilities.T.reshape(len(found.classes), *grid.shape)
    plain = path.with_suffix(".plain.tif")
    try:
        raster.write_geotiff(
            plain,
            [np.ascontiguousarray(pixels, np.float32)],
            height=grid.shape[0],
            width=grid.shape[1],
            bands=found.classes,
            dtype="float32",
            nodata=math.nan,
            crs=grid.crs,
            transform=None if grid.transform is None else affine.Affine(*grid.transform),
            tags=found.facts(),
        )
        with raster.silent_without_georeference(), rasterio.Env(GDAL_PAM_ENABLED="NO"):
            options = {"COMPRESS": "DEFLATE", "PREDICTOR": "YES", "OVERVIEW_RESAMPLING": "AVERAGE"}
            rasterio.shutil.copy(os.fspath(plain), os.fspath(path), driver="COG", **options)
    except rasterio.errors.RasterioError as error:
        raise DataError(f"{path.parent}: cannot write {path.name}: {error}") from error
    finally:
        plain.unlink(missing_ok=True)


# Suffix -> the format's name; format -> what writes it.
SUFFIXES: Mapping[str, tuple[str, ...]] = {
    ".csv": ("CSV",),
    ".geojson": ("GeoJSON",),
    ".parquet": ("GeoParquet",),
    ".tif": ("COG",),
}
WRITERS: dict[str, Callable[[Labelled, pathlib.Path], None]] = {
    "CSV": _write_csv,
    "GeoJSON": _write_geojson,
    "GeoParquet": _write_geoparquet,
    "COG": _write_cog,
}
