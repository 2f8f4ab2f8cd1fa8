"""Mean-shift and attention on a lattice of blocks, against the layers on each block alone."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from kerass2 import models
from kerass2.config import ConfigError
from kerass2.models import layers

SIZES = [(8, 8), (16, 24), (13, 8), (8, 21), (19, 11), (3, 5), (3, 20)]


def pixels(height: int, width: int, channels: int = 5, size: int = 2) -> np.ndarray:
    """A stream of features."""
    rng = np.random.default_rng(height * 100 + width)
    return rng.normal(1, 2, (size, height, width, channels)).astype(np.float32)


def layer_of(kind: str, block: int | None) -> Any:
    """A layer whose attention takes part; equal weights for every block."""
    if kind == "mean":
        return layers.MeanShift(block)
    keras.utils.set_random_seed(1)
    layer = layers.SelfAttention(3, block)
    layer.build((None, None, None, 5))
    layer.gamma.assign(0.7)
    return layer


def by_block(layer: Any, x: np.ndarray, block: int) -> np.ndarray:
    """The layer on each block of its own."""
    out = np.empty_like(x)
    for i in range(0, x.shape[1], block):
        for j in range(0, x.shape[2], block):
            part = (slice(None), slice(i, i + block), slice(j, j + block))
            out[part] = layer(x[part])
    return out


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["mean", "attention"])
@pytest.mark.parametrize("compiled", [False, True])
def test_lattice_is_the_layer_on_each_block(
    kind: str, size: tuple[int, int], compiled: bool
) -> None:
    whole, layer, x = layer_of(kind, None), layer_of(kind, 8), pixels(*size)
    signature = [tf.TensorSpec((None, None, None, 5))]
    call = tf.function(layer, input_signature=signature) if compiled else layer
    np.testing.assert_allclose(call(x), by_block(whole, x, 8), rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 14), st.integers(1, 14), st.integers(1, 15), st.booleans())
def test_any_size_and_block(height: int, width: int, block: int, attention: bool) -> None:
    kind, x = "attention" if attention else "mean", pixels(height, width)
    found, expected = layer_of(kind, block)(x), by_block(layer_of(kind, None), x, block)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["mean", "attention"])
def test_a_patch_no_larger_than_a_block_is_as_without(kind: str) -> None:
    x = pixels(8, 6)
    np.testing.assert_array_equal(layer_of(kind, 8)(x), layer_of(kind, None)(x))


def test_mean_shift_in_numpy() -> None:
    x = pixels(5, 7)
    expected = x.astype(np.float64)
    for part in (np.s_[:, :4, :4], np.s_[:, :4, 4:], np.s_[:, 4:, :4], np.s_[:, 4:, 4:]):
        expected[part] -= expected[part].mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(layers.MeanShift(4)(x), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["mean", "attention"])
def test_gradients_stay_in_their_block(kind: str) -> None:
    """Cut blocks too: what fills them up takes no part."""
    layer, x = layer_of(kind, 4), tf.constant(pixels(6, 7))
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(layer(x)[:, 4:, 4:] ** 2)
    gradient = tape.gradient(loss, x).numpy()
    with tf.GradientTape() as tape:
        part = tf.Variable(x[:, 4:, 4:])
        loss = tf.reduce_sum(layer_of(kind, None)(part) ** 2)
    np.testing.assert_allclose(gradient[:, 4:, 4:], tape.gradient(loss, part), rtol=1e-4, atol=1e-5)
    gradient[:, 4:, 4:] = 0
    assert not gradient.any()


def test_windows_on_the_lattice_agree() -> None:
    """A window whose corners lie on the lattice gives what the whole gives there."""
    for kind in ("mean", "attention"):
        layer, x = layer_of(kind, 4), pixels(16, 16)
        whole = np.asarray(layer(x))
        np.testing.assert_allclose(layer(x[:, 4:12, 8:16]), whole[:, 4:12, 8:16], atol=2e-6)


def test_block_of_a_model_is_saved(tmp_path: pathlib.Path) -> None:
    model = models.build("s2x", filters=8, blocks=2, block=8)
    model.save(tmp_path / "model.keras")
    again = models.load_model(tmp_path / "model.keras")
    assert models.describe(again)["block"] == models.describe(model)["block"] == 8
    assert {again.get_layer(name).block for name in ("mean_shift", "attention")} == {8}


def test_block_in_describe() -> None:
    def found(**options: Any) -> Any:
        return models.describe(models.build(filters=8, blocks=1, **options))["block"]

    assert found(name="s2x") is None
    assert found(name="dsen2") is None
    assert found(name="s2x", block=12, task="superres_60m") == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": -2}, "block = -2, at least 0 is needed"),
        ({"block": 33}, "block = 33: superres_20m needs a multiple of 2"),
        ({"block": 32, "task": "superres_60m"}, "block = 32: superres_60m needs a multiple of 6"),
        ({"block": None}, "block = None is NoneType, int is needed"),
    ],
)
def test_blocks_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        models.build("s2x", **options)


@pytest.mark.parametrize("block", [0, -1, 2.0, True])
def test_edges_that_are_none(block: Any) -> None:
    for layer in (layers.MeanShift, layers.SelfAttention):
        with pytest.raises(ValueError, match="a positive number of pixels or None"):
            layer(block=block)


OTHER_BACKEND = """
import sys, keras, numpy as np
from kerass2.models import layers
assert keras.backend.backend() == sys.argv[2]
with np.load(sys.argv[1]) as file:
    mean, attention = layers.MeanShift(8), layers.SelfAttention(3, 8)
    attention.build((None, None, None, 5))
    attention.set_weights([file[f"w{i}"] for i in range(7)])
    for name, layer in (("mean", mean), ("attention", attention)):
        found = keras.ops.convert_to_numpy(layer(file["x"]))
        assert np.abs(found - file[name]).max() < 1e-5, name
"""


@pytest.mark.backends
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_agree(
    tmp_path: pathlib.Path, backend: str, run_on_backend: Callable[..., None]
) -> None:
    x, mean, attention = pixels(19, 11), layer_of("mean", 8), layer_of("attention", 8)
    weights = {f"w{i}": value for i, value in enumerate(attention.get_weights())}
    np.savez(tmp_path / "data.npz", x=x, mean=mean(x), attention=attention(x), **weights)
    run_on_backend(backend, OTHER_BACKEND, tmp_path / "data.npz")
