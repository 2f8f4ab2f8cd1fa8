"""`xarray.open_datatree(path, engine="kerass2")`: granules as xarray users expect them.

One node a GSD ("gsd10", "gsd20", "gsd60"), in it one variable a band ("B02", (y, x) uint16 DN) with
coordinates `x` and `y` (middles of pixels, in the CRS) and `spatial_ref` (CF grid mapping, as
rioxarray reads it); masks ("scl", "cloud") in the node of their GSD. One variable a band, not one
(band, y, x) array, because bands differ in offset and wavelength, and because ESA's own Zarr
products have it so. What is known of the granule (product, level, tile, time, ...) are attributes
of the root. A product of several tiles has a node a tile above these.

Reflectance is (DN + offset) / quantification, both attributes; `mask_and_scale=True` computes it,
as float32 with NaN where there are no data or the pixel is saturated.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from data_pipelines import granule as granules
from data_pipelines import safe_files, sentinel2
from data_pipelines.granule import Granule
from data_pipelines.spec import DataError


class Kerass2Backend(BackendEntrypoint):
    """xarray's way to data_pipelines.granule.open_granules."""

    description = "Sentinel-2 L1C and L2A: products (.SAFE, zip), STAC items, band files, GeoTIFF"
    url = "https://docs.xarray.dev/en/stable/internals/how-to-add-new-backend.html"
    supports_groups = True
    open_dataset_parameters = (
        "filename_or_obj",
        "drop_variables",
        "group",
        "bands",
        "tile",
        "mask_and_scale",
    )

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether this is a Sentinel-2 product by its name; other kinds need engine="kerass2"."""
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        path = pathlib.Path(filename_or_obj)
        names = (".safe", ".safe.zip")
        return path.name.lower().endswith(names) or bool(
            safe_files.PRODUCT_XML.fullmatch(path.name)
        )

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        bands: Sequence[str] | None = None,
        tile: str | None = None,
        mask_and_scale: bool | None = None,
    ) -> xarray.Dataset:
        """One node: see open_groups_as_dict.

        Args:
            filename_or_obj: as there.
            drop_variables: as there.
            group: "gsd10", "gsd20" or "gsd60" (under "T32UMC/" where there are several tiles);
                default: the finest.
            bands: as there.
            tile: as there.
            mask_and_scale: as there.

        Raises:
            DataError: as there, or no such group.
        """
        groups = self.open_groups_as_dict(
            filename_or_obj,
            drop_variables=drop_variables,
            bands=bands,
            tile=tile,
            mask_and_scale=mask_and_scale,
        )
        names = [name for name in groups if name.rpartition("/")[2] in sentinel2.GSDS]
        # The finest comes first; of several tiles none is the one that is meant.
        first = "" if names[0].count("/") > 1 else names[0]
        wanted = first if group is None else f"/{group.strip('/')}"
        if wanted not in names:
            raise DataError(f"{filename_or_obj}: group {group!r}; it has {', '.join(names)}")
        facts = groups[wanted.rpartition("/")[0] or "/"].attrs
        return groups[wanted].assign_attrs({**facts, **groups[wanted].attrs})

    def open_datatree(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        bands: Sequence[str] | None = None,
        tile: str | None = None,
        mask_and_scale: bool | None = None,
    ) -> xarray.DataTree:
        """All nodes: see open_groups_as_dict."""
        return xarray.DataTree.from_dict(
            self.open_groups_as_dict(
                filename_or_obj,
                drop_variables=drop_variables,
                bands=bands,
                tile=tile,
                mask_and_scale=mask_and_scale,
            )
        )

    def open_groups_as_dict(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        bands: Sequence[str] | None = None,
        tile: str | None = None,
        mask_and_scale: bool | None = None,
    ) -> dict[str, xarray.Dataset]:
        """Datasets by node ("/", "/gsd10", ...); pixels are read when they are asked for.

        Args:
            filename_or_obj: what data_pipelines.granule.open_granules takes.
            drop_variables: bands or masks to leave out.
            bands: names, of products only: they may have B10, which is else left out (L1C only).
            tile: the one of several ("T32UMC").
            mask_and_scale: reflectance instead of DN; None is False.

        Raises:
            DataError: not a source, or damaged; a band that the level lacks; no such tile.
        """
        found = _open(pathlib.Path(filename_or_obj), bands)
        if tile is not None:
            chosen = [g for g in found if g.facts.get("tile") == tile]
            if not chosen:
                names = ", ".join(str(g.facts.get("tile", g.name)) for g in found)
                raise DataError(f"{filename_or_obj}: tile {tile!r}; it has {names}")
            found = chosen
        dropped = {drop_variables} if isinstance(drop_variables, str) else set(drop_variables or ())
        groups: dict[str, xarray.Dataset] = {}
        for each in found:
            root = "" if len(found) == 1 else f"/{each.facts.get('tile', each.name)}"
            groups[root or "/"] = xarray.Dataset(attrs={"granule": each.name, **each.facts})
            for name in each.cubes:
                groups[f"{root}/{name}"] = _dataset(each, name, dropped, bool(mask_and_scale))
        groups.setdefault("/", xarray.Dataset())
        return groups


def _open(path: pathlib.Path, bands: Sequence[str] | None) -> list[Granule]:
    """The granules at a path."""
    if bands is None:
        found = list(granules.open_granules(path))
    else:
        from data_pipelines import safe

        found = list(safe.open_product(path, bands))
    if not found:
        raise DataError(f"{path}: no granule")
    return found


def _dataset(granule: Granule, name: str, dropped: set[str], scale: bool) -> xarray.Dataset:
    """One node."""
    cube = granule.cubes[name]
    shared = {k: v for k, v in cube.attrs.items() if k in ("gsd", "nodata", "saturated", "units")}
    num_bands = cube.shape[0]
    offsets = cube.attrs.get("offset", (0.0,) * num_bands)
    scales = cube.attrs.get("quantification", (float(sentinel2.QUANTIFICATION),) * num_bands)
    variables: dict[str, xarray.Variable] = {}
    for index, band in enumerate(cube.band.values):
        attributes = {**shared, "offset": offsets[index], "quantification": scales[index]}
        if str(band) in sentinel2.BANDS:
            attributes["wavelength"] = sentinel2.BANDS[str(band)].wavelength
        values = cube.data[index]
        if scale:
            values = _reflectance(values, offsets[index], scales[index])
            attributes = {k: v for k, v in attributes.items() if k in ("gsd", "wavelength")}
            attributes["units"] = "1"
        variables[str(band)] = _variable(values, attributes)
    for mask, array in granule.masks.items():
        if array.attrs.get("gsd") == cube.attrs["gsd"] and array.shape == cube.shape[1:]:
            variables[mask] = _variable(array.data, {"gsd": array.attrs["gsd"]})
    kept = {key: variable for key, variable in variables.items() if key not in dropped}
    places = coordinates(cube.attrs.get("transform"), cube.attrs.get("crs"), cube.shape[1:])
    return xarray.Dataset(kept, places, {"gsd": cube.attrs["gsd"]})


def _reflectance(dn: Any, offset: float, quantification: float) -> Any:
    """Float32 reflectance [1], NaN where there are no data or the pixel is saturated."""
    values = (dn.astype(np.float32) + np.float32(offset)) / np.float32(quantification)
    known = (dn != sentinel2.NO_DATA) & (dn != sentinel2.SATURATED)
    if not hasattr(dn, "dask"):
        return np.where(known, values, np.float32(np.nan))
    import dask.array

    return dask.array.where(known, values, np.float32(np.nan))


def _variable(data: Any, attributes: Mapping[str, Any]) -> xarray.Variable:
    """(y, x), read when it is indexed; dask takes its chunks with `chunks={}`."""
    if not hasattr(data, "dask"):
        return xarray.Variable(("y", "x"), data, dict(attributes))
    edges = dict(zip(("y", "x"), data.chunksize, strict=True))
    lazy = indexing.LazilyIndexedArray(_DaskArray(data))
    variable = xarray.Variable(("y", "x"), lazy, dict(attributes))
    variable.encoding = {"preferred_chunks": edges, "grid_mapping": "spatial_ref"}
    return variable


class _DaskArray(BackendArray):
    """A dask array that computes what is asked for, in the thread that asks."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.shape = array.shape
        self.dtype = np.dtype(array.dtype)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER_1VECTOR, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> Any:
        return np.asarray(self.array[key].compute(scheduler="synchronous"))


def coordinates(
    transform: Sequence[float] | None, crs: str | None, shape: Sequence[int]
) -> dict[str, Any]:
    """X and y of the middles of pixels, and the CRS; empty for pixels without a place.

    Args:
        transform: six numbers of an affine.Affine, pixel -> CRS.
        crs: anything that GDAL takes.
        shape: rows and columns [px].
    """
    coordinates: dict[str, Any] = {}
    # A rotated grid has no coordinate of its own for each axis.
    if transform is not None and transform[1] == transform[3] == 0:
        a, _, left, _, e, top = transform
        height, width = shape
        coordinates["y"] = ("y", top + e * (np.arange(height) + 0.5), {"units": "m"})
        coordinates["x"] = ("x", left + a * (np.arange(width) + 0.5), {"units": "m"})
        for axis in ("x", "y"):
            coordinates[axis][2]["standard_name"] = f"projection_{axis}_coordinate"
    if crs is not None:
        import rasterio

        attributes = {"crs_wkt": rasterio.CRS.from_user_input(crs).to_wkt()}
        attributes["spatial_ref"] = attributes["crs_wkt"]
        if transform is not None:
            a, b, left, d, e, top = transform
            attributes["GeoTransform"] = " ".join(map(str, (left, a, b, top, d, e)))
        coordinates["spatial_ref"] = ((), 0, attributes)
    return coordinates
