"""Records: what was measured, where, with which software.

Every figure has its unit, spread and number of repeats.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Sequence
from typing import Any

import click
import numpy as np

VERSION = 1
PACKAGES = ("kerass2", "keras", "tensorflow-cpu", "tensorflow", "horovod", "numpy")


def figure(
    values: Sequence[float], unit: str, *, warm_up: int = 0, steps: int = 1
) -> dict[str, Any]:
    """Median and quartiles of measurements.

    Args:
      values: One number a measurement.
      unit: Of the values; "1" for a ratio.
      warm_up: Steps that each process makes of each variant before it measures.
      steps: Steps that each value rests on, of each variant.
    """
    low, median, high = (
        float(q) for q in np.percentile(np.asarray(values, np.float64), (25, 50, 75))
    )
    return {
        "median": median,
        "quartiles": [low, high],
        "repeats": len(values),
        "steps": steps,
        "warm_up": warm_up,
        "unit": unit,
    }


def where() -> dict[str, Any]:
    """This machine, its software and the commit."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "software": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _commit(),
    }


def append(path: pathlib.Path, what: str, **numbers: Any) -> dict[str, Any]:
    """Add one line to a record, and return it; lines that are there stay as they are."""
    line = {"version": VERSION, "what": what, **numbers, "where": where()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    return line


def compare(
    path: pathlib.Path,
    name: str,
    base: Sequence[float],
    measured: Sequence[float],
    what: dict[str, Any],
) -> None:
    """Append one record of seconds and print it; the ratio is base over measured, turn by turn."""
    ratio = figure([a / b for a, b in zip(base, measured, strict=True)], "1")
    seconds = {"base": figure(base, "s"), "measured": figure(measured, "s")}
    append(path, name, **what, ratio=ratio, seconds=seconds)
    low, high = ratio["quartiles"]
    click.echo(
        f"{name}: {ratio['median']:.2f} ({low:.2f} to {high:.2f}), "
        f"{seconds['base']['median']:.2f} s against {seconds['measured']['median']:.2f} s"
    )


def _cpu() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("avx512f", "avx512_bf16", "amx_bf16")
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    return " ".join(
        [names[0] if names else platform.processor(), *(flag for flag in wanted if flag in flags)]
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    folder = pathlib.Path(__file__).parent
    git = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
