"""Runs of kerass2.fit in which a rank fails once: what comes of them, and of many of them.

For test_faults.py here and in tests/cluster.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np

SCRIPT = pathlib.Path(__file__).parent / "faulty_fit.py"
STEPS = 24
SETTINGS = {
    "model.options.filters": 8,
    "model.options.blocks": 2,
    "run.precision": "float32",
    "run.global_batch": 12,
    "run.log_every": 1,
    "run.checkpoint_every": 4,
    "run.check_every": 4,
    "run.keep": 3,
}
# Which random faults; others on request, so that a test that failed fails again.
SEED = int(os.environ.get("KERASS2_SEED", "20261122"))
# What strategies.launch says when it has ended all ranks.
WORD = re.compile(r"rank \d+ (was|ended)")
# From the fault to the end of all ranks, and of what waits for a stopped one [s].
LIMIT, STALL = 30.0, 10.0
# Kind -> when it may happen. A full disk costs a checkpoint and no rank.
EVERYWHERE = ("start", "step", "checkpoint", "validation")
KINDS = {
    "kill": EVERYWHERE,
    "stop": EVERYWHERE,
    "raise": EVERYWHERE,
    "memory": EVERYWHERE,
    "exit": EVERYWHERE,
    "damage": ("step",),
    "full": ("checkpoint",),
}
# Steps when a checkpoint has been written that is not the first.
DAMAGED_AT = (15, 19, 23)
# Kind -> what the launcher says of it last, or before the traceback.
ENDINGS = {
    "kill": "was killed by SIGKILL",
    "damage": "was killed by SIGKILL",
    "stop": "was stopped by a signal and did not go on",
    "raise": "RuntimeError: the injected fault",
    "memory": "Unable to allocate",
    "exit": "ended with exit code 3",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One fault in one run."""

    strategy: str
    kind: str
    rank: int
    when: str
    step: int

    def __str__(self) -> str:
        return f"{self.strategy} {self.kind} rank {self.rank} {self.when} {self.step}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of it."""

    code: int
    output: str
    error: list[str]
    seconds: float | None
    """From the fault to the launcher's word of it; None where no rank ended."""
    there: list[str]
    """Checkpoints that lay there when it happened."""

    @property
    def resumed_after(self) -> int | None:
        """Steps after which the run went on; None if it did not begin again, 0 from the start."""
        plans = re.findall(r"^ +steps +\d+(?:, resuming after (\d+))?", self.output, re.MULTILINE)
        return int(plans[-1] or 0) if len(plans) > 1 else None


def draw(generator: random.Random, strategies: Sequence[str]) -> Case:
    """A random fault."""
    strategy = generator.choice(strategies)
    # A single process that is stopped keeps nobody waiting: whoever stopped it may let it go on.
    kind = generator.choice([k for k in KINDS if (strategy, k) != ("single", "stop")])
    when = generator.choice(KINDS[kind])
    rank = generator.randrange(1 if strategy == "single" else 2)
    if kind in ("damage", "full"):
        rank = 0
    # A run writes six checkpoints.
    steps = {"step": range(STEPS), "checkpoint": range(6)}.get(when, range(1))
    step = generator.choice(DAMAGED_AT if kind == "damage" else steps)
    if kind == "full":
        step = min(step, 4)  # the last file that is written holds the weights to compare
    return Case(strategy, kind, rank, when, step)


def command(data: pathlib.Path, workdir: pathlib.Path, strategy: str, *more: str) -> list[str]:
    """Arguments of kerass2.fit."""
    settings = [text for key, value in SETTINGS.items() for text in ("--set", f"{key}={value}")]
    workers = [] if strategy == "single" else ["--workers", "2"]
    where = ["--data", str(data), "--workdir", str(workdir), "--strategy", strategy, *workers]
    return ["dsen2_20m_compact", *where, "--steps", str(STEPS), *settings, *more]


def run(case: Case, data: pathlib.Path, workdir: pathlib.Path, *more: str) -> Outcome:
    """Train with that fault."""
    note = workdir.with_suffix(".note")
    fault = {**dataclasses.asdict(case), "note": str(note)}
    del fault["strategy"]
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *command(data, workdir, case.strategy, *more)],
        env={**os.environ, "FAULT": json.dumps(fault), "KERASS2_STALL_SECONDS": str(STALL)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    output: list[str] = []
    lines, ended_at = [], None
    with process:
        reader = threading.Thread(target=lambda: output.append(process.stdout.read()))
        reader.start()
        for line in process.stderr:
            lines.append(line.rstrip("\n"))
            if ended_at is None and WORD.match(line):
                ended_at = time.time()
        reader.join()
    code = process.returncode
    assert note.exists(), f"{case}: it did not happen\n" + "\n".join(lines[-30:])
    found = json.loads(note.read_text())
    seconds = None if ended_at is None else ended_at - found["time"]
    return Outcome(code, output[0], lines, seconds, found["checkpoints"])


def weights(workdir: pathlib.Path) -> np.ndarray:
    """All weights of the last checkpoint, which is of the last step."""
    with np.load(workdir / "checkpoints" / f"step-{STEPS:08d}.npz") as file:
        names = sorted(name for name in file.files if name.startswith("model/"))
        return np.concatenate([np.ravel(file[name]) for name in names])


def check_end(case: Case, outcome: Outcome) -> None:
    """All ranks ended in time, and what failed stands last."""
    text = "\n".join(outcome.error[-40:])
    assert outcome.code == 1, text
    assert outcome.seconds is not None, text
    assert outcome.seconds < LIMIT + (STALL if case.kind == "stop" else 0), text
    who = [line for line in outcome.error if WORD.match(line)]
    assert who[-1].startswith(f"rank {case.rank} "), text
    last = outcome.error[outcome.error.index(who[-1]) :]
    assert any(ENDINGS[case.kind] in line for line in last), text


def check_recovery(
    case: Case, outcome: Outcome, workdir: pathlib.Path, expected: np.ndarray
) -> None:
    """The run came to its end, with the weights of an unbroken one, and lost no checkpoint."""
    text = f"{case}\n" + "\n".join(outcome.error[-40:])
    assert outcome.code == 0, text
    difference = np.linalg.norm(weights(workdir) - expected) / np.linalg.norm(expected)
    assert difference <= (0 if case.strategy == "single" else 1e-6), f"{difference} {text}"
    if case.kind == "full":
        assert "could not be written (No space left on device)" in text
        return
    assert outcome.seconds is not None, text
    assert outcome.seconds < LIMIT + (STALL if case.kind == "stop" else 0), text
    sound = outcome.there[:-1] if case.kind == "damage" else outcome.there
    newest = max((int(name[5:13]) for name in sound), default=0)
    if outcome.resumed_after is not None:  # None: it had not shown a plan before it failed
        assert outcome.resumed_after >= newest, text


def table(rows: Iterator[tuple[Case, Outcome]]) -> str:
    """Markdown: how many faults of each kind, and the longest time until all ranks had ended."""
    faults = collections.Counter[str]()
    longest: dict[str, float] = {}
    for case, outcome in rows:
        faults[case.kind] += 1
        longest[case.kind] = max(longest.get(case.kind, 0.0), outcome.seconds or 0.0)
    lines = ["| fault | injected | ended all ranks within [s] |", "|---|---|---|"]
    lines += [f"| {kind} | {n} | {longest[kind]:.1f} |" for kind, n in sorted(faults.items())]
    return "\n".join(lines)
