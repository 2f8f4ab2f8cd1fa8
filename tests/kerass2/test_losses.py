from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from kerass2 import losses
from kerass2.config import ConfigError

TARGET = np.random.default_rng(0).random((3, 8, 8, 2), dtype=np.float32)
PREDICTION = np.random.default_rng(1).random((3, 8, 8, 2), dtype=np.float32)
DIFFERENCE = PREDICTION.astype(np.float64) - TARGET
EXPECTED = {
    "l1": np.abs(DIFFERENCE).mean(axis=(1, 2, 3)),
    "l2": (DIFFERENCE**2).mean(axis=(1, 2, 3)),
    "charbonnier": (np.sqrt(DIFFERENCE**2 + 1e-6) - 1e-3).mean(axis=(1, 2, 3)),
    "huber": np.where(
        np.abs(DIFFERENCE) < 0.01, DIFFERENCE**2 / 2, 0.01 * (np.abs(DIFFERENCE) - 0.005)
    ).mean(axis=(1, 2, 3)),
}


@pytest.mark.parametrize("name", losses.LOSSES)
def test_one_number_for_each_example(name: str) -> None:
    found = np.asarray(losses.get(name)(TARGET, PREDICTION))
    assert found.shape == (3,)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, EXPECTED[name], rtol=1e-5)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_low_precision_predictions_are_scored_in_float32(name: str) -> None:
    low = tf.cast(PREDICTION, tf.bfloat16)
    expected = losses.get(name)(TARGET, tf.cast(low, tf.float32))
    np.testing.assert_array_equal(losses.get(name)(TARGET, low), expected)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_perfect_prediction_costs_nothing_and_has_a_finite_gradient(name: str) -> None:
    x = tf.Variable(TARGET)
    with tf.GradientTape() as tape:
        loss = losses.get(name)(TARGET, x)
    np.testing.assert_allclose(loss, 0.0, atol=1e-8)
    np.testing.assert_allclose(tape.gradient(loss, x), 0.0, atol=1e-8)


def test_unknown_loss_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match="'l3'; there are: l1, l2, charbonnier"):
        losses.get("l3")


def test_shapes_are_not_broadcast() -> None:
    with pytest.raises(ValueError, match=r"\(3, 8, 8, 1\)"):
        losses.l1(TARGET, PREDICTION[..., :1])
