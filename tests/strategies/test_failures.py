"""One of two real ranks fails between collective steps: its own error is last on the screen."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import time

import pytest

from strategies import base
from strategies.cluster import Cluster
from strategies.single import SingleStrategy

HERE = pathlib.Path(__file__).parent


def end_ranks(strategy: str, rank: int, how: str) -> list[str]:
    """Lines of stderr of a job in which `rank` fails."""
    if strategy == "horovod":
        pytest.importorskip("horovod", reason="Horovod is not built here")
    launcher = ["-m", "strategies.launch", "--strategy", strategy, "--workers", "2", "--"]
    script = [sys.executable, str(HERE / "failing_rank.py"), strategy, str(rank), how]
    begin = time.monotonic()
    result = subprocess.run(
        [sys.executable, *launcher, *script], capture_output=True, text=True, timeout=120
    )
    # Start included: some 8 s of the time.
    assert time.monotonic() - begin < 38, result.stderr[-3000:]
    assert result.returncode == 1, result.stderr[-3000:]
    return result.stderr.splitlines()


@pytest.mark.parametrize(
    ("strategy", "rank"),
    [
        pytest.param("horovod", 0, marks=pytest.mark.horovod),
        pytest.param("horovod", 1, marks=[pytest.mark.horovod, pytest.mark.cluster]),
        pytest.param("multiworker", 1, marks=pytest.mark.cluster),
    ],
)
def test_the_error_of_the_rank_that_raised_is_last(strategy, rank):
    lines = end_ranks(strategy, rank, "raise")
    assert lines[-1] == f"RuntimeError: the cause, on rank {rank}", "\n".join(lines[-40:])
    assert f"rank {rank} ended with exit code 1; the other ranks were ended." in lines


@pytest.mark.parametrize(
    ("strategy", "rank"),
    [pytest.param("horovod", 1, marks=pytest.mark.horovod), ("multiworker", 0)],
)
def test_the_death_of_the_rank_that_was_killed_is_last(strategy, rank):
    lines = end_ranks(strategy, rank, "kill")
    ending = f"rank {rank} was killed by SIGKILL; the other ranks were ended."
    assert ending in lines[-6:], "\n".join(lines[-40:])


class Departing(SingleStrategy):
    """Another rank is gone from the given sum on."""

    def __init__(self, fails_at: int) -> None:
        super().__init__(Cluster("none"))
        self.calls, self.fails_at = 0, fails_at

    def sum(self, values):
        self.calls += 1
        if self.calls >= self.fails_at:
            raise ConnectionError("Socket closed")
        return values


def test_a_rank_that_leaves_first_is_no_failure():
    strategy = Departing(fails_at=2)
    base.leave(strategy)
    assert strategy.calls == 2


def test_a_rank_that_never_came_to_the_end_is_a_failure():
    with pytest.raises(ConnectionError):
        base.leave(Departing(fails_at=1))
