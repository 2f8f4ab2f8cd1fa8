"""What metadata files and names tell of single-band files: facts, and the offsets of their DN."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

from data_pipelines import safe_files, safe_xml, sentinel2
from data_pipelines.spec import DataError

# (offset [DN], quantification): reflectance = (DN + offset) / quantification.
Scale = tuple[float, float]

# What every product since safe_xml.OFFSET_BASELINE states for every band [DN].
RULE_OFFSET = -1000.0
# First day of products of baseline 04.00.
OFFSET_DAY = "2022-01-25"
# (offset [DN], quantification) where nothing says another, and what facts then say.
NOTHING, ASSUMED = (0.0, float(sentinel2.QUANTIFICATION)), "nothing says one: 0"

_PRODUCT = re.compile(
    r"(?P<spacecraft>S2[A-D])_MSI(?P<level>L1C|L2A)_(?P<time>\d{8}T\d{6})_N(?P<baseline>\d{4})_R\d{3}"
    r"_(?P<tile>T\d\d[A-Z]{3})_\d{8}T\d{6}"
)
_TILE_ID = re.compile(
    r"(?P<spacecraft>S2[A-D])_\w{4}_MSI_(?P<level>L1C|L2A)_TL_\w+?_(?P<tile>T\d\d[A-Z]{3})"
    r"_N(?P<baseline>\d\d\.\d\d)"
)


def rule(baseline: str) -> Scale | None:
    """(offset [DN], quantification) of ESA's products of a baseline, "04.00".

    None for those of the toolbox on a user's machine, whose XML alone knows.
    """
    if baseline == safe_xml.TOOLBOX_BASELINE:
        return None
    offset = RULE_OFFSET if baseline >= safe_xml.OFFSET_BASELINE else 0.0
    return offset, float(sentinel2.QUANTIFICATION)


def parse_product(name: str) -> dict[str, str]:
    """Facts (see Granule) in the name of a product or the identifier of a tile; {} for another."""
    match = _PRODUCT.search(name) or _TILE_ID.search(name)
    if not match:
        return {}
    facts = match.groupdict()
    if "time" in facts:
        facts["product"] = match[0]
        facts["baseline"] = f"{facts['baseline'][:2]}.{facts['baseline'][2:]}"
        t = facts["time"]
        facts["time"] = f"{t[:4]}-{t[4:6]}-{t[6:11]}:{t[11:13]}:{t[13:]}Z"
    return facts


def read_metadata(
    path: pathlib.Path,
) -> tuple[dict[str, Any], dict[str, tuple[Scale | None, str]]]:
    """Facts, and ((offset, quantification), where from) by band or file name, of a folder's files.

    Raises:
        DataError: a file that should hold them is damaged, or lacks what it should say.
    """
    from data_pipelines import stac

    folders = [path]
    if path.name == "IMG_DATA":
        # <product>/GRANULE/<granule>/IMG_DATA
        folders += [path.resolve().parents[0], path.resolve().parents[2]]
    facts: dict[str, Any] = {}
    stated: dict[str, tuple[Scale | None, str]] = {}
    for folder in folders:
        facts = {**parse_product(folder.resolve().name), **facts}
        for name in ("MTD_TL.xml", "metadata.xml", "tileInfo.json"):
            if (folder / name).is_file():
                facts = {**facts, **_read_tile(folder / name)}
        if next(folder.glob("MTD_MSIL*.xml"), None) is not None:
            files = safe_files.find_product(folder)
            product = safe_xml.read_product(files)
            keys = ("level", "baseline", "spacecraft", "time")
            facts |= {key: getattr(product, key) for key in keys} | {"product": product.name}
            told_by = f"XML {files.xml}"
            scale = product.quantification
            stated = {band: ((v, scale), told_by) for band, v in product.offset.items()}
    items = [file for file in path.glob("*.json") if stac.is_item(file)]
    if not stated and len(items) == 1:
        more, stated = stac.read_scales(items[0])
        facts = {**more, **facts}
    return facts, stated


def _read_tile(file: pathlib.Path) -> dict[str, str]:
    """Facts of one tile's metadata: the baseline is in an identifier."""
    if file.suffix == ".xml":
        root = safe_xml.parse(safe_files.ProductFile(str(file)).read_xml(), file)
        facts = parse_product(root.findtext(".//TILE_ID") or "")
        time = root.findtext(".//SENSING_TIME")
        return facts | ({"time": time} if time else {})
    try:
        values = json.loads(file.read_bytes())
        facts = parse_product(str(values.get("productName", "")))
        facts.setdefault("time", str(values["timestamp"]))
        tile = f"T{int(values['utmZone']):02d}{values['latitudeBand']}{values['gridSquare']}"
        facts.setdefault("tile", tile)
    except RecursionError as error:
        raise DataError(f"{file}: not readable as tileInfo.json: nested too deeply") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{file}: not readable as tileInfo.json: {error!r}") from error
    return facts
