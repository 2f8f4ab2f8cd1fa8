"""What lies above each other on the map: the input, bicubic interpolation, and file_layer.py's.

All on the prediction's grid. Level 0 has its pixels; a pixel of level n is the mean of 2^n x 2^n of
them, of those that have data.
"""

from __future__ import annotations

import abc
import functools
import math
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_pipelines import sentinel2
from data_pipelines.windows import Window
from kerass2.viewer import kept_chunks

if TYPE_CHECKING:
    from data_pipelines.granule import Granule
    from kerass2.sharpen import Plan

Image = NDArray[np.float32]
Meaning = tuple[float, float]

# Longest edge of the coarsest level [px].
SMALLEST = 512
# From this level on a band is kept in memory, as level KEPT: 8 MB of a whole tile. Finer ones are
# made of the pixels below as they are asked for.
KEPT = 3
# Rows that are read at once to make it [px]: whole chunks of a granule, a multiple of 2^KEPT.
STRIP = 2160


class Layer(abc.ABC):
    """Bands on one grid."""

    def __init__(
        self,
        name: str,
        bands: tuple[str, ...],
        shape: tuple[int, int],
        means: Mapping[str, Meaning],
    ) -> None:
        """`shape` (y, x) of level 0; `means`: band -> (offset [DN], quantification)."""
        self.name, self.bands, self.shape, self.means = name, bands, shape, means
        self._kept: dict[str, Image] = {}
        self._keeping = threading.Lock()

    @abc.abstractmethod
    def read(self, band: str, window: Window) -> Image:
        """(y, x) stored values of a window inside level 0, NaN without data.

        Raises:
            DataError: they cannot be read.
        """

    @abc.abstractmethod
    def read_pixel(self, band: str, y: int, x: int) -> int | float | None:
        """The stored value of one pixel of level 0, None without data; raises as read."""

    def read_level(self, band: str, level: int, window: Window) -> Image:
        """As read, of a window inside a level."""
        if level < KEPT:
            fine = window.finer(2**level).clipped(*self.shape)
            return reduce(self.read(band, fine), 2**level)
        kept = self._keep(band)
        factor = 2 ** (level - KEPT)
        return reduce(kept[window.finer(factor).slices], factor)

    def _keep(self, band: str) -> Image:
        """Level KEPT of a band, made once."""
        with self._keeping:
            if band not in self._kept:
                height, width = self.shape
                strips = [
                    Window(y, 0, min(STRIP, height - y), width) for y in range(0, height, STRIP)
                ]
                parts = [reduce(self.read(band, strip), 2**KEPT) for strip in strips]
                self._kept[band] = np.concatenate(parts)
            return self._kept[band]


def count_levels(shape: tuple[int, int]) -> int:
    """Levels of a raster: the last one is the first whose edges are at most SMALLEST."""
    return 1 + max(0, math.ceil(math.log2(max(shape) / SMALLEST)))


def shape_of_level(shape: tuple[int, int], level: int) -> tuple[int, int]:
    """(y, x) of a level; its last row and column may stand for less than the others."""
    return -(-shape[0] // 2**level), -(-shape[1] // 2**level)


def reduce(values: Image, factor: int) -> Image:
    """Means (y, x) of squares of pixels, of those that are not NaN."""
    if factor == 1:
        return values
    values = np.pad(values, [(0, -size % factor) for size in values.shape], constant_values=np.nan)
    height, width = (size // factor for size in values.shape)
    squares = values.reshape(height, factor, width, factor)
    known = ~np.isnan(squares)
    count = known.sum(axis=(1, 3))
    total = np.where(known, squares, 0).sum(axis=(1, 3), dtype=np.float64)
    means = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return means.astype(np.float32)


class InputLayer(Layer):
    """A granule as it was measured, its pixels repeated to 10 m."""

    def __init__(self, granule: Granule, roi: Window, name: str = "input") -> None:
        """`roi`: where the prediction lies in the granule [px of 10 m]."""
        from kerass2 import meaning

        self.granule, self.roi = kept_chunks.keep(granule), roi
        self._places: dict[str, tuple[str, int]] = {}
        means: dict[str, Meaning] = {}
        for key, cube in granule.cubes.items():
            told = meaning.dn_meaning(cube)
            pairs = zip(told["offset"].tolist(), told["quantification"].tolist(), strict=True)
            names = list(map(str, cube.band.values))
            means.update(zip(names, pairs, strict=True))
            self._places.update({band: (key, index) for index, band in enumerate(names)})
        bands = tuple(band for band in sentinel2.BANDS if band in self._places)
        super().__init__(name, bands, (roi.height, roi.width), means)

    def gsd_of(self, band: str) -> int:
        """Of the cube that has it [m]."""
        return sentinel2.GSDS[self._places[band][0]]

    def read(self, band: str, window: Window) -> Image:
        """See Layer."""
        key, index = self._places[band]
        ratio = sentinel2.GSDS[key] // 10
        y, x = window.y + self.roi.y, window.x + self.roi.x
        rows = slice(y // ratio, -(-(y + window.height) // ratio))
        columns = slice(x // ratio, -(-(x + window.width) // ratio))
        coarse = np.asarray(self.granule.cubes[key].data[index, rows, columns])
        fine = coarse.repeat(ratio, axis=0).repeat(ratio, axis=1)
        inside = Window(y % ratio, x % ratio, window.height, window.width)
        return _from_dn(fine[inside.slices])

    def read_pixel(self, band: str, y: int, x: int) -> int | float | None:
        """See Layer."""
        key, index = self._places[band]
        ratio = sentinel2.GSDS[key] // 10
        place = (y + self.roi.y) // ratio, (x + self.roi.x) // ratio
        dn = int(np.asarray(self.granule.cubes[key].data[index, *place]))
        return None if dn == sentinel2.NO_DATA else dn


class BicubicLayer(Layer):
    """The input enlarged as `kerass2.predict --bicubic` does it; 10 m bands as they are.

    Levels from KEPT on are those of the input: there a pixel stands for more ground than one of the
    input, but for 60 m bands at level KEPT, where the two cover about the same.
    """

    def __init__(self, base: InputLayer) -> None:
        """`base` gives the pixels."""
        self._base = base
        # GSD -> the task that enlarges its bands, of those that the granule has all of.
        self._tasks = {
            gsd: f"superres_{gsd}m"
            for gsd in (20, 60)
            if (cube := base.granule.cubes.get(f"gsd{gsd}")) is not None
            and tuple(map(str, cube.band.values)) == sentinel2.bands_at(gsd)
        }
        bands = tuple(b for b in base.bands if base.gsd_of(b) in (10, *self._tasks))
        super().__init__("bicubic", bands, base.shape, base.means)
        self._plans: dict[int, Plan] = {}
        self._planning = threading.Lock()
        # The three colours of a tile ask for the same window, which is made for all bands.
        self._make = functools.lru_cache(maxsize=4)(self._enlarge)

    def read(self, band: str, window: Window) -> Image:
        """See Layer."""
        if self._base.gsd_of(band) == 10:
            return self._base.read(band, window)
        return _from_dn(self._make(self._base.gsd_of(band), window)[band])

    def read_pixel(self, band: str, y: int, x: int) -> int | float | None:
        """See Layer."""
        if self._base.gsd_of(band) == 10:
            return self._base.read_pixel(band, y, x)
        dn = int(self._make(self._base.gsd_of(band), Window(y, x, 1, 1))[band][0, 0])
        return None if dn == sentinel2.NO_DATA else dn

    def read_level(self, band: str, level: int, window: Window) -> Image:
        """See Layer."""
        if level < KEPT:
            return super().read_level(band, level, window)
        return self._base.read_level(band, level, window)

    def _enlarge(self, gsd: int, window: Window) -> dict[str, NDArray[np.uint16]]:
        """Band -> (y, x) DN of a window, of all bands of a GSD."""
        from kerass2 import sharpen

        plan = self._plan(gsd)
        roi = self._base.roi
        region = Window(window.y + roi.y, window.x + roi.x, window.height, window.width)
        ((_, pixels),) = sharpen.make_regions(plan, [region])
        return dict(zip(plan.bands, pixels, strict=True))

    def _plan(self, gsd: int) -> Plan:
        """What is to be made, found once: Keras starts here, which takes seconds."""
        from kerass2 import backend, networks, sharpen

        with self._planning:
            if gsd not in self._plans:
                backend.check()
                network = networks.build_bicubic(self._tasks[gsd])
                self._plans[gsd] = sharpen.build_plan(self._base.granule, [network])
            return self._plans[gsd]


def _from_dn(dn: NDArray[np.uint16]) -> Image:
    image = dn.astype(np.float32)
    image[dn == sentinel2.NO_DATA] = np.nan
    return image
