"""The patches of a made-up BigEarthNet: what they are called, their labels, and their pixels.

Labels and pixels depend on the seed and on a patch's number alone, whatever is written of them.
Whole tiles are train, validation or test, so that what is tested lies elsewhere.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools

import numpy as np
from numpy.typing import NDArray

from data_pipelines import bigearthnet_choice, nomenclature, sentinel2, split, synthetic
from data_pipelines import synthetic_labels as land
from data_pipelines.bigearthnet import SIZES
from data_pipelines.spec import DataError

# Patches of a tile, about, and the least number of tiles.
PER_TILE, MIN_TILES = 400, 6
# Patches along a tile: 109.8 km of 1.2 km.
ALONG = 90
COUNTRIES = (
    "Austria", "Belgium", "Finland", "Ireland", "Kosovo", "Lithuania", "Luxembourg", "Portugal",
    "Serbia", "Switzerland",
)  # fmt: skip
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
# Standard deviations of the logarithm of reflectance: of a tile's bands (its atmosphere), of a
# patch's brightness, and of what a class is in a patch, along three slow curves over wavelength.
OF_TILE, OF_PATCH, OF_CLASS = 0.03, 0.08, 0.04
# Of the patch, the least share of a class [px along an edge] and the width of a line [px].
LEAST, WIDTH = 30, 4
# Half the range of a pixel's noise [DN].
NOISE = 12


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all patches are, before any pixel is made."""

    seed: int
    tile: NDArray[np.int64]
    """(patch,) number of its tile."""
    position: NDArray[np.int64]
    """(patch,) number in its tile."""
    labels: NDArray[np.uint8]
    """(patch, 43) 0 or 1."""
    split: NDArray[np.int64]
    """(patch,) index in SPLITS."""

    def __len__(self) -> int:
        return len(self.tile)

    def name(self, index: int, version: int = 2) -> str:
        """As BigEarthNet's; in v1 without a tile."""
        row, column = divmod(int(self.position[index]), ALONG)
        product, tile = product_of(int(self.tile[index]))
        if version == 1:
            return f"{product}_{column}_{row}"
        return f"{product}_N9999_R022_{tile}_{column:02d}_{row:02d}"

    def label_names(self, index: int) -> list[str]:
        """Of the 43 classes."""
        return [nomenclature.CLASSES_43[i] for i in np.flatnonzero(self.labels[index])]

    def country(self, index: int) -> str:
        """One for each tile."""
        return COUNTRIES[int(self.tile[index]) % len(COUNTRIES)]


def build_plan(count: int, *, seed: int = 0) -> Plan:
    """Plan so many patches.

    Raises:
        DataError: none, or too many for the places of a tile.
    """
    num_tiles = max(MIN_TILES, count // PER_TILE)
    if not 0 < count <= len(LETTERS) ** 2 * PER_TILE:
        raise DataError(f"{count} synthetic patches: expected 1 to {len(LETTERS) ** 2 * PER_TILE}")
    rng = np.random.default_rng([seed, 0])
    tile = np.arange(count) * num_tiles // count
    position = np.arange(count) - np.searchsorted(tile, tile)
    weights = np.bincount(tile, minlength=num_tiles)
    order = rng.permutation(num_tiles)
    of_tile = split.assign(weights, order, bigearthnet_choice.FRACTIONS)
    labels = land.draw_labels(tile, rng)
    return Plan(seed, tile, position, labels, of_tile[tile])


def product_of(tile: int) -> tuple[str, str]:
    """(product, tile) of a tile by its number; each product is of another day, so names differ."""
    day = datetime.date(2017, 6, 13) + datetime.timedelta(days=(tile * 37) % 353)
    time = f"10{tile // 60 % 60:02d}{tile % 60:02d}"
    name = f"T{29 + tile % 7}U{LETTERS[tile // len(LETTERS)]}{LETTERS[tile % len(LETTERS)]}"
    return f"S2A_MSIL2A_{day:%Y%m%d}T{time}", name


def render(plan: Plan, index: int) -> dict[str, NDArray[np.uint16]]:
    """Pixels of a patch: "gsd10", "gsd20", "gsd60" -> (y, x, band) uint16 DN, 1 to 10000."""
    looks = _looks()
    rng = np.random.default_rng([plan.seed, 1, index])
    classes = np.flatnonzero(plan.labels[index])
    where = _draw_map(classes, rng)
    light = np.ones(where.shape, np.float32)
    for number, name in enumerate(classes):
        y, x = rng.integers(0, land.TEXTURE_SIZE - len(where), 2)
        crop = looks.textures[looks.texture_of[name], y : y + len(where), x : x + len(where)]
        mine = where == number
        light[mine] += looks.amplitude_of[name] * crop[mine]
    spectra = looks.spectra[classes] * _variation(plan, index, len(classes), rng)
    # Of each class the light it gives to each pixel: (y, x, class).
    shares = (where[..., None] == np.arange(len(classes))) * light[..., None]
    images = {}
    for key, size in SIZES.items():
        step = len(where) // size
        mean = shares.reshape(size, step, size, step, -1).mean(axis=(1, 3), dtype=np.float32)
        bands = sentinel2.bands_at(sentinel2.GSDS[key])
        columns = [synthetic.BANDS.index(band) for band in bands]
        pixels = mean @ (spectra[:, columns] * np.float32(sentinel2.QUANTIFICATION))
        pixels += rng.integers(-NOISE, NOISE + 1, pixels.shape, dtype=np.int16)
        images[key] = np.clip(pixels, 1, sentinel2.QUANTIFICATION).astype(np.uint16)
    return images


@functools.cache
def _looks() -> land.Looks:
    return land.build_looks()


@functools.cache
def _curves() -> NDArray[np.float32]:
    """(3, band) slow curves over the bands: brightness, slope, bend."""
    x = np.linspace(-1, 1, len(synthetic.BANDS), dtype=np.float32)
    return np.stack([np.ones_like(x), x, 2 * x**2 - 1])


def _variation(
    plan: Plan, index: int, num_classes: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """(class, band): what a patch's reflectance is in parts of its classes' usual one."""
    tile = np.random.default_rng([plan.seed, 2, int(plan.tile[index])])
    log = OF_TILE * tile.standard_normal(len(synthetic.BANDS), np.float32)
    log = log + OF_PATCH * rng.standard_normal(dtype=np.float32)
    log = log + OF_CLASS * rng.standard_normal((num_classes, 3), np.float32) @ _curves()
    varied: NDArray[np.float32] = np.exp(log)
    return varied


def _draw_map(classes: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """(y, x) which of a patch's classes lies where; each of them somewhere."""
    size = SIZES["gsd10"]
    fields = rng.standard_normal((len(classes), 6, 6), np.float32)
    fields += rng.normal(0, 0.5, (len(classes), 1, 1)).astype(np.float32)
    lines = np.isin(classes, land.line_classes())
    if not lines.all():
        fields[lines] = -np.inf
    weights = _enlarging(6, size)
    where: NDArray[np.int64] = (weights @ np.nan_to_num(fields, neginf=-100) @ weights.T).argmax(
        axis=0
    )
    for number in range(len(classes)):
        y, x = rng.integers(0, size - LEAST + 1, 2)
        if lines[number]:
            rows, columns = np.mgrid[:size, :size]
            angle = rng.uniform(0, np.pi)
            distance = np.cos(angle) * (rows - y) + np.sin(angle) * (columns - x)
            where[np.abs(distance) < WIDTH / 2] = number
        elif np.count_nonzero(where == number) < LEAST**2 // 2:
            where[y : y + LEAST, x : x + LEAST] = number
    return where


@functools.cache
def _enlarging(coarse: int, fine: int) -> NDArray[np.float32]:
    """(fine, coarse) linear interpolation between points at the edges."""
    position = np.linspace(0, coarse - 1, fine)
    distance = np.abs(position[:, None] - np.arange(coarse))
    return np.maximum(0, 1 - distance).astype(np.float32)
