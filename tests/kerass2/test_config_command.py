"""`kerass2 config`, and experiments from a user's own file."""

from __future__ import annotations

import json
import pathlib

import pytest

from kerass2 import config, config_command, job

OWN = """
import dataclasses
from kerass2 import config
base = config.load("dsen2_20m_compact")
EXPERIMENT = dataclasses.replace(base, name="mine", loss="l2")
SMALL = config.ModelConfig("dsen2", {"filters": 4})
TINY = dataclasses.replace(EXPERIMENT, name="tiny", model=SMALL)
NUMBER = 3
"""


@pytest.fixture
def own(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def test_show_prints_what_set_takes(run_here) -> None:
    """Every line that is shown, given to --set, is the experiment itself."""
    done = run_here("config_command", "show", "superres_60m", "--set", "run.global_batch=7")
    assert done.returncode == 0 and "run.global_batch = 7\n" in done.stdout
    settings = [line.replace(" = ", "=", 1) for line in done.stdout.splitlines()]
    shown = config.override(config.load("dsen2_20m"), [s for s in settings if "options" not in s])
    wanted = config.override(config.load("superres_60m"), ["run.global_batch=7"])
    assert (shown.run, shown.data, shown.loss) == (wanted.run, wanted.data, wanted.loss)
    done = run_here("config_command", "show", "superres_60m", "--json")
    assert config.from_json(json.loads(done.stdout)) == config.load("superres_60m")


def test_diff_names_each_difference(run_here, own: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = run_here("config_command", "diff", "dsen2_20m_compact", own)
    assert done.returncode == 1
    assert done.stdout == 'name: "dsen2_20m_compact" -> "mine"\nloss: "l1" -> "l2"\n'
    saved = tmp_path / "experiment.json"
    saved.write_text(json.dumps(config.load(str(own)).to_json()))
    assert run_here("config_command", "diff", own, tmp_path).returncode == 0
    done = run_here("config_command", "diff", own, f"{own}:TINY", "--json")
    assert json.loads(done.stdout)["model.options.filters"] == [48, 4]


def test_every_experiment_that_comes_along_is_valid() -> None:
    """The small ones are built here; test_models counts all."""
    for name in config.names():
        if name.endswith("compact"):
            assert "parameters" in config_command.validate(config.load(name))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.options.depth=3", "dsen2_20m_compact: model 'dsen2' has no option depth"),
        ("loss=l3", "unknown loss 'l3'"),
        ("optimizer.schedule=steps", "unknown schedule 'steps'"),
        ("optimizer.options.momentum=1", "optimizer adam with options"),
        ('data.augment=["spin"]', r"no transform 'spin'"),
        ("data.task=superres_60m", "data.task is superres_60m, but model dsen2 is for superres_20"),
    ],
)
def test_validate_says_what_is_wrong(run_here, setting: str, message: str) -> None:
    done = run_here("config_command", "validate", "dsen2_20m_compact", "--set", setting)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.startswith("error: dsen2_20m_compact: ")


def test_experiments_of_a_users_own_file(own: pathlib.Path) -> None:
    assert config.load(str(own)).name == "mine"
    assert config.load(f"{own}:TINY").model.options == {"filters": 4}
    assert job.short_name(str(own)) == "own" and job.short_name(f"{own}:TINY") == "TINY"
    assert job.short_name(None) == job.DEFAULT_EXPERIMENT
    with pytest.raises(config.ConfigError, match=r"NUMBER is no .*: base, EXPERIMENT, TINY"):
        config.load(f"{own}:NUMBER")
    with pytest.raises(config.ConfigError, match=r"gone\.py: no readable file of an experiment"):
        config.load(str(own.with_name("gone.py")))
    own.write_text("1 / 0")
    with pytest.raises(config.ConfigError, match=r"own\.py: ZeroDivisionError: division by zero"):
        config.load(str(own))


def test_the_module_is_a_command(run_command) -> None:
    done = run_command("config", "list", "--json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == set(config.names())
