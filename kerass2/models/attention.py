"""Attention over the pixels of a block: softmax(queries keys^T) values."""

from __future__ import annotations

from typing import Any

from keras import ops

# Score of a key that is not there: its exponential is 0 beside any real score.
ABSENT = -1e30


def attend(queries: Any, keys: Any, values: Any, inside: Any = None) -> Any:
    """Mean of the values, weighted by softmax of query times key.

    Scores and softmax are float32, products with the values of their type: an exponential of a
    bfloat16 number is off by several percent.

    Args:
        queries: (sample, pixel, key filter).
        keys: likewise.
        values: (sample, pixel, value filter).
        inside: (sample, pixel) bool, False for keys that are not there; None: all are.

    Returns:
        (sample, pixel, value filter) in the type of the values.
    """
    queries, keys = ops.cast(queries, "float32"), ops.cast(keys, "float32")
    if inside is not None:
        queries, keys = _without_absent(queries, keys, inside)
    return _direct(queries, keys, values)


def _without_absent(queries: Any, keys: Any, inside: Any) -> tuple[Any, Any]:
    """Queries and keys with one more filter, whose product is 0 inside and ABSENT elsewhere.

    So the mask costs no pass over the scores.
    """
    more = ops.where(inside, ops.cast(0.0, "float32"), ops.cast(ABSENT, "float32"))
    keys = ops.concatenate([keys, ops.expand_dims(more, -1)], axis=-1)
    queries = ops.concatenate([queries, ops.ones_like(queries[..., :1])], axis=-1)
    return queries, keys


def _direct(queries: Any, keys: Any, values: Any) -> Any:
    """All scores at once: a (pixel x pixel) map for each sample, 4.2 MB for 32 x 32 pixels."""
    scores = ops.matmul(queries, ops.transpose(keys, (0, 2, 1)))
    return ops.matmul(ops.cast(ops.softmax(scores, axis=-1), values.dtype), values)
