"""Short trainings, and what they leave."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Of weights, in their norm.
TOLERANCE = 1e-6
STEPS = 6
# As many parts of a sum everywhere: over hundreds of steps roundings in another order grow. And
# small models do not wait for Horovod's cycles [ms].
RANKS = {"TF_NUM_INTRAOP_THREADS": "1", "HOROVOD_CYCLE_TIME": "1"}
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
    environment = os.environ | RANKS
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=500
    )
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
