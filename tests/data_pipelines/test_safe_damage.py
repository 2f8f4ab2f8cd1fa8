"""Sentinel-2 products that are damaged or were changed: our error, or the right pixels."""

from __future__ import annotations

import pathlib
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data_pipelines import granule, safe, safe_files, safe_jp2, sentinel2, synthetic
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


# What is wrong -> (kind, how it is done, what the error says).
Damage = Callable[[pathlib.Path], object]


def xml(pattern: str, text: str, name: str = "MTD_MSIL*.xml", count: int = 0) -> Damage:
    return lambda product: change(find(product, name), pattern, text, count)


DAMAGES: dict[str, tuple[str, Damage, str]] = {
    "one band missing": (
        "l1c",
        lambda p: find(p, "*_B05.jp2").unlink(),
        r"missing file GRANULE/\S+_B05.jp2; found B06, B07, B8A, B11, B12 of 20 m",
    ),
    "a band that the XML does not name": (
        "l1c",
        xml(r"<IMAGE_FILE>[^<]*_B11</IMAGE_FILE>", ""),
        r"missing file GRANULE/\S+: B11, which the XML does not name",
    ),
    "all images missing": (
        "l1c",
        lambda p: [f.unlink() for f in p.rglob("*_B*.jp2")],
        r"T32UMC: no image of B02, ",
    ),
    "no XML": ("l1c", lambda p: find(p, "MTD_MSIL1C.xml").unlink(), "found no XML; expected one"),
    "two XML": (
        "l1c",
        lambda p: shutil.copy(p / "MTD_MSIL1C.xml", p / "MTD_MSIL2A.xml"),
        "found MTD_MSIL1C.xml, MTD_MSIL2A.xml; expected one",
    ),
    "no XML of the tile": ("l1c", lambda p: find(p, "MTD_TL.xml").unlink(), "no file .*MTD_TL.xml"),
    "XML cut short": ("l1c", xml(r"<Datatake.*", ""), r"MTD_MSIL1C.xml: damaged XML"),
    "another root": ("l1c", xml("User_Product", "Product"), "root .*expected Level-1C_User_Prod"),
    "L2A in the file of L1C": ("l1c", xml("Level-1C_User", "Level-2A_User"), "L2A inside"),
    "no offset": (
        "l2a",
        xml(r"<BOA_ADD_OFFSET_VALUES_LIST>.*</BOA_ADD_OFFSET_VALUES_LIST>", ""),
        r"no BOA_ADD_OFFSET; expected one a band.*baseline is 04.00",
    ),
    "no offset of one band": (
        "l1c_0509",
        xml(r'<RADIO_ADD_OFFSET band_id="8">-1000</RADIO_ADD_OFFSET>', ""),
        "no RADIO_ADD_OFFSET of B8A; found band_id",
    ),
    "two offsets of one band": (
        "l2a",
        xml(r'band_id="8"', 'band_id="7"'),
        "BOA_ADD_OFFSET band_id '7' '-1000'; expected a number",
    ),
    "offset no number": ("l2a", xml(">-1000<", ">-1O00<", count=1), "'-1O00'; expected a number"),
    "offset out of range": ("l2a", xml(">-1000<", ">1000<", count=1), "'1000'; expected a num"),
    "no quantification": (
        "l1c",
        xml(r"<QUANTIFICATION_VALUE.*?</QUANTIFICATION_VALUE>", ""),
        "QUANTIFICATION_VALUE: found none",
    ),
    "other no-data": (
        "l1c",
        xml(r"(NODATA</SPECIAL_VALUE_TEXT>\s*<SPECIAL_VALUE_INDEX>)0", r"\g<1>9"),
        "special values .*'9'.*expected .*'NODATA': '0'",
    ),
    "no baseline": ("l1c", xml("02.06</PROC", "2.6</PROC"), "PROCESSING_BASELINE: found '2.6'"),
    "another zone": (
        "l1c",
        xml(":32632", ":32633", "MTD_TL.xml"),
        "found 'EPSG:32633'; exp.*32632",
    ),
    "southern zone": ("l1c", xml(":32632", ":32732", "MTD_TL.xml"), "found 'EPSG:32732'"),
    "another tile": ("l1c", xml("_T32UMC_", "_T32UMD_", "MTD_TL.xml"), "TILE_ID: found .*T32UMD"),
    "corner moved": (
        "l1c",
        xml(r"<ULX>3", "<ULX>4", "MTD_TL.xml"),
        r"B02.jp2: lies from \(399960, .*the XML says \(499960",
    ),
    "one corner moved": ("l1c", xml(r"<ULX>3", "<ULX>4", "MTD_TL.xml", 1), "lies from"),
    "pixel size": ("l1c", xml("<XDIM>10", "<XDIM>11", "MTD_TL.xml"), "XDIM 11, YDIM -10; expected"),
    "size of a tile": ("l1c", xml(r"<NROWS>240", "<NROWS>246", "MTD_TL.xml"), "the XML says"),
    "size below 1": ("l1c", xml(r"<NROWS>240", "<NROWS>0", "MTD_TL.xml"), "size 0 x 240 px"),
    "size no number": ("l1c", xml(r"<NROWS>240", "<NROWS>2a0", "MTD_TL.xml"), "Size 10: found"),
    "way out": (
        "l1c",
        xml(r"<IMAGE_FILE>GRANULE/", "<IMAGE_FILE>../../GRANULE/"),
        r"file name '../../GRANULE.*expected one inside",
    ),
    "absolute name": ("l1c", xml(r"<IMAGE_FILE>GRANULE/", "<IMAGE_FILE>/etc/"), "file name '/etc"),
    "entity": (
        "l1c",
        xml(r"^(<\?xml.*?\?>)?", '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>', count=1),
        "damaged XML, or with entities",
    ),
    "bomb": (
        "l1c",
        lambda p: (p / "MTD_MSIL1C.xml").write_bytes(b"<a>" + b" " * safe_files.LARGEST_XML),
        "over 33554432 bytes",
    ),
    "XML is a folder": (
        "l1c",
        lambda p: ((p / "MTD_MSIL1C.xml").unlink(), (p / "MTD_MSIL1C.xml").mkdir()),
        "no file MTD_MSIL1C.xml",
    ),
    "JP2 is none": (
        "l1c",
        lambda p: find(p, "*_B03.jp2").write_bytes(b"rubbish"),
        "B03.jp2: not readable as JPEG 2000",
    ),
    "JP2 of 8 bits": (
        "l1c",
        lambda p: safe_products.write_jp2(
            find(p, "*_B03.jp2"), np.ones((240, 240), np.uint8), 10, "EPSG:32632", synthetic.CORNER
        ),
        "B03.jp2: 1 bands of uint8; expected 1 of uint16",
    ),
    "different extents": (
        "l1c",
        lambda p: safe_products.write_jp2(
            find(p, "*_B06.jp2"), np.ones((60, 60), np.uint16), 40, "EPSG:32632", synthetic.CORNER
        ),
        r"bands of different extents: \S+_B06.jp2 has 60 x 60 px, \S+_B05.jp2 120 x 120 px",
    ),
    "JP2 of another zone": (
        "l1c",
        lambda p: safe_products.write_jp2(
            find(p, "*_B03.jp2"), np.ones((240, 240), np.uint16), 10, "EPSG:32633", synthetic.CORNER
        ),
        "B03.jp2: CRS EPSG:32633; the XML says EPSG:32632",
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_named(made: dict[str, pathlib.Path], tmp_path: pathlib.Path, what: str) -> None:
    kind, damage, message = DAMAGES[what]
    product = copy(made[kind], tmp_path)
    damage(product)
    with pytest.raises(DataError, match=message) as error:
        granule.open_granule(product)
    assert str(product) in str(error.value)


def test_a_missing_cube_is_no_error_until_it_is_asked_for(
    made: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    from data_pipelines import cube

    product = copy(made["l2a"], tmp_path)
    for file in (*product.rglob("*_10m.jp2"), *product.rglob("*_20m.jp2")):
        file.unlink()
    found = granule.open_granule(product)
    assert set(found.cubes) == {"gsd60"} and found.shape == (EDGE, EDGE)
    with pytest.raises(DataError, match="superres_20m needs gsd10, gsd20; found gsd60"):
        list(cube.cut(found, cube.TASKS["superres_20m"], [Window(0, 0, 32, 32)]))


def test_bytes_that_the_manifest_does_not_know_are_refused(
    made: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    import hashlib

    product = copy(made["l2a"], tmp_path)

    def entry(file: pathlib.Path, kind: str, digest: str) -> str:
        return (
            f'<dataObject><byteStream size="1"><fileLocation href="./{file.relative_to(product)}"/>'
            f'<checksum checksumName="{kind}">{digest}</checksum></byteStream></dataObject>'
        )

    image = find(product, "*_B03_10m.jp2")
    tile = find(product, "MTD_TL.xml")
    entries = [
        entry(tile, "SHA3-256", hashlib.sha3_256(tile.read_bytes()).hexdigest()),
        entry(image, "MD5", hashlib.md5(image.read_bytes()).hexdigest().upper()),
        entry(product / "MTD_MSIL2A.xml", "CRC", "unknown kinds are passed over"),
    ]
    (product / "manifest.safe").write_text(f"<XFDU>{''.join(entries)}</XFDU>")
    granule.open_granule(product).cubes["gsd10"].compute(scheduler="synchronous")
    # A flipped bit in the pixels' code, which JPEG 2000 itself may not notice.
    data = bytearray(image.read_bytes())
    data[-200] ^= 4
    image.write_bytes(data)
    with pytest.raises(DataError, match=r"B03_10m.jp2: damaged or changed: MD5 \w+; manifest.safe"):
        granule.open_granule(product).cubes["gsd10"].compute(scheduler="synchronous")
    change(tile, "</n1:", " </n1:", count=1)
    with pytest.raises(DataError, match=r"MTD_TL.xml: damaged or changed: SHA3-256"):
        granule.open_granule(product)
    (product / "manifest.safe").write_text("<XFDU>")
    with pytest.raises(DataError, match=r"manifest.safe: damaged XML"):
        granule.open_granule(product)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_with_a_manifest_no_changed_byte_passes(
    made: dict[str, pathlib.Path],
    cubes: dict[str, np.ndarray],
    tmp_path: pathlib.Path,
    data: st.DataObject,
) -> None:
    """Not even one in an offset's digits or in the pixels' code."""
    product = tmp_path / made["l2a_manifest"].name
    if not product.exists():
        copy(made["l2a_manifest"], tmp_path, manifest=True)
        assert_right_or_refused(product, cubes)
    images = [*product.rglob("*_B*0m.jp2")]
    files = [
        *product.rglob("MTD_*.xml"),
        product / "manifest.safe",
        data.draw(st.sampled_from(images)),
    ]
    file = data.draw(st.sampled_from(files))
    whole = file.read_bytes()
    raw = bytearray(whole)
    position = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        raw[position] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del raw[position : position + data.draw(st.integers(1, 2000))]
    file.write_bytes(raw)
    try:
        assert_right_or_refused(product, cubes)
    finally:
        file.write_bytes(whole)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, np.ndarray]:
    path = tmp_path_factory.mktemp("jp2") / "a.jp2"
    pixels = synthetic.build_cubes(144, seed=5)["gsd10"][0]
    safe_products.write_jp2(path, pixels, 10, "EPSG:32632", (0, 0), block=64)
    return path, pixels


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_cut_image_never_gives_pixels(
    image: tuple[pathlib.Path, np.ndarray], data: st.DataObject
) -> None:
    path, pixels = image
    whole = path.read_bytes()
    start = data.draw(st.integers(0, len(whole) - 1))
    stop = data.draw(st.sampled_from([len(whole), start + 1, start + 7, start + 500]))
    cut = path.with_name("cut.jp2")
    cut.write_bytes(whole[:start] + whole[stop:])
    file = safe_files.ProductFile(str(cut))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = safe_jp2.read_header(file)
            found = safe_jp2.read_pixels(file, Window(0, 0, *pixels.shape))
    except DataError as error:
        assert str(cut) in str(error)
    else:
        # Only what is no image may be cut out: what says where it lies.
        assert header.shape == pixels.shape
        np.testing.assert_array_equal(found, pixels)


def test_blocks_that_cannot_be_decoded_raise(tmp_path: pathlib.Path) -> None:
    """GDAL, over several blocks at once, gives zeros for them without an error."""
    import rasterio

    path = tmp_path / "a.jp2"
    pixels = np.random.default_rng(0).integers(1, 10_000, (300, 300), np.uint16)
    safe_products.write_jp2(path, pixels, 10, "EPSG:32632", (0, 0), block=64)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 9 // 10])
    with rasterio.open(path) as file, pytest.raises(rasterio.errors.RasterioError):
        safe_jp2.read_blocks(file, Window(0, 0, 300, 300))
    with pytest.raises(DataError, match=r"a.jp2: damaged or cut short"):
        safe_jp2.read_pixels(safe_files.ProductFile(str(path)), Window(0, 0, 300, 300))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.999])
def test_a_zip_cut_short_is_refused(
    made: dict[str, pathlib.Path], tmp_path: pathlib.Path, share: float
) -> None:
    data = made["l1c_zip"].read_bytes()
    path = tmp_path / "cut.SAFE.zip"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=r"cut.SAFE.zip: not readable as zip, or cut short"):
        granule.open_granule(path)


def write_zip(path: pathlib.Path, members: dict[str, bytes]) -> pathlib.Path:
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    "name", ["../evil.xml", "/etc/evil", "A.SAFE/../../evil", "A.SAFE\\..\\evil", "A//b", "./a"]
)
def test_members_that_lead_out_of_a_zip_are_refused(tmp_path: pathlib.Path, name: str) -> None:
    path = write_zip(tmp_path / "a.zip", {"A.SAFE/MTD_MSIL1C.xml": b"<a/>", name: b""})
    with pytest.raises(DataError, match=r"a.zip: member .* leads out of the zip's folder"):
        granule.open_granule(path)


def test_links_doubles_and_strangers_in_a_zip_are_refused(tmp_path: pathlib.Path) -> None:
    link = zipfile.ZipInfo("A.SAFE/MTD_MSIL1C.xml")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="is a link or encrypted"):
        granule.open_granule(tmp_path / "link.zip")
    with (
        zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        archive.writestr("A.SAFE/MTD_MSIL1C.xml", "<a/>")
        archive.writestr("A.SAFE/MTD_MSIL1C.xml", "<b/>")
    with pytest.raises(DataError, match="is there twice"):
        granule.open_granule(tmp_path / "twice.zip")
    for members in ({"a.txt": b""}, {}, {"a/b/c/MTD_MSIL1C.xml": b"<a/>"}):
        path = write_zip(tmp_path / "other.zip", members)
        with pytest.raises(DataError, match=r"other.zip: not a Sentinel-2 product: found "):
            granule.open_granule(path)


def test_members_of_a_zip_are_no_bombs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size counts that the zip declares: no reader goes on beyond it."""
    monkeypatch.setattr(safe_files, "LARGEST_MEMBER", 1000)
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("A.SAFE/MTD_MSIL1C.xml", "<a/>")
        archive.writestr("A.SAFE/B02.jp2", bytes(1001))
    with pytest.raises(DataError, match=r"B02.jp2 has 1001 bytes; expected 1000 at most"):
        granule.open_granule(path)


def test_paths_that_are_no_product(tmp_path: pathlib.Path) -> None:
    (tmp_path / "A.SAFE").mkdir()
    (tmp_path / "other.xml").write_text("<a/>")
    with pytest.raises(DataError, match=r"A.SAFE: not a Sentinel-2 product: found no XML"):
        granule.open_granule(tmp_path / "A.SAFE")
    with pytest.raises(DataError, match=r"other.xml: not a Sentinel-2 product: found other.xml"):
        granule.open_granule(tmp_path / "other.xml")
    with pytest.raises(DataError, match=r"nowhere.SAFE: not found"):
        list(safe.open_product(tmp_path / "nowhere.SAFE"))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_zip_gives_the_right_pixels_or_our_error(
    made: dict[str, pathlib.Path],
    cubes: dict[str, np.ndarray],
    tmp_path: pathlib.Path,
    data: st.DataObject,
) -> None:
    raw = bytearray(made["l1c_zip"].read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        # The zip's directory at the end holds few of the bytes and most of the ways to go wrong.
        near_end = data.draw(st.booleans())
        position = data.draw(st.integers(len(raw) - 4000 if near_end else 0, len(raw) - 1))
        raw[position] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "flipped.zip"
    path.write_bytes(raw)
    assert_right_or_refused(path, cubes)


def assert_right_or_refused(path: pathlib.Path, cubes: dict[str, np.ndarray]) -> None:
    """Our error, or pixels, offsets and place as they were."""
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            found = list(safe.open_product(path))
            for each in found:
                for name, cube in each.cubes.items():
                    values = granule.harmonise(cube).compute(scheduler="synchronous")
                    np.testing.assert_array_equal(values, cubes[name])
                    gsd = sentinel2.GSDS[name]
                    x, y = synthetic.CORNER
                    assert cube.attrs["crs"] == "EPSG:32632"
                    assert cube.attrs["transform"] == (gsd, 0, x, 0, -gsd, y)
    except DataError as error:
        assert str(path) in str(error)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
@pytest.mark.parametrize("name", ["MTD_MSIL2A.xml", "MTD_TL.xml"])
def test_damaged_xml_gives_the_right_pixels_or_our_error(
    made: dict[str, pathlib.Path],
    cubes: dict[str, np.ndarray],
    tmp_path: pathlib.Path,
    name: str,
    data: st.DataObject,
) -> None:
    # Without manifest.safe only an offset's own digits may change unseen (-1000 to -1900), and
    # whether there are offsets where the baseline's digits make it old: both are put right here.
    product = tmp_path / made["l2a"].name
    if not product.exists():
        copy(made["l2a"], tmp_path)
    file = find(product, name)
    whole = find(made["l2a"], name).read_bytes()
    offsets = [m.span(1) for m in re.finditer(rb"BOA_ADD_OFFSET [^>]*>([^<]*)<", whole)]
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 2))):
        position = data.draw(st.integers(0, len(raw) - 1))
        action = data.draw(st.sampled_from(["flip", "digit", "cut", "end"]))
        if any(start <= position < stop for start, stop in offsets):
            continue
        if action == "flip":
            raw[position] ^= 1 << data.draw(st.integers(0, 7))
        elif action == "digit" and raw[position : position + 1].isdigit():
            raw[position] = data.draw(st.sampled_from(list(b"0123456789")))
        elif action == "end":
            del raw[position:]
            break
        elif action == "cut":
            stop = position + data.draw(st.integers(1, 60))
            if not any(start < stop and position < end for start, end in offsets):
                raw[position:stop] = b"\n" * (len(raw[position:stop]))
    file.write_bytes(raw)
    try:
        assert_right_or_refused(product, cubes)
    finally:
        file.write_bytes(whole)


@pytest.mark.shared_data
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
@example(data=None)
def test_any_byte_changed_in_real_xml_is_noticed(
    shared_data: pathlib.Path, tmp_path: pathlib.Path, data: st.DataObject | None
) -> None:
    product = tmp_path / f"{safe_products.L2A}.SAFE"
    real = shared_data / "safe" / product.name
    if not product.exists():
        for file in ("MTD_MSIL2A.xml", "manifest.safe"):
            product.mkdir(exist_ok=True)
            shutil.copyfile(real / file, product / file)
    whole = (real / "MTD_MSIL2A.xml").read_bytes()
    raw = bytearray(whole)
    position = whole.index(b">-1000<") + 2
    if data is not None:
        position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] ^= 1
    (product / "MTD_MSIL2A.xml").write_bytes(raw)
    with pytest.raises(DataError, match=r"MTD_MSIL2A.xml: damaged or changed: SHA3-256"):
        list(safe.open_product(product))
