"""kerass2.fit with all that validation steers, on real ranks: equal, exact on resume, in step."""

from __future__ import annotations

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from kerass2 import models

SETTINGS = {
    "model.options.filters": 8,
    "model.options.blocks": 2,
    "run.precision": "float32",
    "run.global_batch": 12,
    "run.log_every": 1,
    "run.checkpoint_every": 4,
    "run.validate_every": 3,
    "run.ema": 0.9,
    "optimizer.name": "nadam",
    "optimizer.learning_rate": 0.002,
    "optimizer.reference_batch": 12,
    "optimizer.schedule": "modified_linear",
    "optimizer.schedule_options.halve_every": 10,
    # The rate is lowered unless the RMSE falls by much: at steps 6, 12, 18 and 24.
    "optimizer.plateau.patience": 1,
    "optimizer.plateau.cooldown": 2,
    "optimizer.plateau.min_delta": 1e4,
}
STEPS = 24
# A rate so small that no weight moves: no validation finds a lower RMSE.
STILL = {"optimizer.learning_rate": 1e-14, "run.patience": 2, "optimizer.name": "adam"}


def need(strategy: str) -> None:
    if strategy == "horovod":
        pytest.importorskip("horovod", reason="Horovod is not built here")


def arguments(prepared, workdir, settings: dict, *more: object) -> list[str]:
    given = [f"--set={key}={value}" for key, value in {**SETTINGS, **settings}.items()]
    return ["--data", str(prepared), "--workdir", str(workdir), *given, *map(str, more)]


@pytest.fixture
def fit(run_lightly, prepared):
    def run(workdir, *more: object, **settings):
        result = run_lightly("fit", *arguments(prepared, workdir, settings, *more))
        assert result.returncode == 0, result.stderr
        return result

    return run


@pytest.fixture(scope="module")
def trained(run_lightly, prepared, tmp_path_factory):
    """(strategy, micro_batch) -> workdir after all steps, the same experiment by each."""
    folders: dict[tuple[str, int], pathlib.Path] = {}

    def train(strategy: str, micro_batch: int = 0) -> pathlib.Path:
        need(strategy)
        if (strategy, micro_batch) not in folders:
            folder = tmp_path_factory.mktemp(strategy) / "work"
            more = ("--steps", STEPS, "--strategy", strategy)
            given = arguments(prepared, folder, {"run.micro_batch": micro_batch}, *more)
            result = run_lightly("fit", *given)
            assert result.returncode == 0, result.stderr
            folders[strategy, micro_batch] = folder
        return folders[strategy, micro_batch]

    return train


def arrays(workdir: pathlib.Path) -> tuple[dict[str, np.ndarray], dict]:
    """Variables and state of the newest checkpoint."""
    with np.load(max((workdir / "checkpoints").glob("step-*.npz"))) as file:
        found = {name: file[name] for name in file.files}
    return found, json.loads(str(found.pop("state")))


def distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray], kind: str) -> float:
    """||a - b|| / ||b|| over all variables of a kind."""
    assert a.keys() == b.keys()
    x, y = (
        np.concatenate([v.ravel().astype(np.float64) for n, v in side.items() if kind in n])
        for side in (a, b)
    )
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


def lines(workdir: pathlib.Path, key: str) -> list[tuple[int, float]]:
    log = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    return [(entry["step"], entry[key]) for entry in log if key in entry]


def scores(workdir: pathlib.Path) -> dict[int, float]:
    """RMSE of the validations between the steps."""
    log = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    wanted = [entry for entry in log if "validation_rmse" in entry]
    assert "validation_rmse_bicubic" in wanted[-1]
    return {entry["step"]: entry["validation_rmse"] for entry in wanted[:-1]}


@pytest.mark.parametrize(
    ("strategy", "micro_batch"), [("single", 5), ("horovod", 3), ("multiworker", 0)]
)
def test_ranks_and_parts_give_what_one_process_gives(trained, strategy, micro_batch):
    one, two = trained("single"), trained(strategy, micro_batch)
    (expected, state), (found, other) = arrays(one), arrays(two)
    limit = 1e-6 if strategy == "single" else 1e-5
    for kind in ("model/", "average/"):
        assert distance(found, expected, kind) <= limit
    assert other["progress"]["rate_factor"] == state["progress"]["rate_factor"] == 0.5**4
    assert other["progress"]["best_step"] == state["progress"]["best_step"]
    assert scores(two).keys() == scores(one).keys() == set(range(3, STEPS + 1, 3))
    np.testing.assert_allclose(list(scores(two).values()), list(scores(one).values()), rtol=1e-5)
    rates = [dict(lines(workdir, "learning_rate")) for workdir in (one, two)]
    assert rates[0] == rates[1]
    # The log has the rate of the next step: the schedule halves after 10 and 20 steps.
    halvings = [(step // 10) + (step > 6) + (step > 12) + (step > 18) for step in range(1, STEPS)]
    expected_rates = [0.002 * 0.5**count for count in halvings]
    found_rates = [rates[0][step] for step in range(1, STEPS)]
    np.testing.assert_allclose(found_rates, expected_rates, rtol=1e-5)


def test_the_models_have_the_averaged_weights(trained):
    workdir = trained("single")
    variables, state = arrays(workdir)
    averages = [variables[name] for name in sorted(variables) if name.startswith("average/")]
    assert int(averages[0]) == STEPS
    last = models.load_model(workdir / "model.keras")
    for found, expected in zip(last.trainable_variables, averages[1:], strict=True):
        np.testing.assert_array_equal(found, expected)
    assert (
        distance(
            dict(enumerate_names(averages[1:])),
            dict(
                enumerate_names([v for n, v in sorted(variables.items()) if n.startswith("model/")])
            ),
            "",
        )
        > 1e-4
    )
    assert (workdir / "best.keras").exists()
    found = scores(workdir)
    assert state["progress"]["best"] == min(found.values())
    assert state["progress"]["best_step"] == min(found, key=found.__getitem__)


def enumerate_names(values: list[np.ndarray]) -> list[tuple[str, np.ndarray]]:
    return [(str(number), value) for number, value in enumerate(values)]


def check_same(found: pathlib.Path, expected: pathlib.Path, strategy: str) -> None:
    (a, state), (b, wanted) = arrays(found), arrays(expected)
    if strategy == "single":
        for name, value in b.items():
            np.testing.assert_array_equal(a[name], value, err_msg=name)
        assert state["progress"] == wanted["progress"]
        assert scores(found) == scores(expected)
        for name in ("best.keras", "model.keras"):
            pairs = (models.load_model(folder / name).get_weights() for folder in (found, expected))
            for one, other in zip(*pairs, strict=True):
                np.testing.assert_array_equal(one, other)
        return
    for kind in ("model/", "average/"):
        assert distance(a, b, kind) <= 1e-6
    assert state["progress"]["rate_factor"] == wanted["progress"]["rate_factor"]
    assert scores(found).keys() == scores(expected).keys()


@pytest.mark.parametrize(
    ("strategy", "other"),
    [
        ("single", ("single",)),
        ("horovod", ("multiworker", "--workers", 3)),
        pytest.param("multiworker", ("multiworker",), marks=pytest.mark.cluster),
    ],
)
def test_a_run_in_two_sessions_is_the_unbroken_one(trained, fit, tmp_path, strategy, other):
    """The first ends between two validations and between two checkpoints.

    One goes on with another number of ranks by the other strategy.
    """
    parts = {"run.micro_batch": 3 if strategy == "horovod" else 0}  # a run that is there already
    expected = trained(strategy, *parts.values())
    fit(tmp_path / "w", "--steps", 14, "--strategy", strategy, **parts)
    fit(tmp_path / "w", "--steps", STEPS, "--strategy", *other, "--resume", **parts)
    (tmp_path / "w" / "log.jsonl").write_text(
        "".join(
            line
            for line in (tmp_path / "w" / "log.jsonl").read_text().splitlines(keepends=True)
            if not (json.loads(line)["step"] == 14 and "validation_rmse" in line)
        )
    )
    check_same(tmp_path / "w", expected, strategy)


def test_resume_after_kill_is_exact(trained, fit, prepared, tmp_path):
    broken = tmp_path / "w"
    command = [sys.executable, "-m", "kerass2.fit", *arguments(prepared, broken, {})]
    process = subprocess.Popen([*command, "--steps", str(STEPS)], stdout=subprocess.DEVNULL)
    wanted = random.Random(os.urandom(8)).randint(5, 20)
    deadline = time.monotonic() + 120
    while (
        not (broken / "log.jsonl").exists()
        or f'"step": {wanted},' not in (broken / "log.jsonl").read_text()
    ):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    fit(broken, "--steps", STEPS, "--resume")
    check_same(broken, trained("single"), "single")


@pytest.mark.parametrize(
    "strategy", ["single", "horovod", pytest.param("multiworker", marks=pytest.mark.cluster)]
)
def test_all_ranks_stop_at_the_same_step(fit, tmp_path, strategy):
    need(strategy)
    result = fit(tmp_path / "w", "--steps", 1000, "--strategy", strategy, **STILL)
    assert "stopped early: 2 validations without a lower RMSE" in result.stdout
    assert "9 steps; model" in result.stdout
    assert list(scores(tmp_path / "w")) == [3, 6, 9]
    if strategy == "single":
        again = fit(tmp_path / "w", "--steps", 1000, "--resume", **STILL)
        assert "9 steps; model" in again.stdout  # it had come to its end
        longer = fit(tmp_path / "w", "--steps", 1000, "--resume", **{**STILL, "run.patience": 3})
        assert "12 steps; model" in longer.stdout


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"run.validate_every": 0, "run.patience": 3}, "run.patience = 3 counts validations"),
        ({"run.validate_every": 0}, "optimizer.plateau.patience = 1 counts validations"),
        (
            {
                "run.validate_every": 0,
                "optimizer.plateau.patience": 0,
                "run.validation_patches": 3,
            },
            "run.validation_patches = 3 without run.validate_every",
        ),
        ({"run.ema": 1.0}, "run.ema: .*less than 1"),
        ({"optimizer.plateau.factor": 1.5}, "optimizer.plateau.factor: .*less than 1"),
        ({"optimizer.name": "nadamax"}, "optimizer.name: .*'nadam'"),
    ],
)
def test_wrong_settings(run_here, prepared, tmp_path, settings, message):
    result = run_here("fit", *arguments(prepared, tmp_path / "w", settings, "--steps", 3))
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert re.search(message, result.stderr), result.stderr
    assert not (tmp_path / "w").exists()
