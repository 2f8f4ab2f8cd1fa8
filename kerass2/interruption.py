"""Signals that ask a run to save and stop: a batch system's warning, or a request to end.

SIGUSR1  the wall time is nearly over (`sbatch --signal=USR1@120`): save, put the job back into the
         queue, end with code 75 (EX_TEMPFAIL of sysexits.h: try again).
SIGTERM  the job is to end (scancel, preemption, kill): save, end with code 143. It is not put back:
         a cancelled job must stay so, and a preempted one is put back by Slurm itself.

After the last step the run goes on to its end whatever comes; what is left is a validation.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from strategies import cluster

if TYPE_CHECKING:
    from strategies.base import Strategy

# Signal -> exit code. Of both, the later one here counts.
EXIT_CODES = {signal.SIGUSR1: 75, signal.SIGTERM: 128 + signal.SIGTERM}


class Interruption:
    """What signals have asked of this process."""

    def __init__(self) -> None:
        """None has come."""
        self._come: set[int] = set()

    @property
    def pending(self) -> bool:
        """True once a signal has come to this rank."""
        return bool(self._come)

    def note(self, number: int) -> None:
        """A signal has come."""
        self._come.add(number)

    def agree(self, strategy: Strategy) -> signal.Signals | None:
        """The signal that has come to any rank, None for none. Every rank calls it."""
        import numpy as np

        total = strategy.sum(np.array([number in self._come for number in EXIT_CODES], np.float64))
        come = [number for number, count in zip(EXIT_CODES, total, strict=True) if count]
        return come[-1] if come else None


@contextlib.contextmanager
def listen() -> Iterator[Interruption]:
    """Note the signals inside the `with` block instead of dying of them. Main thread only."""
    asked = Interruption()
    previous = {number: signal.signal(number, lambda n, _: asked.note(n)) for number in EXIT_CODES}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def requeue() -> str:
    """Put this process' batch job back into the queue; what has come of it, in words."""
    command = cluster.requeue_command(os.environ)
    if command is None:
        return "--resume goes on from there"
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        failure = result.stderr.strip() if result.returncode else ""
    except (OSError, subprocess.SubprocessError) as error:
        failure = str(error)
    if failure:
        return f"{' '.join(command)} failed ({failure}): submit again with --resume"
    return "the job is back in the queue, and goes on from there"


def explain(number: signal.Signals, done: int, saved: int) -> None:
    """Say that the run ends early, and put the job back where that is asked for. Rank 0 calls it.

    It does so before the ranks leave: the batch script ends with them, and the job with it.

    Args:
        number: the signal.
        done: steps done.
        saved: steps after which the newest checkpoint was written.
    """
    written = "written" if saved == done else f"not written, the last one is of {saved} steps"
    click.echo(f"{number.name} after {done} steps: checkpoint {written}", err=True)
    click.echo(requeue() if number == signal.SIGUSR1 else "--resume goes on from there", err=True)
