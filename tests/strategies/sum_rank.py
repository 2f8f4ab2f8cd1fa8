"""Step of SGD on a gradient that differs per rank, without and with strategy.start.

python sum_rank.py multiworker OUT. Run by strategies.launch. Leaves TensorFlow's patience too [ms].
"""

from __future__ import annotations

import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

import strategies
from strategies import base


def main() -> None:
    name, out = sys.argv[1:]
    strategy = strategies.get(name)
    patience = context.context()._coordination_service_config.heartbeat_timeout_in_ms
    found = {"patience": np.array(patience)}
    for started in (False, True):
        with strategy.scope():
            dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
            model = keras.Sequential([keras.Input((2,)), dense])
            optimizer = keras.optimizers.SGD(1.0)
            optimizer.build(model.trainable_variables)
        if started:
            strategy.start(model, optimizer)

        def replica_step(gradient, model=model, optimizer=optimizer):
            summed = strategy.sum_gradients([gradient])
            optimizer.apply(summed, model.trainable_variables)

        step = tf.function(lambda gradient, run=replica_step: strategy.run(run, gradient))
        step(tf.fill((2, 1), strategy.rank + 1.0))
        found["started" if started else "plain"] = model.get_weights()[0]
    np.savez(pathlib.Path(out) / f"rank{strategy.rank}.npz", **found)
    base.leave(strategy)


if __name__ == "__main__":
    main()
