"""Made-up products, read back by GDAL's own SENTINEL2 driver."""

from __future__ import annotations

import hashlib
import pathlib
import tracemalloc
import warnings
import zipfile
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import jp2, sentinel2, synthetic, synthetic_product

rasterio = pytest.importorskip("rasterio")


@pytest.fixture(scope="module")
def cubes() -> dict[str, np.ndarray]:
    made = synthetic.build_cubes(120, seed=2)
    made["gsd10"][0, :7] = sentinel2.NO_DATA
    made["gsd20"][2, 3, 4] = sentinel2.SATURATED
    return made


def open_image(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        return rasterio.open(name)


def read_product(path: pathlib.Path, epsg: int = 32632) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tags, and (pixels, crs, corner) by band name of the subdatasets in one CRS."""
    with open_image(str(path)) as file:
        tags, names = file.tags(), file.subdatasets
    bands = {}
    for gsd in (10, 20, 60):
        (name,) = [name for name in names if name.endswith(f":{gsd}m:EPSG_{epsg}")]
        with open_image(name) as file:
            for i, text in enumerate(file.descriptions):
                band = (
                    text.partition(",")[0].replace("B", "B0")
                    if len(text.partition(",")[0]) == 2
                    else text.partition(",")[0]
                )
                corner = file.transform.c, file.transform.f, file.transform.a
                bands[band, gsd] = (file.read(i + 1), file.crs.to_epsg(), corner)
    return tags, bands


@pytest.mark.parametrize(
    ("options", "offset", "xml"),
    [
        ({}, 0, "MTD_MSIL1C.xml"),
        ({"baseline": "05.09", "spacecraft": "S2C"}, -1000, "MTD_MSIL1C.xml"),
        ({"level": "L2A", "baseline": "02.14"}, 0, "MTD_MSIL2A.xml"),
        ({"level": "L2A", "baseline": "04.00", "tile": "T33UUB"}, -1000, "MTD_MSIL2A.xml"),
        ({"offset": -500}, -500, "MTD_MSIL1C.xml"),
        ({"zipped": True}, 0, None),
        ({"level": "L2A", "zipped": True, "baseline": "05.11"}, -1000, None),
        ({"compact": False}, 0, "S2A_OPER_MTD_SAFL1C_*.xml"),
    ],
)
def test_gdal_reads_the_pixels_that_were_written(
    tmp_path: pathlib.Path,
    cubes: dict[str, np.ndarray],
    options: dict[str, Any],
    offset: int,
    xml: str | None,
) -> None:
    path = synthetic_product.write_product(tmp_path, cubes, **options)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    tags, bands = read_product(path if xml is None else next(path.glob(xml)))
    for name, gsd in sentinel2.GSDS.items():
        for band, image in zip(sentinel2.bands_at(gsd), cubes[name], strict=True):
            pixels, epsg, corner = bands[band, gsd]
            expected = np.where(np.isin(image, (0, 65_535)), image, image.astype(np.int32) - offset)
            np.testing.assert_array_equal(pixels, expected)
            assert (epsg, corner) == (32632, (*synthetic.CORNER, gsd))
    assert tags["DATATAKE_1_DATATAKE_TYPE"] == "SYNTHETIC"
    assert tags["PROCESSING_BASELINE"] == options.get("baseline", "02.06")
    assert tags["SPECIAL_VALUE_SATURATED"] == "65535"
    spacecraft = options.get("spacecraft", "S2A")
    assert tags["DATATAKE_1_SPACECRAFT_NAME"] == f"Sentinel-{spacecraft[1:]}"
    if options.get("level") == "L2A":
        assert (bands["SCL", 20][0] == 4).all()
        assert ("B10", 60) not in bands
    else:
        cirrus = bands["B10", 60][0]
        assert cirrus.min() >= 1 - offset
        assert cirrus.max() < bands["B09", 60][0].max()


@pytest.mark.parametrize("level", ["L1C", "L2A"])
def test_offsets_stand_in_the_xml_for_each_band(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray], level: str
) -> None:
    tag = {"L1C": "RADIO_ADD_OFFSET", "L2A": "BOA_ADD_OFFSET"}[level]
    for baseline, expected in (("03.01", {}), ("04.00", dict.fromkeys(map(str, range(13)), -1000))):
        path = synthetic_product.write_product(tmp_path, cubes, level=level, baseline=baseline)
        root = ElementTree.parse(path / f"MTD_MSI{level}.xml")
        found = {e.get("band_id"): int(e.text or "") for e in root.iter(tag)}
        assert found == expected


def test_old_products_hold_tiles_of_several_zones(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray]
) -> None:
    other = synthetic.build_cubes(180, seed=9)
    more = synthetic_product.Tile(other, "T33UUB", 32633, (300_000, 5_800_020))
    path = synthetic_product.write_product(tmp_path, cubes, compact=False, more_tiles=[more])
    xml = next(path.glob("*.xml"))
    np.testing.assert_array_equal(read_product(xml)[1]["B02", 10][0], cubes["gsd10"][0])
    pixels, epsg, corner = read_product(xml, 32633)[1]["B12", 20]
    np.testing.assert_array_equal(pixels, other["gsd20"][5])
    assert (epsg, corner) == (32633, (300_000, 5_800_020, 20))


def test_scene_classification_is_thinned_to_60_m(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray]
) -> None:
    scl = np.random.default_rng(1).integers(0, 12, (1, 60, 60), np.uint8)
    path = synthetic_product.write_product(tmp_path, cubes, level="L2A", scl=scl)
    _, bands = read_product(path / "MTD_MSIL2A.xml")
    np.testing.assert_array_equal(bands["SCL", 20][0], scl[0])
    np.testing.assert_array_equal(bands["SCL", 60][0], scl[0, 1::3, 1::3])


def test_cloud_polygons_cover_the_mask(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray]
) -> None:
    from rasterio import features

    cloud = np.zeros((20, 20), bool)
    cloud[3:12, 5:15] = True
    cloud[6:8, 7:9] = False  # a hole
    cloud[19, 0] = True
    path = synthetic_product.write_product(tmp_path, cubes, cloud=cloud)
    (file,) = path.rglob("MSK_CLOUDS_B00.gml")
    gml, shapes = "{http://www.opengis.net/gml/3.2}", []
    for polygon in ElementTree.parse(file).iter(f"{gml}Polygon"):
        rings = [np.fromstring(r.text or "", sep=" ") for r in polygon.iter(f"{gml}posList")]
        coordinates = [ring.reshape(-1, 2).tolist() for ring in rings]
        shapes.append({"type": "Polygon", "coordinates": coordinates})
    place = rasterio.Affine(60, 0, synthetic.CORNER[0], 0, -60, synthetic.CORNER[1])
    found = features.rasterize(shapes, cloud.shape, transform=place).astype(bool)
    np.testing.assert_array_equal(found, cloud)
    assert f"{file.relative_to(path)}" in next(path.rglob("MTD_TL.xml")).read_text()


def test_new_cloud_mask_is_an_image(tmp_path: pathlib.Path, cubes: dict[str, np.ndarray]) -> None:
    cloud = np.eye(20, dtype=bool)
    path = synthetic_product.write_product(tmp_path, cubes, cloud=cloud, baseline="04.00")
    with rasterio.open(next(path.rglob("MSK_CLASSI_B00.jp2"))) as file:
        np.testing.assert_array_equal(file.read(1), cloud)
        assert not file.read([2, 3]).any()


def test_manifest_has_the_checksum_of_each_file(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray]
) -> None:
    for baseline, name in (("02.06", "md5"), ("04.00", "sha3_256")):
        path = synthetic_product.write_product(tmp_path, cubes, baseline=baseline, manifest=True)
        found = {}
        for stream in ElementTree.parse(path / "manifest.safe").iter("byteStream"):
            place, checksum = stream.find("fileLocation"), stream.find("checksum")
            assert place is not None and checksum is not None
            found[str(place.get("href"))] = checksum.text
        files = [f for f in path.rglob("*") if f.is_file() and f.name != "manifest.safe"]
        assert found == {
            f"./{f.relative_to(path)}": hashlib.new(name, f.read_bytes()).hexdigest() for f in files
        }


def test_zip_holds_the_folder_first(tmp_path: pathlib.Path, cubes: dict[str, np.ndarray]) -> None:
    path = synthetic_product.write_product(tmp_path, cubes, zipped=True)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    assert names[0] == f"{path.stem}.SAFE/"
    assert all(name.startswith(names[0]) for name in names)


def test_strips_of_any_height_give_the_same_product(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray]
) -> None:
    def strips(cube: np.ndarray, rows: int) -> jp2.Rows:
        starts = range(0, cube.shape[1], rows)
        return jp2.Rows(cube.shape, lambda: (cube[:, y : y + rows] for y in starts))

    rows = {name: strips(cube, 7) for name, cube in cubes.items()}
    path = synthetic_product.write_product(tmp_path, rows, baseline="04.00")
    _, bands = read_product(path / "MTD_MSIL1C.xml")
    expected = synthetic_product.to_stored(cubes["gsd10"][1], -1000)
    np.testing.assert_array_equal(bands["B03", 10][0], expected)
    short = rows | {
        "gsd10": jp2.Rows(cubes["gsd10"].shape, strips(cubes["gsd10"][:, :60], 7).strips)
    }
    with pytest.raises(ValueError, match="60 rows of strips; expected 120"):
        synthetic_product.write_product(tmp_path / "short", short)
    assert not list((tmp_path / "short").iterdir())


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 65_535), min_size=1, max_size=20),
    st.integers(-2000, 0),
)
def test_stored_values_give_back_the_values(values: list[int], offset: int) -> None:
    image = np.array(values, np.uint16)
    stored = synthetic_product.to_stored(image, offset)
    special = np.isin(image, (0, 65_535))
    np.testing.assert_array_equal(stored[special], image[special])
    np.testing.assert_array_equal(np.isin(stored, (0, 65_535)), special)
    exact = ~special & (image.astype(np.int32) - offset < 65_535)
    np.testing.assert_array_equal(stored[exact].astype(np.int32) + offset, image[exact])


def test_tile_nests_and_varies() -> None:
    made = synthetic_product.build_tile(312, seed=5, scene=120)
    whole = {name: np.concatenate(list(rows.strips()), axis=1) for name, rows in made.items()}
    scene = synthetic.build_cubes(120, seed=5)
    for name, image in whole.items():
        assert image.shape == made[name].shape
        assert image.dtype == np.uint16
        assert image.min() >= 1
        assert image.max() <= 10_000
        n = scene[name].shape[1]
        first, second = (
            image[:, :n, :n].astype(float),
            image[
                :,
                :n,
                n : 2 * n,
            ][:, :, ::-1],
        )
        # The same scene, mirrored, in other brightness: one factor for all bands and pixels.
        np.testing.assert_allclose((second / first).mean(), np.median(second / first), rtol=0.02)
        np.testing.assert_allclose(first, scene[name] * (first / scene[name]).mean(), atol=40)
    fine = whole["gsd10"].reshape(4, 52, 6, 52, 6).mean(axis=(2, 4))
    correlation = np.corrcoef(fine[0].ravel(), whole["gsd60"][0].ravel())[0, 1]
    assert correlation > 0.8


def test_memory_does_not_grow_with_the_tile() -> None:
    """One band of the full width is 10980 x 256 x 2 bytes a strip; the tile has 1.3 GB."""
    rows = synthetic_product.build_tile(10_980, scene=120)["gsd10"]
    strips = rows.strips()
    tracemalloc.start()
    try:
        for _ in range(4):
            assert next(strips).shape == (4, 256, 10_980)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 120e6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "L3"}, "level L3"),
        ({"level": "L2A", "compact": False}, "L2A with compact names"),
        ({"more_tiles": [None]}, "compact products have one"),
        ({"scl": np.zeros((1, 5, 5), np.uint8)}, "scl is"),
        ({"cloud": np.zeros((5, 5), bool)}, "cloud is"),
    ],
)
def test_options_that_contradict_are_refused(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        synthetic_product.write_product(tmp_path, cubes, **options)
    part = cubes | {"gsd20": cubes["gsd20"][:, 1:]}
    with pytest.raises(ValueError, match=r"gsd20 is \(6, 59, 60\); expected \(6, 60, 60\)"):
        synthetic_product.write_product(tmp_path, part)
    with pytest.raises(ValueError, match="expected gsd10, gsd20, gsd60"):
        synthetic_product.write_product(tmp_path, {"gsd10": cubes["gsd10"]})
    with pytest.raises(ValueError, match="multiple of 6"):
        synthetic_product.build_tile(100)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("scene", "options"),
    [
        ("L1C_S2A_20170527_T33UUB_dsen2demo", {"tile": "T33UUB", "epsg": 32633}),
        ("L2A_majortom_S2B_20200223_T48QUE", {"tile": "T48QUE", "epsg": 32648}),
    ],
)
def test_real_pixels_come_back(
    tmp_path: pathlib.Path, shared_data: pathlib.Path, scene: str, options: dict[str, Any]
) -> None:
    """Measured pixels as a product of a newer baseline: the same reflectance through our reader."""
    from data_pipelines import granule

    source = granule.open_granule(shared_data / "sr_scenes" / f"{scene}.npz")
    cubes = {name: cube.values for name, cube in source.cubes.items()}
    path = synthetic_product.write_product(
        tmp_path, cubes, level=scene[:3], baseline="05.00", synthetic=False, **options
    )
    found = granule.open_granule(path)
    assert not found.synthetic
    assert found.facts["level"] == scene[:3]
    for name, cube in cubes.items():
        np.testing.assert_array_equal(granule.harmonise(found.cubes[name]).values, cube)
