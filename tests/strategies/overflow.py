"""float16 with dynamic loss scaling; in step 1 rank 1's gradient is infinite."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

import strategies
from kerass2 import losses, models
from kerass2.steps import build_step


def train(strategy: strategies.Strategy) -> dict[str, list]:
    """As one of two ranks: the scale after each step, and whether any weight moved in it."""
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
    return {"scales": scales, "moved": moved}
