"""One session of a training run on one rank: its parts, and how they work together."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from typing import TYPE_CHECKING, Any

from kerass2 import config, messages
from kerass2 import workdir as folder

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Iterable

    from data_pipelines.spec import Source
    from kerass2.job import Job
    from kerass2.logs import NoLog, TrainingLog
    from kerass2.stall import Watch
    from kerass2.state import State
    from kerass2.steps import Step
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
    from kerass2 import label_data, losses, models, state
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
    if job.resume:
        _restore(made, job.workdir / folder.CHECKPOINTS, strategy)
    if job.init and not made.step:
        started_from = weights.initialise(made.model, job.init.path)
    return Session(job, strategy, source, made, loss, num_steps, time.monotonic()), started_from


def _restore(state: State, checkpoints: pathlib.Path, strategy: Strategy) -> None:
    """Go back to the newest checkpoint that is not damaged, if there is any.

    Raises:
        DataError: all are damaged, or they are of another model.
        StrategyError: ranks have read different ones.
    """
    from kerass2 import agreement, checkpoint

    found = checkpoint.find(checkpoints)
    for path in found:
        try:
            state.restore(path)
            break
        except checkpoint.DamagedError as error:
            if path == found[-1]:
                raise
            if strategy.is_chief:
                messages.warn(f"{error}; going on from the one before")
    if strategy.world_size > 1:
        remedy = f"Delete what is newer than the least of them in {checkpoints}"
        steps = {"the checkpoint that they can read": (f"of {state.step} steps", remedy)}
        agreement.require_same(strategy, steps)


def train(
    session: Session,
    batches: Iterable[Any],
    validate: Callable[[int, TrainingLog | NoLog], bool],
    log: TrainingLog | NoLog,
    is_interrupted: Callable[[], bool],
    watch: Watch,
    let_in: Callable[[], None],
) -> int:
    """Train to the end, or until something ends it before; the number of steps done.

    All ranks stop after the same step when `is_interrupted` says so on one of them. `watch` ends
    this one when a step does not come to its end. Ranks call `let_in` after each checkpoint but the
    last: what it raises ends the training when that checkpoint is written.

    Raises:
        TrainingError: the loss is not finite.
    """
    from kerass2 import checkpoint, profiling, train

    job, strategy, settings = session.job, session.strategy, session.job.experiment.run
    writer = checkpoint.Writer(
        job.workdir / folder.CHECKPOINTS, keep=settings.keep, saved=session.state.step
    )

    def save(done: int) -> None:
        strategy.average_statistics(session.state.model)
        if strategy.is_chief:
            session.state.save(writer, done, seconds=time.monotonic() - session.began)
        if done < session.num_steps:
            let_in()

    profiled = profiling.record_steps(
        watch.timed(_build_step(session)),
        profiling.num_asked() if strategy.is_chief else 0,
        job.workdir / folder.TENSORBOARD,
    )
    try:
        with profiled as step:
            done = train.train(
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
                check=build_check(session),
                check_every=settings.check_every,
            )
    except train.TrainingError as error:
        # Its weights gave the loss that is not finite.
        if strategy.is_chief:
            writer.discard(error.step - 1)
        raise
    finally:
        session.state.saved = writer.close()
    return done


def _build_step(session: Session) -> Step:
    """The compiled step."""
    from kerass2 import state, steps

    made, settings = session.state, session.job.experiment.run
    return steps.build_step(
        session.strategy,
        made.model,
        made.optimizer,
        session.loss,
        session.global_batch,
        xla=settings.xla,
        parts=state.num_parts(session.global_batch // session.strategy.world_size, settings),
        average=made.average,
        compression=settings.compression,
        rate_factor=made.rate_factor,
    )


def build_check(session: Session) -> Callable[[int], None]:
    """A function that stops ranks whose weights differ; it has looked at them once, too.

    Raises:
        StrategyError: they differ before the first step.
    """
    from kerass2 import agreement

    model, strategy = session.state.model, session.strategy
    equal_at: int | None = None

    def check(done: int) -> None:
        nonlocal equal_at
        agreement.check_weights(model, strategy, done, equal_at)
        equal_at = done

    if session.job.experiment.run.check_every:
        check(session.state.step)
    return check


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
                _save_best(session.job.workdir / folder.BEST, state.model)
            if session.strategy.is_chief:
                log.images(done, **validator.draw())
        state.lower_rate()
        found = {name: value if math.isfinite(value) else None for name, value in scores.items()}
        log.event(done, **found, validation_patches=len(validator))
        log.exclude(time.monotonic() - begin)
        return is_stopped(session)

    return validate


def _save_best(path: pathlib.Path, model: Any) -> None:
    """Write the model; a full disk does not end the training, and what was there stays."""
    from data_pipelines.spec import DataError

    try:
        folder.save_model(path, model)
    except DataError as error:
        messages.warn(f"{error}; training goes on")


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
