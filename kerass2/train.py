"""THE loop.

The step is a callable given to it, so that each Keras backend and strategy brings its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

Step = Callable[[Mapping[str, Any], bool], dict[str, float]]


class TrainingError(RuntimeError):
    """Training cannot go on; the message names step and reason."""

    def __init__(self, message: str, step: int) -> None:
        """`step` is the one that failed, counted from 1."""
        super().__init__(message)
        self.step = step


class Log(Protocol):
    """Told of each step, on every rank."""

    def step(self, done: int, loss: float) -> None:
        """`done` steps are complete; the last one's global loss was `loss`."""
        ...


def train(
    *,
    step: Step,
    batches: Iterable[Mapping[str, Any]],
    first_step: int,
    num_steps: int,
    checkpoint_every: int,
    save: Callable[[int], None],
    log: Log,
    validate: Callable[[int], bool] | None = None,
    validate_every: int = 0,
    deadline: float = math.inf,
    may_overflow: bool = False,
    check: Callable[[int], None] | None = None,
    check_every: int = 0,
) -> int:
    """Train from step `first_step` up to `num_steps`, or until the first rank reaches its deadline.

    Every rank runs this loop over its own slices of the same global batches and leaves it at the
    same step.

    Args:
        step: (batch, this rank wants to stop) -> global "loss" and "gradient_norm", and the number
            of ranks that want to "stop".
        batches: This rank's batches, beginning with that of step `first_step`.
        first_step: Steps that are done already.
        num_steps: Steps in all.
        checkpoint_every: Steps between calls of `save`.
        save: Called on every rank with the number of steps done.
        log: Told of each step.
        validate: Called on every rank with the number of steps done; True, the same on every rank,
            ends the training. Before `save` where both are due, so that what is saved knows of it.
        validate_every: Steps between calls of `validate`; 0: none.
        deadline: time.monotonic() after which to stop.
        may_overflow: True in float16, where the loss scale's finite check handles it.
        check: Called on every rank with the number of steps done, before what is wrong is scored or
            saved; raises where ranks have come apart.
        check_every: Steps between calls of `check`; 0: none.

    Returns:
        Steps done in all.

    Raises:
        TrainingError: loss or gradient is not finite; nothing is saved from that step on.
    """
    done = first_step
    for batch in batches:
        values = step(batch, time.monotonic() >= deadline)
        done += 1
        bad = [name for name in ("loss", "gradient_norm") if not math.isfinite(values[name])]
        if bad and not may_overflow:
            raise TrainingError(
                f"the {bad[0].replace('_', ' ')} is {values[bad[0]]} at step {done}; the last good "
                "checkpoint is kept. A smaller learning rate or optimizer.options.global_clipnorm "
                "may help",
                done,
            )
        log.step(done, values["loss"])
        if check is not None and check_every and done % check_every == 0:
            check(done)
        stop = bool(values["stop"]) or done == num_steps
        if validate is not None and validate_every and done % validate_every == 0:
            stop = validate(done) or stop
        if stop:
            break
        if done % checkpoint_every == 0:
            save(done)
    save(done)
    return done
