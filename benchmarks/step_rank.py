"""One rank of `python -m benchmarks step`: times blocks of steps of its variants in turn."""

from __future__ import annotations

import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from kerass2 import config
from strategies.base import Strategy

BLOCK = 2  # steps timed together
WARM_UP = 2  # steps before the first block of a variant

Run = Callable[[int], None]


def main(case: dict[str, Any]) -> None:
    """Measure `case["variants"]`, pairs of kind and precision; rank 0 writes seconds a step."""
    import strategies

    strategy = strategies.get(case["strategy"])
    build = {"loop": _build_loop, "bare": _build_bare}
    runs = [build[kind](strategy, case, precision) for kind, precision in case["variants"]]
    seconds: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run(WARM_UP)
    for _ in range(case["rounds"]):
        for run, times in zip(runs, seconds, strict=True):
            begin = time.perf_counter()
            run(BLOCK)
            times.append((time.perf_counter() - begin) / BLOCK)
    strategy.sum(np.zeros(1))  # leave together
    if strategy.is_chief:
        pathlib.Path(case["output"]).write_text(json.dumps(seconds))


def _make(strategy: Strategy, case: dict[str, Any], precision: str) -> tuple[Any, Any, Any]:
    """Model, optimizer and one batch in memory."""
    import tensorflow as tf

    from kerass2 import models, optimizers
    from kerass2.precision import POLICIES

    experiment = config.from_json(case["experiment"])
    with strategy.scope():
        model = models.build(
            experiment.model.name, dtype=POLICIES[precision], **experiment.model.options
        )
        optimizer = optimizers.build(
            experiment.optimizer,
            precision=precision,
            global_batch=case["batch"] * strategy.world_size,
            num_steps=10**6,
            steps_per_epoch=1000,
        )
        optimizer.build(model.trainable_variables)
    strategy.start(model, optimizer)
    rng = np.random.default_rng(strategy.rank)

    def draw(size: int, bands: int) -> Any:
        return tf.constant(rng.random((case["batch"], size, size, bands)), tf.float32)

    size = case["patch"]
    batch = {
        "inputs": {"gsd10": draw(size, 4), "gsd20": draw(size // 2, 6)},
        "targets": {"superres_20m": draw(size, 6)},
    }
    return model, optimizer, batch


def _build_loop(strategy: Strategy, case: dict[str, Any], precision: str) -> Run:
    """The package's own loop and step, over a tf.data dataset that repeats the batch."""
    import tensorflow as tf

    from kerass2 import logs, losses, train
    from kerass2.steps.tensorflow import build_step

    model, optimizer, batch = _make(strategy, case, precision)
    global_batch = case["batch"] * strategy.world_size
    step = build_step(strategy, model, optimizer, losses.get("l1"), global_batch)
    options = tf.data.Options()
    options.autotune.enabled = False  # nothing to tune, and its thread can hold up the end
    dataset = tf.data.Dataset.from_tensors(batch).repeat().with_options(options)
    batches = iter(strategy.distribute(lambda rank, size: dataset))

    def run(steps: int) -> None:
        train.train(
            step=step,
            batches=batches,
            first_step=0,
            num_steps=steps,
            checkpoint_every=10**9,
            save=lambda done: None,
            log=logs.NoLog(),
        )

    return run


def _build_bare(strategy: Strategy, case: dict[str, Any], precision: str) -> Run:
    """What one writes by hand in TensorFlow: tape, gradient, apply, in one process."""
    import tensorflow as tf

    model, optimizer, batch = _make(strategy, case, precision)

    @tf.function
    def step(inputs: Any, target: Any) -> Any:
        with tf.GradientTape() as tape:
            prediction = model(inputs, training=True)["superres_20m"]
            loss = tf.reduce_mean(tf.abs(target - prediction))
        weights = model.trainable_variables
        gradients = tape.gradient(loss, [weight.value for weight in weights])
        optimizer.apply(gradients, weights)
        return loss

    def run(steps: int) -> None:
        for _ in range(steps):
            float(step(batch["inputs"], batch["targets"]["superres_20m"]))

    return run


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
