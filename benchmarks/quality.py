"""`python -m benchmarks quality`: metrics against ranks, batch size and training time.

Each case is a training of its own by kerass2.fit, for a time (--max-time) or a number of steps, and
an evaluation on the test split by kerass2.evaluate; again for each seed. The form of the papers'
tables: metrics by number of ranks and global batch, and over training time. bicubic (or for labels
the classes' frequencies), which no training changes, stands beside them.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import click

from benchmarks import options, record, scaling
from kerass2 import config

STRATEGIES = ("single", *scaling.DISTRIBUTED)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@options.compact
@options.data
@click.option(
    "--strategy", type=click.Choice(scaling.DISTRIBUTED), default="horovod", show_default=True
)
@click.option("--ranks", "sizes", multiple=True, type=click.IntRange(min=1), default=(1, 2))
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(min=1),
    default=(16, 64),
    help="Global.",
)
@click.option("--max-time", "times", multiple=True, help="Of a training, e.g. 60s; again for more.")
@click.option("--steps", "steps", multiple=True, type=click.IntRange(min=1), help="Instead.")
@options.count("--seeds", 1)
@options.settings
@click.option("--short", is_flag=True, help="A tiny model, a few steps, synthetic data.")
@record.output_options("quality.jsonl")
def main(
    experiment: str,
    data: str | None,
    strategy: str,
    sizes: tuple[int, ...],
    batches: tuple[int, ...],
    times: tuple[str, ...],
    steps: tuple[int, ...],
    seeds: int,
    settings: tuple[str, ...],
    short: bool,
    output: pathlib.Path,
) -> None:
    """Measure what trainings come to on this machine."""
    if times and steps:
        raise click.UsageError("--max-time and --steps: give one of them")
    for each in times:
        config.parse_duration(each)
    if short:
        data, batches, steps, times = data or "synthetic", batches[:1], steps or (4,), ()
        settings = (*scaling.shrink(config.load(experiment)), *settings)
    if not times and not steps:
        times = ("60s",)
    budgets = [("--max-time", each) for each in times] + [("--steps", str(n)) for n in steps]
    failed = 0
    for ranks in sizes:
        for batch in batches:
            for budget in budgets:
                what: dict[str, Any] = {"experiment": experiment, "data": data or "sample"}
                name = "single" if ranks == 1 else strategy
                what |= {"strategy": name, "ranks": ranks, "global_batch": batch}
                what |= {"budget": " ".join(budget).removeprefix("--"), "settings": settings}
                found = [_train(what, data, budget, seed) for seed in range(seeds)]
                lines = [each for each in found if each is not None]
                failed += len(found) - len(lines)
                if lines:
                    _report(what, lines, output)
    if failed:
        raise click.ClickException(f"{failed} trainings failed (their errors above)")


def _report(what: dict[str, Any], lines: Sequence[Mapping[str, Any]], output: pathlib.Path) -> None:
    figures = {
        name: record.figure([line[name] for line in lines], unit_of(name))
        for name in lines[0]
        if all(name in line for line in lines)
    }
    record.append(output, "quality", **what, **figures)
    # The model's before another method's, which have its name behind theirs.
    names = sorted(figures, key=lambda name: len(name.split()))
    shown = [f"{name} {figures[name]['median']:.4g}" for name in names[:8]]
    click.echo(
        f"{what['strategy']}, {what['ranks']} ranks, batch {what['global_batch']}, "
        f"{what['budget']}: {', '.join(shown)}"
    )


def unit_of(name: str) -> str:
    """The unit of a metric, by its name."""
    units = {"rmse": "DN", "sre": "dB", "psnr": "dB", "sam": "deg", "seconds": "s"}
    return units.get(name.split()[0], "1")


def _train(
    what: Mapping[str, Any], data: str | None, budget: tuple[str, str], seed: int
) -> dict[str, float] | None:
    """Metrics of one training, "steps" and "seconds" of it; None where it failed, which is said."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder) / "work"
        fit = [what["experiment"], "--workdir", str(workdir), "--strategy", what["strategy"]]
        if what["ranks"] > 1:
            fit += ["--workers", str(what["ranks"])]
        fit += [*budget, *(["--data", data] if data else [])]
        chosen = [f"run.global_batch={what['global_batch']}", f"run.seed={seed}", "run.log_every=1"]
        fit += [f"--set={each}" for each in (*chosen, *what["settings"])]
        evaluate = [str(workdir), *(["--data", data] if data else [])]
        for module, arguments in (("kerass2.fit", fit), ("kerass2.evaluate", evaluate)):
            command = [sys.executable, "-m", module, *arguments]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode:
                last = result.stderr.strip().splitlines()[-1:] or ["no output"]
                click.echo(f"left out: {' '.join(command[1:4])} ...: {last[0]}", err=True)
                return None
        last_line = json.loads((workdir / "log.jsonl").read_text().splitlines()[-1])
        metrics = flatten(json.loads((workdir / "evaluation.json").read_text())["methods"])
        return {**metrics, "steps": float(last_line["step"]), "seconds": last_line["seconds"]}


def flatten(methods: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Means over bands of an evaluation, or of labels over samples and classes ("micro f1").

    The model's by their name, another method's by "name METHOD"; what is of single bands and
    classes stays out.
    """
    found: dict[str, float] = {}
    for method, metrics in methods.items():
        suffix = "" if method == "model" else f" {method}"
        for name, value in metrics.items():
            if not isinstance(value, dict):
                means = {name: value}
            elif "mean" in value:
                means = {name: value["mean"]}
            else:
                means = {f"{name} {key}": inner for key, inner in value.items()}
            for key, mean in means.items():
                if isinstance(mean, int | float) and not isinstance(mean, bool):
                    found[key + suffix] = float(mean)
    return found
