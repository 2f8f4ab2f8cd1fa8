"""What the pixels of an output mean: their DN, their place, and what a file says of both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import sentinel2
from data_pipelines.windows import Window

if TYPE_CHECKING:
    import xarray

    from data_pipelines.granule import Granule
    from data_pipelines.raw_raster import Description
    from kerass2.sharpen import Plan


def to_dn(
    reflectance: NDArray[Any], *, offset: NDArray[Any], quantification: NDArray[Any]
) -> NDArray[np.uint16]:
    """DN (band, y, x) of reflectance [1], 1 to 65534.

    0 would say that there are no data, 65535 that the pixel is saturated: what DN cannot say is
    clipped, so that nothing wraps around.
    """
    dn = reflectance * quantification[:, None, None] - offset[:, None, None]
    np.rint(dn, out=dn)
    np.clip(dn, sentinel2.NO_DATA + 1, sentinel2.SATURATED - 1, out=dn)
    stored: NDArray[np.uint16] = dn.astype(np.uint16)
    return stored


def dn_meaning(cube: xarray.DataArray) -> dict[str, NDArray[np.float64]]:
    """What the DN of a cube mean: reflectance = (dn + offset) / quantification.

    Returns:
        {"offset": (band,) [DN], "quantification": (band,)}; 0 and 10000 where the cube says
        nothing.
    """
    default = {"offset": 0, "quantification": sentinel2.QUANTIFICATION}
    number = len(cube.band)
    return {
        key: np.array(cube.attrs.get(key, (value,) * number), np.float64)
        for key, value in default.items()
    }


def band_meaning(plan: Plan) -> dict[str, tuple[float, float]]:
    """Band of the output -> (offset [DN], quantification)."""
    found: dict[str, tuple[float, float]] = {}
    for cube in plan.granule.cubes.values():
        meaning = dn_meaning(cube)
        pairs = zip(meaning["offset"].tolist(), meaning["quantification"].tolist(), strict=True)
        found.update(zip(map(str, cube.band.values), pairs, strict=True))
    return {band: found[band] for band in plan.bands}


def georeference(granule: Granule, roi: Window | None = None) -> dict[str, Any]:
    """CRS and transform of a window of 10 m: {"crs": text or None, "transform": six or None}.

    The first cube that has them tells; a coarser grid begins at the same corner.
    """
    for name, cube in granule.cubes.items():
        if cube.attrs.get("transform") is not None:
            a, b, c, d, e, f = cube.attrs["transform"]
            ratio = sentinel2.GSDS[name] / 10
            a, b, d, e = a / ratio, b / ratio, d / ratio, e / ratio
            y, x = (0, 0) if roi is None else (roi.y, roi.x)
            transform = (a, b, c + a * x + b * y, d, e, f + d * x + e * y)
            return {"crs": cube.attrs.get("crs"), "transform": transform}
    return {"crs": None, "transform": None}


def describe_output(plan: Plan) -> Description:
    """What a file with the output says of itself.

    DN mean what they mean in the granule. Where that is not reflectance x 10000, each band bears
    GDAL's scale and offset, with which readers get reflectance.
    """
    from data_pipelines import geotiff
    from data_pipelines.raw_raster import Description

    means = band_meaning(plan)
    plain = set(means.values()) == {(0.0, float(sentinel2.QUANTIFICATION))}
    unit = "DN of the source: reflectance = DN x scale + offset of the band"
    tags = {
        "SOURCE": plan.granule.scene,
        "MODEL": ", ".join(network.name for network in plan.networks) or "none",
        "UNIT": "reflectance x 10000, no offset" if plain else unit,
        **{
            key.upper(): str(plan.granule.facts[key])
            for key in ("level", "time", "tile")
            if key in plan.granule.facts
        },
        **(geotiff.SYNTHETIC_TAGS if plan.granule.synthetic else {}),
    }
    scales = tuple(1 / quantification for _, quantification in means.values())
    offsets = tuple(offset / quantification for offset, quantification in means.values())
    return Description(
        plan.bands,
        plan.roi.height,
        plan.roi.width,
        scales=None if plain else scales,
        offsets=None if plain else offsets,
        tags=tags,
        **georeference(plan.granule, plan.roi),
    )
