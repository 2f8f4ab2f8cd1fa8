"""Optimizers by name, with schedule, and loss scaling where the precision needs it."""

from __future__ import annotations

from typing import Any

import keras

from kerass2 import schedules
from kerass2.config import ConfigError, OptimizerConfig

# The papers' settings; options override them. Super-resolution prints Adam's epsilon as "10e-8".
OPTIMIZERS: dict[str, tuple[type[keras.optimizers.Optimizer], dict[str, Any]]] = {
    "adam": (keras.optimizers.Adam, {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7}),
    "sgd": (keras.optimizers.SGD, {"momentum": 0.9, "nesterov": True}),
}


def build(
    config: OptimizerConfig,
    *,
    precision: str,
    global_batch: int,
    num_steps: int,
    steps_per_epoch: int,
) -> keras.optimizers.Optimizer:
    """The optimizer of an experiment.

    Make it inside strategy.scope(); clipping options act on the summed gradient.

    Raises:
        ConfigError: an option that the optimizer or the schedule does not have.
    """
    schedule = schedules.build(
        config.schedule,
        learning_rate=config.learning_rate,
        global_batch=global_batch,
        reference_batch=config.reference_batch,
        num_steps=num_steps,
        steps_per_epoch=steps_per_epoch,
        **config.schedule_options,
    )
    make, defaults = OPTIMIZERS[config.name]
    try:
        optimizer = make(learning_rate=schedule, **{**defaults, **config.options})
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"optimizer {config.name} with options {config.options}: {error}"
        ) from error
    if precision == "float16":
        # Its finite check comes in optimizer.apply, thus after the sum over ranks: all skip the
        # same step.
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer
