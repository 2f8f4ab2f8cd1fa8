"""A tf.data.Dataset around a function that reads the batch of a step in numpy."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

from data_pipelines.spec import Batch, DatasetSpec

# Batches that one thread holds ready. A second one would hinder it: both need Python's lock too
# often (by `python -m benchmarks pipeline` rasterio was read 3 times slower with two, and nothing
# faster).
STEPS_AHEAD = 4

# The last exceptions raised inside tf.data, which passes on their text only. See `cause`.
_raised: collections.deque[Exception] = collections.deque(maxlen=8)


def build(
    read: Callable[[int], Batch], start: int, stop: int, spec: DatasetSpec, local_batch: int
) -> Any:
    """The tf.data.Dataset of read(step) for start <= step < stop: in order, a few steps ahead.

    Args:
        read: the batch of one step, see batching.training_batch; called from several threads.
        start: first step.
        stop: the step after the last.
        spec: what each example holds.
        local_batch: examples a batch.

    Returns:
        Elements as `read` gives them, patch_id as tf.string, shapes static. An exception of `read`
        comes out of the iteration as a tf.errors.OpError: see `cause`.
    """
    import tensorflow as tf

    float32, shape = tf.float32, (local_batch,)
    signature = {
        "inputs": {n: tf.TensorSpec(shape + s.shape, float32) for n, s in spec.inputs.items()},
        "targets": {n: tf.TensorSpec(shape + s.shape, float32) for n, s in spec.targets.items()},
        "patch_id": tf.TensorSpec(shape, tf.string),
        "index": tf.TensorSpec(shape, tf.int64),
        "mask": tf.TensorSpec(shape, float32),
    }
    flat = tf.nest.flatten(signature)
    ahead = _Ahead(read, stop)

    def read_flat(step: np.int64) -> list[Any]:
        try:
            batch = ahead(int(step))
        except Exception as error:
            _raised.append(error)
            raise
        names = [name.encode() for name in batch["patch_id"]]
        return list(tf.nest.flatten({**batch, "patch_id": np.array(names, dtype=object)}))

    def load(step: Any) -> Any:
        tensors = tf.numpy_function(read_flat, [step], [tensor.dtype for tensor in flat])
        shaped = [tf.ensure_shape(t, s.shape) for t, s in zip(tensors, flat, strict=True)]
        return tf.nest.pack_sequence_as(signature, shaped)

    options = tf.data.Options()
    options.deterministic = True
    # Nothing to tune: and the tuner prefetches, and can miss its iterator's end for a minute.
    options.autotune.enabled = False
    return tf.data.Dataset.range(start, stop).map(load).with_options(options)


def cause(error: BaseException) -> BaseException:
    """The exception that a reader raised inside tf.data, for the OpError that came out of it.

    tf.data passes on type and text only, inside a message of many lines. Any other error comes
    back as it is, so `except Exception as error: raise batching.cause(error) from None` is safe.
    """
    text = str(error)
    for original in reversed(_raised):
        # The words of TensorFlow's py_func.cc: "<type>: <text>", then a traceback.
        if f"{type(original).__name__}: {original}\n" in text:
            return original
    return error


class _Ahead:
    """Calls `read` for the next steps on a thread of Python, while the model works on this one.

    Not by tf.data's own prefetch, whose threads would call Python whenever they like: when the
    interpreter ends or collects a forgotten iterator in such a call, the iterator's destructor
    waits for a call that waits for it, and the process hangs. (Seen once in ten exits.)
    """

    def __init__(self, read: Callable[[int], Batch], stop: int) -> None:
        self._read, self._stop = read, stop
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "read")
        # Batches under way. Only single operations on a dict, which threads may do without a lock:
        # two iterators of one dataset may read a step twice, and get the same batch.
        self._batches: dict[int, concurrent.futures.Future[Batch]] = {}

    def __call__(self, step: int) -> Batch:
        wanted = range(step + 1, min(step + 1 + STEPS_AHEAD, self._stop))
        found = self._batches.pop(step, None)
        for late in set(self._batches) - set(wanted):  # left by an iterator that was given up
            self._batches.pop(late, None)
        with contextlib.suppress(RuntimeError):  # the interpreter ends, and starts nothing more
            for later in wanted:
                if later not in self._batches:
                    self._batches[later] = self._pool.submit(self._read, later)
        return found.result() if found else self._read(step)
