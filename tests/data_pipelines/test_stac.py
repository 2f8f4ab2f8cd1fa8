"""STAC items as the catalogues write them, made with pystac around files on this machine."""

from __future__ import annotations

import datetime
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import band_files, granule, sentinel2, stac, synthetic, synthetic_product
from data_pipelines.spec import DataError

pystac = pytest.importorskip("pystac")
rasterio = pytest.importorskip("rasterio")

CORNER = synthetic.CORNER
EARTH_SEARCH = {band: name for name, band in band_files.COMMON_NAMES.items() if "07" not in name}
COG = "image/tiff; application=geotiff; profile=cloud-optimized"


@pytest.fixture(scope="module")
def cubes() -> dict[str, np.ndarray]:
    return synthetic.build_cubes(120, seed=7)


def write_tif(path: pathlib.Path, image: np.ndarray, gsd: int, epsg: int = 32632) -> None:
    transform = rasterio.Affine(gsd, 0, CORNER[0], 0, -gsd, CORNER[1])
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=len(image), width=len(image),
        dtype=image.dtype, crs=f"EPSG:{epsg}", transform=transform,
    ) as file:  # fmt: skip
        file.write(image, 1)


def make_item(
    path: pathlib.Path, assets: dict[str, dict[str, Any]], identifier: str, **properties: Any
) -> pathlib.Path:
    """Write an item, and read it back with pystac."""
    item = pystac.Item(
        identifier,
        {"type": "Point", "coordinates": [9.0, 52.0]},
        [9.0, 52.0, 9.0, 52.0],
        datetime.datetime(2023, 7, 1, 10, 46, 30, tzinfo=datetime.UTC),
        properties,
    )
    for key, values in assets.items():
        more = {k: v for k, v in values.items() if k not in ("href", "type")}
        item.add_asset(
            key, pystac.Asset(values["href"], media_type=values["type"], extra_fields=more)
        )
    path.write_text(json.dumps(item.to_dict(include_self_link=False)))
    assert pystac.Item.from_file(str(path)).id == identifier
    return path


def earth_search(
    folder: pathlib.Path,
    cubes: dict[str, np.ndarray],
    *,
    offset: int = 0,
    raster: dict[str, Any] | None = None,
    **properties: Any,
) -> pathlib.Path:
    """As in Earth Search: COGs under common names, and things that are no band."""
    assets: dict[str, dict[str, Any]] = {}
    for name, cube in cubes.items():
        gsd = sentinel2.GSDS[name]
        for band, image in zip(sentinel2.bands_at(gsd), cube, strict=True):
            key = EARTH_SEARCH[band]
            write_tif(folder / f"{band}.tif", synthetic_product.to_stored(image, offset), gsd)
            bands = [{"name": key, "common_name": "rededge" if "rededge" in key else key}]
            assets[key] = {"href": f"./{band}.tif", "type": COG, "eo:bands": bands, "gsd": gsd}
            if raster is not None:
                assets[key]["raster:bands"] = [raster]
            jp2 = f"s3://sentinel-s2-l2a/tiles/32/U/MC/{band}.jp2"
            assets[f"{key}-jp2"] = assets[key] | {"href": jp2, "type": "image/jp2"}
    scl = np.random.default_rng(1).integers(0, 12, (60, 60), np.uint8)
    write_tif(folder / "SCL.tif", scl, 20)
    assets["scl"] = {"href": "./SCL.tif", "type": COG, "gsd": 20}
    three = [{"name": "red"}, {"name": "green"}, {"name": "blue"}]
    assets["visual"] = {"href": "./TCI.tif", "type": COG, "eo:bands": three}
    assets["thumbnail"] = {"href": "./preview.jpg", "type": "image/jpeg"}
    assets["granule_metadata"] = {"href": "./metadata.xml", "type": "application/xml"}
    return make_item(
        folder / "item.json",
        assets,
        "S2B_32UMC_20230701_0_L2A",
        **{"platform": "sentinel-2b", "proj:epsg": 32632, "grid:code": "MGRS-32UMC", **properties},
    )


def check_pixels(found: granule.Granule, cubes: dict[str, np.ndarray]) -> None:
    for name, cube in cubes.items():
        np.testing.assert_array_equal(granule.harmonise(found.cubes[name]).values, cube)
        assert found.cubes[name].attrs["crs"] == "EPSG:32632"


SCALES = {"scale": 1e-4, "offset": -0.1, "nodata": 0}


@pytest.mark.parametrize(
    ("offset", "raster", "properties", "source"),
    [
        # The flag outweighs the offset that the assets still state: the pixels agree with it.
        (0, SCALES, {"earthsearch:boa_offset_applied": True}, "earthsearch:boa_offset_applied"),
        (0, None, {"sentinel:boa_offset_applied": True}, "sentinel:boa_offset_applied"),
        (-1000, SCALES, {"earthsearch:boa_offset_applied": False}, "the item's assets"),
        (-1000, SCALES, {}, "the item's assets"),
        (0, {"scale": 1e-4, "offset": 0}, {"s2:processing_baseline": "05.09"}, "the item's assets"),
        (-1000, None, {"s2:processing_baseline": "05.09"}, "processing baseline 05.09"),
        (-1000, None, {"processing:version": "05.11"}, "processing baseline 05.11"),
        (-1000, {"scale": 1e-4}, {"s2:processing_baseline": "04.00"}, "processing baseline 04.00"),
        (0, None, {"s2:processing_baseline": "03.01"}, "processing baseline 03.01"),
    ],
)
def test_where_the_offset_comes_from(
    tmp_path: pathlib.Path,
    cubes: dict[str, np.ndarray],
    offset: int,
    raster: dict[str, Any] | None,
    properties: dict[str, Any],
    source: str,
) -> None:
    item = earth_search(tmp_path, cubes, offset=offset, raster=raster, **properties)
    found = granule.open_granule(item)
    check_pixels(found, cubes)
    assert found.facts["offset_from"] == source
    assert found.scene == found.name == "S2B_32UMC_20230701_0_L2A"
    assert found.place == found.facts["tile"] == "T32UMC"
    assert found.facts["time"] == "2023-07-01T10:46:30Z"
    assert (found.facts["spacecraft"], found.facts["level"]) == ("S2B", "L2A")


def test_scene_classification(tmp_path: pathlib.Path, cubes: dict[str, np.ndarray]) -> None:
    found = granule.open_granule(earth_search(tmp_path, cubes, raster=SCALES))
    with rasterio.open(tmp_path / "SCL.tif") as file:
        scl = file.read(1)
    np.testing.assert_array_equal(found.masks["scl"].values, scl)
    np.testing.assert_array_equal(found.masks["cloud"].values, np.isin(scl, (8, 9, 10)))


@pytest.mark.parametrize("level", ["L1C", "L2A"])
def test_images_of_a_product_by_key_gsd_and_stac_1_1(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray], level: str
) -> None:
    """As in the Copernicus Data Space: a key for each GSD, `bands`, `raster:offset`, absolute."""
    safe = synthetic_product.write_product(tmp_path, cubes, level=level, baseline="05.11")
    assets: dict[str, dict[str, Any]] = {}
    for file in safe.rglob("IMG_DATA/**/*.jp2"):
        name, gsd = band_files.parse_stem(file.stem)
        scales = {"raster:scale": 1e-4, "raster:offset": -0.1, "bands": [{"name": name}]}
        key = f"{name}_{gsd}m" if gsd else str(name)
        assets[key] = {"href": str(file), "type": "image/jp2", **scales}
    if level == "L2A":
        # A 10 m band in coarser pixels, as real products have it; not there: never opened.
        for gsd in (20, 60):
            href = assets["B02_10m"]["href"].replace("10m", f"{gsd}m")
            assets[f"B02_{gsd}m"] = assets["B02_10m"] | {"href": href, "gsd": gsd}
    item = make_item(
        tmp_path / "item.json",
        assets,
        safe.stem,
        **{"platform": "sentinel-2a", "proj:code": "EPSG:32632"},
    )
    found = granule.open_granule(item)
    check_pixels(found, cubes)
    assert found.facts["product"] == found.name == safe.stem
    assert (found.facts["baseline"], found.facts["level"]) == ("05.11", level)
    assert found.facts["offset_from"] == "the item's assets"


def test_assets_are_known_by_their_bands(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray]
) -> None:
    path = earth_search(tmp_path, cubes, raster=SCALES)
    values = json.loads(path.read_text())
    for i, (key, asset) in enumerate(list(values["assets"].items())):
        if key.endswith("-jp2") or asset["type"] != COG or key in ("scl", "visual"):
            continue
        band = pathlib.Path(asset["href"]).stem
        if i % 2:
            asset["eo:bands"] = [{"name": band, "common_name": "rededge"}]
        else:
            asset.pop("eo:bands")
            asset["bands"] = [{"name": band.lower(), "eo:common_name": "rededge"}]
        values["assets"][f"asset {i}"] = values["assets"].pop(key)
    path.write_text(json.dumps(values))
    found = granule.open_granule(path)
    for name, cube in cubes.items():
        np.testing.assert_array_equal(found.cubes[name].values, cube)


@pytest.mark.parametrize(
    ("href", "expected"),
    [
        ("./B02.tif", "/data/B02.tif"),
        ("../x/B02.tif", "/data/../x/B02.tif"),
        ("/other/B02.tif", "/other/B02.tif"),
        ("file:///other/B02.tif", "/other/B02.tif"),
        ("https://a.org/B02.tif?key=1", "/vsicurl/https://a.org/B02.tif?key=1"),
        ("s3://bucket/a/B02.jp2", "/vsis3/bucket/a/B02.jp2"),
        ("gs://bucket/B02.tif", "/vsigs/bucket/B02.tif"),
        ("/vsizip/a.zip/B02.jp2", "/vsizip/a.zip/B02.jp2"),
    ],
)
def test_addresses(href: str, expected: str) -> None:
    assert stac.gdal_path(pathlib.Path("/data/item.json"), href) == expected


def test_an_asset_may_lie_in_a_zip(tmp_path: pathlib.Path, cubes: dict[str, np.ndarray]) -> None:
    import zipfile

    path = earth_search(tmp_path, cubes, raster=SCALES)
    values = json.loads(path.read_text())
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "B02.tif", "B02.tif")
    (tmp_path / "B02.tif").unlink()
    values["assets"]["blue"]["href"] = f"/vsizip/{tmp_path}/a.zip/B02.tif"
    path.write_text(json.dumps(values))
    found = granule.open_granule(path).cubes["gsd10"]
    np.testing.assert_array_equal(found.values, cubes["gsd10"])


def test_nothing_that_tells_the_offset_is_an_error(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray]
) -> None:
    path = earth_search(tmp_path, cubes)
    values = json.loads(path.read_text())
    # The day of sensing does not tell: ESA's Collection 1 gave older scenes the offset, too.
    for day in ("2023-07-01", "2019-06-01"):
        values["properties"]["datetime"] = f"{day}T10:00:00Z"
        path.write_text(json.dumps(values))
        with pytest.raises(DataError, match=r"item.json: nothing tells the offset") as caught:
            granule.open_granule(path)
        for what in ("s2:processing_baseline", "raster:bands", "give the product itself"):
            assert what in str(caught.value)
    # One band of which nothing is known is one too many.
    raster = earth_search(tmp_path, cubes, raster=SCALES)
    values = json.loads(raster.read_text())
    del values["assets"]["nir09"]["raster:bands"]
    raster.write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"item.json: nothing tells the offset"):
        granule.open_granule(raster)


@pytest.mark.parametrize("depth", [20_000, 200_000])
def test_deeply_nested_json_is_refused(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray], depth: int
) -> None:
    path = earth_search(tmp_path, cubes, raster=SCALES)
    deep = "[" * depth + "]" * depth
    path.write_text(path.read_text().replace('"links": []', f'"links": [], "deep": {deep}', 1))
    assert "deep" in path.read_text()
    with pytest.raises(DataError, match=r"item.json: not readable as a STAC item: nested too"):
        granule.open_granule(path)
    with pytest.raises(DataError, match=r"item.json: not readable as a STAC item: nested too"):
        stac.is_item(path)


def test_local_files_of_an_item(tmp_path: pathlib.Path, cubes: dict[str, np.ndarray]) -> None:
    path = earth_search(tmp_path, cubes, raster=SCALES)
    bands = {tmp_path / f"{band}.tif" for band in EARTH_SEARCH if band != "B10"}
    assert set(stac.local_files(path)) == {*bands, tmp_path / "SCL.tif"}
    values = json.loads(path.read_text())
    (tmp_path / "a.zip").write_bytes(b"")
    for key, href in {
        "blue": f"/vsizip/{tmp_path}/a.zip/B02.tif",
        "green": f"/vsizip/{{{tmp_path}/a.zip}}/B03.tif",
        "red": "https://a.org/B04.tif",
        "nir": "/vsizip//vsicurl/https://a.org/a.zip/B08.tif",
        "swir16": "./nowhere.tif",
    }.items():
        values["assets"][key]["href"] = href
    path.write_text(json.dumps(values))
    found = {file.name for file in stac.local_files(path)}
    left = {file.name for file in bands} - {f"{b}.tif" for b in ("B02", "B03", "B04", "B08", "B11")}
    assert found == {*left, "SCL.tif", "a.zip"}


def test_the_files_must_be_what_the_item_says(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray]
) -> None:
    path = earth_search(tmp_path, cubes, raster=SCALES, **{"proj:code": "EPSG:32633"})
    with pytest.raises(DataError, match=r"files in EPSG:32632; the item says EPSG:32633"):
        granule.open_granule(path)
    path = earth_search(tmp_path, cubes, raster=SCALES)
    (tmp_path / "B11.tif").unlink()
    with pytest.raises(DataError, match=r"B11.tif: not found"):
        granule.open_granule(path)
    values = json.loads(path.read_text())
    del values["assets"]["swir16"], values["assets"]["swir16-jp2"]
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"item.json: no band B11; found B01, "):
        granule.open_granule(path)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"type": "Feature"}', '{"type": "Collection", "id": "a"}', "null", "\0"],
)
def test_what_is_no_item_is_refused(tmp_path: pathlib.Path, content: str) -> None:
    path = tmp_path / "item.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"item.json: not readable as a STAC item"):
        granule.open_granule(path)
    assert not stac.is_item(path)


@pytest.mark.parametrize("raster", [{"scale": "x", "offset": 0}, {"scale": 0, "offset": 0}, [1]])
def test_scales_that_are_no_numbers_are_refused(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray], raster: Any
) -> None:
    path = earth_search(tmp_path, cubes, raster=raster)
    with pytest.raises(DataError, match=r"item.json: "):
        granule.open_granule(path)


@pytest.fixture(scope="module")
def text(
    tmp_path_factory: pytest.TempPathFactory, cubes: dict[str, np.ndarray]
) -> tuple[pathlib.Path, bytes]:
    path = earth_search(tmp_path_factory.mktemp("fuzz"), cubes, raster=SCALES)
    return path, path.read_bytes()


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 20_000),
)
def test_damaged_items_are_refused_or_right(
    text: tuple[pathlib.Path, bytes],
    cubes: dict[str, np.ndarray],
    flips: list[tuple[int, int]],
    length: int,
) -> None:
    path, whole = text
    data = bytearray(whole)
    for at, value in flips:
        data[at % len(data)] = value
    check_damaged(path, bytes(data[: max(length, len(data) // 2)]), cubes)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=3,
)


@settings(deadline=None)
@given(st.integers(0, 10_000), JSON)
def test_other_values_in_items_are_refused_or_right(
    text: tuple[pathlib.Path, bytes], cubes: dict[str, np.ndarray], at: int, value: Any
) -> None:
    path, whole = text
    values = json.loads(whole)
    places: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            places.append((node, key))
            if isinstance(child, dict | list):
                collect(child)

    collect(values)
    node, key = places[at % len(places)]
    node[key] = value
    check_damaged(path, json.dumps(values).encode(), cubes)


def check_damaged(path: pathlib.Path, data: bytes, cubes: dict[str, np.ndarray]) -> None:
    path.write_bytes(data)
    try:
        found = granule.open_granule(path)
        pixels = found.cubes["gsd60"].values
    except DataError:
        return
    # A flipped digit in the JSON may be a true item of another offset; its pixels are the file's.
    np.testing.assert_array_equal(pixels, cubes["gsd60"])
