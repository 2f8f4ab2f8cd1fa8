"""`python -m kerass2.fit`: train an experiment on one process or on many ranks."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
import time
from typing import TYPE_CHECKING, Any

import click

from kerass2 import cli, config, ranks
from kerass2 import job as jobs
from kerass2.job import Job

if TYPE_CHECKING:
    from collections.abc import Iterable

    import keras

    from data_pipelines.spec import Source
    from kerass2.logs import NoLog, TrainingLog
    from strategies.base import Strategy


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("experiment", required=False)
@ranks.options(default="single")
@click.option(
    "--data",
    help="Folder made by kerass2.prepare, a product (.SAFE, .zip, ...), cut as it is read, or "
    "'synthetic'; default: the real sample.",
)
@click.option(
    "--workdir", type=click.Path(path_type=pathlib.Path), help="Default: runs/EXPERIMENT."
)
@click.option(
    "--epochs", type=click.IntRange(min=1), help="Passes over the training split, in all."
)
@click.option("--steps", type=click.IntRange(min=1), help="Steps, in all.")
@click.option("--max-time", help="Training time after which to stop, evaluate and save, e.g. 4h.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in the workdir.")
@click.option("--overwrite", is_flag=True, help="Delete the results in the workdir first.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="E.g. run.global_batch=64."
)
def main(
    experiment: str | None,
    strategy: str,
    workers: int | None,
    data: str | None,
    workdir: pathlib.Path | None,
    epochs: int | None,
    steps: int | None,
    max_time: str | None,
    resume: bool,
    overwrite: bool,
    settings: tuple[str, ...],
) -> None:
    """Train EXPERIMENT (default: superres_20m_compact) and leave model.keras in the workdir.

    Under mpirun, horovodrun or srun the same command is one rank of their job.
    """
    if resume and overwrite:
        raise config.ConfigError("--resume and --overwrite exclude each other: give one of them")
    if epochs and steps:
        raise config.ConfigError(f"--epochs {epochs} and --steps {steps}: give one of them")
    workdir = workdir or pathlib.Path("runs") / (experiment or jobs.DEFAULT_EXPERIMENT)
    chosen = jobs.choose_experiment(experiment, workdir, resume=resume)
    if epochs or steps:
        run = dataclasses.replace(chosen.run, epochs=epochs, steps=steps)
        chosen = dataclasses.replace(chosen, run=run)
    chosen = config.override(chosen, settings)
    chosen = config.with_global_batch(chosen, ranks.world_size(strategy, workers))
    limit = math.inf if max_time is None else config.parse_duration(max_time)
    job = jobs.check(chosen, data, workdir, resume=resume, overwrite=overwrite, max_seconds=limit)
    fit(job, ranks.start(strategy, workers))


@dataclasses.dataclass(frozen=True)
class _Training:
    """What one rank trains."""

    model: keras.Model
    optimizer: keras.optimizers.Optimizer
    source: Source
    global_batch: int
    num_steps: int


def fit(job: Job, strategy: Strategy) -> None:
    """Train as this rank of `strategy`; rank 0 writes the workdir. Every rank calls it.

    Raises:
        DataError: data or checkpoint are damaged, or the model does not fit the data.
        TrainingError: the loss is not finite.
    """
    from kerass2 import checkpoint, losses, precision, train
    from kerass2 import workdir as folder
    from kerass2.steps.tensorflow import build_step

    run = dataclasses.replace(
        job.experiment.run, precision=precision.resolve(job.experiment.run.precision, strategy)
    )
    job = dataclasses.replace(job, experiment=dataclasses.replace(job.experiment, run=run))
    # All that the experiment names is made, and data are read, before anything is written.
    training = _build(job, strategy)
    model, optimizer = training.model, training.optimizer
    loss = losses.get(job.experiment.loss)
    checkpoints = job.workdir / folder.CHECKPOINTS
    first_step, seconds = 0, 0.0
    if job.resume and (found := checkpoint.find(checkpoints)):
        state = checkpoint.restore(found[0], model, optimizer)
        first_step, seconds = state["step"], state["seconds"]
    _check_agreement(job, strategy, first_step)
    batches = _batches(job, strategy, training, first_step)
    strategy.start(model, optimizer)
    if strategy.is_chief:
        folder.begin(job.workdir, job.experiment, job.describe_data(), clear=not job.resume)
        _print_plan(job, strategy, training, first_step)
    begin = time.monotonic() - seconds

    def save(done: int) -> None:
        strategy.average_statistics(model)
        if strategy.is_chief:
            elapsed = time.monotonic() - begin
            checkpoint.save(checkpoints, done, model, optimizer, keep=run.keep, seconds=elapsed)

    with _open_log(job, strategy, training, first_step, seconds) as log:
        if first_step < training.num_steps:
            try:
                first_step = train.train(
                    step=build_step(
                        strategy, model, optimizer, loss, training.global_batch, xla=run.xla
                    ),
                    batches=batches,
                    first_step=first_step,
                    num_steps=training.num_steps,
                    checkpoint_every=run.checkpoint_every,
                    save=save,
                    log=log,
                    deadline=begin + job.max_seconds,
                    may_overflow=run.precision == "float16",
                )
            except train.TrainingError as error:
                if strategy.is_chief:
                    # Its weights gave the loss that is not finite.
                    checkpoint.discard(checkpoints, error.step - 1)
                raise
        _finish(job, strategy, training, first_step, log)


def _check_agreement(job: Job, strategy: Strategy, first_step: int) -> None:
    """Refuse ranks that would begin at different steps or read different data.

    Raises:
        StrategyError: they differ, as where a workdir or a cache is not shared between nodes.
    """
    import numpy as np

    from strategies.base import StrategyError

    # In halves of 24 bits: the sum over any number of ranks is exact.
    halves = divmod(int(job.data.digest, 16), 2**24)
    own = np.array([first_step, *halves], np.float64)
    total = strategy.sum(own)
    if (total != own * strategy.world_size).any():
        raise StrategyError(
            f"ranks differ: rank {strategy.rank} begins at step {first_step} with "
            f"{job.data.path} (digest {job.data.digest}), others elsewhere; are workdir and data "
            "shared by all?"
        )


def _build(job: Job, strategy: Strategy) -> _Training:
    """Model and optimizer in the strategy's scope, and the data they are for."""
    import keras

    from data_pipelines import batching
    from kerass2 import models, optimizers, precision
    from kerass2.models.layers import synchronise_statistics

    experiment, run = job.experiment, job.experiment.run
    source = job.data.open("train")
    global_batch = run.global_batch or 1
    steps_per_epoch = batching.num_steps(len(source), global_batch)
    num_steps = config.num_steps(experiment, steps_per_epoch)
    # Ranks may draw different weights: strategy.start gives all of them rank 0's.
    keras.utils.set_random_seed(run.seed + strategy.rank)
    with strategy.scope():
        model = models.build(
            experiment.model.name,
            dtype=precision.POLICIES[run.precision],
            **experiment.model.options,
        )
        optimizer = optimizers.build(
            experiment.optimizer,
            precision=run.precision,
            global_batch=global_batch,
            num_steps=num_steps,
            steps_per_epoch=steps_per_epoch,
        )
        optimizer.build(model.trainable_variables)
    models.check_fits(model, source.spec, str(job.data.path))
    synchronise_statistics(model, strategy.sum_gradients)
    return _Training(model, optimizer, source, global_batch, num_steps)


def _batches(job: Job, strategy: Strategy, training: _Training, first_step: int) -> Iterable[Any]:
    """This rank's slices of the global batches from `first_step` on; the first is read here.

    Raises:
        DataError: a record of the first batch is damaged.
    """
    from data_pipelines import batching

    batches = iter(
        strategy.distribute(
            lambda rank, world_size: batching.build_training_dataset(
                training.source,
                seed=job.experiment.run.seed,
                global_batch=training.global_batch,
                rank=rank,
                world_size=world_size,
                start_step=first_step,
                stop_step=training.num_steps,
                augment=job.experiment.data.augment,
            )
        )
    )
    return itertools.chain(list(itertools.islice(batches, 1)), batches)


def _open_log(
    job: Job, strategy: Strategy, training: _Training, first_step: int, seconds: float
) -> TrainingLog | NoLog:
    from kerass2 import logs

    if not strategy.is_chief:
        return logs.NoLog()
    return logs.TrainingLog(
        job.workdir,
        every=job.experiment.run.log_every,
        first_step=first_step,
        num_steps=training.num_steps,
        global_batch=training.global_batch,
        seconds=seconds,
        learning_rate=lambda: float(training.optimizer.learning_rate),
    )


def _finish(
    job: Job, strategy: Strategy, training: _Training, done: int, log: TrainingLog | NoLog
) -> None:
    """Validate on all ranks, and save the model."""
    import numpy as np

    from data_pipelines.files import replacing
    from kerass2 import evaluate
    from kerass2 import workdir as folder

    if job.data.counts.get("validation"):
        source = job.data.open("validation")
        scores = evaluate.evaluate_model(training.model, source, strategy)
        rmse = {method: values["rmse"]["mean"] for method, values in scores["methods"].items()}
        log.event(done, validation_rmse=rmse["model"], validation_rmse_bicubic=rmse["bicubic"])
        if strategy.is_chief:
            click.echo(
                f"validation RMSE {rmse['model']:.2f} DN, bicubic {rmse['bicubic']:.2f} DN, "
                f"{len(source)} patches"
            )
    if strategy.is_chief:
        with replacing(job.workdir / folder.MODEL) as temporary:
            training.model.save(temporary)
        click.echo(f"{done} steps; model: {job.workdir / folder.MODEL}")
    strategy.sum(np.zeros(1))  # ranks leave together: one that is gone looks like one that died


def _print_plan(job: Job, strategy: Strategy, training: _Training, first_step: int) -> None:
    from kerass2 import tiling

    run, size = job.experiment.run, strategy.world_size
    batch, parameters = training.global_batch, training.model.count_params()
    lines = {
        "experiment": f"{job.experiment.name} -> {job.workdir}",
        "data": f"{job.data.description} ({len(training.source)} training patches)",
        "model": f"{job.experiment.model.name}, {parameters:,} parameters, {run.precision}",
        "ranks": f"{size}, strategy {strategy.name}",
        "batch": f"{batch} patches a step, {batch // size} on each rank",
        "steps": f"{training.num_steps}" + (f", resuming after {first_step}" if first_step else ""),
    }
    for name, text in lines.items():
        click.echo(f"{name:>10}  {text}")
    radius = tiling.receptive_radius(training.model)
    apart = job.data.provenance.get("receptive_radius")
    if apart is not None and radius > apart:
        click.echo(
            f"warning: the model sees {radius} px around a pixel, but the splits of "
            f"{job.data.path} are apart for {apart} px: scores may be flattered by training pixels",
            err=True,
        )


if __name__ == "__main__":
    cli.run(main)
