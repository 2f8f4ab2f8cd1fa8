"""Names and XML of the products that synthetic_product writes."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from data_pipelines import sentinel2

# Readers (GDAL's too) know a product by this address and by the prefix n1.
ADDRESS = "https://psd-14.sentinel2.eo.esa.int/PSD"
# Offset of every product since baseline 04.00 [DN]; see sentinel2.dn_to_reflectance.
OFFSET = -1000
ORBIT, ABSOLUTE_ORBIT = 22, 15_757
NAMES = {"S2A": "Sentinel-2A", "S2B": "Sentinel-2B", "S2C": "Sentinel-2C"}


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a product's names and XML say; arguments as synthetic_product.write_product has them."""

    level: str
    baseline: str
    spacecraft: str
    time: datetime.datetime
    given_offset: int | None
    compact: bool
    synthetic: bool
    tiles: tuple[str, ...]

    @property
    def offset(self) -> int:
        """What the stored values must be given to be reflectance x 10000 [DN]."""
        if self.given_offset is not None:
            return self.given_offset
        return OFFSET if self.baseline >= "04.00" else 0

    @property
    def has_offsets(self) -> bool:
        """Whether the XML lists offsets."""
        return self.given_offset is not None or self.baseline >= "04.00"

    @property
    def stamp(self) -> str:
        """Sensing time as in file names."""
        return f"{self.time:%Y%m%dT%H%M%S}"

    @property
    def product(self) -> str:
        """Name of the product without .SAFE."""
        if self.compact:
            number = self.baseline.replace(".", "")
            return (
                f"{self.spacecraft}_MSI{self.level}_{self.stamp}_N{number}_R{ORBIT:03d}_"
                f"{self.tiles[0]}_{self.stamp}"
            )
        return (
            f"{self.spacecraft}_OPER_PRD_MSI{self.level}_PDMC_{self.stamp}_R{ORBIT:03d}_"
            f"V{self.stamp}_{self.stamp}"
        )

    @property
    def product_file(self) -> str:
        """Name of the product's XML."""
        if self.compact:
            return f"MTD_MSI{self.level}.xml"
        return f"{self.product.replace('PRD_MSI', 'MTD_SAF')}.xml"

    def tile_id(self, tile: str) -> str:
        """Name of a granule in the XML; in the older naming that of its folder, too."""
        return (
            f"{self.spacecraft}_OPER_MSI_{self.level}_TL_MTI__{self.stamp}_"
            f"A{ABSOLUTE_ORBIT:06d}_{tile}_N{self.baseline}"
        )

    def granule(self, tile: str) -> str:
        """Name of a granule's folder."""
        if self.compact:
            return f"{self.level}_{tile}_A{ABSOLUTE_ORBIT:06d}_{self.stamp}"
        return self.tile_id(tile)

    def granule_file(self, tile: str) -> str:
        """Name of a granule's XML."""
        if self.compact:
            return "MTD_TL.xml"
        return f"{self.tile_id(tile)[: -len('_N02.06')].replace('_MSI_', '_MTD_')}.xml"

    def image_names(self, tile: str) -> dict[tuple[str, int], str]:
        """(band, gsd) -> path of its image in the product, without suffix, in the XML's order."""
        folder = f"GRANULE/{self.granule(tile)}/IMG_DATA"
        bands = [(band.name, band.gsd) for band in sentinel2.BANDS.values()]
        if self.level == "L2A":
            bands = [(name, gsd) for name, gsd in bands if name != "B10"]
            bands = sorted([*bands, ("SCL", 20), ("SCL", 60)], key=lambda band: band[1])
            return {
                (band, gsd): f"{folder}/R{gsd}m/{tile}_{self.stamp}_{band}_{gsd}m"
                for band, gsd in bands
            }
        stem = f"{tile}_{self.stamp}"
        if not self.compact:
            stem = self.tile_id(tile)[: -len("_N02.06")]
        return {(band, gsd): f"{folder}/{stem}_{band}" for band, gsd in bands}

    def cloud_file(self, tile: str) -> str:
        """Name of the L1C cloud mask: polygons before baseline 04.00, an image since."""
        if self.baseline >= "04.00":
            return "MSK_CLASSI_B00.jp2"
        if self.compact:
            return "MSK_CLOUDS_B00.gml"
        stem = self.tile_id(tile)[: -len("_N02.06")].replace("_MSI_L1C_TL_", "_MSK_CLOUDS_")
        return f"{stem}_B00_MSIL1C.gml"


def product_xml(facts: Facts, images: Mapping[str, Iterable[str]]) -> bytes:
    """MTD_MSIL1C.xml or MTD_MSIL2A.xml; `images`: tile -> paths of its images without suffix."""
    root, info = _root(f"Level-{facts.level[1:]}_User_Product", "User_Product_Level-", facts)
    product = _add(info, "Product_Info")
    # Milliseconds and a Z, as the products have it.
    time = f"{facts.time.isoformat(timespec='milliseconds')}Z"
    for name, text in (
        ("PRODUCT_START_TIME", time),
        ("PRODUCT_STOP_TIME", time),
        ("PRODUCT_URI", f"{facts.product}.SAFE"),
        ("PROCESSING_LEVEL", f"Level-{facts.level[1:]}"),
        ("PRODUCT_TYPE", f"S2MSI{facts.level[1:]}"),
        ("PROCESSING_BASELINE", facts.baseline),
        ("GENERATION_TIME", time),
    ):
        _add(product, name, text)
    identifier = f"G{facts.spacecraft}_{facts.stamp}_{ABSOLUTE_ORBIT:06d}_N{facts.baseline}"
    take = _add(product, "Datatake", datatakeIdentifier=identifier)
    _add(take, "SPACECRAFT_NAME", NAMES[facts.spacecraft])
    _add(take, "DATATAKE_TYPE", "SYNTHETIC" if facts.synthetic else "INS-NOBS")
    _add(take, "DATATAKE_SENSING_START", time)
    _add(take, "SENSING_ORBIT_NUMBER", ORBIT)
    _add(take, "SENSING_ORBIT_DIRECTION", "DESCENDING")
    options = _add(product, "Query_Options", completeSingleTile="true")
    if facts.compact:
        _add(options, "PRODUCT_FORMAT", "SAFE_COMPACT")
    else:
        bands = _add(options, "Band_List")
        for band in sentinel2.BANDS:
            _add(bands, "BAND_NAME", band.replace("B0", "B"))
    organisation = _add(product, "Product_Organisation")
    for tile, paths in images.items():
        # Named "Granules" and without folders in the older naming.
        granule = _add(
            _add(organisation, "Granule_List"),
            "Granule" if facts.compact else "Granules",
            datastripIdentifier=facts.tile_id(tile).replace("_TL_", "_DS_"),
            granuleIdentifier=facts.tile_id(tile),
            imageFormat="JPEG2000",
        )
        for path in paths:
            if facts.compact:
                _add(granule, "IMAGE_FILE", path)
            else:
                _add(granule, "IMAGE_ID", path.rpartition("/")[2])
    _add_image_characteristics(info, facts)
    return _text(root)


def _add_image_characteristics(info: ElementTree.Element, facts: Facts) -> None:
    """Special values, quantification and offsets."""
    image = _add(info, "Product_Image_Characteristics")
    for name, value in (("NODATA", 0), ("SATURATED", 65_535)):
        special = _add(image, "Special_Values")
        _add(special, "SPECIAL_VALUE_TEXT", name)
        _add(special, "SPECIAL_VALUE_INDEX", value)
    kind = "RADIO" if facts.level == "L1C" else "BOA"
    if kind == "RADIO":
        _add(image, "QUANTIFICATION_VALUE", sentinel2.QUANTIFICATION, unit="none")
    else:
        values = _add(image, "QUANTIFICATION_VALUES_LIST")
        _add(values, "BOA_QUANTIFICATION_VALUE", sentinel2.QUANTIFICATION, unit="none")
    if facts.has_offsets:
        name = "Radiometric_Offset_List" if kind == "RADIO" else "BOA_ADD_OFFSET_VALUES_LIST"
        offsets = _add(image, name)
        for band in sentinel2.BANDS.values():
            _add(offsets, f"{kind}_ADD_OFFSET", facts.offset, band_id=str(band.native_order))


def granule_xml(
    facts: Facts,
    tile: str,
    epsg: int,
    corner: tuple[float, float],
    size: tuple[int, int],
    masks: Iterable[str] = (),
) -> bytes:
    """MTD_TL.xml; `size` (y, x) [px of 10 m], `masks` files in QI_DATA."""
    root, info = _root(f"Level-{facts.level[1:]}_Tile_ID", "S2_PDI_Level-", facts)
    _add(info, "TILE_ID", facts.tile_id(tile), metadataLevel="Brief")
    time = f"{facts.time.isoformat(timespec='milliseconds')}Z"
    _add(info, "SENSING_TIME", time, metadataLevel="Standard")
    place = _add(_add(root, "n1:Geometric_Info"), "Tile_Geocoding", metadataLevel="Brief")
    hemisphere = "N" if epsg < 32_700 else "S"
    _add(place, "HORIZONTAL_CS_NAME", f"WGS84 / UTM zone {epsg % 100}{hemisphere}")
    _add(place, "HORIZONTAL_CS_CODE", f"EPSG:{epsg}")
    for gsd in (10, 20, 60):
        grid = _add(place, "Size", resolution=str(gsd))
        _add(grid, "NROWS", size[0] * 10 // gsd)
        _add(grid, "NCOLS", size[1] * 10 // gsd)
    for gsd in (10, 20, 60):
        grid = _add(place, "Geoposition", resolution=str(gsd))
        for name, value in zip(("ULX", "ULY", "XDIM", "YDIM"), (*corner, gsd, -gsd), strict=True):
            _add(grid, name, f"{value:.10g}")
    quality = _add(root, "n1:Quality_Indicators_Info", metadataLevel="Standard")
    files = _add(quality, "Pixel_Level_QI", geometry="FULL_RESOLUTION")
    folder = f"GRANULE/{facts.granule(tile)}/QI_DATA/" if facts.compact else ""
    for mask in masks:
        kind = "MSK_CLOUDS" if "MSK_CLOUDS" in mask else "MSK_CLASSI"
        _add(files, "MASK_FILENAME", folder + mask, type=kind)
    return _text(root)


def cloud_gml(cloud: NDArray[np.bool_], epsg: int, corner: tuple[float, float], gsd: int) -> bytes:
    """MSK_CLOUDS_B00.gml: the outlines of the opaque clouds, holes too, in the CRS [m].

    Without clouds the list is empty, as in real products.
    """
    import rasterio.features
    from affine import Affine

    transform = Affine(gsd, 0, corner[0], 0, -gsd, corner[1])
    root = ElementTree.Element(
        "eop:Mask",
        {
            "xmlns:eop": "http://www.opengis.net/eop/2.0",
            "xmlns:gml": "http://www.opengis.net/gml/3.2",
            "gml:id": "MSK_CLOUDS",
        },
    )
    if cloud.any():
        name = f"urn:ogc:def:crs:EPSG:8.7.1:{epsg}"
        envelope = _add(_add(root, "gml:boundedBy"), "gml:Envelope", srsName=name)
        height, width = cloud.shape
        x, y = corner
        _add(envelope, "gml:lowerCorner", f"{x:.10g} {y - height * gsd:.10g}")
        _add(envelope, "gml:upperCorner", f"{x + width * gsd:.10g} {y:.10g}")
    members = _add(root, "eop:maskMembers")
    shapes = rasterio.features.shapes(cloud.astype(np.uint8), cloud, transform=transform)
    for i, (shape, _) in enumerate(shapes):
        member = _add(members, "eop:MaskFeature", **{"gml:id": f"OPAQUE.{i}"})
        _add(member, "eop:maskType", "OPAQUE", codeSpace="urn:gs2:S2PDGS:maskType")
        extent = _add(member, "eop:extentOf")
        polygon = _add(extent, "gml:Polygon", **{"gml:id": f"OPAQUE.{i}_Polygon"})
        for ring, points in enumerate(shape["coordinates"]):
            side = _add(polygon, "gml:interior" if ring else "gml:exterior")
            text = " ".join(f"{value:.10g}" for point in points for value in point)
            _add(_add(side, "gml:LinearRing"), "gml:posList", text, srsDimension="2")
    return _text(root)


def manifest_xml(folder: pathlib.Path, facts: Facts) -> bytes:
    """manifest.safe: size and checksum of each file that lies in the product's folder."""
    # SHA3 since baseline 04.00. Source: the products themselves.
    kind, name = ("SHA3-256", "sha3_256") if facts.baseline >= "04.00" else ("MD5", "md5")
    root = ElementTree.Element("xfdu:XFDU", {"xmlns:xfdu": "urn:ccsds:schema:xfdu:1"})
    section = _add(root, "dataObjectSection")
    for i, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        item = _add(section, "dataObject", ID=f"File{i}")
        size = str(file.stat().st_size)
        stream = _add(item, "byteStream", mimeType="application/octet-stream", size=size)
        href = f"./{file.relative_to(folder).as_posix()}"
        _add(stream, "fileLocation", locatorType="URL", href=href)
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, lambda: hashlib.new(name, usedforsecurity=False))
        _add(stream, "checksum", digest.hexdigest(), checksumName=kind)
    return _text(root)


def _root(name: str, schema: str, facts: Facts) -> tuple[ElementTree.Element, ElementTree.Element]:
    """Root and General_Info. Prefixes are written out: readers look for `<n1:` in the text."""
    suffix = "" if schema.startswith("User") else "_Tile_Metadata"
    address = f"{ADDRESS}/{schema}{facts.level[1:]}{suffix}.xsd"
    root = ElementTree.Element(f"n1:{name}", {"xmlns:n1": address})
    return root, _add(root, "n1:General_Info")


def _add(parent: ElementTree.Element, name: str, text: Any = None, **attributes: str) -> Any:
    """A new last child."""
    child = ElementTree.SubElement(parent, name, attributes)
    if text is not None:
        child.text = str(text)
    return child


def _text(root: ElementTree.Element) -> bytes:
    ElementTree.indent(root)
    text: bytes = ElementTree.tostring(root, "UTF-8", xml_declaration=True)
    return text + b"\n"
