"""`python -m kerass2.fit`: train an experiment on one process or on many ranks."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from kerass2 import backend, cli, config, interruption, messages, profiling, ranks, session, staging
from kerass2 import job as jobs
from kerass2 import workdir as folder
from kerass2.interruption import Interruption
from kerass2.job import Job
from strategies import cluster, elastic

if TYPE_CHECKING:
    from kerass2.logs import NoLog, TrainingLog
    from kerass2.session import Session
    from kerass2.stall import Watch
    from strategies.base import Strategy


@click.command(cls=cli.Command)
@click.argument("experiment", required=False)
@ranks.options(default="single")
@click.option(
    "--data",
    help="Folder made by kerass2.prepare, a product (.SAFE, .zip, ...), cut as it is read, or "
    "'synthetic'; default: the real sample.",
)
@click.option(
    "--stage",
    type=click.Path(path_type=pathlib.Path),
    metavar="DIR",
    help="Copy the data to this folder of each node first, check and read them there.",
)
@click.option(
    "--workdir", type=click.Path(path_type=pathlib.Path), help="Default: runs/EXPERIMENT."
)
@click.option(
    "--epochs", type=click.IntRange(min=1), help="Passes over the training split, in all."
)
@click.option("--steps", type=click.IntRange(min=1), help="Steps, in all.")
@click.option("--max-time", help="Training time after which to stop, evaluate and save, e.g. 4h.")
@click.option(
    "--init",
    type=click.Path(path_type=pathlib.Path),
    help="Weights to start from: a .keras file of ours, DSen2's published ones (.npz, .hdf5), or "
    "for a ResNet keras.applications' (.h5).",
)
@profiling.option
@click.option("--keep", type=click.IntRange(min=1), help="Checkpoints to keep; default: 2.")
@click.option(
    "--restarts",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="How often to go on from the last checkpoint when a rank fails; outside a launcher.",
)
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
    stage: pathlib.Path | None,
    workdir: pathlib.Path | None,
    epochs: int | None,
    steps: int | None,
    max_time: str | None,
    init: pathlib.Path | None,
    keep: int | None,
    restarts: int,
    resume: bool,
    overwrite: bool,
    settings: tuple[str, ...],
) -> None:
    """Train EXPERIMENT (default: superres_20m_compact) and leave model.keras in the workdir.

    EXPERIMENT is a name (`kerass2 config list` shows them), or FILE.py:NAME for one of your own.

    Under mpirun, horovodrun or srun the same command is one rank of their job. SIGUSR1 and SIGTERM
    end it after a checkpoint; SIGUSR1 puts a Slurm job back into the queue, and there it goes on.
    """
    backend.check(strategy)
    if resume and overwrite:
        raise config.ConfigError("--resume and --overwrite exclude each other: give one of them")
    if resume and init:
        raise config.ConfigError(
            f"--resume goes on with the weights of {workdir or 'the workdir'}: --init {init} is "
            "for a new run"
        )
    if epochs and steps:
        raise config.ConfigError(f"--epochs {epochs} and --steps {steps}: give one of them")
    workdir = workdir or pathlib.Path("runs") / jobs.short_name(experiment)
    is_elastic = elastic.is_asked_for(os.environ)
    if is_elastic:
        jobs.check_elastic(strategy)
    begun = folder.was_begun_by(workdir, cluster.batch_job(os.environ))
    if begun and (is_elastic or cluster.num_restarts(os.environ)):
        # This very command has been started again: it goes on, whatever it says.
        resume, overwrite, init = True, False, None
    chosen = jobs.choose_experiment(experiment, workdir, resume=resume)
    run = chosen.run
    if epochs or steps:
        run = dataclasses.replace(run, epochs=epochs, steps=steps)
    run = dataclasses.replace(run, keep=keep or run.keep)
    chosen = config.override(dataclasses.replace(chosen, run=run), settings)
    size = ranks.world_size(strategy, workers)
    if is_elastic:
        size = elastic.num_active(jobs.num_shares(chosen), size)
    chosen = config.with_global_batch(chosen, size)
    limit = math.inf if max_time is None else config.parse_duration(max_time)
    job = jobs.check(
        chosen, data, workdir, resume=resume, overwrite=overwrite, max_seconds=limit, init=init
    )

    def train(started: Strategy, let_in: Callable[[], None] = lambda: None) -> None:
        data = staging.stage(job.data, stage, started) if stage else job.data
        fit(dataclasses.replace(job, data=data), started, let_in)

    if is_elastic:
        elastic.run(train, jobs.num_shares(chosen))
    else:
        train(ranks.start(strategy, workers, restarts))


def fit(job: Job, strategy: Strategy, let_in: Callable[[], None] = lambda: None) -> None:
    """Train as this rank of `strategy`; rank 0 writes the workdir. Every rank calls it.

    After each checkpoint but the last it calls `let_in` (strategies.elastic).

    Raises:
        DataError: data, starting weights or checkpoint are damaged, or do not fit the model.
        StrategyError: ranks differ in what must be the same on all.
        TrainingError: the loss is not finite.
    """
    from kerass2 import agreement, precision, stall
    from strategies import settings as variables
    from strategies.base import check_compression

    seconds = variables.read(os.environ).stall_seconds if strategy.world_size > 1 else 0.0
    watch = stall.Watch(seconds, strategy.rank)
    strategy = stall.Watched(strategy, watch)
    agreement.check_start(job, strategy)
    check_compression(strategy, job.experiment.run.compression)
    settings = dataclasses.replace(
        job.experiment.run, precision=precision.resolve(job.experiment.run.precision, strategy)
    )
    experiment = dataclasses.replace(job.experiment, run=settings)
    job = dataclasses.replace(job, experiment=experiment)
    with interruption.listen() as asked:
        _fit(job, strategy, asked, watch, let_in)


def _fit(
    job: Job, strategy: Strategy, asked: Interruption, watch: Watch, let_in: Callable[[], None]
) -> None:
    from kerass2 import agreement
    from strategies.base import leave

    # All that the experiment names is made, and data are read, before anything is written.
    run, started_from = session.prepare(job, strategy)
    batches = session.open_batches(run)
    validate = session.build_validation(run)
    run.state.start(strategy)
    run = dataclasses.replace(run, began=time.monotonic() - run.state.seconds)
    if strategy.is_chief:
        folder.begin(job.workdir, job.experiment, job.describe_data(), clear=not job.resume)
        _print_plan(run, started_from)
    agreement.check_shared(job.workdir, strategy)
    with _open_log(run) as log:
        done = run.state.step
        if done < run.num_steps and not session.is_stopped(run):
            done = session.train(run, batches, validate, log, lambda: asked.pending, watch, let_in)
        signal = None if done == run.num_steps else asked.agree(strategy)
        if signal is None:
            _finish(run, done, log, asked)
        elif strategy.is_chief:
            interruption.explain(signal, done, run.state.saved)
    leave(strategy)
    if signal is not None:
        raise click.exceptions.Exit(interruption.EXIT_CODES[signal])


def _open_log(run: Session) -> TrainingLog | NoLog:
    from kerass2 import logs

    if not run.strategy.is_chief:
        return logs.NoLog()
    return logs.TrainingLog(
        run.job.workdir,
        every=run.job.experiment.run.log_every,
        first_step=run.state.step,
        num_steps=run.num_steps,
        global_batch=run.global_batch,
        seconds=run.state.seconds,
        learning_rate=lambda: float(run.state.optimizer.learning_rate),
    )


def _finish(run: Session, done: int, log: TrainingLog | NoLog, asked: Interruption) -> None:
    """Save the model, and validate it on all ranks.

    A signal does not end the validation: there is nothing left to go on with later. Whatever ends
    it, the model is there.
    """
    from kerass2 import validation

    job, model = run.job, run.state.model
    with run.state.in_use():
        if run.strategy.is_chief:
            folder.save_model(job.workdir / folder.MODEL, model)
        if job.data.counts.get("validation"):
            source = job.data.open("validation")
            values, text = validation.finish(model, source, run.strategy)
            # Of all patches; those between the steps may be of fewer (run.validation_patches).
            log.event(done, **values, validation_patches=len(source))
            if run.strategy.is_chief:
                click.echo(text)
    late = asked.agree(run.strategy)
    if run.strategy.is_chief:
        _print_end(run, done)
        if late is not None:
            click.echo(f"{late.name} came after the last step: the run is complete", err=True)


def _print_end(run: Session, done: int) -> None:
    from kerass2 import validation

    progress, task = run.state.progress, run.job.experiment.data.task
    if session.is_stopped(run):
        better = validation.BETTER[task == config.LABEL_TASK]
        click.echo(f"stopped early: {progress.waited} validations without {better}")
    if progress.best is not None:
        click.echo(
            f"best validation {validation.format_error(progress.best, task)} after "
            f"{progress.best_step} steps: {run.job.workdir / folder.BEST}"
        )
    click.echo(f"{done} steps; model: {run.job.workdir / folder.MODEL}")


def _print_plan(run: Session, started_from: str) -> None:
    from kerass2 import state, tiling

    job, settings, size = run.job, run.job.experiment.run, run.strategy.world_size
    batch, parameters = run.global_batch, run.state.model.count_params()
    parts = state.num_parts(batch // size, settings)
    first_step = run.state.step
    lines = {
        "experiment": f"{job.experiment.name} -> {job.workdir}",
        "data": f"{job.data.description} ({len(run.source)} training patches)",
        "model": f"{job.experiment.model.name}, {parameters:,} parameters, {settings.precision}",
        "ranks": f"{size}, strategy {run.strategy.name}",
        "batch": f"{batch} patches a step, {batch // size} on each rank"
        + (f", in {parts} parts of {batch // size // parts}" if parts > 1 else ""),
        "steps": f"{run.num_steps}" + (f", resuming after {first_step}" if first_step else ""),
    }
    if started_from:
        lines["weights"] = started_from
    for name, text in lines.items():
        click.echo(f"{name:>10}  {text}")
    apart = job.data.provenance.get("receptive_radius")
    if apart is None:
        return
    radius = tiling.receptive_radius(run.state.model)
    if radius > apart:
        messages.warn(
            f"the model sees {radius} px around a pixel, but the splits of "
            f"{job.data.path} are apart for {apart} px: scores may be flattered by training pixels"
        )


if __name__ == "__main__":
    cli.run(main)
