"""Learning rate as a function of the step and the global batch; the number of ranks never enters.

k = global_batch / reference_batch is how many times larger the batch is than the one the base rate
was chosen for.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from kerass2.config import ConfigError


@keras.saving.register_keras_serializable("kerass2")
class ModifiedLinear(keras.optimizers.schedules.LearningRateSchedule):
    """The super-resolution paper's rule: rate * k, halved every halve_every / k steps."""

    def __init__(
        self,
        learning_rate: float,
        global_batch: int,
        reference_batch: int,
        halve_every: int = 64_000,
    ) -> None:
        """`halve_every` is the paper's n [steps at the reference batch]."""
        self.learning_rate = _positive("learning_rate", learning_rate)
        self.global_batch = _count("global_batch", global_batch)
        self.reference_batch = _count("reference_batch", reference_batch)
        self.halve_every = _count("halve_every", halve_every)

    def __call__(self, step: Any) -> Any:
        """Rate of a step, counted from 0; float32."""
        interval = self.halve_every * self.reference_batch / self.global_batch
        # Half a step of margin: XLA divides by multiplying with a rounded reciprocal. An interval
        # that is no whole number is thereby rounded to the nearest step.
        halvings = ops.floor((ops.cast(step, "float32") + 0.5) / interval)
        return (
            self.learning_rate * self.global_batch / self.reference_batch * ops.power(0.5, halvings)
        )

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return _arguments(self)


@keras.saving.register_keras_serializable("kerass2")
class Linear(keras.optimizers.schedules.LearningRateSchedule):
    """Goyal et al. 2017: rate * k, reached in equal steps from the base rate, then lowered.

    Where k is below 1 there is nothing to warm up from: the rate is rate * k from the start.
    """

    def __init__(
        self,
        learning_rate: float,
        global_batch: int,
        reference_batch: int,
        warmup_steps: int = 0,
        drop_steps: Sequence[int] = (),
        drop_factor: float = 0.1,
    ) -> None:
        """From each of `drop_steps` on the rate is multiplied by `drop_factor` once more."""
        self.learning_rate = _positive("learning_rate", learning_rate)
        self.global_batch = _count("global_batch", global_batch)
        self.reference_batch = _count("reference_batch", reference_batch)
        self.warmup_steps = _count("warmup_steps", warmup_steps, least=0)
        if not isinstance(drop_steps, Sequence):
            raise ConfigError(f"drop_steps = {drop_steps!r}: a list of steps is needed")
        self.drop_steps = tuple(_count("drop_steps", step) for step in drop_steps)
        self.drop_factor = _positive("drop_factor", drop_factor)

    def __call__(self, step: Any) -> Any:
        """Rate of a step, counted from 0; float32."""
        step = ops.cast(step, "float32")
        k = self.global_batch / self.reference_batch
        warm = ops.minimum(step / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        base = min(1.0, k)
        rate = self.learning_rate * (base + (k - base) * warm)
        drops = sum(ops.cast(step >= float(at), "float32") for at in self.drop_steps)
        return ops.cast(rate * ops.power(self.drop_factor, ops.cast(drops, "float32")), "float32")

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return _arguments(self)


@keras.saving.register_keras_serializable("kerass2")
class Constant(keras.optimizers.schedules.LearningRateSchedule):
    """The given rate, whatever the batch."""

    def __init__(self, learning_rate: float) -> None:
        """`learning_rate` at every step."""
        self.learning_rate = _positive("learning_rate", learning_rate)

    def __call__(self, step: Any) -> Any:
        """Rate of any step; float32."""
        return ops.cast(self.learning_rate, "float32")

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return _arguments(self)


@keras.saving.register_keras_serializable("kerass2")
class Cosine(keras.optimizers.schedules.LearningRateSchedule):
    """Half a cosine from the given rate to `final_fraction` of it, after a warm-up from 0.

    For trainings much shorter than the papers'; the batch does not enter.
    """

    def __init__(
        self,
        learning_rate: float,
        num_steps: int,
        warmup_steps: int = 0,
        final_fraction: float = 0.0,
    ) -> None:
        """`num_steps` in all, warm-up included; from there on the rate stays at its end."""
        self.learning_rate = _positive("learning_rate", learning_rate)
        self.num_steps = _count("num_steps", num_steps)
        self.warmup_steps = _count("warmup_steps", warmup_steps, least=0)
        if self.warmup_steps >= self.num_steps:
            raise ConfigError(
                f"warmup_steps {warmup_steps} must be fewer than the {num_steps} steps in all"
            )
        if not 0.0 <= final_fraction <= 1.0:
            raise ConfigError(f"final_fraction {final_fraction!r}: a number from 0 to 1 is needed")
        self.final_fraction = float(final_fraction)

    def __call__(self, step: Any) -> Any:
        """Rate of a step, counted from 0; float32."""
        step = ops.cast(step, "float32")
        warm = ops.minimum((step + 1.0) / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        progress = (step - self.warmup_steps) / (self.num_steps - self.warmup_steps)
        half_cosine = 0.5 * (1.0 + ops.cos(math.pi * ops.clip(progress, 0.0, 1.0)))
        fraction = self.final_fraction + (1.0 - self.final_fraction) * half_cosine
        return ops.cast(self.learning_rate * warm * fraction, "float32")

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return _arguments(self)


@keras.saving.register_keras_serializable("kerass2")
class Polynomial(keras.optimizers.schedules.LearningRateSchedule):
    """Warm-up from 0 to the scaled rate, then down to 0 by a power of what is left.

    As LARS is published with (You et al. 2017: power 2, linear scaling); LAMB's is power 1 with
    "sqrt" (You et al. 2020).
    """

    SCALINGS: Mapping[str, float] = {"linear": 1.0, "sqrt": 0.5, "none": 0.0}
    """Scaling -> power of k."""

    def __init__(
        self,
        learning_rate: float,
        global_batch: int,
        reference_batch: int,
        num_steps: int,
        warmup_steps: int = 0,
        power: float = 2.0,
        scaling: str = "linear",
        final_fraction: float = 0.0,
    ) -> None:
        """`num_steps` in all, warm-up included; the rate is multiplied by a power of k."""
        self.learning_rate = _positive("learning_rate", learning_rate)
        self.global_batch = _count("global_batch", global_batch)
        self.reference_batch = _count("reference_batch", reference_batch)
        self.num_steps = _count("num_steps", num_steps)
        self.warmup_steps = _count("warmup_steps", warmup_steps, least=0)
        self.power = _positive("power", power)
        if self.warmup_steps >= self.num_steps:
            raise ConfigError(
                f"warmup_steps {warmup_steps} must be fewer than the {num_steps} steps in all"
            )
        if scaling not in self.SCALINGS:
            raise ConfigError(f"scaling {scaling!r}; there are: {', '.join(self.SCALINGS)}")
        self.scaling = scaling
        if not 0.0 <= final_fraction <= 1.0:
            raise ConfigError(f"final_fraction {final_fraction!r}: a number from 0 to 1 is needed")
        self.final_fraction = float(final_fraction)

    def __call__(self, step: Any) -> Any:
        """Rate of a step, counted from 0; float32."""
        step = ops.cast(step, "float32")
        k = (self.global_batch / self.reference_batch) ** self.SCALINGS[self.scaling]
        warm = ops.minimum((step + 1.0) / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        progress = (step - self.warmup_steps) / (self.num_steps - self.warmup_steps)
        left = ops.power(1.0 - ops.clip(progress, 0.0, 1.0), self.power)
        fraction = self.final_fraction + (1.0 - self.final_fraction) * left
        return ops.cast(self.learning_rate * k * warm * fraction, "float32")

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return _arguments(self)


@keras.saving.register_keras_serializable("kerass2")
class Scaled(keras.optimizers.schedules.LearningRateSchedule):
    """Another schedule's rate times a factor that may change while training goes on."""

    def __init__(
        self, schedule: keras.optimizers.schedules.LearningRateSchedule, factor: Any
    ) -> None:
        """`factor` is a number or a variable, which is read at each step."""
        self.schedule = schedule
        self.factor = factor

    def __call__(self, step: Any) -> Any:
        """Rate of a step, counted from 0; float32."""
        return self.schedule(step) * ops.cast(ops.convert_to_tensor(self.factor), "float32")

    def get_config(self) -> dict[str, Any]:
        """The schedule, and the factor as it stands now."""
        schedule = keras.saving.serialize_keras_object(self.schedule)
        return {"schedule": schedule, "factor": float(self.factor)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Scaled:
        """The inverse of get_config; the factor is then a number."""
        schedule = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(schedule, config["factor"])


# Name in an experiment -> class. A new schedule is one class and one line here.
SCHEDULES: dict[str, type[keras.optimizers.schedules.LearningRateSchedule]] = {
    "modified_linear": ModifiedLinear,
    "linear": Linear,
    "constant": Constant,
    "cosine": Cosine,
    "polynomial": Polynomial,
}
# What the run itself decides; a schedule takes those of them that it names in its __init__.
_GIVEN = ("learning_rate", "global_batch", "reference_batch", "num_steps", "steps_per_epoch")


def build(
    name: str,
    *,
    learning_rate: float,
    global_batch: int,
    reference_batch: int,
    num_steps: int,
    steps_per_epoch: int = 1,
    **options: Any,
) -> keras.optimizers.schedules.LearningRateSchedule:
    """The schedule of an experiment.

    Args:
        name: a key of SCHEDULES.
        learning_rate: base rate, that of the reference batch where the schedule scales it.
        global_batch: patches a step over all ranks.
        reference_batch: the batch that `learning_rate` is meant for.
        num_steps: steps in all.
        steps_per_epoch: makes steps of the options `warmup_epochs` and `drop_epochs`.
        **options: further arguments of the schedule's class.

    Raises:
        ConfigError: unknown name or option, or a value that makes no sense; the message lists what
            exists.
    """
    if name not in SCHEDULES:
        raise ConfigError(f"unknown schedule {name!r}; there are: {', '.join(SCHEDULES)}")
    given = dict(
        zip(
            _GIVEN,
            (learning_rate, global_batch, reference_batch, num_steps, steps_per_epoch),
            strict=True,
        )
    )
    accepted = list(inspect.signature(SCHEDULES[name].__init__).parameters)[1:]
    allowed = [key for key in accepted if key not in given]
    in_epochs = [key.replace("_steps", "_epochs") for key in allowed if key.endswith("_steps")]
    unknown = sorted(set(options) - {*allowed, *in_epochs})
    if unknown:
        there = ", ".join([*allowed, *in_epochs]) or "none"
        raise ConfigError(
            f"schedule {name!r} has no option {', '.join(unknown)}; there are: {there}"
        )
    arguments = {key: given[key] for key in accepted if key in given}
    for key, value in options.items():
        steps_key = key.replace("_epochs", "_steps")
        if steps_key in arguments:
            raise ConfigError(f"schedule {name!r}: {key} says twice how many steps")
        arguments[steps_key] = _to_steps(key, value, steps_per_epoch) if key in in_epochs else value
    return SCHEDULES[name](**arguments)


def _to_steps(key: str, value: Any, steps_per_epoch: int) -> Any:
    """Epochs, or a list of them, as whole steps."""
    epochs = value if isinstance(value, list | tuple) else [value]
    for epoch in epochs:
        if isinstance(epoch, bool) or not isinstance(epoch, int | float) or epoch < 0:
            raise ConfigError(f"{key} = {value!r}: epochs are numbers of at least 0")
    steps = [round(epoch * steps_per_epoch) for epoch in epochs]
    return steps if isinstance(value, list | tuple) else steps[0]


def _arguments(schedule: Any) -> dict[str, Any]:
    """Config of a schedule: every argument is an attribute of the same name."""
    names = list(inspect.signature(type(schedule).__init__).parameters)[1:]
    values = {name: getattr(schedule, name) for name in names}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
    }


def _positive(name: str, value: Any) -> float:
    """A finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"{name} = {value!r}: a positive number is needed")
    return float(value)


def _count(name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} = {value!r}: a whole number of at least {least} is needed")
    return value
