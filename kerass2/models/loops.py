"""Loops whose steps run one after the other, on every backend, in graphs too."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


def each(compute: Any, count: Any, like: tuple[Any, ...]) -> tuple[Any, ...]:
    """Results of compute(0), compute(1), ... along a first axis, one computed after the other.

    Args:
        compute: from a number to a tuple of tensors.
        count: how often.
        like: tensors of the shapes and types that it returns.
    """
    if keras.backend.backend() == "torch":  # where put copies
        parts = [compute(number) for number in range(count)]
        return tuple(ops.stack(results) for results in zip(*parts, strict=True))

    def step(number: Any, *totals: Any) -> tuple[Any, ...]:
        results = compute(number)
        return tuple(put(x, number, value) for x, value in zip(totals, results, strict=True))

    start = tuple(ops.zeros((count, *ops.shape(x)), x.dtype) for x in like)
    return fold(step, count, start)


def fold(step: Any, count: Any, start: tuple[Any, ...]) -> tuple[Any, ...]:
    """The last of: values = step(0, *start), step(1, *values), step(2, *values), ..."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # Keras' loops begin up to ten steps at once, whose maps then lie in memory together.
        _, *values = tf.while_loop(
            lambda number, *values: number < count,
            lambda number, *values: (number + 1, *step(number, *values)),
            (tf.constant(0), *start),
            parallel_iterations=1,
        )
        return tuple(values)
    values = ops.fori_loop(0, count, lambda number, values: step(number, *values), start)
    return tuple(values)


def put(x: Any, index: Any, value: Any) -> Any:
    """A tensor like x with x[index] = value; made in place inside of loops, but for torch."""
    return ops.scatter_update(x, ops.reshape(index, (1, 1)), ops.expand_dims(value, 0))
