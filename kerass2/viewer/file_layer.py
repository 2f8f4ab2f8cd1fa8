"""The layer of the map that is a file: a prediction, or any GeoTIFF of numbers."""

from __future__ import annotations

import pathlib
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import geotiff, raster, sentinel2
from data_pipelines.spec import DataError
from data_pipelines.windows import Window
from kerass2.viewer.layers import Image, Layer, Meaning, count_levels, shape_of_level


class FileLayer(Layer):
    """The prediction: a GeoTIFF, whose own overviews are the levels where it has them."""

    def __init__(self, path: pathlib.Path) -> None:
        """Opens it; it stays open.

        Raises:
            DataError: not a GeoTIFF of numbers, or damaged.
        """
        import rasterio

        self._path, self._reading = path, threading.Lock()
        file = _open(path)
        try:
            self.crs, self.tags = file.crs, dict(file.tags())
            bands = name_bands(file.descriptions)
            means = _read_means(path, file, bands)
        except (rasterio.errors.CRSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not readable as GeoTIFF: {error}") from error
        # GDAL answers with the identity where a file has no transform.
        self.transform = None if file.transform.is_identity else tuple(file.transform)[:6]
        if any(np.dtype(name).kind not in "uif" for name in file.dtypes):
            raise DataError(f"{path}: {file.dtypes[0]}; expected whole or floating point numbers")
        super().__init__("prediction", bands, (file.height, file.width), means)
        self._files = {0: file, **_open_overviews(path, file)}
        # A file that was cut off shows here: GDAL writes the last pixels last.
        last = Window(file.height - 1, file.width - 1, 1, 1)
        for band in (bands[0], bands[-1]):
            self._read(0, band, last)

    @property
    def synthetic(self) -> bool:
        """Whether the pixels were made of ones that were made up."""
        return geotiff.SYNTHETIC_TAGS.items() <= self.tags.items()

    def read(self, band: str, window: Window) -> Image:
        """See Layer."""
        return self._to_image(self._read(0, band, window))

    def read_pixel(self, band: str, y: int, x: int) -> int | float | None:
        """See Layer."""
        value = self._read(0, band, Window(y, x, 1, 1))[0, 0]
        return None if self._is_empty(value) else value.item()

    def read_level(self, band: str, level: int, window: Window) -> Image:
        """See Layer."""
        if level in self._files:
            return self._to_image(self._read(level, band, window))
        return super().read_level(band, level, window)

    def _read(self, level: int, band: str, window: Window) -> NDArray[Any]:
        """(y, x) as stored."""
        import rasterio.windows

        area = rasterio.windows.Window(window.x, window.y, window.width, window.height)
        file = self._files[level]
        try:
            # One at a time: GDAL's datasets are not for several threads.
            with self._reading:
                pixels: NDArray[Any] = file.read(self.bands.index(band) + 1, window=area)
        except rasterio.errors.RasterioError as error:
            # rasterio's own message only points at its cause.
            why = error.__cause__ or error
            raise DataError(f"{self._path}: cannot read pixels: {why}") from error
        return pixels

    def _is_empty(self, pixels: Any) -> Any:
        nodata = self._files[0].nodata
        return np.isnan(pixels) if nodata is None else (pixels == nodata) | np.isnan(pixels)

    def _to_image(self, pixels: NDArray[Any]) -> Image:
        image = pixels.astype(np.float32)
        image[self._is_empty(pixels)] = np.nan
        return image


def _open(path: pathlib.Path, **options: Any) -> Any:
    """A rasterio dataset; GDAL's driver of GeoTIFF only, as others could lead to other files."""
    import rasterio

    try:
        with raster.silent_without_georeference():
            return rasterio.open(path, driver=geotiff.GEOTIFF, **options)
    except rasterio.errors.RasterioError as error:
        raise DataError(f"{path}: not readable as GeoTIFF: {error}") from error


def _open_overviews(path: pathlib.Path, file: Any) -> dict[int, Any]:
    """Level -> dataset, of the overviews that are as large as a level."""
    found = {}
    shape = file.height, file.width
    levels = {shape_of_level(shape, level): level for level in range(1, count_levels(shape))}
    for index in range(len(file.overviews(1))):
        overview = _open(path, overview_level=index)
        level = levels.get((overview.height, overview.width))
        if level is None:
            overview.close()
        else:
            found[level] = overview
    return found


def name_bands(descriptions: tuple[str | None, ...]) -> tuple[str, ...]:
    """A name for each band of a file, no two the same."""
    names: list[str] = []
    for number, description in enumerate(descriptions, 1):
        name = description or f"band {number}"
        names.append(name if name not in names else f"{name} ({number})")
    return tuple(names)


def _read_means(path: pathlib.Path, file: Any, bands: tuple[str, ...]) -> dict[str, Meaning]:
    """Band -> (offset, quantification), of those whose DN are known to be reflectance."""
    if file.dtypes[0] != "uint16":
        return {}
    plain = file.tags().get("UNIT", "").startswith("reflectance x 10000")
    found: dict[str, Meaning] = {}
    for band, scale, offset in zip(bands, file.scales, file.offsets, strict=True):
        try:
            meaning = geotiff.read_scale(path, scale, offset)
        except DataError:
            continue  # a scale of something else
        if meaning is not None:
            found[band] = meaning
        elif plain:
            found[band] = 0.0, float(sentinel2.QUANTIFICATION)
    return found
