"""The training step on the TensorFlow backend, under any strategy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from strategies.base import Strategy

Loss = Callable[[Any, Any], Any]


def build_step(
    strategy: Strategy,
    model: Any,
    optimizer: Any,
    loss: Loss,
    global_batch: int,
    *,
    xla: bool = False,
) -> Callable[[Mapping[str, Any], bool], dict[str, float]]:
    """A compiled step.

    (batch of this rank, this rank wants to stop) -> {"loss": global loss, "gradient_norm": of the
    summed gradient, as scaled in float16, "stop": ranks wanting}.
    Loss = sum(per-example loss) / global_batch + regularisation / world_size on each rank;
    gradients, loss and the wish to stop are summed in one all-reduce, so that every rank sees the
    same numbers and stops at the same step.
    """
    weights = model.trainable_variables

    def replica_step(batch: Mapping[str, Any], stop: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            prediction = model(batch["inputs"], training=True)
            per_example = [
                loss(target, prediction[name]) for name, target in batch["targets"].items()
            ]
            value = tf.reduce_sum(tf.add_n(per_example)) / global_batch
            if model.losses:
                value += tf.add_n(model.losses) / strategy.world_size
            scaled = optimizer.scale_loss(value)
        gradients = tape.gradient(scaled, [weight.value for weight in weights])
        *gradients, value, stop = strategy.sum_gradients([*gradients, value, stop])
        norm = tf.linalg.global_norm(gradients)
        optimizer.apply(gradients, weights)
        return {"loss": value, "gradient_norm": norm, "stop": stop}

    @tf.function(jit_compile=xla, autograph=False)
    def compiled(batch: Mapping[str, Any], stop: Any) -> Any:
        return strategy.run(replica_step, batch, stop)

    def step(batch: Mapping[str, Any], stop: bool) -> dict[str, float]:
        # Patch ids and the like stay outside: strings do not go to a device.
        arrays = {"inputs": batch["inputs"], "targets": batch["targets"]}
        values = compiled(arrays, tf.constant(float(stop)))
        return {name: float(value) for name, value in values.items()}

    return step
