"""A training job: what can be wrong with its command line or data is found before ranks start."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import pathlib
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from kerass2 import config, inputs, label_data, messages
from kerass2 import workdir as folder

DEFAULT_EXPERIMENT = "superres_20m_compact"


@dataclasses.dataclass(frozen=True)
class Init:
    """Weights that a run starts from."""

    path: pathlib.Path
    """The file, absolute."""
    digest: str
    """12 hexadecimal digits of its SHA-256."""

    @classmethod
    def of(cls, path: pathlib.Path) -> Init:
        """The file as it is now.

        Raises:
            DataError: there is none.
        """
        from data_pipelines.spec import DataError

        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
        except OSError as error:
            raise DataError(f"{path}: no readable file of weights: {error.strerror}") from None
        return cls(path.resolve(), digest)


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
    init: Init | None = None
    """Weights to start from; None: random ones."""

    def describe_data(self) -> dict[str, Any]:
        """What data.json says: the data, their levels (L1C, L2A) where they tell, and the command.

        And what the weights started from, and the batch job that a restart knows its run by.
        """
        from kerass2 import methods
        from strategies import cluster

        init = {} if self.init is None else {"init": _plain(self.init)}
        batch_job = cluster.batch_job(os.environ)
        return {
            **init,
            **({"job": batch_job} if batch_job else {}),
            "data": str(self.data.path),
            "manifest": self.data.digest,
            "description": self.data.description,
            "levels": methods.data_levels(self.data),
            "command": shlex.join(["python", *sys.orig_argv[1:]]),
        }


def short_name(name: str | None) -> str:
    """Of a workdir under runs/, for an experiment that is given by name or as FILE.py:NAME."""
    file, _, variable = (name or DEFAULT_EXPERIMENT).partition(":")
    return variable or pathlib.Path(file).name.removesuffix(".py")


def choose_experiment(
    name: str | None, workdir: pathlib.Path, *, resume: bool
) -> config.Experiment:
    """The experiment named, or on resume with no name the one that the workdir holds."""
    saved = workdir / folder.EXPERIMENT
    if resume and name is None and saved.exists():
        return config.read(saved)
    return config.load(name or DEFAULT_EXPERIMENT)


def num_shares(experiment: config.Experiment) -> int:
    """Equal parts that ranks of an elastic run share a global batch in: a number that stays.

    Raises:
        ConfigError: the experiment gives run.local_batch, or accumulation steps do not divide.
    """
    run = experiment.run
    if run.global_batch is None:
        raise config.ConfigError(
            f"run.local_batch = {run.local_batch}: elastic ranks keep the global batch, and share "
            "it anew; give run.global_batch instead"
        )
    if run.global_batch % run.accumulation_steps:
        raise config.ConfigError(
            f"run.accumulation_steps = {run.accumulation_steps} does not divide "
            f"run.global_batch = {run.global_batch}"
        )
    return run.global_batch // run.accumulation_steps


def check_elastic(strategy: str) -> None:
    """Refuse what cannot begin again with other ranks.

    Raises:
        ConfigError: another strategy than horovod, or ranks that cannot know their run again.
    """
    from strategies import cluster

    if strategy != "horovod":
        raise config.ConfigError(f"elastic ranks are for --strategy horovod, not {strategy}")
    if cluster.JOB not in os.environ:
        raise config.ConfigError(
            "elastic ranks of horovodrun do not know their run again: start them with "
            "`python -m kerass2.launch --elastic MIN:MAX`"
        )


def check(
    experiment: config.Experiment,
    data: str | None,
    workdir: pathlib.Path,
    *,
    overwrite: bool,
    resume: bool,
    max_seconds: float,
    init: pathlib.Path | None = None,
) -> Job:
    """The job of a command line; on resume, with the data and the weights it was begun with.

    Raises:
        ConfigError: an augmentation that does not exist, a model without weights, no length given,
            or what waits for a validation that does not take place.
        DataError: no such data, damaged, of another task, too few; no such file of weights; or the
            workdir holds results of another experiment or of other data.
    """
    from data_pipelines import batching
    from data_pipelines.spec import DataError

    _check_transforms(experiment)
    _check_model(experiment)
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
    experiment = label_data.resolve(experiment, source.spec)
    if resume:
        folder.check_data(workdir, found.digest)
        _warn_of_length(experiment, workdir)
    steps_per_epoch = batching.num_steps(len(source), experiment.run.global_batch or 1)
    config.num_steps(experiment, steps_per_epoch)
    config.check_validation(experiment, found.counts.get("validation", 0))
    found = dataclasses.replace(found, path=found.path.resolve())
    weights = Init.of(init) if init else _find_init(workdir, begun)
    return Job(experiment, found, workdir, resume, overwrite, max_seconds, weights)


def _find_init(workdir: pathlib.Path, begun: Mapping[str, Any]) -> Init | None:
    """What a resumed run was begun with. The file has to be there while there is no checkpoint."""
    from data_pipelines.spec import DataError
    from kerass2 import checkpoint

    if "init" not in begun:
        return None
    there = Init(pathlib.Path(begun["init"]["path"]), str(begun["init"]["digest"]))
    if not checkpoint.find(workdir / folder.CHECKPOINTS) and Init.of(there.path) != there:
        raise DataError(
            f"{workdir} has no checkpoint yet, and the weights that it was begun with, "
            f"{there.path} (digest {there.digest}), have changed: --overwrite to begin anew"
        )
    return there


def _plain(init: Init) -> dict[str, str]:
    """As JSON has it."""
    return {"path": str(init.path), "digest": init.digest}


def _check_transforms(experiment: config.Experiment) -> None:
    from data_pipelines.transforms import TRANSFORMS

    unknown = [name for name in experiment.data.augment if name not in TRANSFORMS]
    if unknown:
        there = ", ".join(TRANSFORMS)
        raise config.ConfigError(f"data.augment: no transform {unknown[0]!r}; there are: {there}")


def _check_model(experiment: config.Experiment) -> None:
    from kerass2 import methods

    if experiment.model.name in methods.BASELINES:
        raise config.ConfigError(
            f"model.name: {experiment.model.name!r} is an interpolation and has no weights to "
            "train; kerass2.evaluate scores it, and kerass2.predict --bicubic applies it"
        )


def _warn_of_length(experiment: config.Experiment, workdir: pathlib.Path) -> None:
    """A schedule that spans the run bends when the run gets another length on resume."""
    saved = workdir / folder.EXPERIMENT
    schedule = experiment.optimizer.schedule
    if schedule not in ("cosine", "polynomial") or not saved.exists():
        return
    old, new = config.read(saved).run, experiment.run
    if (old.steps, old.epochs) != (new.steps, new.epochs):
        messages.warn(
            f"the run has another length than before, and the {schedule} schedule spans "
            "it: the learning rate jumps, and the result is not that of one run of the new length"
        )
