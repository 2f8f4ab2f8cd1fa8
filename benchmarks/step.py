"""`python -m benchmarks step`: what the loop, the ranks and the precision cost or bring.

Three ratios on one batch in memory, each from measurements that take turns in one run:
  loop over bare          the package's loop under single, against a bare tf.function step
  efficiency              2 ranks of one core each, against twice one rank of one core
  bfloat16 over float32   the loop in both precisions
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import click

from benchmarks import record
from kerass2 import config

PRECISIONS = ("float32", "bfloat16")
DISTRIBUTED = ("horovod", "multiworker")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--experiment", default="superres_20m", show_default=True, help="Whose model.")
@click.option("--batch", default=16, show_default=True, help="Patches a step and rank.")
@click.option("--patch", default=32, show_default=True, help="Edge of a patch [px of 10 m].")
@click.option("--rounds", default=5, show_default=True, help="Turns that each variant takes.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="As in kerass2.fit.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=pathlib.Path),
    default="benchmarks/results/local/step.jsonl",
    show_default=True,
    help="Record to append to.",
)
def main(
    experiment: str,
    batch: int,
    patch: int,
    rounds: int,
    settings: tuple[str, ...],
    output: pathlib.Path,
) -> None:
    """Measure the training step on this machine."""
    chosen = config.override(config.load(experiment), settings)
    case = {"experiment": chosen.to_json(), "batch": batch, "patch": patch, "rounds": rounds}
    what = {"experiment": chosen.name, "batch": batch, "patch": patch}
    for precision in PRECISIONS:
        bare, loop = _measure([], case, "single", [("bare", precision), ("loop", precision)])
        throughput = record.figure([batch / s for s in loop], "patches/s", warm_up=1)
        _report(output, "loop over bare", _ratios(bare, loop), precision, what, throughput)
    float32, bfloat16 = _measure([], case, "single", [("loop", name) for name in PRECISIONS])
    _report(output, "bfloat16 over float32", _ratios(float32, bfloat16), "both", what)
    for precision in PRECISIONS:
        for strategy, ratios in _efficiencies(case, precision).items():
            _report(output, f"efficiency of 2 ranks, {strategy}", ratios, precision, what)


def _ratios(slow: list[float], fast: list[float]) -> list[float]:
    """How many times faster, turn by turn."""
    return [a / b for a, b in zip(slow, fast, strict=True)]


def _efficiencies(case: dict[str, Any], precision: str) -> dict[str, list[float]]:
    """Throughput of two ranks of one core each over twice that of one rank on one core.

    Processes start anew in each turn, in the order: alone, horovod, multiworker.
    """
    core = str(min(os.sched_getaffinity(0)))
    ratios: dict[str, list[float]] = {strategy: [] for strategy in DISTRIBUTED}
    variants = [("loop", precision)]
    for _ in range(case["rounds"]):
        (alone,) = _measure(["taskset", "-c", core], case, "single", variants)
        for strategy in DISTRIBUTED:
            launcher = [sys.executable, "-m", "strategies.launch", "--strategy", strategy]
            (together,) = _measure([*launcher, "--workers", "2", "--"], case, strategy, variants)
            median = record.figure(alone, "s")["median"] / record.figure(together, "s")["median"]
            ratios[strategy].append(median)
    return ratios


def _measure(
    prefix: list[str], case: dict[str, Any], strategy: str, variants: list[tuple[str, str]]
) -> list[list[float]]:
    """Seconds a step of each variant, by new processes."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "seconds.json"
        case = {**case, "strategy": strategy, "variants": variants, "output": str(path)}
        rank = [sys.executable, "-m", "benchmarks.step_rank", json.dumps(case)]
        subprocess.run([*prefix, *rank], check=True)
        found: list[list[float]] = json.loads(path.read_text())
        return found


def _report(
    output: pathlib.Path,
    name: str,
    ratios: list[float],
    precision: str,
    what: dict[str, Any],
    throughput: dict[str, Any] | None = None,
) -> None:
    """Append one record and print it."""
    ratio = record.figure(ratios, "1", warm_up=1)
    more = {"throughput": throughput} if throughput else {}
    record.append(output, name, precision=precision, **what, ratio=ratio, **more)
    low, high = ratio["quartiles"]
    rate = f", {throughput['median']:.1f} patches/s" if throughput else ""
    click.echo(f"{name}, {precision}: {ratio['median']:.3f} ({low:.3f} to {high:.3f}){rate}")
