"""Loops whose steps run one after the other, on every backend, in graphs too."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


def each(compute: Any, count: Any, group: Any, like: tuple[Any, ...]) -> tuple[Any, ...]:
    """Rows 0 to count - 1 of some tensors, a group at a time.

    Args:
        compute: from the number of a group's first row to a tuple of tensors, its `group` rows.
            The last group begins early enough to be whole: rows may be computed twice.
        count: number of rows, at least `group`.
        group: rows computed at once.
        like: tensors of one row's shapes and types.

    Returns:
        Tensors of `count` rows.
    """
    num_groups = -(-count // group)
    if keras.backend.backend() == "torch":  # where put copies
        parts = [compute(min(number * group, count - group)) for number in range(num_groups)]
        if count % group:
            parts[-1] = tuple(rows[group - count % group :] for rows in parts[-1])
        return tuple(ops.concatenate(rows) for rows in zip(*parts, strict=True))

    def step(number: Any, *totals: Any) -> tuple[Any, ...]:
        first = ops.minimum(number * group, count - group)
        rows = compute(first)
        return tuple(put(x, first, value) for x, value in zip(totals, rows, strict=True))

    start = tuple(ops.zeros((count, *ops.shape(x)), x.dtype) for x in like)
    return fold(step, num_groups, start)


def fold(step: Any, count: Any, start: tuple[Any, ...]) -> tuple[Any, ...]:
    """The last of: values = step(0, *start), step(1, *values), step(2, *values), ..."""
    if isinstance(count, int) and count == 1:
        return tuple(step(0, *start))
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


def put(x: Any, first: Any, rows: Any) -> Any:
    """A tensor like x with these rows from `first` on; made in place in loops, but for torch."""
    places = ops.expand_dims(first + ops.arange(ops.shape(rows)[0], dtype="int32"), -1)
    return ops.scatter_update(x, places, rows)
