"""A raster that grows in any order, and the formats that are made of it."""

from __future__ import annotations

import fractions
import math
import os
import pathlib

import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401 - the accessor .rio
import xarray

from data_pipelines import raster_formats
from data_pipelines.raster import silent_without_georeference
from data_pipelines.raw_raster import Description, RawRaster
from data_pipelines.spec import DataError
from data_pipelines.windows import Window, tiles

BANDS = ("B05", "B8A", "B12")
PLACE = {"crs": "EPSG:32633", "transform": (10.0, 0.0, 600000.0, 0.0, -10.0, 5300040.0)}


def filled(folder: pathlib.Path, height: int, width: int, **more: object) -> tuple[RawRaster, ...]:
    """(raw raster, its pixels): random uint16 over the whole range, written window by window."""
    rng = np.random.default_rng(height * width)
    pixels = rng.integers(0, 65536, (3, height, width), np.uint16)
    raw = RawRaster(folder, Description(BANDS, height, width, **more))
    raw.create()
    windows = [core for core, _ in tiles(height, width, 37)]
    for index in rng.permutation(len(windows)):
        raw.write(windows[index], pixels[(slice(None), *windows[index].slices)])
    raw.sync()
    raw.close()
    return raw, pixels


@pytest.mark.parametrize("kind", ["COG", "GTiff"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (37, 250), (530, 77)])
def test_pixels_and_all_that_is_known_of_them(
    kind: str, height: int, width: int, tmp_path: pathlib.Path
) -> None:
    raw, pixels = filled(
        tmp_path, height, width, scales=(1e-4, 2e-4, 3e-4), offsets=(-0.1, 0.0, 0.25),
        tags={"SOURCE": "a <test> & more"}, **PLACE,
    )  # fmt: skip
    raster_formats.write_as(raw, kind, tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as file:
        np.testing.assert_array_equal(file.read(), pixels)
        assert file.descriptions == BANDS
        assert file.nodata == 0
        assert file.crs.to_epsg() == 32633
        assert file.transform[:6] == PLACE["transform"]
        assert file.scales == pytest.approx((1e-4, 2e-4, 3e-4))
        assert file.offsets == pytest.approx((-0.1, 0.0, 0.25))
        assert file.tags()["SOURCE"] == "a <test> & more"
        layout = file.tags(ns="IMAGE_STRUCTURE").get("LAYOUT")
        assert layout == ("COG" if kind == "COG" else None)


@pytest.mark.parametrize("shape", [(1, 1), (6, 8), (7, 5)])
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_halve(shape: tuple[int, int], share: float) -> None:
    """Pixel by pixel in exact arithmetic."""
    rng = np.random.default_rng(shape[0])
    pixels = rng.integers(1, 65536, shape, np.uint16)
    pixels[rng.random(shape) < share] = 0
    found = raster_formats.halve(pixels, 0)
    assert found.shape == tuple(-(-n // 2) for n in shape)
    for (y, x), value in np.ndenumerate(found):
        there = [int(n) for n in pixels[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].flat if n]
        expected = (
            math.floor(fractions.Fraction(2 * sum(there) + len(there), 2 * len(there)))
            if there
            else 0
        )
        assert value == expected


def test_zarr(tmp_path: pathlib.Path) -> None:
    raw, pixels = filled(
        tmp_path, 600, 530, scales=(1e-4,) * 3, offsets=(-0.1,) * 3, tags={"SOURCE": "x"}, **PLACE
    )
    raster_formats.write_as(raw, "Zarr", tmp_path / "out.zarr")
    dn = xarray.open_zarr(tmp_path / "out.zarr", mask_and_scale=False, decode_coords="all")
    np.testing.assert_array_equal(dn[list(BANDS)].to_dataarray().values, pixels)
    assert dn.rio.crs.to_epsg() == 32633
    assert dn.attrs["SOURCE"] == "x"
    found = xarray.open_zarr(tmp_path / "out.zarr")
    expected = np.where(pixels == 0, np.nan, pixels * 1e-4 - 0.1)
    np.testing.assert_allclose(found[list(BANDS)].to_dataarray().values, expected, atol=1e-6)


def test_without_a_place_nothing_is_invented(tmp_path: pathlib.Path) -> None:
    raw, pixels = filled(tmp_path, 20, 30)
    for kind in ("COG", "GTiff"):
        raster_formats.write_as(raw, kind, tmp_path / "out.tif")
        with silent_without_georeference(), rasterio.open(tmp_path / "out.tif") as file:
            assert file.crs is None
            assert file.transform.is_identity
            assert file.scales == (1.0,) * 3
            np.testing.assert_array_equal(file.read(), pixels)
    raster_formats.write_as(raw, "Zarr", tmp_path / "out.zarr")
    found = xarray.open_zarr(tmp_path / "out.zarr", mask_and_scale=False)
    assert not found.coords
    np.testing.assert_array_equal(found[list(BANDS)].to_dataarray().values, pixels)


def test_creating_again_keeps_what_is_there(tmp_path: pathlib.Path) -> None:
    raw, pixels = filled(tmp_path, 40, 50)
    raw.create()
    raster_formats.write_as(raw, "GTiff", tmp_path / "out.tif")
    with silent_without_georeference(), rasterio.open(tmp_path / "out.tif") as file:
        np.testing.assert_array_equal(file.read(), pixels)


@pytest.mark.parametrize(
    ("window", "pixels", "message"),
    [
        (Window(0, 0, 4, 5), np.zeros((3, 4, 6), np.uint16), "expected uint16 \\(3, 4, 5\\)"),
        (Window(0, 0, 4, 5), np.zeros((3, 4, 5), np.float32), "float32"),
        (Window(8, 0, 4, 5), np.zeros((3, 4, 5), np.uint16), "outside 10 x 10 px"),
    ],
)
def test_what_does_not_fit_is_refused(
    window: Window, pixels: np.ndarray, message: str, tmp_path: pathlib.Path
) -> None:
    raw = RawRaster(tmp_path, Description(BANDS, 10, 10))
    raw.create()
    with pytest.raises(DataError, match=message):
        raw.write(window, pixels)


def test_a_full_disk_is_named(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, _ = filled(tmp_path, 10, 10)

    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DataError, match="No space left on device"):
        raw.write(Window(0, 0, 1, 1), np.zeros((3, 1, 1), np.uint16))
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"cannot write out\.tif"):
        raster_formats.write_as(raw, "COG", tmp_path / "no" / "out.tif")
