"""Folders of gsd10.tif, gsd20.tif, gsd60.tif whose bands bear their names: lazy, and the writer."""

from __future__ import annotations

import functools
import pathlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import sentinel2
from data_pipelines.granule import CHUNK, Granule, build_cube, check_nesting, plane_of
from data_pipelines.npz import select
from data_pipelines.spec import DataError

# The tag of a file whose pixels were made up, not measured.
SYNTHETIC_TAGS = {"SYNTHETIC": "YES"}


def open_folder(path: pathlib.Path) -> Iterator[Granule]:
    """The granule of one folder; gsd60.tif may be missing, since the 20 m task does without it.

    Raises:
        DataError: gsd10.tif or gsd20.tif missing, unreadable, a band missing, or grids do not nest.
    """
    cubes, synthetic = {}, False
    for name, gsd in sentinel2.GSDS.items():
        file = path / f"{name}.tif"
        if file.is_file():
            cubes[name] = open_cube(file, gsd)
            synthetic |= read_facts(file)["synthetic"]
        elif gsd < 60:
            found = ", ".join(sorted(f.name for f in path.glob("*.tif")))
            raise DataError(f"{path}: no {file.name}; found {found}; expected gsd10.tif, gsd20.tif")
    check_nesting(path, cubes)
    scene = path.resolve().name
    plane, origin = plane_of(cubes["gsd10"]) or ("", (0, 0))
    yield Granule(scene, scene, scene, cubes, origin, plane, synthetic)


def open_cube(path: pathlib.Path, gsd: int) -> Any:
    """The super-resolution bands of one GSD from a file that names its bands, lazily.

    Raises:
        DataError: unreadable, not uint16, or a band missing.
    """
    import dask.array

    facts = read_facts(path)
    order = select(path, "band descriptions", [name or "" for name in facts["bands"]], gsd)
    height, width = facts["shape"]
    size = CHUNK * 10 // gsd
    chunks = (len(order), *(_pieces(n, size) for n in (height, width)))
    data = dask.array.map_blocks(
        functools.partial(_read_block, path=path, indexes=[i + 1 for i in order]),
        chunks=((chunks[0],), *chunks[1:]),
        dtype=np.uint16,
        meta=np.empty((0, 0, 0), np.uint16),
    )
    bands = sentinel2.bands_at(gsd)
    return build_cube(data, bands, gsd, crs=facts["crs"], transform=facts["transform"])


def read_facts(path: pathlib.Path) -> dict[str, Any]:
    """What a file says of itself.

    Returns:
        {"shape": (y, x), "bands": names, "crs": text or None, "transform": six numbers or None,
        "synthetic": whether it bears SYNTHETIC_TAGS}.

    Raises:
        DataError: unreadable, or not uint16.
    """
    with _open(path) as file:
        if set(file.dtypes) != {"uint16"}:
            raise DataError(f"{path}: {', '.join(sorted(set(file.dtypes)))}; expected uint16 DN")
        # GDAL answers with the identity where a file has no transform.
        transform = None if file.transform.is_identity else tuple(file.transform)[:6]
        return {
            "shape": (file.height, file.width),
            "bands": file.descriptions,
            "crs": file.crs.to_string() if file.crs else None,
            "transform": transform,
            "synthetic": SYNTHETIC_TAGS.items() <= file.tags().items(),
        }


def read_pixels(path: pathlib.Path, indexes: Any, window: Any = None) -> NDArray[np.uint16]:
    """Pixels (band, y, x), or (y, x) for one index, as stored.

    Raises:
        DataError: the file is missing or damaged.
    """
    import rasterio

    with _open(path) as file:
        try:
            pixels: NDArray[np.uint16] = file.read(indexes, window=window)
        except rasterio.errors.RasterioError as error:
            raise DataError(f"{path}: cannot read pixels: {error}") from error
    return pixels


def write_folder(
    folder: pathlib.Path,
    cubes: Mapping[str, NDArray[np.uint16]],
    *,
    crs: str | None,
    corner: tuple[float, float],
    bands: Mapping[str, Sequence[str]] | None = None,
    synthetic: bool = False,
) -> pathlib.Path:
    """Write one GeoTIFF per GSD: tiled, deflate, CRS, transform, band descriptions, no data 0.

    Args:
        folder: made if it is missing.
        cubes: "gsd10", ... -> (band, y, x) uint16 DN.
        crs: anything GDAL takes as CRS; None writes none.
        corner: (x, y) of the upper left corner in the CRS [m].
        bands: names by cube; default: the super-resolution bands of its GSD.
        synthetic: tag the files as made up.
    """
    from affine import Affine

    from data_pipelines import raster

    folder.mkdir(parents=True, exist_ok=True)
    for name, cube in cubes.items():
        gsd = sentinel2.GSDS[name]
        raster.write_geotiff(
            folder / f"{name}.tif",
            [cube],
            height=cube.shape[1],
            width=cube.shape[2],
            bands=(bands or {}).get(name, sentinel2.bands_at(gsd)),
            crs=crs,
            transform=None if crs is None else Affine(gsd, 0, corner[0], 0, -gsd, corner[1]),
            tags=SYNTHETIC_TAGS if synthetic else None,
            overwrite=True,
        )
    return folder


def _pieces(total: int, size: int) -> tuple[int, ...]:
    """Chunk sizes of an axis."""
    return (size,) * (total // size) + ((total % size,) if total % size else ())


def _read_block(block_info: Any, *, path: pathlib.Path, indexes: list[int]) -> NDArray[np.uint16]:
    """One dask chunk; dask says which by `block_info`."""
    from rasterio.windows import Window

    (_, (y0, y1), (x0, x1)) = block_info[None]["array-location"]
    return read_pixels(path, indexes, Window(x0, y0, x1 - x0, y1 - y0))


def _open(path: pathlib.Path) -> Any:
    """rasterio.open without its warning about a missing transform, which is no fault here."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

    try:
        with warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning):
            return rasterio.open(path)
    except RasterioIOError as error:
        what = "not found" if not path.exists() else f"not readable as GeoTIFF: {error}"
        raise DataError(f"{path}: {what}") from error
