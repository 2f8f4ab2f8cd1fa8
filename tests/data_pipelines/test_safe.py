"""Sentinel-2 products: what they hold, by rasterio and by their own XML."""

from __future__ import annotations

import dataclasses
import pathlib
import pickle
import re
import shutil
import warnings
import zipfile
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling

from data_pipelines import granule, safe, safe_files, safe_jp2, safe_xml, sentinel2, synthetic
from data_pipelines import synthetic_product as products
from data_pipelines.spec import DataError
from data_pipelines.windows import Window
from tests import safe_products
from tests.safe_products import EDGE, change, copy, find


@pytest.fixture(scope="module")
def cubes() -> dict[str, np.ndarray]:
    return safe_products.build_cubes()


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, cubes: dict[str, np.ndarray]
) -> dict[str, pathlib.Path]:
    return safe_products.write_all(tmp_path_factory.mktemp("products"), cubes)


def by_driver(subdataset: str) -> dict[str, np.ndarray]:
    """Band -> pixels as GDAL's SENTINEL2 driver reads them."""
    with rasterio.open(subdataset) as file:
        names = [text.split(",")[0] for text in file.descriptions]
        return dict(zip(names, file.read(), strict=True))


def driver_name(band: str) -> str:
    return f"B{band[1:].lstrip('0')}"


def assert_as_by_driver(product: pathlib.Path, found: granule.Granule) -> None:
    xml = product if product.suffix == ".zip" else next(product.glob("*MTD*.xml"))
    # Of products of several zones and of partial ones it warns, and rightly.
    with warnings.catch_warnings(action="ignore"), rasterio.open(xml) as file:
        subdatasets = file.subdatasets
    code = next(iter(found.cubes.values())).attrs["crs"].replace(":", "_")
    for cube in found.cubes.values():
        gsd = f"{cube.attrs['gsd']:g}m"
        (name,) = (s for s in subdatasets if s.endswith(f":{gsd}:{code}"))
        reference = by_driver(name)
        for band in cube.band.values:
            np.testing.assert_array_equal(cube.sel(band=band), reference[driver_name(band)])
        with rasterio.open(name) as file:
            assert file.crs == rasterio.CRS.from_user_input(cube.attrs["crs"])
            assert tuple(file.transform)[:6] == cube.attrs["transform"]


@pytest.mark.parametrize(
    ("kind", "level", "baseline", "spacecraft", "offset"),
    [
        ("l1c", "L1C", "02.06", "S2A", 0),
        ("l1c_zip", "L1C", "02.06", "S2B", 0),
        ("l1c_0509", "L1C", "05.09", "S2C", -1000),
        ("l2a", "L2A", "04.00", "S2A", -1000),
        ("l2a_old", "L2A", "02.14", "S2A", 0),
    ],
)
def test_a_product_says_what_it_is(
    made: dict[str, pathlib.Path],
    cubes: dict[str, np.ndarray],
    kind: str,
    level: str,
    baseline: str,
    spacecraft: str,
    offset: int,
) -> None:
    found = granule.open_granule(made[kind])
    facts = {"level": level, "baseline": baseline, "spacecraft": spacecraft, "tile": "T32UMC"}
    assert facts.items() <= found.facts.items()
    assert found.facts["time"].startswith("2018-06-29T10:20:41")
    assert found.facts["product"] == found.name == made[kind].stem.removesuffix(".SAFE")
    assert (found.place, found.plane, found.synthetic) == ("T32UMC", "EPSG:32632", True)
    assert found.shape == (EDGE, EDGE)
    for name, gsd in sentinel2.GSDS.items():
        cube = found.cubes[name]
        assert tuple(cube.band.values) == sentinel2.bands_at(gsd)
        assert cube.attrs["offset"] == (offset,) * len(cube)
        assert cube.attrs["quantification"] == (10_000,) * len(cube)
        assert cube.attrs["crs"] == "EPSG:32632"
        x, y = synthetic.CORNER
        assert cube.attrs["transform"] == (gsd, 0, x, 0, -gsd, y)
        stored = products.to_stored(cubes[name], offset)
        np.testing.assert_array_equal(cube, stored)
        np.testing.assert_array_equal(granule.harmonise(cube), cubes[name])
    assert_as_by_driver(made[kind], found)


def test_a_product_is_found_by_any_of_its_names(
    made: dict[str, pathlib.Path], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = granule.open_granule(made["l1c"]).cubes["gsd60"].values
    zipped = tmp_path / "with {braces} and spaces.SAFE.zip"
    shutil.copy(made["l1c_zip"], zipped)
    # The product's files at the top of the zip, without their folder.
    bare = tmp_path / "bare.zip"
    with zipfile.ZipFile(bare, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(made["l1c"].rglob("*")):
            archive.write(file, file.relative_to(made["l1c"]))
    other = tmp_path / "renamed"
    shutil.copytree(made["l1c"], other)
    for path in (made["l1c"] / "MTD_MSIL1C.xml", zipped, bare, other, str(other)):
        np.testing.assert_array_equal(granule.open_granule(path).cubes["gsd60"], expected)
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(granule.open_granule("renamed").cubes["gsd60"], expected)


def test_a_folder_of_products_gives_all_of_them(
    made: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    copy(made["l1c"], tmp_path)
    copy(made["l2a"], tmp_path)
    shutil.copy(made["l1c_zip"], tmp_path)
    levels = [g.facts["level"] for g in granule.open_granules(tmp_path)]
    assert sorted(levels) == ["L1C", "L1C", "L2A"]
    with pytest.raises(DataError, match=r"several granules: S2A_MSIL1C\w+, S2A_MSIL2A"):
        granule.open_granule(tmp_path)


def test_a_product_of_two_utm_zones_gives_a_granule_a_tile(made: dict[str, pathlib.Path]) -> None:
    first, second = granule.open_granules(made["two_zones"])
    assert [g.facts["tile"] for g in (first, second)] == ["T32UMC", "T33UUB"]
    assert [g.plane for g in (first, second)] == ["EPSG:32632", "EPSG:32633"]
    assert first.name.endswith("_T32UMC") and first.name != second.name
    assert first.facts["product"] == second.facts["product"]
    for found in (first, second):
        assert_as_by_driver(made["two_zones"], found)
    with pytest.raises(DataError, match=r"several granules: \w+_T32UMC, \w+_T33UUB; expected one"):
        granule.open_granule(made["two_zones"])


def test_two_tiles_of_one_zone_stay_apart(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray]
) -> None:
    """Where GDAL's driver makes one mosaic of them."""
    other = synthetic.build_cubes(120, seed=7)
    neighbour = products.Tile(other, "T32UNC", 32632, (499_980.0, synthetic.CORNER[1]))
    path = products.write_product(tmp_path, cubes, compact=False, more_tiles=[neighbour])
    first, second = granule.open_granules(path)
    assert (first.place, second.place) == ("T32UMC", "T32UNC")
    assert first.plane == second.plane and first.origin != second.origin
    for found, expected in ((first, cubes), (second, other)):
        for name, cube in found.cubes.items():
            np.testing.assert_array_equal(cube, expected[name])


def test_masks(made: dict[str, pathlib.Path]) -> None:
    found = granule.open_granule(made["l2a"]).masks
    scl = np.arange((EDGE // 2) ** 2).reshape(EDGE // 2, -1) % 12
    assert found["scl"].dtype == np.uint8
    np.testing.assert_array_equal(found["scl"], scl)
    np.testing.assert_array_equal(found["cloud"], (scl >= 8) & (scl <= 10))
    expected = np.zeros((EDGE // 6, EDGE // 6), bool)
    expected[3:9, 5:20], expected[30:, 30:] = True, True
    for kind in ("l1c", "l1c_zip", "l1c_0509"):  # polygons before 04.00, an image since
        found = granule.open_granule(made[kind]).masks
        assert set(found) == {"cloud"}
        assert found["cloud"].attrs["gsd"] == 60 and found["cloud"].dtype == bool
        np.testing.assert_array_equal(found["cloud"], expected)


def test_masks_may_be_missing_but_not_damaged(
    made: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    product = copy(made["l2a"], tmp_path)
    find(product, "*SCL_20m.jp2").unlink()
    found = granule.open_granule(product).masks
    assert found["scl"].attrs["gsd"] == found["cloud"].attrs["gsd"] == 60
    find(product, "*SCL_60m.jp2").unlink()
    assert not granule.open_granule(product).masks
    product = copy(made["l1c"], tmp_path)
    mask = find(product, "MSK_CLOUDS*.gml")
    change(mask, r"(<\w*:?posList[^>]*>)\d+", r"\1cloud", count=1)
    with pytest.raises(DataError, match=r"MSK_CLOUDS\w+.gml: posList"):
        granule.open_granule(product).masks["cloud"].compute(scheduler="synchronous")
    mask.unlink()
    assert not granule.open_granule(product).masks


def test_polygons_may_have_holes_and_heights(tmp_path: pathlib.Path) -> None:
    ring = "0 60 7 60 60 7 60 0 7 0 0 7 0 60 7"
    hole = "20 40 20 20 40 20 40 40 20 40"
    file = tmp_path / "m.gml"
    file.write_text(
        '<Mask srsName="urn:ogc:def:crs:EPSG:8.7:32632"><Polygon><exterior><LinearRing>'
        f'<posList srsDimension="3">{ring}</posList></LinearRing></exterior><interior><LinearRing>'
        f'<posList srsDimension="2">{hole}</posList></LinearRing></interior></Polygon></Mask>'
    )
    from data_pipelines import safe_masks

    grid = safe_xml.Grid((8, 8), (10.0, 0.0, 0.0, 0.0, -10.0, 60.0))
    mask = safe_masks._draw_polygons(
        file=safe_files.ProductFile(str(file)), grid=grid, crs="EPSG:32632"
    )
    expected = np.zeros((8, 8), bool)
    expected[:6, :6], expected[2:4, 2:4] = True, False
    np.testing.assert_array_equal(mask, expected)
    with pytest.raises(DataError, match=r"CRS urn:.*32632; the tile's is EPSG:32633"):
        safe_masks.read_polygons(safe_files.ProductFile(str(file)), "EPSG:32633")


def test_bands_can_be_chosen_and_l2a_has_no_b10(made: dict[str, pathlib.Path]) -> None:
    (found,) = safe.open_product(made["l1c"], ["B10", "B03", "B01"])
    assert {k: list(c.band.values) for k, c in found.cubes.items()} == {
        "gsd10": ["B03"],
        "gsd60": ["B01", "B10"],
    }
    assert found.cubes["gsd60"].sel(band="B10").values.any()
    with pytest.raises(DataError, match=r"L2A has no band B10; it has B01, .*cirrus"):
        list(safe.open_product(made["l2a"], ["B10", "B03"]))
    with pytest.raises(DataError, match=r"L1C has no band B13, nir"):
        list(safe.open_product(made["l1c"], ["nir", "B13"]))


def set_block(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """As if files were tiled so: small ones have one tile."""
    real = safe_jp2.read_header

    def read(file: safe_files.ProductFile) -> safe_jp2.Header:
        return dataclasses.replace(real(file), block=block)

    monkeypatch.setattr(safe_jp2, "read_header", read)


def test_opening_reads_no_pixel_and_chunks_are_read_once(
    made: dict[str, pathlib.Path],
    cubes: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[str, Window]] = []
    real = safe_jp2.read_pixels

    def read(file: safe_files.ProductFile, window: Window, index: int = 1) -> Any:
        seen.append((pathlib.Path(str(file)).name, window))
        return real(file, window, index)

    monkeypatch.setattr(safe_jp2, "read_pixels", read)
    monkeypatch.setattr(safe, "CHUNK", 96)
    set_block(monkeypatch, 48)
    found = granule.open_granule(made["l2a"])
    assert not seen
    cube = found.cubes["gsd20"]
    assert cube.data.chunks == ((1,) * 6, (48, 48, 24), (48, 48, 24))
    part = cube.sel(band="B8A")[50:60, 100:101].compute(scheduler="synchronous")
    np.testing.assert_array_equal(part - 1000, cubes["gsd20"][3, 50:60, 100:101])
    assert [name[-11:] for name, _ in seen] == ["B8A_20m.jp2"]
    assert seen[0][1] == Window(48, 96, 48, 24)
    seen.clear()
    harmonised = granule.harmonise(cube)
    assert not seen
    np.testing.assert_array_equal(harmonised.compute(scheduler="threads"), cubes["gsd20"])
    assert len(seen) == 6 * 9


@pytest.mark.parametrize(
    ("block", "gsd", "edge"),
    [
        (1024, 10, 1024),
        (640, 20, 640),
        (192, 60, 192),  # ESA's
        (1024, 60, 1024),
        (128, 10, 1024),
        (600, 10, 1200),
        (10980, 10, 10980),  # not tiled
    ],
)
def test_a_chunk_is_whole_tiles(block: int, gsd: int, edge: int) -> None:
    assert safe.chunk_edge(block, gsd) == edge


def test_a_cube_travels_to_other_processes(made: dict[str, pathlib.Path]) -> None:
    cube = granule.open_granule(made["l1c_zip"]).cubes["gsd60"]
    text = pickle.dumps(cube)
    assert len(text) < 20_000
    np.testing.assert_array_equal(pickle.loads(text), cube)


def test_images_of_many_blocks_are_read_whole(tmp_path: pathlib.Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 65_536, (150, 201), np.uint16)
    safe_products.write_jp2(tmp_path / "a.jp2", pixels, 10, "EPSG:32632", (0, 0), block=64)
    file = safe_files.ProductFile(str(tmp_path / "a.jp2"))
    header = safe_jp2.read_header(file)
    assert (header.shape, header.dtype, header.num_bands) == ((150, 201), "uint16", 1)
    for window in (Window(0, 0, 150, 201), Window(60, 3, 80, 70), Window(149, 200, 1, 1)):
        np.testing.assert_array_equal(safe_jp2.read_pixels(file, window), pixels[window.slices])
    with pytest.raises(DataError, match=r"a.jp2: \(150, 201\) px; expected Window"):
        safe_jp2.read_pixels(file, Window(0, 0, 151, 10))


def test_the_toolbox_baseline_may_be_without_offsets(
    made: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    product = copy(made["l2a_old"], tmp_path)
    change(product / "MTD_MSIL2A.xml", "02.14</PROC", "99.99</PROC")
    assert granule.open_granule(product).cubes["gsd20"].attrs["offset"] == (0.0,) * 6


def test_decimated_images_warn_and_lie_where_they_should(
    made: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    product = copy(made["l1c"], tmp_path)
    small = np.arange(40 * 40, dtype=np.uint16).reshape(40, 40) + 1
    for band in ("B01", "B09"):
        file = find(product, f"*_{band}.jp2")
        safe_products.write_jp2(file, small[::4, ::4], 240, "EPSG:32632", synthetic.CORNER)
    with pytest.warns(safe.ResampledPixels, match=r"60 m have 10 x 10 px .* says 40 x 40 px"):
        found = granule.open_granule(product)
    expected = small[::4, ::4].repeat(4, 0).repeat(4, 1)
    np.testing.assert_array_equal(found.cubes["gsd60"][1], expected)
    np.testing.assert_array_equal(found.cubes["gsd60"][0, 5:9, 7:30], expected[5:9, 7:30])


@pytest.mark.parametrize(
    ("name", "level", "key"),
    [
        ("T32UMC_20180629T102041_B8A", "L1C", ("B8A", 20)),
        ("T32UMC_20180629T102041_B8A_20m", "L2A", ("B8A", 20)),
        ("T32UMC_20180629T102041_B8A_20m", "L1C", None),
        ("L2A_T32UMC_20180629T102041_B02_10m", "L2A", ("B02", 10)),
        ("L2A_T32UMC_20180629T102041_SCL_20m.jp2", "L2A", ("SCL", 20)),
        ("S2A_OPER_MSI_L1C_TL_EPA__20160723T170311_A005670_T32TNM_B10", "L1C", ("B10", 60)),
        ("S2A_USER_MSI_L2A_TL_SGS__20160723T170311_A005670_T32TNM_B02_60m", "L2A", ("B02", 60)),
        ("S2A_USER_SCL_L2A_TL_SGS__20160723T170311_A005670_T32TNM_20m", "L2A", ("SCL", 20)),
        ("S2A_USER_AOT_L2A_TL_SGS__20160723T170311_A005670_T32TNM_20m", "L2A", None),
        ("T32UMC_20180629T102041_TCI", "L1C", None),
        ("T32UMC_20180629T102041_WVP_10m", "L2A", None),
        ("T32UMC_20180629T102041_B13", "L1C", None),
    ],
)
def test_image_names(name: str, level: str, key: tuple[str, int] | None) -> None:
    assert safe_xml._image_key(name, level) == key


def test_early_sen2cor_products(tmp_path: pathlib.Path, made: dict[str, pathlib.Path]) -> None:
    """Names of Sen2Cor 2.3: L2A_ in tags, IMAGE_ID_2A, the SCL beside the R20m folder."""
    product = copy(made["l2a_old"], tmp_path)
    tile = "S2A_USER_MSI_L2A_TL_SGS__20160723T170311_A005670_T32UMC_N02.04"
    folder = find(product, "MTD_TL.xml").parent
    folder = folder.rename(folder.with_name(tile))
    stem = tile.removesuffix("_N02.04")
    change(folder / "MTD_TL.xml", r"\bTILE_ID\b", "TILE_ID_2A")
    (folder / "MTD_TL.xml").rename(folder / f"{stem.replace('_MSI_', '_MTD_', 1)}.xml")
    ids = []
    for file in sorted(folder.rglob("*.jp2")):
        if match := re.fullmatch(r"T32UMC_\w+_(B\w\w)_(\d0m)", file.stem):
            ids.append(file.rename(file.with_name(f"{stem}_{match[1]}_{match[2]}.jp2")).stem)
        elif match := re.fullmatch(r"T32UMC_\w+_SCL_(\d0m)", file.stem):
            name = f"{stem.replace('_MSI_', '_SCL_', 1)}_{match[1]}"
            ids.append(file.rename(folder / "IMG_DATA" / f"{name}.jp2").stem)
    images = "".join(f"<IMAGE_ID_2A>{name}</IMAGE_ID_2A>" for name in ids)
    granules = f'<Granules granuleIdentifier="{tile}">{images}</Granules>'
    main = product / "MTD_MSIL2A.xml"
    change(main, r"<Granule .*</Granule>", granules)
    change(main, "BOA_QUANTIFICATION_VALUE", "L2A_BOA_QUANTIFICATION_VALUE")
    change(main, "PRODUCT_URI>", "PRODUCT_URI_2A>")
    main.rename(product / "S2A_USER_MTD_SAFL2A_PDMC_20160723T170311.xml")
    found, same = granule.open_granule(product), granule.open_granule(made["l2a_old"])
    assert {"T32UMC"} == {found.place, found.facts["tile"]}
    for name in sentinel2.GSDS:
        np.testing.assert_array_equal(found.cubes[name], same.cubes[name])
    np.testing.assert_array_equal(found.masks["scl"], same.masks["scl"])


# The real products.


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            f"{safe_products.L1C}.zip",
            {
                "level": "L1C",
                "tile": "T56JMM",
                "time": "2018-06-29T00:02:41.461Z",
                "baseline": "02.06",
                "spacecraft": "S2A",
                "crs": "EPSG:32756",
                "corner": (399_960, 6_700_000),
                "offset": 0,
                "cubes": {"gsd10": (4, 10_980), "gsd20": (6, 5490), "gsd60": (2, 1830)},
                "masks": {"cloud": 60},
            },
        ),
        (
            f"{safe_products.L2A}.SAFE",
            {
                "level": "L2A",
                "tile": "T29UNU",
                "time": "2022-10-05T11:56:49.581767Z",
                "baseline": "04.00",
                "spacecraft": "S2A",
                "crs": "EPSG:32629",
                "corner": (499_980, 5_900_040),
                "offset": -1000,
                "cubes": {"gsd60": (2, 1830)},
                "masks": {"scl": 60, "cloud": 60},
            },
        ),
        (
            f"{safe_products.DECIMATED_L2A}.SAFE",
            {
                "level": "L2A",
                "tile": "T22HBD",
                "time": "2021-01-22T13:42:49.838906Z",
                "baseline": "02.14",
                "spacecraft": "S2B",
                "crs": "EPSG:32722",
                "corner": (199_980, 5_900_020),
                "offset": 0,
                "cubes": {"gsd10": (4, 10_980), "gsd20": (6, 5490), "gsd60": (2, 1830)},
                "masks": {"scl": 20, "cloud": 20},
            },
        ),
    ],
)
def test_real_products_open(shared_data: pathlib.Path, name: str, expected: dict[str, Any]) -> None:
    with warnings.catch_warnings(action="ignore", category=safe.ResampledPixels):
        found = granule.open_granule(shared_data / "safe" / name)
    keys = ("level", "tile", "time", "baseline", "spacecraft")
    assert {k: found.facts[k] for k in keys} == {k: expected[k] for k in keys}
    assert found.name == found.facts["product"] == name.partition(".")[0].removeprefix("esa_")
    assert {k: c.shape for k, c in found.cubes.items()} == {
        k: (bands, n, n) for k, (bands, n) in expected["cubes"].items()
    }
    for cube in found.cubes.values():
        gsd = cube.attrs["gsd"]
        assert tuple(cube.band.values) == sentinel2.bands_at(int(gsd))
        assert set(cube.attrs["offset"]) == {expected["offset"]}
        assert cube.attrs["crs"] == expected["crs"]
        x, y = expected["corner"]
        assert cube.attrs["transform"] == (gsd, 0, x, 0, -gsd, y)
    assert {k: m.attrs["gsd"] for k, m in found.masks.items()} == expected["masks"]


@pytest.mark.shared_data
def test_the_real_partial_product_reads_as_by_gdal(shared_data: pathlib.Path) -> None:
    product = shared_data / "safe" / f"{safe_products.L2A}.SAFE"
    found = granule.open_granule(product)
    assert_as_by_driver(product, found)
    # What ESA counted itself, over pixels with data: 10.6 + 37.9 + 11.3 % (MTD_TL.xml).
    scl = found.masks["scl"].values
    share = found.masks["cloud"].values[scl > 0].mean()
    assert share == pytest.approx(0.597697, abs=1e-3)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    "name", [f"{safe_products.L1C}.zip", f"{safe_products.DECIMATED_L2A}.SAFE"]
)
def test_real_decimated_images_lie_where_rasterio_says(
    shared_data: pathlib.Path, name: str
) -> None:
    # GDAL's SENTINEL2 driver is no reference here: it puts the small image into the corner.
    with pytest.warns(safe.ResampledPixels):
        found = granule.open_granule(shared_data / "safe" / name)
    for cube, band in (("gsd20", "B11"), ("gsd60", "B09")):
        data = found.cubes[cube].sel(band=band)
        product = safe_files.find_product(shared_data / "safe" / name)
        tile = safe_xml.read_product(product).tiles[0]
        file = product.find(*tile.images[band, sentinel2.GSDS[cube]])
        assert file is not None
        with rasterio.open(file.gdal_name) as source:
            reference = source.read(1, out_shape=data.shape, resampling=Resampling.nearest)
        np.testing.assert_array_equal(data, reference)


@pytest.mark.shared_data
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("real", "scene", "offset"),
    [
        (f"{safe_products.L1C}.zip", "L1C_ssc_cnn_coastal.npz", 0),
        (f"{safe_products.L2A}.SAFE", "L2A_hydro_patch_0.npz", -1000),
    ],
)
def test_real_pixels_make_the_round_trip(
    shared_data: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    real: str,
    scene: str,
    offset: int,
    zipped: bool,
) -> None:
    cubes = safe_products.read_scene(shared_data / "sr_scenes" / scene)
    product = safe_products.write_true_ratio(
        shared_data / "safe" / real, tmp_path, cubes, offset=offset, zipped=zipped
    )
    monkeypatch.setattr(safe, "CHUNK", 120)
    set_block(monkeypatch, 40)
    found = granule.open_granule(product)
    for name, cube in found.cubes.items():
        assert set(cube.attrs["offset"]) == {offset}
        np.testing.assert_array_equal(granule.harmonise(cube), np.clip(cubes[name], 0, 65_534))
    assert_as_by_driver(product, found)


def test_files_are_plain_values() -> None:
    file = safe_files.ProductFile("a.zip", "b/c.jp2")
    assert str(file) == "a.zip/b/c.jp2" and file.gdal_name == "/vsizip/{a.zip}/b/c.jp2"
    assert dataclasses.replace(file) == file and hash(file)
