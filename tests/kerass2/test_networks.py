"""DSen2's own windows against a direct form of its scripts; precision; bicubic interpolation."""

from __future__ import annotations

import dataclasses
import pathlib

import keras
import numpy as np
import pytest
import scipy.ndimage
import skimage.transform

from data_pipelines.granule import open_granule
from data_pipelines.spec import DataError
from data_pipelines.windows import Window
from kerass2 import methods, networks, sharpen
from tests.kerass2.window_cases import RATIOS, RATIOS_60, granule, untrained


def starts(size: int, core: int, window: int, border: int) -> list[int]:
    """Where DSen2's windows begin in the padded image, along one axis.

    Source: lanha/DSen2, utils/patches.py, get_test_patches: side by side, the last one moved back.
    """
    padded = size + 2 * border
    found = list(np.arange(0, (padded - 2 * border) // core) * core)
    if (padded - 2 * border) % core:
        found.append(padded - window)
    return found


def by_dsen2(predict, cubes: dict[str, np.ndarray], window: int, border: int) -> np.ndarray:
    """Its procedure in numpy: cut all windows, predict each, put cores together, later ones last.

    `cubes` (band, y, x) reflectance; `predict` of {name: (y, x, band)}.
    """
    height, width = cubes["gsd10"].shape[1:]
    core = window - 2 * border
    ratios = {name: height // cube.shape[1] for name, cube in cubes.items()}
    padded = {
        name: np.pad(cube, ((0, 0), *((border // ratios[name],) * 2,) * 2), mode="symmetric")
        for name, cube in cubes.items()
    }
    out = None
    for y in starts(height, core, window, border):
        for x in starts(width, core, window, border):
            cut = {}
            for name, image in padded.items():
                r = ratios[name]
                part = image[:, y // r : (y + window) // r, x // r : (x + window) // r]
                cut[name] = part.transpose(1, 2, 0)
            made = predict(cut)
            if out is None:
                out = np.zeros((height, width, made.shape[-1]))
            inside = made[border : window - border, border : window - border]
            out[y : y + core, x : x + core] = inside
    return out.transpose(2, 0, 1)


def numpy_dsen2(model: keras.Model):
    """The network itself in numpy and scipy, float64."""

    def convolve(x: np.ndarray, name: str) -> np.ndarray:
        kernel, bias = (np.asarray(w, np.float64) for w in model.get_layer(name).weights)
        return np.stack(
            [
                sum(
                    scipy.ndimage.correlate(x[..., i], kernel[:, :, i, o], mode="constant")
                    for i in range(x.shape[-1])
                )
                + bias[o]
                for o in range(kernel.shape[-1])
            ],
            axis=-1,
        )

    def enlarge(x: np.ndarray, ratio: int) -> np.ndarray:
        shape = ratio, ratio, 1
        return scipy.ndimage.zoom(x, shape, order=1, mode="nearest", grid_mode=True)

    def predict(cut: dict[str, np.ndarray]) -> np.ndarray:
        size = cut["gsd10"].shape[0]
        fine = [enlarge(v.astype(np.float64) / 0.2, size // v.shape[0]) for v in cut.values()]
        x = np.maximum(convolve(np.concatenate(fine, axis=-1), "conv_first"), 0)
        number = 1
        while f"block{number}_conv1" in {layer.name for layer in model.layers}:
            branch = np.maximum(convolve(x, f"block{number}_conv1"), 0)
            x = x + 0.1 * convolve(branch, f"block{number}_conv2")
            number += 1
        return (convolve(x, "conv_last") + fine[-1]) * 0.2

    return predict


def reflectance(given) -> dict[str, np.ndarray]:
    return {name: cube.values / np.float32(1e4) for name, cube in given.cubes.items()}


def run(network: networks.Network, given, core: int | None = None, roi: Window | None = None):
    plan = sharpen.build_plan(given, [network], core=core, roi=roi)
    out = np.zeros((len(plan.bands), *given.shape), np.uint16)
    for region, pixels in sharpen.make_regions(plan):
        out[(slice(None), *region.slices)] = pixels
    return out.astype(int)


@pytest.mark.parametrize(
    ("task", "size", "window", "border"),
    [
        ("superres_20m", (150, 250), None, None),
        ("superres_20m", (64, 90), 32, 4),
        ("superres_60m", (204, 192), None, None),
        ("superres_20m", (224, 112), None, None),
    ],
)
def test_dsen2_procedure_equals_its_direct_form(
    task: str, size: tuple[int, int], window: int | None, border: int | None
) -> None:
    model = untrained("dsen2", filters=4, blocks=2, task=task)
    given = granule(*size, RATIOS if task == "superres_20m" else RATIOS_60)
    network = networks.build_network(model, procedure="dsen2", window=window, border=border)
    own = networks.DSEN2[task]
    own = window or own[0], own[1] if border is None else border
    expected = by_dsen2(numpy_dsen2(model), reflectance(given), *own)
    expected = np.clip(np.rint(expected * 1e4), 1, 65534)
    found = run(network, given)
    assert np.abs(found - expected).max() <= 1
    assert np.abs(run(network, given, core=1) - found).max() <= 1, "whatever is computed at once"
    roi = Window(20, 30, 41, 33)
    part = run(network, given, roi=roi)
    assert np.abs(part - found)[(slice(None), *roi.slices)].max() <= 1


def test_with_a_border_of_14_windows_equal_one_window() -> None:
    model = untrained("dsen2", filters=8, blocks=6)
    given = granule(200, 260, RATIOS)
    exact = run(networks.build_network(model), given, core=640)
    found = run(networks.build_network(model, procedure="dsen2", border=14), given)
    assert np.abs(found - exact).max() <= 1
    narrow = run(networks.build_network(model, procedure="dsen2", border=2), given)
    assert np.abs(narrow - exact).max() > 1, "narrower than the network sees"


def fast_dsen2(file: pathlib.Path):
    """The network of published weights in numpy alone, from the file, bands in its own order.

    float64, each convolution as nine matrix products; scikit-image enlarges as DSen2's scripts do.
    """
    with np.load(file) as arrays:
        # (y, x, input, output) in one piece: only so numpy multiplies by BLAS, 50 times faster.
        kernels = [arrays[f"conv{i:02d}_kernel_OIHW"].transpose(2, 3, 1, 0) for i in range(14)]
        layers = [
            (np.ascontiguousarray(kernel, np.float64), arrays[f"conv{i:02d}_bias"])
            for i, kernel in enumerate(kernels)
        ]

    def convolve(x: np.ndarray, number: int) -> np.ndarray:
        kernel, bias = layers[number]
        height, width = x.shape[:2]
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        parts = (
            padded[dy : dy + height, dx : dx + width].reshape(height * width, -1) @ kernel[dy, dx]
            for dy in range(3)
            for dx in range(3)
        )
        return sum(parts, bias).reshape(height, width, -1)

    def predict(cut: dict[str, np.ndarray]) -> np.ndarray:
        shape = cut["gsd10"].shape[:2]
        # Source: lanha/DSen2, utils/patches.py, interp_patches, on DN / 30000. With its
        # mode="reflect" a window's outermost pixels differ, and 0.2 % of those kept by up to 6 DN.
        coarse = cut["gsd20"].astype(np.float64)
        bands = [
            skimage.transform.resize(
                coarse[..., band], shape, mode="edge", order=1, anti_aliasing=False
            )
            for band in range(coarse.shape[-1])
        ]
        fine = np.stack(bands, axis=-1) * 5  # DN / 2000
        red_first = cut["gsd10"][..., [2, 1, 0, 3]] * 5
        x = np.maximum(convolve(np.concatenate([red_first, fine], axis=-1), 0), 0)
        for number in range(1, 13, 2):
            x = x + 0.1 * convolve(np.maximum(convolve(x, number), 0), number + 1)
        return (convolve(x, 13) + fine) / 5

    return predict


@pytest.fixture(scope="module")
def published(shared_data: pathlib.Path) -> pathlib.Path:
    """DSen2's weights for the 20 m bands of L1C."""
    return shared_data / "weights" / "dsen2_L1C20M.npz"


@pytest.fixture(scope="module")
def real_scene(shared_data: pathlib.Path):
    """A corner of 130 x 134 px: windows of 112 px are moved back at its end."""
    whole = open_granule(shared_data / "sr_scenes" / "L1C_S2A_20170527_T33UUB_dsen2demo.npz")
    cubes = {
        name: whole.cubes[name][:, : 130 // ratio, : 134 // ratio] for name, ratio in RATIOS.items()
    }
    return dataclasses.replace(whole, cubes=cubes)


@pytest.mark.shared_data
def test_published_weights_by_dsen2s_procedure(published: pathlib.Path, real_scene) -> None:
    """Windows of 128 px with a border of 8, against a direct form that shares no code with it."""
    model = methods.load(methods.find(published))
    expected = by_dsen2(fast_dsen2(published), reflectance(real_scene), 128, 8) * 1e4
    found = run(networks.build_network(model, procedure="dsen2"), real_scene)
    assert np.abs(found - np.clip(np.rint(expected), 1, 65534)).max() <= 1


@pytest.mark.shared_data
def test_published_weights_with_a_border_of_14_equal_one_window(
    published: pathlib.Path, real_scene
) -> None:
    """The network sees 14 px around a pixel; 8 px, DSen2's own, leave differences."""
    model = methods.load(methods.find(published))
    exact = run(networks.build_network(model), real_scene, core=640)
    small = run(networks.build_network(model), real_scene, core=100)
    assert np.abs(small - exact).max() <= 1
    found = run(networks.build_network(model, procedure="dsen2", border=14), real_scene)
    assert np.abs(found - exact).max() <= 1
    own = run(networks.build_network(model, procedure="dsen2"), real_scene)
    assert np.abs(own - exact).max() > 1


def test_what_is_no_window() -> None:
    model = untrained("dsen2", filters=4, blocks=2)
    with pytest.raises(DataError, match="windows of 15 px with a border of 8 px"):
        networks.build_network(model, procedure="dsen2", window=15)
    with pytest.raises(DataError, match="procedure 'x'; there are lattice, dsen2"):
        networks.build_network(model, procedure="x")
    with pytest.raises(DataError, match="precision 'int8'"):
        networks.build_network(model, precision="int8")


def test_precision_changes_inner_layers_only() -> None:
    model = untrained("s2x", filters=8, blocks=2, block=16)
    other = networks.recast(model, "bfloat16")
    policies = {layer.name: layer.dtype_policy.name for layer in other.layers}
    inner = {name for name, policy in policies.items() if policy == "mixed_bfloat16"}
    assert inner == {
        "block1_conv1", "block1_conv2", "block2_conv1", "block2_conv2", "attention"
    }  # fmt: skip
    for name, values in zip(
        (w.path for w in model.weights), zip(model.weights, other.weights, strict=True), strict=True
    ):
        np.testing.assert_array_equal(*map(np.asarray, values), err_msg=name)
    given = granule(64, 64, RATIOS)
    one, two = (run(networks.build_network(m), given) for m in (model, other))
    assert 0 < np.abs(one - two).max() < 60
    back = networks.recast(other, "float32")
    np.testing.assert_array_equal(run(networks.build_network(back), given), one)
