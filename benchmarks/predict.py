"""`python -m benchmarks predict`: how fast models sharpen, in each precision, without files.

A made-up granule lies in memory and goes through the windows that kerass2.predict makes; no weights
are read, since they change no time. Models and precisions take turns. `superres` measures the way
from JP2 to COG.
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import click

from benchmarks import options, record, turns

# Name in the record -> model and options, as in kerass2.configs.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "S2x": ("s2x", {"filters": 128, "blocks": 6, "block": 32}),
    "S6x": ("s6x", {"filters": 128, "blocks": 6, "block": 96}),
    "dsen2": ("dsen2", {}),
}
WARM_UP = 1


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@options.choice("--model", "names", MODELS)
@options.precisions
@click.option(
    "--size",
    default=576,
    show_default=True,
    type=click.IntRange(min=96),
    help="Edge of the granule [px of 10 m], a multiple of 6.",
)
@options.count("--rounds", 3)
@click.option("--short", is_flag=True, help="Small models, two rounds, a small granule.")
@record.output_options("predict.jsonl")
def main(
    names: tuple[str, ...],
    precisions: tuple[str, ...],
    size: int,
    rounds: int,
    short: bool,
    output: pathlib.Path,
) -> None:
    """Measure prediction on this machine."""
    if size % 6:
        raise click.BadParameter(f"--size {size}: expected a multiple of 6")
    less = {"filters": 16, "blocks": 2} if short else {}
    rounds, size = (2, min(size, 192)) if short else (rounds, size)
    starts = {name: _start(name, size, less) for name in names}
    with turns.open_jobs(starts) as jobs:
        found: dict[tuple[str, str], list[float]] = {}
        for number in range(rounds):
            for precision in precisions:
                request = {"precision": precision, "steps": 1, "warm_up": 0 if number else WARM_UP}
                requests = dict.fromkeys(jobs, request)
                for name, seconds in turns.take_turns(jobs, requests, 1).items():
                    found.setdefault((name, precision), []).extend(seconds)
    for (name, precision), seconds in found.items():
        figures = {
            "throughput": record.figure([size**2 / s / 1e6 for s in seconds], "Mpx/s", warm_up=1),
            "seconds": record.figure(seconds, "s", warm_up=WARM_UP),
        }
        what = {"model": name, "precision": precision, "size": size}
        what |= {"settings": [f"{key}={value}" for key, value in less.items()]} if less else {}
        record.append(output, "predict", **what, **figures)
        click.echo(
            f"{name}, {precision}, {size} px: {figures['throughput']['median']:.3f} Mpx/s, "
            f"{figures['seconds']['median']:.2f} s"
        )


def _start(name: str, size: int, less: dict[str, int]) -> Callable[[], turns.Job]:
    model, options = MODELS[name]
    case = {"model": model, "options": {**options, **less}, "size": size}
    command = [sys.executable, "-m", "benchmarks.predict_rank", json.dumps(case)]
    return lambda: turns.Job(name, [command], 1)
