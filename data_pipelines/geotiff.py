"""GeoTIFFs of one GSD whose bands bear their names: lazy, and the writer."""

from __future__ import annotations

import contextlib
import functools
import math
import pathlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import sentinel2
from data_pipelines.granule import CHUNK, Granule, build_cube, check_nesting, plane_of
from data_pipelines.npz import select
from data_pipelines.spec import DataError
from data_pipelines.windows import Window

# The tag of a file whose pixels were made up, not measured.
SYNTHETIC_TAGS = {"SYNTHETIC": "YES"}
# GDAL's drivers of the formats that bands come in; that of GeoTIFF reads COGs too.
GEOTIFF, JP2 = "GTiff", "JP2OpenJPEG"

GDALPath = str | pathlib.Path


# A band's name as programs write it: "B2", "B02", "b8a", "B02_10m", "B2, central wavelength ...".
_BAND = re.compile(r"B(?:and)?[ _]?0?(\d{1,2}|8A)(?![0-9A-Z])", re.IGNORECASE)


def band_name(text: str | None) -> str | None:
    """The band that a description begins with, as sentinel2.BANDS has it; None for another text."""
    match = _BAND.match((text or "").strip())
    name = f"B{match[1].upper():0>2}" if match else ""
    return name if name in sentinel2.BANDS else None


def open_folder(path: pathlib.Path) -> Iterator[Granule]:
    """The granule of one folder: one file per GSD, 60 m may be missing (20 m tasks do without it).

    The files are gsd10.tif, gsd20.tif, gsd60.tif, or GeoTIFFs of any name with several named bands,
    told apart by the size of their pixels.

    Raises:
        DataError: a file missing, unreadable, a band missing, or grids that do not nest.
    """
    files = find_files(path)
    for gsd in (10, 20):
        if gsd not in files:
            found = ", ".join(sorted(f.name for f in path.glob("*.tif*"))) or "no GeoTIFF"
            raise DataError(
                f"{path}: no gsd{gsd}.tif; found {found}; expected gsd10.tif, gsd20.tif, or two "
                "files of pixels of 10 m and 20 m with named bands"
            )
    edge = chunk_edge(files[10], 10)
    cubes, synthetic, stated = {}, False, []
    for name, gsd in sentinel2.GSDS.items():
        if gsd in files:
            cubes[name] = open_cube(files[gsd], gsd, edge=edge)
            synthetic |= read_facts(files[gsd])["synthetic"]
            stated += [files[gsd].name] if "offset" in cubes[name].attrs else []
    check_nesting(path, cubes)
    scene = path.resolve().name
    plane, origin = plane_of(cubes["gsd10"]) or ("", (0, 0))
    facts = {"offset_from": f"scale and offset of {', '.join(stated)}"} if stated else {}
    yield Granule(scene, scene, scene, cubes, origin, plane, synthetic, facts)


def find_files(path: pathlib.Path) -> dict[int, pathlib.Path]:
    """GSD -> file of a folder that open_folder takes; empty for another folder.

    Raises:
        DataError: two files for one GSD.
    """
    named = {gsd: path / f"{name}.tif" for name, gsd in sentinel2.GSDS.items()}
    named = {gsd: file for gsd, file in named.items() if file.is_file()}
    if named:
        return named
    files: dict[int, pathlib.Path] = {}
    for file in sorted(f for f in path.iterdir() if f.suffix.lower() in (".tif", ".tiff")):
        with open_file(file) as image:
            bands = [band_name(text) for text in image.descriptions]
            size = 0 if image.transform.is_identity else round(abs(image.transform.a), 3)
        gsd = int(size) if size in sentinel2.GSDS.values() else 0
        if not gsd or not set(sentinel2.bands_at(gsd)) & set(bands) or len(bands) < 2:
            continue
        if gsd in files:
            raise DataError(
                f"{path}: two files of {gsd} m: {files[gsd].name}, {file.name}; expected one a GSD"
            )
        files[gsd] = file
    return files


def chunk_edge(path: GDALPath, gsd: int) -> int:
    """Edge of a dask chunk on the finest grid [px]: CHUNK, or more to hold whole blocks of a file.

    A block that two chunks share is read, and decoded, twice: four chunks of 1080 px out of blocks
    of 1024 px would decode a JP2 nearly four times.
    """
    with open_file(path) as file:
        (rows, columns), shape = file.block_shapes[0], file.shape
    if rows != columns or rows >= max(shape):
        return CHUNK
    edge = math.lcm(rows * gsd // 10, 6)
    edge *= -(-CHUNK // edge)
    return edge if edge <= 3 * CHUNK else CHUNK


def open_cube(path: pathlib.Path, gsd: int, *, edge: int | None = None) -> Any:
    """The super-resolution bands of one GSD from a file that names its bands, lazily.

    Args:
        path: the file.
        gsd: 10, 20 or 60 [m].
        edge: of a chunk [px of 10 m], a multiple of 6; default CHUNK.

    Raises:
        DataError: unreadable, not uint16, or a band missing.
    """
    facts = read_facts(path)
    names = [band_name(text) or text or "" for text in facts["bands"]]
    order = select(path, "band descriptions", names, gsd)
    data = open_blocks(
        [[(path, i + 1) for i in order]], facts["shape"], (edge or CHUNK) * 10 // gsd
    )
    stated: dict[str, Any] = {}
    scales = [read_scale(path, facts["scales"][i], facts["offsets"][i]) for i in order]
    if any(scale is not None for scale in scales):
        values = [(0.0, float(sentinel2.QUANTIFICATION)) if s is None else s for s in scales]
        offset, quantification = zip(*values, strict=True)
        stated = {"offset": offset, "quantification": quantification}
    bands = sentinel2.bands_at(gsd)
    return build_cube(data, bands, gsd, crs=facts["crs"], transform=facts["transform"], **stated)


def read_scale(path: object, scale: float, offset: float) -> tuple[float, float] | None:
    """(offset [DN], quantification) of GDAL's scale and offset of a band; None for none (1 and 0).

    GDAL's say reflectance = dn * scale + offset, ours reflectance = (dn + offset) / quantification.

    Raises:
        DataError: values that cannot be those of reflectance.
    """
    if (scale, offset) == (1.0, 0.0):
        return None
    # Products have 1e-4, the first ones had 1e-3. With a scale of 1 and an offset, in no unit that
    # could be known, every pixel would come out wrong.
    if not (1e-6 <= scale <= 1e-2 and abs(offset) <= 1):
        raise DataError(
            f"{path}: scale {scale}, offset {offset}; expected reflectance = DN * scale + offset, "
            "the scale from 1e-6 to 0.01, the offset from -1 to 1"
        )
    # 6 decimals: 1e-4 and -0.1 have no exact binary form, -1000 has.
    return round(offset / scale, 6), round(1 / scale, 6)


def open_blocks(
    sources: Sequence[Sequence[tuple[GDALPath, int]]],
    shape: tuple[int, int],
    size: int,
    dtype: str = "uint16",
) -> Any:
    """A dask array (band, y, x) of bands in files.

    Args:
        sources: (file, band in it) of each band; those of one group are read in one task, and must
            be of one file.
        shape: (y, x) of every band [px].
        size: edge of a chunk [px].
        dtype: numpy name of the type in the files.
    """
    import dask.array

    groups = tuple(len(group) for group in sources)
    return dask.array.map_blocks(
        functools.partial(_read_block, sources=sources),
        chunks=(groups, *(_pieces(n, size) for n in shape)),
        dtype=dtype,
        meta=np.empty((0, 0, 0), dtype),
    )


def read_facts(path: GDALPath, dtype: str = "uint16") -> dict[str, Any]:
    """What a file says of itself.

    Args:
        path: the file.
        dtype: numpy name of the type it must have.

    Returns:
        {"shape": (y, x), "bands": names, "crs": text or None, "transform": six numbers or None,
        "synthetic": whether it bears SYNTHETIC_TAGS, "scales", "offsets": of the bands}.

    Raises:
        DataError: unreadable, or not of that type.
    """
    with open_file(path) as file:
        if set(file.dtypes) != {dtype}:
            what = "uint16 DN" if dtype == "uint16" else dtype
            raise DataError(f"{path}: {', '.join(sorted(set(file.dtypes)))}; expected {what}")
        # GDAL answers with the identity where a file has no transform.
        transform = None if file.transform.is_identity else tuple(file.transform)[:6]
        return {
            "shape": (file.height, file.width),
            "bands": file.descriptions,
            "crs": file.crs.to_string() if file.crs else None,
            "transform": transform,
            "synthetic": SYNTHETIC_TAGS.items() <= file.tags().items(),
            "scales": file.scales,
            "offsets": file.offsets,
        }


def read_pixels(path: GDALPath, indexes: Any, window: Any = None) -> NDArray[Any]:
    """Pixels (band, y, x), or (y, x) for one index, as stored.

    Raises:
        DataError: the file is missing or damaged.
    """
    import rasterio

    with open_file(path) as file:
        try:
            if file.driver == JP2:
                return _read_jp2(file, indexes, window)
            pixels: NDArray[Any] = file.read(indexes, window=window)
        except rasterio.errors.RasterioError as error:
            # rasterio's own message only points at its cause.
            raise DataError(f"{path}: cannot read pixels: {error.__cause__ or error}") from error
    return pixels


def _read_jp2(file: Any, indexes: Any, window: Any) -> NDArray[Any]:
    """The same from a JPEG 2000 file, where GDAL alone would pass a damaged block over as zeros."""
    from data_pipelines.safe_jp2 import read_blocks

    area = Window(0, 0, file.height, file.width)
    if window is not None:
        area = Window(*map(int, (window.row_off, window.col_off, window.height, window.width)))
    if isinstance(indexes, int):
        return read_blocks(file, area, indexes)
    return np.stack([read_blocks(file, area, index) for index in indexes])


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


def _read_block(
    block_info: Any, *, sources: Sequence[Sequence[tuple[GDALPath, int]]]
) -> NDArray[Any]:
    """One dask chunk; dask says which by `block_info`."""
    from rasterio.windows import Window as Area

    (_, (y0, y1), (x0, x1)) = block_info[None]["array-location"]
    group = sources[block_info[None]["chunk-location"][0]]
    indexes = [index for _, index in group]
    return read_pixels(group[0][0], indexes, Area(x0, y0, x1 - x0, y1 - y0))


@contextlib.contextmanager
def open_file(path: GDALPath) -> Iterator[Any]:
    """A rasterio dataset, GeoTIFF or JPEG 2000 only, for a `with` statement.

    Other drivers (VRT) could lead to other files than the one named, so they never see it. No
    warning about a missing transform, which is no fault here.

    Raises:
        DataError: not found, of another kind, or unreadable, also in the `with` statement: damaged
            names or a damaged CRS show when they are asked for.
    """
    from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError

    jp2 = str(path).lower().endswith(".jp2")
    kind = "JPEG 2000" if jp2 else "GeoTIFF"
    try:
        with warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning):
            opened = _open(path, (JP2, GEOTIFF) if jp2 else (GEOTIFF, JP2))
        with opened as file:
            yield file
    except (RasterioError, CRSError, UnicodeDecodeError) as error:
        local = not str(path).startswith("/vsi")
        missing = local and not pathlib.Path(path).exists()
        what = "not found" if missing else f"not readable as {kind}: {error}"
        raise DataError(f"{path}: {what}") from error


def _open(path: GDALPath, drivers: tuple[str, str]) -> Any:
    """rasterio.open by the first driver, or by the other where a name does not fit its bytes.

    (rasterio.open, 1.4, takes one driver only, whatever its documentation says.)

    Raises:
        rasterio.errors.RasterioError: neither reads it; what the first one said.
    """
    import rasterio

    first, second = drivers
    try:
        return rasterio.open(path, driver=first)
    except rasterio.errors.RasterioIOError as error:
        try:
            return rasterio.open(path, driver=second)
        except rasterio.errors.RasterioIOError:
            raise error from None
