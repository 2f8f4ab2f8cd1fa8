"""The process of one backend of `python -m benchmarks backends`: times steps when told."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import step_rank, turns
from kerass2 import config


class _Rank:
    """Makes each experiment's step once, at its first request."""

    def __init__(self, xla: bool) -> None:
        self._xla, self._runs = xla, dict[str, turns.Run]()

    def measure(self, request: dict[str, Any]) -> Any:
        """Seconds a step; at an experiment's first request {"first": seconds until one is done}."""
        key = json.dumps([request["experiment"], request["batch"], request["patch"]])
        if key in self._runs:
            return turns.time_steps(self._runs[key], request["steps"], request["warm_up"])
        begin = time.perf_counter()
        self._runs[key] = build(request, xla=self._xla)
        self._runs[key](1)
        return {"first": time.perf_counter() - begin}


def build(case: dict[str, Any], *, xla: bool) -> turns.Run:
    """The package's step on Keras' backend, on one batch of random numbers."""
    from kerass2 import losses, models, optimizers, steps
    from strategies.cluster import Cluster
    from strategies.single import SingleStrategy

    experiment = config.from_json(case["experiment"])
    model = models.build(experiment.model.name, **experiment.model.options)
    optimizer = optimizers.build(
        experiment.optimizer,
        precision="float32",
        global_batch=case["batch"],
        num_steps=10**6,
        steps_per_epoch=1000,
    )
    optimizer.build(model.trainable_variables)
    loss = losses.get(experiment.loss, experiment.loss_options, None)
    strategy = SingleStrategy(Cluster("none"))
    step = steps.build_step(strategy, model, optimizer, loss, case["batch"], xla=xla)
    return _repeat(step, step_rank.draw(models.describe(model), case, 0))


def _repeat(step: Callable[[Any, bool], Any], batch: dict[str, Any]) -> turns.Run:
    def run(number: int) -> None:
        for _ in range(number):
            step(batch, False)

    return run


if __name__ == "__main__":
    turns.answer(_Rank(json.loads(sys.argv[1])).measure, 0)
