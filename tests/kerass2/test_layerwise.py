"""LARS and LAMB against their published algorithms in numpy, in float64."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kerass2 import layerwise, optimizers
from kerass2.config import ConfigError, OptimizerConfig

STEPS = 12
SHAPES = ((3, 3, 2, 4), (4,), (5, 2))


def weights() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.3, shape) for shape in SHAPES]


def gradients(step: int) -> list[np.ndarray]:
    rng = np.random.default_rng(100 + step)
    return [rng.normal(0, 2.0, shape) for shape in SHAPES]


def train(optimizer: keras.optimizers.Optimizer) -> list[np.ndarray]:
    variables = [keras.Variable(value, dtype="float32") for value in weights()]
    optimizer.build(variables)
    for step in range(STEPS):
        given = [keras.ops.convert_to_tensor(g, "float32") for g in gradients(step)]
        optimizer.apply(given, variables)
    return [np.asarray(variable) for variable in variables]


def lars(*, nesterov: bool) -> list[np.ndarray]:
    """You, Gitman and Ginsburg 2017, algorithm 1; the vector is a bias, and excluded."""
    rate, momentum, decay, trust = 2.0, 0.9, 1e-2, 1e-3
    found = weights()
    velocities = [np.zeros(shape) for shape in SHAPES]
    for step in range(STEPS):
        for i, g in enumerate(gradients(step)):
            w, local = found[i], 1.0
            if w.ndim > 1:
                norm = np.linalg.norm(w.ravel())
                local = trust * norm / (np.linalg.norm(g.ravel()) + decay * norm)
                g = g + decay * w
            velocities[i] = momentum * velocities[i] + rate * local * g
            ahead = momentum * velocities[i] + rate * local * g if nesterov else velocities[i]
            found[i] = w - ahead
    return found


def lamb() -> list[np.ndarray]:
    """You et al. 2020, algorithm 2."""
    rate, b1, b2, epsilon, decay = 0.02, 0.9, 0.999, 1e-6, 0.1
    found = weights()
    m, v = ([np.zeros(shape) for shape in SHAPES] for _ in range(2))
    for t in range(1, STEPS + 1):
        for i, g in enumerate(gradients(t - 1)):
            m[i] = b1 * m[i] + (1 - b1) * g
            v[i] = b2 * v[i] + (1 - b2) * g * g
            r = (m[i] / (1 - b1**t)) / (np.sqrt(v[i] / (1 - b2**t)) + epsilon)
            ratio = 1.0
            if found[i].ndim > 1:
                r = r + decay * found[i]
                ratio = np.linalg.norm(found[i].ravel()) / np.linalg.norm(r.ravel())
            found[i] = found[i] - rate * ratio * r
    return found


@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_is_as_published(nesterov):
    found = train(layerwise.LARS(2.0, weight_decay=1e-2, nesterov=nesterov))
    for ours, expected in zip(found, lars(nesterov=nesterov), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


def test_lamb_is_as_published():
    found = train(layerwise.LAMB(0.02, weight_decay=0.1))
    for ours, expected in zip(found, lamb(), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


def test_lamb_without_exclusions_and_decay_is_keras():
    ours, theirs = layerwise.LAMB(0.02, weight_decay=0.0), keras.optimizers.Lamb(0.02, epsilon=1e-6)
    kernels = (0, 2)  # those that ours excludes differ
    for i in kernels:
        np.testing.assert_allclose(train(ours)[i], train(theirs)[i], rtol=1e-4, atol=1e-6)
        ours, theirs = layerwise.LAMB(0.02, weight_decay=0.0), type(theirs)(0.02, epsilon=1e-6)


@pytest.mark.parametrize("make", [layerwise.LARS, layerwise.LAMB])
def test_a_step_does_not_depend_on_the_gradients_size(make):
    """The point of both: the ratio takes it out, but for what is excluded."""

    def step(scale: float) -> list[np.ndarray]:
        variables = [keras.Variable(value, dtype="float32") for value in weights()]
        optimizer = make(0.1, weight_decay=0.0)
        optimizer.build(variables)
        given = [keras.ops.convert_to_tensor(scale * g, "float32") for g in gradients(0)]
        optimizer.apply(given, variables)
        return [np.asarray(v) - w for v, w in zip(variables, weights(), strict=True)]

    small, large = step(1.0), step(1000.0)
    for i in (0, 2):
        np.testing.assert_allclose(small[i], large[i], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("make", [layerwise.LARS, layerwise.LAMB])
def test_weights_and_gradients_of_zero_stay_finite(make):
    variable = keras.Variable(np.zeros((2, 2)), dtype="float32")
    optimizer = make(0.1)
    optimizer.build([variable])
    for value in (0.0, 1.0):
        optimizer.apply([keras.ops.full((2, 2), value)], [variable])
    assert np.isfinite(np.asarray(variable)).all()
    assert (np.asarray(variable) != 0).all()


def test_they_are_built_from_an_experiment():
    def build(name: str, **options: object) -> keras.optimizers.Optimizer:
        return optimizers.build(
            OptimizerConfig(name, 1.0, "constant", 256, options=options),
            precision="float32",
            global_batch=512,
            num_steps=10,
            steps_per_epoch=5,
        )

    optimizer = build("lars", weight_decay=0.5, trust=0.02, global_clipnorm=1.0)
    again = type(optimizer).from_config(optimizer.get_config())
    assert (again.ratio_decay, again.trust, again.global_clipnorm) == (0.5, 0.02, 1.0)
    assert again.weight_decay is None
    assert build("lamb").get_config()["weight_decay"] == 0.01
    with pytest.raises(ConfigError, match="weight_decay -1"):
        build("lamb", weight_decay=-1)
