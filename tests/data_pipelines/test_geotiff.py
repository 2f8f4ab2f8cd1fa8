"""Per-GSD GeoTIFFs in and out."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from data_pipelines import geotiff, granule, sentinel2, synthetic
from data_pipelines.spec import DataError

CORNER = (399_960.0, 5_800_020.0)


@pytest.fixture
def cubes() -> dict[str, np.ndarray]:
    return synthetic.build_cubes(144, seed=1)


def test_what_is_written_is_read(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geotiff, "CHUNK", 60)
    folder = geotiff.write_folder(tmp_path / "G", cubes, crs="EPSG:32632", corner=CORNER)
    (found,) = granule.open_granules(folder)
    assert (found.name, found.shape, found.synthetic) == ("G", (144, 144), False)
    assert (found.plane, found.origin) == ("EPSG:32632", (-580_002, 39_996))
    for name, cube in found.cubes.items():
        gsd = sentinel2.GSDS[name]
        assert len(cube.data.chunks[1]) > 1 or gsd == 60
        np.testing.assert_array_equal(cube.values, cubes[name])
        assert tuple(cube.band.values) == sentinel2.bands_at(gsd)
        assert cube.attrs["transform"] == (gsd, 0, CORNER[0], 0, -gsd, CORNER[1])


def test_files_tell_other_programs_what_they_are(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray]
) -> None:
    rasterio = pytest.importorskip("rasterio")
    geotiff.write_folder(tmp_path, cubes, crs="EPSG:32632", corner=CORNER)
    with rasterio.open(tmp_path / "gsd20.tif") as file:
        assert file.crs.to_epsg() == 32632
        assert file.descriptions == sentinel2.BANDS_20M
        assert file.nodata == 0
        assert file.profile["tiled"]
        assert file.profile["compress"] == "deflate"


def test_bands_are_found_by_name_and_no_crs_is_fine(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray]
) -> None:
    order = [2, 1, 0, 3]
    names = {"gsd10": [sentinel2.BANDS_10M[i] for i in order]}
    shuffled = {**cubes, "gsd10": cubes["gsd10"][order]}
    geotiff.write_folder(tmp_path, shuffled, crs=None, corner=CORNER, bands=names)
    (found,) = granule.open_granules(tmp_path)
    np.testing.assert_array_equal(found.cubes["gsd10"].values, cubes["gsd10"])
    assert "crs" not in found.cubes["gsd10"].attrs
    assert (found.plane, found.origin) == ("", (0, 0))


def test_a_file_may_hold_more_bands_and_60_m_may_be_missing(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray]
) -> None:
    more = {
        "gsd10": np.concatenate([cubes["gsd10"][:1] * 0, cubes["gsd10"]]),
        "gsd20": cubes["gsd20"],
    }
    names = {"gsd10": ["mask", *sentinel2.BANDS_10M]}
    geotiff.write_folder(tmp_path, more, crs=None, corner=CORNER, bands=names)
    (found,) = granule.open_granules(tmp_path)
    assert set(found.cubes) == {"gsd10", "gsd20"}
    np.testing.assert_array_equal(found.cubes["gsd10"].values, cubes["gsd10"])


def test_missing_files_and_bands_are_named(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray]
) -> None:
    names = {"gsd10": ["B02", "B03", "B04", "NIR"]}
    geotiff.write_folder(tmp_path, cubes, crs=None, corner=CORNER, bands=names)
    with pytest.raises(DataError, match=r"gsd10.tif: .*no band B08; found B02, B03, B04, NIR"):
        list(granule.open_granules(tmp_path))
    (tmp_path / "gsd20.tif").unlink()
    geotiff.write_folder(tmp_path, {"gsd10": cubes["gsd10"]}, crs=None, corner=CORNER)
    with pytest.raises(DataError, match=r"no gsd20.tif; found gsd10.tif, gsd60.tif"):
        list(granule.open_granules(tmp_path))


@pytest.mark.parametrize("shift", ["size", "corner", "crs"])
def test_grids_that_do_not_nest_are_refused(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray], shift: str
) -> None:
    geotiff.write_folder(tmp_path, cubes, crs="EPSG:32632", corner=CORNER)
    part = {"gsd20": cubes["gsd20"][:, :-1] if shift == "size" else cubes["gsd20"]}
    corner = (CORNER[0] + (20 if shift == "corner" else 0), CORNER[1])
    crs = "EPSG:32633" if shift == "crs" else "EPSG:32632"
    geotiff.write_folder(tmp_path, part, crs=crs, corner=corner)
    with pytest.raises(DataError, match=r"grids do not nest: .*expected"):
        list(granule.open_granules(tmp_path))


def test_unreadable_files_are_named(tmp_path: pathlib.Path, cubes: dict[str, np.ndarray]) -> None:
    geotiff.write_folder(tmp_path, cubes, crs=None, corner=CORNER)
    whole = (tmp_path / "gsd20.tif").read_bytes()
    (tmp_path / "gsd20.tif").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"gsd20.tif: "):
        next(granule.open_granules(tmp_path)).cubes["gsd20"].compute(scheduler="synchronous")
    (tmp_path / "gsd20.tif").write_bytes(b"rubbish")
    with pytest.raises(DataError, match=r"gsd20.tif: not readable as GeoTIFF"):
        list(granule.open_granules(tmp_path))


def test_other_types_than_uint16_are_refused(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray]
) -> None:
    from data_pipelines import raster

    geotiff.write_folder(tmp_path, cubes, crs=None, corner=CORNER)
    raster.write_geotiff(
        tmp_path / "gsd10.tif",
        [cubes["gsd10"].astype(np.float32)],
        height=144,
        width=144,
        bands=sentinel2.BANDS_10M,
        dtype="float32",
        overwrite=True,
    )
    with pytest.raises(DataError, match=r"gsd10.tif: float32; expected uint16"):
        list(granule.open_granules(tmp_path))
