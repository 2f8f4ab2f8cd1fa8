"""The processes of `python -m benchmarks superres --part memory` and `softmax`."""

from __future__ import annotations

import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

FILTERS, KEY_FILTERS = 128, 16
REPEATS = 11
# Blocks of `softmax`, a row of a window's, and their maps that take turns there.
BLOCKS, MAPS = 32, 4


def layer(case: dict[str, Any]) -> dict[str, Any]:
    """A step of the attention alone: seconds, and bytes at once beyond a step without it.

    `forms`: names of those that take turns, `repeats` times; the first is what a model takes by
    itself.
    """
    import keras
    import tensorflow as tf

    from kerass2.models import attention, blocks

    keras.utils.set_random_seed(0)
    shape = (case["batch"], case["patch"], case["patch"], FILTERS)
    x, above = (tf.Variable(tf.random.stateless_normal(shape, (seed, 0))) for seed in (0, 1))
    sizes = (KEY_FILTERS, KEY_FILTERS, FILTERS)
    weights = [tf.random.stateless_normal((FILTERS, n), (n, 0)) * 0.05 for n in sizes]
    weights = [w for kernel in weights for w in (kernel, tf.zeros(kernel.shape[1]))]
    gamma = tf.constant(0.3)

    def none(x: Any, gamma: Any, weights: Any, grid: Any, dtype: str) -> Any:
        return x + gamma * x

    forms = {"chosen": attention.attend, "direct": attention.direct, "none": none}

    def build(form: Callable[..., Any]) -> Any:
        @tf.function
        def step() -> Any:
            with tf.GradientTape() as tape:
                tape.watch([gamma, *weights])
                out = form(x, gamma, weights, blocks.divide(x, None), case["dtype"])
                loss = tf.reduce_sum(out * above)
            found = tape.gradient(loss, [x, gamma, *weights], unconnected_gradients="zero")
            return [tf.reduce_sum(each) for each in found]

        return step

    seconds: dict[str, list[float]] = {name: [] for name in case["forms"]}
    peaks = {}
    steps = {name: build(forms[name]) for name in case["forms"]}
    for name, step in steps.items():
        step()
        tf.config.experimental.reset_memory_stats("CPU:0")
        step()
        peaks[name] = tf.config.experimental.get_memory_info("CPU:0")["peak"]
    for _ in range(case["repeats"]):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begin)
    return {"seconds": seconds, "peak_bytes": peaks}


def softmax(case: dict[str, Any]) -> dict[str, Any]:
    """Seconds a block as rasters are predicted: of the attention, and of its softmax alone.

    Softmax is taken of maps that are in memory: the least that exponentials cost in TensorFlow.
    """
    import tensorflow as tf

    from benchmarks.superres_rank import measure_product
    from kerass2.models import attention, loops

    count, pixels, dtype = BLOCKS, case["block"] ** 2, case["dtype"]
    keys, queries, values = (
        tf.random.stateless_normal((count, pixels, n), (n, seed)) * 0.5
        for seed, n in enumerate((KEY_FILTERS, KEY_FILTERS, FILTERS))
    )
    values = tf.cast(values, dtype)
    maps = tf.matmul(queries[:MAPS], keys[:MAPS], transpose_b=True)

    def attend(number: Any) -> Any:
        return attention._mix(keys[number], queries[number], values[number])[None]

    def exponentials(number: Any) -> Any:
        shares = tf.nn.softmax(maps[number % MAPS][None])
        return tf.cast(shares[..., :1], dtype)

    def build(form: Callable[[Any], Any], channels: int) -> Any:
        like = (tf.zeros((pixels, channels), dtype),)

        @tf.function
        def run() -> Any:
            (rows,) = loops.each(
                lambda number: (form(number),), count, 1, like, at_once=attention.AT_ONCE
            )
            return tf.reduce_sum(rows)

        return run

    runs = {"attention": build(attend, FILTERS), "softmax": build(exponentials, 1)}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    rates = []
    for _ in range(1 + REPEATS):
        rates.append(measure_product(dtype))
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            seconds[name].append((time.perf_counter() - begin) / count)
    return {
        **{name: each[1:] for name, each in seconds.items()},
        "matrix_product_flop_s": statistics.median(rates),
    }


def model(case: dict[str, Any]) -> dict[str, Any]:
    """Steps of a whole model: median of seconds, and the process' most resident memory [GiB]."""
    import strategies
    from benchmarks import step_rank
    from benchmarks.superres_rank import peak_resident

    case = {**case, "strategy": "single"}
    _, _, step = step_rank.build_step(strategies.get("single"), case, case["precision"])
    seconds = []
    for _ in range(1 + case["rounds"]):
        begin = time.perf_counter()
        float(step()["loss"])
        seconds.append(time.perf_counter() - begin)
    return {"seconds": statistics.median(seconds[1:]), "resident_gib": peak_resident()}


if __name__ == "__main__":
    arguments = json.loads(sys.argv[2])
    found = {"layer": layer, "softmax": softmax, "model": model}[sys.argv[1]](arguments)
    pathlib.Path(arguments["output"]).write_text(json.dumps(found))
