"""Measurements that take turns, A B A B in one run: jobs that wait, and measure when told.

A job is one rank or several, started as its strategy starts them; all jobs of a comparison are
there at once, and one measures while the others wait for their pipe. What a job measures is its
own; how long that takes is counted by the clock of the process that does it, without the way there.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

ADDRESS, SECRET = "KERASS2_BENCHMARK_ADDRESS", "KERASS2_BENCHMARK_SECRET"
START_SECONDS, ANSWER_SECONDS = 120.0, 300.0
POLL_SECONDS = 0.05
END_SECONDS = 5.0
TAIL = 6  # lines of a job that has failed

# A step; called with how many are to be made.
Run = Callable[[int], object]


class JobError(RuntimeError):
    """A job has ended or says nothing; the message has its last lines."""


def time_steps(run: Run, steps: int, warm_up: int = 0) -> float:
    """Seconds a step of run(steps), after run(warm_up), which brings ranks together too."""
    if warm_up:
        run(warm_up)
    begin = time.perf_counter()
    run(steps)
    return (time.perf_counter() - begin) / steps


def choose_steps(seconds: float, turn: float, most: int = 1000) -> int:
    """Steps of a turn of about `turn` seconds, of a step that takes `seconds`."""
    return max(1, min(most, math.ceil(turn / max(seconds, 1e-9))))


def answer(measure: Callable[[Any], Any], rank: int) -> None:
    """Be a rank of a job: measure(request) whenever told, until the other side goes."""
    host, _, port = os.environ[ADDRESS].rpartition(":")
    with Client((host, int(port)), authkey=bytes.fromhex(os.environ[SECRET])) as line:
        line.send_bytes(json.dumps(rank).encode())
        while True:
            try:
                request = json.loads(line.recv_bytes())
            except EOFError:
                return
            line.send_bytes(json.dumps(measure(request)).encode())


class Job:
    """Processes that were started together, of which `speakers` answer."""

    def __init__(
        self,
        name: str,
        commands: Sequence[Sequence[str]],
        speakers: int,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start each command; `ready` waits for their ranks."""
        self.name, self._speakers = name, speakers
        secret = secrets.token_bytes(16)
        self._listener = Listener(("127.0.0.1", 0), backlog=max(1, speakers), authkey=secret)
        host, port = self._listener.address
        told = {**os.environ, **(environment or {}), ADDRESS: f"{host}:{port}"}
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by close)
        self._lines: dict[int, Connection] = {}
        self._processes = [
            subprocess.Popen(
                command,
                env={"TF_CPP_MIN_LOG_LEVEL": "2", **told, SECRET: secret.hex()},
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
            )
            for command in commands
        ]
        self._waiter = threading.Thread(target=self._accept, daemon=True)
        self._waiter.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError, EOFError):  # closed from the other side
            while len(self._lines) < self._speakers:
                line = self._listener.accept()
                self._lines[json.loads(line.recv_bytes())] = line

    def ready(self, seconds: float = START_SECONDS) -> Job:
        """Wait until all ranks are there.

        Raises:
            JobError: one has ended, or they take longer.
        """
        deadline = time.monotonic() + seconds
        while len(self._lines) < self._speakers:
            self._check(deadline, f"{len(self._lines)} of {self._speakers} ranks came")
            time.sleep(POLL_SECONDS)
        return self

    def ask(self, request: Any, seconds: float = ANSWER_SECONDS) -> list[Any]:
        """What each rank answers, in the order of ranks.

        Raises:
            JobError: one has ended, or says nothing.
        """
        for line in self._lines.values():
            with contextlib.suppress(OSError):  # found below
                line.send_bytes(json.dumps(request).encode())
        deadline = time.monotonic() + seconds
        found = []
        for rank in sorted(self._lines):
            try:
                while not self._lines[rank].poll(POLL_SECONDS):
                    self._check(deadline, f"rank {rank} says nothing")
                found.append(json.loads(self._lines[rank].recv_bytes()))
            except (EOFError, OSError):
                raise JobError(self._explain(f"rank {rank} has ended")) from None
        return found

    def slowest(self, request: Any) -> float:
        """The largest of the ranks' answers: seconds of a step that all of them make."""
        return float(max(self.ask(request)))

    def _check(self, deadline: float, what: str) -> None:
        codes = [code for process in self._processes if (code := process.poll())]
        if codes:
            raise JobError(self._explain(f"ended with exit code {codes[0]}"))
        if time.monotonic() > deadline:
            raise JobError(self._explain(f"{what} in time"))

    def _explain(self, what: str) -> str:
        time.sleep(POLL_SECONDS)
        self._log.seek(0)
        tail = [line.rstrip() for line in self._log if line.strip()][-TAIL:]
        return "\n".join([f"{self.name}: {what}", *(f"  {line}" for line in tail)])

    def close(self) -> None:
        """End all processes."""
        for line in self._lines.values():
            line.close()
        self._listener.close()
        deadline = time.monotonic() + END_SECONDS
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._log.close()


def warn(text: str) -> None:
    """Say it beside what a benchmark prints."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def open_jobs(
    starts: Mapping[str, Callable[[], Job]], report: Callable[[str], None] = warn
) -> Iterator[dict[str, Job]]:
    """Jobs by name, ready; one that does not come is reported and left out."""
    jobs: dict[str, Job] = {}
    with contextlib.ExitStack() as stack:
        started = {name: start() for name, start in starts.items()}
        for job in started.values():
            stack.callback(job.close)
        for name, job in started.items():
            try:
                jobs[name] = job.ready()
            except JobError as error:
                report(f"left out: {error}")
        yield jobs


def take_turns(
    jobs: Mapping[str, Job],
    requests: Mapping[str, Any],
    rounds: int,
    report: Callable[[str], None] = warn,
) -> dict[str, list[float]]:
    """Seconds a step of each job, one a round; a job that fails is reported and left out."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name in list(seconds):
            try:
                seconds[name].append(jobs[name].slowest(requests[name]))
            except JobError as error:
                report(f"left out: {error}")
                del seconds[name]
    return seconds


def share_cores(ranks: int, cores: Sequence[int] | None = None) -> list[list[int]]:
    """Cores of each rank, as strategies.launch shares them; all of them where there are too few."""
    chosen = sorted(os.sched_getaffinity(0)) if cores is None else list(cores)
    share = len(chosen) // ranks
    if share == 0:
        return [chosen] * ranks
    return [chosen[rank * share : (rank + 1) * share] for rank in range(ranks)]


def pinned(cores: Sequence[int]) -> list[str]:
    """What stands before a command so that it uses these cores only."""
    return ["taskset", "-c", ",".join(map(str, cores))]


def launched(strategy: str, ranks: int, cores: Sequence[int], command: Sequence[str]) -> list[str]:
    """A command that runs `command` as the ranks of a strategy, on these cores."""
    if strategy == "single":
        return [*pinned(cores), *command]
    launch = [sys.executable, "-m", "strategies.launch", "--workers", str(ranks)]
    return [*pinned(cores), *launch, "--strategy", strategy, "--", *command]
