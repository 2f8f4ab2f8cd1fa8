"""Gaps in what a network reads: filled near their edges, whatever window they are seen in."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from kerass2 import gaps, networks
from tests.kerass2.window_cases import RATIOS, granule, predict, untrained


def test_known_pixels_stay_and_only_the_reach_is_filled() -> None:
    image = np.random.default_rng(0).uniform(0.1, 0.5, (60, 100, 2)).astype(np.float32)
    image[:, 40:, 0] = 0
    image[20:23, 10:13, 1] = 0
    filled = image.copy()
    gaps.fill(filled, 1)
    np.testing.assert_array_equal(filled[image > 0], image[image > 0])
    assert (filled[:, 40 : 40 + gaps.REACH, 0] > 0).all()
    assert not filled[:, 40 + gaps.REACH :, 0].any()
    assert (filled[..., 1] > 0).all()
    # A pixel beside the gap is the mean of the neighbours that are known, by scipy.
    known = (image[..., 1] > 0).astype(float)
    sums = ndimage.uniform_filter(image[..., 1] * known, 3, mode="constant")
    shares = ndimage.uniform_filter(known, 3, mode="constant")
    edge = (known == 0) & (shares > 1e-6)
    assert edge.sum() == 8
    np.testing.assert_allclose(filled[edge, 1], sums[edge] / shares[edge], rtol=1e-5)


@pytest.mark.parametrize("ratio", [1, 2, 6])
def test_what_is_seen_of_a_gap_does_not_matter(ratio: int) -> None:
    """Cut `REACH` px around a window, the window's pixels are those of the whole."""
    rng = np.random.default_rng(1)
    image = rng.uniform(0.1, 0.5, (120, 120, 1)).astype(np.float32)
    gap = ndimage.gaussian_filter(rng.normal(size=(120, 120)), 6) > 0.02
    image[gap] = 0
    whole, margin = image.copy(), gaps.REACH // ratio
    gaps.fill(whole, ratio)
    for y, x in rng.integers(margin, 100 - margin, (20, 2)):
        part = image[y - margin : y + 20 + margin, x - margin : x + 20 + margin].copy()
        gaps.fill(part, ratio)
        inner = slice(margin, margin + 20)
        np.testing.assert_array_equal(part[inner, inner], whole[y : y + 20, x : x + 20])


@pytest.mark.parametrize(
    ("name", "options"), [("dsen2", {}), ("s2x", {"block": 16}), ("s2x", {"block": 32})]
)
def test_the_edge_of_a_swath_is_as_bright_as_the_ground_beside_it(
    name: str, options: dict[str, int]
) -> None:
    """Bands end at different columns, as detectors lie; flat ground stays flat up to the gap."""
    given = granule(96, 96, RATIOS)
    for key, cube in given.cubes.items():
        cube.values[:] = 1500
        for band in range(len(cube.band)):
            cube.values[band, :, (60 + 2 * band) // RATIOS[key] :] = 0
    model = untrained(name, filters=8, blocks=2, **options)
    last = model.get_layer("conv_last")
    last.kernel.assign(last.kernel * 0.01)
    last.bias.assign(last.bias * 0)
    for core in (None, 30):
        found = predict(networks.build_network(model), given, core=core)
        assert not found[:, 60:].any()
        flat = found[:, 8:60] / np.median(found[:, 8:40], axis=(0, 1))
        assert np.abs(flat - 1).max() < 0.01


def test_pixels_beside_gaps_do_not_depend_on_windows() -> None:
    given = granule(126, 150, RATIOS)
    rng = np.random.default_rng(8)
    for name, cube in given.cubes.items():
        shape = cube.shape[1:]
        noise = ndimage.gaussian_filter(rng.normal(size=shape), 8 / RATIOS[name])
        cube.values[:, noise > 0.8 * noise.max()] = 0
        cube.values[:, :, -60 // RATIOS[name] :] = 0
    model = untrained("s2x", filters=8, blocks=2, block=16)
    last = model.get_layer("conv_last")
    last.kernel.assign(last.kernel * 0.1)
    network = networks.build_network(model)
    one, other = (predict(network, given, core=core) for core in (640, 16))
    assert 0 < (one == 0).mean() < 0.5
    assert np.abs(one - other).max() <= 1
