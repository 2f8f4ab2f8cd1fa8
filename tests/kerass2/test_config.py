"""Experiments: overrides, batches, durations, and what is said of wrong ones."""

from __future__ import annotations

import dataclasses

import hypothesis
import pytest
from hypothesis import strategies as st

from kerass2 import config
from kerass2.config import ConfigError, Experiment, RunConfig


def test_every_experiment_loads_and_survives_json():
    assert {"superres_20m", "superres_20m_compact", "dsen2_20m", "dsen2_20m_compact"} <= set(
        config.names()
    )
    for name in config.names():
        experiment = config.load(name)
        assert experiment.name == name
        assert config.from_json(experiment.to_json()) == experiment
        assert (experiment.run.steps is None) != (experiment.run.epochs is None)


@pytest.mark.parametrize(("name", "reference"), [("superres_20m", 128), ("superres_60m", 32)])
def test_the_papers_rule_counts_from_the_papers_batch(name, reference):
    found = config.load(name).optimizer
    assert (found.name, found.schedule) == ("adam", "modified_linear")
    assert (found.learning_rate, found.reference_batch) == (1e-4, reference)


def test_unknown_experiment_lists_what_exists():
    with pytest.raises(
        ConfigError,
        match=r"unknown experiment 'superes_20m' \(did you mean 'superres_20m.*dsen2_20m",
    ):
        config.load("superes_20m")


@pytest.mark.parametrize(
    ("setting", "path", "expected"),
    [
        ("run.global_batch=64", "run.global_batch", 64),
        ("run.global_batch=null", "run.global_batch", None),
        ("optimizer.learning_rate=1e-3", "optimizer.learning_rate", 1e-3),
        ("run.precision=bfloat16", "run.precision", "bfloat16"),
        ("model.options.filters=32", "model.options", {"filters": 32}),
        ('data.augment=["dihedral"]', "data.augment", ("dihedral",)),
        ("run.xla=true", "run.xla", True),
    ],
)
def test_override(setting, path, expected):
    value = config.override(Experiment("x"), [setting])
    for name in path.split("."):
        value = getattr(value, name)
    assert value == expected


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "run.global_bach=64",
            r"unknown key 'run.global_bach' \(did you mean 'run.global_batch'\?\).*run.steps",
        ),
        ("nothing=1", "unknown key 'nothing'.*model.name"),
        ("run=1", "run"),
        ("model.name.first=1", "unknown key"),
        ("run.global_batch=many", "run.global_batch: .*found 'many'"),
        ("run.global_batch=0", "run.global_batch: .*found 0"),
        ("run.precision=float8", "run.precision: .*'float32'.*'bfloat16'"),
        ("run.global_batch", "expected key=value"),
    ],
)
def test_wrong_overrides(setting, message):
    with pytest.raises(ConfigError, match=message):
        config.override(Experiment("x"), [setting])


@pytest.mark.parametrize(
    ("batch", "ranks", "nearest"), [(64, 3, "63 or 66"), (2, 3, "3"), (128, 5, "125 or 130")]
)
def test_ranks_that_do_not_divide_the_batch(batch, ranks, nearest):
    experiment = Experiment("x", run=RunConfig(global_batch=batch))
    with pytest.raises(
        ConfigError, match=f"batch of {batch} cannot be shared by {ranks} ranks.*fit: {nearest}$"
    ):
        config.with_global_batch(experiment, ranks)


@hypothesis.given(st.integers(1, 4096), st.integers(1, 64))
def test_local_batch_gives_the_global_one(local, ranks):
    found = config.with_global_batch(Experiment("x", run=RunConfig(local_batch=local)), ranks).run
    assert (found.global_batch, found.local_batch) == (local * ranks, None)


@pytest.mark.parametrize("run", [RunConfig(), RunConfig(global_batch=8, local_batch=4)])
def test_exactly_one_batch_is_given(run):
    with pytest.raises(ConfigError, match="give exactly one"):
        config.with_global_batch(Experiment("x", run=run), 2)


def test_num_steps():
    assert config.num_steps(Experiment("x", run=RunConfig(steps=7)), 100) == 7
    assert config.num_steps(Experiment("x", run=RunConfig(epochs=3)), 100) == 300
    for run in (RunConfig(), RunConfig(steps=1, epochs=1)):
        with pytest.raises(ConfigError, match="give exactly one"):
            config.num_steps(Experiment("x", run=run), 100)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("15m", 900),
        ("4h", 14400),
        ("1h30m", 5400),
        ("0.5h", 1800),
        ("04:00:00", 14400),
        ("1-00:00:01", 86401),
    ],
)
def test_durations(text, seconds):
    assert config.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "h", "-5", "0", "4 h", "1:2", "s"])
def test_no_durations(text):
    with pytest.raises(ConfigError, match="is no duration"):
        config.parse_duration(text)


def test_experiments_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.load("superres_20m").name = "other"
