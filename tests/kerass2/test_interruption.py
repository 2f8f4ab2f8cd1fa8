"""SIGUSR1 and SIGTERM on real runs; Slurm's part is played by an environment and a `scontrol`.

A real Slurm: tests/cluster.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from kerass2 import interruption
from strategies.cluster import Cluster
from strategies.single import SingleStrategy

STEPS = 80
SETTINGS = ("model.options.filters=8", "model.options.blocks=2", "run.precision=float32")
SETTINGS += ("run.global_batch=12", "run.log_every=1", "run.checkpoint_every=1000000")


def command(prepared: pathlib.Path, workdir: pathlib.Path, *more: str) -> list[str]:
    settings = [text for setting in SETTINGS for text in ("--set", setting)]
    options = ["--data", str(prepared), "--workdir", str(workdir), "--steps", str(STEPS)]
    return [sys.executable, "-m", "kerass2.fit", *options, *settings, *more]


def losses(workdir: pathlib.Path) -> dict[int, float]:
    """Step -> loss, of complete lines."""
    path = workdir / "log.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def send(number: int, arguments: list[str], workdir: pathlib.Path, **environ: str):
    """Run until some steps are done, send the signal; (exit code, stderr)."""
    process = subprocess.Popen(
        arguments, env={**os.environ, **environ}, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while len(losses(workdir)) < 10:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    return process.returncode, error


def checkpoints(workdir: pathlib.Path) -> list[int]:
    return sorted(int(path.stem.partition("-")[2]) for path in (workdir / "checkpoints").glob("*"))


@pytest.fixture
def scontrol(tmp_path) -> pathlib.Path:
    """A folder with a `scontrol` that writes down what it is told; it refuses job 13."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "scontrol"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {folder}/told\n'
        '[ "$2" != 13 ] || { echo "Job may not be requeued" >&2; exit 1; }\n'
    )
    program.chmod(0o755)
    return folder


def test_a_warned_run_goes_on_where_it_was(run_here, prepared, tmp_path, scontrol):
    """Bit for bit; started again by the same command, which says --overwrite."""
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    path = f"{scontrol}:{os.environ['PATH']}"
    again = command(prepared, broken, "--overwrite")
    code, error = send(signal.SIGUSR1, again, broken, SLURM_JOB_ID="77", PATH=path)
    assert code == 75, error
    assert (scontrol / "told").read_text() == "requeue 77\n"
    (done,) = checkpoints(broken)
    assert 10 <= done < STEPS
    assert f"SIGUSR1 after {done} steps: checkpoint written" in error
    assert "the job is back in the queue" in error
    assert not (broken / "model.keras").exists()
    restarted = subprocess.run(
        again,
        env={**os.environ, "SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert restarted.returncode == 0, restarted.stderr
    assert f"resuming after {done}" in restarted.stdout
    unbroken = run_here("fit", *command(prepared, whole)[3:])
    assert unbroken.returncode == 0, unbroken.stderr
    assert losses(broken) == losses(whole)
    for name in ("model.keras", "experiment.json"):
        assert (broken / name).exists()
    with (
        np.load(broken / "checkpoints" / f"step-{STEPS:08d}.npz") as one,
        np.load(whole / "checkpoints" / f"step-{STEPS:08d}.npz") as other,
    ):
        names = [name for name in one.files if name.startswith(("model/", "optimizer/"))]
        assert names
        for name in names:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 143)], ids=["USR1", "TERM"]
)
def test_two_local_ranks_save_and_end_together(prepared, tmp_path, number, code):
    """The launcher passes the signal on."""
    ranks = ["--strategy", "multiworker", "--workers", "2"]
    ended, error = send(number, command(prepared, tmp_path / "run", *ranks), tmp_path / "run")
    assert ended == code, error
    (done,) = checkpoints(tmp_path / "run")
    assert f"{number.name} after {done} steps: checkpoint written" in error
    assert "--resume goes on from there" in error
    assert "Traceback" not in error


def test_a_job_that_may_not_be_queued_again(monkeypatch, scontrol):
    monkeypatch.setenv("PATH", f"{scontrol}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    said = interruption.requeue()
    assert said == (
        "scontrol requeue 13 failed (Job may not be requeued): submit again with --resume"
    )


def test_no_scontrol(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert interruption.requeue().startswith("scontrol requeue 77 failed (")


def test_handlers_are_put_back():
    before = {number: signal.getsignal(number) for number in interruption.EXIT_CODES}
    with interruption.listen() as asked:
        assert not asked.pending
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.01)
        assert asked.pending
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize(
    ("come", "expected"),
    [
        ((), None),
        ((signal.SIGUSR1,), signal.SIGUSR1),
        ((signal.SIGTERM,), signal.SIGTERM),
        # Cancelled while it is saving for its time limit: it must not come back.
        ((signal.SIGUSR1, signal.SIGTERM), signal.SIGTERM),
    ],
)
def test_what_the_ranks_agree_on(come, expected):
    asked = interruption.Interruption()
    for number in come:
        asked.note(number)
    assert asked.agree(SingleStrategy(Cluster("none"))) == expected
