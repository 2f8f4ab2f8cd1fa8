"""Data that the tests of commands share: a small made-up granule, prepared by the real command."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import pathlib
import subprocess
import sys
import warnings
from collections.abc import Callable

import pytest

from data_pipelines import synthetic
from kerass2 import cli

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def run_command() -> Run:
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
def run_on_backend() -> Callable[..., None]:
    """Run a program under another Keras backend, which it gets as its last argument.

    Skips where that is not installed; fails where the program does.
    """

    def run(backend: str, program: str, *arguments: object) -> None:
        if importlib.util.find_spec(backend) is None:
            pytest.skip(f"{backend} is not installed (pip install kerass2[{backend}])")
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments), backend],
            env={**os.environ, "KERAS_BACKEND": backend},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]

    return run


@pytest.fixture(scope="session")
def run_here() -> Run:
    """The same in this process, where TensorFlow is there already: single processes only."""

    def run(
        command: str, *arguments: object, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        main = importlib.import_module(f"kerass2.{command}").main
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ending,
        ):
            patch.setattr(sys, "argv", [command, *map(str, arguments)])
            patch.setattr(warnings, "showwarning", warnings.showwarning)  # cli.run puts its own
            for name, value in environment.items():
                patch.setenv(name, value)
            cli.run(main)
        texts = (stream.buffer.getvalue().decode() for stream in (out, err))
        return subprocess.CompletedProcess(sys.argv, ending.value.code or 0, *texts)

    return run


@pytest.fixture(scope="session")
def run_lightly(run_here, run_command) -> Run:
    """The same, in this process unless several ranks are asked for: each start takes seconds."""

    def run(
        command: str, *arguments: object, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        words = [*map(str, arguments)]
        strategy = words[words.index("--strategy") + 1] if "--strategy" in words else "single"
        chosen = run_here if strategy == "single" else run_command
        return chosen(command, *words, **environment)

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
