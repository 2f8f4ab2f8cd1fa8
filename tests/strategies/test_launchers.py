"""Inside mpirun and horovodrun the environment decides: each process is one rank, none is started.

The real commands, on the real `kerass2.fit`; without a launcher around it, two ranks would be two
jobs, and two plans on the screen. Environments: test_cluster.py; a real Slurm: tests/cluster.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import types

import click.testing
import numpy as np
import pytest

import kerass2.fit
from data_pipelines import synthetic
from strategies import horovod, meeting, multiworker
from strategies.base import StrategyError
from strategies.cluster import Cluster
from strategies.settings import Settings

HERE = pathlib.Path(__file__).parent
ENVIRONMENT = {
    **os.environ,
    "TF_CPP_MIN_LOG_LEVEL": "2",
    # Open MPI refuses root, the user of many containers, without both.
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}
MPIRUN = ["mpirun", "-np", "2", "--oversubscribe", "--bind-to", "none"]
SETTINGS = {
    "model.options.filters": 8,
    "model.options.blocks": 2,
    "run.precision": "float32",
    "run.global_batch": 12,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    """A small prepared data set."""
    folder = tmp_path_factory.mktemp("data")
    granule = synthetic.write_granule(folder / "granule", 768)
    command = [sys.executable, "-m", "kerass2.prepare", str(granule), "-o", str(folder / "set")]
    subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT, timeout=120)
    return folder / "set"


@pytest.fixture(scope="module")
def horovods_builds() -> set[str]:
    """What Horovod is built with: mpi, gloo. Asked in a process of its own: it keeps state."""
    if importlib.util.find_spec("horovod") is None:
        pytest.skip("Horovod is not built here")
    code = "import horovod.tensorflow as h; print('mpi' * h.mpi_built(), 'gloo' * h.gloo_built())"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, timeout=120
    )
    return set(result.stdout.split())


def arguments(data: pathlib.Path, workdir: pathlib.Path) -> list[str]:
    """Of kerass2.fit."""
    settings = [text for key, value in SETTINGS.items() for text in ("--set", f"{key}={value}")]
    return ["--data", str(data), "--workdir", str(workdir), "--steps", "2", *settings]


def weights(workdir: pathlib.Path) -> np.ndarray:
    """All of the checkpoint."""
    with np.load(workdir / "checkpoints" / "step-00000002.npz") as file:
        names = sorted(name for name in file.files if name.startswith("model/"))
        return np.concatenate([np.ravel(file[name]) for name in names])


@pytest.fixture(scope="module")
def expected(data, tmp_path_factory) -> np.ndarray:
    """Weights of one process."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    found = click.testing.CliRunner().invoke(kerass2.fit.main, arguments(data, workdir))
    assert found.exit_code == 0, found.output
    return weights(workdir)


def check_fit(
    launcher: list[str],
    strategy: str,
    data: pathlib.Path,
    workdir: pathlib.Path,
    expected: np.ndarray,
) -> None:
    """Two steps by two ranks of that launcher's job: one plan of two, one process' weights."""
    command = ["-m", "kerass2.fit", "--strategy", strategy, *arguments(data, workdir)]
    result = subprocess.run(
        [*launcher, sys.executable, *command],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=300,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    # horovodrun puts "[1,0]<stdout>:" before a line.
    plans = re.findall(r"^\S*\s*ranks +(\d+), strategy (\w+)", result.stdout, re.MULTILINE)
    assert plans == [("2", strategy)], result.stdout
    assert (workdir / "model.keras").is_file()
    found = weights(workdir)
    assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)


@pytest.mark.mpi
@pytest.mark.horovod
def test_horovod_under_mpirun(data, tmp_path, horovods_builds, expected):
    _need("mpirun")
    if "mpi" not in horovods_builds:
        pytest.skip("Horovod is built without MPI here")
    check_fit(MPIRUN, "horovod", data, tmp_path / "run", expected)


@pytest.mark.mpi
@pytest.mark.cluster
def test_multiworker_under_mpirun(data, tmp_path, expected):
    _need("mpirun")
    check_fit(MPIRUN, "multiworker", data, tmp_path / "run", expected)


@pytest.mark.horovod
def test_horovod_under_horovodrun(data, tmp_path, horovods_builds, expected):
    if "gloo" not in horovods_builds:
        pytest.skip("Horovod is built without Gloo here")
    # The module behind the script `horovodrun`, which need not be on the PATH.
    horovodrun = [sys.executable, "-m", "horovod.runner.launch", "--gloo", "-np", "2"]
    check_fit(horovodrun, "horovod", data, tmp_path / "run", expected)


def as_srun(strategy: str, nodes: str, tasks: str, **environ: str) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of ranks with the environment that srun gives them."""
    counts = [int(count) for count in tasks.split(",")]
    places = [(node, local) for node, count in enumerate(counts) for local in range(count)]
    processes = []
    for rank, (node, local) in enumerate(places):
        srun = {
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_STEP_ID": strategy,
            "SLURM_STEP_NODELIST": nodes,
            "SLURM_STEP_NUM_TASKS": str(len(places)),
            "SLURM_STEP_TASKS_PER_NODE": tasks,
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(local),
            "SLURM_NODEID": str(node),
        }
        process = subprocess.Popen(
            [sys.executable, str(HERE / "meet_rank.py"), strategy],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT | srun | environ,
        )
        processes.append(process)
    ends = [process.communicate(timeout=120) for process in processes]
    return [(p.returncode, *end) for p, end in zip(processes, ends, strict=True)]


@pytest.mark.parametrize(
    "strategy", [pytest.param("horovod", marks=pytest.mark.horovod), "multiworker"]
)
def test_ranks_that_srun_has_started_find_each_other(strategy):
    """Two "nodes" by two addresses of this machine; Slurm itself: tests/cluster."""
    if strategy == "horovod":
        pytest.importorskip("horovod", reason="Horovod is not built here")
    ends = as_srun(strategy, "127.0.0.[1-2]", "2,1", HOROVOD_CONTROLLER="gloo")
    assert [code for code, *_ in ends] == [0, 0, 0], ends
    places = [out.rpartition(":")[0] for _, out, _ in ends]
    assert places == ["0 of 3, local 0", "1 of 3, local 1", "2 of 3, local 0"]
    sums = {out.rpartition(": ")[2].strip() for _, out, _ in ends}
    assert sums == {"6 lo" if strategy == "horovod" else "6"}


@pytest.mark.parametrize(
    "strategy", [pytest.param("horovod", marks=pytest.mark.horovod), "multiworker"]
)
def test_an_interface_that_is_not_there_ends_all(strategy):
    if strategy == "horovod":
        pytest.importorskip("horovod", reason="Horovod is not built here")
    ends = as_srun(
        strategy,
        "127.0.0.1",
        "2",
        HOROVOD_CONTROLLER="gloo",
        KERASS2_INTERFACE="ib7",
        KERASS2_START_SECONDS="3",
    )
    assert [code for code, *_ in ends] == [1, 1]
    assert ends[0][2].splitlines()[-1].startswith("error: no interface 'ib7' with an IPv4 address")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_that_does_not_come(rank):
    """TF_CONFIG names two, one is there; TensorFlow alone would wait for an hour."""
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))
        ports = [kept.getsockname()[1], 1]
    workers = [f"127.0.0.1:{port}" for port in (ports if rank == 0 else ports[::-1])]
    config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}}
    done = subprocess.run(
        [sys.executable, str(HERE / "meet_rank.py"), "multiworker"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | {"TF_CONFIG": json.dumps(config), "KERASS2_START_SECONDS": "2"},
        timeout=120,
    )
    assert done.returncode == 1
    said = "1 of 2 ranks have not come to" if rank == 0 else "rank 1 did not reach rank 0 at"
    assert done.stderr.splitlines()[-1].startswith(f"error: {said}"), done.stderr[-3000:]


def test_workers_of_a_given_tf_config_join():
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        workers = [f"127.0.0.1:{each.getsockname()[1]}" for each in (one, other)]
    config = {"cluster": {"chief": workers[:1], "worker": workers[1:]}}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(HERE / "meet_rank.py"), "multiworker"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT | {"TF_CONFIG": json.dumps(config | {"task": task})},
        )
        for task in ({"type": "chief", "index": 0}, {"type": "worker", "index": 0})
    ]
    ends = [rank.communicate(timeout=120) for rank in ranks]
    assert [out for out, _ in ends] == ["0 of 2, local 0: 3\n", "1 of 2, local 1: 3\n"], ends


def test_workers_give_each_other_the_address_of_the_interface(monkeypatch):
    """Not that of the host's name, which may lead elsewhere."""
    place = Cluster("slurm", 0, 2, 0, 1, ("localhost", "127.0.0.9"), "7.0")
    monkeypatch.setattr(meeting, "exchange", lambda cluster, own, chosen: [own, "127.0.0.9:1"])
    for interface, address in (("lo", "127.0.0.1"), (None, "localhost")):
        with multiworker._meet(place, Settings(interface=interface)) as environ:
            own, other = json.loads(environ["TF_CONFIG"])["cluster"]["worker"]
        assert own.startswith(f"{address}:")
        assert other == "127.0.0.9:1"


def test_a_port_is_held_until_tensorflow_takes_it():
    with multiworker.local_environments(2) as environments:
        workers = json.loads(environments[1]["TF_CONFIG"])["cluster"]["worker"]
        ports = {int(worker.rpartition(":")[2]) for worker in workers}
        assert len(ports) == 2
        for port in ports:
            with pytest.raises(OSError, match="Address already in use"):
                socket.create_server(("127.0.0.1", port))
            # As TensorFlow's server does.
            socket.create_server(("127.0.0.1", port), reuse_port=True).close()
    assert {each["TF_GRPC_REUSE_PORT"] for each in environments} == {"true"}


def test_a_taken_port_of_tf_config_is_named():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        config = json.dumps({"cluster": {"worker": [f"a:{port}", "b:1"]}})
        place = Cluster("tf_config", 0, 2, 0, 1, ("a", "b"))
        with pytest.raises(StrategyError, match=rf"^port {port} of TF_CONFIG is taken on "):
            multiworker._meet_at_named_ports(place, Settings(), config)


def test_a_host_that_takes_its_own_name_for_a_loopback_address(monkeypatch):
    """Other hosts do not reach that, and Horovod 0.28.1 gives it to them, whatever interface."""
    addresses = {"lo": "127.0.0.1", "ib0": "10.0.0.1", "eth0": "10.1.0.1"}
    monkeypatch.setattr(meeting, "address_of", addresses.__getitem__)
    monkeypatch.setattr(meeting, "resolve", lambda host: "127.0.1.1")
    horovod._check_own_name("lo")
    with pytest.raises(StrategyError, match=r"takes its own name for 127\.0\.1\.1"):
        horovod._check_own_name("ib0")
    monkeypatch.setattr(meeting, "resolve", lambda host: "10.1.0.1")
    horovod._check_own_name("eth0")
    with pytest.warns(UserWarning, match=r"by 10\.1\.0\.1, .+ and not by ib0"):
        horovod._check_own_name("ib0")


@pytest.mark.parametrize(
    ("built", "cluster", "controller", "expected"),
    [
        ("mpi gloo", Cluster("slurm", 0, 2, 0, 2, mpi=True), "", False),
        ("mpi gloo", Cluster("slurm", 0, 2, 0, 2), "", True),
        ("mpi gloo", Cluster("openmpi", 0, 2, 0, 2, mpi=True), "gloo", True),
        ("gloo", Cluster("openmpi", 0, 2, 0, 2, mpi=True), "", True),
        ("gloo", Cluster("horovodrun", 0, 2, 0, 2), "", False),
        ("gloo", Cluster("slurm", 0, 1, 0, 1), "", False),
        ("mpi", Cluster("slurm", 0, 2, 0, 2), "mpi", False),
    ],
)
def test_which_launchers_need_horovods_rendezvous(
    monkeypatch, built, cluster, controller, expected
):
    monkeypatch.setenv("HOROVOD_CONTROLLER", controller)
    hvd = types.SimpleNamespace(
        mpi_built=lambda: "mpi" in built.split(), gloo_built=lambda: "gloo" in built.split()
    )
    assert horovod._needs_rendezvous(cluster, hvd) is expected


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModuleNotFoundError("No module named 'horovod'"), "No module named 'horovod'"),
        # What Horovod says that was built without TensorFlow, and that was built for another one.
        (
            ImportError(
                "Extension horovod.tensorflow has not been built: mpi_lib.so not found\nIf"
            ),
            "Extension horovod.tensorflow has not been built: mpi_lib.so not found",
        ),
        (
            ImportError("Framework tensorflow installed with version 2.16 but found 2.21.\n  This"),
            "Framework tensorflow installed with version 2.16 but found 2.21.",
        ),
        (
            RuntimeError("mpi_lib.so: undefined symbol: _ZN10tensorflow6"),
            "mpi_lib.so: undefined symbol: _ZN10tensorflow6",
        ),
        (AttributeError(), "AttributeError()"),
    ],
)
def test_a_horovod_that_is_not_built_or_for_another_tensorflow(monkeypatch, error, reason):
    def fail(module):
        raise error

    monkeypatch.setattr(horovod.importlib, "import_module", fail)
    with pytest.raises(StrategyError) as found:
        horovod.load()
    assert str(found.value) == (
        f"Horovod is not usable here ({reason}): "
        "build it with `make setup`, or use --strategy multiworker"
    )


def test_plain_srun_needs_gloo(monkeypatch):
    monkeypatch.delenv("HOROVOD_CONTROLLER", raising=False)
    hvd = types.SimpleNamespace(mpi_built=lambda: True, gloo_built=lambda: False)
    with pytest.raises(StrategyError, match="this Horovod has no Gloo: start the ranks with `srun"):
        horovod._needs_rendezvous(Cluster("slurm", 0, 2, 0, 2), hvd)


def _need(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"no {program} here")
