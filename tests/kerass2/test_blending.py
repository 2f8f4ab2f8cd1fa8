"""Two half-shifted lattices blended: against numpy, on windows, by cost."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from kerass2 import cropping, models
from kerass2.models import blending, cost, fused
from kerass2.models.layers import MeanShift, ResidualSum, SelfAttention
from tests.kerass2.window_cases import RATIOS, untrained


def shares(y: int, x: int, block: int, lattices: tuple[tuple[int, int], ...]) -> list[float]:
    """Of each lattice, by the distances of a pixel's centre from its borders."""
    lines = np.arange(-2, 20) * block
    squares = []
    for moved in lattices:
        borders = (lines + shift * (block // 2) for shift in moved)
        nearest = (np.abs(n + 0.5 - b).min() for n, b in zip((y, x), borders, strict=True))
        squares.append(float(min(nearest)) ** 2)
    return [square / sum(squares) for square in squares]


@pytest.mark.parametrize("block", [8, 7])
def test_mean_shift_in_numpy(block: int) -> None:
    """All lattices block by block, weighted pixel by pixel."""
    size, half = 4 * block, block // 2
    x = np.random.default_rng(0).normal(5, 1, (2, size, size, 3)).astype(np.float32)
    layer = blending.Blended(MeanShift(block))
    found, expected = np.asarray(layer(x)), x.copy()
    assert len(layer.lattices) == 4
    for row in range(size):
        for column in range(size):
            weights = shares(row, column, block, layer.lattices)
            inside = half <= min(row, column) and max(row, column) < size - (block - half)
            for moved, weight in zip(layer.lattices, weights, strict=True):
                if not inside:
                    weight = float(moved == (0, 0))
                places = zip((row, column), moved, strict=True)
                top, left = ((n - m * half) // block * block + m * half for n, m in places)
                part = x[:, max(top, 0) : top + block, max(left, 0) : left + block]
                expected[:, row, column] -= weight * part.mean(axis=(1, 2))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_attention_is_that_of_both_lattices() -> None:
    block, size = 8, 32
    x = np.random.default_rng(1).normal(size=(1, size, size, 6)).astype(np.float32)
    layer = SelfAttention(4, block)
    layer.build(x.shape)
    layer.gamma.assign(0.7)
    blended = blending.Blended(layer)
    assert blended.lattices == ((0, 0), (1, 1))
    found = np.asarray(blended(x))
    own = np.asarray(layer(x))
    moved = np.asarray(layer(np.roll(x, (4, 4), axis=(1, 2))))
    moved = np.roll(moved, (-4, -4), axis=(1, 2))
    for row, column in [(0, 0), (8, 9), (15, 16), (12, 12), (20, 7), (31, 3)]:
        inside = min(row, column) >= 4 and max(row, column) < size - 4
        share = shares(row, column, block, blended.lattices)[0] if inside else 1.0
        expected = share * own[:, row, column] + (1 - share) * moved[:, row, column]
        np.testing.assert_allclose(found[:, row, column], expected, atol=1e-5)


@pytest.mark.parametrize("kind", blending.LATTICES)
def test_a_lattice_weighs_nothing_at_its_borders(kind: type) -> None:
    lattices = blending.LATTICES[kind]
    found = [np.asarray(w)[..., 0] for w in blending.blending_weights(128, 128, 32, lattices)]
    np.testing.assert_allclose(sum(found), 1, atol=1e-6)
    own, both = found[:2]
    assert own[47, 47] > 0.99 and both[64, 64] > 0.99
    # Along a border, but where the other lattice of two has one, too.
    border = own[64, 36:92]
    assert border.max() < 0.01 if len(lattices) == 4 else border.mean() < 0.06


def test_blend_shares_weights_and_leaves_what_has_no_lattice() -> None:
    model = untrained("s2x", filters=8, blocks=2, block=8)
    found = blending.blend(model)
    kinds = [type(layer).__name__ for layer in found.layers]
    assert kinds.count("Blended") == 2
    assert not {"MeanShift", "SelfAttention"} & set(kinds)
    assert {id(w) for w in found.weights} == {id(w) for w in model.weights}
    plain = models.build("s2x", filters=8, blocks=2)
    assert "Blended" not in {type(layer).__name__ for layer in blending.blend(plain).layers}
    with pytest.raises(ValueError, match="acts on blocks is needed"):
        blending.Blended(keras.layers.Dense(3))


def test_the_second_lattice_is_counted() -> None:
    model = models.build("s2x", block=32)
    once, twice = cost.count(model), cost.count(blending.blend(model))
    assert twice.attention(32) == 2 * once.attention(32)
    assert twice.convolutions == once.convolutions
    # 128 filters: 8 % for the keys of a block, 1 % for the projections.
    assert 1.05 < (twice.convolutions + twice.attention(32)) / once.of_patch(32) * 32**2 < 1.12
    before, after = (cropping.crop(m, RATIOS) for m in (model, blending.blend(model)))
    assert (before.halo, before.step) == (after.halo, after.step)
    inside = [sum(flop for flop, _ in cropped.work) for cropped in (before, after)]
    assert inside[0] == once.convolutions + once.attention(32)
    assert inside[1] == twice.convolutions + twice.attention(32)
    # Executed: around a window of 512 px its own lattice has 18 x 18 blocks, the moved 17 x 17.
    more = after.flops(512, 512) - before.flops(512, 512)
    assert more == (17 * 32) ** 2 * once.attention(32)


@pytest.mark.parametrize(
    ("name", "options", "streams", "taken"),
    [
        ("dsen2", {"dtype": "float32"}, [1, 1, 1, 1, 1], []),
        # The third sum and the last are written, those in between only taken.
        ("dsen2", {"dtype": "mixed_bfloat16"}, [3, 2], [1, 1, 2]),
        # The attention, after the third of five, takes the stream itself, and gives another.
        ("s2x", {"dtype": "mixed_bfloat16", "block": 4}, [3, 2], [1, 1, 2]),
        ("s2x", {"dtype": "mixed_bfloat16", "block": 4, "attention": False}, [3, 2], [1, 1, 2]),
    ],
)
def test_residual_sums_in_one_pass_give_the_same(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: dict[str, Any],
    streams: list[int],
    taken: list[int],
) -> None:
    """`streams` and `taken`: how many branches are summed in one pass, in float32 and bfloat16."""
    monkeypatch.setattr(fused, "LEAST_SIZE", 0)
    model = untrained(name, filters=8, blocks=5, **options)
    found = fused.fuse(model)
    assert not any(type(layer) is ResidualSum for layer in found.layers)
    sums = [layer for layer in found.layers if type(layer) is fused.OnePassSum]
    for out, expected in (("float32", streams), ("bfloat16", taken)):
        assert sorted(len(s.input) - 1 for s in sums if s.out == out) == sorted(expected)
    assert {id(w) for w in found.weights} == {id(w) for w in model.weights}
    rng = np.random.default_rng(0)
    sizes = {"gsd10": (2, 24, 24, 4), "gsd20": (2, 12, 12, 6)}
    given = {name: rng.random(size, "f4") for name, size in sizes.items()}
    tolerance = 2e-6 if options["dtype"] == "float32" else 3e-3
    fused_, before = (np.asarray(m(given)["superres_20m"]) for m in (found, model))
    np.testing.assert_allclose(fused_, before, atol=tolerance)
    second = [layer for layer in model.layers if type(layer) is ResidualSum][1]
    monkeypatch.setattr(second, "scale", 0.3)
    fused_, after = (np.asarray(m(given)["superres_20m"]) for m in (fused.fuse(model), model))
    np.testing.assert_allclose(fused_, after, atol=tolerance)
    assert np.abs(after - before).max() > 10 * tolerance
