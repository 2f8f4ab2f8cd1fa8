"""A raster that grows in any order, by any number of processes: plain pixels in one file.

A window is written where it belongs, whatever was written before, so a prediction can be broken off
and go on, and ranks can share it. GDAL reads the file through a VRT beside it, which has all that
is known of the pixels; raster_formats makes COG, GeoTIFF or Zarr of that.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.spec import DataError
from data_pipelines.windows import Window

PIXELS, VRT = "pixels.raw", "pixels.vrt"
DTYPE = np.dtype("<u2")


@dataclasses.dataclass(frozen=True)
class Description:
    """What is known of a raster of uint16 DN."""

    bands: tuple[str, ...]
    """Names, in the order of the file."""
    height: int
    """Rows [px]."""
    width: int
    """Columns [px]."""
    crs: str | None = None
    """Anything that GDAL takes as CRS."""
    transform: tuple[float, ...] | None = None
    """Six numbers of an affine.Affine, pixel -> CRS."""
    scales: tuple[float, ...] | None = None
    """Of each band: reflectance = DN * scale + offset. None: nothing is said in the file."""
    offsets: tuple[float, ...] | None = None
    """Likewise [reflectance]."""
    nodata: int = 0
    """The DN that means no data."""
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Text to store in the file by name."""

    @property
    def num_bytes(self) -> int:
        """Of all pixels."""
        return len(self.bands) * self.height * self.width * DTYPE.itemsize


class RawRaster:
    """The pixels, (band, y, x) one after the other, in a folder that is being worked in.

    Plain reads and writes, no memory map: its pages would count as the process' own, and a full
    disk would end it by a signal.
    """

    def __init__(self, folder: pathlib.Path, description: Description) -> None:
        """Opens nothing yet."""
        self.path, self.vrt = folder / PIXELS, folder / VRT
        self.description = description
        self._file: int | None = None
        self._opening = threading.Lock()

    def create(self) -> None:
        """Make the file with room for all pixels, keeping those that are there already.

        Raises:
            DataError: it cannot be made, the disk has no room for it, or GDAL knows no such CRS.
        """
        import rasterio

        size = self.description.num_bytes
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                # Now, not after hours of computing.
                os.posix_fallocate(descriptor, 0, size)
                os.ftruncate(descriptor, size)
            finally:
                os.close(descriptor)
            self.vrt.write_text(build_vrt(self.description, self.path.name), encoding="utf-8")
        except rasterio.errors.CRSError as error:
            crs = self.description.crs
            raise DataError(
                f"{self.path.parent}: CRS {crs!r}: not known to GDAL: {error}"
            ) from error
        except OSError as error:
            raise self._not_written(error) from error

    def write(self, window: Window, pixels: NDArray[np.uint16]) -> None:
        """Write (band, y, x) at a window, from any thread or process.

        Raises:
            DataError: the window does not fit, or the file cannot be written.
        """
        about = self.description
        shape = len(about.bands), window.height, window.width
        if pixels.shape != shape or pixels.dtype != DTYPE:
            found = f"{pixels.dtype} {pixels.shape}"
            raise DataError(f"{self.path}: {found} to write; expected uint16 {shape}")
        if window != window.clipped(about.height, about.width):
            raise DataError(f"{self.path}: {window} is outside {about.height} x {about.width} px")
        try:
            with self._opening:
                if self._file is None:
                    self._file = os.open(self.path, os.O_WRONLY)
            for number, band in enumerate(np.ascontiguousarray(pixels)):
                start = number * about.height + window.y
                if window.width == about.width:
                    self._put(band, start * about.width)
                    continue
                for y, row in enumerate(band):
                    self._put(row, (start + y) * about.width + window.x)
        except OSError as error:
            raise self._not_written(error) from error

    def read_rows(self, band: int, start: int, stop: int) -> NDArray[np.uint16]:
        """(y, x) rows `start` to `stop` of a band, counted from 0, from any thread."""
        about = self.description
        count = (stop - start) * about.width
        first = (band * about.height + start) * about.width * DTYPE.itemsize
        return np.fromfile(self.path, DTYPE, count, offset=first).reshape(-1, about.width)

    def _put(self, values: NDArray[np.uint16], position: int) -> None:
        """Contiguous values at a position [px]; the system may take them in pieces."""
        data = memoryview(values.data).cast("B")
        at = position * DTYPE.itemsize
        while len(data):
            done = os.pwrite(self._file or 0, data, at)
            data, at = data[done:], at + done

    def sync(self) -> None:
        """What was written is on disk when this returns."""
        if self._file is not None:
            try:
                os.fdatasync(self._file)
            except OSError as error:
                raise self._not_written(error) from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _not_written(self, error: OSError) -> DataError:
        size = self.description.num_bytes / 1e6
        return DataError(
            f"{self.path.parent}: cannot be written: {error.strerror or error} "
            f"({size:,.0f} MB are needed until the output is complete)"
        )


def build_vrt(about: Description, file: str, overviews: Sequence[str] = ()) -> str:
    """GDAL's VRT of a raw raster.

    Source: GDAL, "VRT -- GDAL Virtual Format", VRTRawRasterBand and Overview.

    Args:
        about: what is known of it.
        file: its pixels, relative to the VRT.
        overviews: VRTs of coarser copies, relative to the VRT.
    """
    import rasterio

    attributes = {"rasterXSize": str(about.width), "rasterYSize": str(about.height)}
    root = ElementTree.Element("VRTDataset", attributes)

    def add(parent: ElementTree.Element, name: str, value: Any, **more: str) -> ElementTree.Element:
        element = ElementTree.SubElement(parent, name, more)
        element.text = str(value)
        return element

    if about.crs is not None:
        add(root, "SRS", rasterio.CRS.from_user_input(about.crs).to_wkt())
    if about.transform is not None:
        a, b, c, d, e, f = about.transform
        add(root, "GeoTransform", ", ".join(map(repr, (c, a, b, f, d, e))))
    metadata = ElementTree.SubElement(root, "Metadata")
    for key, value in about.tags.items():
        add(metadata, "MDI", value, key=key)
    item = DTYPE.itemsize
    for index, name in enumerate(about.bands):
        band = ElementTree.SubElement(
            root,
            "VRTRasterBand",
            {"dataType": "UInt16", "band": str(index + 1), "subClass": "VRTRawRasterBand"},
        )
        add(band, "Description", name)
        add(band, "NoDataValue", about.nodata)
        if about.offsets is not None:
            add(band, "Offset", repr(about.offsets[index]))
        if about.scales is not None:
            add(band, "Scale", repr(about.scales[index]))
        for path in overviews:
            overview = ElementTree.SubElement(band, "Overview")
            add(overview, "SourceFilename", path, relativeToVRT="1")
            add(overview, "SourceBand", index + 1)
        add(band, "SourceFilename", file, relativeToVRT="1")
        add(band, "ImageOffset", index * about.height * about.width * item)
        add(band, "PixelOffset", item)
        add(band, "LineOffset", about.width * item)
        add(band, "ByteOrder", "LSB")
    return ElementTree.tostring(root, encoding="unicode")
