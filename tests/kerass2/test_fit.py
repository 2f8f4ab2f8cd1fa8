"""kerass2.fit as a user runs it.

Real processes, files left behind, the same weights by every road, clear refusals.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from data_pipelines import synthetic
from data_pipelines.spec import DataError
from kerass2 import checkpoint, config, evaluate
from kerass2.fit import fit as run_fit
from kerass2.job import check
from strategies import launch
from strategies.cluster import Cluster
from strategies.single import SingleStrategy

TINY = (
    "--set",
    "model.options.filters=8",
    "--set",
    "model.options.blocks=2",
    "--set",
    "run.precision=float32",
)
SHORT = (
    *TINY,
    "--set=run.global_batch=12",
    "--set=run.log_every=1",
    "--set=run.checkpoint_every=4",
)
STEPS = 30
STRATEGIES = ("single", "horovod", "multiworker")


def one_of_two(name: str) -> list:
    """Single and this strategy in `make test`, the other in `make test-cluster`."""
    (other,) = set(STRATEGIES[1:]) - {name}
    return ["single", name, pytest.param(other, marks=pytest.mark.cluster)]


def need(strategy: str) -> None:
    if strategy == "horovod":
        pytest.importorskip("horovod", reason="Horovod is not built here")


def weights(workdir: pathlib.Path) -> np.ndarray:
    """All weights of the newest checkpoint in one vector."""
    path = max((workdir / "checkpoints").glob("step-*.npz"))
    with np.load(path) as file:
        return np.concatenate(
            [file[name].ravel() for name in sorted(file.files) if name.startswith("model/")]
        )


def log_lines(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


def fit(run_lightly, prepared, workdir, *arguments, **environment):
    return run_lightly(
        "fit", "--data", prepared, "--workdir", workdir, *SHORT, *arguments, **environment
    )


@pytest.fixture(scope="module")
def trained(run_lightly, prepared, tmp_path_factory):
    """Strategy -> workdir after STEPS steps, the same experiment by each."""
    folders = {}

    def train(strategy: str) -> pathlib.Path:
        need(strategy)
        if strategy not in folders:
            folder = tmp_path_factory.mktemp(strategy) / "work"
            result = fit(run_lightly, prepared, folder, "--steps", STEPS, "--strategy", strategy)
            assert result.returncode == 0, result.stderr
            folders[strategy] = folder, result
        return folders[strategy]

    return train


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_leaves_everything_in_the_workdir(trained, strategy):
    workdir, result = trained(strategy)
    names = {path.name for path in workdir.iterdir()}
    assert names == {
        "experiment.json",
        "data.json",
        "log.jsonl",
        "tensorboard",
        "checkpoints",
        "model.keras",
    }
    lines = [line for line in log_lines(workdir) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert all(
        line.keys() == {"step", "loss", "learning_rate", "patches_per_second", "seconds"}
        for line in lines
    )
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert any((workdir / "tensorboard").glob("events.out.tfevents.*"))
    ranks = 1 if strategy == "single" else 2
    assert f"ranks  {ranks}, strategy {strategy}" in result.stdout
    assert f"12 patches a step, {12 // ranks} on each rank" in result.stdout
    assert f"{STEPS}/{STEPS}" in result.stdout


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_ranks_give_the_weights_of_one_process(trained, strategy):
    one, two = weights(trained("single")[0]), weights(trained(strategy)[0])
    assert np.linalg.norm(two - one) / np.linalg.norm(one) <= 1e-5
    losses = [
        [line["loss"] for line in log_lines(trained(s)[0]) if "loss" in line]
        for s in ("single", strategy)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_the_saved_experiment_is_resolved(trained):
    values = json.loads((trained("single")[0] / "experiment.json").read_text())
    assert values["run"]["global_batch"] == 12
    assert values["run"]["precision"] == "float32"
    assert "strategy" not in json.dumps(values)


def start(prepared, workdir, *arguments) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "kerass2.fit",
        "--data",
        str(prepared),
        "--workdir",
        str(workdir),
        *SHORT,
    ]
    return subprocess.Popen([*command, *map(str, arguments)], stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_resume_after_kill_gives_the_unbroken_weights(
    trained, run_command, prepared, tmp_path, strategy
):
    unbroken, broken = trained(strategy)[0], tmp_path / "broken"
    process = start(prepared, broken, "--steps", STEPS, "--strategy", strategy)
    step = random.Random(os.urandom(8)).randint(5, 25)
    deadline = time.monotonic() + 120
    while (
        not (broken / "log.jsonl").exists()
        or len((broken / "log.jsonl").read_text().splitlines()) < step
    ):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (broken / "model.keras").exists()
    # Experiment and data are those that the run was begun with.
    resumed = run_command("fit", "--workdir", broken, "--resume", "--strategy", strategy)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after" in resumed.stdout
    found, expected = weights(broken), weights(unbroken)
    if strategy == "single":
        np.testing.assert_array_equal(found, expected)
    else:
        assert np.linalg.norm(found - expected) / np.linalg.norm(expected) <= 1e-6
    steps = [line["step"] for line in log_lines(broken) if "loss" in line]
    assert steps == list(range(1, STEPS + 1))


@pytest.mark.parametrize("strategy", one_of_two("horovod"))
def test_max_time_ends_all_ranks_at_the_same_step(run_lightly, prepared, tmp_path, strategy):
    need(strategy)
    begin = time.monotonic()
    result = fit(
        run_lightly,
        prepared,
        tmp_path / "w",
        "--steps",
        10**6,
        "--max-time",
        "2s",
        "--strategy",
        strategy,
    )
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - begin < 90
    assert (tmp_path / "w" / "model.keras").exists()
    last = log_lines(tmp_path / "w")[-1]
    assert "validation_rmse" in last
    assert f"{last['step']} steps" in result.stdout


@pytest.mark.parametrize("strategy", one_of_two("multiworker"))
def test_a_loss_that_is_not_finite_stops_all_ranks(run_lightly, prepared, tmp_path, strategy):
    need(strategy)
    explode = (
        "--set",
        "optimizer.name=sgd",
        "--set",
        "optimizer.schedule=constant",
        "--set",
        "run.checkpoint_every=1",
    )
    result = fit(
        run_lightly,
        prepared,
        tmp_path / "w",
        "--steps",
        50,
        "--strategy",
        strategy,
        *explode,
        "--set",
        "optimizer.learning_rate=1e3",
    )
    assert result.returncode == 1, result.stderr
    assert re.search(r"error: the (loss|gradient norm) is", result.stderr.splitlines()[-1])
    step = int(result.stderr.rsplit("at step ", 1)[1].split(";")[0])
    # The weights after step - 1 gave what is not finite: good are those before.
    saved = [path.name for path in (tmp_path / "w" / "checkpoints").iterdir()]
    assert step > 2
    assert saved == [f"step-{step - 2:08d}.npz"]
    assert np.isfinite(weights(tmp_path / "w")).all()
    assert not (tmp_path / "w" / "model.keras").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["superes"], 2, "unknown experiment 'superes'.*dsen2_20m.*superres_20m"),
        (["--strategy", "ring"], 2, "'single', 'horovod', 'multiworker'"),
        (["--set", "run.globel_batch=4"], 2, "unknown key 'run.globel_batch'.*run.global_batch"),
        (["--set", "run.seed=first"], 2, "run.seed.*integer.*found 'first'"),
        (["--set", "run.local_batch=4"], 2, "run.global_batch is 12 and run.local_batch is 4"),
        (["--set", "model.name=s3x"], 2, "unknown model 's3x'.*dsen2.*s2x"),
        (["--set", "model.options.depth=3"], 2, "no option depth.*filters"),
        (["--set", "loss=l3"], 2, "unknown loss 'l3'.*l1"),
        (["--set", "optimizer.schedule=step"], 2, "unknown schedule 'step'.*modified_linear"),
        (["--set", "optimizer.options.speed=3"], 2, "optimizer.*speed"),
        (["--set", 'data.augment=["rotate"]'], 2, "rotate.*dihedral"),
        (["--set", "model.name=bicubic"], 2, "no weights to train"),
        (["--set", "data.task=superres_60m"], 1, "superres_20m: input gsd10.*needs superres_60m"),
        (["--steps", "3", "--epochs", "2"], 2, "--epochs 2 and --steps 3"),
        (["--resume", "--overwrite"], 2, "exclude each other"),
        (["--max-time", "soon"], 2, "'soon' is no duration"),
        (
            ["--strategy", "multiworker", "--workers", "5"],
            2,
            "batch of 12 cannot be shared by 5 ranks.*10 or 15",
        ),
        (["--strategy", "single", "--workers", "2"], 2, "--workers 2 with --strategy single"),
        (["--set", "run.global_batch=100000"], 1, "100000"),
        (["--data", "nowhere"], 1, "nowhere"),
    ],
)
def test_wrong_command_lines(run_here, prepared, tmp_path, arguments, code, message):
    result = fit(run_here, prepared, tmp_path / "w", *arguments)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert re.search(message, result.stderr.replace("\n", " ")), result.stderr
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("argument", "code", "message"),
    [("superes", 2, "unknown experiment 'superes'"), ("--data=nowhere", 1, "error: nowhere")],
)
def test_a_wrong_command_line_ends_the_process(
    run_command, prepared, tmp_path, argument, code, message
):
    result = fit(run_command, prepared, tmp_path / "w", argument)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_results_are_kept_unless_asked(trained, run_lightly, prepared, tmp_path):
    workdir = tmp_path / "w"
    shutil.copytree(trained("single")[0], workdir)
    before = weights(workdir)
    same = fit(run_lightly, prepared, workdir, "--steps", STEPS)
    assert same.returncode == 1
    assert "--resume to go on, or --overwrite" in same.stderr
    other = fit(run_lightly, prepared, workdir, "--steps", STEPS, "--set", "loss=l2")
    assert other.returncode == 1
    assert "another experiment (loss: l1 there, l2 here)" in other.stderr
    np.testing.assert_array_equal(weights(workdir), before)
    # What may change on the way: the length, what is kept, the parts of a batch.
    more = ("--resume", "--keep", 3, "--set", "run.accumulation_steps=2")
    resumed = fit(run_lightly, prepared, workdir, "--steps", STEPS + 2, *more)
    assert resumed.returncode == 0, resumed.stderr
    found = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    assert found == [f"step-{step:08d}.npz" for step in (28, STEPS, STEPS + 2)]
    again = fit(run_lightly, prepared, workdir, "--steps", 2, "--overwrite")
    assert again.returncode == 0, again.stderr
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["step-00000002.npz"]


def damage(folder: pathlib.Path, how: str) -> None:
    shard = next(folder.glob("train-*.tfrecord"))
    data = bytearray(shard.read_bytes())
    if how == "flipped":
        for position in range(1000, len(data), 5000):  # some byte of every record
            data[position] ^= 0x10
        shard.write_bytes(data)
    elif how == "cut":
        shard.write_bytes(data[:-100])
    else:
        shard.unlink()


# What is cut or missing is found before ranks are started: the same by any strategy.
@pytest.mark.parametrize(
    ("how", "strategy"),
    [("flipped", "single"), ("flipped", "multiworker"), ("cut", "single"), ("missing", "single")],
)
def test_a_damaged_shard_is_named(run_lightly, prepared, tmp_path, how, strategy):
    shutil.copytree(prepared, tmp_path / "data")
    damage(tmp_path / "data", how)
    result = fit(
        run_lightly, tmp_path / "data", tmp_path / "w", "--steps", 5, "--strategy", strategy
    )
    assert result.returncode == 1, result.stderr
    last = result.stderr.splitlines()[-1]
    assert "error:" in last
    assert "train-00000-00000.tfrecord" in last
    assert how != "flipped" or "record" in last
    assert not (tmp_path / "w" / "model.keras").exists()


def test_more_workers_than_cores_is_said(run_here, prepared, tmp_path, monkeypatch):
    workers = len(os.sched_getaffinity(0)) + 1
    monkeypatch.setattr(launch, "run", lambda command, **options: options["workers"])
    chosen = ("--strategy", "multiworker", "--workers", workers)
    batch = ("--set", f"run.global_batch={workers}")
    result = fit(run_here, prepared, tmp_path / "w", "--steps", 2, *chosen, *batch)
    assert result.returncode == workers
    assert f"warning: {workers} workers share {workers - 1} cores" in result.stderr


def test_resume_refuses_other_data(trained, run_command, run_here, granule_folder, tmp_path):
    workdir, other = tmp_path / "w", tmp_path / "other"
    shutil.copytree(trained("single")[0], workdir)
    made = run_command("prepare", granule_folder, "-o", other, "--seed", 1, "--stride", 24)
    assert made.returncode == 0, made.stderr
    given = ("--workdir", workdir, "--data", other, "--resume", "--steps", STEPS + 2)
    result = run_here("fit", *given)
    assert result.returncode == 1
    assert f"{workdir} was begun with other data" in result.stderr
    assert (workdir / "model.keras").exists()


@pytest.mark.parametrize("strategy", ["single", "multiworker"])
def test_a_product_trains_as_what_is_prepared_of_it(
    trained, run_lightly, granule_folder, tmp_path, strategy
):
    """It fits into the buffer, so that the order is the same, too."""
    workdir, cache = tmp_path / "w", {"KERASS2_CACHE": str(tmp_path / "cache")}
    chosen = ("--strategy", strategy)
    result = fit(run_lightly, granule_folder, workdir, "--steps", STEPS, *chosen, **cache)
    assert result.returncode == 0, result.stderr
    assert f"{granule_folder}, cut as it is read (SYNTHETIC: MADE UP" in result.stdout
    assert len(list((tmp_path / "cache" / "surveys").iterdir())) == 1
    expected = weights(trained(strategy)[0])
    assert np.linalg.norm(weights(workdir) - expected) / np.linalg.norm(expected) <= 1e-6
    if strategy == "single":
        scores = run_lightly("evaluate", workdir, "--json", **cache)
        assert scores.returncode == 0, scores.stderr
        found = json.loads(scores.stdout)
        assert found["synthetic"] is True
        assert found["data"] == str(granule_folder)
        assert found["patches"] > 0


def test_a_product_that_has_changed_is_other_data(granule_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("KERASS2_CACHE", str(tmp_path / "cache"))
    product = shutil.copytree(granule_folder, tmp_path / "product")
    experiment = config.override(config.load("dsen2_20m_compact"), ["run.global_batch=4"])
    arguments = {"overwrite": False, "max_seconds": math.inf}
    job = check(experiment, str(product), tmp_path / "w", resume=False, **arguments)
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "data.json").write_text(json.dumps(job.describe_data()))
    again = check(experiment, None, tmp_path / "w", resume=True, **arguments)
    assert again.data.digest == job.data.digest
    assert again.data.path == product
    other = synthetic.write_granule(tmp_path / "other", 768, seed=4)
    with pytest.raises(DataError, match="was begun with other data"):
        check(experiment, str(other), tmp_path / "w", resume=True, **arguments)
    with pytest.raises(DataError, match="not of a known kind"):
        check(experiment, str(tmp_path / "cache"), tmp_path / "v", resume=False, **arguments)


def test_a_resumed_run_drops_what_its_old_weights_made(trained, run_lightly, prepared, tmp_path):
    workdir = tmp_path / "w"
    shutil.copytree(trained("single")[0], workdir)
    (workdir / "evaluation.json").write_text("{}")
    result = run_lightly("fit", "--workdir", workdir, "--resume", "--steps", STEPS + 1)
    assert result.returncode == 0, result.stderr
    assert not (workdir / "evaluation.json").exists()
    assert (workdir / "model.keras").exists()


@pytest.mark.parametrize(
    ("precision", "strategy"),
    [
        ("bfloat16", "single"),
        ("float16", "single"),
        pytest.param("float16", "horovod", marks=pytest.mark.cluster),
        pytest.param("float16", "multiworker", marks=pytest.mark.cluster),
        pytest.param("bfloat16", "horovod", marks=pytest.mark.cluster),
        pytest.param("bfloat16", "multiworker", marks=pytest.mark.cluster),
    ],
)
def test_low_precision_trains_and_resumes(run_lightly, prepared, tmp_path, precision, strategy):
    need(strategy)
    chosen = ("--strategy", strategy, "--set", f"run.precision={precision}")
    result = fit(run_lightly, prepared, tmp_path / "w", "--steps", 4, *chosen)
    assert result.returncode == 0, result.stderr
    assert f"parameters, {precision}" in result.stdout
    assert np.isfinite(weights(tmp_path / "w")).all()
    if precision == "bfloat16":  # its checkpoints are those of float32
        return
    resumed = run_lightly("fit", "--workdir", tmp_path / "w", "--resume", "--steps", 6, *chosen)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after 4" in resumed.stdout
    assert np.isfinite(weights(tmp_path / "w")).all()
    assert f"parameters, {precision}" in resumed.stdout


class Recording(SingleStrategy):
    """Notes when statistics are averaged."""

    def __init__(self, calls: list[str]) -> None:
        super().__init__(Cluster("none"))
        self.calls = calls

    def average_statistics(self, model) -> None:
        self.calls.append("average")


def test_statistics_are_averaged_before_each_checkpoint(prepared, tmp_path, monkeypatch):
    calls: list[str] = []
    real = checkpoint.Writer.save
    monkeypatch.setattr(
        checkpoint.Writer, "save", lambda *a, **k: (calls.append("save"), real(*a, **k))[1]
    )
    monkeypatch.setattr(
        evaluate, "evaluate_model", lambda *a, **k: calls.append("evaluate") or SCORES
    )
    job = small_job(prepared, tmp_path)
    run_fit(job, Recording(calls))
    assert calls == ["average", "save", "average", "save", "evaluate"]


SCORES = {"methods": {name: {"rmse": {"mean": 1.0}} for name in ("model", "bicubic")}}


def small_job(prepared: pathlib.Path, workdir: pathlib.Path, *settings: str, **options):
    chosen = ("model.options.filters=8", "model.options.blocks=1", "run.precision=float32")
    chosen += ("run.steps=3", "run.checkpoint_every=2", "run.global_batch=4", *settings)
    experiment = config.override(config.load("dsen2_20m_compact"), chosen)
    given = {"overwrite": False, "resume": False, "max_seconds": math.inf, **options}
    return check(experiment, str(prepared), workdir, **given)


def test_a_signal_in_the_last_validation_does_not_end_it(prepared, tmp_path, monkeypatch, capsys):
    def score(*args, **kwargs):
        assert (tmp_path / "model.keras").exists()
        os.kill(os.getpid(), signal.SIGUSR1)
        return SCORES

    monkeypatch.setattr(evaluate, "evaluate_model", score)
    run_fit(small_job(prepared, tmp_path), SingleStrategy(Cluster("none")))
    said = capsys.readouterr()
    assert "SIGUSR1 came after the last step: the run is complete" in said.err
    assert "3 steps; model:" in said.out
    assert log_lines(tmp_path)[-1]["validation_rmse"] == 1.0


def test_a_restarted_job_goes_on_with_its_own_run_only(run_here, prepared, trained, tmp_path):
    workdir = tmp_path / "w"
    shutil.copytree(trained("single")[0], workdir)
    data = json.loads((workdir / "data.json").read_text())
    (workdir / "data.json").write_text(json.dumps({**data, "job": "50"}))
    given = ("--data", prepared, "--workdir", workdir, *SHORT)
    for job, restarts in (("77", "1"), ("50", "0")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_JOB_ID", job)
            patch.setenv("SLURM_RESTART_COUNT", restarts)
            result = run_here("fit", *given, "--steps", STEPS)
        assert result.returncode == 1
        assert "--resume to go on, or --overwrite" in result.stderr
