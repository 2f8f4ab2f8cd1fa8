"""`python -m benchmarks startup`: from the command to the first step, 2 ranks against 1.

Seconds until kerass2.fit has logged its first step: Python, libraries, data, model, ranks that find
each other and compare what they have, the compiled step. One rank has one core, as each of two has.
All take turns; a ratio is that of one turn.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import click

from benchmarks import options, record

# Strategy -> ranks.
RANKS = {"single": 1, "horovod": 2, "multiworker": 2}
POLL_SECONDS = 0.005


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@options.compact
@click.option("--data", type=click.Path(path_type=pathlib.Path), help="Default: made up.")
@options.count("--batch", 16, "Patches a step and rank.")
@options.count("--rounds", 5, "Measurements of each.")
@options.settings
@record.output_options("startup.jsonl")
def main(
    experiment: str,
    data: pathlib.Path | None,
    batch: int,
    rounds: int,
    settings: tuple[str, ...],
    output: pathlib.Path,
) -> None:
    """Measure how long this machine takes to begin."""
    seconds: dict[str, list[float]] = {name: [] for name in RANKS}
    with tempfile.TemporaryDirectory() as folder:
        data = data or _prepare(pathlib.Path(folder) / "data")
        # The very first reads all files from the disk, the others from memory.
        turns = [("single", 0), *((name, turn) for turn in range(1, rounds + 1) for name in RANKS)]
        for name, turn in turns:
            workdir = pathlib.Path(folder) / f"{turn}-{name}"
            options = [f"run.global_batch={batch * RANKS[name]}", "run.log_every=1", *settings]
            found = _measure(name, experiment, data, workdir, options)
            if turn:
                seconds[name].append(found)
    what: dict[str, Any] = {"experiment": experiment, "batch": batch}
    for name, taken in seconds.items():
        times = record.figure(taken, "s", warm_up=1)
        ratios = [many / one for many, one in zip(taken, seconds["single"], strict=True)]
        ratio = record.figure(ratios, "1", warm_up=1)
        ranks = RANKS[name]
        record.append(
            output, "start-up", **what, strategy=name, ranks=ranks, seconds=times, ratio=ratio
        )
        click.echo(
            f"{name}, {ranks} ranks: {times['median']:.1f} s to the first step, "
            f"{record.tell(ratio)} of one rank's"
        )


def _prepare(folder: pathlib.Path) -> pathlib.Path:
    """A small data set."""
    command = ["-m", "kerass2.prepare", "synthetic", "-o", str(folder), "--task", "superres_20m"]
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return folder


def _measure(
    strategy: str,
    experiment: str,
    data: pathlib.Path,
    workdir: pathlib.Path,
    settings: Sequence[str],
) -> float:
    """Seconds from the command to the line of its first step."""
    workers = [] if RANKS[strategy] == 1 else ["--workers", str(RANKS[strategy])]
    ranks = ["--strategy", strategy, *workers, "--data", str(data), "--workdir", str(workdir)]
    options = ["--steps", "2", *(word for text in settings for word in ("--set", text))]
    core = {min(os.sched_getaffinity(0))}
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "kerass2.fit", experiment, *ranks, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=None if workers else lambda: os.sched_setaffinity(0, core),
    )
    log = workdir / "log.jsonl"
    while process.poll() is None and not (log.exists() and '"loss"' in log.read_text()):
        time.sleep(POLL_SECONDS)
    taken = time.perf_counter() - begin
    _, err = process.communicate()
    if process.returncode:
        raise click.ClickException(f"kerass2.fit failed:\n{err[-3000:]}")
    return taken
