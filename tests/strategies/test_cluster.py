"""Captured environments -> the place of a process in its job."""

from __future__ import annotations

import json

import hypothesis
import pytest
from hypothesis import strategies as st

from strategies.base import StrategyError
from strategies.cluster import (
    FIRST_PORT,
    NUM_PORTS,
    Cluster,
    detect,
    expand_hosts,
    expand_nodelist,
    num_restarts,
    requeue_command,
)

TF_CONFIG = json.dumps(
    {
        "cluster": {"worker": ["a:1", "a:2", "b:1"]},
        "task": {"type": "worker", "index": 1},
    }
)
HOROVODRUN = {
    "HOROVOD_RANK": "3",
    "HOROVOD_SIZE": "4",
    "HOROVOD_LOCAL_RANK": "1",
    "HOROVOD_LOCAL_SIZE": "2",
    "HOROVOD_GLOO_RENDEZVOUS_PORT": "4711",
}
OPENMPI = {  # mpirun (Open MPI 4.1) -np 2 on one host
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "3520790529",
}
BATCH_SCRIPT = {  # the script of an sbatch job, outside srun
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NODELIST": "jwb[0001-0002]",
    "SLURM_PROCID": "0",
    "SLURM_NTASKS": "3",
}
SRUN = BATCH_SCRIPT | {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "jwb[0001-0002]",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
}
# Slurm 22.05, srun -N2 --ntasks-per-node=2: rank 3; and with --distribution=cyclic: rank 1.
CAPTURED = {
    "SLURM_DISTRIBUTION": "block",
    "SLURM_JOB_ID": "1",
    "SLURM_JOB_NODELIST": "kn[1-2]",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "kn[1-2]",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
CYCLIC = CAPTURED | {
    "SLURM_DISTRIBUTION": "cyclic",
    "SLURM_LOCALID": "0",
    "SLURM_PROCID": "1",
    "SLURM_STEP_ID": "1",
}
PMI2 = {"PMI_RANK": "3", "PMI_SIZE": "4", "PMI_FD": "11", "PMI_JOBID": "1.2"}
JSRUN = {  # by LSF's and jsrun's documentation: two nodes of two ranks behind a launch node
    "JSM_NAMESPACE_RANK": "2",
    "JSM_NAMESPACE_SIZE": "4",
    "JSM_NAMESPACE_LOCAL_RANK": "0",
    "JSM_NAMESPACE_LOCAL_SIZE": "2",
    "LSB_JOBID": "4711",
    "LSB_MCPU_HOSTS": "login1 1 c460c01 20 c460c02 20 ",
}
HYDRA = {  # mpiexec.hydra -n 2
    "PMI_RANK": "1",
    "PMI_SIZE": "2",
    "MPI_LOCALRANKID": "1",
    "MPI_LOCALNRANKS": "2",
}
TWO_ON_TWO = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
CHIEF = json.dumps(
    {"cluster": {"chief": ["a:1"], "worker": ["b:1"]}, "task": {"type": "worker", "index": 0}}
)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Cluster("none")),
        (BATCH_SCRIPT, Cluster("none")),
        (
            {"TF_CONFIG": TF_CONFIG},
            Cluster("tf_config", 1, 3, 1, 2, ("a", "a", "b"), "a:1,a:2,b:1"),
        ),
        (HOROVODRUN, Cluster("horovodrun", 3, 4, 1, 2, job="horovod:4711")),
        (
            HOROVODRUN | {"KERASS2_HOSTS": "h1:2,h2:2"},
            Cluster("horovodrun", 3, 4, 1, 2, ("h1", "h1", "h2", "h2"), "horovod:4711"),
        ),
        ({"TF_CONFIG": CHIEF}, Cluster("tf_config", 1, 2, 0, 1, ("a", "b"), "a:1,b:1")),
        (OPENMPI, Cluster("openmpi", 1, 2, 1, 2, job="3520790529", mpi=True)),
        (
            TWO_ON_TWO | {"KERASS2_HOSTS": "h1:2,h2:2"},
            Cluster("openmpi", 2, 4, 0, 2, ("h1", "h1", "h2", "h2"), "openmpi", mpi=True),
        ),
        # srun tells the hosts: it is believed.
        (SRUN | {"KERASS2_HOSTS": "h1:3"}, detect(SRUN)),
        # mpirun tells no hosts; the allocation around it does, where each has as many ranks.
        (
            TWO_ON_TWO | BATCH_SCRIPT,
            Cluster(
                "openmpi",
                2,
                4,
                0,
                2,
                ("jwb0001", "jwb0001", "jwb0002", "jwb0002"),
                "openmpi",
                mpi=True,
            ),
        ),
        # Rank 1 as the first of its host: placed one by one, so that hosts cannot be told.
        (
            TWO_ON_TWO | BATCH_SCRIPT | {"OMPI_COMM_WORLD_RANK": "1"},
            Cluster("openmpi", 1, 4, 0, 2, (), "openmpi", mpi=True),
        ),
        (
            JSRUN,
            Cluster(
                "jsrun", 2, 4, 0, 2, ("c460c01", "c460c01", "c460c02", "c460c02"), "4711.", mpi=True
            ),
        ),
        (CAPTURED, Cluster("slurm", 3, 4, 1, 2, ("kn1", "kn1", "kn2", "kn2"), "1.0")),
        (CYCLIC, Cluster("slurm", 1, 4, 0, 2, ("kn1", "kn2", "kn1", "kn2"), "1.1")),
        (CAPTURED | PMI2, Cluster("slurm", 3, 4, 1, 2, ("kn1", "kn1", "kn2", "kn2"), "1.0", True)),
        (SRUN, Cluster("slurm", 2, 3, 0, 1, ("jwb0001", "jwb0001", "jwb0002"), "77.0")),
        (HYDRA, Cluster("pmi", 1, 2, 1, 2, job="pmi", mpi=True)),
        (
            HYDRA | {"PMI_LOCAL_RANK": "0", "PMI_LOCAL_SIZE": "1"},
            Cluster("pmi", 1, 2, 0, 1, job="pmi", mpi=True),
        ),
        # What is explicit counts: ranks that this package started inside an allocation.
        (SRUN | HOROVODRUN, Cluster("horovodrun", 3, 4, 1, 2, job="horovod:4711")),
    ],
)
def test_detect(environ, expected):
    assert detect(environ) == expected


@pytest.mark.parametrize(
    "environ",
    [
        {"TF_CONFIG": "{"},
        {"TF_CONFIG": "{}"},
        {"TF_CONFIG": TF_CONFIG.replace('"index": 1', '"index": 3')},
        {"HOROVOD_RANK": "0"},
        HOROVODRUN | {"HOROVOD_RANK": "4"},
        HOROVODRUN | {"HOROVOD_RANK": "two"},
        {key: value for key, value in SRUN.items() if key != "SLURM_LOCALID"},
        SRUN | {"SLURM_STEP_TASKS_PER_NODE": "1"},
        SRUN | {"SLURM_STEP_NUM_TASKS": "4"},
        {"TF_CONFIG": "[]"},
        {"TF_CONFIG": CHIEF.replace("chief", "ps")},
        {"PMI_RANK": "0", "PMI_SIZE": "2"},
        HOROVODRUN | {"KERASS2_HOSTS": "h1"},
        HOROVODRUN | {"KERASS2_HOSTS": "h1:2,h2:1"},
        HOROVODRUN | {"KERASS2_HOSTS": "h1:3,h2:1"},
        {key: value for key, value in JSRUN.items() if key != "LSB_JOBID"},
        # A distribution whose order the environment does not tell.
        CYCLIC | {"SLURM_DISTRIBUTION": "block"},
    ],
)
def test_contradictions_are_refused(environ):
    with pytest.raises(StrategyError):
        detect(environ)


@pytest.mark.parametrize(
    ("nodelist", "expected"),
    [
        ("n1", ["n1"]),
        ("jwb[0001-0003,0010]", ["jwb0001", "jwb0002", "jwb0003", "jwb0010"]),
        ("a[8-11],login1", ["a8", "a9", "a10", "a11", "login1"]),
        ("rack[1-2]n[0-1]", ["rack1n0", "rack1n1", "rack2n0", "rack2n1"]),
        ("c1-n[01-02].ib", ["c1-n01.ib", "c1-n02.ib"]),
    ],
)
def test_expand_nodelist(nodelist, expected):
    assert expand_nodelist(nodelist) == expected


@hypothesis.given(st.lists(st.integers(0, 9999), min_size=1, max_size=30))
def test_expand_nodelist_keeps_every_node(numbers):
    names = [f"n{number:04d}" for number in numbers]
    assert expand_nodelist("n[" + ",".join(name[1:] for name in names) + "]") == names
    assert expand_nodelist(",".join(names)) == names


@pytest.mark.parametrize("hosts", ["h1", "h1:", "h1:0", "h1:x", ":2", "h1:2,,h2:1", ""])
def test_expand_hosts_refuses_other_forms(hosts):
    with pytest.raises(ValueError, match="expected HOST:RANKS"):
        expand_hosts(hosts)


def test_expand_hosts():
    assert expand_hosts("h1:2,h-2.ib:1") == ("h1", "h1", "h-2.ib")


def test_the_hosts_of_all_ranks():
    assert Cluster("slurm", 0, 2, 0, 1, ("a", "b")).require_hosts() == ("a", "b")
    # All on one host: its name is not needed.
    assert Cluster("openmpi", 0, 2, 0, 2).require_hosts() == ("127.0.0.1", "127.0.0.1")
    with pytest.raises(StrategyError, match="does not tell the hosts of the 4 ranks"):
        Cluster("openmpi", 0, 4, 0, 2, job="x").require_hosts()


def test_the_port_is_that_of_the_job():
    ports = {Cluster("slurm", rank, 3, 0, 1, job="9.0").port for rank in range(3)}
    assert len(ports) == 1
    # Steps of one job, which may run at once, have others; none is one that Linux gives away.
    steps = {Cluster("slurm", job=f"9.{step}").port for step in range(50)}
    assert len(steps) == 50
    assert all(FIRST_PORT <= port < FIRST_PORT + NUM_PORTS <= 32768 for port in steps)


def test_what_the_batch_system_says_of_the_job():
    assert requeue_command({}) is None
    assert requeue_command(BATCH_SCRIPT) == ["scontrol", "requeue", "77"]
    assert num_restarts(BATCH_SCRIPT) == 0
    assert num_restarts(BATCH_SCRIPT | {"SLURM_RESTART_COUNT": "2"}) == 2
