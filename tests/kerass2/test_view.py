"""The viewer: pixels, spectra, refusals by real requests; the page in a real browser."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import warnings
from collections.abc import Iterator
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import rasterio
from affine import Affine

from data_pipelines import geotiff, raster, sentinel2, store
from data_pipelines.spec import DataError, DatasetSpec, TensorSpec
from data_pipelines.windows import Window
from kerass2 import cli, colours, predict, view
from kerass2.viewer import file_layer, prediction
from kerass2.viewer.server import Server

# What would run if a page took a name for HTML.
EVIL = '<img src=x onerror="window.hacked=1">'
# The middle of column 5 lies at 500000 m east: on UTM zone 33's central meridian, 15 degrees.
CORNER = (499945.0, 5300040.0)
HEIGHT, WIDTH = 60, 2160
ROI = (12, 6, 2112, 54)
TILE = prediction.TILE


@pytest.fixture(scope="module")
def granule(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A granule of random DN, wide enough for four levels, with pixels without data."""
    rng = np.random.default_rng(0)
    cubes = {}
    for name, gsd in sentinel2.GSDS.items():
        shape = len(sentinel2.bands_at(gsd)), HEIGHT * 10 // gsd, WIDTH * 10 // gsd
        cubes[name] = rng.integers(900, 1200, shape).astype(np.uint16)
    cubes["gsd20"][:, 10:12, 20:25] = 0
    cubes["gsd10"][1, 40, 700] = 0
    return geotiff.write_folder(
        tmp_path_factory.mktemp("in") / "granule", cubes, crs="EPSG:32633", corner=CORNER
    )


@pytest.fixture(scope="module")
def predicted(granule: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A part of it by the real command: a COG with all bands, under an evil name."""
    path = tmp_path_factory.mktemp("out") / f"{EVIL}.tif"
    roi = ",".join(map(str, ROI))
    arguments = [granule, "-o", path, "--bicubic", "--bands", "all", "--roi", roi]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["kerass2.predict", *map(str, arguments)])
        cli.run(predict.main)
    assert not end.value.code
    return path


@pytest.fixture(scope="module")
def page(granule: pathlib.Path, predicted: pathlib.Path) -> prediction.Prediction:
    """The prediction with its input."""
    return prediction.Prediction(predicted, granule)


@contextlib.contextmanager
def serving(page: Any) -> Iterator[Server]:
    """A server on a thread."""
    with Server(page) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def server(page: prediction.Prediction) -> Iterator[Server]:
    """Of the prediction."""
    with serving(page) as found:
        yield found


Response = tuple[int, http.client.HTTPMessage, bytes]


def ask(
    server: Server, path: str, method: str = "GET", headers: list[tuple[str, str]] | None = None
) -> Response:
    """A request as it stands; headers None: an honest browser's."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in headers or [("Host", f"127.0.0.1:{server.server_port}")]:
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    found = response.status, response.headers, response.read()
    connection.close()
    return found


def get(server: Server, address: str, **query: object) -> bytes:
    """The body of an address below the page."""
    text = urllib.parse.urlencode({k: v for k, v in query.items()}, safe=",")
    status, _, body = ask(server, f"/{server.key}/{address}?{text}")
    assert status == 200, body
    return body


def get_tile(server: Server, layer: int, level: int, row: int, column: int, bands: str) -> Any:
    """(y, x, 4) of 0 to 255, drawn so that colours are DN - 950."""
    query = {"bands": bands, "low": "950,950,950", "spread": 255, "gamma": 1}
    body = get(server, f"tile/{layer}/{level}/{row}/{column}", **query)
    return np.rint(matplotlib.image.imread(io.BytesIO(body), format="png") * 255)


def expect_tile(values: np.ndarray, found: np.ndarray, tolerance: float = 0) -> None:
    """Values (3, y, x) of DN, NaN without data, against a tile."""
    height, width = values.shape[1:]
    there = np.isfinite(values).all(axis=0)
    np.testing.assert_array_equal(found[:height, :width, 3], np.where(there, 255, 0))
    assert not found[height:].any()
    assert not found[:, width:].any()
    drawn = found[:height, :width, :3][there]
    expected = np.clip(values.transpose(1, 2, 0)[there] - 950, 0, 255)
    assert np.abs(drawn - expected).max() <= tolerance


def as_float(pixels: np.ndarray) -> np.ndarray:
    return np.where(pixels == 0, np.nan, pixels.astype(np.float64))


def means_of(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Of what is not NaN; NaN where all is."""
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        return np.nanmean(values, axis=axes)


# --- pixels ---------------------------------------------------------------------------------------


def test_describes_itself(server: Server, predicted: pathlib.Path) -> None:
    about = json.loads(get(server, "about.json"))
    with rasterio.open(predicted) as file:
        assert (about["height"], about["width"]) == file.shape == (48, 2100)
        assert {b["name"] for b in about["bands"]} == set(file.descriptions)
    assert about["title"] == predicted.name
    assert about["levels"] == 4
    assert [layer["name"] for layer in about["layers"]] == ["input", "bicubic", "prediction"]
    every = list(range(12))
    assert all(layer["bands"] == every for layer in about["layers"])
    names = [b["name"] for b in about["bands"]]
    first = [names[i] for i in about["combinations"][0]["bands"]]
    assert first == ["B12", "B8A", "B05"]
    assert ["true colour" in c["name"] for c in about["combinations"]].count(True) == 1


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_tiles_of_a_prediction_are_its_pixels(
    server: Server, predicted: pathlib.Path, level: int
) -> None:
    """At every level those of the COG's own overview, in the first and in the last tile."""
    overview = {} if level == 0 else {"overview_level": level - 1}
    with rasterio.open(predicted, **overview) as file:
        pixels = as_float(file.read([3, 11, 6]))
    last = (pixels.shape[2] - 1) // TILE
    for column in {0, last}:
        values = pixels[:, :TILE, column * TILE : (column + 1) * TILE]
        expect_tile(values, get_tile(server, 2, level, 0, column, "2,10,5"))


def test_levels_that_a_file_lacks_are_means_of_what_has_data(
    predicted: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    plain = tmp_path / "plain.tif"
    with rasterio.open(predicted) as file:
        band, profile = file.read(9), file.profile
    for key in ("blockxsize", "blockysize", "tiled", "interleave"):
        profile.pop(key)
    with rasterio.open(plain, "w", **(profile | {"driver": "GTiff", "count": 1})) as file:
        file.write(band, 1)
    layer = file_layer.FileLayer(plain)
    values = as_float(band)
    for level in (1, 2, 3):
        size = 2**level
        found = layer.read_level("band 1", level, Window(0, 0, 6, 200))
        for y, x in ((0, 0), (2, 3), (3, 7), (5, 199)):
            square = values[y * size : (y + 1) * size, x * size : (x + 1) * size]
            known = square[np.isfinite(square)]
            assert found[y, x] == pytest.approx(known.mean() if known.size else np.nan, nan_ok=True)
    assert np.isnan(values).any()


def test_input_tiles_are_the_granules_pixels(server: Server, granule: pathlib.Path) -> None:
    with rasterio.open(granule / "gsd20.tif") as file:
        coarse = as_float(file.read([6, 4, 1]))
    fine = coarse.repeat(2, axis=1).repeat(2, axis=2)[:, ROI[1] : ROI[3], ROI[0] : ROI[2]]
    found = get_tile(server, 0, 0, 0, 0, "11,8,4")
    expect_tile(fine[:, :, :TILE], found)
    assert (found[:48, :TILE, 3] == 0).any()
    # The last level is made of what is kept in memory.
    means = means_of(fine[:, :, :1024].reshape(3, 6, 8, 128, 8), (2, 4))
    expect_tile(means, get_tile(server, 0, 3, 0, 0, "11,8,4")[:, :128], tolerance=0.51)


def test_bicubic_is_what_predict_makes(
    page: prediction.Prediction, predicted: pathlib.Path
) -> None:
    """The prediction here is bicubic: the two layers agree to the last DN, in any window."""
    bicubic = page.layers[1]
    with rasterio.open(predicted) as file:
        for window in (Window(0, 0, 48, 64), Window(11, 1795, 30, 301), Window(47, 2099, 1, 1)):
            area = tuple((part.start, part.stop) for part in window.slices)
            for index, band in enumerate(file.descriptions, 1):
                expected = as_float(file.read(index, window=area))
                np.testing.assert_array_equal(bicubic.read(band, window), expected)
        # As zoomed out: means of whole pixels.
        found = bicubic.read_level("B11", 1, Window(0, 0, 24, 100))
        values = as_float(file.read(file.descriptions.index("B11") + 1))[:, :200]
    means = means_of(values.reshape(24, 2, 100, 2), (1, 3))
    np.testing.assert_allclose(found, means, atol=1e-3)


def test_a_spectrum_is_the_rasters_values(
    server: Server, predicted: pathlib.Path, granule: pathlib.Path
) -> None:
    y, x = 20, 1003
    found = json.loads(get(server, "pixel.json", y=y, x=x))
    with rasterio.open(predicted) as file:
        expected = dict(zip(file.descriptions, file.read()[:, y, x].tolist(), strict=True))
        place = file.xy(y, x)
    by_name = {layer["name"]: layer for layer in found["layers"]}
    assert by_name["prediction"]["stored"] == by_name["bicubic"]["stored"] == expected
    reflectance = by_name["prediction"]["reflectance"]
    assert reflectance == {band: value / 10000 for band, value in expected.items()}
    for name, gsd in sentinel2.GSDS.items():
        with rasterio.open(granule / f"{name}.tif") as file:
            values = file.read()[:, (y + ROI[1]) * 10 // gsd, (x + ROI[0]) * 10 // gsd]
            measured = dict(zip(file.descriptions, values.tolist(), strict=True))
        assert {b: by_name["input"]["stored"][b] for b in measured} == measured
    assert found["crs"] == "EPSG:32633"
    assert found["position"] == list(place)


def test_a_spectrum_says_no_data_and_where_it_is(
    granule: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "offset.tif"
    values = np.array([[[1500, 0]], [[0, 2600]]], np.uint16)
    raster.write_geotiff(
        path, [values], height=1, width=2, bands=("B02", "B05"), crs="EPSG:32633",
        transform=Affine(10, 0, 499985, 0, -10, 5300040), scales=(1e-4,) * 2, offsets=(-0.1,) * 2,
    )  # fmt: skip
    (layer,) = (found := prediction.Prediction(path).read_spectrum(0, 1))["layers"]
    assert layer["stored"] == {"B02": None, "B05": 2600}
    assert layer["reflectance"]["B02"] is None
    assert layer["reflectance"]["B05"] == pytest.approx(0.16, abs=1e-12)
    assert found["position"] == [500000, 5300035]
    longitude, latitude = found["lonlat"]
    assert longitude == pytest.approx(15, abs=1e-9)
    # On the central meridian a northing is 0.9996 times the arc from the equator. Source: Snyder,
    # Map projections - a working manual (1987), eq. 3-21, for WGS 84.
    e2, phi = 0.00669437999014, np.radians(latitude)
    arc = 6378137 * (
        (1 - e2 / 4 - 3 * e2**2 / 64 - 5 * e2**3 / 256) * phi
        - (3 * e2 / 8 + 3 * e2**2 / 32 + 45 * e2**3 / 1024) * np.sin(2 * phi)
        + (15 * e2**2 / 256 + 45 * e2**3 / 1024) * np.sin(4 * phi)
        - 35 * e2**3 / 3072 * np.sin(6 * phi)
    )
    assert 0.9996 * arc == pytest.approx(5300035, abs=0.01)


def test_a_raster_of_probabilities(tmp_path: pathlib.Path) -> None:
    """As predict writes it with a classifier: classes for bands, NaN for no data."""
    path = tmp_path / "labels.tif"
    pixels = np.array([[[0.25, np.nan]], [[0.5, np.nan]], [[1, np.nan]]], np.float32)
    raster.write_geotiff(
        path, [pixels], height=1, width=2, bands=("Sea", "Pastures, <b>", "Sea"), dtype="float32",
        nodata=np.nan,
    )  # fmt: skip
    found = prediction.Prediction(path)
    assert found.bands == ("Sea", "Pastures, <b>", "Sea (3)")
    (layer,) = found.read_spectrum(0, 0)["layers"]
    assert layer["stored"] == {"Sea": 0.25, "Pastures, <b>": 0.5, "Sea (3)": 1.0}
    assert layer["reflectance"] == {}
    assert set(found.read_spectrum(0, 1)["layers"][0]["stored"].values()) == {None}
    assert [c["bands"] for c in found.describe()["combinations"]] == [[2, 1, 0]]
    assert found.answer(("stretch.json",), {"bands": "2,1,0", "percentiles": "0,100"}) is not None


def test_one_stretch_by_percentiles(server: Server, predicted: pathlib.Path) -> None:
    with rasterio.open(predicted) as file:
        pixels = as_float(file.read([3, 11, 6]))[:, :40, 100:500]
    found = json.loads(
        get(server, "stretch.json", bands="2,10,5", percentiles="5,90", window="0,100,40,400")
    )
    flat = pixels.reshape(3, -1)
    flat = flat[:, np.isfinite(flat).all(axis=0)]
    low, high = np.percentile(flat, [5, 90], axis=1)
    np.testing.assert_allclose(found["low"], low)
    assert found["spread"] == pytest.approx((high - low).max())


def test_a_flat_or_empty_image_has_a_range() -> None:
    low, spread = colours.find_range(np.full((4, 4, 3), 7, np.float32), least=0)
    assert (low.tolist(), spread) == ([7] * 3, 1)
    empty = np.full((4, 4, 3), np.nan, np.float32)
    low, spread = colours.find_range(empty)
    assert (low.tolist(), spread) == ([0] * 3, 1)
    assert not prediction.draw(empty, [0, 0, 0], 1, 1).any()


def test_10_m_bands_come_from_the_input(granule: pathlib.Path, predicted: pathlib.Path,
                                        tmp_path: pathlib.Path) -> None:  # fmt: skip
    """As most predictions are: the sharpened bands alone, beside their input."""
    shutil.copytree(granule, tmp_path / "granule")
    with rasterio.open(predicted) as file:
        names = ("B05", "B12")
        pixels = file.read([file.descriptions.index(name) + 1 for name in names])
        place = {"crs": file.crs, "transform": file.transform}
    path = tmp_path / "sharp.tif"
    raster.write_geotiff(
        path, [pixels], height=48, width=2100, bands=names, tags={"SOURCE": "granule"}, **place
    )
    found = prediction.Prediction(path)
    about = found.describe()
    bands = [band["name"] for band in about["bands"]]
    prediction_has = [bands[i] for i in about["layers"][2]["bands"]]
    assert prediction_has == ["B02", "B03", "B04", "B05", "B08", "B12"]
    assert len(about["layers"][1]["bands"]) == 12
    spectra = found.read_spectrum(3, 3)["layers"]
    assert spectra[2]["stored"]["B04"] == spectra[0]["stored"]["B04"]
    assert set(spectra[2]["stored"]) == set(prediction_has)


@pytest.mark.parametrize("source", ["../granule", "/etc", "..", "other", "a\0b"])
def test_a_files_word_leads_nowhere_else(source: str, tmp_path: pathlib.Path) -> None:
    """The tag SOURCE is a name beside the file, whatever it says; without one it is shown alone."""
    (tmp_path / "other").mkdir()
    path = tmp_path / "folder" / "out.tif"
    path.parent.mkdir()
    raster.write_geotiff(
        path, [np.ones((1, 4, 4), np.uint16)], height=4, width=4, bands=("B05",),
        tags={"SOURCE": source.replace("\0", "")},
    )  # fmt: skip
    found = prediction.Prediction(path)
    assert [layer.name for layer in found.layers] == ["prediction"]
    assert "Its input was not found" in " ".join(found.describe()["notes"])


# --- refusals of the server -----------------------------------------------------------------------

STRANGE = [
    "/", "/etc/passwd", "/KEY", "/key/", "/KEY/../../etc/passwd", "/KEY/..", "/KEY/./",
    "/KEY/..%2f..%2fetc%2fpasswd", "/KEY/%2e%2e/%2e%2e/etc/passwd", "/KEY//etc/passwd",
    "/KEY/....//....//etc/passwd", "/KEY/..\\..\\etc\\passwd", "/KEY/common.css%00.png",
    "/KEY/leaflet/leaflet.js", "/KEY/server.py", "/KEY/../server.py", "/KEY/map.html",
    "/KEY/patches.js", "/KEY/file:///etc/passwd", "http://127.0.0.1/KEY/", "/KEY/about.json/",
    "/KEY/tile/0/0/0", "/KEY/tile/3/0/0/0", "/KEY/tile/0/9/0/0", "/KEY/tile/0/0/1/0",
    "/KEY/tile/0/0/0/99", "/KEY/tile/-1/0/0/0", "/KEY/tile/0/0/0/../0", "/KEY/tile/0/0/+0/0",
]  # fmt: skip


@pytest.mark.parametrize("path", STRANGE)
def test_serves_only_what_it_was_given(server: Server, path: str) -> None:
    status, headers, body = ask(server, path.replace("KEY", server.key))
    assert status == 404
    assert headers["Content-Type"].startswith("text/plain")
    assert b"root:" not in body


def test_the_page_and_its_files_are_there(server: Server) -> None:
    page = ask(server, f"/{server.key}/")
    assert page[0] == 200
    for name in ("common.css", "common.js", "map.js", "leaflet.js", "uPlot.iife.min.js"):
        assert f'"{name}"' in page[2].decode() or name == "common.js"
        assert ask(server, f"/{server.key}/{name}")[0] == 200
    for _, headers, _ in (page, ask(server, f"/{server.key}/about.json"), ask(server, "/")):
        assert headers["Content-Security-Policy"].startswith("default-src 'self';")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert "Python" not in headers["Server"]


def test_other_hosts_and_origins_are_refused(server: Server) -> None:
    port = server.server_port
    good = ("Host", f"localhost:{port}")
    wrong = [
        [("Host", "evil.example")],
        [("Host", f"evil.example:{port}")],
        [("Host", "127.0.0.1")],
        [("Host", f"127.0.0.1:{port + 1}")],
        [("Host", f"127.0.0.1.evil.example:{port}")],
        [("Accept", "*/*")],
        [good, ("Host", "evil.example")],
        [good, ("Origin", "https://evil.example")],
        [good, ("Origin", "null")],
        [good, ("Origin", f"http://localhost:{port + 1}")],
        [good, ("Origin", f"https://localhost:{port}")],
        [good, ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "no-cors")],
        [good, ("Sec-Fetch-Site", "same-site"), ("Sec-Fetch-Mode", "cors")],
    ]
    for headers in wrong:
        status, _, body = ask(server, f"/{server.key}/about.json", headers=headers)
        assert (status, b"layers" in body) == (403, False), headers
    fine = [
        [good],
        [good, ("Origin", f"http://localhost:{port}"), ("Sec-Fetch-Site", "same-origin")],
        [good, ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate")],
    ]
    for headers in fine:
        assert ask(server, f"/{server.key}/about.json", headers=headers)[0] == 200, headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "X"])
def test_only_get_and_head(server: Server, method: str) -> None:
    status, headers, _ = ask(server, f"/{server.key}/about.json", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_head_has_the_headers_alone(server: Server) -> None:
    whole = ask(server, f"/{server.key}/about.json")
    head = ask(server, f"/{server.key}/about.json", "HEAD")
    assert (head[0], head[2]) == (200, b"")
    assert head[1]["Content-Length"] == str(len(whole[2]))


def test_listens_on_the_loopback_alone(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    with pytest.raises(ConnectionRefusedError):
        # Of this machine too, but not the address: a server on 0.0.0.0 would answer.
        socket.create_connection(("127.0.0.2", server.server_port), timeout=5)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("pixel.json?y=0", "x=: expected 1 whole number"),
        ("pixel.json?y=0&x=2100", "expected at most 47 and 2099"),
        ("pixel.json?y=-1&x=0", "expected at most"),
        ("pixel.json?y=1e3&x=0", "expected 1 whole number"),
        ("stretch.json?bands=0,1&percentiles=2,98", "bands=0,1: expected 3"),
        ("stretch.json?bands=0,1,12&percentiles=2,98", "numbers below 12"),
        ("stretch.json?bands=0,1,-1&percentiles=2,98", "numbers below 12"),
        ("stretch.json?bands=0,1,2&percentiles=98,2", "two that rise"),
        ("stretch.json?bands=0,1,2&percentiles=2,nan", "expected 2 numbers"),
        ("stretch.json?bands=0,1,2&percentiles=2,98&window=9999,0,5,5", "meets the image"),
        ("tile/0/0/0/0?bands=0,1,2&low=0,0,0&spread=0&gamma=1", "a spread above 0"),
        ("tile/0/0/0/0?bands=0,1,2&low=0,0,inf&spread=1&gamma=1", "expected 3 numbers"),
        ("tile/0/0/0/0?" + "&".join("a=1" for _ in range(30)), "Max number of fields"),
    ],
)
def test_senseless_parameters_are_named(server: Server, address: str, told: str) -> None:
    status, _, body = ask(server, f"/{server.key}/{address}")
    assert status == 400
    assert told in body.decode()


# --- data sets ------------------------------------------------------------------------------------

SPEC = DatasetSpec(
    "superres_20m",
    {
        "gsd10": TensorSpec((12, 12, 4), sentinel2.BANDS_10M, 20.0),
        "gsd20": TensorSpec((6, 6, 6), sentinel2.BANDS_20M, 40.0),
    },
    {
        "superres_20m": TensorSpec((12, 12, 6), sentinel2.BANDS_20M, 20.0),
        "labels": TensorSpec((3,), ("Pastures", EVIL, "Sea"), 20.0, "uint8", 1.0),
    },
)


def make_example(number: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)

    def values(tensor: TensorSpec) -> np.ndarray:
        most = 3000 if len(tensor.shape) == 3 else 2
        return rng.integers(0, most, tensor.shape).astype(tensor.dtype)

    return {
        "inputs": {name: values(tensor) for name, tensor in SPEC.inputs.items()},
        "targets": {name: values(tensor) for name, tensor in SPEC.targets.items()},
        "patch_id": f"{number} {EVIL}",
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """30 patches to train with, 2 to test with, none to validate with."""
    examples = ((("train", "test")[i >= 30], make_example(i)) for i in range(32))
    folder = tmp_path_factory.mktemp("data") / "set"
    told = {"synthetic": True, "source": "made up"}
    return store.write(folder, SPEC, examples, splits=("validation",), provenance=told)


def test_patches_of_a_data_set(data: pathlib.Path) -> None:
    with serving(view.open_page(data)) as server:
        about = json.loads(get(server, "about.json"))
        counts = {split["name"]: split["count"] for split in about["splits"]}
        assert counts == {"train": 30, "validation": 0, "test": 2}
        assert [a["title"] for a in about["arrays"]] == [
            "input gsd10", "input gsd20", "target superres_20m"]  # fmt: skip
        assert any("SYNTHETIC" in note for note in about["notes"])
        first, second, none = (
            json.loads(get(server, "patches.json", split=s, page=p))["patches"]
            for s, p in ((0, 0), (0, 1), (1, 0))
        )
        assert (len(first), len(second), none) == (24, 6, [])
        for patch in (first[0], second[-1]):
            expected = make_example(patch["index"])
            present = np.flatnonzero(expected["targets"]["labels"])
            assert patch["id"] == expected["patch_id"]
            assert patch["labels"]["labels"] == [SPEC.targets["labels"].bands[i] for i in present]
        bands = [about["bands"].index(band) for band in ("B12", "B06", "B05")]
        body = get(server, "patch/0/7/2", bands=",".join(map(str, bands)))
        drawn = matplotlib.image.imread(io.BytesIO(body), format="png")
        target = make_example(7)["targets"]["superres_20m"][..., [5, 1, 0]].astype(float)
        low, high = np.percentile(target, (2, 98), axis=(0, 1))
        expected = np.clip((target - low) / (high - low).max(), 0, 1) ** 0.7
        np.testing.assert_allclose(drawn[..., :3], expected, atol=0.51 / 255)
        assert get(server, "patch/2/1/0") != get(server, "patch/2/0/0")
        for wrong in ("patch/0/30/0", "patch/3/0/0", "patch/0/0/3", "patch/0/../0", "patch/1/0/0"):
            assert ask(server, f"/{server.key}/{wrong}")[0] == 404
        for wrong, told in (
            ("patches.json?split=0&page=2", "page=2: expected 0 to 1"),
            ("patches.json?split=9&page=0", "split=9: expected 0 to 2"),
            ("patch/0/0/0?bands=" + ",".join(map(str, bands)), "gsd10 has not all of the bands"),
        ):
            status, _, body = ask(server, f"/{server.key}/{wrong}")
            assert (status, told in body.decode()) == (400, True), body


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture
def workdir(tmp_path: pathlib.Path) -> pathlib.Path:
    """A work folder in the middle of a training."""
    folder = tmp_path / "run"
    folder.mkdir()
    experiment = {"name": f"dsen2 {EVIL}", "run": {"steps": 100, "global_batch": 8}}
    (folder / "experiment.json").write_text(json.dumps(experiment))
    (folder / "data.json").write_text(json.dumps({"description": "DATA: made up", "data": "x"}))
    write_log(folder, 60)
    return folder


def write_log(folder: pathlib.Path, steps: int) -> None:
    lines = [
        {"step": s, "loss": 1 / s, "learning_rate": 1e-4, "patches_per_second": 9, "seconds": 2 * s}
        for s in range(1, steps + 1)
    ]
    lines += [{"step": s, "validation_rmse": 80 - s} for s in range(10, steps + 1, 10)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_is_read_again_when_it_has_grown(workdir: pathlib.Path) -> None:
    with serving(view.open_page(workdir)) as server:
        found = json.loads(get(server, "run.json"))
        assert (found["step"], found["steps"], found["finished"]) == (60, 100, False)
        curves = {curve["key"]: curve for curve in found["curves"]}
        assert set(curves) == {"loss", "learning_rate", "patches_per_second", "validation_rmse"}
        assert curves["loss"]["y"] == [1 / s for s in range(1, 61)]
        assert curves["validation_rmse"]["lowest"] == [60, 20]
        assert curves["loss"]["log"]
        assert ["training time", "2 min 00 s"] in found["facts"]
        again = json.loads(get(server, "run.json", stamp=found["stamp"]))
        assert set(again) == {"stamp", "idle"}
        with (workdir / "log.jsonl").open("a") as log:
            log.write('{"step": 61, "loss": 0.5, "seconds": 130}\n{"step": 62, "lo')
        newer = json.loads(get(server, "run.json", stamp=found["stamp"]))
        assert newer["step"] == 61
        assert newer["curves"][0]["last"] == [61, 0.5]
        (workdir / "log.jsonl").write_text('{"step": 1\n{"step": 2}\n')
        (workdir / "evaluation.json").write_text('{"task": "superres_20m"}')
        damaged = json.loads(get(server, "run.json"))
        assert "log.jsonl, line 1: damaged" in damaged["problems"][0]
        assert "evaluation.json: not what kerass2.evaluate writes" in damaged["problems"][1]
        assert damaged["curves"] == []


def test_a_long_run_is_sent_thinned_and_evaluated(workdir: pathlib.Path) -> None:
    write_log(workdir, 10_007)
    metric = {"mean": 12.3456, "B05": None}
    evaluation = {
        "task": "superres_20m", "split": "test", "units": {"rmse": "DN"},
        "methods": {"bicubic": {"rmse": metric}, "model": {"rmse": {**metric, "mean": 9.0}}},
        "definitions": {"rmse": "root of the mean square"},
    }  # fmt: skip
    (workdir / "evaluation.json").write_text(json.dumps(evaluation))
    (workdir / "model.keras").touch()
    found = view.open_page(workdir).read()
    loss = found["curves"][0]
    assert len(loss["x"]) <= 1501
    assert (loss["x"][0], loss["x"][-1], loss["points"]) == (1, 10_007, 10_007)
    (table,) = found["tables"]
    assert table["columns"] == ("metric", "method", "mean", "B05")
    assert table["rows"] == [["rmse [DN]", "bicubic", "12.35", "nan"],
                             ["rmse [DN]", "model", "9.000", "nan"]]  # fmt: skip
    assert found["finished"]


# --- bad input ------------------------------------------------------------------------------------


def test_what_is_none_of_the_three(tmp_path: pathlib.Path) -> None:
    (tmp_path / "notes.txt").touch()
    for path, told in (
        (tmp_path, "none of these; expected a GeoTIFF"),
        (tmp_path / "notes.txt", "none of these; expected a GeoTIFF"),
        (tmp_path / "nowhere.tif", "not found; expected a GeoTIFF"),
    ):
        with pytest.raises(DataError, match=told) as error:
            view.open_page(path)
        assert str(path) in str(error.value)
    (tmp_path / "zarr.json").touch()
    with pytest.raises(DataError, match="Zarr, which is not shown"):
        view.open_page(tmp_path)


@pytest.mark.parametrize("share", [0, 0.02, 0.9])
def test_a_damaged_file_is_named(predicted: pathlib.Path, tmp_path: pathlib.Path, share: float
                                 ) -> None:  # fmt: skip
    path = tmp_path / "cut.tif"
    whole = predicted.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))] or b"no image")
    with pytest.raises(DataError, match=r"cut\.tif: (not readable as GeoTIFF|cannot read pixels)"):
        view.open_page(path)


def test_damage_inside_is_told_when_it_is_seen(
    predicted: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "hole.tif"
    content = bytearray(predicted.read_bytes())
    # COGs have their overviews first, then the pixels: a hole from the middle is in these. It is
    # longer than a tile, so that one starts in it: libtiff sees no damage in a deflate stream that
    # goes on past the tile's size, since the checksum stands at its end.
    hole = len(content) // 4
    content[len(content) // 2 : len(content) // 2 + hole] = bytes(hole)
    path.write_bytes(content)
    with serving(view.open_page(path)) as server:
        told = []
        for column, band in ((c, b) for c in range(9) for b in range(12)):
            query = f"bands={band},{band},{band}&low=0,0,0&spread=1&gamma=1"
            status, _, body = ask(server, f"/{server.key}/tile/0/0/0/{column}?{query}")
            told += [body.decode()] if status == 500 else []
    assert told
    assert all("hole.tif: cannot read pixels" in text for text in told)


def test_a_file_without_georeference(granule: pathlib.Path, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "plain.tif"
    pixels = np.full((1, 4, 6), 9, np.uint16)
    raster.write_geotiff(path, [pixels], height=4, width=6, bands=("B05",))
    found = prediction.Prediction(path)
    assert "No georeference: positions are rows and columns" in " ".join(found.describe()["notes"])
    spectrum = found.read_spectrum(3, 5)
    assert (spectrum["position"], spectrum["lonlat"], spectrum["crs"]) == (None, None, None)
    assert spectrum["layers"][0]["stored"] == {"B05": 9}
    with pytest.raises(DataError, match=r"plain\.tif has no georeference"):
        prediction.Prediction(path, granule)


def test_an_input_that_does_not_match_is_refused(
    granule: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    cases = {
        "crs": ("EPSG:32632", 0, 0, 10, "found CRS EPSG:32633, expected EPSG:32632"),
        "between": ("EPSG:32633", 5, 0, 10, "0.5 columns and 0 rows apart, expected whole ones"),
        "outside": ("EPSG:32633", 20, -590, 10, "found 60 x 2160 px of 10 m, expected some"),
        "pixels": ("EPSG:32633", 0, 0, 20, "found pixels of 10 x -10 at 10 m, expected 20 x -20"),
    }
    for name, (crs, east, north, size, told) in cases.items():
        path = tmp_path / f"{name}.tif"
        place = Affine(size, 0, CORNER[0] + east, 0, -size, CORNER[1] + north)
        raster.write_geotiff(
            path, [np.ones((1, 12, 12), np.uint16)], height=12, width=12, bands=("B05",), crs=crs,
            transform=place,
        )  # fmt: skip
        with pytest.raises(DataError, match="does not match") as error:
            prediction.Prediction(path, granule)
        assert told in str(error.value)
        assert str(path) in str(error.value)


def test_an_empty_or_damaged_data_set(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    empty = store.write(tmp_path / "empty", SPEC, (), splits=("train", "test"))
    with pytest.raises(DataError, match="empty: no patch in train, test"):
        view.open_page(empty)
    broken = shutil.copytree(data, tmp_path / "broken")
    next(broken.glob("*.tfrecord")).unlink()
    with pytest.raises(DataError, match=r"not found; manifest\.json lists it"):
        view.open_page(broken)


def test_the_command_says_what_is_wrong(run_here, data, tmp_path, server, predicted) -> None:
    done = run_here("view", data, "--input", "x", "--no-browser")
    assert (done.returncode, "--input: of a GeoTIFF only" in done.stderr) == (2, True)
    done = run_here("view", predicted, "--input", tmp_path / "none", "--no-browser")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(f"error: {tmp_path / 'none'}: not found")
    done = run_here("view", predicted, "--port", server.server_port, "--no-browser")
    assert done.returncode == 1
    assert f"error: port {server.server_port}: Address already in use" in done.stderr


def test_the_command_ends_cleanly_by_ctrl_c(data: pathlib.Path) -> None:
    command = [sys.executable, "-m", "kerass2.view", str(data), "--no-browser"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    ) as process:
        assert process.stdout is not None
        url = urllib.parse.urlsplit(process.stdout.readline().strip())
        connection = http.client.HTTPConnection(url.netloc, timeout=20)
        connection.request("GET", f"{url.path}about.json")
        assert json.loads(connection.getresponse().read())["title"] == "set"
        # The connection stays open: it must not hold the end up.
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        connection.close()
    assert (process.returncode, out, err) == (0, "", "Ctrl-C ends it\nended\n")


# --- in a browser ---------------------------------------------------------------------------------


def open_in(browser: Any, server: Server, width: int) -> None:
    scheme = "light" if width > 500 else "dark"
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(server.url)
    wait(browser, "return document.documentElement.dataset.ready")


def wait(browser: Any, script: str) -> Any:
    """What a script returns as soon as that is true."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if found := browser.execute_script(script):
            return found
        time.sleep(0.05)
    raise AssertionError(f"never true: {script}\n{browser.get_log('browser')}")


def tiles_of(browser: Any, side: str, *parts: str) -> str:
    """The address of a pane's first tile, when all are drawn and have these parts in theirs."""
    return str(
        wait(
            browser,
            f"const tiles = [...document.querySelectorAll('.leaflet-{side}-pane .leaflet-tile')];"
            "return tiles.length && tiles.every(t => t.complete && t.naturalWidth === 256 && "
            f"{json.dumps(parts)}.every(part => t.src.includes(part))) && tiles[0].src;",
        )
    )


def at(browser: Any, css: str) -> Any:
    return browser.find_element("css selector", css)


@pytest.mark.chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_a_prediction_in_chromium(browser: Any, server: Server, predicted: pathlib.Path,
                                  width: int) -> None:  # fmt: skip
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.support.ui import Select

    open_in(browser, server, width)
    assert browser.title == f"{predicted.name} · kerass2"
    before = tiles_of(browser, "left"), tiles_of(browser, "right")
    assert at(browser, "#status").text == ""
    assert ["tile/0/" in before[0], "tile/2/" in before[1]] == [True, True]
    # The swipe, by keys and by the mouse.
    handle = at(browser, "#swipe")
    clip = "return getComputedStyle(document.querySelector('.leaflet-right-pane')).clipPath"
    clips = [browser.execute_script(clip)]
    handle.send_keys(Keys.ARROW_RIGHT * 5)
    assert handle.get_attribute("aria-valuenow") == "60"
    assert browser.switch_to.active_element == handle
    clips.append(browser.execute_script(clip))
    stage = at(browser, "#stage").rect["width"]
    ActionChains(browser).drag_and_drop_by_offset(handle, -round(0.35 * stage), 0).perform()
    assert int(handle.get_attribute("aria-valuenow")) == pytest.approx(25, abs=1)
    clips.append(browser.execute_script(clip))
    assert len(set(clips)) == 3
    check_clips(browser, 0.25)
    # Bands: a combination, and any three.
    Select(at(browser, "#combination")).select_by_visible_text("true colour: B04 B03 B02")
    tiles_of(browser, "left", "bands=3%2C2%2C1")
    Select(at(browser, "#red")).select_by_visible_text("B11 (20 m)")
    Select(at(browser, "#left")).select_by_visible_text("bicubic interpolation")
    tiles_of(browser, "left", "tile/1/", "bands=10%2C2%2C1")
    assert Select(at(browser, "#combination")).first_selected_option.text.startswith("any three")
    # The stretch.
    told = at(browser, "#range").text
    change = "arguments[0].value = 20; arguments[0].dispatchEvent(new Event('change'))"
    browser.execute_script(change, at(browser, "#low"))
    wait(browser, f"return document.getElementById('range').textContent !== {json.dumps(told)}")
    # A spectrum on a click, and by the keyboard.
    place = at(browser, "#map")
    browser.execute_script("scrollTo(0, 0)")
    ActionChains(browser).move_to_element_with_offset(place, 30, 0).click().perform()
    wait(browser, "return document.querySelector('#values table')")
    check_spectrum(browser, predicted)
    assert wait(browser, "return document.querySelector('#plot canvas').width") > 200
    first = at(browser, "#where").text
    place.send_keys(Keys.ARROW_RIGHT)
    place.send_keys(Keys.ENTER)
    wait(browser, f"return document.getElementById('where').textContent !== {json.dumps(first)}")
    # The cross says where Enter takes it, as long as keys are used there.
    assert at(browser, "#cross").is_displayed()
    check_spectrum(browser, predicted)
    assert not at(browser, "#cross").is_displayed()
    check_quiet(browser, server, width)


def check_clips(browser: Any, share: float) -> None:
    """The left pane ends where the right one begins: at this share of the map's width."""
    corners = [
        [float(x) for x in re.findall(r"(-?[\d.]+)px -?[\d.]+px", text)]
        for text in browser.execute_script(
            "return ['left', 'right'].map(side => getComputedStyle("
            "document.querySelector(`.leaflet-${side}-pane`)).clipPath)"
        )
    ]
    (first, cut), (same, last) = ((min(xs), max(xs)) for xs in corners)
    assert cut == same
    assert (cut - first) / (last - first) == pytest.approx(share, abs=0.01)


def check_spectrum(browser: Any, predicted: pathlib.Path) -> None:
    """The table has the file's values at the place that it names."""
    at(browser, "[name=unit][value=stored]").click()
    words = at(browser, "#where").text.replace(",", "").split()
    y, x = int(words[3]), int(words[5])
    table = at(browser, "#values table").text.splitlines()
    told = {line.split()[0]: line.split()[-1] for line in table if line.startswith("B")}
    with rasterio.open(predicted) as file:
        values = dict(zip(file.descriptions, file.read()[:, y, x].tolist(), strict=True))
    assert told == {band: str(value) if value else "data" for band, value in values.items()}
    assert "EPSG:32633" in at(browser, "#place").text
    assert "longitude 15." in at(browser, "#place").text


def check_quiet(browser: Any, server: Server, width: int) -> None:
    """No error, no request elsewhere, nothing run out of a name, nothing that sticks out."""
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.hacked") is None
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map(r => r.name)"
    )
    assert loaded
    assert all(name.startswith((server.url, "data:")) for name in loaded)


@pytest.mark.chromium
def test_a_data_set_in_chromium(browser: Any, data: pathlib.Path) -> None:
    from selenium.webdriver import Keys
    from selenium.webdriver.support.ui import Select

    shown = "return document.querySelectorAll('#patches article').length"
    with serving(view.open_page(data)) as server:
        for width in (1280, 390):
            open_in(browser, server, width)
            assert browser.execute_script(shown) == 24
            expected = make_example(0)
            first = at(browser, "#patches article").text
            assert expected["patch_id"] in first
            assert (EVIL in first.replace(expected["patch_id"], "")) == bool(
                expected["targets"]["labels"][1]
            )
            at(browser, "body").send_keys(Keys.ARROW_RIGHT)
            wait(browser, f"{shown} === 6")
            Select(at(browser, "#combination")).select_by_visible_text("any three")
            wait(browser, "return document.querySelector('#patches img').src.includes('bands=')")
            assert at(browser, "#red").is_displayed()
            # B02, B03, B04: of one array alone.
            wait(browser, "return document.querySelectorAll('#patches img').length === 6")
            Select(at(browser, "#split")).select_by_visible_text("validation (0)")
            wait(browser, f"{shown} === 0")
            assert at(browser, "#status").text == "No patches in this split."
            check_quiet(browser, server, width)


@pytest.mark.chromium
def test_a_run_in_chromium(browser: Any, workdir: pathlib.Path) -> None:
    with serving(view.open_page(workdir)) as server:
        for width in (1280, 390):
            write_log(workdir, 60)
            open_in(browser, server, width)
            wait(browser, "return document.querySelectorAll('#curves canvas').length === 4")
            assert "Not finished: 60 of 100 steps, last line" in at(browser, "#state").text
            write_log(workdir, 80)
            wait(browser, "return document.getElementById('state').textContent.includes('80 of')")
            label = at(browser, "#curves .plot").get_attribute("aria-label")
            assert label == "Training loss, 80 points, last 0.0125 at step 80"
            check_quiet(browser, server, width)
