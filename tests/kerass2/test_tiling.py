"""Windows over a granule: arithmetic, exactness for convolutions, memory, edges, empty parts."""

from __future__ import annotations

import collections
import functools
import math

import dask.array
import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.spec import DataError
from kerass2 import models, tiling

RATIOS = {"gsd10": 1, "gsd20": 2}
RATIOS_60 = {"gsd10": 1, "gsd20": 2, "gsd60": 6}


def granule(height: int, width: int, ratios: dict[str, int] = RATIOS) -> dict[str, np.ndarray]:
    """Random DN, so that any wrong pixel shows."""
    rng = np.random.default_rng(height * width)
    bands = {"gsd10": 4, "gsd20": 6, "gsd60": 2}
    return {
        name: rng.integers(200, 6000, (bands[name], height // ratio, width // ratio), np.uint16)
        for name, ratio in ratios.items()
    }


def untrained(name: str, **options: object) -> keras.Model:
    """A model whose every weight takes part: zeros (biases, gamma) are moved."""
    keras.utils.set_random_seed(3)
    model = models.build(name, **options)
    rng = np.random.default_rng(4)
    for weight in model.trainable_variables:
        if not np.asarray(weight).any():
            weight.assign(rng.normal(0, 0.1, weight.shape))
    return model


def run(model: keras.Model, cubes: dict[str, np.ndarray], lattice: tiling.Lattice) -> np.ndarray:
    """The whole prediction (y, x, band)."""
    described = models.describe(model)
    strips = tiling.predict_strips(
        tiling.compile_prediction(model),
        cubes,
        lattice,
        target=described["target"],
        num_bands=len(described["target_bands"]),
    )
    return np.concatenate(list(strips))


@pytest.mark.parametrize(
    ("radius", "ratios", "halo"),
    [
        (14, {"gsd10": 1}, 14),
        (14, RATIOS, 16),
        (14, RATIOS_60, 18),
        (0, RATIOS, 2),
        (66, RATIOS, 68),
    ],
)
def test_exact_halo(radius: int, ratios: dict[str, int], halo: int) -> None:
    assert tiling.exact_halo(radius, ratios) == halo


@given(st.integers(0, 80), st.integers(2, 6))
def test_exact_halo_holds_the_coarse_pixels_that_interpolation_reads(
    radius: int, ratio: int
) -> None:
    halo = tiling.exact_halo(radius, {"coarse": ratio})
    outermost = (-radius + 0.5) / ratio - 0.5  # centre of fine pixel -radius in coarse pixels
    assert -halo // ratio <= math.floor(outermost)
    assert halo - ratio < -math.floor(outermost) * ratio, "no larger than needed"


@pytest.mark.parametrize(
    ("name", "options", "radius", "window", "core"),
    [
        ("dsen2", {"filters": 8}, 14, 128, 96),
        ("dsen2", {"filters": 8, "task": "superres_60m"}, 14, 126, 90),
        ("dsen2", {"filters": 8, "blocks": 32}, 66, 272, 136),
        ("s2x", {"filters": 8}, 14, 64, 32),
    ],
)
def test_lattice_of_models(
    name: str, options: dict[str, object], radius: int, window: int, core: int
) -> None:
    model = models.build(name, **options)
    assert tiling.receptive_radius(model) == radius
    ratios = RATIOS_60 if options.get("task") == "superres_60m" else RATIOS
    lattice = tiling.build_lattice(model, ratios)
    assert (lattice.window, lattice.core) == (window, core)


def test_lattice_refuses_what_does_not_nest() -> None:
    with pytest.raises(DataError, match="multiples of 6 px"):
        tiling.Lattice(96, 16, RATIOS_60)
    with pytest.raises(DataError, match="needs at least 34 px"):
        tiling.build_lattice(models.build("dsen2", filters=8), RATIOS, window=32)


@pytest.mark.parametrize(("height", "width"), [(96, 96), (130, 202), (2, 4), (98, 50)])
@pytest.mark.parametrize("window", [64, 128])
def test_dsen2_in_windows_equals_one_window(height: int, width: int, window: int) -> None:
    model = untrained("dsen2", filters=8)
    cubes = granule(height, width)
    in_windows = run(model, cubes, tiling.build_lattice(model, RATIOS, window))
    # One window over everything, with the same mirrored border, is the reference.
    single = tiling.Lattice(204, 16, RATIOS)
    reference = run(model, cubes, single)
    assert in_windows.shape == (height, width, 6)
    assert np.abs(in_windows - reference).max() * 1e4 < 0.05
    assert np.ptp(reference) > 0.1, "a prediction that is constant would prove nothing"


def test_smaller_halo_is_not_exact() -> None:
    model = untrained("dsen2", filters=8)
    cubes = granule(100, 100)
    exact = run(model, cubes, tiling.Lattice(96, 16, RATIOS))
    assert np.abs(run(model, cubes, tiling.Lattice(32, 8, RATIOS)) - exact).max() * 1e4 > 0.05


def test_60m_in_windows_equals_one_window() -> None:
    model = untrained("dsen2", filters=8, task="superres_60m")
    cubes = granule(150, 96, RATIOS_60)
    in_windows = run(model, cubes, tiling.build_lattice(model, RATIOS_60, 66))
    reference = run(model, cubes, tiling.Lattice(150, 18, RATIOS_60))
    assert np.abs(in_windows - reference).max() * 1e4 < 0.05


def test_border_is_mirrored_as_by_padding_the_whole_granule() -> None:
    model = untrained("dsen2", filters=8)
    cubes = granule(40, 52)
    padded = {
        name: np.pad(cube, ((0, 0), (32 // r,) * 2, (32 // r,) * 2), mode="symmetric")
        for (name, cube), r in zip(cubes.items(), RATIOS.values(), strict=True)
    }
    inputs = {
        name: cube.transpose(1, 2, 0)[None] / np.float32(1e4) for name, cube in padded.items()
    }
    reference = np.asarray(model(inputs)["superres_20m"])[0, 32:-32, 32:-32]
    found = run(model, cubes, tiling.build_lattice(model, RATIOS))
    assert np.abs(found - reference).max() * 1e4 < 0.05


def test_attention_depends_on_the_lattice_and_on_nothing_else() -> None:
    model = untrained("s2x", filters=8, blocks=2)
    cubes = granule(70, 90)
    lattice = tiling.build_lattice(model, RATIOS)
    predict = tiling.compile_prediction(model)
    results = [
        np.concatenate(
            list(
                tiling.predict_strips(
                    predict, cubes, lattice, target="superres_20m", num_bands=6, batch_size=size
                )
            )
        )
        for size in (1, 3, 8)
    ]
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], atol=5e-5, rtol=0)
    other = run(model, cubes, tiling.build_lattice(model, RATIOS, window=48))
    assert np.abs(other - results[0]).max() > 1e-3


class Cube:
    """A cube that notes which part of it is asked for."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.largest = values, values.shape, 0

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        part = self.values[index]
        self.largest = max(self.largest, part.shape[1])
        return part


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 6), st.integers(0, 4))
def test_every_pixel_once_in_order_and_rows_bounded(
    height: int, width: int, core: int, halo: int
) -> None:
    rng = np.random.default_rng(0)
    cubes = {
        "gsd10": Cube(rng.integers(1, 9, (4, 2 * height, 2 * width))),
        "gsd20": Cube(rng.integers(1, 9, (6, height, width))),
    }
    lattice = tiling.Lattice(2 * core, 2 * halo, RATIOS)
    advanced: list[int] = []
    strips = tiling.predict_strips(
        lambda inputs: {"out": inputs["gsd10"]},  # identity: pixels must come out where they were
        cubes,
        lattice,
        target="out",
        num_bands=4,
        batch_size=3,
        advance=advanced.append,
    )
    found = np.concatenate(list(strips)) * 1e4
    np.testing.assert_array_equal(found.round(), cubes["gsd10"].values.transpose(1, 2, 0))
    assert sum(advanced) == lattice.num_windows(2 * height, 2 * width)
    assert cubes["gsd10"].largest <= lattice.window
    assert cubes["gsd20"].largest <= lattice.window // 2


def test_windows_without_data_are_zero_and_not_computed() -> None:
    cubes = granule(64, 96)
    for name, ratio in RATIOS.items():
        cubes[name][:, :, 32 // ratio :] = 0
    seen = []

    def predict(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.append(len(inputs["gsd10"]))
        return {"out": inputs["gsd10"] + 1}

    lattice = tiling.Lattice(32, 16, RATIOS)
    advanced: list[int] = []
    strips = list(
        tiling.predict_strips(
            predict, cubes, lattice, target="out", num_bands=4, advance=advanced.append
        )
    )
    assert seen == [2, 2], "windows 0 and 1 of each row touch data, window 2 does not"
    assert sum(advanced) == 6
    assert not np.concatenate(strips)[:, 64:].any()


@pytest.mark.parametrize("chunk", [(24, 96), (18, 30), (6, 96), (64, 18)])
def test_chunks_of_a_lazy_cube_are_read_once(chunk: tuple[int, int]) -> None:
    cubes, read = granule(64, 96), collections.Counter()

    def block(key: str, block_info: dict) -> np.ndarray:
        (_, _), (y, y_stop), (x, x_stop) = block_info[None]["array-location"]
        read[key, y, x] += 1
        return cubes[key][:, y:y_stop, x:x_stop]

    lazy = {}
    for name, cube in cubes.items():
        sizes = [(len(cube),), *(c // RATIOS[name] for c in chunk)]
        lazy[name] = dask.array.map_blocks(
            functools.partial(block, name),
            chunks=dask.array.core.normalize_chunks(sizes, cube.shape),
            dtype=np.uint16,
            meta=np.empty((0, 0, 0), np.uint16),
        )
    lattice = tiling.Lattice(12, 4, RATIOS)
    found, expected = (
        np.concatenate(
            list(
                tiling.predict_strips(
                    lambda inputs: {"out": inputs["gsd10"]},
                    given,
                    lattice,
                    target="out",
                    num_bands=4,
                )
            )
        )
        for given in (lazy, cubes)
    )
    np.testing.assert_array_equal(found, expected)
    assert set(read.values()) == {1}
    assert len(read) == sum(cube.numblocks[1] * cube.numblocks[2] for cube in lazy.values())


def test_no_data_and_saturation_of_one_input_can_be_kept() -> None:
    cubes = granule(20, 28)
    cubes["gsd20"] = cubes["gsd20"][:4]
    cubes["gsd20"][1, 3:5, 2:9] = 0
    cubes["gsd20"][2, 4:, 5:7] = 65535
    strips = tiling.predict_strips(
        lambda inputs: {"out": inputs["gsd10"]},
        cubes,
        tiling.Lattice(8, 2, RATIOS),
        target="out",
        num_bands=4,
        missing="gsd20",
    )
    found = np.concatenate(list(strips))
    empty = (cubes["gsd20"] == 0).repeat(2, axis=1).repeat(2, axis=2).transpose(1, 2, 0)
    np.testing.assert_array_equal(np.isnan(found), empty)
    saturated = (cubes["gsd20"] == 65535).repeat(2, axis=1).repeat(2, axis=2).transpose(1, 2, 0)
    np.testing.assert_array_equal(np.isposinf(found), saturated)


def test_not_finite_is_an_error() -> None:
    strips = tiling.predict_strips(
        lambda inputs: {"out": inputs["gsd10"] * np.nan},
        granule(8, 8),
        tiling.Lattice(8, 2, RATIOS),
        target="out",
        num_bands=4,
    )
    with pytest.raises(DataError, match="NaN or Inf in rows 0 to 8"):
        list(strips)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cubes: cubes.pop("gsd20"), "no gsd20; the input has gsd10"),
        (
            lambda cubes: cubes.update(gsd20=cubes["gsd20"][:, 1:]),
            "same ground: gsd10 8 x 8 px, gsd20 3 x 4",
        ),
        (
            lambda cubes: cubes.update({k: v[:, :0] for k, v in cubes.items()}),
            "same ground: gsd10 0 x 8 px",
        ),
    ],
)
def test_cubes_that_do_not_nest(change: object, message: str) -> None:
    cubes = granule(8, 8)
    change(cubes)
    with pytest.raises(DataError, match=message):
        tiling.granule_shape(cubes, RATIOS)
