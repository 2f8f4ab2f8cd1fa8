"""The repository's own batch files on a real Slurm of two nodes, against the same on this machine.

What a job does on two nodes must be what two local ranks do: weights to 1e-6 in their norm (over
all weights: one with a zero true gradient holds noise), pixels alike.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
import rasterio
from local_slurm import NODES, ROOT, Slurm

pytestmark = pytest.mark.cluster

STRATEGIES = (pytest.param("horovod", marks=pytest.mark.horovod), "multiworker")
TOLERANCE = 1e-6
STEPS = 6
# Long enough to be interrupted, short enough to be awaited.
MANY_STEPS = 600
SETTINGS = {
    "model.options.filters": 8,
    "model.options.blocks": 2,
    "run.precision": "float32",
    "run.global_batch": 12,
    "run.log_every": 1,
}


def options(data: pathlib.Path, workdir: pathlib.Path, steps: int) -> list[str]:
    """Of kerass2.fit."""
    settings = [text for key, value in SETTINGS.items() for text in ("--set", f"{key}={value}")]
    return ["--data", str(data), "--workdir", str(workdir), "--steps", str(steps), *settings]


def fit_here(data: pathlib.Path, workdir: pathlib.Path, steps: int) -> pathlib.Path:
    """Train with two local ranks."""
    ranks = ["--strategy", "multiworker", "--workers", "2"]
    command = [sys.executable, "-m", "kerass2.fit", *ranks, *options(data, workdir, steps)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir


def distance(one: pathlib.Path, other: pathlib.Path) -> float:
    """||w1 - w2|| / ||w1|| over all weights of two work folders' newest checkpoints."""
    flat = []
    for workdir in (one, other):
        with np.load(max((workdir / "checkpoints").glob("step-*.npz"))) as file:
            names = sorted(name for name in file.files if name.startswith("model/"))
            flat.append(np.concatenate([np.ravel(file[name]) for name in names]))
    return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[0]))


def logged_steps(workdir: pathlib.Path) -> list[int]:
    """Steps that log.jsonl has a loss of, in its order."""
    path = workdir / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [value["step"] for value in map(json.loads, lines) if "loss" in value]


def wait_for_step(slurm: Slurm, job: str, workdir: pathlib.Path, step: int) -> None:
    """Wait until the running job has logged so many steps."""
    deadline = time.monotonic() + 240
    while not logged_steps(workdir) or logged_steps(workdir)[-1] < step:
        assert time.monotonic() < deadline, slurm.output(job)[-3000:]
        slurm.wait(job, "RUNNING", "PENDING", "CONFIGURING")
        time.sleep(0.1)


@pytest.fixture(scope="module")
def reference(prepared, tmp_path_factory) -> pathlib.Path:
    """The work folder of two local ranks."""
    return fit_here(prepared, tmp_path_factory.mktemp("local") / "run", STEPS)


def test_every_rank_knows_its_place(slurm, tmp_path):
    """Which nodes' names mean what: by Slurm's own scontrol, and each node's own /etc/hosts."""
    code = (
        "import os, socket; from strategies.cluster import detect; c = detect(os.environ); "
        "print(c.rank, c.world_size, c.local_rank, c.local_size, *c.hosts, c.job, "
        "*[socket.gethostbyname(h) for h in c.hosts], os.environ['SLURMD_NODENAME'])"
    )
    script = tmp_path / "place.sbatch"
    sruns = "".join(
        f'srun --ntasks-per-node=2 --distribution={way} {sys.executable} -c "{code}"\n'
        for way in ("block", "cyclic")
    )
    script.write_text(f"#!/bin/bash\nscontrol show hostnames\n{sruns}")
    job = slurm.submit("--ntasks-per-node=2", str(script))
    slurm.wait(job, "COMPLETED")
    lines = [x for x in slurm.output(job).splitlines() if not x.startswith("srun: ")]
    one, two = NODES
    assert lines[:2] == [one, two]
    for step, (way, lines_of_step) in enumerate(
        [((one, one, two, two), lines[2:6]), ((one, two, one, two), lines[6:])]
    ):
        ranks = [line.split() for line in sorted(lines_of_step)]
        addresses = [NODES[node] for node in way]
        for rank, words in enumerate(ranks):
            local = way[:rank].count(way[rank])
            expected = [*map(str, (rank, 4, local, 2)), *way, f"{job}.{step}", *addresses]
            assert words == [*expected, way[rank]]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_fit_on_two_nodes_equals_two_local_ranks(slurm, prepared, reference, tmp_path, strategy):
    job = slurm.submit(f"slurm/fit_{strategy}.sbatch", *options(prepared, tmp_path / "run", STEPS))
    slurm.wait(job, "COMPLETED")
    assert f"ranks  2, strategy {strategy}" in slurm.output(job)
    assert distance(reference, tmp_path / "run") <= TOLERANCE


def test_predict_on_two_nodes_equals_one_process(slurm, prepared, reference, tmp_path):
    granule = prepared.parent / "granule"
    job = slurm.submit(
        "slurm/predict.sbatch",
        *(str(reference), str(granule), "-o", str(tmp_path / "nodes.tif")),
        STRATEGY="multiworker",
    )
    command = [
        "-m",
        "kerass2.predict",
        str(reference),
        "synthetic",
        "-o",
        str(tmp_path / "one.tif"),
    ]
    subprocess.run([sys.executable, *command], check=True, capture_output=True, timeout=300)
    slurm.wait(job, "COMPLETED")
    with rasterio.open(tmp_path / "nodes.tif") as nodes, rasterio.open(tmp_path / "one.tif") as one:
        assert nodes.profile["crs"] == one.profile["crs"]
        np.testing.assert_array_equal(nodes.read(), one.read())


def test_a_cancelled_job_saves_ends_and_stays_away(slurm, prepared, tmp_path):
    workdir = tmp_path / "run"
    job = slurm.submit("slurm/fit_multiworker.sbatch", *options(prepared, workdir, 10**6))
    wait_for_step(slurm, job, workdir, 5)
    slurm.run("scancel", job)
    begin = time.monotonic()
    while slurm.run("squeue", "--noheader", "--jobs", job, check=False):
        assert time.monotonic() - begin < 30
        time.sleep(0.2)
    assert slurm.show(job)["JobState"] == "CANCELLED"
    assert "checkpoint written" in slurm.output(job)
    assert list((workdir / "checkpoints").iterdir())
    running = subprocess.run(["pgrep", "-f", str(workdir)], capture_output=True, check=False)
    assert running.stdout == b""


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_warned_job_is_queued_again_and_goes_on(slurm, prepared, tmp_path, strategy):
    """The warning comes by hand; what a real time limit does: the test below."""
    whole = fit_here(prepared, tmp_path / "whole", MANY_STEPS)
    workdir = tmp_path / "run"
    command = [f"slurm/fit_{strategy}.sbatch", *options(prepared, workdir, MANY_STEPS)]
    job = slurm.submit(*command)
    wait_for_step(slurm, job, workdir, 20)
    slurm.run("scancel", "--signal=USR1", job)
    slurm.wait(job, "PENDING", seconds=60)
    done = logged_steps(workdir)[-1]
    assert 20 <= done < MANY_STEPS, "it was warned too late to show anything"
    # Slurm lets a job wait for two minutes before it starts it again.
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    shown = slurm.wait(job, "COMPLETED", seconds=300)
    assert shown["Restarts"] == "1"
    assert "SIGUSR1 after" in slurm.output(job)
    assert f"resuming after {done}" in slurm.output(job)
    assert logged_steps(workdir) == list(range(1, MANY_STEPS + 1))
    assert distance(whole, workdir) <= TOLERANCE


@pytest.mark.slow
def test_the_time_limit_warns(slurm, prepared, tmp_path):
    """Of two minutes; Slurm warns up to a minute earlier than it is told to."""
    workdir = tmp_path / "run"
    limit = ["--time=2", "--signal=USR1@45"]
    command = ["slurm/fit_multiworker.sbatch", *options(prepared, workdir, 10**6)]
    job = slurm.submit(*limit, *command)
    wait_for_step(slurm, job, workdir, 1)
    shown = slurm.wait(job, "PENDING", seconds=150)
    assert shown["Restarts"] == "1"
    assert "the job is back in the queue" in slurm.output(job)


def test_prepare_on_two_nodes_equals_one_machine(slurm, prepared, tmp_path):
    """The manifest has the checksums of all shards."""
    granule = prepared.parent / "granule"
    command = ["slurm/prepare_dask.sbatch", str(granule), "-o", str(tmp_path / "set")]
    job = slurm.submit(*command)
    slurm.wait(job, "COMPLETED")
    files = {path.relative_to(prepared) for path in prepared.rglob("*.tfrecord")}
    assert files
    for path in files:
        assert (tmp_path / "set" / path).read_bytes() == (prepared / path).read_bytes(), path


@pytest.mark.horovod
def test_the_doctor_sees_both_nodes(slurm, tmp_path):
    script = tmp_path / "doctor.sbatch"
    script.write_text(
        f"#!/bin/bash\nsrun {sys.executable} -m kerass2.doctor --strategy horovod --mebibytes 1\n"
    )
    job = slurm.submit(str(script))
    slurm.wait(job, "COMPLETED", "FAILED")
    output = slurm.output(job)
    for rank, node in enumerate(NODES):
        assert f"rank {rank}  {node} local 0" in output
    assert "1 MiB" in output and "right" in output and "WRONG" not in output
