"""All that changes while a run trains, made, saved and restored as one thing."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from kerass2.config import ConfigError, RunConfig

if TYPE_CHECKING:
    import keras

    from kerass2 import checkpoint
    from kerass2.averaging import WeightAverage
    from kerass2.config import Experiment
    from kerass2.validation import Progress
    from strategies.base import Strategy


@dataclasses.dataclass
class State:
    """What one rank trains."""

    model: keras.Model
    """Made in the strategy's scope, as the optimizer."""
    optimizer: keras.optimizers.Optimizer
    """Built."""
    average: WeightAverage | None
    """With run.ema."""
    rate_factor: Any
    """With optimizer.plateau: the variable that the schedule's rate is multiplied by, else None."""
    progress: Progress
    """What validations have come to."""
    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Training time of the sessions before this one [s]."""
    saved: int = 0
    """After training: steps after which the newest checkpoint was written."""

    @property
    def averages(self) -> list[Any]:
        """Variables of the average; none without it."""
        return self.average.variables if self.average else []

    def start(self, strategy: Strategy) -> None:
        """Make every rank hold rank 0's variables. Every rank calls it."""
        strategy.start(self.model, self.optimizer)
        if self.average is not None and not self.step:
            self.average.reset()  # ranks may have drawn other weights than they hold now

    def in_use(self) -> AbstractContextManager[None]:
        """Inside the `with` block, the model has the weights that are validated and saved."""
        return self.average.in_place() if self.average else contextlib.nullcontext()

    def lower_rate(self) -> None:
        """Let the optimizer see what the plateau rule has decided."""
        if self.rate_factor is not None:
            self.rate_factor.assign(self.progress.rate_factor)

    def save(self, writer: checkpoint.Writer, done: int, *, seconds: float) -> None:
        """Have a checkpoint written of the state after `done` steps."""
        writer.save(
            done,
            self.model,
            self.optimizer,
            averages=self.averages,
            seconds=seconds,
            progress=dataclasses.asdict(self.progress),
        )

    def restore(self, path: pathlib.Path) -> None:
        """Go back to a checkpoint.

        Raises:
            DataError: it is damaged, or of another model, optimizer or average.
        """
        from kerass2 import checkpoint
        from kerass2.validation import Progress

        found = checkpoint.restore(path, self.model, self.optimizer, self.averages)
        self.step = self.saved = found["step"]
        self.seconds = found["seconds"]
        self.progress = Progress(**found.get("progress", {}))
        self.lower_rate()


def build(
    experiment: Experiment, strategy: Strategy, *, num_steps: int, steps_per_epoch: int
) -> State:
    """Fresh weights, by the strategy; its ranks may draw different ones until State.start.

    Raises:
        ConfigError: an unknown model, optimizer or option, or batch normalisation in micro-batches.
    """
    import keras

    from kerass2 import models, optimizers, precision
    from kerass2.averaging import WeightAverage
    from kerass2.models.labels import seed_dropout
    from kerass2.models.layers import synchronise_statistics
    from kerass2.validation import Progress

    run = experiment.run
    keras.utils.set_random_seed(run.seed + strategy.rank)
    with strategy.scope():
        model = models.build(
            experiment.model.name,
            dtype=precision.POLICIES[run.precision],
            **experiment.model.options,
        )
        rate_factor = None
        if experiment.optimizer.plateau.patience:
            rate_factor = keras.Variable(1.0, trainable=False, name="rate_factor")
        optimizer = optimizers.build(
            experiment.optimizer,
            precision=run.precision,
            global_batch=run.global_batch or 1,
            num_steps=num_steps,
            steps_per_epoch=steps_per_epoch,
            rate_factor=rate_factor,
        )
        optimizer.build(model.trainable_variables)
    synchronise_statistics(model, strategy.sum_gradients)
    seed_dropout(model, seed=run.seed, rank=strategy.rank, step=lambda: optimizer.iterations.value)
    if run.micro_batch and any(v.name == "moving_variance" for v in model.variables):
        raise ConfigError(
            f"run.micro_batch = {run.micro_batch}: model {experiment.model.name} has batch "
            "normalisation, whose statistics would be those of a part of the batch; "
            "run.accumulation_steps does that on purpose"
        )
    average = WeightAverage(model, run.ema) if run.ema else None
    return State(model, optimizer, average, rate_factor, Progress())


def num_parts(local_batch: int, run: RunConfig) -> int:
    """Equal parts of a rank's batch that are computed one after the other.

    run.accumulation_steps, or more where they hold more than run.micro_batch patches.

    Raises:
        ConfigError: the accumulation steps do not divide the batch.
    """
    if local_batch % run.accumulation_steps:
        raise ConfigError(
            f"run.accumulation_steps = {run.accumulation_steps} does not divide the {local_batch} "
            "patches of a rank"
        )
    largest = run.micro_batch or local_batch
    return next(
        parts
        for parts in range(run.accumulation_steps, local_batch + 1)
        if local_batch % parts == 0 and local_batch // parts <= largest
    )
