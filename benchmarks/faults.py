"""`python -m benchmarks faults`: what it costs to be ready for faults.

  checkpoint every 10 s   seconds that the loop waits for a checkpoint, and processor time of the
                          thread that writes it, as if a step lost all of it; over 10 s
  10 s with a checkpoint  measured: steps of 10 s with one checkpoint, over as many without
  weight check            seconds of a comparison of the ranks' weights, over the steps between two

The first and the last on ranks of one core each; every value is one measurement.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import click

from benchmarks import options, record
from benchmarks.step_rank import WARM_UP
from kerass2 import config

SECONDS = 10.0
RANKS = {"single": 1, "horovod": 2, "multiworker": 2}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@options.experiment
@options.count("--batch", 16, "Patches a step and rank.")
@options.patch
@options.count("--rounds", 3, "Measurements of each.")
@click.option("--seconds", default=SECONDS, show_default=True, help="Between two checkpoints.")
@click.option("--strategy", "names", multiple=True, default=tuple(RANKS), show_default=True)
@options.settings
@record.output_options("faults.jsonl")
def main(
    experiment: str,
    batch: int,
    patch: int,
    rounds: int,
    seconds: float,
    names: tuple[str, ...],
    settings: tuple[str, ...],
    output: pathlib.Path,
) -> None:
    """Measure checkpoints and weight checks on this machine."""
    chosen = config.override(config.load(experiment), settings)
    case = {"experiment": chosen.to_json(), "batch": batch, "patch": patch, "rounds": rounds}
    every = chosen.run.check_every or config.RunConfig().check_every
    for name in names:
        found = _measure({**case, "strategy": name, "seconds": seconds})
        what: dict[str, Any] = {"experiment": chosen.name, "batch": batch, "patch": patch}
        what |= {"strategy": name, "step_seconds": found["step"]}
        costs = [
            (wait + thread) / seconds
            for wait, thread in zip(found["wait"], found["thread"], strict=True)
        ]
        _report(output, f"checkpoint every {seconds:g} s", costs, what)
        _report(output, f"{seconds:g} s with a checkpoint", found["with"], what)
        if RANKS[name] > 1:
            checks = [each / (every * found["step"]) for each in found["check"]]
            _report(output, f"weight check every {every} steps", checks, what)


def _measure(case: dict[str, Any]) -> dict[str, Any]:
    """What faults_rank.main writes, by new processes."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "found.json"
        case = {**case, "folder": folder, "output": str(path)}
        command = [sys.executable, "-m", "benchmarks.faults_rank", json.dumps(case)]
        if case["strategy"] != "single":
            launch = [sys.executable, "-m", "strategies.launch", "--strategy", case["strategy"]]
            command = [*launch, "--workers", str(RANKS[case["strategy"]]), "--", *command]
        subprocess.run(command, check=True)
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def _report(output: pathlib.Path, name: str, ratios: list[float], what: dict[str, Any]) -> None:
    """Append one record and print it."""
    found = record.figure(ratios, "1", warm_up=WARM_UP)
    record.append(output, name, **what, ratio=found)
    click.echo(
        f"{what['strategy']}, {name}: {record.tell(found, 4)}, a step {what['step_seconds']:.3f} s"
    )
