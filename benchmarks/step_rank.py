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
from strategies.base import Strategy, leave

BLOCK = 2  # steps timed together
WARM_UP = 2  # steps before the first block of a variant

Run = Callable[[int], None]


def main(case: dict[str, Any]) -> None:
    """Measure `case["variants"]`, pairs of kind and precision; rank 0 writes seconds a step."""
    import strategies

    strategy = strategies.get(case["strategy"])
    build = {"loop": _build_loop, "bare": _build_bare, "applications": _build_applications}
    runs = [build[kind](strategy, case, precision) for kind, precision in case["variants"]]
    seconds: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run(WARM_UP)
    for _ in range(case["rounds"]):
        for run, times in zip(runs, seconds, strict=True):
            begin = time.perf_counter()
            run(BLOCK)
            times.append((time.perf_counter() - begin) / BLOCK)
    leave(strategy)
    if strategy.is_chief:
        pathlib.Path(case["output"]).write_text(json.dumps(seconds))


def _make(strategy: Strategy, case: dict[str, Any], precision: str) -> tuple[Any, Any, Any]:
    """Model, optimizer and one batch in memory."""
    from kerass2 import models, optimizers
    from kerass2.models import labels
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
    labels.seed_dropout(model, seed=0, rank=strategy.rank, step=lambda: optimizer.iterations.value)
    strategy.start(model, optimizer)
    return model, optimizer, draw(models.describe(model), case, strategy.rank)


def draw(takes: dict[str, Any], case: dict[str, Any], rank: int) -> dict[str, Any]:
    """A batch of what a model takes and gives, see models.describe: random numbers or labels."""
    import tensorflow as tf

    rng, batch, patch = np.random.default_rng(rank), case["batch"], case["patch"]
    finest = min(takes["gsd"].values())

    def draw(*shape: int) -> Any:
        return tf.constant(rng.random((batch, *shape)), tf.float32)

    sizes = {key: round(patch * finest / gsd) for key, gsd in takes["gsd"].items()}
    inputs = {key: draw(n, n, len(takes["inputs"][key])) for key, n in sizes.items()}
    number = len(takes["target_bands"])
    labelled = takes["task"] == config.LABEL_TASK
    target = tf.round(draw(number)) if labelled else draw(patch, patch, number)
    return {"inputs": inputs, "targets": {takes["target"]: target}}


def _count(targets: dict[str, Any]) -> Any:
    """How many patches of the batch have each class, and their number; None without labels."""
    if "labels" not in targets:
        return None
    return targets["labels"].numpy().sum(axis=0).astype(np.int64), len(targets["labels"])


def _make_step(strategy: Strategy, case: dict[str, Any], precision: str) -> tuple[Any, ...]:
    """Model, optimizer, the package's step, and one batch in memory."""
    from kerass2 import losses, steps

    model, optimizer, batch = _make(strategy, case, precision)
    global_batch = case["batch"] * strategy.world_size
    experiment = case["experiment"]
    loss = losses.get(experiment["loss"], experiment["loss_options"], _count(batch["targets"]))
    compression = experiment["run"]["compression"]
    step = steps.build_step(
        *(strategy, model, optimizer, loss, global_batch),
        compression=compression,
        parts=case.get("parts", 1),
    )
    return model, optimizer, step, batch


def build_step(
    strategy: Strategy, case: dict[str, Any], precision: str
) -> tuple[Any, Any, Callable[[], Any]]:
    """Model, optimizer, and the package's step on one batch in memory."""
    model, optimizer, step, batch = _make_step(strategy, case, precision)
    return model, optimizer, lambda: step(batch, False)


def _build_loop(strategy: Strategy, case: dict[str, Any], precision: str) -> Run:
    """The package's own loop and step, over a tf.data dataset that repeats the batch."""
    import tensorflow as tf

    from kerass2 import logs, train

    _, _, step, batch = _make_step(strategy, case, precision)
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
    return _run_bare(*_make(strategy, case, precision))


def _build_applications(strategy: Strategy, case: dict[str, Any], precision: str) -> Run:
    """The bare step of keras.applications' ResNet on the same bands, with the same optimizer."""
    import keras

    from kerass2 import optimizers
    from kerass2.models import labels
    from kerass2.precision import POLICIES

    ours, _, batch = _make(strategy, case, precision)
    takes, experiment = labels.describe(ours), config.from_json(case["experiment"])
    options = experiment.model.options
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(POLICIES[precision])
    try:
        inputs, x = labels.open_inputs(options.get("inputs", "native"), options.get("bands", "all"))
        make = {"resnet50": keras.applications.ResNet50, "resnet101": keras.applications.ResNet101}
        body = make[ours.name](include_top=False, weights=None, input_tensor=x, pooling="avg")
        dense = keras.layers.Dense(len(takes["target_bands"]), dtype="float32")
        model = keras.Model(inputs, {takes["target"]: dense(body.output)})
    finally:
        keras.config.set_dtype_policy(before)
    optimizer = optimizers.build(
        experiment.optimizer,
        precision=precision,
        global_batch=case["batch"],
        num_steps=10**6,
        steps_per_epoch=1000,
    )
    optimizer.build(model.trainable_variables)
    return _run_bare(model, optimizer, batch)


def _run_bare(model: Any, optimizer: Any, batch: dict[str, Any]) -> Run:
    """Steps of the mean of the task's plain loss."""
    import tensorflow as tf

    ((name, target),) = batch["targets"].items()

    @tf.function
    def step(inputs: Any, target: Any) -> Any:
        with tf.GradientTape() as tape:
            prediction = model(inputs, training=True)[name]
            if name == "labels":
                each = tf.nn.sigmoid_cross_entropy_with_logits(target, prediction)
            else:
                each = tf.abs(target - prediction)
            loss = tf.reduce_mean(each)
            if model.losses:
                loss += tf.add_n(model.losses)
        weights = model.trainable_variables
        gradients = tape.gradient(loss, [weight.value for weight in weights])
        optimizer.apply(gradients, weights)
        return loss

    def run(steps: int) -> None:
        for _ in range(steps):
            float(step(batch["inputs"], target))

    return run


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
