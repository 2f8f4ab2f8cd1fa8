"""`python -m benchmarks harness`: what measuring costs.

Steps of the loop in one go, with two looks at the clock around all of them, against the same number
of steps as the other benchmarks measure them: two by two, each pair asked for by itself. Both take
turns in one process; the ratio of their seconds a step is 1 where measuring costs nothing.
"""

from __future__ import annotations

import pathlib
import statistics

import click

from benchmarks import options, record, scaling, turns
from benchmarks.step_rank import BLOCK
from kerass2 import config


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@options.experiment
@options.count("--batch", 16)
@options.patch
@options.count("--rounds", 7)
@click.option("--steps", default=8, show_default=True, type=click.IntRange(min=BLOCK), help="Even.")
@options.settings
@click.option("--short", is_flag=True, help="A small model.")
@record.output_options("harness.jsonl")
def main(
    experiment: str,
    batch: int,
    patch: int,
    rounds: int,
    steps: int,
    settings: tuple[str, ...],
    short: bool,
    output: pathlib.Path,
) -> None:
    """Measure what the harness adds to a step on this machine."""
    if steps % BLOCK:
        raise click.BadParameter(f"--steps {steps}: expected a multiple of {BLOCK}")
    chosen = config.load(experiment)
    chosen = config.override(chosen, [*(scaling.shrink(chosen) if short else ()), *settings])
    case = {"experiment": chosen.to_json(), "patch": patch}
    one = {**scaling.request("float32", batch, BLOCK), "warm_up": 0}
    whole, measured = [], []
    job = scaling.start("single", 1, 1, case)()
    try:
        job.ready()
        job.slowest(scaling.request("float32", batch, BLOCK))
        for _ in range(rounds):
            whole.append(job.slowest({**one, "steps": steps}))
            measured.append(statistics.mean(job.slowest(one) for _ in range(steps // BLOCK)))
    except turns.JobError as error:
        raise click.ClickException(str(error)) from error
    finally:
        job.close()
    pairs = zip(measured, whole, strict=True)
    ratio = record.figure([a / b for a, b in pairs], "1", warm_up=scaling.WARM_UP, steps=steps)
    what = {"experiment": chosen.name, "batch": batch, "patch": patch}
    seconds = record.figure(whole, "s", warm_up=scaling.WARM_UP, steps=steps)
    record.append(output, "harness over plain", **what, ratio=ratio, seconds=seconds)
    click.echo(
        f"seconds a step with the harness over without: {record.tell(ratio, 4)}, "
        f"{seconds['median']:.3f} s"
    )
