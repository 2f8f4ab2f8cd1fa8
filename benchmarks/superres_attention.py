"""The processes of `python -m benchmarks superres --part memory`: what a training step holds."""

from __future__ import annotations

import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

FILTERS, KEY_FILTERS = 128, 16
REPEATS = 5


def layer(case: dict[str, Any]) -> dict[str, Any]:
    """A step of the attention alone: seconds, and bytes at once beyond a step without it.

    `forms`: names of those that take turns; the first is what a model takes by itself.
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
    for _ in range(REPEATS):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begin)
    return {"seconds": seconds, "peak_bytes": peaks}


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
    found = {"layer": layer, "model": model}[sys.argv[1]](arguments)
    pathlib.Path(arguments["output"]).write_text(json.dumps(found))
