"""`python -m benchmarks shares`: what a training step spends its time on.

Two loops take turns in the same ranks: one on patches that are read and augmented as in training,
and one on a batch in memory whose ranks do not sum their gradients. Of a step of the first
  input          waiting for a batch
  compute        what the step of ranks that do not speak takes
  communication  what a step takes more than that: sums, and waiting for the slower rank
  rest           what is left: the loop itself
all means over ranks; their sum is 1.
"""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Mapping
from typing import Any

import click

from benchmarks import options, record, scaling, turns
from kerass2 import config

PARTS = ("compute", "communication", "input", "rest")
STRATEGIES = ("single", *scaling.DISTRIBUTED)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@options.experiment
@options.choice("--strategy", "names", STRATEGIES)
@options.precisions
@click.option("--ranks", default=2, type=click.IntRange(min=2), show_default=True)
@options.count("--batch", 16, "Patches of a rank and step.")
@click.option("--data", default="synthetic", show_default=True, help="As in kerass2.fit.")
@click.option("--patch", default=32, show_default=True, help="Edge in the data [px of 10 m].")
@options.count("--rounds", 3)
@options.count("--steps", 4, "A turn.")
@options.settings
@click.option("--short", is_flag=True, help="A small model, two turns.")
@record.output_options("shares.jsonl")
def main(
    experiment: str,
    names: tuple[str, ...],
    precisions: tuple[str, ...],
    ranks: int,
    batch: int,
    data: str,
    patch: int,
    rounds: int,
    steps: int,
    settings: tuple[str, ...],
    short: bool,
    output: pathlib.Path,
) -> None:
    """Measure where a step's time goes on this machine."""
    chosen = config.load(experiment)
    if short:
        rounds, steps, batch = 2, 2, min(batch, 4)
        chosen = config.override(chosen, scaling.shrink(chosen))
    chosen = config.override(chosen, settings)
    case = {"experiment": chosen.to_json(), "patch": patch, "data": data}
    sizes = {name: 1 if name == "single" else ranks for name in names}
    starts = {name: scaling.start(name, size, ranks, case) for name, size in sizes.items()}
    what: dict[str, Any] = {"experiment": chosen.name, "batch": batch, "data": data}
    if settings or short:
        what["settings"] = [*(scaling.shrink(chosen) if short else ()), *settings]
    with turns.open_jobs(starts) as jobs:
        for precision in precisions:
            found = _measure(jobs, precision, batch, rounds, steps)
            for name, spent in found.items():
                figures = list_figures(spent, steps)
                labels = {**what, "strategy": name, "precision": precision, "ranks": sizes[name]}
                record.append(output, "shares", **labels, **figures)
                click.echo(
                    f"{name}, {precision}, {sizes[name]} ranks, {figures['seconds']['median']:.3f}"
                    " s: " + ", ".join(f"{part} {figures[part]['median']:.1%}" for part in PARTS)
                )


def _measure(
    jobs: Mapping[str, turns.Job], precision: str, batch: int, rounds: int, steps: int
) -> dict[str, list[dict[str, float]]]:
    """What each strategy's ranks spent, a turn; one that fails is left out."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name in list(found):
            try:
                found[name].append(_ask(jobs[name], precision, batch, steps))
            except turns.JobError as error:
                turns.warn(f"left out: {error}")
                del found[name]
    return found


def _ask(job: turns.Job, precision: str, batch: int, steps: int) -> dict[str, float]:
    """Mean over ranks of "seconds", "input", "step" on data, and of a step "alone"."""
    spent = job.ask(scaling.request(precision, batch, steps, kind="data"))
    alone = job.ask(scaling.request(precision, batch, steps, kind="alone"))
    means = {key: statistics.mean(rank[key] for rank in spent) for key in spent[0]}
    return {**means, "alone": statistics.mean(alone)}


def list_figures(spent: list[dict[str, float]], steps: int) -> dict[str, Any]:
    """Shares of a step, and its seconds; what ranks alone take longer is no communication."""
    counts = {"warm_up": scaling.WARM_UP, "steps": steps}
    whole = [each["seconds"] for each in spent]
    parts = {
        "compute": [min(each["alone"], each["step"]) for each in spent],
        "communication": [max(0.0, each["step"] - each["alone"]) for each in spent],
        "input": [each["input"] for each in spent],
        "rest": [each["seconds"] - each["input"] - each["step"] for each in spent],
    }
    shares = {
        part: record.figure(
            [one / all_ for one, all_ in zip(values, whole, strict=True)], "1", **counts, whole=1.0
        )
        for part, values in parts.items()
    }
    return {**shares, "seconds": record.figure(whole, "s", **counts)}
