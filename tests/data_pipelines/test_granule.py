"""Cubes: what their numbers mean, and whether their grids nest."""

from __future__ import annotations

import fractions
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines import granule, sentinel2
from data_pipelines.spec import DataError


def build(
    values: np.ndarray,
    offset: tuple[float, ...] | None = None,
    quantification: tuple[float, ...] | None = None,
    chunks: tuple[int, ...] | None = (1, 2, 3),
) -> granule.xarray.DataArray:  # type: ignore[name-defined]
    import dask.array

    data = values if chunks is None else dask.array.from_array(values, chunks=chunks)
    bands = sentinel2.bands_at(10)[: len(values)]
    return granule.build_cube(data, bands, 10, offset=offset, quantification=quantification)


def test_a_cube_says_what_its_numbers_are() -> None:
    cube = build(np.ones((2, 4, 4), np.uint16), (-1000, 0), (10_000, 1000))
    assert cube.attrs == {
        "gsd": 10.0,
        "nodata": 0,
        "saturated": 65_535,
        "units": "DN",
        "offset": (-1000.0, 0.0),
        "quantification": (10_000.0, 1000.0),
    }
    assert not {"crs", "transform", "offset"} & set(build(np.ones((1, 4, 4), np.uint16)).attrs)


@pytest.mark.parametrize("chunks", [None, (1, 2, 3), (2, 4, 4)])
def test_harmonised_by_hand(chunks: tuple[int, ...] | None) -> None:
    values = np.array([[[0, 1, 999, 1000, 1001, 2500, 65_534, 65_535]]], np.uint16)
    cube = build(np.concatenate([values, values]), (-1000.0, 0.0), (10_000.0, 1000.0), chunks)
    found = granule.harmonise(cube)
    assert found.dtype == np.uint16 and found.attrs["gsd"] == 10
    assert hasattr(found.data, "dask") == (chunks is not None)
    expected = [
        [0, 1, 1, 1, 1, 1500, 64_534, 65_535],
        [0, 10, 9990, 10_000, 10_010, 25_000, 65_534, 65_535],
    ]
    np.testing.assert_array_equal(found[:, 0], expected)
    # Only once.
    assert granule.harmonise(found) is found
    assert cube.attrs["offset"] == (-1000.0, 0.0)


def test_nothing_to_harmonise_gives_the_same_object() -> None:
    values = np.ones((2, 4, 4), np.uint16)
    for cube in (build(values), build(values, (0, 0)), build(values, (0, 0), (10_000, 10_000))):
        assert granule.harmonise(cube) is cube


@given(
    offset=st.sampled_from([0.0, -1000.0, -999.5, -1.0]),
    quantification=st.sampled_from([10_000.0, 1000.0, 20_000.0]),
    values=st.lists(st.integers(0, 65_535), min_size=1, max_size=200),
)
def test_harmonised_is_reflectance_times_10000(
    offset: float, quantification: float, values: list[int]
) -> None:
    dn = np.array(values, np.uint16)
    cube = build(dn.reshape(1, -1, 1), (offset,), (quantification,), (1, 7, 1))
    found = granule.harmonise(cube).values[0, :, 0]
    for before, after in zip(values, found, strict=True):
        if before in (0, 65_535):
            assert after == before
        else:
            reflectance = fractions.Fraction(before + offset) / fractions.Fraction(quantification)
            assert after == min(max(round(reflectance * 10_000), 1), 65_534)


def cube_at(name: str, x: float, y: float, size: int, step: float | None = None) -> object:
    gsd = sentinel2.GSDS[name]
    step = gsd if step is None else step
    bands = sentinel2.bands_at(gsd)
    values = np.zeros((len(bands), size, size), np.uint16)
    return granule.build_cube(
        values, bands, gsd, crs="EPSG:32632", transform=(step, 0, x, 0, -step, y)
    )


@pytest.mark.parametrize(
    ("east", "north", "message"),
    [
        (20, 0, r"gsd20 begins 20 m east and 0 m north of gsd10, 2 columns and 0 rows .*whole pix"),
        (0, 10, r"0 m east and 10 m north of gsd10, 0 columns and -1 rows of gsd10 \(whole pixels"),
        (-5, 0, r"-5 m east and 0 m north of gsd10, -0.5 columns and 0 rows .*a fraction of a pix"),
        (3.3, -20, r"3.3 m east and -20 m north of gsd10, 0.33 columns and 2 rows .*a fraction"),
        (0.01, 0, r"0.01 m east and 0 m north of gsd10, 0.001 columns"),
    ],
)
def test_a_shift_is_told_in_metres_and_pixels(east: float, north: float, message: str) -> None:
    cubes = {"gsd10": cube_at("gsd10", 0, 600, 12), "gsd20": cube_at("gsd20", east, 600 + north, 6)}
    with pytest.raises(DataError, match=rf"a: grids do not nest: .*{message}.*expected one corner"):
        granule.check_nesting("a", cubes)
    granule.check_nesting("a", {**cubes, "gsd20": cube_at("gsd20", 1e-4, 600, 6)})


def test_other_pixels_are_told() -> None:
    cubes = {"gsd10": cube_at("gsd10", 0, 600, 12), "gsd20": cube_at("gsd20", 0, 600, 6, 30)}
    with pytest.raises(DataError, match=r"transform gsd20 \(30.0, .*pixels in the ratio of GSDs"):
        granule.check_nesting("a", cubes)


def test_one_granule_is_one(tmp_path: pathlib.Path) -> None:
    arrays: dict[str, np.ndarray] = {}
    for gsd, n in ((10, 72), (20, 36), (60, 12)):
        bands = sentinel2.bands_at(gsd)
        arrays[f"im{gsd}"] = np.full((len(bands), n, n), gsd, np.uint16)
        arrays[f"bands{gsd}"] = np.array(bands)
    for number in range(22):
        np.savez(tmp_path / f"s{number:02d}.npz", **arrays)  # type: ignore[arg-type]
    assert granule.open_granule(tmp_path / "s03.npz").name == "s03"
    with pytest.raises(
        DataError, match=r"several granules: s00, s01, .*, s19, \.\.\.; expected one"
    ):
        granule.open_granule(tmp_path)


def test_a_new_granule_knows_no_facts_and_masks() -> None:
    made = granule.Granule("n", "s", "p", {"gsd10": cube_at("gsd10", 0, 600, 12)}, (0, 0), "", True)
    assert made.facts == {} and made.masks == {} and made.shape == (12, 12)


def test_a_folder_of_several_sources_is_divided(tmp_path: pathlib.Path) -> None:
    def touch(*names: str) -> list[pathlib.Path]:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return [tmp_path / name for name in names]

    assert granule.list_sources(tmp_path) == [tmp_path]
    patch = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57"
    touch(f"tile/{patch}/{patch}_B02.tif")
    assert granule.list_sources(tmp_path) == [tmp_path / "tile" / patch]
    assert granule.list_sources(tmp_path / "tile" / patch) == [tmp_path / "tile" / patch]
    scenes = touch("a.npz", "b.npz")
    assert granule.list_sources(str(tmp_path)) == scenes
    assert granule.list_sources(scenes[0]) == scenes[:1]
    # Products before scenes, for whoever opens the folder.
    products = touch("S2A_x.SAFE.zip", "S2B_y.zip")
    assert granule.list_sources(tmp_path) == products
    with pytest.raises(DataError, match=r"S2A_x\.SAFE\.zip: not readable as zip"):
        next(granule.open_granules(tmp_path))
    for name in ("MTD_MSIL1C.xml", "data.mdb", "manifest.json"):
        (path,) = touch(name)
        assert granule.list_sources(tmp_path) == [tmp_path]
        path.unlink()
    assert granule.list_sources(tmp_path / "nowhere") == [tmp_path / "nowhere"]
