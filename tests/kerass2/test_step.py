"""The TensorFlow step in parts: the same weights, one sum over ranks, less memory."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerass2 import losses, models
from kerass2.averaging import WeightAverage
from kerass2.config import RunConfig
from kerass2.state import num_parts
from kerass2.steps import build_step
from strategies.cluster import Cluster
from strategies.single import SingleStrategy

BATCH = 12


class Counting(SingleStrategy):
    """Counts the sums over ranks in the compiled step."""

    def __init__(self) -> None:
        super().__init__(Cluster("none"))
        self.num_sums = 0

    def sum_gradients(self, tensors):
        self.num_sums += 1
        return super().sum_gradients(tensors)


def batch(step: int) -> dict:
    rng = np.random.default_rng(step)

    def draw(size: int, bands: int) -> np.ndarray:
        return rng.gamma(4.0, 0.05, (BATCH, size, size, bands)).astype("float32")

    return {
        "inputs": {"gsd10": draw(8, 4), "gsd20": draw(4, 6)},
        "targets": {"superres_20m": draw(8, 6)},
    }


def train(parts: int, *, regularised: bool = False, xla: bool = False):
    """Weights, losses and number of sums of five steps."""
    keras.utils.set_random_seed(3)
    model = models.build("s2x", filters=8, blocks=2)
    if regularised:
        model.get_layer("conv_first").kernel.regularizer = keras.regularizers.L2(0.1)
        assert len(model.losses) == 1
    optimizer = keras.optimizers.Adam(1e-3, global_clipnorm=0.1)
    optimizer.build(model.trainable_variables)
    strategy = Counting()
    step = build_step(strategy, model, optimizer, losses.get("l1"), BATCH, xla=xla, parts=parts)
    found = [step(batch(number), False)["loss"] for number in range(5)]
    flat = np.concatenate([np.asarray(weight).ravel() for weight in model.weights])
    return flat, found, strategy.num_sums


@pytest.mark.parametrize("regularised", [False, True])
@pytest.mark.parametrize("parts", [2, 4, 12])
def test_parts_give_the_weights_of_the_whole_batch(parts, regularised):
    whole, expected, _ = train(1, regularised=regularised)
    found, values, num_sums = train(parts, regularised=regularised)
    assert np.linalg.norm(found - whole) / np.linalg.norm(whole) <= 1e-6
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert num_sums == 1


def test_parts_under_xla():
    whole, _, _ = train(1)
    found, _, _ = train(3, xla=True)
    assert np.linalg.norm(found - whole) / np.linalg.norm(whole) <= 1e-6


def test_a_weight_that_takes_no_part_keeps_its_value():
    x = keras.Input((2,), name="x")
    used = keras.layers.Dense(1, name="used")
    spare = keras.layers.Dense(1, name="spare")
    model = keras.Model({"x": x}, {"y": used(x), "z": spare(x)})
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)
    before = spare.get_weights()
    step = build_step(Counting(), model, optimizer, losses.get("l2"), 4, parts=2)
    data = {"inputs": {"x": np.ones((4, 2), "f4")}, "targets": {"y": np.ones((4, 1), "f4")}}
    with pytest.warns(UserWarning, match="Gradients do not exist for variables"):
        step(data, False)
    for found, expected in zip(spare.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_average_sees_the_weights_after_each_step():
    keras.utils.set_random_seed(3)
    model = models.build("dsen2", filters=4, blocks=1)
    optimizer = keras.optimizers.Adam(1e-2)
    optimizer.build(model.trainable_variables)
    average = WeightAverage(model, 0.5)
    step = build_step(Counting(), model, optimizer, losses.get("l1"), BATCH, average=average)
    expected = model.get_weights()
    for number in range(1, 5):
        step(batch(number), False)
        keep = min(0.5, (1 + number) / (10 + number))
        expected = [
            keep * old + (1 - keep) * new
            for old, new in zip(expected, model.get_weights(), strict=True)
        ]
    with average.in_place():
        for found, value in zip(model.get_weights(), expected, strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("local", "micro", "parts"), [(12, 0, 1), (12, 12, 1), (12, 99, 1), (12, 5, 3), (7, 6, 7)]
)
def test_number_of_parts(local, micro, parts):
    assert num_parts(local, RunConfig(micro_batch=micro)) == parts


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("parts", [1, 3])
def test_l2_is_part_of_loss_and_gradient(parts, precision):
    """Against a tape through Model.losses; an L1 beside it stays in the step's own tape."""
    keras.utils.set_random_seed(3)
    x = keras.Input((3,), name="x")
    decayed = keras.layers.Dense(4, kernel_regularizer=keras.regularizers.L2(0.3), name="decayed")
    sparse = keras.layers.Dense(2, kernel_regularizer=keras.regularizers.L1(0.2), name="sparse")
    model = keras.Model({"x": x}, {"y": sparse(decayed(x))})
    optimizer = keras.optimizers.SGD(0.5)
    if precision == "float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    data = {
        "inputs": {"x": rng.normal(size=(BATCH, 3)).astype("f4")},
        "targets": {"y": rng.normal(size=(BATCH, 2)).astype("f4")},
    }
    weights = model.trainable_variables
    with tf.GradientTape() as tape:
        each = losses.get("l2")(data["targets"]["y"], model(data["inputs"])["y"])
        value = tf.reduce_mean(each) + tf.add_n(model.losses)
    gradients = tape.gradient(value, [weight.value for weight in weights])
    expected = [w.numpy() - 0.5 * g.numpy() for w, g in zip(weights, gradients, strict=True)]
    step = build_step(Counting(), model, optimizer, losses.get("l2"), BATCH, parts=parts)
    found = step(data, False)
    assert found["loss"] == pytest.approx(float(value), rel=1e-5)
    scale = 2.0**15 if precision == "float16" else 1.0
    assert found["gradient_norm"] == pytest.approx(
        scale * float(tf.linalg.global_norm(gradients)), rel=1e-4
    )
    for weight, after in zip(weights, expected, strict=True):
        np.testing.assert_allclose(weight.numpy(), after, rtol=1e-4, atol=1e-6)
    assert len(model.losses) == 2
