"""A prediction as a lazy xarray.Dataset: pixels are computed when they are asked for."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import sentinel2
from data_pipelines.windows import Window
from kerass2 import meaning, sharpen, tiling

if TYPE_CHECKING:
    import xarray

    from kerass2.sharpen import Plan


def build_dataset(plan: Plan) -> xarray.Dataset:
    """The output as a lazy Dataset: one (y, x) variable a band, one dask block a region.

    A part that is computed computes its regions only, for all bands at once; chunks of the granule
    that regions share are read once in a computation.

    Returns:
        Variables uint16 DN with attributes offset, quantification, wavelength, gsd, nodata and
        saturated; coordinates x, y and spatial_ref, as rioxarray reads them.
    """
    import dask.array
    import xarray
    from dask.delayed import delayed

    from data_pipelines.xarray_backend import coordinates

    cubes, regions = plan.cubes, plan.regions
    make = delayed(functools.partial(_make_block, plan), pure=False)
    rows: dict[int, list[Any]] = {}
    for region in regions:
        union = tiling.reading_window(plan.networks, region, plan.granule.shape)
        pixels = [_around(cube, name, union, plan.granule.shape) for name, cube in cubes.items()]
        block = make(region, [first for first, _ in pixels], [values for _, values in pixels])
        shape = len(plan.bands), region.height, region.width
        rows.setdefault(region.y, []).append(
            dask.array.from_delayed(block, shape, np.uint16, meta=np.empty((0, 0, 0), np.uint16))
        )
    whole = dask.array.block([[block for block in row] for row in rows.values()])
    place = meaning.georeference(plan.granule, plan.roi)
    variables = {
        band: (("y", "x"), whole[index], attributes)
        for index, (band, attributes) in enumerate(_attributes(plan, place["crs"]).items())
    }
    places = coordinates(place["transform"], place["crs"], (plan.roi.height, plan.roi.width))
    about = {"granule": plan.granule.name, **meaning.describe_output(plan).tags}
    return xarray.Dataset(variables, places, about)


def _attributes(plan: Plan, crs: str | None) -> dict[str, dict[str, Any]]:
    """What the DN of each band mean."""
    found: dict[str, dict[str, Any]] = {}
    for band, (offset, quantification) in meaning.band_meaning(plan).items():
        found[band] = {
            "gsd": 10.0,
            "nodata": sentinel2.NO_DATA,
            "saturated": sentinel2.SATURATED,
            "units": "DN",
            "offset": offset,
            "quantification": quantification,
            "wavelength": sentinel2.BANDS[band].wavelength,
        }
        if crs is not None:
            found[band]["grid_mapping"] = "spatial_ref"
    return found


def _around(
    cube: xarray.DataArray, name: str, union: Window, shape: tuple[int, int]
) -> tuple[tuple[int, int], Any]:
    """((first row, first column), pixels, lazy or not) of a cube that a window needs."""
    ratio = sentinel2.GSDS[name] // 10
    window = union.coarser(ratio)
    y = tiling.mirrored(window.y, window.y + window.height, shape[0] // ratio)
    x = tiling.mirrored(window.x, window.x + window.width, shape[1] // ratio)
    rows = slice(int(y.min()), int(y.max()) + 1)
    columns = slice(int(x.min()), int(x.max()) + 1)
    return (rows.start, columns.start), cube.data[:, rows, columns]


def _make_block(
    plan: Plan, region: Window, firsts: list[tuple[int, int]], pixels: list[NDArray[np.uint16]]
) -> NDArray[np.uint16]:
    """One dask block."""
    cubes = plan.cubes
    held = {
        name: tiling.Held(cubes[name].shape, first, values)
        for name, first, values in zip(cubes, firsts, pixels, strict=True)
    }
    strips = tiling.Strips(held, {name: held[name].rows for name in held})
    return sharpen.make_region(plan, cubes, strips, region)
