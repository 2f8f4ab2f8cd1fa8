"""Start N ranks on this machine for either strategy.

One rank's failure ends all, with its traceback last.

    python -m strategies.launch --strategy horovod --workers 2 -- python my_training.py

Inside horovodrun, mpirun or srun this is not used: there the launcher has started the ranks.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import importlib
import math
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

from strategies import STRATEGIES
from strategies.base import StrategyError
from strategies.cluster import JOB, RESTARTS, batch_job, detect

POLL_SECONDS = 0.05
# Time between the polite and the hard signal to ranks that outlive a failed one.
GRACE_SECONDS = 5.0
# The same where this process itself is asked to end: ranks then write a checkpoint first.
SAVE_SECONDS = 25.0
# Exit codes of ranks that are the whole job's: arguments refused; saved, to be started again
# (kerass2.interruption).
REFUSED, TRY_AGAIN = 2, 75
# Time after the first failure in which others may fail: the first to leave is not always the cause.
SETTLE_SECONDS = 1.0
# TensorFlow's tracebacks are long; the line that begins one must still be there.
TAIL_LINES = 2000
# Signals that nobody sends for a peer's failure (a peer's failure ends in SIGABRT or an error).
CAUSAL_SIGNALS = frozenset({signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS})
# What Horovod and TensorFlow write on a rank that suffers from another rank's failure.
COLLECTIVE_ERRORS = (
    "HorovodInternalError",
    "has been shut down",
    "UnavailableError",
    "UNAVAILABLE:",
    "CoordinationService",
    "Collective ops is aborted",
    # Of Horovod where gloo gives up by itself, before Horovod knows of a rank that is gone.
    "gloo/transport",
)
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def default_workers() -> int:
    """Ranks that a distributed strategy starts when not told: one per visible GPU, else 2."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return (
            len([device for device in visible.split(",") if device.strip() not in ("", "-1")]) or 2
        )
    if not shutil.which("nvidia-smi"):
        return 2
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listed.stdout.count("GPU ") or 2


def needed(strategy: str, restarts: int = 0) -> bool:
    """True where `run` must start the ranks: outside any launcher.

    One process is started only to be started again.
    """
    if detect(os.environ).launcher != "none":
        return False
    return strategy != "single" or (restarts > 0 and JOB not in os.environ)


def run(command: Sequence[str], *, strategy: str, workers: int, restarts: int = 0) -> int:
    """Run `workers` copies of `command` as the ranks of one job and wait for them.

    Rank 0 writes to this process' output as it is, the others with a prefix. When a rank fails,
    the others are ended within seconds and the failed rank's traceback is printed last. SIGUSR1 is
    passed on to the ranks, SIGTERM too; after the latter they have SAVE_SECONDS.

    Args:
        command: of one rank.
        strategy: "horovod", "multiworker", or with `restarts` also "single".
        workers: number of ranks.
        restarts: how often all ranks are started again when one has failed; the environment tells
            them (cluster.JOB, cluster.RESTARTS), and what they go on with is theirs.

    Returns:
        0 if all ranks ended well, 2 if the failed rank refused its arguments, 75 if it has saved
        and wants to be started again, 130 if interrupted, else 1.
    """
    if strategy not in STRATEGIES or (strategy == "single" and not restarts):
        raise StrategyError(f"strategy {strategy!r} starts no ranks; horovod and multiworker do")
    if workers < 1:
        raise StrategyError(f"--workers {workers}: at least 1 rank is needed")
    job = batch_job(os.environ) or f"{socket.gethostname()}:{os.getpid()}:{time.time_ns()}"
    for attempt in range(restarts + 1):
        told = {JOB: job, RESTARTS: str(attempt)} if restarts else {}
        code, failure = _run_once(command, strategy, workers, told)
        again = bool(failure) and code != REFUSED and attempt < restarts
        if again:
            failure += f"\nStarting all ranks again: {attempt + 1} of {restarts}."
        if failure:
            print(failure, file=sys.stderr, flush=True)
        if not again:
            break
    return code


def _run_once(
    command: Sequence[str], strategy: str, workers: int, told: dict[str, str]
) -> tuple[int, str]:
    """Exit code, and the failure in words where a rank has failed."""
    with contextlib.ExitStack() as stack:
        environments: list[dict[str, str]] = [{}]
        if strategy != "single":
            module = importlib.import_module(STRATEGIES[strategy][0])
            environments = stack.enter_context(module.local_environments(workers))
        cores = _share_cores(workers)
        ranks = [
            _Rank(rank, command, {**os.environ, **environment, **told}, cores[rank])
            for rank, environment in enumerate(environments)
        ]
        grace = GRACE_SECONDS
        handlers = {
            signal.SIGTERM: lambda *_: sys.exit(143),
            signal.SIGUSR1: lambda number, _: _send(ranks, number),
        }
        previous = {number: signal.signal(number, new) for number, new in handlers.items()}
        try:
            failed = _wait(ranks)
        except KeyboardInterrupt:
            return 130, ""
        except SystemExit:
            grace = SAVE_SECONDS
            raise
        finally:
            _end(ranks, grace)
            for number, old in previous.items():
                signal.signal(number, old)
    if not failed:
        return 0, ""
    cause = _find_cause(failed)
    if cause.process.returncode == TRY_AGAIN:
        return TRY_AGAIN, ""
    refused = cause.process.returncode == REFUSED
    return REFUSED if refused else 1, cause.describe_failure()


class _Rank:
    """One process of the job and the threads that pass its output on."""

    def __init__(
        self, rank: int, command: Sequence[str], environment: dict[str, str], cores: set[int] | None
    ) -> None:
        self.rank = rank
        self.stopped = False
        self.tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        libc = ctypes.CDLL(None)
        parent = os.getpid()

        def before_exec() -> None:
            # A rank must not outlive this process, even one killed by SIGKILL.
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            if cores:
                os.sched_setaffinity(0, cores)

        self.process = subprocess.Popen(
            command,
            env={"TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1", **environment},
            stdout=None if rank == 0 else subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            preexec_fn=before_exec,
        )
        pipes = [(self.process.stdout, sys.stdout), (self.process.stderr, sys.stderr)]
        self.threads = [
            threading.Thread(target=self._forward, args=(pipe, screen), daemon=True)
            for pipe, screen in pipes
            if pipe is not None
        ]
        for thread in self.threads:
            thread.start()

    def _forward(self, pipe: IO[str], screen: IO[str]) -> None:
        prefix = "" if self.rank == 0 else f"[rank {self.rank}] "
        for line in pipe:
            if screen is sys.stderr:
                self.tail.append(line)
            screen.write(prefix + line)
            screen.flush()

    def note_whether_stopped(self) -> bool:
        """True if a signal (SIGSTOP) has stopped it and it has not gone on."""
        try:
            stat = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text()
        except OSError:
            return False
        # The state comes after the program's name in brackets: proc(5).
        self.stopped = stat.rpartition(")")[2].split()[0] == "T"
        return self.stopped

    @property
    def was_killed(self) -> bool:
        """True if a signal ended it that no other rank's failure brings about."""
        return self.stopped or -self.process.returncode in CAUSAL_SIGNALS

    @property
    def blames_others(self) -> bool:
        """True if its last lines hold the error of a collective, another rank's failure."""
        return any(error in line for line in self.tail for error in COLLECTIVE_ERRORS)

    def describe_failure(self) -> str:
        """How this rank failed: how it ended, and its last traceback or last lines."""
        code = self.process.returncode
        how = (
            f"was killed by {signal.Signals(-code).name}"
            if code < 0
            else f"ended with exit code {code}"
        )
        if self.stopped:
            how = "was stopped by a signal and did not go on"
        lines = list(self.tail)
        starts = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent")]
        verdicts = [line for line in lines if line.startswith("error: ")]
        shown = lines[starts[-1] :] if starts else lines[-5:]
        # A command's own verdict comes last, even where a library logged a traceback after it.
        if verdicts and shown[-1] != verdicts[-1]:
            shown = [*shown, verdicts[-1]]
        return f"rank {self.rank} {how}; the other ranks were ended.\n{''.join(shown)}".rstrip()


def _wait(ranks: Sequence[_Rank]) -> list[_Rank]:
    """The ranks that failed, earliest first, stopped ones before; none when all have ended well.

    After the first failure it waits SETTLE_SECONDS for the others.
    """
    failed: list[_Rank] = []
    deadline = math.inf
    while True:
        codes = [rank.process.poll() for rank in ranks]
        failed += [
            rank for rank, code in zip(ranks, codes, strict=True) if code and rank not in failed
        ]
        if failed:
            deadline = min(deadline, time.monotonic() + SETTLE_SECONDS)
        if None not in codes or time.monotonic() >= deadline:
            # Whoever waits for a stopped rank fails in its place.
            stopped = [rank for rank in ranks if failed and rank.note_whether_stopped()]
            return stopped + failed
        time.sleep(POLL_SECONDS)


def _find_cause(failed: Sequence[_Rank]) -> _Rank:
    """The rank whose failure brought the others': all output must have been read.

    A killed or stopped rank, else one with an error of its own, else the earliest.
    """
    return min(failed, key=lambda rank: (not rank.was_killed, rank.blames_others))


def _send(ranks: Sequence[_Rank], number: int) -> None:
    """Send a signal to the ranks that still run."""
    for rank in ranks:
        if rank.process.poll() is None:
            rank.process.send_signal(number)


def _end(ranks: Sequence[_Rank], grace: float) -> None:
    """End what still runs after `grace` [s], and pass on what is left of the output."""
    _send(ranks, signal.SIGTERM)
    deadline = time.monotonic() + grace
    for rank in ranks:
        try:
            rank.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.process.kill()
            rank.process.wait()
        for thread in rank.threads:
            thread.join(timeout=GRACE_SECONDS)


def _share_cores(workers: int) -> list[set[int] | None]:
    """Disjoint sets of cores, one a rank; None where there are too few.

    So the ranks do not fight for them.
    """
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // workers
    if share == 0:
        return [None] * workers
    return [set(cores[rank * share : (rank + 1) * share]) for rank in range(workers)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m strategies.launch`."""
    parser = argparse.ArgumentParser(prog="python -m strategies.launch", description=__doc__)
    parser.add_argument(
        "--strategy", required=True, choices=[n for n in STRATEGIES if n != "single"]
    )
    parser.add_argument(
        "--workers", type=int, default=None, help="ranks (default: one per GPU, else 2)"
    )
    parser.add_argument(
        "--restarts", type=int, default=0, help="how often to start again after a failure"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- command of one rank")
    given = parser.parse_args(arguments)
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    if not command:
        parser.error("no command after --")
    try:
        return run(
            command,
            strategy=given.strategy,
            workers=given.workers or default_workers(),
            restarts=given.restarts,
        )
    except StrategyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
