"""The loop with a step in plain Python: what it calls, when it stops, at which step it fails."""

from __future__ import annotations

import itertools
import math
import time

import pytest

from kerass2.train import TrainingError, train


class Log:
    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def step(self, done: int, loss: float) -> None:
        self.seen.append((done, loss))


def run(losses, *, first_step=0, num_steps=10, checkpoint_every=4, **kwargs):
    values = iter(losses)
    saved: list[int] = []
    log = Log()
    done = train(
        step=lambda batch, stop: {"loss": next(values), "gradient_norm": 1.0, "stop": float(stop)},
        batches=itertools.repeat({}),
        first_step=first_step,
        num_steps=num_steps,
        checkpoint_every=checkpoint_every,
        save=saved.append,
        log=log,
        **kwargs,
    )
    return done, saved, log.seen


def test_saves_between_and_at_the_end():
    done, saved, seen = run([1.0] * 10)
    assert (done, saved) == (10, [4, 8, 10])
    assert [step for step, _ in seen] == list(range(1, 11))


def test_goes_on_where_it_was():
    done, saved, seen = run([1.0] * 4, first_step=6)
    assert (done, saved) == (10, [8, 10])
    assert seen[0][0] == 7


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_at_its_step(bad):
    saved: list[int] = []
    losses = iter([1.0] * 5 + [bad])
    with pytest.raises(TrainingError, match="at step 6"):
        train(
            step=lambda batch, stop: {"loss": next(losses), "gradient_norm": 1.0, "stop": 0.0},
            batches=itertools.repeat({}),
            first_step=0,
            num_steps=10,
            checkpoint_every=3,
            save=saved.append,
            log=Log(),
        )
    assert saved == [3]


def test_float16_goes_on():
    assert run([1.0, math.inf, 1.0], num_steps=3, may_overflow=True)[0] == 3


def test_deadline_ends_after_the_step_in_progress():
    done, saved, _ = run([1.0] * 10, deadline=time.monotonic() - 1)
    assert (done, saved) == (1, [1])


def test_the_wish_of_another_rank_to_stop_counts():
    steps = itertools.count(1)
    done = train(
        step=lambda batch, stop: {
            "loss": 1.0,
            "gradient_norm": 1.0,
            "stop": float(next(steps) == 3),
        },
        batches=itertools.repeat({}),
        first_step=0,
        num_steps=10,
        checkpoint_every=100,
        save=lambda done: None,
        log=Log(),
    )
    assert done == 3


def test_a_gradient_that_is_not_finite_stops_too():
    saved: list[int] = []
    norms = iter([1.0, 1.0, math.nan])
    with pytest.raises(TrainingError, match="the gradient norm is nan at step 3"):
        train(
            step=lambda batch, stop: {"loss": 1.0, "gradient_norm": next(norms), "stop": 0.0},
            batches=itertools.repeat({}),
            first_step=0,
            num_steps=10,
            checkpoint_every=1,
            save=saved.append,
            log=Log(),
        )
    assert saved == [1, 2]
