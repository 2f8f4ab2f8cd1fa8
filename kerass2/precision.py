"""run.precision: the policy of a model's inner layers, and loss scaling for float16.

First and last convolution, residual stream and output stay float32 in every precision: in plain
mixed bfloat16 DSen2's weights lose 1 to 3 % of RMSE, so they lose 0.1 % at most.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from kerass2.config import Precision

# run.precision -> Keras dtype policy of the inner layers.
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}

# The rate must be clearly better, or noise would decide.
FASTER = 1.2


def resolve(precision: Precision, strategy: Any) -> Precision:
    """The precision itself, or what "auto" comes to: bfloat16 where rank 0 measures it faster.

    All ranks call it.
    """
    if precision != "auto":
        return precision
    faster = np.zeros(1)
    if strategy.is_chief:
        faster[0] = measure_speed_up() > FASTER
    return "bfloat16" if strategy.sum(faster)[0] else "float32"


def measure_speed_up(repeats: int = 5) -> float:
    """Time of a 3 x 3 convolution, forward and backward, in float32 over bfloat16.

    The median; it takes about half a second.
    """
    import tensorflow as tf

    x = tf.random.stateless_normal((8, 32, 32, 64), seed=(0, 0))
    kernel = tf.random.stateless_normal((3, 3, 64, 64), seed=(0, 1))

    @tf.function
    def gradient(x: Any, kernel: Any) -> Any:
        return tf.gradients(
            tf.nn.conv2d(tf.nn.conv2d(x, kernel, 1, "SAME"), kernel, 1, "SAME"), [x, kernel]
        )

    def seconds(dtype: Any) -> float:
        arguments = tf.cast(x, dtype), tf.cast(kernel, dtype)
        gradient(*arguments)
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            for value in gradient(*arguments):
                value.numpy()
            times.append(time.perf_counter() - begin)
        return statistics.median(times)

    return seconds(tf.float32) / seconds(tf.bfloat16)
