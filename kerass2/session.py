"""One session of a training run on one rank: its parts, and how they work together."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from typing import TYPE_CHECKING, Any

from kerass2 import config
from kerass2 import workdir as folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from data_pipelines.spec import Source
    from kerass2.job import Job
    from kerass2.logs import NoLog, TrainingLog
    from kerass2.state import State
    from strategies.base import Strategy


@dataclasses.dataclass(frozen=True)
class Session:
    """What is trained, on what, from where on."""

    job: Job
    strategy: Strategy
    source: Source
    """The training split."""
    state: State
    loss: Callable[[Any, Any], Any]
    """(target, prediction) -> a number for each example."""
    num_steps: int
    """In all."""
    began: float
    """time.monotonic() at which training would have begun, had it not been interrupted."""

    @property
    def global_batch(self) -> int:
        """Patches a step over all ranks."""
        return self.job.experiment.run.global_batch or 1


def prepare(job: Job, strategy: Strategy) -> tuple[Session, str]:
    """Model, optimizer and data, restored or initialised; and what the weights started from.

    Raises:
        ConfigError: something that the experiment names does not exist.
        DataError: data, starting weights or checkpoint are damaged, or do not fit the model.
    """
    from data_pipelines import batching
    from kerass2 import checkpoint, label_data, losses, models, state
    from kerass2.models import weights

    experiment = job.experiment
    source, counts = label_data.prepare_training(experiment, job.data.open("train"), strategy)
    loss = losses.get(experiment.loss, experiment.loss_options, counts)
    steps_per_epoch = batching.num_steps(len(source), experiment.run.global_batch or 1)
    num_steps = config.num_steps(experiment, steps_per_epoch)
    # Found wrong here rather than after the workdir has been begun.
    state.num_parts((experiment.run.global_batch or 1) // strategy.world_size, experiment.run)
    made = state.build(experiment, strategy, num_steps=num_steps, steps_per_epoch=steps_per_epoch)
    models.name_classes(made.model, source.spec)
    models.check_fits(made.model, source.spec, str(job.data.path))
    started_from = ""
    if job.resume and (found := checkpoint.find(job.workdir / folder.CHECKPOINTS)):
        made.restore(found[0])
    elif job.init:
        started_from = weights.initialise(made.model, job.init.path)
    return Session(job, strategy, source, made, loss, num_steps, time.monotonic()), started_from


def train(
    session: Session,
    batches: Iterable[Any],
    validate: Callable[[int, TrainingLog | NoLog], bool],
    log: TrainingLog | NoLog,
    is_interrupted: Callable[[], bool],
) -> int:
    """Train to the end, or until something ends it before; the number of steps done.

    All ranks stop after the same step when `is_interrupted` says so on one of them.

    Raises:
        TrainingError: the loss is not finite.
    """
    from kerass2 import checkpoint, state, train
    from kerass2.steps.tensorflow import build_step

    job, strategy, settings = session.job, session.strategy, session.job.experiment.run
    checkpoints = job.workdir / folder.CHECKPOINTS

    def save(done: int) -> None:
        strategy.average_statistics(session.state.model)
        if strategy.is_chief:
            seconds = time.monotonic() - session.began
            session.state.save(checkpoints, done, keep=settings.keep, seconds=seconds)

    local_batch = session.global_batch // strategy.world_size
    step = build_step(
        strategy,
        session.state.model,
        session.state.optimizer,
        session.loss,
        session.global_batch,
        xla=settings.xla,
        parts=state.num_parts(local_batch, settings),
        average=session.state.average,
    )
    try:
        return train.train(
            step=lambda batch, stop: step(batch, stop or is_interrupted()),
            batches=batches,
            first_step=session.state.step,
            num_steps=session.num_steps,
            checkpoint_every=settings.checkpoint_every,
            save=save,
            log=log,
            validate=lambda done: validate(done, log),
            validate_every=settings.validate_every,
            deadline=session.began + job.max_seconds,
            may_overflow=settings.precision == "float16",
        )
    except train.TrainingError as error:
        if strategy.is_chief:
            # Its weights gave the loss that is not finite.
            checkpoint.discard(checkpoints, error.step - 1)
        raise


def build_validation(session: Session) -> Callable[[int, TrainingLog | NoLog], bool]:
    """A function that validates, keeps the best weights, and says whether to stop."""
    from kerass2 import validation

    experiment, state = session.job.experiment, session.state
    if not experiment.run.validate_every:
        return lambda done, log: False
    source = session.job.data.open("validation")
    validator = validation.build(
        state.model, source, session.strategy, experiment.run.validation_patches
    )

    def validate(done: int, log: TrainingLog | NoLog) -> bool:
        begin = time.monotonic()
        session.strategy.average_statistics(state.model)
        with state.in_use():
            error, scores = validator.score()
            best = state.progress.note(error, done, experiment.optimizer.plateau)
            if best and session.strategy.is_chief:
                folder.save_model(session.job.workdir / folder.BEST, state.model)
        state.lower_rate()
        found = {name: value if math.isfinite(value) else None for name, value in scores.items()}
        log.event(done, **found, validation_patches=len(validator))
        log.exclude(time.monotonic() - begin)
        return is_stopped(session)

    return validate


def is_stopped(session: Session) -> bool:
    """True when run.patience is at its end."""
    patience = session.job.experiment.run.patience
    return 0 < patience <= session.state.progress.waited


def open_batches(session: Session) -> Iterable[Any]:
    """This rank's slices of the global batches from the first step on; the first is read here.

    Raises:
        DataError: a record of the first batch is damaged.
    """
    from data_pipelines import batching

    experiment = session.job.experiment
    batches = iter(
        session.strategy.distribute(
            lambda rank, world_size: batching.build_training_dataset(
                session.source,
                seed=experiment.run.seed,
                global_batch=session.global_batch,
                rank=rank,
                world_size=world_size,
                start_step=session.state.step,
                stop_step=session.num_steps,
                augment=experiment.data.augment,
                mix_up=experiment.data.mix_up,
                mix_up_subtracts=experiment.data.mix_up_subtracts,
            )
        )
    )
    return itertools.chain(list(itertools.islice(batches, 1)), batches)
