"""An experiment: frozen, typed, saved beside the weights.

Strategy, world size and paths are not part of it.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import math
import pathlib
import pkgutil
import runpy
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pydantic
from pydantic.dataclasses import dataclass

import kerass2.configs

Precision = Literal["float32", "bfloat16", "float16", "auto"]

LABEL_TASK = "bigearthnet"
"""Task of data sets whose targets are labels; the others' are images."""
BY_DATA = ("inputs", "classes")
"""Options of a classifier that its data set decides where the experiment names none."""

_STRICT_KEYS = pydantic.ConfigDict(extra="forbid")


class ConfigError(ValueError):
    """An experiment, option or value that does not exist; the message lists what does."""


@dataclass(frozen=True, config=_STRICT_KEYS)
class ModelConfig:
    """Which network."""

    name: str = "s2x"
    """Key of kerass2.models.MODELS."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of the model's build function, e.g. {"filters": 128}."""


@dataclass(frozen=True, config=_STRICT_KEYS)
class DataConfig:
    """Which examples, whatever folder they lie in."""

    task: str = "superres_20m"
    """Task of the prepared data set."""
    augment: tuple[str, ...] = ("dihedral",)
    """Keys of data_pipelines.transforms.TRANSFORMS, applied in training."""
    mix_up: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.0
    """Alpha of the Beta distribution by which each patch is mixed with another; 0: none."""
    mix_up_subtracts: bool = False
    """Subtract the other patch, as the classification paper's text has it."""
    oversample: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    """Frequency of a class below which patches that have it come several times; 0: none do. The
    labels of all records are read before training begins."""


@dataclass(frozen=True, config=_STRICT_KEYS)
class PlateauConfig:
    """Lower the learning rate where validation no longer finds a lower RMSE.

    A factor on the schedule's rate, by the rule of keras.callbacks.ReduceLROnPlateau.
    """

    patience: pydantic.NonNegativeInt = 0
    """Validations without a lower RMSE after which the rate is lowered; 0: never."""
    factor: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.5
    """What the rate is multiplied by."""
    min_delta: pydantic.NonNegativeFloat = 0.0
    """How much lower an RMSE has to be to count [DN]."""
    cooldown: pydantic.NonNegativeInt = 0
    """Validations before another lowering at the earliest, as Keras counts them: 1 is as 0."""
    least: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.001
    """Fraction of the schedule's rate below which it is not lowered."""


@dataclass(frozen=True, config=_STRICT_KEYS)
class OptimizerConfig:
    """How weights move."""

    name: Literal["adam", "nadam", "sgd", "lars", "lamb"] = "adam"
    """nadam is DSen2's, not Keras' (see kerass2.optimizers.Nadam), right under every strategy; sgd
    is with Nesterov momentum, as in the classification paper; lars and lamb: large batches."""
    learning_rate: pydantic.PositiveFloat = 1e-4
    """Rate at reference_batch."""
    schedule: str = "modified_linear"
    """Key of kerass2.schedules.SCHEDULES."""
    reference_batch: pydantic.PositiveInt = 128
    """Global batch that learning_rate is for; schedules see global_batch / reference_batch."""
    schedule_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Further arguments of the schedule."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of the Keras optimizer, as {"global_clipnorm": 1.0} (clips the summed gradient)."""
    plateau: PlateauConfig = dataclasses.field(default_factory=PlateauConfig)
    """Lower the rate by the validation score; needs run.validate_every."""


@dataclass(frozen=True, config=_STRICT_KEYS)
class RunConfig:
    """How long, how large, how exact."""

    global_batch: pydantic.PositiveInt | None = None
    """Patches a step over all ranks."""
    local_batch: pydantic.PositiveInt | None = None
    """Patches a step and rank; the global batch follows (weak scaling). Not with global_batch."""
    micro_batch: pydantic.NonNegativeInt = 0
    """Patches a rank computes at once, at most: less memory, the same step. 0: all of its own."""
    accumulation_steps: pydantic.PositiveInt = 1
    """Equal parts of a rank's batch whose gradients are added up. As micro_batch, and allowed with
    batch normalisation too: each part is normalised by itself, as if it were a rank's."""
    steps: pydantic.PositiveInt | None = None
    """Steps in all; not with epochs."""
    epochs: pydantic.PositiveInt | None = None
    """Passes over the training split in all; not with steps."""
    precision: Precision = "float32"
    """auto: bfloat16 where a short measurement on this machine says it is faster, else float32."""
    seed: pydantic.NonNegativeInt = 0
    """Of initial weights, order and augmentation."""
    checkpoint_every: pydantic.PositiveInt = 200
    """Steps between checkpoints."""
    keep: pydantic.PositiveInt = 2
    """Checkpoints kept."""
    check_every: pydantic.NonNegativeInt = 200
    """Steps between comparisons of the ranks' weights, bit for bit; 0: none."""
    log_every: pydantic.PositiveInt = 10
    """Steps between lines of log.jsonl."""
    validate_every: pydantic.NonNegativeInt = 0
    """Steps between validations, whose best weights go to best.keras; 0: only after the last."""
    validation_patches: pydantic.NonNegativeInt = 0
    """Patches of the validation split that those see, evenly spaced, always the same; 0: all."""
    patience: pydantic.NonNegativeInt = 0
    """Validations without a lower RMSE after which training stops; 0: never."""
    ema: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    """Decay of a moving average of the weights, which validations and saved models take; 0: none.
    """
    compression: Literal["none", "fp16", "bf16"] = "none"
    """What gradients are cast to on their way between ranks: half the bytes, and rounded. horovod
    knows no bf16. On the sample fp16 raised the RMSE by 0.02 %, bf16 by nothing (docs/equality.md).
    """
    xla: bool = False
    """Compile the step with XLA; single only, Horovod's operations are no XLA operations."""


@dataclass(frozen=True, config=_STRICT_KEYS)
class Experiment:
    """All that decides which weights come out, apart from data and rounding."""

    name: str
    """Of the configuration it started from."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    loss: str = "l1"
    """Key of kerass2.losses.LOSSES, or for labels of kerass2.label_losses.LABEL_LOSSES."""
    loss_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of a loss of label_losses, as {"positive_weights": "inverse_sqrt"}."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return values


def names() -> list[str]:
    """Experiments that come with the package: one file of kerass2/configs each."""
    return sorted(module.name for module in pkgutil.iter_modules(kerass2.configs.__path__))


def load(name: str) -> Experiment:
    """The experiment of a name, or of a Python file: "FILE.py", "FILE.py:NAME".

    A name is that of kerass2/configs/<name>.py; NAME is a variable of the file, EXPERIMENT if not
    given. The file is run.

    Raises:
        ConfigError: there is none of that name, or the file cannot be run or holds no experiment.
    """
    file, _, variable = name.partition(":")
    if file.endswith(".py"):
        return _run_file(pathlib.Path(file), variable or "EXPERIMENT")
    if name not in names():
        raise ConfigError(
            f"unknown experiment {name!r}{_nearest(name, names())}; there are "
            f"{', '.join(names())}, or FILE.py:NAME"
        )
    experiment: Experiment = importlib.import_module(f"kerass2.configs.{name}").EXPERIMENT
    return experiment


def _run_file(path: pathlib.Path, variable: str) -> Experiment:
    """An experiment that a user's own file makes."""
    try:
        found = runpy.run_path(str(path))
    except OSError as error:
        raise ConfigError(f"{path}: no readable file of an experiment: {error.strerror}") from None
    except Exception as error:  # whatever the file's own lines raise
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error
    experiment = found.get(variable)
    if not isinstance(experiment, Experiment):
        there = [name for name, value in found.items() if isinstance(value, Experiment)]
        raise ConfigError(
            f"{path}: {variable} is no kerass2.config.Experiment; those there: "
            f"{', '.join(there) or 'none'}"
        )
    return experiment


def find(name: str) -> Experiment:
    """As load, and that of a JSON file or of a work folder.

    Raises:
        ConfigError: there is none.
    """
    path = pathlib.Path(name)
    if (path / "experiment.json").is_file():
        path = path / "experiment.json"
    return read(path) if path.suffix == ".json" else load(name)


def read(path: pathlib.Path) -> Experiment:
    """The experiment saved as JSON at `path`."""
    try:
        return from_json(json.loads(path.read_text()))
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: no readable experiment: {error}") from error


def from_json(values: Mapping[str, Any]) -> Experiment:
    """The inverse of Experiment.to_json.

    Raises:
        ConfigError: an unknown key or a value of another type; says which, and what exists.
    """
    try:
        return pydantic.TypeAdapter(Experiment).validate_python(values)
    except pydantic.ValidationError as error:
        problems = [
            f"{'.'.join(map(str, found['loc']))}: {found['msg']}, found {found['input']!r}"
            for found in error.errors()
        ]
        raise ConfigError("; ".join(problems)) from error


def override(experiment: Experiment, settings: Sequence[str]) -> Experiment:
    """The experiment with "key=value" settings applied, e.g. "run.global_batch=64".

    Values are read as JSON, else as plain text.

    Raises:
        ConfigError: no "=", an unknown key (lists what exists) or a value of another type.
    """
    values = experiment.to_json()
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting}: expected key=value, e.g. run.global_batch=64")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        _place(values, key, value)
    return from_json(values)


def _place(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key.

    Options of model, schedule and optimizer are free, all other keys must exist.
    """
    *groups, last = key.split(".")
    inner: Any = values
    for group in groups:
        inner = inner.get(group) if isinstance(inner, dict) else None
    free = bool(groups) and groups[-1].endswith("options")
    if not isinstance(inner, dict) or not (free or last in inner):
        known = list(_keys(values))
        raise ConfigError(
            f"unknown key {key!r}{_nearest(key, known)}; there are {', '.join(known)}"
        )
    inner[last] = value


def _keys(values: Mapping[str, Any], prefix: str = "") -> Sequence[str]:
    keys: list[str] = []
    for name, value in values.items():
        if name.endswith("options"):
            keys.append(f"{prefix}{name}.*")
        elif isinstance(value, dict):
            keys += _keys(value, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def _nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def with_global_batch(experiment: Experiment, world_size: int) -> Experiment:
    """The experiment with run.global_batch set, checked against the ranks.

    It follows from run.local_batch where that is given.

    Raises:
        ConfigError: neither or both are given, or the ranks do not divide the global batch: names
            both numbers and the nearest that fit.
    """
    run = experiment.run
    if (run.global_batch is None) == (run.local_batch is None):
        raise ConfigError(
            f"run.global_batch is {run.global_batch} and run.local_batch is {run.local_batch}: "
            "give exactly one"
        )
    global_batch = run.global_batch or (run.local_batch or 0) * world_size
    if global_batch % world_size:
        below = global_batch // world_size * world_size
        nearest = " or ".join(str(n) for n in (below, below + world_size) if n)
        raise ConfigError(
            f"a global batch of {global_batch} cannot be shared by {world_size} ranks; "
            f"nearest that fit: {nearest}"
        )
    run = dataclasses.replace(run, global_batch=global_batch, local_batch=None)
    return dataclasses.replace(experiment, run=run)


def num_steps(experiment: Experiment, steps_per_epoch: int) -> int:
    """Steps in all.

    Raises:
        ConfigError: neither or both of run.steps and run.epochs are given.
    """
    run = experiment.run
    if (run.steps is None) == (run.epochs is None):
        raise ConfigError(
            f"run.steps is {run.steps} and run.epochs is {run.epochs}: give exactly one"
        )
    return run.steps if run.steps is not None else (run.epochs or 0) * steps_per_epoch


def check_validation(experiment: Experiment, num_patches: int) -> None:
    """Refuse what waits for a validation score where there is none.

    Args:
        experiment: the experiment.
        num_patches: patches of the validation split.

    Raises:
        ConfigError: no validations in between, or nothing to validate on.
    """
    run, plateau = experiment.run, experiment.optimizer.plateau
    waiting = {"run.patience": run.patience, "optimizer.plateau.patience": plateau.patience}
    asked = [f"{key} = {value}" for key, value in waiting.items() if value]
    if asked and not run.validate_every:
        raise ConfigError(f"{asked[0]} counts validations: give run.validate_every too")
    if run.validation_patches and not run.validate_every:
        raise ConfigError(
            f"run.validation_patches = {run.validation_patches} without run.validate_every: the "
            "validation after the last step sees all patches"
        )
    if run.validate_every and not num_patches:
        raise ConfigError(
            f"run.validate_every = {run.validate_every}, but the data hold no validation split"
        )


def parse_duration(text: str) -> float:
    """Seconds of "90", "90s", "15m", "4h", "1h30m" or Slurm's "04:00:00".

    Raises:
        ConfigError: anything else.
    """
    import re

    clock = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
    if clock:
        days, hours, minutes, seconds = (int(group or 0) for group in clock.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    words = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text)
    if words and text:
        units = (3600.0, 60.0, 1.0)
        total = sum(float(n or 0) * unit for n, unit in zip(words.groups(), units, strict=True))
        if total > 0 and math.isfinite(total):
            return total
    raise ConfigError(f"{text!r} is no duration; examples: 90s, 15m, 4h, 1h30m, 04:00:00")


if __name__ == "__main__":
    # By its name: this module is __main__ here, and its classes are not those that others import.
    importlib.import_module("kerass2.config_command").run()
