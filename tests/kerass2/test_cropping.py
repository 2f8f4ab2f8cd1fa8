"""A pixel's value does not depend on the window, on its size, or on where a tile is cut."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from data_pipelines import sentinel2
from data_pipelines.granule import Granule
from data_pipelines.spec import DataError
from data_pipelines.windows import Window
from kerass2 import cropping, models, networks, sharpen
from kerass2.models import blending
from tests.kerass2.window_cases import RATIOS, RATIOS_60, granule, untrained

MODELS = {
    "dsen2": ("dsen2", {"filters": 8, "blocks": 6}),
    "dsen2 60 m": ("dsen2", {"filters": 8, "blocks": 2, "task": "superres_60m"}),
    "s2x": ("s2x", {"filters": 8, "blocks": 6, "block": 32}),
    "s2x, small blocks": ("s2x", {"filters": 8, "blocks": 6, "block": 4}),
    "s2x 60 m": ("s2x", {"filters": 8, "blocks": 2, "block": 36, "task": "superres_60m"}),
    "no attention": ("s2x", {"filters": 8, "blocks": 2, "block": 16, "attention": False}),
}


def by_whole_image(model: keras.Model, given: Granule, block: int) -> np.ndarray:
    """DN (band, y, x) of the model, its lattices blended, on the granule in mirrored blocks."""
    model = blending.blend(model)
    height, width = given.shape
    before = -(-80 // block) * block
    after = [-(-n // block) * block + before - n for n in (height, width)]
    inputs = {}
    for name, cube in given.cubes.items():
        ratio = sentinel2.GSDS[name] // 10
        margins = [(before // ratio, a // ratio) for a in after]
        padded = np.pad(cube.values, ((0, 0), *margins), mode="symmetric")
        inputs[name] = padded.transpose(1, 2, 0)[None] / np.float32(1e4)
    (out,) = (np.asarray(value)[0] for value in model(inputs).values())
    inside = out[before : before + height, before : before + width]
    return inside.transpose(2, 0, 1) * 1e4


def in_regions(model: keras.Model, given: Granule, core: int, **options: object) -> np.ndarray:
    plan = sharpen.build_plan(given, [networks.build_network(model)], core=core, **options)
    out = np.zeros((len(plan.bands), *given.shape), np.uint16)
    for region, pixels in sharpen.make_regions(plan):
        out[(slice(None), *region.slices)] = pixels
    return out


@pytest.mark.parametrize("case", MODELS)
def test_windows_equal_the_whole_image(case: str) -> None:
    name, options = MODELS[case]
    model = untrained(name, **options)
    ratios = RATIOS_60 if "task" in options else RATIOS
    given = granule(186, 234, ratios)
    block = np.lcm(int(options.get("block", 1)), 6)
    expected = by_whole_image(model, given, int(block))
    assert np.ptp(expected) > 1000, "a prediction that is constant would prove nothing"
    expected = np.clip(np.rint(expected), 1, 65534)
    for core in (40, 96, 640):
        found = in_regions(model, given, core)
        assert np.abs(found.astype(int) - expected).max() <= 1, core


@pytest.mark.parametrize("case", ["dsen2", "s2x"])
def test_a_roi_has_the_pixels_of_the_whole_tile(case: str) -> None:
    name, options = MODELS[case]
    model = untrained(name, **options)
    given = granule(150, 200, RATIOS)
    whole = in_regions(model, given, 640).astype(int)
    roi = Window(33, 71, 61, 45)
    part = in_regions(model, given, 64, roi=roi)[(slice(None), *roi.slices)]
    assert np.abs(part - whole[(slice(None), *roi.slices)]).max() <= 1


def test_bfloat16_is_within_one_dn_on_average() -> None:
    model = untrained("s2x", filters=8, blocks=6, block=32, dtype="mixed_bfloat16")
    # A trained network adds details of tens of DN; this one adds thousands.
    last = model.get_layer("conv_last")
    last.kernel.assign(last.kernel * 0.1)
    given = granule(150, 200, RATIOS)
    one = in_regions(model, given, 640).astype(float)
    other = in_regions(model, given, 64).astype(float)
    assert np.sqrt(np.mean((one - other) ** 2)) <= 1


def test_overlap_of_the_full_size_networks() -> None:
    for name, options in (("dsen2", {}), ("s2x", {"block": 32})):
        model = models.build(name, filters=16, **options)
        cropped = cropping.crop(model, RATIOS)
        inside = sum(flop for flop, _ in cropped.work)
        edge = sharpen.REGION // cropped.step * cropped.step
        assert 1 - inside * edge**2 / cropped.flops(edge, edge) < 0.2, name


def test_models_without_blocks_have_no_lattice() -> None:
    assert not cropping.has_lattice(models.build("s2x", filters=8, blocks=2))
    assert cropping.has_lattice(models.build("s2x", filters=8, blocks=2, block=32))
    assert cropping.has_lattice(models.build("dsen2", filters=8, blocks=2))


def test_without_blocks_windows_are_fixed_to_the_granule() -> None:
    model = untrained("s2x", filters=8, blocks=2)
    given = granule(130, 150, RATIOS)
    whole = in_regions(model, given, 640).astype(int)
    assert np.abs(in_regions(model, given, 48) - whole).max() <= 1
    roi = Window(40, 50, 60, 70)
    part = in_regions(model, given, 640, roi=roi)
    assert np.abs(part - whole)[(slice(None), *roi.slices)].max() <= 1


def test_an_unknown_layer_is_refused() -> None:
    given = keras.Input((None, None, 4), name="gsd10")
    out = keras.layers.AveragePooling2D(2)(given)
    with pytest.raises(DataError, match="AveragePooling2D\\): it is not known how far it looks"):
        cropping.crop(keras.Model({"gsd10": given}, {"out": out}), {"gsd10": 1})
