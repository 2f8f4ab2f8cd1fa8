"""Nadam against a plain form of Dozat's equations and PyTorch's; SGD against Keras'."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerass2 import optimizers, schedules
from kerass2.config import OptimizerConfig

STEPS = 30


def gradients(step: int) -> np.ndarray:
    return np.random.default_rng(step).normal(size=5)


def ours(momentum_decay: float) -> np.ndarray:
    weight = keras.Variable(np.zeros(5), dtype="float32")
    optimizer = optimizers.Nadam(0.01, momentum_decay=momentum_decay)
    optimizer.build([weight])
    for step in range(STEPS):
        optimizer.apply([keras.ops.convert_to_tensor(gradients(step), "float32")], [weight])
    return np.asarray(weight)


def dozat(momentum_decay: float) -> np.ndarray:
    """Dozat 2016, algorithm 8 in the notation of Keras 2's optimizers.Nadam, in float64."""
    weight, m, v, product = np.zeros(5), np.zeros(5), np.zeros(5), 1.0
    for t in range(1, STEPS + 1):
        g = gradients(t - 1)
        mu = 0.9 * (1 - 0.5 * 0.96 ** (t * momentum_decay))
        mu_next = 0.9 * (1 - 0.5 * 0.96 ** ((t + 1) * momentum_decay))
        product *= mu
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        g_hat, m_hat = g / (1 - product), m / (1 - product * mu_next)
        m_bar = (1 - mu) * g_hat + mu_next * m_hat
        weight = weight - 0.01 * m_bar / (np.sqrt(v / (1 - 0.999**t)) + 1e-7)
    return weight


@pytest.mark.parametrize("momentum_decay", [0.004, 1.0])
def test_nadam_is_dozats(momentum_decay):
    np.testing.assert_allclose(ours(momentum_decay), dozat(momentum_decay), rtol=1e-4, atol=1e-6)


@pytest.mark.backends
def test_nadam_is_pytorchs():
    torch = pytest.importorskip("torch")
    weight = torch.zeros(5, requires_grad=True)
    optimizer = torch.optim.NAdam([weight], lr=0.01, eps=1e-7)
    for step in range(STEPS):
        weight.grad = torch.tensor(gradients(step), dtype=torch.float32)
        optimizer.step()
    np.testing.assert_allclose(ours(0.004), weight.detach().numpy(), rtol=1e-4, atol=1e-6)


def test_keras_nadam_is_another():
    """Canary: when Keras takes a momentum decay, ours can go."""
    with pytest.raises(ValueError, match="momentum_decay"):
        keras.optimizers.Nadam(momentum_decay=0.004)


def build(factor=None):
    config = OptimizerConfig("nadam", 1e-2, "linear", 8, schedule_options={"warmup_steps": 4})
    return optimizers.build(
        config,
        precision="float32",
        global_batch=16,
        num_steps=10,
        steps_per_epoch=5,
        rate_factor=factor,
    )


def test_a_factor_scales_the_schedule_while_training_goes_on():
    factor = keras.Variable(1.0, trainable=False)
    optimizer, plain = build(factor), build()
    assert float(optimizer.learning_rate) == float(plain.learning_rate) == pytest.approx(1e-2)
    factor.assign(0.25)
    assert float(optimizer.learning_rate) == pytest.approx(0.25e-2)
    again = optimizers.Nadam.from_config(optimizer.get_config())
    assert float(again.learning_rate) == pytest.approx(0.25e-2)
    assert again.momentum_decay == 0.004


def test_a_scaled_schedule_is_saved():
    schedule = schedules.Scaled(schedules.Constant(0.5), 0.5)
    found = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert float(found(3)) == 0.25


def train_sgd(make, precision: str, **options) -> list[np.ndarray]:
    """Weights, and the optimizer's variables, after clipped steps by a schedule, in a graph."""
    weights = [keras.Variable(np.ones(5) * k, dtype="float32") for k in (1, 2)]
    schedule = keras.optimizers.schedules.PolynomialDecay(0.5, STEPS)
    given = {"momentum": 0.9, "nesterov": True, "global_clipnorm": 1.0, **options}
    optimizer = make(schedule, **given)
    if precision == "float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=4.0)
    optimizer.build(weights)

    @tf.function(autograph=False)
    def apply(slopes):
        optimizer.apply(tf.unstack(optimizer.scale_loss(slopes)), weights)

    for step in range(STEPS):
        apply(tf.cast(tf.stack([gradients(step), gradients(step + STEPS)]), tf.float32))
    return [np.asarray(variable) for variable in (*weights, *optimizer.variables)]


@pytest.mark.parametrize("options", [{}, {"nesterov": False}, {"momentum": 0.0, "nesterov": False}])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_sgd_is_keras(options, precision):
    found = train_sgd(optimizers.SGD, precision, **options)
    expected = train_sgd(keras.optimizers.SGD, precision, **options)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert not np.allclose(found[0], 1)


def test_sgd_is_saved():
    found = optimizers.SGD.from_config(optimizers.SGD(0.5, momentum=0.8).get_config())
    assert (float(found.learning_rate), found.momentum) == (0.5, 0.8)
    config = OptimizerConfig("sgd", 0.1, "constant", 8)
    built = optimizers.build(
        config, precision="float32", global_batch=8, num_steps=1, steps_per_epoch=1
    )
    assert type(built) is optimizers.SGD
    assert (built.momentum, built.nesterov) == (0.9, True)
