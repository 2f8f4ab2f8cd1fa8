"""Folders of single-band rasters, as public archives lay them out: lazy.

Known layouts: one folder (B01.jp2 ... B12.jp2: AWS sentinel-2-l1c; B02.tif or blue.tif: Earth
Search), R10m, R20m and R60m (AWS sentinel-2-l2a), and ESA's IMG_DATA with T33UUB_..._B02_10m.jp2.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_pipelines import geotiff, sentinel2
from data_pipelines.band_metadata import ASSUMED, NOTHING, OFFSET_DAY, Scale, read_metadata, rule
from data_pipelines.granule import Granule, build_cube, check_nesting, plane_of
from data_pipelines.safe_xml import OFFSET_BASELINE
from data_pipelines.spec import DataError

# Names that catalogues give to bands. Source: Earth Search's item assets (v1), and the STAC
# extension eo (v1 common_name "nir08", v2 "rededge071" ...). "rededge" alone names three bands.
COMMON_NAMES = {
    "coastal": "B01",
    "blue": "B02",
    "green": "B03",
    "red": "B04",
    "rededge1": "B05",
    "rededge2": "B06",
    "rededge3": "B07",
    "rededge071": "B05",
    "rededge075": "B06",
    "rededge078": "B07",
    "nir": "B08",
    "nir08": "B8A",
    "nir09": "B09",
    "cirrus": "B10",
    "swir16": "B11",
    "swir22": "B12",
}
# The band and, where it is said, the GSD at the end of a stem: "T33UUB_20170527T..._B02_10m".
_STEM = re.compile(r"(?:^|_)(?P<band>B\d\d|B8A|SCL)(?:_(?P<gsd>[126]0)m)?$", re.IGNORECASE)
# ESA's "T33UUB_20220602T102041_B02_10m.jp2".
_ESA_DAY = re.compile(r"^T\d\d[A-Z]{3}_(?P<year>\d{4})(?P<month>\d\d)(?P<day>\d\d)T\d{6}_")


class AssumedOffset(UserWarning):
    """Nothing says the offset of the DN in a folder; it is taken to be 0."""


@dataclasses.dataclass(frozen=True)
class BandFile:
    """One band in one file."""

    path: geotiff.GDALPath
    """A path on this machine, or GDAL's (/vsicurl/..., /vsis3/...)."""
    gsd: int | None = None
    """What its name or a catalogue says of the size of its pixels [m]; None for nothing."""
    stated: Scale | None = None
    """(offset [DN], quantification) that a catalogue states; None: none, see open_granule."""
    told_by: str = ""
    """Where in the catalogue, if it does."""

    @property
    def name(self) -> str:
        """Its last part."""
        return str(self.path).rpartition("/")[2]


def open_folder(path: pathlib.Path) -> Iterator[Granule]:
    """The granule of one folder of single-band files, each band at its native GSD.

    Where the offset comes from, the first that says something: a product's XML above IMG_DATA (or
    in the folder); a STAC item in the folder; scale and offset tags of the files; the processing
    baseline in a tile's metadata (MTD_TL.xml, metadata.xml, tileInfo.json) or in the name of the
    folder (-1000 from 04.00 on, else 0); else 0, but not for ESA's names of a day since
    OFFSET_DAY. facts["offset_from"] says which it was.

    Raises:
        DataError: nothing tells the offset, see above; a band missing, unreadable, of another
            type, or grids that do not nest.

    Warns:
        AssumedOffset: nothing says an offset, and the names no day.
    """
    candidates = find_files(path)
    facts, stated = read_metadata(path)
    files = {}
    for band, found in candidates.items():
        file = native(path, band, found)
        # By band in a product's XML, by file in a STAC item.
        scale, told_by = stated.get(band) or stated.get(file.name) or (None, "")
        files[band] = dataclasses.replace(file, stated=scale, told_by=told_by)
    scene = str(facts.get("product") or path.resolve().name)
    by_rule = rule(facts["baseline"]) if "baseline" in facts else None
    fallback = (NOTHING, ASSUMED)
    if by_rule is not None:
        fallback = (by_rule, f"processing baseline {facts['baseline']}")
    granule = open_granule(path, files, scene=scene, facts=facts, fallback=fallback)
    if ASSUMED in granule.facts["offset_from"]:
        _check_assumption(path, files["B02"])
    yield granule


def _check_assumption(path: pathlib.Path, file: BandFile) -> None:
    """Refuse ESA's files of a day from which all have an offset; warn of others.

    Raises:
        DataError: the day in the file's name is OFFSET_DAY or later.
    """
    missing = "no product's XML, no STAC item, no scale and offset in the files, no baseline"
    match = _ESA_DAY.search(file.name)
    if match and f"{match['year']}-{match['month']}-{match['day']}" >= OFFSET_DAY:
        raise DataError(
            f"{path}: nothing tells the offset of {file.name}: {missing}; expected one of them "
            f"since {OFFSET_DAY} (put the product's MTD_MSI*.xml or the tile's MTD_TL.xml beside)"
        )
    warnings.warn(
        f"{path}: nothing tells the offset of its DN ({missing}): taken to be 0, which is right "
        f"before baseline {OFFSET_BASELINE} only",
        AssumedOffset,
        stacklevel=4,
    )


def find_files(path: pathlib.Path) -> dict[str, list[BandFile]]:
    """Band (or "SCL") -> its files in a folder, in R10m, R20m and R60m below it, or in IMG_DATA."""
    found: dict[str, list[BandFile]] = {}
    folders = [path, *(path / name for name in ("R10m", "R20m", "R60m"))]
    for folder in (folder for folder in folders if folder.is_dir()):
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() not in (".jp2", ".tif", ".tiff") or not file.is_file():
                continue
            name, gsd = parse_stem(file.stem)
            if name and folder != path:
                gsd = int(folder.name[1:3])
            if name:
                found.setdefault(name, []).append(BandFile(file, gsd=gsd))
    return found


def parse_stem(stem: str) -> tuple[str | None, int | None]:
    """(band or "SCL", GSD that the name says [m]) of a file name without suffix, or of a key."""
    match = _STEM.search(stem)
    if match:
        name = match["band"].upper()
        known = name == "SCL" or name in sentinel2.BANDS
        return (name if known else None), int(match["gsd"]) if match["gsd"] else None
    return COMMON_NAMES.get(stem.lower()), None


def native(where: Any, band: str, files: Sequence[BandFile]) -> BandFile:
    """The one of several files of a band whose pixels have the native size; 20 m for SCL.

    Raises:
        DataError: none of them, or two.
    """
    gsd = sentinel2.BANDS[band].gsd if band in sentinel2.BANDS else 20
    # Names and catalogues are believed first: opening a remote file takes a while.
    said = [file for file in files if file.gsd == gsd]
    chosen = said or [file for file in files if file.gsd is None]
    if len(chosen) != 1 and not said:
        chosen = [file for file in chosen if pixel_size(file.path) == gsd]
    if len(chosen) != 1:
        found = ", ".join(str(file.path) for file in files)
        raise DataError(f"{where}: band {band}: found {found}; expected one file of {gsd} m pixels")
    return chosen[0]


def pixel_size(path: geotiff.GDALPath) -> float | None:
    """Size of a file's pixels [m]; None where it does not say."""
    with geotiff.open_file(path) as file:
        return None if file.transform.is_identity else round(abs(file.transform.a), 3)


def open_granule(
    where: Any,
    files: Mapping[str, BandFile],
    *,
    scene: str,
    facts: Mapping[str, Any],
    fallback: tuple[Scale, str],
) -> Granule:
    """A granule of single-band files.

    Args:
        where: what they belong to, for messages.
        files: band -> its file; "SCL" too where there is one. B01 and B09 may both be missing.
        scene: the acquisition.
        facts: see Granule.
        fallback: ((offset [DN], quantification), where they come from) of files for which neither a
            catalogue nor their own tags state them.

    Raises:
        DataError: a band missing, unreadable, of another type or extent, or grids do not nest.
    """
    wanted = [b for gsd in (10, 20) for b in sentinel2.bands_at(gsd)]
    if any(band in files for band in sentinel2.BANDS_60M):
        wanted += sentinel2.BANDS_60M
    missing = [band for band in wanted if band not in files]
    if missing:
        found = ", ".join(sorted(files)) or "none"
        raise DataError(
            f"{where}: no band {', '.join(missing)}; found {found}; expected {', '.join(wanted)}"
        )
    edge = geotiff.chunk_edge(files["B02"].path, 10)
    cubes, sources, synthetic = {}, set(), False
    for name, gsd in sentinel2.GSDS.items():
        bands = [band for band in sentinel2.bands_at(gsd) if band in wanted]
        if bands:
            headers = [_read_header(files[band].path, band, gsd) for band in bands]
            synthetic |= headers[0]["synthetic"]
            scales = []
            for band, header in zip(bands, headers, strict=True):
                _check(where, gsd, (bands[0], headers[0]), (band, header))
                scale, told_by = _scale(files[band], header, fallback)
                scales.append(scale)
                sources.add(told_by)
            cubes[name] = _open_cube(files, bands, gsd, edge, headers[0], scales)
    check_nesting(where, cubes)
    masks = _open_masks(where, files.get("SCL"), cubes["gsd20"], edge)
    plane, origin = plane_of(cubes["gsd10"]) or ("", (0, 0))
    place = str(facts.get("tile") or scene)
    facts = {**facts, "offset_from": "; ".join(sorted(sources))}
    return Granule(scene, scene, place, cubes, origin, plane, synthetic, facts, masks)


def _read_header(path: geotiff.GDALPath, band: str, gsd: int) -> dict[str, Any]:
    """Header of a band's file, which must hold it alone, in pixels of the native size."""
    facts = geotiff.read_facts(path)
    if len(facts["bands"]) != 1:
        raise DataError(f"{path}: {len(facts['bands'])} bands; expected {band} alone")
    place = facts["transform"]
    if place is not None and (round(place[0], 3), round(-place[4], 3)) != (gsd, gsd):
        size = f"{place[0]:g} x {-place[4]:g} m"
        raise DataError(f"{path}: {band} has pixels of {size}; expected {gsd} x {gsd} m")
    return facts


def _check(
    where: Any, gsd: int, first: tuple[str, Mapping[str, Any]], other: tuple[str, Mapping[str, Any]]
) -> None:
    """Refuse a band that is not on the grid of the first band of its GSD."""
    (first_band, expected), (band, found) = first, other
    for key in ("shape", "crs", "transform"):
        if found[key] != expected[key]:
            raise DataError(
                f"{where}: grids do not nest: {key} of {band} {found[key]}, of {first_band} "
                f"{expected[key]}; expected the same for all bands of {gsd} m"
            )


def _scale(
    file: BandFile, header: Mapping[str, Any], fallback: tuple[Scale, str]
) -> tuple[Scale, str]:
    """((offset [DN], quantification) of a file's band, where it comes from)."""
    if file.stated is not None:
        return file.stated, file.told_by
    tags = geotiff.read_scale(file.path, header["scales"][0], header["offsets"][0])
    return fallback if tags is None else (tags, "scale and offset of the files")


def _open_cube(
    files: Mapping[str, BandFile],
    bands: Sequence[str],
    gsd: int,
    edge: int,
    header: Mapping[str, Any],
    scales: Sequence[Scale],
) -> Any:
    """One cube; a band is a chunk, so that nobody reads files that were not asked for."""
    sources = [[(files[band].path, 1)] for band in bands]
    data = geotiff.open_blocks(sources, header["shape"], edge * 10 // gsd)
    offset, quantification = zip(*scales, strict=True)
    return build_cube(
        data,
        bands,
        gsd,
        crs=header["crs"],
        transform=header["transform"],
        offset=offset,
        quantification=quantification,
    )


def _open_masks(where: Any, file: BandFile | None, cube: Any, edge: int) -> dict[str, Any]:
    """Scene classification and the cloud in it, where there is one."""
    import xarray

    if file is None:
        return {}
    facts = geotiff.read_facts(file.path, "uint8")
    found = (facts["shape"], facts["crs"], facts["transform"])
    expected = (cube.shape[1:], cube.attrs.get("crs"), cube.attrs.get("transform"))
    if found != expected:
        raise DataError(
            f"{where}: grids do not nest: SCL {found}; expected that of 20 m, {expected}"
        )
    data = geotiff.open_blocks([[(file.path, 1)]], facts["shape"], edge // 2, "uint8")[0]
    scl = xarray.DataArray(data, dims=("y", "x"), name="scl", attrs={"gsd": 20.0})
    cloud = scl.isin(sentinel2.SCL_CLOUD).rename("cloud")
    cloud.attrs["gsd"] = 20.0
    return {"scl": scl, "cloud": cloud}
