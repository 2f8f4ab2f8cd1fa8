"""A training job: what can be wrong with its command line or data is found before ranks start."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import shlex
import sys

import click

from kerass2 import config, inputs
from kerass2 import workdir as folder

DEFAULT_EXPERIMENT = "superres_20m_compact"


@dataclasses.dataclass(frozen=True)
class Job:
    """A training run, checked before any rank starts."""

    experiment: config.Experiment
    """With run.global_batch set."""
    data: inputs.Data
    """Prepared data set or product, its path absolute."""
    workdir: pathlib.Path
    """Where results go."""
    resume: bool = False
    """Go on from the last checkpoint."""
    overwrite: bool = False
    """Delete earlier results."""
    max_seconds: float = math.inf
    """Training time after which to stop [s]."""

    def describe_data(self) -> dict[str, str]:
        """What data.json says; with the command, for the report."""
        return {
            "data": str(self.data.path),
            "manifest": self.data.digest,
            "description": self.data.description,
            "command": shlex.join(["python", *sys.orig_argv[1:]]),
        }


def choose_experiment(
    name: str | None, workdir: pathlib.Path, *, resume: bool
) -> config.Experiment:
    """The experiment named, or on resume with no name the one that the workdir holds."""
    saved = workdir / folder.EXPERIMENT
    if resume and name is None and saved.exists():
        return config.read(saved)
    return config.load(name or DEFAULT_EXPERIMENT)


def check(
    experiment: config.Experiment,
    data: str | None,
    workdir: pathlib.Path,
    *,
    overwrite: bool,
    resume: bool,
    max_seconds: float,
) -> Job:
    """The job of a command line; on resume without `data`, with the data it was begun with.

    Raises:
        ConfigError: an augmentation that does not exist, or no length given.
        DataError: no such data, damaged, of another task, too few; or the workdir holds results of
            another experiment or of other data.
    """
    from data_pipelines import batching
    from data_pipelines.spec import DataError

    _check_transforms(experiment)
    if not overwrite:
        experiment = folder.check(workdir, experiment, resume=resume)
    begun = folder.read_data(workdir) if resume else {}
    if data is None and begun:
        found = inputs.open_data(begun["data"], experiment.data.task, str(begun["description"]))
    else:
        found = inputs.choose_data(data, experiment.data.task)
    source = found.open("train")
    if source.spec.task != experiment.data.task:
        raise DataError(
            f"{found.path} holds {source.spec.describe()}; "
            f"experiment {experiment.name} needs {experiment.data.task}"
        )
    if resume:
        folder.check_data(workdir, found.digest)
        _warn_of_cosine(experiment, workdir)
    steps_per_epoch = batching.num_steps(len(source), experiment.run.global_batch or 1)
    config.num_steps(experiment, steps_per_epoch)
    found = dataclasses.replace(found, path=found.path.resolve())
    return Job(experiment, found, workdir, resume, overwrite, max_seconds)


def _check_transforms(experiment: config.Experiment) -> None:
    from data_pipelines.transforms import TRANSFORMS

    unknown = [name for name in experiment.data.augment if name not in TRANSFORMS]
    if unknown:
        there = ", ".join(TRANSFORMS)
        raise config.ConfigError(f"data.augment: no transform {unknown[0]!r}; there are: {there}")


def _warn_of_cosine(experiment: config.Experiment, workdir: pathlib.Path) -> None:
    """A schedule that spans the run bends when the run gets another length on resume."""
    saved = workdir / folder.EXPERIMENT
    if experiment.optimizer.schedule != "cosine" or not saved.exists():
        return
    old, new = config.read(saved).run, experiment.run
    if (old.steps, old.epochs) != (new.steps, new.epochs):
        click.echo(
            "warning: the run has another length than before, and the cosine schedule spans it: "
            "the learning rate jumps, and the result is not that of one run of the new length",
            err=True,
        )
