"""Folders of single-band files as public archives lay them out."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest

from data_pipelines import (
    band_files,
    band_metadata,
    geotiff,
    granule,
    sentinel2,
    synthetic,
    synthetic_product,
)
from data_pipelines.spec import DataError

rasterio = pytest.importorskip("rasterio")

# Scale and offset of files without an offset, in words: nothing has to be assumed.
PLAIN = (1e-4, 0.0)
COGS = {band: name for name, band in band_files.COMMON_NAMES.items() if "07" not in name}


@pytest.fixture(scope="module")
def cubes() -> dict[str, np.ndarray]:
    return synthetic.build_cubes(144, seed=6)


@pytest.fixture(scope="module")
def products(
    tmp_path_factory: pytest.TempPathFactory, cubes: dict[str, np.ndarray]
) -> dict[str, pathlib.Path]:
    """Products by level and baseline: "L1C 02.06", ..."""
    folder = tmp_path_factory.mktemp("products")
    scl = np.random.default_rng(3).integers(0, 12, (1, 72, 72), np.uint8)
    made = {}
    for level, baseline in (("L1C", "02.06"), ("L1C", "05.00"), ("L2A", "04.00")):
        made[f"{level} {baseline}"] = synthetic_product.write_product(
            folder, cubes, level=level, baseline=baseline, scl=scl, tile="T33UUB"
        )
    return made


def images(product: pathlib.Path) -> list[pathlib.Path]:
    return sorted(next(product.glob("GRANULE/*/IMG_DATA")).rglob("*.jp2"))


def lay_out_aws(product: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """As in sentinel-2-l1c: B01.jp2 ... beside each other; or l2a: R10m/B02.jp2 ..."""
    for file in images(product):
        band = band_files.parse_stem(file.stem)[0]
        sub = file.parent.name if file.parent.name != "IMG_DATA" else ""
        (folder / sub).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / sub / f"{band}.jp2")
    return folder


def write_cogs(
    folder: pathlib.Path,
    cubes: dict[str, np.ndarray],
    *,
    scale: tuple[float, float] | None = None,
    corner: tuple[float, float] = synthetic.CORNER,
) -> pathlib.Path:
    """As in sentinel-cogs, by Earth Search's names: blue.tif ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, cube in cubes.items():
        gsd = sentinel2.GSDS[name]
        for band, image in zip(sentinel2.bands_at(gsd), cube, strict=True):
            write_tif(folder / f"{COGS[band]}.tif", image, gsd, corner, scale)
    return folder


def write_tif(
    path: pathlib.Path,
    image: np.ndarray,
    gsd: float,
    corner: tuple[float, float] = synthetic.CORNER,
    scale: tuple[float, float] | None = None,
    crs: str = "EPSG:32632",
) -> None:
    transform = rasterio.Affine(gsd, 0, corner[0], 0, -gsd, corner[1])
    height, width = image.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=height, width=width, dtype=image.dtype,
        crs=crs, transform=transform, tiled=True, blockxsize=64, blockysize=64,
    ) as file:  # fmt: skip
        file.write(image, 1)
        if scale is not None:
            file.scales, file.offsets = scale[:1], scale[1:]


def check_pixels(found: granule.Granule, cubes: dict[str, np.ndarray]) -> None:
    """Values without offset are the cubes', stored ones those that rasterio reads."""
    for name, cube in cubes.items():
        got = found.cubes[name]
        assert tuple(got.band.values) == sentinel2.bands_at(sentinel2.GSDS[name])
        np.testing.assert_array_equal(granule.harmonise(got).values, cube)
        assert got.attrs["crs"] == "EPSG:32632"
        assert got.attrs["transform"][2::3] == synthetic.CORNER


@pytest.mark.parametrize(
    ("product", "offset", "source"),
    [
        ("L1C 02.06", 0, "processing baseline 02.06"),
        ("L1C 05.00", -1000, "processing baseline 05.00"),
        ("L2A 04.00", -1000, "processing baseline 04.00"),
    ],
)
@pytest.mark.parametrize("metadata", ["metadata.xml", "tileInfo.json"])
def test_folders_as_in_the_aws_archives(
    tmp_path: pathlib.Path,
    cubes: dict[str, np.ndarray],
    products: dict[str, pathlib.Path],
    product: str,
    offset: int,
    source: str,
    metadata: str,
) -> None:
    safe = products[product]
    folder = lay_out_aws(safe, tmp_path / "0")
    if metadata == "metadata.xml":
        shutil.copy(next(safe.rglob("MTD_TL.xml")), folder / metadata)
    else:
        tile = {"utmZone": 33, "latitudeBand": "U", "gridSquare": "UB"}
        more = {"productName": safe.stem, "timestamp": "2018-06-29T10:20:41.024Z"}
        (folder / metadata).write_text(json.dumps({**tile, **more}))
    found = granule.open_granule(folder)
    check_pixels(found, cubes)
    assert found.cubes["gsd20"].attrs["offset"] == (offset,) * 6
    assert found.facts["offset_from"] == source
    assert found.facts["baseline"] == product[-5:]
    assert (found.facts["tile"], found.facts["spacecraft"]) == ("T33UUB", "S2A")
    assert found.facts["time"].startswith("2018-06-29T10:20:41")
    assert found.place == "T33UUB"
    assert set(found.masks) == ({"scl", "cloud"} if product.startswith("L2A") else set())


@pytest.mark.parametrize("product", ["L1C 02.06", "L1C 05.00", "L2A 04.00"])
def test_img_data_of_a_product_takes_the_offsets_of_its_xml(
    cubes: dict[str, np.ndarray], products: dict[str, pathlib.Path], product: str
) -> None:
    safe = products[product]
    found = granule.open_granule(next(safe.glob("GRANULE/*/IMG_DATA")))
    check_pixels(found, cubes)
    assert found.facts["offset_from"] == f"XML MTD_MSI{product[:3]}.xml"
    assert found.facts["product"] == found.scene == safe.stem
    assert found.facts["level"] == product[:3]


@pytest.mark.parametrize(("day", "refused"), [("20180629", False), ("20220125", True)])
def test_esas_names_of_a_day_with_offsets_need_something_that_tells_them(
    tmp_path: pathlib.Path, products: dict[str, pathlib.Path], day: str, refused: bool
) -> None:
    for file in products["L2A 04.00"].rglob("*_B*m.jp2"):
        _, _, rest = file.name.split("_", 2)
        shutil.copy(file, tmp_path / f"T33UUB_{day}T102041_{rest}")
    if refused:
        with pytest.raises(DataError, match=f"nothing tells the offset of T33UUB_{day}T102041_B02"):
            granule.open_granule(tmp_path)
    else:
        with pytest.warns(band_files.AssumedOffset):
            found = granule.open_granule(tmp_path)
        assert found.facts["offset_from"] == "nothing says one: 0"


def test_masks_are_those_of_the_file(products: dict[str, pathlib.Path]) -> None:
    folder = next(products["L2A 04.00"].glob("GRANULE/*/IMG_DATA"))
    found = granule.open_granule(folder)
    with rasterio.open(next(folder.glob("R20m/*SCL*"))) as file:
        scl = file.read(1)
    np.testing.assert_array_equal(found.masks["scl"].values, scl)
    np.testing.assert_array_equal(found.masks["cloud"].values, (scl >= 8) & (scl <= 10))
    for mask, dtype in (("scl", np.uint8), ("cloud", bool)):
        assert found.masks[mask].dtype == dtype
        assert found.masks[mask].dims == ("y", "x")
        assert found.masks[mask].attrs["gsd"] == 20
        assert hasattr(found.masks[mask].data, "dask")


@pytest.mark.parametrize(
    ("scale", "offset", "source"),
    [
        (None, 0, "nothing says one: 0"),
        ((1e-4, 0.0), 0, "scale and offset of the files"),
        ((1e-4, -0.1), -1000, "scale and offset of the files"),
    ],
)
def test_cogs_bear_their_offset_in_scale_and_offset(
    tmp_path: pathlib.Path,
    cubes: dict[str, np.ndarray],
    scale: tuple[float, float] | None,
    offset: int,
    source: str,
) -> None:
    stored = {name: synthetic_product.to_stored(cube, offset) for name, cube in cubes.items()}
    write_cogs(tmp_path / "scene", stored, scale=scale)
    if scale is None:
        with pytest.warns(band_files.AssumedOffset, match=r"scene: nothing tells the .* to be 0"):
            found = granule.open_granule(tmp_path / "scene")
    else:
        found = granule.open_granule(tmp_path / "scene")
    check_pixels(found, cubes)
    assert found.facts["offset_from"] == source
    assert found.cubes["gsd60"].attrs["offset"] == (offset, offset)
    assert found.cubes["gsd60"].attrs["quantification"] == (10_000, 10_000)


def test_a_stac_item_in_the_folder_outweighs_the_tags(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray]
) -> None:
    """As in sentinel-cogs, whose items say that the offset was taken out of the COGs."""
    folder = write_cogs(tmp_path / "S2B_33UUB_20230701_0_L2A", cubes, scale=(1e-4, -0.1))
    href = "https://example.org/scene"
    item = {
        "type": "Feature", "stac_version": "1.0.0", "id": folder.name, "geometry": None,
        "properties": {"datetime": "2023-07-01T10:00:00Z", "s2:processing_baseline": "05.09",
                       "earthsearch:boa_offset_applied": True, "grid:code": "MGRS-33UUB"},
        "links": [],
        "assets": {f.stem: {"href": f"{href}/{f.name}"} for f in folder.glob("*.tif")},
    }  # fmt: skip
    (folder / "item.json").write_text(json.dumps(item))
    found = granule.open_granule(folder)
    check_pixels(found, cubes)
    assert found.facts["offset_from"] == "earthsearch:boa_offset_applied"
    assert found.place == "T33UUB"


def test_only_the_files_of_the_wanted_bands_are_read(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geotiff, "CHUNK", 60)
    found = granule.open_granule(write_cogs(tmp_path / "scene", cubes, scale=PLAIN))
    read: list[str] = []
    original = geotiff.read_pixels

    def spy(path: Any, *arguments: Any) -> Any:
        read.append(pathlib.Path(path).name)
        return original(path, *arguments)

    monkeypatch.setattr(geotiff, "read_pixels", spy)
    part = found.cubes["gsd10"].sel(band="B04")[60:70, 10:20].values
    np.testing.assert_array_equal(part, cubes["gsd10"][2, 60:70, 10:20])
    assert read == ["red.tif"]


def test_chunks_cover_the_same_ground(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_cogs(tmp_path / "a", cubes, scale=PLAIN)
    # Blocks of 64 px: the least multiple of 64 and 6 that is CHUNK or more, up to 3 CHUNK.
    for chunk, edge in ((1080, 1152), (66, 192), (18, 18)):
        monkeypatch.setattr(geotiff, "CHUNK", chunk)
        assert geotiff.chunk_edge(folder / "blue.tif", 10) == edge
    found = granule.open_granule(folder)
    for name, cube in found.cubes.items():
        ratio = sentinel2.GSDS[name] // 10
        assert [n * ratio for n in cube.data.chunks[1]] == [18] * 8
        np.testing.assert_array_equal(cube.values, cubes[name])


def test_missing_bands_are_named(tmp_path: pathlib.Path, cubes: dict[str, np.ndarray]) -> None:
    folder = write_cogs(tmp_path / "a", cubes, scale=PLAIN)
    (folder / "coastal.tif").unlink()
    with pytest.raises(DataError, match=r"a: no band B01; found B02, .*B8A; expected B02, B03"):
        granule.open_granule(folder)
    (folder / "nir09.tif").unlink()
    assert set(granule.open_granule(folder).cubes) == {"gsd10", "gsd20"}
    (folder / "swir22.tif").unlink()
    with pytest.raises(DataError, match=r"a: no band B12; found"):
        granule.open_granule(folder)


def test_other_grids_are_refused(tmp_path: pathlib.Path, cubes: dict[str, np.ndarray]) -> None:
    folder = write_cogs(tmp_path / "a", cubes)
    red = cubes["gsd10"][2]
    x, y = synthetic.CORNER
    write_tif(folder / "red.tif", red[:-1], 10)
    with pytest.raises(DataError, match=r"shape of B04 \(143, 144\), of B02 \(144, 144\)"):
        granule.open_granule(folder)
    write_tif(folder / "red.tif", red, 10, corner=(x + 5, y))
    with pytest.raises(DataError, match=r"grids do not nest: transform of B04 .*B02"):
        granule.open_granule(folder)
    write_tif(folder / "red.tif", red, 10, crs="EPSG:32633")
    with pytest.raises(DataError, match=r"crs of B04 EPSG:32633, of B02 EPSG:32632"):
        granule.open_granule(folder)
    write_tif(folder / "red.tif", red[::2, ::2], 20)
    with pytest.raises(DataError, match=r"red.tif: B04 has pixels of 20 x 20 m; expected 10 x 10"):
        granule.open_granule(folder)
    write_tif(folder / "red.tif", red.astype(np.int16), 10)
    with pytest.raises(DataError, match=r"red.tif: int16; expected uint16"):
        granule.open_granule(folder)
    shutil.rmtree(folder)
    write_cogs(folder, {"gsd10": cubes["gsd10"], "gsd60": cubes["gsd60"]})
    write_cogs(folder, {"gsd20": cubes["gsd20"]}, corner=(x + 20, y))
    with pytest.raises(DataError, match=r"gsd20 begins 20 m east"):
        granule.open_granule(folder)


def test_damaged_files_are_named(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray], products: dict[str, pathlib.Path]
) -> None:
    folder = lay_out_aws(products["L1C 02.06"], tmp_path / products["L1C 02.06"].stem)
    whole = (folder / "B03.jp2").read_bytes()
    (folder / "B03.jp2").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(DataError, match=r"B03.jp2: "):
        granule.open_granule(folder).cubes["gsd10"].compute(scheduler="synchronous")
    (folder / "B03.jp2").write_bytes(b"rubbish")
    with pytest.raises(DataError, match=r"B03.jp2: not readable as JPEG 2000"):
        granule.open_granule(folder)
    # A VRT in disguise could make GDAL read any file, or the network.
    vrt = '<VRTDataset rasterXSize="144" rasterYSize="144"><VRTRasterBand dataType="UInt16"/>'
    (folder / "B03.jp2").write_text(f"{vrt}</VRTDataset>")
    with pytest.raises(DataError, match=r"B03.jp2: not readable as JPEG 2000: .*not recognized"):
        granule.open_granule(folder)
    # A GeoTIFF under this name is just that.
    write_tif(folder / "B03.jp2", cubes["gsd10"][1], 10)
    with geotiff.open_file(folder / "B03.jp2") as file:
        assert file.driver == "GTiff"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tileInfo.json", "[]", "tileInfo.json: not readable"),
        ("tileInfo.json", '{"timestamp": 1}', "tileInfo.json: not readable"),
        ("tileInfo.json", "[" * 200_000, "tileInfo.json: not readable .*nested too deeply"),
        ("metadata.xml", "<a", "metadata.xml: damaged XML"),
        ("metadata.xml", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "metadata.xml: damaged XML"),
    ],
)
def test_damaged_metadata_is_refused(
    tmp_path: pathlib.Path, cubes: dict[str, np.ndarray], name: str, content: str, message: str
) -> None:
    folder = write_cogs(tmp_path / "a", cubes)
    (folder / name).write_text(content)
    with pytest.raises(DataError, match=message):
        granule.open_granule(folder)


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("B02", ("B02", None)),
        ("T33UUB_20170527T102031_B8A_20m", ("B8A", 20)),
        ("S2A_OPER_MSI_L1C_TL_EPA__20160929T103545_A000734_T32TQT_B12", ("B12", None)),
        ("b11", ("B11", None)),
        ("SCL", ("SCL", None)),
        ("T33UUB_20170527T102031_SCL_60m", ("SCL", 60)),
        ("nir08", ("B8A", None)),
        ("rededge2", ("B06", None)),
        ("B13", (None, None)),
        ("TCI", (None, None)),
        ("MSK_CLDPRB_20m", (None, None)),
        ("visual", (None, None)),
        ("rededge", (None, None)),
    ],
)
def test_names(stem: str, expected: tuple[str | None, int | None]) -> None:
    assert band_files.parse_stem(stem) == expected


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [("02.14", 0), ("03.01", 0), ("04.00", -1000), ("05.11", -1000), ("99.99", None)],
)
def test_rule_of_the_baselines(baseline: str, expected: float | None) -> None:
    scale = band_metadata.rule(baseline)
    assert (scale and scale[0]) == expected


def test_native_pixels_are_chosen(tmp_path: pathlib.Path) -> None:
    """R20m and R60m hold the 10 m bands, too, in coarser pixels."""
    for folder in ("R10m", "R20m", "R60m"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "B02.jp2").write_bytes(b"")
    found = band_files.find_files(tmp_path)["B02"]
    assert len(found) == 3
    assert band_files.native(tmp_path, "B02", found).path == tmp_path / "R10m" / "B02.jp2"
    with pytest.raises(DataError, match=r"band B02: found .*R20m.*; expected one file of 10 m"):
        band_files.native(tmp_path, "B02", found[1:])


@pytest.mark.shared_data
def test_real_images(shared_data: pathlib.Path) -> None:
    """The real product with 60 m images only has no 10 m band."""
    (safe,) = (shared_data / "safe").glob("S2A_MSIL2A_2022*.SAFE")
    folder = next(safe.glob("GRANULE/*/IMG_DATA"))
    files = band_files.find_files(folder)
    assert {file.gsd for found in files.values() for file in found} == {60}
    with pytest.raises(DataError, match=r"band B02: found .*; expected one file of 10 m pixels"):
        granule.open_granule(folder)
    facts, stated = band_metadata.read_metadata(folder)
    assert facts["tile"] == "T29UNU"
    assert facts["baseline"] == "04.00"
    assert set(stated.values()) == {((-1000.0, 10_000.0), "XML MTD_MSIL2A.xml")}
