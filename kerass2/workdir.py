"""The folder of one training run: what lies in it, and whose results it may take.

experiment.json  the experiment, resolved       data.json    the data set and what it is
log.jsonl        one line every few steps       tensorboard  the same for TensorBoard
checkpoints      for --resume                   model.keras  the trained model: the last weights
best.keras       with run.validate_every: the weights of the lowest validation RMSE

With run.ema, both models hold averaged weights; checkpoints hold them beside the others.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from typing import Any

from data_pipelines.files import replacing
from data_pipelines.spec import DataError, json_text
from kerass2 import config

EXPERIMENT, DATA, LOG = "experiment.json", "data.json", "log.jsonl"
MODEL, BEST = "model.keras", "best.keras"
EVALUATION, REPORT = "evaluation.json", "report.html"
TENSORBOARD, CHECKPOINTS = "tensorboard", "checkpoints"
RESULTS = (EXPERIMENT, DATA, LOG, MODEL, BEST, EVALUATION, REPORT, TENSORBOARD, CHECKPOINTS)

# A run may be made longer or shorter, and be kept and logged otherwise, without becoming another
# experiment.
_FREE: dict[str, Any] = {
    "steps": None,
    "epochs": None,
    "checkpoint_every": 1,
    "keep": 1,
    "check_every": 0,
    "log_every": 1,
    "micro_batch": 0,
    # With batch normalisation another number rounds otherwise, as another number of ranks does.
    "accumulation_steps": 1,
    "patience": 0,
}


def check(
    workdir: pathlib.Path, experiment: config.Experiment, *, resume: bool
) -> config.Experiment:
    """The experiment to run in `workdir`.

    On resume, with what its first session has resolved ("auto", and what the data decided).

    Raises:
        DataError: the folder holds results of another experiment, or of this one without `resume`.
    """
    if not (workdir / EXPERIMENT).exists():
        return experiment
    old = config.read(workdir / EXPERIMENT)
    if experiment.run.precision == "auto":
        run = dataclasses.replace(experiment.run, precision=old.run.precision)
        experiment = dataclasses.replace(experiment, run=run)
    known = {key: value for key, value in old.model.options.items() if key in config.BY_DATA}
    model = dataclasses.replace(experiment.model, options={**known, **experiment.model.options})
    experiment = dataclasses.replace(experiment, model=model)
    differences = _differences(_essence(old), _essence(experiment))
    if differences:
        raise DataError(
            f"{workdir} holds results of another experiment ({', '.join(differences)}): "
            "choose another --workdir, or --overwrite"
        )
    if not resume:
        raise DataError(
            f"{workdir} holds results of this experiment: --resume to go on, or --overwrite"
        )
    return experiment


def read_data(workdir: pathlib.Path) -> dict[str, Any]:
    """What data.json holds: Job.describe_data; empty where there is none.

    Raises:
        DataError: the file is damaged.
    """
    path = workdir / DATA
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DataError(f"{path}: damaged, expected JSON: {error}") from error
    return values


def was_begun_by(workdir: pathlib.Path, job: str) -> bool:
    """True if the run in `workdir` is that of this batch job (strategies.cluster.batch_job)."""
    return bool(job) and read_data(workdir).get("job") == job


def check_data(workdir: pathlib.Path, manifest: str) -> None:
    """Refuse to go on with other data than the run began with; `manifest` is their digest.

    Raises:
        DataError: the digests differ.
    """
    found = read_data(workdir)
    if found.get("manifest", manifest) != manifest:
        raise DataError(
            f"{workdir} was begun with other data ({found['data']}, manifest {found['manifest']}; "
            f"now {manifest}): give those, or --overwrite"
        )


def begin(
    workdir: pathlib.Path, experiment: config.Experiment, data: dict[str, Any], *, clear: bool
) -> None:
    """Write experiment.json and data.json; with `clear`, delete what an earlier run has left.

    A resumed run too loses what was made from its earlier weights; its best ones stay.
    """
    for name in RESULTS if clear else (MODEL, EVALUATION, REPORT):
        path = workdir / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    write_json(workdir / DATA, data)
    write_json(workdir / EXPERIMENT, experiment.to_json())


def save_model(path: pathlib.Path, model: Any) -> None:
    """Write a .keras file that appears under its name when it is complete.

    Raises:
        DataError: it cannot be written, as on a full disk.
    """
    try:
        with replacing(path) as temporary:
            model.save(temporary)
    except OSError as error:
        raise DataError(f"{path}: could not be written: {error.strerror or error}") from error


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write JSON that appears under its name when it is complete."""
    with replacing(path) as temporary:
        temporary.write_text(json_text(value))


def _essence(experiment: config.Experiment) -> dict[str, Any]:
    run = dataclasses.replace(experiment.run, **_FREE)
    return _flat(dataclasses.replace(experiment, run=run).to_json())


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    items: dict[str, Any] = {}
    for key, value in values.items():
        items |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return items


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return [f"{key}: {old.get(key)} there, {new.get(key)} here" for key in keys]
