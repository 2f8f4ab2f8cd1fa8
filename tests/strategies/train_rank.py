"""One rank of the equality tests: cases, then, of two ranks, what must not go unnoticed.

python train_rank.py STRATEGY PART OUT, PART of cases.PARTS. Run by strategies.launch. One job does
all of it, because each process takes seconds to start.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

import cases
import keras
import numpy as np
import overflow
import tensorflow as tf

import strategies
from kerass2 import losses
from kerass2.models.layers import synchronise_statistics
from kerass2.steps import build_step
from strategies import base


def train(
    strategy: strategies.Strategy, name: str, optimizer_name: str, clip: float | None
) -> list[np.ndarray]:
    keras.utils.set_random_seed(strategy.rank)
    with strategy.scope():
        model = cases.build_model(name)
        optimizer = cases.build_optimizer(optimizer_name, clip)
        optimizer.build(model.trainable_variables)
    if strategy.is_chief:  # the others keep what their own seed gave them
        for variable, value in zip(
            model.trainable_variables, cases.initial_weights(model), strict=True
        ):
            if variable.name != "gamma":
                variable.assign(value)
    if (
        strategy.name == "multiworker"
    ):  # variables are mirrored when they are made, so all ranks assign
        for variable, value in zip(
            model.trainable_variables, cases.initial_weights(model), strict=True
        ):
            if variable.name != "gamma":
                variable.assign(value)
    synchronise_statistics(model, strategy.sum_gradients)
    strategy.start(model, optimizer)

    def make(rank: int, size: int) -> tf.data.Dataset:
        share = cases.GLOBAL_BATCH // size

        def batches():
            for step in range(cases.STEPS):
                whole = cases.global_batch(step)
                yield tf.nest.map_structure(lambda a: a[rank * share : (rank + 1) * share], whole)

        signature = tf.nest.map_structure(
            lambda a: tf.TensorSpec((share, *a.shape[1:]), tf.float32), cases.global_batch(0)
        )
        return tf.data.Dataset.from_generator(batches, output_signature=signature)

    step = build_step(strategy, model, optimizer, losses.get("l1"), cases.GLOBAL_BATCH)
    for batch in strategy.distribute(make):
        step(batch, False)
    strategy.average_statistics(model)
    return [np.asarray(variable) for variable in model.variables]


def train_all(strategy: strategies.Strategy, chosen: Sequence[cases.Case]) -> dict[str, np.ndarray]:
    """Weights of each case under its name and their number."""
    return {
        f"{'/'.join(map(str, case))}/{index:03d}": value
        for case in chosen
        for index, value in enumerate(train(strategy, *case))
    }


def sum_compressed(strategy: strategies.Strategy) -> dict[str, np.ndarray]:
    """Compression -> sum over ranks of 0.1, 0.2, ... a rank, each times cases.NUMBERS."""
    own = tf.constant(cases.NUMBERS * (strategy.rank + 1), tf.float32)
    found = {}
    for compression in base.COMPRESSIONS:
        if (strategy.name, compression) in base.UNKNOWN_COMPRESSIONS:
            continue

        def total(value: tf.Tensor, how: str = compression) -> tf.Tensor:
            missing, summed = base.sum_compressed(strategy, [None, value], how)
            assert missing is None
            return summed

        step = tf.function(lambda value, run=total: strategy.run(run, value))
        found[compression] = np.asarray(step(own))
    return found


def main() -> None:
    name, part, out = sys.argv[1:]
    strategy, folder = strategies.get(name), pathlib.Path(out)
    np.savez(folder / f"rank{strategy.rank}.npz", **train_all(strategy, cases.PARTS[part]))
    np.savez(folder / f"compressed{strategy.rank}.npz", **sum_compressed(strategy))
    if strategy.world_size == 2:
        np.savez(folder / f"overflow{strategy.rank}.npz", **overflow.train(strategy))
        strategy.sum_gradients = list
        np.savez(folder / f"broken{strategy.rank}.npz", **train_all(strategy, cases.BROKEN))
    base.leave(strategy)


if __name__ == "__main__":
    main()
