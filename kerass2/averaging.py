"""An exponential moving average of a model's weights (run.ema), kept beside them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops


class WeightAverage:
    """average += (1 - decay) (weight - average) after each step, for every trainable weight.

    The decay of step t is min(decay, (1 + t) / (10 + t)), as in tf.train.ExponentialMovingAverage:
    the first weights, which are random, do not stay in the average of a short training.

    Every rank keeps its own, outside the strategy's scope: ranks hold the same weights after each
    step, so their averages are the same too, and nothing has to be sent.
    """

    def __init__(self, model: keras.Model, decay: float) -> None:
        """Begin at the model's weights; see `reset` for when they are assigned later."""
        self._weights = list(model.trainable_variables)
        self._decay = decay
        self._count = keras.Variable(0, dtype="int32", trainable=False, name="num_averaged")
        self._averages = [
            keras.Variable(np.asarray(weight), dtype="float32", trainable=False, name="average")
            for weight in self._weights
        ]

    @property
    def variables(self) -> list[Any]:
        """All that a checkpoint has to hold: the number of steps, and the averages."""
        return [self._count, *self._averages]

    def reset(self) -> None:
        """Begin anew at the weights as they are now."""
        self._count.assign(0)
        for average, weight in zip(self._averages, self._weights, strict=True):
            average.assign(np.asarray(weight))

    def update(self) -> None:
        """Take in the weights after a step; inside a compiled function, outside a strategy's run.

        Under tf.distribute a replica could not assign variables that are not the strategy's.
        """
        self._count.assign_add(1)
        step = ops.cast(self._count.value, "float32")
        keep = ops.minimum(self._decay, (1.0 + step) / (10.0 + step))
        for average, weight in zip(self._averages, self._weights, strict=True):
            difference = ops.convert_to_tensor(weight.value) - average.value
            average.assign_add((1.0 - keep) * difference)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights inside the `with` block, its own after it."""
        own = [np.asarray(weight) for weight in self._weights]
        self._assign([np.asarray(average) for average in self._averages])
        try:
            yield
        finally:
            self._assign(own)

    def _assign(self, values: list[np.ndarray]) -> None:
        for weight, value in zip(self._weights, values, strict=True):
            weight.assign(value)
