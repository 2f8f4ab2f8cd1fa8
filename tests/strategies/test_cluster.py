"""Captured environments -> the place of a process in its job."""

from __future__ import annotations

import json

import hypothesis
import pytest
from hypothesis import strategies as st

from strategies.base import StrategyError
from strategies.cluster import FIRST_PORT, NUM_PORTS, Cluster, detect, expand_nodelist, tf_config

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
        (OPENMPI, Cluster("openmpi", 1, 2, 1, 2, job="3520790529")),
        (SRUN, Cluster("slurm", 2, 3, 0, 1, ("jwb0001", "jwb0001", "jwb0002"), "77.0")),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, Cluster("pmi", 0, 2, 0, 2, job="pmi")),
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


def test_tf_config_is_the_same_on_all_ranks_but_for_the_index():
    configs = [
        json.loads(tf_config(Cluster("slurm", rank, 3, 0, 1, ("a", "b", "b"), job="9.0")))
        for rank in range(3)
    ]
    assert [config["task"]["index"] for config in configs] == [0, 1, 2]
    workers = configs[0]["cluster"]["worker"]
    assert all(config["cluster"]["worker"] == workers for config in configs)
    assert [worker.split(":")[0] for worker in workers] == ["a", "b", "b"]
    ports = [int(worker.split(":")[1]) for worker in workers]
    assert len(set(ports)) == 3
    assert all(FIRST_PORT <= port < FIRST_PORT + NUM_PORTS + 3 for port in ports)


def test_tf_config_needs_hosts():
    with pytest.raises(StrategyError, match="does not tell the hosts of the 4 ranks"):
        tf_config(Cluster("openmpi", 0, 4, 0, 2, job="x"))
