"""Data that the tests of commands share: a small made-up granule, prepared by the real command."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from data_pipelines import synthetic


@pytest.fixture(scope="session")
def run_command():
    """Run `python -m kerass2.<command>`; the result, with output as text."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        command, *rest = map(str, arguments)
        return subprocess.run(
            [sys.executable, "-m", f"kerass2.{command}", *rest],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, **environment},
        )

    return run


@pytest.fixture(scope="session")
def granule_folder(tmp_path_factory) -> pathlib.Path:
    """Per-GSD GeoTIFFs of a made-up granule, 768 px at 10 m."""
    return synthetic.write_granule(tmp_path_factory.mktemp("granule"), 768, seed=3)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, granule_folder, run_command) -> pathlib.Path:
    """That granule as a superres_20m data set."""
    folder = tmp_path_factory.mktemp("data") / "superres_20m"
    result = run_command("prepare", granule_folder, "-o", folder)
    assert result.returncode == 0, result.stderr
    return folder
