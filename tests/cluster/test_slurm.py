"""The repository's own batch files on a real Slurm of two nodes, against the same on this machine.

What a job does on two nodes must be what two local ranks do: weights to 1e-6 in their norm (over
all weights: one with a zero true gradient holds noise), pixels alike.
"""

from __future__ import annotations

import pathlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest
import rasterio
from local_slurm import NODES, ROOT, Slurm
from training import STEPS, TOLERANCE, distance, fit_here, logged_steps, options

pytestmark = pytest.mark.cluster

STRATEGIES = (pytest.param("horovod", marks=pytest.mark.horovod), "multiworker")
# Long enough to be interrupted, short enough to be awaited.
MANY_STEPS = 300


@pytest.fixture(autouse=True)
def ended_jobs(slurm) -> Iterator[None]:
    """A test that failed leaves no job in the next one's way."""
    yield
    slurm.end_jobs()


def wait_for_step(slurm: Slurm, job: str, workdir: pathlib.Path, step: int) -> None:
    """Wait until the running job has logged so many steps."""
    deadline = time.monotonic() + 240
    while not logged_steps(workdir) or logged_steps(workdir)[-1] < step:
        assert time.monotonic() < deadline, slurm.output(job)[-3000:]
        slurm.wait(job, "RUNNING", "PENDING", "CONFIGURING")
        time.sleep(0.1)


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
    out = ["-o", str(tmp_path / "one.tif")]
    command = ["-m", "kerass2.predict", str(reference), str(granule), *out]
    subprocess.run([sys.executable, *command], check=True, capture_output=True, timeout=300)
    slurm.wait(job, "COMPLETED")
    with rasterio.open(tmp_path / "nodes.tif") as nodes, rasterio.open(tmp_path / "one.tif") as one:
        assert nodes.profile["crs"] == one.profile["crs"]
        np.testing.assert_array_equal(nodes.read(), one.read())


def test_training_on_more_and_more_nodes(slurm, prepared, reference, tmp_path):
    command = ["slurm/scaling.sbatch", *options(prepared, tmp_path / "unused", STEPS)]
    job = slurm.submit(*command, STRATEGY="multiworker", NODES="1 2", WORKDIR=str(tmp_path))
    slurm.wait(job, "COMPLETED")
    said = re.findall(r"ranks +(\d), strategy multiworker", slurm.output(job))
    assert said == ["1", "2"]
    assert distance(reference, tmp_path / "nodes-1") <= 10 * TOLERANCE  # in one sum
    assert distance(reference, tmp_path / "nodes-2") <= TOLERANCE
    assert not (tmp_path / "unused").exists()


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


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory) -> pathlib.Path:
    """The work folder of two local ranks that nothing interrupts."""
    return fit_here(prepared, tmp_path_factory.mktemp("whole") / "run", MANY_STEPS)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_warned_job_is_queued_again_and_goes_on(slurm, prepared, whole, tmp_path, strategy):
    """The warning comes by hand; what a real time limit does: the test below."""
    workdir = tmp_path / "run"
    command = [f"slurm/fit_{strategy}.sbatch", *options(prepared, workdir, MANY_STEPS)]
    job = slurm.submit(*command)
    wait_for_step(slurm, job, workdir, 20)
    slurm.run("scancel", "--signal=USR1", job)
    slurm.wait(job, "PENDING", seconds=60)
    done = logged_steps(workdir)[-1]
    assert 20 <= done < MANY_STEPS, "it was warned too late to show anything"
    shown = slurm.wait(job, "COMPLETED", seconds=300)
    assert shown["Restarts"] == "1"
    assert "SIGUSR1 after" in slurm.output(job)
    assert f"resuming after {done}" in slurm.output(job)
    assert logged_steps(workdir) == list(range(1, MANY_STEPS + 1))
    assert distance(whole, workdir) <= TOLERANCE


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


@pytest.mark.parametrize(
    ("strategy", "node", "restarts"),
    [
        # The batch script lives on, sees srun fail, and puts the job back.
        pytest.param("horovod", list(NODES)[1], "1", marks=pytest.mark.horovod),
        # The batch script dies with its node: Slurm itself puts the job back.
        ("multiworker", next(iter(NODES)), "0"),
    ],
)
def test_a_job_waits_for_a_killed_node_and_goes_on(
    slurm, prepared, whole, tmp_path, strategy, node, restarts
):
    """From its last checkpoint, and to the weights of a run that nothing interrupts."""
    workdir = tmp_path / "run"
    often = ["--set", "run.checkpoint_every=10"]
    command = [f"slurm/fit_{strategy}.sbatch", *options(prepared, workdir, MANY_STEPS), *often]
    job = slurm.submit(*command, RESTARTS=restarts)
    wait_for_step(slurm, job, workdir, 20)
    slurm.kill_node(node)
    slurm.wait(job, "PENDING", seconds=120)
    assert logged_steps(workdir)[-1] < MANY_STEPS, "it was killed too late to show anything"
    slurm.start_node(node)
    assert slurm.wait(job, "COMPLETED", seconds=300)["Restarts"] == "1"
    assert re.search(r"resuming after \d+0\n", slurm.output(job))
    assert logged_steps(workdir) == list(range(1, MANY_STEPS + 1))
    assert distance(whole, workdir) <= TOLERANCE


@pytest.mark.mpi
@pytest.mark.horovod
def test_horovod_over_mpi_on_two_nodes(slurm, prepared, reference, tmp_path):
    """By srun's PMIx, as slurm/env.juwels.sh has it.

    The port where ranks would meet without MPI is taken: nothing else can have connected them.
    """
    if not _is_built_with_mpi():
        pytest.skip("Horovod is built without MPI here")
    if "pmix" not in slurm.run("sh", "-c", "srun --mpi=list 2>&1").split():
        pytest.skip("srun has no PMIx here")
    with socket.create_server(("", 0)) as other:
        job = slurm.submit(
            "slurm/fit_horovod.sbatch",
            *options(prepared, tmp_path / "run", STEPS),
            SLURM_MPI_TYPE="pmix",
            KERASS2_PORT=str(other.getsockname()[1]),
            # Open MPI leaves this interface out, and both nodes are on one machine.
            OMPI_MCA_btl_tcp_if_include="lo",
        )
        slurm.wait(job, "COMPLETED")
    assert "ranks  2, strategy horovod" in slurm.output(job)
    assert distance(reference, tmp_path / "run") <= TOLERANCE


def _is_built_with_mpi() -> bool:
    """Asked in a process of its own: Horovod keeps state."""
    code = "import horovod.tensorflow as hvd, sys; sys.exit(not hvd.mpi_built())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_taken_port_ends_the_job_before_the_first_step(slurm, prepared, tmp_path):
    with socket.create_server(("", 0)) as other:
        port = str(other.getsockname()[1])
        command = ["slurm/fit_multiworker.sbatch", *options(prepared, tmp_path / "run", STEPS)]
        job = slurm.submit(*command, KERASS2_PORT=port, KERASS2_START_SECONDS="5")
        slurm.wait(job, "FAILED")
    assert re.search(rf"^error: port {port} is taken on ", slurm.output(job), re.MULTILINE)
    assert not (tmp_path / "run").exists()


def check_shards(folder: pathlib.Path, expected: pathlib.Path) -> None:
    """All shards are the same, byte for byte."""
    names = {path.relative_to(expected) for path in expected.rglob("*.tfrecord")}
    assert names == {path.relative_to(folder) for path in folder.rglob("*.tfrecord")} != set()
    for name in names:
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name


def test_prepare_on_two_nodes_equals_one_machine(slurm, prepared, tmp_path):
    granule = prepared.parent / "granule"
    command = ["slurm/prepare_dask.sbatch", str(granule), "-o", str(tmp_path / "set")]
    slurm.wait(slurm.submit(*command), "COMPLETED")
    check_shards(tmp_path / "set", prepared)


def test_prepare_by_dask_jobqueue_equals_one_machine(slurm, prepared, tmp_path):
    """CONTRIBUTING's own lines, with workers that fit these nodes."""
    pytest.importorskip("dask_jobqueue", reason="no dask-jobqueue here")
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (code,) = re.findall(r"```python\n(from dask_jobqueue.+?)```", text, re.DOTALL)
    size = 'cores=24, processes=24, memory="24GB"'
    assert size in code and "scale(jobs=4)" in code
    code = code.replace(size, 'cores=1, processes=1, memory="1GB"').replace("jobs=4", "jobs=2")
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=slurm.environment,
        cwd=tmp_path,
    ) as cluster:
        address = cluster.stdout.readline().strip()
        granule, out = str(prepared.parent / "granule"), str(tmp_path / "set")
        prepare = ["-m", "kerass2.prepare", granule, "-o", out, "--dask", address]
        done = subprocess.run(
            [sys.executable, *prepare], cwd=ROOT, capture_output=True, text=True, timeout=200
        )
        jobs = slurm.run("squeue", "--noheader", "--format=%j %t").splitlines()
        cluster.communicate("\n", timeout=60)
    assert done.returncode == 0, done.stderr[-3000:]
    assert cluster.returncode == 0
    assert [job.split()[0] for job in jobs] == ["dask-worker"] * 2
    check_shards(tmp_path / "set", prepared)


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
