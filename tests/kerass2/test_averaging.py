"""The moving average of weights, against TensorFlow's own and against a sum in numpy."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerass2.averaging import WeightAverage


def make() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4), keras.layers.BatchNormalization()]
    )


def move(model: keras.Model, step: int) -> None:
    rng = np.random.default_rng(step)
    for weight in model.trainable_variables:
        weight.assign(rng.normal(size=weight.shape))


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.9999])
def test_is_tensorflows_average(decay):
    model = make()
    average = WeightAverage(model, decay)
    plain = [tf.Variable(np.asarray(weight)) for weight in model.trainable_variables]
    theirs = tf.train.ExponentialMovingAverage(decay, num_updates=tf.Variable(0))
    theirs.apply(plain)  # begins at the values they have
    update = tf.function(average.update, autograph=False)
    for step in range(1, 15):
        move(model, step)
        update()
        theirs._num_updates = step
        for variable, weight in zip(plain, model.trainable_variables, strict=True):
            variable.assign(np.asarray(weight))
        theirs.apply(plain)
    with average.in_place():
        for variable, weight in zip(plain, model.trainable_variables, strict=True):
            np.testing.assert_allclose(weight, theirs.average(variable), rtol=1e-4, atol=1e-6)


def test_in_place_gives_back_even_after_an_error():
    model = make()
    average = WeightAverage(model, 0.9)
    first = model.get_weights()
    move(model, 1)
    own = model.get_weights()
    with pytest.raises(KeyError), average.in_place():
        for found, expected in zip(model.get_weights(), first, strict=True):
            np.testing.assert_array_equal(found, expected)
        raise KeyError
    for found, expected in zip(model.get_weights(), own, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_reset_begins_at_the_weights_as_they_are():
    model = make()
    average = WeightAverage(model, 0.9)
    average.update()
    move(model, 1)
    average.reset()
    count, *averages = average.variables
    assert int(count) == 0
    for found, weight in zip(averages, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(found, weight)
