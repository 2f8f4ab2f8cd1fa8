"""`python -m benchmarks scaling`: training on 1 to N ranks, weak and strong, by each strategy.

  weak     as many patches a rank and step, whatever the number of ranks
  strong   as many patches a step in all

The loop of the package trains on a batch in memory; each rank has an equal share of the cores, and
one rank alone has one such share, under strategy single. All jobs of a run are there at once and
take turns, so that throughput [patches/s] is compared in one run: speed-up over one rank,
efficiency (speed-up over ranks), and where both strategies are there horovod's over multiworker's.
Seconds an epoch are an epoch's patches over a run's throughput; mean and standard deviation are
over runs, each by new processes, as in the papers' figures.
"""

from __future__ import annotations

import json
import pathlib
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from benchmarks import options, record, turns
from kerass2 import config

DISTRIBUTED = ("horovod", "multiworker")
MODES = ("weak", "strong")
WARM_UP = 2
# Patches of an epoch of the papers: DSen2's 45 tiles with 8000 patches each; BigEarthNet's official
# training split.
EPOCHS = {"superres_20m": 45 * 8000, "superres_60m": 45 * 8000, "bigearthnet": 269_695}

# (strategy, ranks)
Key = tuple[str, int]
# (mode, precision) -> job -> runs -> seconds a step, one a turn
Found = dict[tuple[str, str], dict[Key, list[list[float]]]]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@options.experiment
@options.choice("--strategy", "names", DISTRIBUTED)
@options.choice("--mode", "modes", MODES)
@options.precisions
@click.option("--ranks", "sizes", multiple=True, type=click.IntRange(min=2), default=(2,))
@options.count(
    "--batch", 16, "Patches of a rank and step; strong: of as many ranks as there are, in all."
)
@options.patch
@options.count("--rounds", 3)
@click.option("--runs", default=2, show_default=True, type=click.IntRange(min=2))
@options.count("--steps", 3, "A turn.")
@click.option(
    "--train", type=click.IntRange(min=1), help="Patches of an epoch; default: as papers."
)
@options.settings
@click.option("--short", is_flag=True, help="A small model, two turns of a step.")
@record.output_options("scaling.jsonl")
def main(
    experiment: str,
    names: tuple[str, ...],
    modes: tuple[str, ...],
    precisions: tuple[str, ...],
    sizes: tuple[int, ...],
    batch: int,
    patch: int,
    rounds: int,
    runs: int,
    steps: int,
    train: int | None,
    settings: tuple[str, ...],
    short: bool,
    output: pathlib.Path,
) -> None:
    """Measure how training grows with ranks on this machine."""
    chosen = config.load(experiment)
    if short:
        rounds, steps, batch = 2, 1, min(batch, 4)
        chosen = config.override(chosen, shrink(chosen))
    chosen = config.override(chosen, settings)
    most = max(sizes)
    if "strong" in modes and any(batch * most % ranks for ranks in sizes):
        raise click.BadParameter(f"--batch {batch}: {batch * most} patches for {sizes} ranks")
    case = {"experiment": chosen.to_json(), "patch": patch}
    cases = [(mode, precision) for mode in modes for precision in precisions]
    found: Found = {each: {} for each in cases}
    keys: list[Key] = [("single", 1), *((name, ranks) for ranks in sizes for name in names)]
    starts = {_name(key): start(*key, most, case) for key in keys}
    for _ in range(runs):
        with turns.open_jobs(starts) as jobs:
            for mode, precision in cases:
                requests = {
                    _name(key): request(precision, local(mode, batch, key[1], most), steps)
                    for key in keys
                }
                for name, seconds in turns.take_turns(jobs, requests, rounds).items():
                    key = (name.split()[0], int(name.split()[1]))
                    found[mode, precision].setdefault(key, []).append(seconds)
    epoch = train or EPOCHS[chosen.data.task]
    cores = len(turns.share_cores(most)[0])
    what = {"experiment": chosen.name, "patch": patch, "train": epoch, "cores_each": cores}
    if settings or short:
        what["settings"] = [*(shrink(chosen) if short else ()), *settings]
    for (mode, precision), jobs_found in found.items():
        labels = {**what, "precision": precision, "mode": mode}
        report(jobs_found, names, labels, batch, most, steps, runs, output)


def shrink(experiment: config.Experiment) -> list[str]:
    """Settings of a model that is small enough to look at."""
    options = {"s2x": {"filters": 16, "blocks": 2}, "s6x": {"filters": 16, "blocks": 2}}
    options |= {"dsen2": {"filters": 16, "blocks": 2}, "resnet": {"depth": 10, "width": 8}}
    found = options.get(experiment.model.name, {})
    return [f"model.options.{key}={value}" for key, value in found.items()]


def start(strategy: str, ranks: int, most: int, case: Mapping[str, Any]) -> Callable[[], turns.Job]:
    """What starts a job of ranks that have a share of the cores each, as if there were `most`."""
    shares = turns.share_cores(most)[:ranks]
    cores = sorted({core for share in shares for core in share})
    rank = [sys.executable, "-m", "benchmarks.scaling_rank"]
    rank.append(json.dumps({**case, "strategy": strategy}))
    command = turns.launched(strategy, ranks, cores, rank)
    return lambda: turns.Job(_name((strategy, ranks)), [command], ranks)


def local(mode: str, batch: int, ranks: int, most: int) -> int:
    """Patches of a rank and step."""
    return batch if mode == "weak" else batch * most // ranks


def request(precision: str, batch: int, steps: int, kind: str = "loop") -> dict[str, Any]:
    """What scaling_rank is asked."""
    what = {"kind": kind, "precision": precision, "batch": batch}
    return {**what, "steps": steps, "warm_up": WARM_UP}


def report(
    found: Mapping[Key, Sequence[Sequence[float]]],
    names: Sequence[str],
    labels: dict[str, Any],
    batch: int,
    most: int,
    steps: int,
    runs: int,
    output: pathlib.Path,
) -> None:
    """Append and print the lines of one mode and precision; what failed in a run is left out."""
    whole = {key: seconds for key, seconds in found.items() if len(seconds) == runs}
    for key in found.keys() - whole.keys():
        turns.warn(f"left out: {_name(key)}: it did not come through all runs")
    base = whole.get(("single", 1))
    if base is None:
        turns.warn("left out: everything, for want of one rank alone")
        return
    for name in names:
        curve = {1: base, **{key[1]: found for key, found in whole.items() if key[0] == name}}
        for ranks, seconds in curve.items():
            patches = ranks * local(labels["mode"], batch, ranks, most)
            what = {**labels, "strategy": name, "ranks": ranks, "global_batch": patches}
            one = local(labels["mode"], batch, 1, most)
            figures = list_figures(seconds, base, ranks, patches, one, labels["train"], steps)
            record.append(output, "scaling", **what, **figures)
            click.echo(_describe(what, figures))
    for ranks in sorted({ranks for _, ranks in whole} - {1}):
        pair = [whole.get((name, ranks)) for name in DISTRIBUTED]
        if pair[0] is not None and pair[1] is not None:
            ratios = [b / a for a, b in zip(_flat(pair[0]), _flat(pair[1]), strict=True)]
            ratio = record.figure(ratios, "1", warm_up=WARM_UP, steps=steps)
            what = {key: value for key, value in labels.items() if key != "train"}
            what |= {"ranks": ranks, "batch": local(labels["mode"], batch, ranks, most)}
            record.append(output, "strategies", **what, ratio=ratio)
            click.echo(
                f"horovod over multiworker, {labels['mode']}, {labels['precision']}, {ranks} ranks:"
                f" {record.tell(ratio, 3)}"
            )


def list_figures(
    seconds: Sequence[Sequence[float]],
    base: Sequence[Sequence[float]],
    ranks: int,
    patches: int,
    base_patches: int,
    epoch: int,
    steps: int,
) -> dict[str, Any]:
    """Figures of `ranks` ranks, from seconds a step by run and turn, beside those of one rank."""

    def figure(values: Sequence[float], unit: str) -> dict[str, Any]:
        return record.figure(values, unit, warm_up=WARM_UP, steps=steps)

    own, alone = _flat(seconds), _flat(base)
    ups = [(patches / s) / (base_patches / b) for s, b in zip(own, alone, strict=True)]
    epochs = [epoch * statistics.median(run) / patches for run in seconds]
    return {
        "seconds": figure(own, "s"),
        "throughput": figure([patches / s for s in own], "patches/s"),
        "speed_up": figure(ups, "1"),
        "efficiency": figure([up / ranks for up in ups], "1"),
        "epoch_seconds": {
            **figure(epochs, "s"),
            "mean": statistics.mean(epochs),
            "std": statistics.stdev(epochs),
        },
    }


def _flat(runs: Sequence[Sequence[float]]) -> list[float]:
    return [seconds for run in runs for seconds in run]


def _describe(what: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    epoch = figures["epoch_seconds"]
    return (
        f"{what['mode']}, {what['precision']}, {what['strategy']}, {what['ranks']} ranks: "
        f"{figures['throughput']['median']:.1f} patches/s, speed-up "
        f"{figures['speed_up']['median']:.2f}, efficiency {record.tell(figures['efficiency'], 3)}, "
        f"an epoch {epoch['mean']:.0f} s (standard deviation {epoch['std']:.1f})"
    )


def _name(key: Key) -> str:
    return f"{key[0]} {key[1]}"
