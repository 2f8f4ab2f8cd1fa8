"""A Slurm for the tests of this folder, and data. `local_slurm` beside this file starts it."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from data_pipelines import synthetic

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import local_slurm
import training


@pytest.fixture(scope="session")
def slurm() -> Iterator[local_slurm.Slurm]:
    """A running Slurm of two nodes."""
    missing = [
        name for name in local_slurm.PROGRAMS if shutil.which(name, path=local_slurm.PATH) is None
    ]
    if missing:
        pytest.skip(f"no {missing[0]} here (Debian: apt-get install slurm-wlm munge)")
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("Slurm's nodes need names of their own: root, and mount namespaces")
    with local_slurm.start() as running:
        yield running


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A small data set."""
    folder = tmp_path_factory.mktemp("data")
    granule = synthetic.write_granule(folder / "granule", 768)
    command = ["-m", "kerass2.prepare", str(granule), "-o", str(folder / "set"), "--processes", "1"]
    subprocess.run([sys.executable, *command], check=True, capture_output=True, timeout=200)
    return folder / "set"


@pytest.fixture(scope="session")
def reference(prepared: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The work folder of two local ranks."""
    folder = tmp_path_factory.mktemp("local") / "run"
    return training.fit_here(prepared, folder, training.STEPS)
