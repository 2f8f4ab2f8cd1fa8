"""What users take away of a raster that is complete: COG, GeoTIFF or Zarr, in bounded memory."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import raster, sentinel2
from data_pipelines.raw_raster import Description, RawRaster, build_vrt
from data_pipelines.spec import DataError
from data_pipelines.windows import Window

# Edge of the blocks of a COG [px]: what its readers (and validators) expect.
COG_BLOCK = 512
# Edge of the chunks of a Zarr array, and of the files that hold them (Zarr's shards) [px].
ZARR_CHUNK, ZARR_SHARD = 512, 2048
# VRT of a raw raster with its overviews, beside its own.
OVERVIEWS = "overviews.vrt"
# GDAL's cache of blocks [MB].
CACHE = 128
# Deflate's level: GDAL's 6 takes 1.3 to 1.9 times as long, for files of Sentinel-2's differences
# between pixels that are 1 % smaller to 4 % larger (11 scenes).
LEVEL = 1
# Rows that are halved at once for an overview, an even number.
STRIP = 128


def write_as(raw: RawRaster, kind: str, path: pathlib.Path) -> None:
    """Write a complete raw raster in a format.

    Args:
        raw: the pixels.
        kind: a key of FORMATS.
        path: file or folder to make.

    Raises:
        DataError: it cannot be written; what is there of it then is of no use.
    """
    import rasterio
    from rasterio._err import CPLE_BaseError  # rasterio lets these through when it copies

    try:
        with (
            raster.silent_without_georeference(),
            rasterio.Env(GDAL_CACHEMAX=CACHE, GDAL_NUM_THREADS="ALL_CPUS", GDAL_PAM_ENABLED="NO"),
        ):
            FORMATS[kind][1](raw, path)
    except (rasterio.errors.RasterioError, CPLE_BaseError) as error:
        raise DataError(f"{path.parent}: cannot write {path.name}: {error}") from error
    except OSError as error:
        why = error.strerror or error
        raise DataError(f"{path.parent}: cannot write {path.name}: {why}") from error


def _write_cog(raw: RawRaster, path: pathlib.Path) -> None:
    """A Cloud Optimized GeoTIFF by GDAL: tiled, overviews of means, metadata first.

    The overviews are made here: GDAL takes four times as long for them as for the full image.
    """
    source = raw.vrt.with_name(OVERVIEWS)
    overviews = [os.path.relpath(each.vrt, source.parent) for each in _write_overviews(raw)]
    source.write_text(build_vrt(raw.description, raw.path.name, overviews), encoding="utf-8")
    _copy(
        source,
        path,
        driver="COG",
        BLOCKSIZE=COG_BLOCK,
        PREDICTOR="YES",
        LEVEL=LEVEL,
        OVERVIEWS="AUTO",
    )


def _write_overviews(raw: RawRaster) -> list[RawRaster]:
    """Raw rasters of half the edge, a quarter and so on, until one fits into a block of a COG."""
    made: list[RawRaster] = []
    while max(raw.description.height, raw.description.width) > COG_BLOCK:
        about = raw.description
        half = Description(about.bands, -(-about.height // 2), -(-about.width // 2))
        folder = raw.path.parent / f"overview{len(made) + 1}"
        folder.mkdir(exist_ok=True)
        coarser = RawRaster(folder, dataclasses.replace(half, nodata=about.nodata))
        coarser.create()

        def fill(start: int, raw: RawRaster = raw, coarser: RawRaster = coarser) -> None:
            stop = min(start + STRIP, raw.description.height)
            strips = [raw.read_rows(n, start, stop) for n in range(len(raw.description.bands))]
            pixels = np.stack([halve(strip, raw.description.nodata) for strip in strips])
            coarser.write(Window(start // 2, 0, *pixels.shape[1:]), pixels)

        # Two at once: NumPy leaves other threads free to work.
        with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
            list(pool.map(fill, range(0, about.height, STRIP)))
        coarser.close()
        made.append(coarser)
        raw = coarser
    return made


def halve(pixels: NDArray[np.uint16], nodata: int) -> NDArray[np.uint16]:
    """Means of 2 x 2 pixels (y, x), of those that have data; a half is rounded up.

    The last row and column of an odd number are means of the two pixels there are.
    """
    pixels = np.pad(pixels, [(0, n % 2) for n in pixels.shape], constant_values=nodata)
    quarters = [pixels[y::2, x::2] for y in (0, 1) for x in (0, 1)]
    if pixels.min() > nodata or pixels.max() < nodata:
        total = np.add(quarters[0], quarters[1], dtype=np.uint32)
        for quarter in quarters[2:]:
            total += quarter
        total += 2
        total >>= 2
        return total.astype(np.uint16)
    there = [quarter != nodata for quarter in quarters]
    count = np.sum(there, axis=0, dtype=np.uint32)
    parts = zip(quarters, there, strict=True)
    total = np.sum([np.where(known, quarter, 0) for quarter, known in parts], 0, dtype=np.uint32)
    means = (2 * total + count) // np.maximum(2 * count, 1)
    return np.where(count > 0, means, nodata).astype(np.uint16)


def _write_geotiff(raw: RawRaster, path: pathlib.Path) -> None:
    """As raster.write_geotiff: 256 px blocks, a band after the other."""
    _copy(
        raw.vrt,
        path,
        driver="GTiff",
        TILED="YES",
        BLOCKXSIZE=raster.BLOCK,
        BLOCKYSIZE=raster.BLOCK,
        PREDICTOR=2,
        ZLEVEL=LEVEL,
        INTERLEAVE="BAND",
    )


def _copy(source: pathlib.Path, path: pathlib.Path, **options: Any) -> None:
    import rasterio
    import rasterio.shutil

    rasterio.shutil.copy(
        os.fspath(source), os.fspath(path), COMPRESS="DEFLATE", BIGTIFF="IF_SAFER", **options
    )
    # A disk that ran full shows where GDAL wrote last; libtiff has been seen to hide that.
    with rasterio.open(path) as file:
        last = [n - 1 for n in (file.height, file.width)]
        file.read(file.count, window=((last[0], last[0] + 1), (last[1], last[1] + 1)))


def _write_zarr(raw: RawRaster, path: pathlib.Path) -> None:
    """A Zarr v3 group as xarray has it: one (y, x) array a band, CF's scale and offset.

    `xarray.open_zarr(path)` gives reflectance, NaN where there are no data; with
    `mask_and_scale=False` DN. Its CRS is a grid mapping (`spatial_ref`), which rioxarray reads.
    """
    import rasterio
    import zarr

    about = raw.description
    dataset, encoding = _lazy_dataset(about)
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        # Zarr 3 has no consolidated metadata in its specification yet; xarray warns without.
        dataset.to_zarr(
            path, mode="w", zarr_format=3, compute=False, encoding=encoding, consolidated=True
        )
    group: Any = zarr.open_group(str(path), mode="r+", zarr_format=3)
    with rasterio.open(raw.vrt) as file:
        for index, band in enumerate(about.bands):
            for y in range(0, about.height, ZARR_SHARD):
                for x in range(0, about.width, ZARR_SHARD):
                    rows = y, min(y + ZARR_SHARD, about.height)
                    columns = x, min(x + ZARR_SHARD, about.width)
                    pixels = file.read(index + 1, window=(rows, columns))
                    group[band][slice(*rows), slice(*columns)] = pixels


def _lazy_dataset(about: Description) -> tuple[Any, dict[str, Any]]:
    """(dataset without pixels, encoding of its variables)."""
    import dask.array
    import xarray

    from data_pipelines.xarray_backend import coordinates

    shape = about.height, about.width
    variables, encoding = {}, {}
    shard = tuple(min(ZARR_SHARD, -(-n // ZARR_CHUNK) * ZARR_CHUNK) for n in shape)
    for index, band in enumerate(about.bands):
        attributes: dict[str, Any] = {"long_name": band, "grid_mapping": "spatial_ref"}
        if about.crs is None:
            del attributes["grid_mapping"]
        if band in sentinel2.BANDS:
            attributes["wavelength"] = sentinel2.BANDS[band].wavelength
        if about.scales is not None and about.offsets is not None:
            attributes["scale_factor"] = about.scales[index]
            attributes["add_offset"] = about.offsets[index]
        attributes["_FillValue"] = np.uint16(about.nodata)
        pixels = dask.array.zeros(shape, np.uint16, chunks=shard)
        variables[band] = (("y", "x"), pixels, attributes)
        encoding[band] = {"chunks": (ZARR_CHUNK, ZARR_CHUNK), "shards": shard}
    places = coordinates(about.transform, about.crs, shape)
    return xarray.Dataset(variables, places, dict(about.tags)), encoding


# Format -> (suffix of its files, how it is written).
FORMATS: dict[str, tuple[str, Callable[[RawRaster, pathlib.Path], None]]] = {
    "COG": (".tif", _write_cog),
    "GTiff": (".tif", _write_geotiff),
    "Zarr": (".zarr", _write_zarr),
}
