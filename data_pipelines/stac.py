"""STAC items of Sentinel-2 scenes: assets on this machine or anywhere that GDAL reads from; lazy.

Catalogues differ. Earth Search: assets "blue", "rededge1", "nir08" (COG) and "blue-jp2". Planetary
Computer: "B02" (COG), no scales. Copernicus Data Space: "B02_10m", "B02_20m", ... (JP2, STAC 1.1).
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipelines import band_files, band_metadata, geotiff, safe_xml, sentinel2
from data_pipelines.band_files import BandFile
from data_pipelines.band_metadata import OFFSET_DAY, Scale
from data_pipelines.granule import Granule
from data_pipelines.spec import DataError

# GDAL's virtual file systems by the scheme of an address. Source: GDAL, "Virtual File Systems".
SCHEMES = {
    "https": "/vsicurl/https://",
    "http": "/vsicurl/http://",
    "s3": "/vsis3/",
    "gs": "/vsigs/",
    "az": "/vsiaz/",
}
# Earth Search takes the offset out of its COGs, and says so. Older items have the second name.
# Some items say so wrongly (github.com/Element84/earth-search, issues 66 and 71): their pixels
# alone could tell, so facts["offset_from"] names what was believed.
_APPLIED = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
_BASELINES = ("s2:processing_baseline", "sentinel:processing_baseline", "processing:version")
_TILES = ("s2:mgrs_tile", "s2:tile_id", "grid:code", "mgrs:tile")


def is_item(path: pathlib.Path) -> bool:
    """Whether a file is JSON that calls itself a STAC item."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("type") == "Feature" and "assets" in values


def open_item(path: pathlib.Path) -> Iterator[Granule]:
    """The granule of one item: an asset a band, that of the native GSD where there are several.

    Where the offset comes from, the first that says something: Earth Search's boa_offset_applied
    (true: none is left in its COGs); scale and offset of the asset (raster:bands, or the fields of
    STAC 1.1); scale and offset tags of the file; the processing baseline (-1000 from 04.00 on, as
    every product states, else 0); a day before 2022-01-25 (0). facts["offset_from"] says which.

    Raises:
        DataError: no STAC item, a band missing, unreadable, of another grid or CRS than the item
            says, or nothing that tells the offset.
    """
    item = _read(path)
    with _refusing(path):
        facts = read_facts(item)
        candidates = _find_bands(path, item)
    files = {band: _choose(path, band, found) for band, found in candidates.items()}
    granule = band_files.open_granule(
        path,
        files,
        scene=str(facts.get("product") or item.id),
        facts=facts,
        fallback=_fallback(facts),
    )
    _check(path, item, granule)
    yield granule


def read_scales(
    path: pathlib.Path,
) -> tuple[dict[str, Any], dict[str, tuple[Scale | None, str]]]:
    """Facts of an item, and what stated_scale says by file name of each asset that states one.

    Raises:
        DataError: no STAC item, or a scale that is no number.
    """
    item = _read(path)
    stated = {}
    with _refusing(path):
        for asset in item.assets.values():
            scale = stated_scale(path, item, asset)
            if scale[0] is not None:
                stated[asset.href.rpartition("/")[2]] = scale
        return read_facts(item), stated


@contextlib.contextmanager
def _refusing(path: pathlib.Path) -> Iterator[None]:
    """Values of other types than the standard has, which pystac leaves unchecked, as DataError."""
    try:
        yield
    except DataError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not readable as a STAC item: {error!r}") from error


def _read(path: pathlib.Path) -> Any:
    """The item, by pystac; its links are not followed."""
    import pystac

    try:
        values = json.loads(path.read_bytes())
        item = pystac.Item.from_dict(values, preserve_dict=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not readable as a STAC item: {error!r}") from error
    except (pystac.STACError, pystac.STACTypeError) as error:
        raise DataError(f"{path}: not readable as a STAC item: {error}") from error
    return item


def _find_bands(path: pathlib.Path, item: Any) -> dict[str, list[BandFile]]:
    """Band or "SCL" -> its assets."""
    found: dict[str, list[BandFile]] = {}
    for key, asset in sorted(item.assets.items()):
        name, gsd = band_of(key, asset)
        if name is not None:
            stated, told_by = stated_scale(path, item, asset)
            file = BandFile(gdal_path(path, asset.href), gsd, stated, told_by)
            found.setdefault(name, []).append(file)
    return found


def gdal_path(item: pathlib.Path, href: str) -> str:
    """What GDAL opens for an asset's address; a relative one counts from the item's folder."""
    if href.startswith("/vsi"):
        return href
    scheme, separator, rest = href.partition("://")
    if separator and scheme in SCHEMES:
        return SCHEMES[scheme] + rest
    if scheme == "file":
        return rest
    return str(item.parent / href)


def band_of(key: str, asset: Any) -> tuple[str | None, int | None]:
    """(band or "SCL", size of its pixels [m] where it is said) of an asset; None for another."""
    fields = asset.extra_fields
    bands = [b for b in fields.get("bands") or fields.get("eo:bands") or [] if isinstance(b, dict)]
    kind = f"{asset.media_type or ''} {asset.href}".lower()
    if len(bands) > 1 or not re.search(r"jp2|tif", kind):
        return None, None
    stem = key.removesuffix("-jp2")
    name, gsd = band_files.parse_stem(stem)
    if name is None and bands:
        texts = [bands[0].get(k) for k in ("name", "eo:common_name", "common_name")]
        names = [band_files.parse_stem(str(text))[0] for text in texts if text]
        name = next((n for n in names if n in sentinel2.BANDS), None)
    raster = (fields.get("raster:bands") or [{}])[0]
    said = fields.get("gsd") or raster.get("spatial_resolution")
    said = said or fields.get("raster:spatial_resolution")
    in_path = re.search(r"[_/]R?([126]0)m[./]", asset.href)
    if gsd is None and in_path:
        gsd = int(in_path[1])
    if gsd is None and isinstance(said, int | float):
        gsd = int(said)
    return name, gsd


def stated_scale(path: pathlib.Path, item: Any, asset: Any) -> tuple[Scale | None, str]:
    """((offset [DN], quantification) that the item states for an asset or None, where it does).

    Raises:
        DataError: scale or offset is no number.
    """
    fields = asset.extra_fields
    raster = dict((fields.get("raster:bands") or [{}])[0])
    for place in (fields, (fields.get("bands") or [{}])[0]):
        for key in ("scale", "offset"):
            if f"raster:{key}" in place:
                raster[key] = place[f"raster:{key}"]
    told_by = "the item's assets"
    # The JP2s beside Earth Search's COGs are ESA's own: nothing was taken out of them.
    if not asset.href.lower().endswith(".jp2"):
        for key in _APPLIED:
            if item.properties.get(key) is True:
                raster["offset"], told_by = 0.0, key
    # A scale alone says nothing of an offset, whatever the extension's default is: there are
    # catalogues that never state one.
    if "offset" not in raster:
        return None, ""
    try:
        scale, offset = float(raster.get("scale", 1e-4)), float(raster["offset"])
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: {asset.href}: expected scale and offset: {error}") from error
    return geotiff.read_scale(f"{path}: {asset.href}", scale, offset), told_by


def _choose(path: pathlib.Path, band: str, files: list[BandFile]) -> BandFile:
    """One asset of a band: of the native GSD, and a COG rather than the JP2 of the same pixels."""
    cogs = [file for file in files if not str(file.path).lower().endswith(".jp2")]
    for group in (cogs, files):
        gsds = {file.gsd for file in group}
        native = sentinel2.BANDS[band].gsd if band in sentinel2.BANDS else 20
        if group and (native in gsds or None in gsds):
            return band_files.native(path, band, group)
    return band_files.native(path, band, files)


def _fallback(facts: Mapping[str, Any]) -> tuple[Scale, str]:
    """(Scale of bands whose asset and file state none, what offset_from says)."""
    scale = band_metadata.rule(facts["baseline"]) if "baseline" in facts else None
    if scale is not None:
        return scale, f"processing baseline {facts['baseline']}"
    known = str(facts.get("time", "9999")) < OFFSET_DAY
    return band_metadata.NOTHING, f"a day before {OFFSET_DAY}" if known else band_metadata.ASSUMED


def read_facts(item: Any) -> dict[str, Any]:
    """Facts (see Granule) of an item's properties."""
    values = item.properties
    facts: dict[str, Any] = {}
    for text in (values.get("s2:product_uri"), item.id):
        facts = {**band_metadata.parse_product(str(text or "")), **facts}
    time = item.datetime or item.common_metadata.start_datetime
    if time is not None:
        facts["time"] = time.isoformat().replace("+00:00", "Z")
    platform = re.fullmatch(r"sentinel-?(2[a-d])", str(values.get("platform", "")).lower())
    if platform:
        facts["spacecraft"] = f"S{platform[1].upper()}"
    level = re.search(r"L(1C|2A)", f"{values.get('s2:product_type')} {item.id}".upper())
    level = level or re.search(r"L(1C|2A)", str(item.collection_id).upper().replace("-", ""))
    if level:
        facts.setdefault("level", f"L{level[1]}")
    for key in _TILES:
        match = re.search(r"(\d{1,2})([C-X][A-Z]{2})(?![A-Z])", str(values.get(key, "")))
        if match:
            facts.setdefault("tile", f"T{int(match[1]):02d}{match[2]}")
    parts = [values.get(f"mgrs:{key}") for key in ("utm_zone", "latitude_band", "grid_square")]
    if all(part is not None for part in parts):
        facts.setdefault("tile", f"T{int(parts[0]):02d}{parts[1]}{parts[2]}")
    for key in _BASELINES:
        match = re.fullmatch(r"0?(\d{1,2})\.(\d\d)", str(values.get(key, "")))
        if match:
            facts.setdefault("baseline", f"{int(match[1]):02d}.{match[2]}")
    return facts


def _check(path: pathlib.Path, item: Any, granule: Granule) -> None:
    """Hold the files' CRS against the item's, and refuse an offset that nothing tells."""
    code = item.properties.get("proj:code") or item.properties.get("proj:epsg")
    found = granule.cubes["gsd10"].attrs.get("crs")
    expected = f"EPSG:{str(code).removeprefix('EPSG:')}"
    if code is not None and found is not None and found != expected:
        raise DataError(f"{path}: files in {found}; the item says {expected}")
    if band_metadata.ASSUMED in granule.facts["offset_from"]:
        raise DataError(
            f"{path}: nothing tells the offset: found no scale and offset of the assets or in the "
            f"files, and no s2:processing_baseline; expected one of them since {OFFSET_DAY} (it is "
            f"{band_metadata.RULE_OFFSET:g} from baseline {safe_xml.OFFSET_BASELINE} on)"
        )
