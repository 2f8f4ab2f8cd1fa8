"""A made-up granule, one for each seed: for tests, benchmarks, and where there is no network.

Fractal terrain with shading and rivers, fields with rows, woods, roads, buildings. Each material
has a spectrum over 12 bands (values of the order of published ones; nobody should measure with
them), so that bands correlate as they do in real images: what is fine in a 20 m band shows in the
10 m bands. Everything is made at 10 m; the coarser cubes are area means of it.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import geotiff, sentinel2

Image = NDArray[np.float32]

CRS = "EPSG:32632"
# Upper left corner of tile T32UMC in CRS (easting, northing) [m]: inside the zone, a multiple of
# 60.
CORNER = (399_960.0, 5_800_020.0)
# Blur of the optics [px of 10 m]: edges cross a pixel or two, as in real bands.
OPTICS = 0.6
# Noise of a band [DN], about that of the instrument at dark targets.
NOISE = 6.0

# Reflectance [1] of each material in the order of sentinel2.BANDS without B10.
BANDS = tuple(band for band in sentinel2.BANDS if band != "B10")
SPECTRA = {
    #           B01    B02    B03    B04    B05    B06    B07    B08    B8A    B09    B11    B12
    "water":   (0.045, 0.040, 0.036, 0.026, 0.022, 0.018, 0.016, 0.014, 0.012, 0.010, 0.006, 0.004),
    "crop":    (0.032, 0.036, 0.072, 0.040, 0.110, 0.330, 0.420, 0.440, 0.460, 0.450, 0.200, 0.095),
    "meadow":  (0.038, 0.046, 0.085, 0.065, 0.135, 0.260, 0.310, 0.330, 0.350, 0.350, 0.260, 0.150),
    "ripe":    (0.060, 0.080, 0.125, 0.165, 0.205, 0.240, 0.265, 0.285, 0.305, 0.310, 0.350, 0.250),
    "soil":    (0.070, 0.085, 0.110, 0.145, 0.170, 0.185, 0.200, 0.210, 0.225, 0.230, 0.300, 0.260),
    "broad":   (0.022, 0.024, 0.045, 0.024, 0.070, 0.240, 0.310, 0.320, 0.340, 0.340, 0.150, 0.062),
    "needle":  (0.018, 0.018, 0.030, 0.019, 0.042, 0.130, 0.165, 0.175, 0.185, 0.190, 0.085, 0.036),
    "asphalt": (0.090, 0.095, 0.105, 0.112, 0.118, 0.124, 0.128, 0.132, 0.138, 0.140, 0.165, 0.155),
    "roof":    (0.130, 0.140, 0.165, 0.230, 0.255, 0.265, 0.270, 0.280, 0.290, 0.290, 0.320, 0.290),
    "pale":    (0.200, 0.230, 0.260, 0.280, 0.295, 0.300, 0.305, 0.315, 0.320, 0.315, 0.340, 0.320),
}  # fmt: skip
MATERIALS = tuple(SPECTRA)


def build_cubes(size: int = 1536, *, seed: int = 0) -> dict[str, NDArray[np.uint16]]:
    """The cubes of a made-up granule.

    Args:
        size: edge of the 10 m cube [px], a multiple of 6.
        seed: which one.

    Returns:
        "gsd10", "gsd20", "gsd60" -> (band, y, x) uint16 DN, 1 to 10000; no pixel without data.

    Raises:
        ValueError: size is not a positive multiple of 6.
    """
    if size < 6 or size % 6:
        raise ValueError(f"size {size}: expected a positive multiple of 6 [px of 10 m]")
    from scipy import ndimage

    rng = np.random.default_rng([seed, size])
    first, second, share, light = _landscape(size, rng)
    table = np.array([SPECTRA[name] for name in MATERIALS], np.float32)
    cubes = {}
    for name, gsd in sentinel2.GSDS.items():
        bands = []
        for band in sentinel2.bands_at(gsd):
            column = table[:, BANDS.index(band)] * sentinel2.QUANTIFICATION
            fine = (column[first] * (1 - share) + column[second] * share) * light
            fine = ndimage.gaussian_filter(fine, OPTICS, mode="reflect", truncate=2)
            ratio = gsd // 10
            mean = fine.reshape(size // ratio, ratio, size // ratio, ratio).mean(axis=(1, 3))
            mean += NOISE * rng.standard_normal(mean.shape, np.float32)
            bands.append(np.clip(np.rint(mean), 1, sentinel2.QUANTIFICATION).astype(np.uint16))
        cubes[name] = np.stack(bands)
    return cubes


def write_granule(
    folder: pathlib.Path, size: int = 1536, *, seed: int = 0, gsds: tuple[int, ...] = (10, 20, 60)
) -> pathlib.Path:
    """Write a made-up granule as gsd10.tif, gsd20.tif, gsd60.tif, tagged as such.

    See geotiff.write_folder.
    """
    cubes = build_cubes(size, seed=seed)
    wanted = {name: cube for name, cube in cubes.items() if sentinel2.GSDS[name] in gsds}
    return geotiff.write_folder(
        pathlib.Path(folder), wanted, crs=CRS, corner=CORNER, synthetic=True
    )


def write_bigearthnet(
    folder: pathlib.Path, positions: Any = ((0, 0), (0, 1), (1, 0)), *, seed: int = 0
) -> list[pathlib.Path]:
    """Write BigEarthNet v2 patches in their true layout: PRODUCT/PATCH/PATCH_BAND.tif.

    Args:
        folder: the root; made if it is missing.
        positions: (row, column) of each patch in its tile; neighbours join without a seam.
        seed: which made-up landscape.

    Returns:
        The patch folders.
    """
    from affine import Affine

    from data_pipelines import raster

    edge = max(max(position) for position in positions) + 1
    cubes = build_cubes(edge * 120, seed=seed)
    product = "S2A_MSIL2A_20170613T101031_N9999_R022_T32UMC"
    folders = []
    for row, column in positions:
        name = f"{product}_{column:02d}_{row:02d}"
        patch = pathlib.Path(folder) / product / name
        patch.mkdir(parents=True, exist_ok=True)
        for key, cube in cubes.items():
            gsd = sentinel2.GSDS[key]
            n = 1200 // gsd
            pixels = cube[:, row * n : (row + 1) * n, column * n : (column + 1) * n]
            corner = CORNER[0] + 1200 * column, CORNER[1] - 1200 * row
            for band, image in zip(sentinel2.bands_at(gsd), pixels, strict=True):
                raster.write_geotiff(
                    patch / f"{name}_{band}.tif",
                    [image[None]],
                    height=n,
                    width=n,
                    bands=[band],
                    nodata=None,  # the real ones declare none
                    crs=CRS,
                    transform=Affine(gsd, 0, corner[0], 0, -gsd, corner[1]),
                    tags=geotiff.SYNTHETIC_TAGS,
                    overwrite=True,
                )
        folders.append(patch)
    return folders


def _landscape(
    size: int, rng: np.random.Generator
) -> tuple[NDArray[np.int8], NDArray[np.int8], Image, Image]:
    """Two materials of each pixel, the share of the second [0, 1], and brightness [1]."""
    height = _fractal(size, rng, 3.4)
    moisture = _fractal(size, rng, 2.9)
    grain = rng.standard_normal((size, size), np.float32)
    first, second, share, light = _fields(size, rng)
    _add_woods(first, second, share, moisture - 0.4 * height, grain)
    _add_towns(first, second, share, _fractal(size, rng, 3.2), rng)
    _add_roads(first, second, share, size, rng)
    _add_water(first, second, share, height, _fractal(size, rng, 3.8))
    # Lambert shading of a sun in the south-east at 45 degrees; slopes of a hilly country.
    slope_y, slope_x = np.gradient(height * 5.0)
    shade = 1 + 0.5 * (slope_y + slope_x) / np.sqrt(1 + slope_y**2 + slope_x**2)
    land = (first != MATERIALS.index("water")).astype(np.float32)
    light = 1 + land * (light - 1)
    mottle = 1 + land * (0.04 * _fractal(size, rng, 2.0) + 0.01 * grain)
    # No shadow is black: skylight.
    return first, second, share, (light * np.clip(shade, 0.35, 1.6) * mottle).astype(np.float32)


def _fractal(size: int, rng: np.random.Generator, slope: float) -> Image:
    """Noise of power spectrum 1 / f^slope, mean 0, standard deviation 1, (size, size)."""
    from scipy import fft

    white = fft.rfft2(rng.standard_normal((size, size), np.float32))
    frequency = np.hypot(fft.fftfreq(size)[:, None], fft.rfftfreq(size)[None, :])
    frequency[0, 0] = np.inf
    white *= (frequency ** (-slope / 2)).astype(np.float32)
    image = fft.irfft2(white, s=(size, size))
    normal: Image = ((image - image.mean()) / image.std()).astype(np.float32)
    return normal


def _cells(size: int, spacing: int, rng: np.random.Generator) -> tuple[NDArray[np.int32], Image]:
    """Voronoi cells of jittered points: each pixel's cell, and its distance to the border [px]."""
    count = size // spacing + 3
    points = (rng.uniform(0.05, 0.95, (2, count, count)).astype(np.float32) - 1) * spacing
    points += np.mgrid[:count, :count].astype(np.float32) * spacing
    columns = np.arange(size, dtype=np.float32)
    home = np.arange(size) // spacing + 1
    cell, border = np.empty((size, size), np.int32), np.empty((size, size), np.float32)
    # Row of cells by row of cells: pieces that stay in the processor's cache.
    for first in range(0, size, spacing):
        rows = columns[first : first + spacing, None]
        nearest = np.full((len(rows), size), np.inf, np.float32)
        runner_up = nearest.copy()
        index = np.zeros(nearest.shape, np.int32)
        for y in range(first // spacing, first // spacing + 3):
            for x in (home - 1, home, home + 1):
                # Wider than high, as fields lie along a road.
                squared = (points[0, y, x] - rows) ** 2 * np.float32(1.8)
                squared += (points[1, y, x] - columns) ** 2
                closer = squared < nearest
                np.minimum(runner_up, np.where(closer, nearest, squared), out=runner_up)
                np.minimum(nearest, squared, out=nearest)
                index = np.where(closer, (y * count + x).astype(np.int32), index)
        cell[first : first + spacing] = index
        border[first : first + spacing] = (np.sqrt(runner_up) - np.sqrt(nearest)) / 2
    return cell, border


def _fields(
    size: int, rng: np.random.Generator
) -> tuple[NDArray[np.int8], NDArray[np.int8], Image, Image]:
    """Fields of one crop each, with rows and tracks; as _landscape."""
    cell, border = _cells(size, 40, rng)
    count = int(cell.max()) + 1
    kinds = ("crop", "crop", "crop", "meadow", "ripe", "soil")
    choice = np.array([MATERIALS.index(kind) for kind in kinds], np.int8)
    first = choice[rng.integers(0, len(choice), count)][cell]
    second = np.full_like(first, MATERIALS.index("soil"))
    cover = rng.uniform(0.0, 0.35, count).astype(np.float32)
    angle = rng.uniform(0, np.pi, count).astype(np.float32)
    wave = rng.uniform(3.0, 9.0, count).astype(np.float32)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    phase = (np.sin(angle)[cell] * y + np.cos(angle)[cell] * x) * (2 * np.pi / wave)[cell]
    share = cover[cell] + 0.05 * (1 + np.sin(phase))
    light = rng.uniform(0.8, 1.25, count).astype(np.float32)[cell]
    hedge = border < rng.uniform(-2.0, 1.0, count).astype(np.float32)[cell]
    first[hedge] = MATERIALS.index("broad")
    share[hedge] *= 0.5
    return first, second, share.astype(np.float32), light


def _add_woods(
    first: NDArray[np.int8], second: NDArray[np.int8], share: Image, where: Image, grain: Image
) -> None:
    """Woods where it is moist: broadleaf, and needles in their middle; crowns as grain."""
    woods = where > 0.75
    first[woods] = MATERIALS.index("broad")
    second[woods] = MATERIALS.index("needle")
    share[woods] = np.clip(0.5 + 0.10 * grain[woods] + 0.8 * (where[woods] - 1.3), 0, 1)


def _add_towns(
    first: NDArray[np.int8],
    second: NDArray[np.int8],
    share: Image,
    where: Image,
    rng: np.random.Generator,
) -> None:
    """Blocks of roofs, pale roofs and gardens where a slow noise is high."""
    cell, border = _cells(len(first), 6, rng)
    count = int(cell.max()) + 1
    kinds = ("roof", "pale", "meadow", "roof", "asphalt", "broad")
    choice = np.array([MATERIALS.index(kind) for kind in kinds], np.int8)
    town = (where > 1.9) & (border > 0.55)
    street = (where > 1.9) & (border <= 0.55)
    first[town] = choice[rng.integers(0, len(choice), count)][cell[town]]
    first[street] = MATERIALS.index("asphalt")
    second[town | street] = MATERIALS.index("meadow")
    share[town | street] = rng.uniform(0.1, 0.6, count).astype(np.float32)[cell[town | street]]


def _add_roads(
    first: NDArray[np.int8],
    second: NDArray[np.int8],
    share: Image,
    size: int,
    rng: np.random.Generator,
) -> None:
    """A net of roads, about one pixel wide, that covers a part of the pixels it runs through."""
    _, border = _cells(size, 130, rng)
    road = border < 1.2
    second[road] = MATERIALS.index("asphalt")
    share[road] = np.clip(1.3 - border[road], 0, 1)


def _add_water(
    first: NDArray[np.int8], second: NDArray[np.int8], share: Image, height: Image, course: Image
) -> None:
    """Lakes in the lowest hollows, and a river along a level line of a smooth noise."""
    slope = np.hypot(*np.gradient(course)) + 1e-6
    distance = np.abs(course - 0.1) / slope  # [px], to first order
    width = 2.2 + 1.2 * np.sin(height * 2)
    wet = (height < -2.0) | (distance < width)
    bank = ~wet & (distance < width + 2.5)
    first[wet] = MATERIALS.index("water")
    share[wet] = np.where(height[wet] < -2.0, 0, np.clip(distance[wet] - width[wet] + 1, 0, 1))
    second[wet] = MATERIALS.index("meadow")
    second[bank] = MATERIALS.index("meadow")
    share[bank] = 0.7
