"""What the XML of a Sentinel-2 product says: bands, files, offsets, grids. Damage is refused.

Formats: ESA's Products Specification Document (S2-PDGS-TAS-DI-PSD), compact naming (since 2016-12)
and the older one with several tiles a product; and Sen2Cor's early L2A, whose names bear "L2A_".
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING
from xml.etree.ElementTree import ParseError

from data_pipelines import sentinel2
from data_pipelines.safe_files import ProductFile, ProductFiles, check_name
from data_pipelines.spec import DataError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

# From this processing baseline on (2022-01-25) DN carry an offset.
OFFSET_BASELINE = "04.00"
# Products of ESA's toolbox (Sen2Cor on a user's machine): with an offset since Sen2Cor 2.10 only.
TOOLBOX_BASELINE = "99.99"
# Edge of a whole tile is 10980 px; no size beyond this can be true.
LARGEST_SIZE = 20_000

_TILE = r"T(\d\d[C-HJ-NP-X][A-HJ-NP-Z]{2})"
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z?")
_IMAGE = re.compile(r"\w+?_(?P<band>B0[1-9]|B1[0-2]|B8A|SCL)(_(?P<gsd>[126]0)m)?(\.jp2)?")
# Before compact naming the scene classification was S2A_USER_SCL_L2A_TL_..._T32TNM_20m.
_OLD_SCL = re.compile(r"S2[A-D]_\w{4}_SCL_L2A_\w+_(?P<gsd>[126]0)m(\.jp2)?")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


@dataclasses.dataclass(frozen=True)
class Tile:
    """One tile of a product: where its files lie."""

    tile: str
    """MGRS id: "T33UUB"."""
    folder: str
    """GRANULE/..., relative to the product, as all names here."""
    images: Mapping[tuple[str, int], tuple[str, ...]]
    """(band or "SCL", GSD [m]) -> names that its JP2 may have; the first that exists is it."""


@dataclasses.dataclass(frozen=True)
class Product:
    """What the XML of a product says."""

    name: str
    level: str
    """"L1C" or "L2A"."""
    baseline: str
    """Processing baseline: "04.00"."""
    spacecraft: str
    """"S2A"; empty where it is not said."""
    time: str
    """Start of the acquisition, ISO 8601, UTC."""
    offset: Mapping[str, float]
    """Band -> what to add to its DN: RADIO_ADD_OFFSET or BOA_ADD_OFFSET; all 0 before 04.00."""
    quantification: float
    """Reflectance 1 is this many DN."""
    synthetic: bool
    """Whether the XML says that the pixels are made up (synthetic_product.py)."""
    tiles: tuple[Tile, ...]


@dataclasses.dataclass(frozen=True)
class Grid:
    """The pixels of one GSD of a tile."""

    shape: tuple[int, int]
    """(y, x) [px]."""
    transform: tuple[float, float, float, float, float, float]
    """Affine, pixel -> CRS [m]."""


@dataclasses.dataclass(frozen=True)
class TileFacts:
    """What the XML of a tile says."""

    time: str
    """Sensing time, ISO 8601, UTC; empty where it is not said."""
    crs: str
    """"EPSG:32633"."""
    grids: Mapping[int, Grid]
    """GSD [m] -> grid."""
    masks: Mapping[str, tuple[str, ...]]
    """"MSK_CLASSI", "MSK_CLOUDS" -> names that its file may have."""


def parse(data: bytes, where: object) -> Element:
    """The root of an XML document, namespaces taken off; document types and entities are refused.

    Raises:
        DataError: not XML, damaged, or with a document type.
    """
    from defusedxml import ElementTree

    try:
        root: Element = ElementTree.fromstring(data, forbid_dtd=True)
    except (ParseError, ValueError, LookupError) as error:
        raise DataError(f"{where}: damaged XML, or with entities: {error!r}") from error
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def read_product(files: ProductFiles) -> Product:
    """What the product's XML says.

    Raises:
        DataError: damaged, or something is missing that the pixels' meaning hangs on.
    """
    file = files.get(files.xml)
    root = parse(file.read_xml(), file)
    match = re.fullmatch(r"Level-(1C|2A)_User_Product", root.tag)
    if not match:
        raise DataError(f"{file}: root {root.tag}; expected Level-1C_User_Product or Level-2A_...")
    level = f"L{match[1]}"
    if f"L{match[1]}" not in files.xml:
        raise DataError(f"{file}: {level} inside; expected what the name says")
    baseline = _one(file, root, r"\d\d\.\d\d", "PROCESSING_BASELINE")
    _check_special_values(file, root)
    tiles = tuple(_tiles(file, root, level))
    if not tiles:
        raise DataError(f"{file}: no Granule with a granuleIdentifier; expected one a tile")
    spacecraft = _one(file, root, r"Sentinel-2[A-D]", "SPACECRAFT_NAME")
    return Product(
        name=_name(files, root),
        level=level,
        baseline=baseline,
        spacecraft=spacecraft.replace("Sentinel-2", "S2"),
        time=_one(file, root, _TIME.pattern, "PRODUCT_START_TIME"),
        offset=_offsets(file, root, level, baseline),
        quantification=_quantification(file, root, level),
        synthetic="SYNTHETIC" in _texts(root, "DATATAKE_TYPE"),
        tiles=tiles,
    )


def read_tile(files: ProductFiles, product: Product, tile: Tile) -> TileFacts:
    """What the XML of a tile says, held against its name.

    Raises:
        DataError: missing, damaged, or of another tile.
    """
    name = tile.folder.rpartition("/")[2]
    old = f"{re.sub(r'_N[0-9.]+$', '', name).replace('_MSI_', '_MTD_', 1)}.xml"
    file = files.find(f"{tile.folder}/MTD_TL.xml", f"{tile.folder}/{old}")
    if file is None:
        raise DataError(f"{files.path}: no file {tile.folder}/MTD_TL.xml or {old}")
    root = parse(file.read_xml(), file)
    if root.tag != f"Level-{product.level[1:]}_Tile_ID":
        raise DataError(f"{file}: root {root.tag}; expected Level-{product.level[1:]}_Tile_ID")
    identifier = "TILE_ID_2A" if root.find(".//TILE_ID_2A") is not None else "TILE_ID"
    _one(file, root, rf"\w+_{tile.tile}_N\d\d\.\d\d", identifier)
    # The tile's name holds its UTM zone, and letters from N on are north of the equator.
    zone, north = tile.tile[1:3], tile.tile[3] >= "N"
    crs = _one(file, root, rf"EPSG:32{'6' if north else '7'}{zone}", "HORIZONTAL_CS_CODE")
    times = [text for text in _texts(root, "SENSING_TIME") if _TIME.fullmatch(text)]
    grids = {gsd: _grid(file, root, gsd) for gsd in sentinel2.GSDS.values()}
    return TileFacts(times[0] if times else "", crs, grids, dict(_masks(file, root, tile)))


def _texts(root: Element, *names: str) -> list[str]:
    """Texts of all elements of these names."""
    return [(e.text or "").strip() for e in root.iter() if e.tag in names]


def _one(file: ProductFile, root: Element, pattern: str, *names: str) -> str:
    """The one text that elements of these names have.

    Raises:
        DataError: none, several that differ, or not of the pattern.
    """
    found = sorted(set(_texts(root, *names)))
    if len(found) != 1 or not re.fullmatch(pattern, found[0]):
        raise DataError(
            f"{file}: {' or '.join(names)}: found {', '.join(map(repr, found)) or 'none'}; "
            f"expected one like {pattern}"
        )
    return found[0]


def _name(files: ProductFiles, root: Element) -> str:
    """The product's name: by its XML, else the file's."""
    for text in _texts(root, "PRODUCT_URI", "PRODUCT_URI_2A"):
        name = text.removesuffix(".SAFE")
        if re.fullmatch(r"S2[A-D]_\w+", name):
            return name
    return re.sub(r"\.(SAFE|zip)\b", "", files.path.name, flags=re.IGNORECASE)


def _check_special_values(file: ProductFile, root: Element) -> None:
    """No data and saturated must be what all our code takes them for: 0 and 65535."""
    found = {}
    for element in root.iter("Special_Values"):
        key = element.findtext("SPECIAL_VALUE_TEXT", "").strip()
        found[key] = element.findtext("SPECIAL_VALUE_INDEX", "").strip()
    expected = {"NODATA": str(sentinel2.NO_DATA), "SATURATED": str(sentinel2.SATURATED)}
    if not expected.items() <= found.items():
        raise DataError(f"{file}: special values {found}; expected {expected}")


def _offsets(file: ProductFile, root: Element, level: str, baseline: str) -> dict[str, float]:
    """Offset by band.

    Raises:
        DataError: missing (for a band, or all where the baseline needs them), twice, or no number.
    """
    tag = "RADIO_ADD_OFFSET" if level == "L1C" else "BOA_ADD_OFFSET"
    bands = [b for b in sentinel2.BANDS if (level, b) != ("L2A", "B10")]
    found: dict[str, float] = {}
    for element in root.iter(tag):
        key, text = element.get("band_id", ""), (element.text or "").strip()
        if key in found or not _NUMBER.fullmatch(text) or not 0 <= -float(text) < 10_000:
            raise DataError(
                f"{file}: {tag} band_id {key!r} {text!r}; expected a number from -9999 to 0, "
                "one a band"
            )
        found[key] = float(text)
    if not found:
        if OFFSET_BASELINE <= baseline != TOOLBOX_BASELINE:
            raise DataError(
                f"{file}: no {tag}; expected one a band, since the processing baseline is "
                f"{baseline} and has had offsets from {OFFSET_BASELINE}"
            )
        return dict.fromkeys(bands, 0.0)
    missing = [b for b in bands if str(sentinel2.BANDS[b].native_order) not in found]
    if missing:
        raise DataError(f"{file}: no {tag} of {', '.join(missing)}; found band_id {sorted(found)}")
    return {band: found[str(sentinel2.BANDS[band].native_order)] for band in bands}


def _quantification(file: ProductFile, root: Element, level: str) -> float:
    """DN of reflectance 1: 10000, in the first products 1000."""
    names = ["QUANTIFICATION_VALUE"]
    if level == "L2A":
        names = ["BOA_QUANTIFICATION_VALUE", "L2A_BOA_QUANTIFICATION_VALUE"]
    return float(_one(file, root, r"10000?(\.0+)?", *names))


def _tiles(file: ProductFile, root: Element, level: str) -> Iterator[Tile]:
    """The tiles that a product lists, in its order."""
    seen = set()
    for element in root.iter():
        identifier = element.get("granuleIdentifier")
        if element.tag not in ("Granule", "Granules") or identifier is None:
            continue
        match = re.fullmatch(rf"\w+_{_TILE}(_N\d\d\.\d\d)?", identifier)
        if not match:
            raise DataError(f"{file}: granuleIdentifier {identifier!r}; expected ..._T33UUB_N02.06")
        tile = f"T{match[1]}"
        texts = _texts(element, "IMAGE_FILE", "IMAGE_ID", "IMAGE_FILE_2A", "IMAGE_ID_2A")
        folders: set[str] = set()
        images: dict[tuple[str, int], tuple[str, ...]] = {}
        for text in texts:
            check_name(file, text)
            key = _image_key(text.rpartition("/")[2], level)
            if "/IMG_DATA/" in text:
                folders.add(text.partition("/IMG_DATA/")[0])
                names = [text]
            else:
                folder = f"GRANULE/{identifier}"
                folders.add(folder)
                subfolders = [f"/R{key[1]}m", ""] if key and level == "L2A" else [""]
                names = [f"{folder}/IMG_DATA{sub}/{text}" for sub in subfolders]
            if key is not None:
                names = [f"{name.removesuffix('.jp2')}.jp2" for name in names]
                images[key] = (*images.get(key, ()), *names)
        if len(folders) != 1 or tile in seen:
            raise DataError(f"{file}: {tile}: images in {sorted(folders)}; expected one folder")
        seen.add(tile)
        yield Tile(tile, folders.pop(), images)


def _image_key(name: str, level: str) -> tuple[str, int] | None:
    """(band, GSD) of an image's name; None for previews, aerosol, water vapour."""
    if match := _OLD_SCL.fullmatch(name):
        return "SCL", int(match["gsd"])
    match = _IMAGE.fullmatch(name)
    if not match:
        return None
    if level == "L1C":
        return (match["band"], sentinel2.BANDS[match["band"]].gsd) if not match["gsd"] else None
    return (match["band"], int(match["gsd"])) if match["gsd"] else None


def _grid(file: ProductFile, root: Element, gsd: int) -> Grid:
    """Size and place of one GSD."""

    def read(tag: str, *fields: str) -> list[int]:
        found = [e for e in root.iter(tag) if e.get("resolution") == str(gsd)]
        texts = [found[0].findtext(f, "").strip() for f in fields] if len(found) == 1 else []
        if not texts or not all(re.fullmatch(r"-?\d{1,8}(\.0+)?", text) for text in texts):
            raise DataError(f"{file}: {tag} {gsd}: found {texts}; expected {', '.join(fields)}")
        return [int(float(text)) for text in texts]

    height, width = read("Size", "NROWS", "NCOLS")
    x, y, x_step, y_step = read("Geoposition", "ULX", "ULY", "XDIM", "YDIM")
    if not (0 < height <= LARGEST_SIZE and 0 < width <= LARGEST_SIZE):
        raise DataError(f"{file}: size {height} x {width} px; expected 1 to {LARGEST_SIZE}")
    if (x_step, y_step) != (gsd, -gsd):
        raise DataError(f"{file}: XDIM {x_step}, YDIM {y_step}; expected {gsd}, {-gsd}")
    return Grid((height, width), (float(gsd), 0.0, float(x), 0.0, float(-gsd), float(y)))


def _masks(file: ProductFile, root: Element, tile: Tile) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names of the cloud masks' files."""
    suffixes: dict[str, Callable[[str], str]] = {
        "MSK_CLASSI": lambda name: f"{name.removesuffix('.jp2')}.jp2",
        "MSK_CLOUDS": lambda name: f"{name.removesuffix('.gml')}.gml",
    }
    for element in root.iter("MASK_FILENAME"):
        kind, text = element.get("type", ""), (element.text or "").strip()
        if kind in suffixes and text:
            check_name(file, text)
            name = text if "/" in text else f"{tile.folder}/QI_DATA/{text}"
            yield kind, (suffixes[kind](name),)
