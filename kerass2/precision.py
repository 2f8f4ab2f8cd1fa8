"""run.precision: the policy of a model's inner layers, and loss scaling for float16.

First and last convolution, residual stream and output stay float32 in every precision: in plain
mixed bfloat16 DSen2's weights lose 1 to 3 % of RMSE, so they lose 0.1 % at most.
"""

from __future__ import annotations

import importlib
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
    from kerass2 import backend

    random = np.random.default_rng(0)
    x, kernel = random.random((8, 32, 32, 64), "f4"), random.random((3, 3, 64, 64), "f4")
    compiled = importlib.import_module(backend.STEPS[backend.find()]).compile_gradient(_convolve)

    def seconds(dtype: str) -> float:
        from keras import ops

        arguments = [ops.cast(ops.convert_to_tensor(each), dtype) for each in (x, kernel)]
        times = []
        for number in range(repeats + 1):
            begin = time.perf_counter()
            for gradient in compiled(*arguments):
                ops.convert_to_numpy(ops.cast(gradient, "float32"))
            if number:  # the first compiles
                times.append(time.perf_counter() - begin)
        return statistics.median(times)

    return seconds("float32") / seconds("bfloat16")


def _convolve(x: Any, kernel: Any) -> Any:
    """The sum of what two convolutions give."""
    from keras import ops

    once = ops.conv(x, kernel, 1, "same")
    return ops.sum(ops.conv(once, kernel, 1, "same"))
