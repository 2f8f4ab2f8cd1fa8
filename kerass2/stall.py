"""Ends a rank that waits too long for the others: one is stopped, or the network between is cut.

A rank that dies is seen by the others at once; one that stays silent need not be. Horovod over Gloo
gives up after half a minute, over MPI and NCCL never.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from strategies.base import Strategy

LONGEST_TICK = 1.0

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Watch:
    """Looks, in a thread of its own, for calls that do not come back."""

    def __init__(self, seconds: float, rank: int) -> None:
        """`seconds` that a call may take, above 0; 0: no limit."""
        self._seconds, self._rank = seconds, rank
        self._calls, self._inside = 0, False
        if seconds:
            threading.Thread(target=self._look, name="stall", daemon=True).start()

    def timed(self, function: _Function) -> _Function:
        """The same function, which ends the process when it takes too long."""

        def call(*arguments: Any, **options: Any) -> Any:
            self._calls += 1
            self._inside = True
            try:
                return function(*arguments, **options)
            finally:
                self._inside = False

        return call  # type: ignore[return-value]

    def _look(self) -> None:
        """Count ticks, not time: a process that is stopped and goes on has not waited."""
        tick = min(LONGEST_TICK, self._seconds / 5)
        seen, waited = 0, 0.0
        while waited < self._seconds:
            time.sleep(tick)
            waited = waited + tick if self._inside and self._calls == seen else 0.0
            seen = self._calls
        print(
            f"error: rank {self._rank} has waited {self._seconds:.0f} s for the others: one is "
            f"stopped, or out of reach, or a step takes longer (KERASS2_STALL_SECONDS)",
            file=sys.stderr,
            flush=True,
        )
        # The main thread is in a library that no signal reaches.
        os._exit(1)


class Watched:
    """A strategy whose calls that wait for the others, outside a step, are timed.

    See strategies.base.Strategy for the members. A step is timed by whoever compiles it.
    """

    def __init__(self, strategy: Strategy, watch: Watch) -> None:
        """Behave as `strategy` does."""
        self.name, self.rank, self.local_rank = strategy.name, strategy.rank, strategy.local_rank
        self.world_size, self.is_chief = strategy.world_size, strategy.is_chief
        self.scope, self.distribute = strategy.scope, strategy.distribute
        self.run, self.sum_gradients = strategy.run, strategy.sum_gradients
        self.sum, self.start = watch.timed(strategy.sum), watch.timed(strategy.start)
        self.average_statistics = watch.timed(strategy.average_statistics)
