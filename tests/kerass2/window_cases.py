"""Models and granules with which tests of windows show any wrong pixel."""

from __future__ import annotations

import keras
import numpy as np

from data_pipelines import sentinel2
from data_pipelines.granule import Granule, build_cube
from kerass2 import models, networks, sharpen

RATIOS = {"gsd10": 1, "gsd20": 2}
RATIOS_60 = {"gsd10": 1, "gsd20": 2, "gsd60": 6}
BANDS = {"gsd10": 4, "gsd20": 6, "gsd60": 2}


def untrained(name: str, **options: object) -> keras.Model:
    """A model whose every weight takes part: zeros (biases, gamma) are moved."""
    keras.utils.set_random_seed(3)
    model = models.build(name, **options)
    rng = np.random.default_rng(4)
    for weight in model.trainable_variables:
        if not np.asarray(weight).any():
            weight.assign(rng.normal(0, 0.3 if "gamma" in weight.path else 0.05, weight.shape))
    return model


def granule(height: int, width: int, ratios: dict[str, int]) -> Granule:
    """Random DN of a slope, so that means of blocks differ and any wrong pixel shows."""
    rng = np.random.default_rng(height * width)
    cubes = {}
    for name, ratio in ratios.items():
        shape = BANDS[name], height // ratio, width // ratio
        slope = np.linspace(0, 3000, shape[2]) + np.linspace(0, 2000, shape[1])[:, None]
        gsd = 10 * ratio
        dn = (4000 + rng.integers(200, 3000, shape) + slope).astype(np.uint16)
        cubes[name] = build_cube(dn, sentinel2.bands_at(gsd), gsd)
    return Granule("test", "test", "test", cubes)


def predict(network: networks.Network, given: Granule, core: int | None = None) -> np.ndarray:
    """(y, x, band) DN of the whole granule, in regions of `core` px."""
    plan = sharpen.build_plan(given, [network], core=core)
    out = np.zeros((*given.shape, len(plan.bands)), np.float32)
    for region, pixels in sharpen.make_regions(plan):
        out[region.slices] = pixels.transpose(1, 2, 0)
    return out
