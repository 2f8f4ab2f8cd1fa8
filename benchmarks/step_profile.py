"""Which layers a training step spends its time in: each by itself, forward and back.

A layer alone has its input in memory and the machine for itself, so that the sum over layers is not
the step's time; it says where the time goes, and which layers gain nothing from bfloat16.
"""

from __future__ import annotations

import collections
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

REPEATS = 5  # of which the median counts, after one that compiles
PRECISIONS = ("float32", "bfloat16")
MOST = 8  # layers that are named

# Kind of layer, sizes of its inputs and weights: layers alike are timed once.
Key = tuple[Any, ...]


def main(case: dict[str, Any]) -> None:
    """Write {precision: {layer's name: {"kind", "seconds"}}} of a case's model to its output."""
    from kerass2 import config, models
    from kerass2.precision import POLICIES

    experiment = config.from_json(case["experiment"])
    found = {}
    for precision in PRECISIONS:
        options = {**experiment.model.options, "dtype": POLICIES[precision]}
        model = models.build(experiment.model.name, **options)
        found[precision] = time_layers(model, case["batch"], case["patch"])
    pathlib.Path(case["output"]).write_text(json.dumps(found))


def time_layers(model: Any, batch: int, patch: int) -> dict[str, dict[str, Any]]:
    """{layer's name: {"kind": class, "seconds": of a step}} of all layers that compute."""
    import keras

    from benchmarks.step_rank import draw
    from kerass2 import models

    given = draw(models.describe(model), {"batch": batch, "patch": patch}, rank=0)["inputs"]
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    inputs = {layer.name: _list(layer.input) for layer in layers}
    ends = {id(tensor): tensor for tensors in inputs.values() for tensor in tensors}
    values = keras.Model(model.inputs, list(ends.values()))(
        {name: given[name] for name in model.input}
    )
    shapes = {key: tuple(value.shape) for key, value in zip(ends, values, strict=True)}
    known: dict[Key, float] = {}
    found = {}
    for layer in layers:
        sizes = tuple(shapes[id(tensor)] for tensor in inputs[layer.name])
        weights = tuple(tuple(weight.shape) for weight in layer.weights)
        strides = getattr(layer, "strides", None)
        key = (type(layer).__name__, sizes, weights, strides)
        if key not in known:
            known[key] = _time(layer, sizes)
        found[layer.name] = {"kind": type(layer).__name__, "seconds": known[key]}
    return found


def _time(layer: Any, sizes: Sequence[tuple[int, ...]]) -> float:
    """Seconds of a layer, forward and back to its inputs and weights."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    given = [tf.cast(rng.normal(size=size), layer.compute_dtype) for size in sizes]
    weights = [weight.value for weight in layer.trainable_weights]

    @tf.function(autograph=False)
    def step(*arrays: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(arrays)
            output = layer(arrays[0] if len(arrays) == 1 else list(arrays))
        return tape.gradient(output, [*arrays, *weights])

    seconds = []
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        for gradient in step(*given):
            if gradient is not None:
                tf.reshape(gradient, [-1])[:1].numpy()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


def _list(tensors: Any) -> list[Any]:
    return list(tensors) if isinstance(tensors, list | tuple) else [tensors]


def summarise(found: dict[str, dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of kinds of layers, then of the MOST layers that cost most, in bfloat16.

    Returns:
        [{"layers": kind and number, or a name, "float32": seconds, "bfloat16": seconds, "ratio":
        float32 over bfloat16, "share": of the sum over layers in bfloat16}].
    """
    fast, slow = found["bfloat16"], found["float32"]
    total = sum(each["seconds"] for each in fast.values())
    kinds = collections.defaultdict(list)
    for name, each in fast.items():
        kinds[each["kind"]].append(name)

    def row(label: str, names: Sequence[str]) -> dict[str, Any]:
        before, after = (sum(side[name]["seconds"] for name in names) for side in (slow, fast))
        share, ratio = after / total, before / after
        both = {"float32": before, "bfloat16": after}
        return {"layers": label, **both, "ratio": ratio, "share": share}

    rows = [row(f"{len(names)} x {kind}", names) for kind, names in kinds.items()]
    rows.sort(key=lambda row: -row["share"])
    costly = sorted(fast, key=lambda name: -fast[name]["seconds"])[:MOST]
    return [*rows, *(row(name, [name]) for name in costly)]


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
