"""float16 with dynamic loss scaling; in step 1 rank 1's gradient is infinite.

python overflow_rank.py STRATEGY OUT. Run by strategies.launch.
"""

from __future__ import annotations

import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

import strategies
from kerass2 import losses, models
from kerass2.steps.tensorflow import build_step


def main() -> None:
    name, out = sys.argv[1:]
    strategy = strategies.get(name)
    with strategy.scope():
        model = models.build("dsen2", filters=8, blocks=2, dtype="mixed_float16")
        inner = keras.optimizers.SGD(1e-2, global_clipnorm=1.0)
        optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**15)
        optimizer.build(model.trainable_variables)
    strategy.start(model, optimizer)
    step = build_step(strategy, model, optimizer, losses.get("l2"), 4)
    rng = np.random.default_rng(strategy.rank)

    def weights() -> np.ndarray:
        return np.concatenate([np.asarray(v).ravel() for v in model.trainable_variables])

    scales, moved = [], []
    for number in range(3):
        factor = np.inf if (number, strategy.rank) == (1, 1) else 1.0
        batch = {
            "inputs": {
                "gsd10": tf.constant(rng.random((2, 8, 8, 4)), tf.float32),
                "gsd20": tf.constant(rng.random((2, 4, 4, 6)), tf.float32),
            },
            "targets": {"superres_20m": tf.constant(rng.random((2, 8, 8, 6)) * factor, tf.float32)},
        }
        before = weights()
        step(batch, False)
        scales.append(float(np.asarray(optimizer.dynamic_scale)))
        moved.append(bool((weights() != before).any()))
    np.savez(pathlib.Path(out) / f"rank{strategy.rank}.npz", scales=scales, moved=moved)
    strategy.sum(np.zeros(1))  # leave together


if __name__ == "__main__":
    main()
