"""Wald's protocol against scipy, and against numbers computed elsewhere."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from scipy import ndimage

from data_pipelines import granule, npz, wald
from data_pipelines.spec import DataError


def by_scipy(array: np.ndarray, scale: int, sigma: float | None = None) -> np.ndarray:
    """The definition in two steps, float64."""
    width = 1 / scale if sigma is None else sigma
    axes = (array.ndim - 2, array.ndim - 1)
    blurred = ndimage.gaussian_filter(
        array.astype(np.float64), width, mode="reflect", truncate=4.0, axes=axes
    )
    *rest, height, width_px = array.shape
    blocks = blurred.reshape(*rest, height // scale, scale, width_px // scale, scale)
    return blocks.mean(axis=(-3, -1))


@pytest.mark.parametrize("scale", [1, 2, 3, 6])
@pytest.mark.parametrize("shape", [(6, 6), (4, 36, 60), (2, 3, 12, 6)])
@pytest.mark.parametrize("sigma", [None, 0.55, 1.3])
def test_equals_blur_and_mean(scale: int, shape: tuple[int, ...], sigma: float | None) -> None:
    array = np.random.default_rng(1).integers(1, 10_000, shape).astype(np.uint16)
    found = wald.degrade(array, scale, sigma=sigma)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_scipy(array, scale, sigma), rtol=2e-6)


def test_long_rasters_are_worked_in_pieces() -> None:
    array = np.random.default_rng(2).normal(size=(9000, 120)).astype(np.float32)
    np.testing.assert_allclose(wald.degrade(array, 6), by_scipy(array, 6), atol=1e-5)


@pytest.mark.parametrize("chunks", [(1, 7, 50), (3, 100, 13), (2, 1, 120), (3, 120, 120)])
@pytest.mark.parametrize("scale", [2, 6])
@pytest.mark.parametrize("sigma", [None, 2.0])
def test_lazy_gives_the_same_pixels(
    chunks: tuple[int, ...], scale: int, sigma: float | None
) -> None:
    dask_array = pytest.importorskip("dask.array")
    array = np.random.default_rng(3).integers(0, 9000, (3, 120, 120)).astype(np.uint16)
    lazy = wald.degrade(dask_array.from_array(array, chunks=chunks), scale, sigma=sigma)
    assert hasattr(lazy, "dask")
    found = lazy.compute(scheduler="synchronous")
    assert found.shape == lazy.shape
    np.testing.assert_array_equal(found, wald.degrade(array, scale, sigma=sigma))


@pytest.mark.parametrize("scale", [2, 3, 6])
@pytest.mark.parametrize("sigma", [None, 1.0])
def test_parts_give_the_same_pixels(scale: int, sigma: float | None) -> None:
    array = np.random.default_rng(4).integers(0, 9000, (60, 72)).astype(np.uint16)
    whole = wald.degrade(array, scale, sigma=sigma)
    radius = wald.blur_radius(scale, sigma)
    for y in range(0, 60, 12):
        for x in range(0, 72, 36):
            top, left = y >= radius, x >= radius
            bottom, right = y + 12 + radius <= 60, x + 36 + radius <= 72
            if not (top or y == 0) or not (bottom or y == 48):
                continue  # a view needs all of the blur's radius, or none
            view = array[
                y - radius * top : y + 12 + radius * bottom,
                x - radius * left : x + 36 + radius * right,
            ]
            found = wald.degrade_view(view, scale, sigma=sigma, inside=(top, bottom, left, right))
            expected = whole[y // scale : (y + 12) // scale, x // scale : (x + 36) // scale]
            np.testing.assert_array_equal(found, expected)


def test_cubes_keep_names_and_get_the_new_grid() -> None:
    pixels = np.ones((4, 12, 18), np.uint16)
    transform = (10, 0, 399_960, 0, -10, 5_800_020)
    bands = ("B02", "B03", "B04", "B08")
    cube = granule.build_cube(pixels, bands, 10, crs="EPSG:32632", transform=transform)
    coarse = wald.degrade(cube, 2)
    assert tuple(coarse.band.values) == bands
    assert coarse.attrs["gsd"] == 20
    assert coarse.attrs["transform"] == (20, 0, 399_960, 0, -20, 5_800_020)
    assert coarse.attrs["crs"] == "EPSG:32632"


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(DataError, match="13 x 12 px are not divisible by the scale 2"):
        wald.degrade(np.zeros((13, 12)), 2)
    with pytest.raises(ValueError, match="sigma"):
        wald.weights(2, -1.0)


def cubic_spline(lowres: np.ndarray, scale: int) -> np.ndarray:
    """The reference's "bicubic": scipy's interpolating spline on pixel centres."""
    return np.stack(
        [ndimage.zoom(b, scale, order=3, mode="reflect", grid_mode=True) for b in lowres]
    )


# L2A_hydro_patch_100000 was clipped at 0 after its numbers had been made, so it cannot give them.
REFERENCE = [
    "L1C_S2A_20170527_T33UUB_dsen2demo",
    "L1C_s2s_ucnn_usa",
    "L1C_ssc_cnn_coastal",
    "L2A_hydro_patch_0",
    "L2A_majortom_S2B_20200223_T48QUE",
]


def spline_errors(shared_data: pathlib.Path, name: str, scale: int, stretch: float) -> np.ndarray:
    """Relative difference of each band's RMSE from the reference; sigma stretched."""
    gsd = {2: 20, 6: 60}[scale]
    path = shared_data / "sr_reference" / "dsen2_wald_reference.json"
    reference = {r["name"]: r for r in json.loads(path.read_text())}[name]
    truth = npz.open_scene(shared_data / "sr_scenes" / f"{name}.npz").cubes[f"gsd{gsd}"].values
    height, width = (n // scale * scale for n in truth.shape[1:])
    truth = truth[:, :height, :width].astype(np.float32)
    guess = cubic_spline(wald.degrade(truth, scale, sigma=stretch / scale), scale)
    rmse = np.sqrt(((guess - truth) ** 2).mean(axis=(1, 2)))
    return np.asarray(rmse / np.array(reference[f"wald{gsd}_rmse_bicubic"]) - 1)


@pytest.mark.shared_data
@pytest.mark.parametrize("scale", [2, 6])
@pytest.mark.parametrize("name", REFERENCE)
def test_cubic_spline_of_the_reference(shared_data: pathlib.Path, name: str, scale: int) -> None:
    assert np.abs(spline_errors(shared_data, name, scale, 1.0)).max() < 0.001


@pytest.mark.shared_data
@pytest.mark.parametrize("name", REFERENCE)
def test_a_wider_gaussian_would_be_noticed(shared_data: pathlib.Path, name: str) -> None:
    # At scale 6 it would not: sigma = 1/6 px leaves exp(-18) of a pixel to its neighbour.
    assert np.abs(spline_errors(shared_data, name, 2, 1.1)).max() > 0.02


@pytest.mark.shared_data
def test_a_real_scene_equals_scipy(shared_data: pathlib.Path) -> None:
    scene = npz.open_scene(shared_data / "sr_scenes" / "L1C_S2A_20170527_T33UUB_dsen2demo.npz")
    for cube in scene.cubes.values():
        for scale in (2,):
            found = wald.degrade(cube, scale).values
            np.testing.assert_allclose(found, by_scipy(cube.values, scale), rtol=2e-6)
