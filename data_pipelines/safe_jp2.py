"""JPEG 2000 images: their size, their pixels, and whether the file is whole."""

from __future__ import annotations

import dataclasses
import os
import struct
import warnings
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.safe_files import ProductFile, check_bytes
from data_pipelines.spec import DataError
from data_pipelines.windows import Window

_SIGNATURE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_START, _END, _TILE_PART = b"\xff\x4f", b"\xff\xd9", b"\xff\x90"


@dataclasses.dataclass(frozen=True)
class Header:
    """What an image says of itself."""

    shape: tuple[int, int]
    """(y, x) [px]."""
    num_bands: int
    dtype: str
    crs: Any
    """rasterio.crs.CRS, or None."""
    transform: tuple[float, ...] | None
    """Six numbers of an affine.Affine, or None."""
    block: int
    """Edge of the tiles that are decoded as wholes [px]; the longer one."""


def read_header(file: ProductFile) -> Header:
    """What an image says of itself; its pixels stay unread.

    Raises:
        DataError: not JPEG 2000, cut short, or damaged.
    """
    if not file.member:
        # In a zip the way to the end of a member leads through all of it: see read_pixels.
        with file.open() as stream:
            _check_whole(stream, os.path.getsize(file.path), file)
    import rasterio

    with _open(file) as image:
        try:
            # Text and numbers of the header are decoded only here.
            transform = None if image.transform.is_identity else tuple(image.transform)[:6]
            dtype, block = image.dtypes[0], max(image.block_shapes[0])
            header = Header(image.shape, image.count, dtype, image.crs, transform, block)
        except (rasterio.errors.RasterioError, ValueError) as error:
            raise DataError(f"{file}: damaged header: {error}") from error
        if not 1 <= image.count <= 3 or len(set(image.dtypes)) > 1:
            raise DataError(f"{file}: {image.count} bands {image.dtypes}; expected 1 to 3 alike")
    return header


def read_pixels(file: ProductFile, window: Window, index: int = 1) -> NDArray[Any]:
    """Pixels (y, x) of one band as stored.

    The file's bytes are held against manifest.safe, a zip's also against its CRC-32, once a
    process. Without either a flipped bit may pass: JPEG 2000 itself has no checksum.

    Raises:
        DataError: missing, cut short, or damaged.
    """
    import rasterio

    try:
        status = os.stat(file.path)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    if file.member or file.digest:
        check_bytes(file, status.st_size, status.st_mtime_ns)
    with _open(file) as image:
        if window.clipped(*image.shape) != window or index > image.count:
            raise DataError(f"{file}: {image.shape} px; expected {window} in band {index}")
        try:
            return read_blocks(image, window, index)
        except (rasterio.errors.RasterioError, ValueError) as error:
            reason = error.__cause__ or error
            raise DataError(f"{file}: damaged or cut short: {reason}") from error


def read_blocks(image: Any, window: Window, index: int = 1) -> NDArray[Any]:
    """Pixels (y, x) of an open JPEG 2000 image, block by block.

    Over several blocks at once GDAL (3.10.3) decodes in threads of its own, and a block that fails
    there comes back as zeros without an error; a single block raises.

    Args:
        image: rasterio dataset.
        window: inside of it.
        index: band, from 1.

    Raises:
        rasterio.errors.RasterioError: a block is missing or damaged.
    """
    from rasterio.windows import Window as Area

    pixels = np.empty((window.height, window.width), image.dtypes[index - 1])
    for part in _blocks(window, *image.block_shapes[index - 1]):
        inside = dataclasses.replace(part, y=part.y - window.y, x=part.x - window.x)
        area = Area(part.x, part.y, part.width, part.height)
        pixels[inside.slices] = image.read(index, window=area)
    return pixels


def _blocks(window: Window, height: int, width: int) -> list[Window]:
    """The window in pieces, one for each block of the image that it touches."""
    rows = range(window.y // height, -(-(window.y + window.height) // height))
    columns = range(window.x // width, -(-(window.x + window.width) // width))
    pieces = []
    for row in rows:
        for column in columns:
            y, x = max(row * height, window.y), max(column * width, window.x)
            stop_y = min((row + 1) * height, window.y + window.height)
            stop_x = min((column + 1) * width, window.x + window.width)
            pieces.append(Window(y, x, stop_y - y, stop_x - x))
    return pieces


def _open(file: ProductFile) -> Any:
    """rasterio.open, by this one driver: a file of another kind could name others to be read."""
    import rasterio

    try:
        with warnings.catch_warnings(
            action="ignore", category=rasterio.errors.NotGeoreferencedWarning
        ):
            return rasterio.open(file.gdal_name, driver="JP2OpenJPEG", sharing=False)
    except (rasterio.errors.RasterioError, ValueError) as error:
        raise DataError(f"{file}: not readable as JPEG 2000: {error}") from error


def _check_whole(stream: IO[bytes], size: int, where: object) -> None:
    """Follow the lengths of boxes and tile-parts to the end of the codestream.

    Source: ISO/IEC 15444-1, annexes A.4 (markers) and I.4 (boxes).

    Raises:
        DataError: something does not stand where the lengths say, as in a file that was cut.
    """
    start, stop = _codestream(stream, size, where)
    position = _main_header(stream, start, where)
    while True:
        stream.seek(position)
        head = stream.read(12)
        if head[:2] == _END and position + 2 == stop:
            return
        if head[:2] != _TILE_PART or len(head) < 12:
            raise _cut(where, position, size, "no tile-part and no end of the codestream")
        length = struct.unpack(">I", head[6:10])[0] or stop - 2 - position
        if length < 14 or position + length + 2 > stop:
            raise _cut(where, position, size, f"a tile-part of {length} bytes")
        position += length


def _codestream(stream: IO[bytes], size: int, where: object) -> tuple[int, int]:
    """First byte of the codestream, and the first behind it."""
    head = stream.read(12)
    if head[:2] == _START:
        return 0, size
    if head != _SIGNATURE:
        raise DataError(f"{where}: not readable as JPEG 2000: it begins with {head!r}")
    position = 12
    while True:
        stream.seek(position)
        head = stream.read(16)
        if len(head) < 8:
            raise _cut(where, position, size, "no codestream")
        length, header = struct.unpack(">I", head[:4])[0], 8
        if length == 1 and len(head) == 16:
            length, header = struct.unpack(">Q", head[8:])[0], 16
        length = length or size - position
        if length < header or position + length > size:
            raise _cut(where, position, size, f"a box of {length} bytes")
        if head[4:8] == b"jp2c":
            return position + header, position + length
        position += length


def _main_header(stream: IO[bytes], start: int, where: object) -> int:
    """Where the first tile-part begins."""
    stream.seek(start)
    if stream.read(2) != _START:
        raise DataError(f"{where}: damaged at byte {start}: no start of a codestream")
    position = start + 2
    while True:
        stream.seek(position)
        head = stream.read(4)
        if len(head) < 4 or head[0] != 0xFF:
            raise DataError(f"{where}: damaged or cut short at byte {position}: no marker")
        if head[:2] == _TILE_PART:
            return position
        position += 2 + struct.unpack(">H", head[2:])[0]


def _cut(where: object, position: int, size: int, what: str) -> DataError:
    return DataError(f"{where}: damaged or cut short: at byte {position} of {size}: {what}")
