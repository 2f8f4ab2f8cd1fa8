"""Regions of interest: pixels, longitudes and latitudes, GeoJSON."""

from __future__ import annotations

import json
import pathlib

import pytest
import rasterio.warp

from data_pipelines import roi
from data_pipelines.spec import DataError
from data_pipelines.windows import Window

CRS = "EPSG:32632"
TRANSFORM = (10.0, 0.0, 399960.0, 0.0, -10.0, 5800020.0)
SHAPE = (300, 400)


def lonlat(*points: tuple[float, float]) -> list[list[float]]:
    """Longitudes and latitudes of places (column, row) in the granule."""
    placed = [(399960.0 + 10 * column, 5800020.0 - 10 * row) for column, row in points]
    xs, ys = rasterio.warp.transform(CRS, "EPSG:4326", *zip(*placed, strict=True))
    return [[x, y] for x, y in zip(xs, ys, strict=True)]


def test_pixels() -> None:
    assert roi.from_pixels("g", (10, 20, 40, 25), SHAPE) == Window(20, 10, 5, 30)
    for box in ((-1, 0, 5, 5), (0, 0, 401, 5), (5, 5, 5, 9), (9, 5, 5, 9), (0, 0, 5, 301)):
        with pytest.raises(DataError, match=r"g: ROI .*: expected 0 <= X0 < X1 <= 400 and 0 <= Y0"):
            roi.from_pixels("g", box, SHAPE)


@pytest.mark.parametrize("kind", ["Polygon", "Feature", "MultiPoint", "GeometryCollection"])
def test_geojson_of_any_kind(kind: str, tmp_path: pathlib.Path) -> None:
    ring = lonlat((50, 60), (120, 60), (120, 90), (50, 90), (50, 60))
    geometry = {"type": "Polygon", "coordinates": [ring]}
    values = {
        "Polygon": geometry,
        "Feature": {"type": "Feature", "properties": {}, "geometry": geometry},
        "MultiPoint": {"type": "MultiPoint", "coordinates": [[*point, 12.0] for point in ring]},
        "GeometryCollection": {"type": "GeometryCollection", "geometries": [geometry]},
    }[kind]
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(values))
    assert roi.from_geojson("g", path, SHAPE, CRS, TRANSFORM) == Window(60, 50, 30, 70)


def test_box_holds_its_corners_and_is_not_much_larger() -> None:
    west, south = lonlat((50, 90))[0]
    east, north = lonlat((120, 60))[0]
    found = roi.from_lonlat("g", (west, south, east, north), SHAPE, CRS, TRANSFORM)
    assert found.y <= 60 and found.y + found.height >= 90
    assert found.x <= 50 and found.x + found.width >= 120
    assert found.height <= 36 and found.width <= 76


def test_reaching_beyond_is_cut_with_a_warning(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.geojson"
    points = lonlat((-20, 200), (30, 320))
    path.write_text(json.dumps({"type": "LineString", "coordinates": points}))
    with pytest.warns(UserWarning, match=r"only the 100 x 30 px inside of 120 x 50 px"):
        found = roi.from_geojson("g", path, SHAPE, CRS, TRANSFORM)
    assert found == Window(200, 0, 100, 30)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("no json", "not readable as GeoJSON"),
        ({"type": "Point"}, "not readable as GeoJSON: KeyError"),
        ({"type": "Point", "coordinates": [400000.0, 5800000.0]}, "expected longitude, latitude"),
        ({"type": "FeatureCollection", "features": []}, "without coordinates"),
        ({"type": "Feature", "geometry": None}, "without coordinates"),
        ([1, 2], "not readable as GeoJSON"),
        ({"type": "Point", "coordinates": [5]}, "not readable as GeoJSON: IndexError"),
        ({"type": "Point", "coordinates": [100.0, 10.0]}, "the ROI lies outside"),
    ],
)
def test_what_is_no_region(values: object, message: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    with pytest.raises(DataError, match=message):
        roi.from_geojson("g", path, SHAPE, CRS, TRANSFORM)


def test_edges_are_straight_in_degrees(tmp_path: pathlib.Path) -> None:
    """RFC 7946; on a grid in UTM they bend: a box and the polygon around it are the same region."""
    shape, transform = (10980, 20000), (10.0, 0.0, 399960.0, 0.0, -10.0, 5800020.0)
    west, south, east, north = 8.3, 51.6, 9.7, 52.2  # 9 degrees east is the middle of the zone
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    polygon = roi.from_geojson("g", path, shape, CRS, transform)
    assert polygon == roi.from_lonlat("g", (west, south, east, north), shape, CRS, transform)
    path.write_text(json.dumps({"type": "MultiPoint", "coordinates": ring}))
    corners = roi.from_geojson("g", path, shape, CRS, transform)
    assert polygon.height > corners.height + 10


def test_a_granule_without_a_place() -> None:
    with pytest.raises(DataError, match="g: has no CRS"):
        roi.from_lonlat("g", (7, 52, 8, 53), SHAPE, None, None)
    with pytest.raises(DataError, match="expected LON0 < LON1"):
        roi.from_lonlat("g", (8, 52, 7, 53), SHAPE, CRS, TRANSFORM)
