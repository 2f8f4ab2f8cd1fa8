"""One rank of `python -m benchmarks allreduce` by our strategies: their sum_gradients."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import turns

FLOAT = 4  # bytes of a number


def main(strategy_name: str) -> None:
    """Sum tensors when told: {"tensors": bytes of each, "steps", "warm_up"} -> seconds a step."""
    import strategies

    strategy = strategies.get(strategy_name)
    known: dict[tuple[int, ...], turns.Run] = {}

    def measure(request: dict[str, Any]) -> float:
        tensors = tuple(request["tensors"])
        if tensors not in known:
            known.clear()  # one size in memory at a time
            known[tensors] = build_sum(strategy, tensors)
        return turns.time_steps(known[tensors], request["steps"], request["warm_up"])

    turns.answer(measure, strategy.rank)


def build_sum(strategy: Any, tensors: Sequence[int]) -> turns.Run:
    """The all-reduce of a training step, compiled; `tensors`: bytes of each.

    Raises:
        RuntimeError: the sum is wrong.
    """
    import tensorflow as tf

    numbers = [max(1, size // FLOAT) for size in tensors]
    given = [tf.fill([number], float(strategy.rank + 1)) for number in numbers]

    @tf.function(autograph=False)
    def step(*values: Any) -> Any:
        return strategy.run(lambda *each: strategy.sum_gradients(each), *values)

    expected = strategy.world_size * (strategy.world_size + 1) / 2
    for each in step(*given):
        low, high = float(tf.reduce_min(each)), float(tf.reduce_max(each))
        if not low == high == expected:
            raise RuntimeError(f"the sum is {low} to {high}, expected {expected}")

    def run(steps: int) -> None:
        for _ in range(steps):
            summed = step(*given)
        summed[-1][:1].numpy()  # a GPU is not done before

    return run


def print_tensors(experiments: Sequence[str]) -> None:
    """Print {experiment: bytes of each gradient of its model} as JSON."""
    from kerass2 import config, models

    found = {}
    for name in experiments:
        chosen = config.load(name).model
        model = models.build(chosen.name, **chosen.options)
        weights = model.trainable_variables
        found[name] = [FLOAT * int(weight.shape.num_elements() or 1) for weight in weights]
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1] == "tensors":
        print_tensors(sys.argv[2:])
    else:
        main(sys.argv[1])
