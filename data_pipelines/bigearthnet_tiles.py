"""Whole tiles that were brought to 10 m first, and BigEarthNet's patches cut out of them.

The classification paper's way (Sedona et al. 2019, section 3.2): patches of upsampled tiles have no
seams of their own, as a patch has that is upsampled alone.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import bigearthnet, geotiff, partial
from data_pipelines.bigearthnet import BANDS, SIZES
from data_pipelines.bigearthnet_patches import Images
from data_pipelines.granule import SAME_PLACE, build_cube, harmonise
from data_pipelines.spec import DataError

# In names of products and of files made of them: spacecraft, day, tile.
_PRODUCT = re.compile(r"(S2[A-D])_MSIL\d[AC]_(\d{8})T\w*?_T(\d\d[A-Z]{3})(?![A-Z0-9])")
# In the names of patches: spacecraft, day.
_DAY = re.compile(r"(S2[A-D])_MSIL\d[AC]_(\d{8})T")

# Spacecraft, day, tile.
_Key = tuple[str, str, str]


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Cuts patches out of tiles; an Upsampler."""

    files: Mapping[_Key, pathlib.Path]
    """GeoTIFF of each, all BANDS at 10 m."""

    @property
    def description(self) -> str:
        """Changes when a file does."""
        crc = 0
        for file in self.files.values():
            crc = zlib.crc32(f"{file.name} {partial.stamp(str(file))}".encode(), crc)
        return f"{len(self.files)} upsampled tiles ({crc:08x})"

    def __call__(self, images: Images, place: str, name: str) -> NDArray[np.uint16]:
        """All bands of a patch at 10 m, (y, x, band) uint16 DN without offset.

        All 0 where the tile has no data in the whole patch: left out then as all such patches are.

        Args:
            images: of the patch; not looked at.
            place: its folder, or the LMDB that holds it.
            name: of the patch.

        Raises:
            DataError: no tile for it, or the tile's grid is another, or has data in a part only.
        """
        key, position = _find_key(place, name)
        file = self.files.get(key)
        if file is None:
            raise DataError(f"{name}: no tile {' '.join(key)} among the {len(self.files)} given")
        facts = geotiff.read_facts(file)
        row, column = _find_window(file, facts, place, name, position)
        pixels = _read(file, facts, row, column)
        # 0 in a single band is a dark pixel of a processor that clips there; in all bands it is
        # what kerass2.predict writes where a product has no data.
        missing = np.count_nonzero(~pixels.any(axis=-1))
        if 0 < missing < pixels[..., 0].size:
            raise DataError(
                f"{name}: {file} has no data in {missing:,} of the {pixels[..., 0].size:,} pixels "
                "there (0 in all bands)"
            )
        return pixels


def find_tiles(folder: pathlib.Path) -> Tiles:
    """Tiles of a folder of GeoTIFFs that kerass2.predict has made with `--bands all`.

    Raises:
        DataError: no such file, two of one product, or one without all bands at 10 m.
    """
    files: dict[_Key, pathlib.Path] = {}
    for file in sorted([*folder.glob("*.tif"), *folder.glob("*.tiff")]):
        match = _PRODUCT.search(file.name)
        if not match:
            continue
        key = (match[1], match[2], match[3])
        if key in files:
            raise DataError(f"{folder}: two tiles {' '.join(key)}: {files[key].name}, {file.name}")
        _check(file)
        files[key] = file.absolute()
    if not files:
        raise DataError(
            f"{folder}: no upsampled tile; expected GeoTIFFs named after their products, such as "
            "S2A_MSIL2A_20170613T101031_N0205_R022_T33UUP_20170613T101608.tif"
        )
    return Tiles(files)


def _check(file: pathlib.Path) -> None:
    """Refuse a file without all bands, at 10 m, with a place."""
    facts = geotiff.read_facts(file)
    names = [geotiff.band_name(text) for text in facts["bands"]]
    missing = [band for band in BANDS if band not in names]
    if missing:
        raise DataError(
            f"{file}: no band {', '.join(missing)}; expected all 12 at 10 m: kerass2.predict with "
            "--bands all and models for 20 m and 60 m"
        )
    steps = facts["transform"] and [facts["transform"][i] for i in (0, 1, 3, 4)]
    if steps != [10, 0, 0, -10] or facts["crs"] is None:
        raise DataError(f"{file}: pixels {steps}, CRS {facts['crs']}; expected 10 m, north up")


def _find_key(place: str, name: str) -> tuple[_Key, tuple[int, int]]:
    """Product of a patch, and (row, column) of the patch in its tile."""
    _, tile, position = bigearthnet.parse_name(name)
    tile = tile or bigearthnet.tile_from_json(pathlib.Path(place), name)
    day = _DAY.match(name)
    if tile is None or day is None:
        raise DataError(
            f"{name}: of which tile is not known; expected it in the name (v2) or as tile_source "
            "in the labels (v1)"
        )
    return (day[1], day[2], tile), position


def _find_window(
    file: pathlib.Path,
    facts: Mapping[str, Any],
    place: str,
    name: str,
    position: tuple[int, int],
) -> tuple[int, int]:
    """First row and column of a patch in a tile [px].

    By the patch's georeference; an LMDB has none, so there by the place that its name tells, from
    the tile's corner.

    Raises:
        DataError: another CRS, no whole number of pixels, or outside of the tile.
    """
    size, (rows, columns) = SIZES["gsd10"], facts["shape"]
    mine = pathlib.Path(place, f"{name}_B02.tif")
    known = geotiff.read_facts(mine) if mine.is_file() else {}
    if known.get("transform") is None:
        row, column = position[0] * size, position[1] * size
    else:
        if known["crs"] != facts["crs"]:
            raise DataError(f"{name}: CRS {known['crs']}; {file} has {facts['crs']}")
        east = known["transform"][2] - facts["transform"][2]
        south = facts["transform"][5] - known["transform"][5]
        row, column = round(south / 10), round(east / 10)
        if max(abs(south - 10 * row), abs(east - 10 * column)) > SAME_PLACE:
            raise DataError(
                f"{name}: begins {east:g} m east and {south:g} m south of the corner of {file}; "
                "expected whole pixels of 10 m"
            )
    if not (0 <= row <= rows - size and 0 <= column <= columns - size):
        raise DataError(
            f"{name}: rows {row} to {row + size} and columns {column} to {column + size} lie "
            f"outside of {file}, {rows} x {columns} px"
        )
    return row, column


def _read(
    file: pathlib.Path, facts: Mapping[str, Any], row: int, column: int
) -> NDArray[np.uint16]:
    """(y, x, band) of a patch, the offset of newer products taken out."""
    from rasterio.windows import Window

    size = SIZES["gsd10"]
    names = [geotiff.band_name(text) for text in facts["bands"]]
    order = [names.index(band) for band in BANDS]
    pixels = geotiff.read_pixels(file, [i + 1 for i in order], Window(column, row, size, size))
    scales = [geotiff.read_scale(file, facts["scales"][i], facts["offsets"][i]) for i in order]
    pairs = [pair or (0.0, 10_000.0) for pair in scales]
    offset, quantification = zip(*pairs, strict=True)
    cube = build_cube(pixels, BANDS, 10, offset=offset, quantification=quantification)
    return np.ascontiguousarray(np.moveaxis(harmonise(cube).values, 0, -1))
