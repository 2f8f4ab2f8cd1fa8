"""The harness on what is known: sleeps and transfers, their order, ranks that die, load."""

from __future__ import annotations

import json
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from benchmarks import allreduce, record, turns

ROOT = pathlib.Path(__file__).parents[2]
RANK = pathlib.Path(__file__).with_name("speaking_rank.py")
WITHIN = 0.02

Start = Callable[..., turns.Job]


@pytest.fixture
def start(tmp_path: pathlib.Path) -> Iterator[Start]:
    jobs = []

    def begin(name: str = "a", ranks: int = 1, speakers: int | None = None) -> turns.Job:
        commands = [[sys.executable, str(RANK), str(r), str(tmp_path)] for r in range(ranks)]
        path = {"PYTHONPATH": str(ROOT)}
        jobs.append(turns.Job(name, commands, speakers or ranks, path))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.close()


def test_a_known_sleep_is_found(start: Start) -> None:
    """As the median of three turns, which is what a record says."""
    job = start(ranks=2).ready()
    for seconds in (0.1, 0.4):
        found = [job.slowest({"seconds": seconds, "steps": 2}) for _ in range(3)]
        assert record.figure(found, "s")["median"] == pytest.approx(seconds, rel=WITHIN)


def test_a_known_transfer_is_found(start: Start) -> None:
    """As bandwidth, through the same function as what is measured."""
    job, size, rate = start().ready(), 20_000_000, 50e6
    request = {"bytes": size, "rate": rate, "steps": 2}
    seconds = [job.slowest(request) for _ in range(3)]
    figures = allreduce.list_figures("tcp", seconds, seconds, size, ranks=2, steps=2)
    assert figures["algorithm_bandwidth"]["median"] == pytest.approx(rate / 1e9, rel=WITHIN)
    assert figures["bus_bandwidth"]["median"] == pytest.approx(rate / 1e9, rel=WITHIN)
    assert figures["over_bound"]["median"] == 1
    assert "disturbed" not in figures["seconds"]


def test_jobs_take_turns(start: Start, tmp_path: pathlib.Path) -> None:
    jobs = {name: start(name).ready() for name in ("a", "b")}
    requests = {
        name: {"name": name, "seconds": seconds, "steps": 1}
        for name, seconds in (("a", 0.001), ("b", 0.03))
    }
    found = turns.take_turns(jobs, requests, 3, pytest.fail)
    order = [json.loads(line)[0] for line in (tmp_path / "order").read_text().splitlines()]
    assert order == ["a", "b"] * 3
    assert [len(values) for values in found.values()] == [3, 3]
    assert min(found["b"]) >= 0.03 > max(found["a"])


def test_a_rank_that_dies_is_named_and_the_others_go_on(start: Start) -> None:
    jobs = {"a": start("a", ranks=2).ready(), "b": start("b").ready()}
    good = {"seconds": 0.001, "steps": 1}
    said: list[str] = []
    found = turns.take_turns(jobs, {"a": {**good, "end": 1}, "b": good}, 2, said.append)
    assert list(found) == ["b"]
    assert len(found["b"]) == 2
    (text,) = said
    assert text.startswith("left out: a: ")
    assert "a last word" in text


def test_a_job_that_does_not_come_is_reported(start: Start) -> None:
    def fail() -> turns.Job:
        return turns.Job("none", [[sys.executable, "-c", "raise SystemExit('no GPU here')"]], 1)

    said: list[str] = []
    with turns.open_jobs({"none": fail, "a": start}, said.append) as jobs:
        assert list(jobs) == ["a"]
    assert len(said) == 1
    assert "none: ended with exit code 1" in said[0]
    assert "no GPU here" in said[0]
    with pytest.raises(turns.JobError, match="1 of 2 ranks came in time"):
        start(ranks=1, speakers=2).ready(seconds=5)


def test_load_that_comes_and_goes_shows_in_the_spread() -> None:
    """Half of the measurements beside a process on the same core, which takes half of it."""
    core = min(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)

    def work(steps: int) -> int:
        return sum(sum(range(20_000)) for _ in range(steps))

    steps = turns.choose_steps(turns.time_steps(work, 20, warm_up=20), 0.15, most=10**6)
    os.sched_setaffinity(0, {core})
    try:
        seconds = []
        for turn in range(8):
            with _load(core) if turn % 2 else _quiet():
                seconds.append(turns.time_steps(work, steps))
    finally:
        os.sched_setaffinity(0, before)
    assert record.figure(seconds, "s")["disturbed"] is True


class _quiet:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: Any) -> None:
        pass


class _load(_quiet):
    """A process that does nothing but compute on a core."""

    def __init__(self, core: int) -> None:
        command = (
            "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); print('on', flush=1)"
        )
        command += "\nwhile True: pass"
        import subprocess

        self._process = subprocess.Popen(
            [sys.executable, "-c", command, str(core)], stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"on\n"

    def __exit__(self, *_: Any) -> None:
        self._process.kill()
        self._process.communicate()


def test_steps_of_a_turn() -> None:
    assert turns.choose_steps(0.1, 0.35) == 4
    assert turns.choose_steps(2.0, 0.3) == 1
    assert turns.choose_steps(0.0, 0.3, most=50) == 50
    done: list[int] = []
    turns.time_steps(done.append, 3, warm_up=2)
    turns.time_steps(done.append, 3)
    assert done == [2, 3, 3]


@pytest.mark.parametrize(
    ("ranks", "cores", "shares"),
    [
        (2, [0, 1], [[0], [1]]),
        (2, [0, 2, 4, 6, 8], [[0, 2], [4, 6]]),
        (3, [0, 1], [[0, 1]] * 3),
        (1, [3], [[3]]),
    ],
)
def test_shares_of_cores_are_the_launchers(
    ranks: int, cores: list[int], shares: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from strategies import launch

    assert turns.share_cores(ranks, cores) == shares
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(cores))
    expected = [set(share) for share in shares] if ranks <= len(cores) else [None] * ranks
    assert launch._share_cores(ranks) == expected


def test_nobody_waits_for_ever() -> None:
    begin = time.monotonic()
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    job = turns.Job("idle", [command], 1)
    with pytest.raises(turns.JobError, match="idle: 0 of 1 ranks came in time"):
        job.ready(seconds=0.2)
    job.close()
    assert time.monotonic() - begin < 30
    assert threading.active_count() < 50
