"""What users take away: GeoTIFF, streamed from the top row to the bottom row, atomic."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.files import replacing
from data_pipelines.spec import DataError

# Edge of the blocks in the file [px]. GDAL compresses block by block, so rows are handed over in
# whole blocks.
BLOCK = 256


def check_output(path: str | os.PathLike[str], *, overwrite: bool) -> pathlib.Path:
    """Refuse an output that exists or cannot be made, before any work is done for it.

    Raises:
        DataError: the file exists and overwrite is False, or is a folder, or has no folder.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise DataError(f"{path}: a folder; expected the name of a file to write")
    if not path.parent.is_dir():
        raise DataError(f"{path}: no folder {path.parent}")
    if path.exists() and not overwrite:
        raise DataError(f"{path}: exists; give --overwrite to replace it")
    return path


def rows_in_blocks(strips: Iterable[NDArray[Any]], block: int = BLOCK) -> Iterator[NDArray[Any]]:
    """Regroup strips (band, rows, x) of any heights into strips of a multiple of `block` rows.

    The last one has the rest. Holds at most one strip and `block - 1` rows.
    """
    rest: list[NDArray[Any]] = []
    num_rows = 0
    for strip in strips:
        rest.append(strip)
        num_rows += strip.shape[1]
        if num_rows >= block:
            merged = np.concatenate(rest, axis=1)
            whole = num_rows // block * block
            yield merged[:, :whole]
            rest, num_rows = [merged[:, whole:]], num_rows - whole
    if num_rows:
        yield np.concatenate(rest, axis=1)


def write_geotiff(
    path: str | os.PathLike[str],
    strips: Iterable[NDArray[Any]],
    *,
    height: int,
    width: int,
    bands: Sequence[str],
    dtype: str = "uint16",
    nodata: float | None = 0,
    crs: Any = None,
    transform: Any = None,
    tags: Mapping[str, str] | None = None,
    scales: Sequence[float] | None = None,
    offsets: Sequence[float] | None = None,
    overwrite: bool = False,
) -> None:
    """Write strips to a GeoTIFF: 256 px blocks, deflate, band names; whole or not at all.

    Args:
        path: the file to write.
        strips: arrays (band, rows, x) of `dtype` from the top row on, `height` rows in all.
        height: rows of the file [px].
        width: columns of the file [px].
        bands: band names in order, written as band descriptions.
        dtype: numpy name of the type in the file.
        nodata: the value that means "no data"; None for none.
        crs: anything rasterio takes as CRS; None writes none.
        transform: affine.Affine from pixel to CRS coordinates; None writes none.
        tags: text to store in the file by name.
        scales: GDAL's scale of each band, physical value = stored value * scale + offset; None
            writes none.
        offsets: likewise, in physical units.
        overwrite: replace an existing file.

    Raises:
        DataError: the output cannot be made, or strips do not fit height, width, bands, dtype.
    """
    import rasterio

    path = check_output(path, overwrite=overwrite)
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "height": height,
        "width": width,
        "count": len(bands),
        "dtype": dtype,
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "compress": "deflate",
        # Differences between neighbours deflate better; GDAL's 2 is for integers, 3 for floats.
        "predictor": 2 if np.issubdtype(np.dtype(dtype), np.integer) else 3,
        "interleave": "band",
        "num_threads": "ALL_CPUS",
        "BIGTIFF": "IF_SAFER",
    }
    optional = {"nodata": nodata, "crs": crs, "transform": transform}
    profile.update({name: value for name, value in optional.items() if value is not None})
    try:
        with (
            replacing(path) as temporary,
            silent_without_georeference(),
            rasterio.open(temporary, "w", **profile) as file,
        ):
            file.descriptions = tuple(bands)
            if tags:
                file.update_tags(**tags)
            if scales is not None:
                file.scales = tuple(scales)
            if offsets is not None:
                file.offsets = tuple(offsets)
            _write_rows(file, path, strips)
    except rasterio.errors.RasterioError as error:
        raise DataError(f"{path}: cannot write: {error}") from error


def _write_rows(file: Any, path: pathlib.Path, strips: Iterable[NDArray[Any]]) -> None:
    """Write strips to an open rasterio file, checking that they fill it exactly."""
    from rasterio.windows import Window

    expected = (file.count, file.height, file.width)
    y = 0
    for rows in rows_in_blocks(_checked(strips, path, expected, file.dtypes[0])):
        if y + rows.shape[1] > file.height:
            raise DataError(f"{path}: more than the expected {file.height} rows to write")
        file.write(rows, window=Window(0, y, file.width, rows.shape[1]))
        y += rows.shape[1]
    if y != file.height:
        raise DataError(f"{path}: {y} rows to write, expected {file.height}")


def _checked(
    strips: Iterable[NDArray[Any]], path: pathlib.Path, expected: tuple[int, int, int], dtype: str
) -> Iterator[NDArray[Any]]:
    """Pass strips on; a strip of another type would wrap around silently when GDAL casts it."""
    bands, _, width = expected
    for strip in strips:
        if strip.ndim != 3 or (strip.shape[0], strip.shape[2]) != (bands, width):
            shape = f"({bands}, rows, {width})"
            raise DataError(f"{path}: strip of shape {strip.shape}, expected {shape}")
        if strip.dtype != np.dtype(dtype):
            raise DataError(f"{path}: strip of type {strip.dtype}, expected {dtype}")
        yield strip


def silent_without_georeference() -> Any:
    """Context without rasterio's warning about a missing transform: the caller wants none."""
    import warnings

    from rasterio.errors import NotGeoreferencedWarning

    return warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning)
