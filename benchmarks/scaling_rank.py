"""One rank of a job that trains when told, for `python -m benchmarks scaling` and `shares`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import step_rank, turns
from strategies.base import Strategy


class Alone:
    """A strategy whose ranks do not speak: what a step takes without its all-reduce."""

    def __init__(self, strategy: Strategy) -> None:
        """Like `strategy` in all else."""
        self._strategy = strategy

    def __getattr__(self, name: str) -> Any:
        """The strategy's own."""
        return getattr(self._strategy, name)

    def sum_gradients(self, tensors: Any) -> list[Any]:
        """The same tensors."""
        return list(tensors)


class Stopwatch:
    """Seconds spent inside calls."""

    def __init__(self) -> None:
        """Begins at 0."""
        self.seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time counts."""

        def call(*args: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args)
            finally:
                self.seconds += time.perf_counter() - begin

        return call


def main(case: dict[str, Any]) -> None:
    """Answer {"kind", "precision", "batch", "steps", "warm_up"}; `batch` is of a rank.

    Kinds: "loop", "bare" of step_rank, in memory, and "alone", the loop of ranks that do not speak:
    seconds a step. "data": the loop on what is read; {"seconds", "input", "step"} a step, the last
    two spent waiting for a batch and in the step.
    """
    import strategies

    strategy = strategies.get(case["strategy"])
    known: dict[tuple[Any, ...], Callable[[int, int], Any]] = {}

    def measure(request: dict[str, Any]) -> Any:
        key = request["kind"], request["precision"], request["batch"]
        if key not in known:
            known[key] = build(strategy, {**case, **request})
        return known[key](request["steps"], request["warm_up"])

    turns.answer(measure, strategy.rank)


def build(strategy: Strategy, case: dict[str, Any]) -> Callable[[int, int], Any]:
    """(steps, warm-up) -> what a request of that kind is answered with."""
    kind, precision = case["kind"], case["precision"]
    if kind == "data":
        return _build_data(strategy, case, precision)
    if kind == "bare":
        run = step_rank._build_bare(strategy, case, precision)
    else:
        chosen = Alone(strategy) if kind == "alone" else strategy
        run = step_rank._build_loop(chosen, case, precision)
    return lambda steps, warm_up: turns.time_steps(run, steps, warm_up)


def _build_data(
    strategy: Strategy, case: dict[str, Any], precision: str
) -> Callable[[int, int], dict[str, float]]:
    """The loop over training batches as kerass2.fit reads them."""
    from kerass2 import logs, train

    _, _, step, _ = step_rank._make_step(strategy, case, precision)
    batches = iter(strategy.distribute(lambda rank, size: _read(case, rank, size)))
    waiting, working = Stopwatch(), Stopwatch()

    def timed() -> Iterator[Any]:
        while True:
            yield waiting.timed(next)(batches)

    def run(steps: int) -> None:
        train.train(
            step=working.timed(step),
            batches=timed(),
            first_step=0,
            num_steps=steps,
            checkpoint_every=10**9,
            save=lambda done: None,
            log=logs.NoLog(),
        )

    def measure(steps: int, warm_up: int) -> dict[str, float]:
        run(max(1, warm_up))
        waiting.seconds = working.seconds = 0.0
        seconds = turns.time_steps(run, steps)
        spent = {"input": waiting.seconds / steps, "step": working.seconds / steps}
        return {"seconds": seconds, **spent}

    return measure


def _read(case: dict[str, Any], rank: int, world_size: int) -> Any:
    """Training batches of a rank, without an end."""
    from data_pipelines import batching
    from kerass2 import config, inputs

    experiment = config.from_json(case["experiment"])
    data = inputs.choose_data(case["data"], experiment.data.task)
    return batching.build_training_dataset(
        data.open("train"),
        seed=1,
        global_batch=case["batch"] * world_size,
        rank=rank,
        world_size=world_size,
        start_step=0,
        stop_step=10**6,
        augment=experiment.data.augment,
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
