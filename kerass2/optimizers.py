"""Optimizers by name, with schedule, and loss scaling where the precision needs it."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kerass2 import schedules
from kerass2.config import ConfigError, OptimizerConfig
from kerass2.layerwise import LAMB, LARS


@keras.saving.register_keras_serializable("kerass2")
class SGD(keras.optimizers.SGD):
    """keras.optimizers.SGD, with momentum by TensorFlow's operation for a weight's whole step.

    Keras makes it of eight, each of which reads and writes as much memory as the weight has.
    """

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One step of one weight."""
        if keras.backend.backend() != "tensorflow" or not self.momentum:
            super().update_step(gradient, variable, learning_rate)
            return
        import tensorflow as tf

        velocity = self.momentums[self._get_variable_index(variable)]
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=velocity.value.handle,
            lr=tf.cast(learning_rate, variable.dtype),
            grad=tf.cast(tf.convert_to_tensor(gradient), variable.dtype),
            momentum=tf.cast(self.momentum, variable.dtype),
            use_nesterov=self.nesterov,
        )


@keras.saving.register_keras_serializable("kerass2")
class Nadam(keras.optimizers.Optimizer):
    """Adam with Nesterov momentum (Dozat 2016) that is warmed up, as DSen2 was trained with.

    The momentum of step t is mu_t = beta_1 (1 - 0.96^(t momentum_decay) / 2). Keras 3's own Nadam
    has momentum_decay 1 built in (canary test), where Dozat, Keras 2 and PyTorch have 0.004. It
    keeps the product of all mu_t in one variable with aggregation "none", which a replica changes
    outside of tf.distribute's update. Here each weight has its own, of one number: it is changed
    where the weight is.
    """

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        momentum_decay: float = 0.004,
        **kwargs: Any,
    ) -> None:
        """Arguments of keras.optimizers.Nadam, and `momentum_decay`."""
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.momentum_decay = momentum_decay

    def build(self, variables: list[Any]) -> None:
        """Two moments of a weight's shape and one product of momenta for each weight."""
        if self.built:
            return
        super().build(variables)
        self._means, self._squares = self.add_optimizer_variables(variables, ["mean", "square"])
        self._products = [
            self.add_variable((), "ones", "float32", name=f"momentum_product_{number}")
            for number in range(len(variables))
        ]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One step of one weight."""
        index = self._get_variable_index(variable)
        mean, square = self._means[index], self._squares[index]
        step = ops.cast(self.iterations + 1, "float32")
        now, following = self._momentum(step), self._momentum(step + 1)
        product = self._products[index] * now
        gradient = ops.cast(gradient, variable.dtype)
        self.assign(self._products[index], product)
        self.assign_add(mean, (gradient - mean) * (1 - self.beta_1))
        self.assign_add(square, (ops.square(gradient) - square) * (1 - self.beta_2))
        ahead = mean * following / (1 - product * following) + gradient * (1 - now) / (1 - product)
        spread = ops.sqrt(square / (1 - ops.power(self.beta_2, step)))
        rate = ops.cast(learning_rate, variable.dtype)
        self.assign_sub(variable, rate * ahead / (spread + self.epsilon))

    def _momentum(self, step: Any) -> Any:
        """Of a step, counted from 1."""
        return self.beta_1 * (1 - 0.5 * ops.power(0.96, step * self.momentum_decay))

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        names = ("beta_1", "beta_2", "epsilon", "momentum_decay")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


# The papers' settings; options override them. Super-resolution prints Adam's epsilon as "10e-8".
OPTIMIZERS: dict[str, tuple[type[keras.optimizers.Optimizer], dict[str, Any]]] = {
    "adam": (keras.optimizers.Adam, {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7}),
    "nadam": (Nadam, {}),
    "sgd": (SGD, {"momentum": 0.9, "nesterov": True}),
    "lars": (LARS, {}),
    "lamb": (LAMB, {}),
}


def build(
    config: OptimizerConfig,
    *,
    precision: str,
    global_batch: int,
    num_steps: int,
    steps_per_epoch: int,
    rate_factor: Any = None,
) -> keras.optimizers.Optimizer:
    """The optimizer of an experiment.

    Make it inside strategy.scope(); clipping options act on the summed gradient. `rate_factor`
    is a variable that the schedule's rate is multiplied by.

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
    if rate_factor is not None:
        schedule = schedules.Scaled(schedule, rate_factor)
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
