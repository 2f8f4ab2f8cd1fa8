"""Per-GSD GeoTIFFs in and out."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import geotiff, granule, jp2, sentinel2, synthetic
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


def write_file(
    path: pathlib.Path,
    cube: np.ndarray,
    gsd: float,
    bands: list[str],
    *,
    scale: tuple[float, float] | None = None,
    **profile: Any,
) -> None:
    """A GeoTIFF as other programs write it: names of their own, scale and offset, COG or not."""
    rasterio = pytest.importorskip("rasterio")
    transform = rasterio.Affine(gsd, 0, CORNER[0], 0, -gsd, CORNER[1])
    count, height, width = cube.shape
    options = {"driver": "GTiff", "dtype": cube.dtype, "crs": "EPSG:32632"} | profile
    with rasterio.open(
        path, "w", count=count, height=height, width=width, transform=transform, **options
    ) as file:
        file.write(cube)
        file.descriptions = bands
        if scale is not None:
            file.scales, file.offsets = [(value,) * count for value in scale]


NAMES = {
    "gdal": lambda band: f"{band.replace('B0', 'B')}, central wavelength 443 nm",
    "short": lambda band: band.replace("B0", "B").lower(),
    "long": lambda band: f"{band}_10m",
}


@pytest.mark.parametrize("style", sorted(NAMES))
@pytest.mark.parametrize("driver", ["GTiff", "COG"])
def test_files_of_any_name_are_told_apart_by_their_pixels(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray], style: str, driver: str
) -> None:
    folder = tmp_path / "scene"
    folder.mkdir()
    for i, (name, cube) in enumerate(cubes.items()):
        gsd = sentinel2.GSDS[name]
        order = list(reversed(range(len(cube))))
        bands = [NAMES[style](sentinel2.bands_at(gsd)[j]) for j in order]
        write_file(folder / f"{'cab'[i]}.tif", cube[order], gsd, bands, driver=driver)
    write_file(folder / "mask.tif", cubes["gsd20"][:1], 20, ["CLD"])
    (folder / "notes.txt").write_text("no image")
    (found,) = granule.open_granules(folder)
    for name, cube in cubes.items():
        np.testing.assert_array_equal(found.cubes[name].values, cube)
        assert tuple(found.cubes[name].band.values) == sentinel2.bands_at(sentinel2.GSDS[name])
    assert found.facts == {}


def test_scale_and_offset_tags_become_offsets_of_the_cube(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray]
) -> None:
    scales = {"gsd10": (1e-4, -0.1), "gsd20": (1e-4, 0.0), "gsd60": None}
    for name, cube in cubes.items():
        gsd = sentinel2.GSDS[name]
        stored = cube + np.uint16(1000) if name == "gsd10" else cube
        bands = list(sentinel2.bands_at(gsd))
        write_file(tmp_path / f"{name}.tif", stored, gsd, bands, scale=scales[name])
    (found,) = granule.open_granules(tmp_path)
    assert found.cubes["gsd10"].attrs["offset"] == (-1000,) * 4
    assert found.cubes["gsd10"].attrs["quantification"] == (10_000,) * 4
    assert found.cubes["gsd20"].attrs["offset"] == (0,) * 6
    assert "offset" not in found.cubes["gsd60"].attrs
    assert found.facts["offset_from"] == "scale and offset of gsd10.tif, gsd20.tif"
    for name, cube in cubes.items():
        np.testing.assert_array_equal(granule.harmonise(found.cubes[name]).values, cube)


def test_two_files_of_a_gsd_and_scales_that_cannot_be_are_refused(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray]
) -> None:
    for name in ("a.tif", "b.tif"):
        write_file(tmp_path / name, cubes["gsd10"], 10, list(sentinel2.BANDS_10M))
    with pytest.raises(DataError, match=r"two files of 10 m: a.tif, b.tif"):
        list(granule.open_granules(tmp_path))
    (tmp_path / "b.tif").unlink()
    with pytest.raises(DataError, match=r"no gsd20.tif; found a.tif; expected"):
        list(granule.open_granules(tmp_path))
    bands = list(sentinel2.BANDS_20M)
    write_file(tmp_path / "b.tif", cubes["gsd20"], 20, bands, scale=(1.0, -1000.0))
    with pytest.raises(DataError, match=r"b.tif: scale 1.0, offset -1000.0; expected reflectance"):
        list(granule.open_granules(tmp_path))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("B2", "B02"),
        ("b8a", "B8A"),
        ("B08", "B08"),
        ("Band 11", "B11"),
        ("B12_20m", "B12"),
        ("B1, central wavelength 443 nm", "B01"),
        ("B13", None),
        ("B0", None),
        ("BRIGHT", None),
        ("B8AX", None),
        ("", None),
        (None, None),
    ],
)
def test_band_names(text: str | None, name: str | None) -> None:
    assert geotiff.band_name(text) == name


@settings(deadline=None)
@given(st.integers(-1000, 1000), st.sampled_from([1000, 10_000, 20_000]))
def test_scales_are_exact_dn(offset: int, quantification: int) -> None:
    """What a program computes in floating point comes back as the whole numbers it stands for."""
    found = geotiff.read_scale("a.tif", 1 / quantification, offset / quantification)
    assert found == (offset, quantification)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    cubes = synthetic.build_cubes(144, seed=1)
    path = tmp_path_factory.mktemp("fuzz")
    return geotiff.write_folder(path, cubes, crs="EPSG:32632", corner=CORNER)


# rasterio's log handler stumbles over GDAL messages that quote damaged text.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=3),
    st.integers(0, 40_000),
)
def test_damaged_files_are_refused_or_keep_their_shape(
    folder: pathlib.Path, flips: list[tuple[int, int]], length: int
) -> None:
    """GeoTIFF has no checksums: damage can change pixels, but not crash, hang or change shapes."""
    file = folder / "gsd20.tif"
    whole = file.read_bytes()
    data = bytearray(whole[: max(length, 100)])
    for at, value in flips:
        data[at % len(data)] = value
    file.write_bytes(bytes(data))
    try:
        (found,) = granule.open_granules(folder)
        pixels = found.cubes["gsd20"].compute(scheduler="synchronous")
        assert pixels.shape == (6, 72, 72)
        assert pixels.dtype == np.uint16
    except DataError:
        pass
    finally:
        file.write_bytes(whole)


def test_a_cut_jp2_of_several_blocks_is_refused(tmp_path: pathlib.Path) -> None:
    """GDAL alone decodes such a read in threads, and gives zeros where the file has ended."""
    pixels = np.random.default_rng(2).integers(1, 4000, (1, 1536, 1536), np.uint16)
    whole = tmp_path / "whole.jp2"
    jp2.write_jp2([whole], jp2.as_rows(pixels), 10, 32632, (399960.0, 5800020.0))
    np.testing.assert_array_equal(geotiff.read_pixels(whole, [1]), pixels)
    cut = tmp_path / "cut.jp2"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    with pytest.raises(DataError, match=r"cut\.jp2: "):
        geotiff.read_pixels(cut, 1)
