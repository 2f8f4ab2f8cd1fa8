"""FusedBatchNormalization against Keras' layer, whose dozen operations it replaces."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerass2.models.normalization import FusedBatchNormalization

OPTIONS = {"momentum": 0.9, "epsilon": 1.001e-5}


def images(*shape: int) -> np.ndarray:
    """Channels of different mean and spread."""
    rng = np.random.default_rng(0)
    scale, shift = np.exp(rng.normal(size=shape[-1])), rng.normal(size=shape[-1])
    return (rng.normal(size=shape) * scale + shift).astype(np.float32)


def build(kind: type[keras.layers.Layer], channels: int, **options: object) -> keras.layers.Layer:
    layer = kind(**OPTIONS, **options)
    layer.build((None, None, None, channels))
    rng = np.random.default_rng(1)
    layer.set_weights([rng.uniform(0.5, 1.5, channels).astype(np.float32) for _ in range(4)])
    return layer


def run(layer: keras.layers.Layer, x: np.ndarray, *, training: bool = True) -> list[np.ndarray]:
    """Output, gradients of a sum with different weights, and the layer's weights after it."""
    given = tf.constant(x)
    weight = tf.constant(np.random.default_rng(2).normal(size=x.shape).astype(np.float32))
    learnt = [variable.value for variable in layer.trainable_variables]

    @tf.function
    def step() -> tuple[tf.Tensor, ...]:
        with tf.GradientTape() as tape:
            tape.watch(given)
            output = layer(given, training=training)
            value = tf.reduce_sum(tf.cast(output, tf.float32) * weight)
        return (output, *tape.gradient(value, [given, *learnt]))

    return [*map(np.asarray, step()), *layer.get_weights()]


@pytest.mark.parametrize("shape", [(3, 5, 7, 4), (8, 15, 15, 32), (2, 1, 1, 3), (1, 1, 1, 3)])
def test_it_is_keras_layer(shape):
    x = images(*shape)
    expected = run(build(keras.layers.BatchNormalization, shape[-1]), x)
    found = run(build(FusedBatchNormalization, shape[-1]), x)
    for ours, theirs in zip(found, expected, strict=True):
        # Rounding in a normalised difference of two numbers is as large as they are.
        atol = max(2e-4 * np.abs(theirs).max(), 1e-6)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=atol)


def test_statistics_are_the_batchs_own():
    x = images(2, 3, 3, 4)
    _, *_, mean, variance = run(build(FusedBatchNormalization, 4), x)
    *_, old_mean, old_variance = build(FusedBatchNormalization, 4).get_weights()
    np.testing.assert_allclose(mean, 0.9 * old_mean + 0.1 * x.mean((0, 1, 2)), rtol=1e-5)
    # Not that of all that the batch was drawn from, n / (n - 1) times as large.
    np.testing.assert_allclose(variance, 0.9 * old_variance + 0.1 * x.var((0, 1, 2)), rtol=1e-5)


def test_half_precision_stays_and_statistics_are_float32():
    x = images(4, 9, 9, 8)
    found = run(build(FusedBatchNormalization, 8, dtype="mixed_bfloat16"), x)
    rounded = np.asarray(tf.cast(tf.cast(x, tf.bfloat16), tf.float32))
    expected = run(build(keras.layers.BatchNormalization, 8), rounded)
    assert found[0].dtype == tf.bfloat16.as_numpy_dtype
    for ours, theirs in zip(found[:4], expected[:4], strict=True):
        # bfloat16 has 8 bits.
        atol = 0.02 * np.abs(theirs).max()
        np.testing.assert_allclose(ours.astype(np.float32), theirs, rtol=0.02, atol=atol)
    for ours, theirs in zip(found[-2:], expected[-2:], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.parametrize(("training", "trainable"), [(False, True), (True, False)])
def test_without_learning_it_uses_the_moving_statistics(training, trainable):
    x = images(3, 5, 5, 4)
    ours, theirs = (
        build(kind, 4, trainable=trainable)
        for kind in (FusedBatchNormalization, keras.layers.BatchNormalization)
    )
    np.testing.assert_array_equal(ours(x, training=training), theirs(x, training=training))
    for found, expected in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("options", [{"axis": 1}, {"scale": False}, {"synchronized": True}])
def test_what_it_is_not_for_is_refused(options):
    with pytest.raises(ValueError, match="only the last axis, with scale and center"):
        FusedBatchNormalization(**options)
