"""A STAC item beside a raster that was made of a granule, so that catalogues find it.

Source: STAC 1.1 with the extensions projection 2.0, raster 2.0, eo 2.0, processing 1.2, file 2.1.
"""

from __future__ import annotations

import datetime
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from data_pipelines import roi, sentinel2
from data_pipelines.granule import Granule
from data_pipelines.raw_raster import Description
from data_pipelines.spec import DataError

EXTENSIONS = {
    "proj": "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "raster": "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "eo": "https://stac-extensions.github.io/eo/v2.0.0/schema.json",
    "processing": "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
    "grid": "https://stac-extensions.github.io/grid/v1.1.0/schema.json",
}
MEDIA_TYPES = {
    "COG": "image/tiff; application=geotiff; profile=cloud-optimized",
    "GTiff": "image/tiff; application=geotiff",
    "Zarr": "application/vnd.zarr; version=3",
}
# Names of the eo extension. Source: its table of common names, with Sentinel-2's bands.
COMMON_NAMES = {
    "B01": "coastal", "B02": "blue", "B03": "green", "B04": "red", "B05": "rededge071",
    "B06": "rededge075", "B07": "rededge078", "B08": "nir", "B8A": "nir08", "B09": "nir09",
    "B11": "swir16", "B12": "swir22",
}  # fmt: skip
# Points along each edge of the footprint, which is curved in longitudes and latitudes.
DENSITY = 5


def write(
    path: pathlib.Path,
    about: Description,
    granule: Granule,
    asset: pathlib.Path,
    *,
    kind: str,
    preview: pathlib.Path | None = None,
    models: Sequence[str] = (),
) -> None:
    """Write the item of a raster.

    Args:
        path: the JSON file to write.
        about: the raster.
        granule: what it was made of.
        asset: where the raster stands beside the item.
        kind: its format, a key of MEDIA_TYPES.
        preview: a picture beside it.
        models: names of those that made it.

    Raises:
        DataError: the raster has no place on earth, or the file cannot be written.
    """
    import rasterio

    try:
        item = build(about, granule, asset, kind=kind, preview=preview, models=models)
        path.write_text(json.dumps(item.to_dict(include_self_link=False), indent=2) + "\n")
    except rasterio.errors.CRSError as error:
        name = granule.name
        raise DataError(f"{name}: CRS {about.crs!r}: not known to GDAL: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error


def build(
    about: Description,
    granule: Granule,
    asset: pathlib.Path,
    *,
    kind: str,
    preview: pathlib.Path | None = None,
    models: Sequence[str] = (),
) -> Any:
    """The pystac.Item; see write."""
    import pystac

    if about.crs is None or about.transform is None:
        raise DataError(f"{granule.name}: has no CRS, so a STAC item would have no place")
    geometry = footprint(about)
    xs, ys = zip(*geometry["coordinates"][0], strict=True)
    facts = granule.facts
    time = facts.get("time")
    now = datetime.datetime.now(datetime.UTC)
    # A granule without a time: the item's own is better than none, and `created` says the same.
    sensed = now if time is None else datetime.datetime.fromisoformat(str(time))
    sensed = sensed if sensed.tzinfo else sensed.replace(tzinfo=datetime.UTC)
    item = pystac.Item(
        id=asset.name.removesuffix(asset.suffix),
        geometry=geometry,
        bbox=[min(xs), min(ys), max(xs), max(ys)],
        datetime=sensed,
        properties=_properties(about, granule, models, now),
        stac_extensions=list(EXTENSIONS.values()),
    )
    item.add_asset(
        "data",
        pystac.Asset(
            href=f"./{asset.name}",
            title="All bands at 10 m",
            media_type=MEDIA_TYPES[kind],
            roles=["data", "reflectance"],
            extra_fields={"bands": [_band(about, index) for index in range(len(about.bands))]},
        ),
    )
    if preview is not None:
        picture = pystac.Asset(f"./{preview.name}", media_type="image/png", roles=["overview"])
        item.add_asset("preview", picture)
    return item


def is_item_of(path: pathlib.Path, asset: pathlib.Path) -> bool:
    """Whether a file is an item that `write` has made for a raster beside it."""
    try:
        item = json.loads(path.read_bytes())
        software = item["properties"]["processing:software"]
        return "kerass2" in software and item["assets"]["data"]["href"] == f"./{asset.name}"
    except (OSError, ValueError, KeyError, TypeError):
        return False


def footprint(about: Description) -> dict[str, Any]:
    """The outline in longitudes and latitudes: a GeoJSON polygon, counterclockwise."""
    import rasterio.warp

    steps = [k / DENSITY for k in range(DENSITY)]
    # Down the left side, along the bottom, up the right side, back along the top.
    sides = [(0.0, t) for t in steps] + [(t, 1.0) for t in steps]
    sides += [(1.0, 1 - t) for t in steps] + [(1 - t, 0.0) for t in steps]
    transform = about.transform or ()
    points = [roi.place_of(transform, x * about.width, y * about.height) for x, y in sides]
    lons, lats = rasterio.warp.transform(
        about.crs, "EPSG:4326", [x for x, _ in points], [y for _, y in points]
    )
    ring = [[round(lon, 7), round(lat, 7)] for lon, lat in zip(lons, lats, strict=True)]
    return {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}


def _properties(
    about: Description, granule: Granule, models: Sequence[str], now: datetime.datetime
) -> dict[str, Any]:
    """What the item says of the whole."""
    import rasterio

    facts = granule.facts
    found = rasterio.CRS.from_user_input(about.crs)
    code = found.to_epsg()
    properties: dict[str, Any] = {
        "created": now.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "constellation": "sentinel-2",
        "instruments": ["msi"],
        "gsd": 10,
        "proj:shape": [about.height, about.width],
        "proj:transform": [*(about.transform or ()), 0, 0, 1],
        "proj:code": None if code is None else f"EPSG:{code}",
        "processing:lineage": f"{granule.scene}, sharpened to 10 m by {', '.join(models)}",
        "processing:software": {"kerass2": _version()},
    }
    if code is None:
        properties["proj:wkt2"] = found.to_wkt()
    if "spacecraft" in facts:
        properties["platform"] = f"sentinel-{str(facts['spacecraft'])[1:].lower()}"
    if "level" in facts:
        properties["processing:level"] = str(facts["level"])
    if "tile" in facts:
        properties["grid:code"] = f"MGRS-{str(facts['tile'])[1:]}"
    if granule.synthetic:
        properties["description"] = "SYNTHETIC: made up, not measured"
    return properties


def _version() -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version("kerass2")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _band(about: Description, index: int) -> dict[str, Any]:
    """What the item says of a band."""
    name = about.bands[index]
    band: dict[str, Any] = {"name": name, "data_type": "uint16", "nodata": about.nodata, "gsd": 10}
    band["unit"] = "1"
    quantification = 1 / sentinel2.QUANTIFICATION
    band["raster:scale"] = quantification if about.scales is None else about.scales[index]
    band["raster:offset"] = 0.0 if about.offsets is None else about.offsets[index]
    if name in sentinel2.BANDS:
        band["eo:center_wavelength"] = round(sentinel2.BANDS[name].wavelength / 1000, 4)
    if name in COMMON_NAMES:
        band["eo:common_name"] = COMMON_NAMES[name]
    return band
