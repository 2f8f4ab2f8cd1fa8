"""Losses of labels against scikit-learn, Keras and numpy."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import sklearn.metrics
import tensorflow as tf

from kerass2 import label_losses, losses
from kerass2.config import ConfigError

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (6, 5)).astype(np.float32)
TARGET = (RNG.random((6, 5)) < 0.4).astype(np.float32)
COUNTS = (np.array([1, 10, 100, 1000, 5000]), 10_000)


def p(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def crossentropy(target, logits, positive=1.0) -> np.ndarray:
    return -(positive * target * np.log(p(logits)) + (1 - target) * np.log(1 - p(logits)))


def build(name, counts=None, **options):
    return losses.get(name, options, counts)


def test_crossentropy_is_scikit_learns():
    found = np.asarray(build("binary_crossentropy")(TARGET, LOGITS))
    assert found.shape == (6,)
    pairs = zip(TARGET, p(LOGITS), strict=True)
    expected = [sklearn.metrics.log_loss(truth, values, labels=[0, 1]) for truth, values in pairs]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_smoothing_is_keras():
    theirs = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.2, reduction=None)
    found = build("binary_crossentropy", smoothing=0.2)(TARGET, LOGITS)
    np.testing.assert_allclose(found, theirs(TARGET, LOGITS), rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 2.0, 1.5])
def test_focal_is_keras(gamma):
    theirs = keras.losses.BinaryFocalCrossentropy(
        from_logits=True, gamma=gamma, alpha=0.25, apply_class_balancing=True, reduction=None
    )
    found = build("focal", gamma=gamma)(TARGET, LOGITS)
    np.testing.assert_allclose(found, theirs(TARGET, LOGITS), rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "weights"),
    [
        ("inverse", 1 / COUNTS[0]),
        ("inverse_sqrt", COUNTS[0] ** -0.5),
        ("effective_number", (1 - 0.9999) / (1 - 0.9999 ** COUNTS[0].astype(float))),
    ],
)
def test_class_weights(kind, weights):
    weights = weights / weights.mean()
    for name, each in (("binary_crossentropy", crossentropy(TARGET, LOGITS)), ("focal", None)):
        if each is None:
            right = np.where(TARGET > 0, p(LOGITS), 1 - p(LOGITS))
            alpha = np.where(TARGET > 0, 0.25, 0.75)
            each = alpha * (1 - right) ** 2 * crossentropy(TARGET, LOGITS)
        found = build(name, COUNTS, class_weights=kind)(TARGET, LOGITS)
        np.testing.assert_allclose(found, (weights * each).mean(axis=1), rtol=1e-4)
    listed = build("binary_crossentropy", COUNTS, class_weights=weights.tolist())(TARGET, LOGITS)
    expected = (weights * crossentropy(TARGET, LOGITS)).mean(axis=1)
    np.testing.assert_allclose(listed, expected, rtol=1e-4)


@pytest.mark.parametrize(("kind", "power"), [("inverse", 1.0), ("inverse_sqrt", 0.5)])
def test_positive_weights(kind, power):
    odds = (10_000 - COUNTS[0]) / COUNTS[0]
    expected = crossentropy(TARGET, LOGITS, np.minimum(odds**power, 100)).mean(axis=1)
    found = build("binary_crossentropy", COUNTS, positive_weights=kind)(TARGET, LOGITS)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("name", label_losses.LABEL_LOSSES)
def test_extreme_logits_and_low_precision(name):
    logits = tf.Variable([[1e4, -1e4, 0.0, 60.0, -60.0]])
    target = tf.constant([[0.0, 1.0, 1.0, 1.0, 0.0]])
    with tf.GradientTape() as tape:
        value = build(name)(target, logits)
    assert np.isfinite(value).all()
    assert np.isfinite(tape.gradient(value, logits)).all()
    low = tf.cast(LOGITS, tf.bfloat16)
    expected = build(name)(TARGET, tf.cast(low, tf.float32))
    np.testing.assert_array_equal(build(name)(TARGET, low), expected)
    assert expected.dtype == tf.float32


@pytest.mark.parametrize(
    ("name", "counts", "options", "message"),
    [
        ("focal", None, {"beta": 1}, "'focal' has no option beta; there are: gamma, alpha"),
        ("focal", None, {"gamma": -1}, "gamma -1"),
        ("binary_crossentropy", None, {"smoothing": 2}, "smoothing 2: a number from 0 to 1"),
        ("binary_crossentropy", None, {"class_weights": "inverse"}, "needs a training split"),
        ("binary_crossentropy", COUNTS, {"class_weights": "x"}, "'x'; there are: none, inverse"),
        ("binary_crossentropy", COUNTS, {"positive_weights": [-1.0]}, "one for each class"),
        ("binary_crossentropy", COUNTS, {"positive_weights": "x"}, "'x'; there are: none, inv"),
        ("hinge", None, {}, "unknown loss 'hinge'.*binary_crossentropy, focal"),
        ("l1", None, {"smoothing": 0.1}, "loss 'l1' has no options"),
    ],
)
def test_wrong_options_are_named(name, counts, options, message):
    with pytest.raises(ConfigError, match=message):
        build(name, counts, **options)


def test_shapes_are_not_broadcast():
    loss = build("binary_crossentropy", positive_weights=[1.0])
    with pytest.raises(ConfigError, match="1 weights of classes, the model has 5"):
        loss(TARGET, LOGITS)
    with pytest.raises(ValueError, match=r"\(6, 1\)"):
        build("focal")(TARGET, LOGITS[:, :1])
