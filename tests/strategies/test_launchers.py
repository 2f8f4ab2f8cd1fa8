"""Inside mpirun and horovodrun the environment decides: each process is one rank, none is started.

The real commands, on the real `kerass2.fit`; without a launcher around it, two ranks would be two
jobs, and two plans on the screen. Slurm's environment: test_cluster.py.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types

import pytest

from data_pipelines import synthetic
from strategies import horovod
from strategies.base import StrategyError
from strategies.cluster import Cluster

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


def fit(launcher: list[str], strategy: str, data: pathlib.Path, workdir: pathlib.Path) -> None:
    """Train two steps as two ranks of that launcher's job; one plan, of two ranks, one model."""
    command = ["-m", "kerass2.fit", "--strategy", strategy, "--steps", "2"]
    options = ["--data", str(data), "--workdir", str(workdir)]
    options += [text for key, value in SETTINGS.items() for text in ("--set", f"{key}={value}")]
    result = subprocess.run(
        [*launcher, sys.executable, *command, *options],
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


@pytest.mark.mpi
@pytest.mark.horovod
def test_horovod_under_mpirun(data, tmp_path, horovods_builds):
    _need("mpirun")
    if "mpi" not in horovods_builds:
        pytest.skip("Horovod is built without MPI here")
    fit(MPIRUN, "horovod", data, tmp_path / "run")


@pytest.mark.mpi
def test_multiworker_under_mpirun(data, tmp_path):
    _need("mpirun")
    fit(MPIRUN, "multiworker", data, tmp_path / "run")


@pytest.mark.horovod
def test_horovod_under_horovodrun(data, tmp_path, horovods_builds):
    if "gloo" not in horovods_builds:
        pytest.skip("Horovod is built without Gloo here")
    # The module behind the script `horovodrun`, which need not be on the PATH.
    horovodrun = [sys.executable, "-m", "horovod.runner.launch", "--gloo", "-np", "2"]
    fit(horovodrun, "horovod", data, tmp_path / "run")


@pytest.mark.parametrize("world_size", [1, 2])
def test_srun_needs_mpi_for_several_ranks_only(monkeypatch, world_size):
    without_mpi = types.SimpleNamespace(
        mpi_built=lambda: False,
        init=lambda: None,
        rank=lambda: 0,
        local_rank=lambda: 0,
        size=lambda: 1,
    )
    monkeypatch.setattr(horovod, "_import_horovod", lambda: without_mpi)
    cluster = Cluster("slurm", 0, world_size, 0, world_size)
    if world_size == 1:
        assert horovod.HorovodStrategy(cluster).world_size == 1
    else:
        with pytest.raises(StrategyError, match="needs a build with MPI"):
            horovod.HorovodStrategy(cluster)


def _need(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"no {program} here")
