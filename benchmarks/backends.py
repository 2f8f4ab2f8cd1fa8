"""`python -m benchmarks backends`: the training step on each of Keras' backends.

A process a backend, which all have all cores in turn; the package's own step (kerass2.steps) on one
batch in memory, from the same command. Ratios are TensorFlow's seconds a step over another's, turn
by turn: above 1 the other is faster. What compiling takes is in `first`: seconds until the first
step is done, with the making of the model.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import click

from benchmarks import options, record, scaling, turns
from kerass2 import backend, config

BASE = "tensorflow"
EXPERIMENTS = ("superres_20m_compact", "superres_20m")
# Words of --backend -> (Keras' backend, run.xla): PyTorch runs as it is written unless it is told.
VARIANTS = {
    **{name: (name, False) for name in backend.STEPS},
    "tensorflow-xla": ("tensorflow", True),
    "torch-compile": ("torch", True),
}
# The first step on a backend compiles; torch.compile takes a minute for a large network.
COMPILE_SECONDS = 600.0


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--backend",
    "names",
    multiple=True,
    type=click.Choice(list(VARIANTS)),
    help="Again for more.  [default: those of tensorflow, jax, torch that are installed]",
)
@click.option("--experiment", "experiments", multiple=True, default=EXPERIMENTS, show_default=True)
@options.count("--batch", 16)
@options.patch
@options.count("--rounds", 5)
@options.count("--steps", 4, "A turn.")
@options.settings
@click.option("--short", is_flag=True, help="Small models, two turns.")
@record.output_options("backends.jsonl")
def main(
    names: tuple[str, ...],
    experiments: tuple[str, ...],
    batch: int,
    patch: int,
    rounds: int,
    steps: int,
    settings: tuple[str, ...],
    short: bool,
    output: pathlib.Path,
) -> None:
    """Measure the training step on each backend of this machine, in float32."""
    chosen = [BASE, *(name for name in names or list_installed() if name != BASE)]
    if short:
        rounds, steps, batch = 2, 2, min(batch, 4)
    with turns.open_jobs({name: _start(name) for name in chosen}) as jobs:
        for name in experiments:
            experiment = config.load(name)
            changes = [*(scaling.shrink(experiment) if short else ()), *settings]
            experiment = config.override(experiment, changes)
            case = {"experiment": experiment.to_json(), "batch": batch, "patch": patch}
            first = _compile(jobs, {**case, "steps": 1, "warm_up": 0})
            request = {**case, "steps": steps, "warm_up": scaling.WARM_UP}
            ready = {each: jobs[each] for each in first}
            requests = dict.fromkeys(ready, request)
            seconds = turns.take_turns(ready, requests, rounds)
            what = {"experiment": experiment.name, "batch": batch, "patch": patch}
            _report(output, {**what, "settings": changes}, seconds, first, steps)


def list_installed() -> list[str]:
    """Backends that can be imported, TensorFlow first."""
    return [name for name in backend.STEPS if importlib.util.find_spec(name) is not None]


def _start(name: str) -> Callable[[], turns.Job]:
    """What starts the process of a variant."""
    keras_backend, xla = VARIANTS[name]
    command = [sys.executable, "-m", "benchmarks.backends_rank", json.dumps(xla)]
    environment = {**os.environ, "KERAS_BACKEND": keras_backend}
    return lambda: turns.Job(name, [command], 1, environment)


def _compile(jobs: dict[str, turns.Job], request: dict[str, Any]) -> dict[str, float]:
    """Seconds until each has made its first step; what cannot is reported and left out."""
    found = {}
    for name, job in jobs.items():
        try:
            found[name] = float(job.ask(request, COMPILE_SECONDS)[0]["first"])
        except turns.JobError as error:
            turns.warn(f"left out: {error}")
    return found


def _report(
    output: pathlib.Path,
    what: dict[str, Any],
    seconds: dict[str, list[float]],
    first: dict[str, float],
    steps: int,
) -> None:
    """Append and print a line a backend."""

    def figure(values: list[float], unit: str) -> dict[str, Any]:
        return record.figure(values, unit, warm_up=scaling.WARM_UP, steps=steps)

    for name, times in seconds.items():
        figures = {"throughput": figure([what["batch"] / each for each in times], "patches/s")}
        text = f"{what['experiment']}, {name}: {figures['throughput']['median']:.1f} patches/s"
        if BASE in seconds:
            ratios = [base / each for base, each in zip(seconds[BASE], times, strict=True)]
            figures["ratio"] = figure(ratios, "1")
            text += f", {figures['ratio']['median']:.3f} of {BASE}'s"
        record.append(output, "backends", backend=name, **what, **figures, first_s=first[name])
        click.echo(f"{text}, first step after {first[name]:.1f} s")
