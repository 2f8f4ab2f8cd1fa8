"""Loops whose steps run one after the other, on every backend, in graphs too."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


def each(
    compute: Any, count: Any, group: Any, like: tuple[Any, ...], at_once: int = 1
) -> tuple[Any, ...]:
    """Rows 0 to count - 1 of some tensors, a group at a time.

    Args:
        compute: from the number of a group's first row to a tuple of tensors, its `group` rows.
            The last group begins early enough to be whole: rows may be computed twice.
        count: number of rows, at least `group`.
        group: rows computed at once.
        like: tensors of one row's shapes and types.
        at_once: groups that TensorFlow may compute at the same time.

    Returns:
        Tensors of `count` rows.
    """
    num_groups = -(-count // group)
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return _each_in_arrays(compute, count, group, like, at_once)
    if backend == "torch":  # where put copies, and loops are Python's own
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


def each_kept(compute: Any, count: Any, dtype: str, at_once: int) -> tuple[Any, Any]:
    """Rows 0 to count - 1 of a tensor, and what belongs to each, which is not joined. TensorFlow's.

    Args:
        compute: from a row's number to the row, and to another tensor of the same type.
        count: number of rows.
        dtype: of both.
        at_once: rows that may be computed at the same time.

    Returns:
        A tensor of `count` rows, and a function from a row's number to the other tensor.
    """
    _, (rows, others) = _scan_in_arrays(
        lambda number: ((), compute(number)), count, (), [dtype] * 2, at_once
    )
    return rows.stack(), others.read


def _each_in_arrays(
    compute: Any, count: Any, group: Any, like: tuple[Any, ...], at_once: int
) -> tuple[Any, ...]:
    """Each group's rows in TensorFlow's arrays, where `put` would copy all rows in each step."""
    import tensorflow as tf

    if isinstance(count, int) and isinstance(group, int) and count == group:
        return tuple(compute(0))
    num_groups = -(-count // group)

    def step(number: Any) -> tuple[Any, ...]:
        return (), compute(tf.minimum(number * group, count - group))

    _, arrays = _scan_in_arrays(step, num_groups, (), [x.dtype for x in like], at_once)
    surplus, before = num_groups * group - count, (num_groups - 1) * group
    whole = []
    for array, row in zip(arrays, like, strict=True):
        rows = tf.reshape(array.stack(), (num_groups * group, *ops.shape(row)))
        if not (isinstance(surplus, int) and surplus == 0):
            rows = tf.concat([rows[:before], rows[before + surplus :]], axis=0)
        whole.append(tf.reshape(rows, (count, *ops.shape(row))))
    return tuple(whole)


def scan(step: Any, count: Any, start: Any, dtype: str) -> Any:
    """The rows of: value, rows[0] = step(0, start), value, rows[1] = step(1, value), ...

    One step after the other, whose tensors do not lie in memory together.

    Args:
        step: (number, value) -> (value for the next step, row).
        count: number of rows.
        start: the first value, a tensor.
        dtype: of the rows.

    Returns:
        A tensor of `count` rows.
    """
    if keras.backend.backend() == "tensorflow":

        def carrying(number: Any, value: Any) -> tuple[Any, Any]:
            value, row = step(number, value)
            return (value,), (row,)

        return _scan_in_arrays(carrying, count, (start,), [dtype], at_once=1)[1][0].stack()
    _, rows = ops.scan(lambda value, number: step(number, value), start, ops.arange(count))
    return rows


def _scan_in_arrays(
    step: Any, count: Any, start: tuple[Any, ...], dtypes: list[Any], at_once: int
) -> tuple[Any, list[Any]]:
    """The last values of `step`: (number, *values) -> (values, rows), and an array of each row."""
    import tensorflow as tf

    # Not cleared: a persistent tape may ask for what was kept more than once.
    empty = tuple(tf.TensorArray(dtype, count, clear_after_read=False) for dtype in dtypes)

    def body(number: Any, values: Any, arrays: Any) -> Any:
        values, rows = step(number, *values)
        written = (a.write(number, row) for a, row in zip(arrays, rows, strict=True))
        return number + 1, tuple(values), tuple(written)

    _, values, arrays = tf.while_loop(
        lambda number, values, arrays: number < count,
        body,
        (tf.constant(0), start, empty),
        parallel_iterations=at_once,
    )
    return values, list(arrays)


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
    """A tensor like x with these rows from `first` on; in loops a copy each time, but for JAX."""
    places = ops.expand_dims(first + ops.arange(ops.shape(rows)[0], dtype="int32"), -1)
    return ops.scatter_update(x, places, rows)
