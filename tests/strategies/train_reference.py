"""The same training in one process, in plain Keras and TensorFlow; imports no strategy.

python train_reference.py OUT WORKERS PART [WORKERS PART ...]: for the jobs of so many ranks.
"""

from __future__ import annotations

import sys

import cases
import numpy as np
import tensorflow as tf


def train(name: str, optimizer_name: str, clip: float | None, parts: int) -> list[np.ndarray]:
    """Steps on the whole global batch, in `parts` that normalise by themselves.

    The gradient is that of the sum.
    """
    model = cases.build_model(name, reference=True)
    for variable, value in zip(
        model.trainable_variables, cases.initial_weights(model), strict=True
    ):
        if variable.name != "gamma":
            variable.assign(value)
    optimizer = cases.build_optimizer(optimizer_name, clip, reference=True)
    optimizer.build(model.trainable_variables)
    statistics = model.non_trainable_variables
    per_part = [[np.asarray(v) for v in statistics] for _ in range(parts)]

    @tf.function(autograph=False)
    def gradient(inputs, target):
        with tf.GradientTape() as tape:
            prediction = model(inputs, training=True)["superres_20m"]
            loss = (
                tf.reduce_sum(tf.reduce_mean(tf.abs(target - prediction), (1, 2, 3)))
                / cases.GLOBAL_BATCH
            )
            loss += sum(model.losses) / parts
        return tape.gradient(loss, [v.value for v in model.trainable_variables])

    for step in range(cases.STEPS):
        whole = cases.global_batch(step)
        total = None
        for part in range(parts):
            for variable, value in zip(statistics, per_part[part], strict=True):
                variable.assign(value)
            share = cases.GLOBAL_BATCH // parts
            piece = tf.nest.map_structure(lambda a, at=part * share, n=share: a[at : at + n], whole)
            found = gradient(piece["inputs"], piece["targets"]["superres_20m"])
            total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
            per_part[part] = [np.asarray(v) for v in statistics]
        optimizer.apply(total, model.trainable_variables)
    for index, variable in enumerate(statistics):
        variable.assign(np.mean([values[index] for values in per_part], axis=0))
    return [np.asarray(variable) for variable in model.variables]


def main() -> None:
    out, *jobs = sys.argv[1:]
    wanted = {
        (cases.num_slices(case, int(workers)), *case)
        for workers, part in zip(jobs[::2], jobs[1::2], strict=True)
        for case in cases.PARTS[part]
    }
    results = {}
    for parts, *case in sorted(wanted, key=str):
        for index, value in enumerate(train(*case, parts)):
            results[f"{parts}/{'/'.join(map(str, case))}/{index:03d}"] = value
    np.savez(out, **results)


if __name__ == "__main__":
    main()
