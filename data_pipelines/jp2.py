"""JPEG 2000 without loss, tiled as ESA's, of images of any size."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from numpy.typing import NDArray

from data_pipelines import raster

# Edge of a JP2 tile by GSD [px]. Source: the products themselves.
JP2_TILES = {10: 1024, 20: 640, 60: 192}
# Threads of the JP2 encoder.
NUM_THREADS = "ALL_CPUS"


@dataclasses.dataclass(frozen=True)
class Rows:
    """An image that is made strip by strip, because it is too large for the memory."""

    shape: tuple[int, int, int]
    """(band, y, x)."""
    strips: Callable[[], Iterator[NDArray[Any]]]
    """Answers with arrays (band, rows, x) from the top row on, `y` rows in all."""


Image = NDArray[Any] | Rows


def as_rows(image: Image) -> Rows:
    """An array (band, y, x) as Rows, 256 rows at a time."""
    if isinstance(image, Rows):
        return image
    array = image
    count, height, width = array.shape
    starts = range(0, height, 256)
    return Rows((count, height, width), lambda: (array[:, y : y + 256] for y in starts))


def write_jp2(
    files: Sequence[pathlib.Path],
    image: Rows,
    gsd: int,
    epsg: int,
    corner: tuple[float, float],
) -> None:
    """Write one JP2 per band, without loss, tiled as ESA's; memory does not grow with the image.

    GDAL can only copy to JP2: the strips go to raw GeoTIFFs beside the files first.

    Args:
        files: one a band; their folders are made.
        image: uint16 or uint8.
        gsd: size of a pixel [m].
        epsg: CRS.
        corner: (x, y) of the upper left corner in the CRS [m].

    Raises:
        ValueError: the strips are not as many rows as the image has.
    """
    import rasterio
    import rasterio.shutil
    from affine import Affine

    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
    raws = [file.with_suffix(".raw.tif") for file in files]
    transform = Affine(gsd, 0, corner[0], 0, -gsd, corner[1])
    _write_raws(raws, image, {"crs": rasterio.CRS.from_epsg(epsg), "transform": transform})
    tile = JP2_TILES[gsd]
    options = {"QUALITY": 100, "REVERSIBLE": "YES", "BLOCKXSIZE": tile, "BLOCKYSIZE": tile}
    for raw, file in zip(raws, files, strict=True):
        with rasterio.Env(GDAL_NUM_THREADS=NUM_THREADS, GDAL_PAM_ENABLED="NO"):
            rasterio.shutil.copy(raw, file, driver="JP2OpenJPEG", **options)
        raw.unlink()


def _write_raws(raws: Sequence[pathlib.Path], image: Rows, place: dict[str, Any]) -> None:
    """Write one uncompressed GeoTIFF per band; `place`: its CRS and transform."""
    import rasterio
    import rasterio.windows

    _, height, width = image.shape
    profile = {
        **place,
        "driver": "GTiff",
        "count": 1,
        "height": height,
        "width": width,
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "BIGTIFF": "IF_SAFER",
    }
    y = 0
    with contextlib.ExitStack() as stack:
        outputs: list[Any] = []
        for strip in raster.rows_in_blocks(image.strips()):
            if not outputs:
                profile["dtype"] = strip.dtype
                outputs = [stack.enter_context(rasterio.open(r, "w", **profile)) for r in raws]
            window = rasterio.windows.Window(0, y, width, strip.shape[1])
            for output, band in zip(outputs, strip, strict=True):
                output.write(band, 1, window=window)
            y += strip.shape[1]
    if y != height:
        raise ValueError(f"{y} rows of strips; expected {height}")
