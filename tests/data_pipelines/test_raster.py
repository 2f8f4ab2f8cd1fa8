"""GeoTIFF writing: pixels, blocks, names, no partial files, refusals."""

from __future__ import annotations

import pathlib
import warnings

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.errors import NotGeoreferencedWarning

from data_pipelines import raster
from data_pipelines.spec import DataError

BANDS = ("B05", "B8A", "B12")


def dn(height: int, width: int) -> np.ndarray:
    """Random uint16 over the whole range, so that a cast or a wrap shows."""
    return np.random.default_rng(height * width).integers(0, 65536, (3, height, width), np.uint16)


@pytest.mark.parametrize(
    "heights", [[1], [300], [96, 96, 96, 12], [255, 1], [256], [600, 1], [7] * 90]
)
def test_strips_of_any_height_give_the_same_pixels(
    tmp_path: pathlib.Path, heights: list[int]
) -> None:
    pixels = dn(sum(heights), 270)
    strips = np.split(pixels, np.cumsum(heights)[:-1], axis=1)
    path = tmp_path / "out.tif"
    transform = Affine(10, 0, 600000, 0, -10, 5300040)
    raster.write_geotiff(
        path,
        iter(strips),
        height=pixels.shape[1],
        width=270,
        bands=BANDS,
        crs="EPSG:32633",
        transform=transform,
        tags={"source": "a test"},
    )
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(), pixels)
        assert file.descriptions == BANDS
        assert file.nodata == 0
        assert file.crs.to_epsg() == 32633
        assert file.transform == transform
        assert file.profile["compress"] == "deflate"
        assert file.block_shapes == [(256, 256)] * 3
        assert file.tags()["source"] == "a test"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.tif"]


def test_without_georeference_nothing_is_invented(tmp_path: pathlib.Path) -> None:
    pixels = dn(10, 12)
    raster.write_geotiff(tmp_path / "out.tif", [pixels], height=10, width=12, bands=BANDS)
    with (
        warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning),
        rasterio.open(tmp_path / "out.tif") as file,
    ):
        assert file.crs is None
        assert file.transform.is_identity


def test_float_with_nan_as_nodata(tmp_path: pathlib.Path) -> None:
    pixels = np.random.default_rng(1).random((1, 20, 30), np.float32)
    pixels[0, 3, 4] = np.nan
    raster.write_geotiff(
        tmp_path / "out.tif",
        [pixels],
        height=20,
        width=30,
        bands=["B02"],
        dtype="float32",
        nodata=float("nan"),
        transform=Affine(1, 0, 0, 0, -1, 0),
    )
    with rasterio.open(tmp_path / "out.tif") as file:
        np.testing.assert_array_equal(file.read(), pixels)
        assert np.isnan(file.nodata)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 16))
def test_rows_in_blocks_keeps_rows_and_alignment(heights: list[int], block: int) -> None:
    total = sum(heights)
    rows = np.arange(total).reshape(1, total, 1)
    strips = np.split(rows, np.cumsum(heights)[:-1], axis=1) if heights else []
    groups = list(raster.rows_in_blocks(iter(strips), block))
    assert all(group.shape[1] % block == 0 for group in groups[:-1])
    assert all(group.shape[1] for group in groups)
    if groups:
        np.testing.assert_array_equal(np.concatenate(groups, axis=1), rows)
    else:
        assert total == 0


def broken() -> object:
    """A source that fails after its first strip."""
    yield dn(256, 8)
    raise DataError("scene.npz: record 7 is damaged")


@pytest.mark.parametrize(
    ("strips", "message"),
    [
        (lambda: [dn(4, 8)], "4 rows to write, expected 5"),
        (lambda: [dn(6, 8)], "more than the expected 5 rows"),
        (lambda: [dn(5, 9)], r"shape \(3, 5, 9\), expected \(3, rows, 8\)"),
        (lambda: [dn(5, 8)[:2]], r"shape \(2, 5, 8\), expected \(3, rows, 8\)"),
        (lambda: [dn(5, 8).astype(np.float32)], "type float32, expected uint16"),
        (broken, "more than the expected|record 7"),
    ],
)
def test_failure_keeps_the_old_file_and_leaves_no_partial(
    tmp_path: pathlib.Path, strips: object, message: str
) -> None:
    path = tmp_path / "out.tif"
    path.write_bytes(b"results of yesterday")
    with pytest.raises(DataError, match=message):
        raster.write_geotiff(path, strips(), height=5, width=8, bands=BANDS, overwrite=True)
    assert path.read_bytes() == b"results of yesterday"
    assert len(list(tmp_path.iterdir())) == 1


def test_existing_output_is_refused_unless_overwrite(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "out.tif"
    path.write_bytes(b"results of yesterday")
    with pytest.raises(DataError, match="exists; give --overwrite"):
        raster.write_geotiff(path, [dn(5, 8)], height=5, width=8, bands=BANDS)
    transform = Affine(10, 0, 0, 0, -10, 0)
    raster.write_geotiff(
        path, [dn(5, 8)], height=5, width=8, bands=BANDS, transform=transform, overwrite=True
    )
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(), dn(5, 8))


def test_missing_folder_and_folder_as_output(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        raster.check_output(tmp_path / "no" / "out.tif", overwrite=True)
    with pytest.raises(DataError, match="a folder; expected"):
        raster.check_output(tmp_path, overwrite=True)
