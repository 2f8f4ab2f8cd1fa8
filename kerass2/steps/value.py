"""What a training step computes of a batch, on every backend."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from keras import ops

from kerass2.models.labels import drawing_part


def compute(
    model: Any,
    loss: Callable[[Any, Any], Any],
    batch: Mapping[str, Any],
    *,
    global_batch: int,
    shares: int,
    part: Any = 0,
    parts: int = 1,
) -> Any:
    """A part's share of the global loss: sum(per-example loss) / global_batch + regularisation.

    Args:
        model: called as in training.
        loss: (target, prediction) -> (batch,) numbers.
        batch: {"inputs", "targets"} of tensors by name; no inputs that the model does not take.
        global_batch: patches of all ranks.
        shares: parts of all ranks, among which the regularisation is divided.
        part: number of this part of the rank's batch, which dropout draws by.
        parts: parts of the rank's batch.

    Returns:
        A float32 scalar.
    """
    with drawing_part(model, part, parts):
        prediction = model(batch["inputs"], training=True)
        per_example = [loss(target, prediction[name]) for name, target in batch["targets"].items()]
        value = ops.sum(functools.reduce(ops.add, per_example)) / global_batch
        if model.losses:
            value = value + functools.reduce(ops.add, model.losses) / shares
    return value


def choose(batch: Mapping[str, Any], taken: list[str]) -> dict[str, dict[str, Any]]:
    """Inputs that a model takes, and targets.

    Patch ids and the like stay outside: strings do not go to a device.
    """
    inputs = {name: batch["inputs"][name] for name in taken}
    return {"inputs": inputs, "targets": dict(batch["targets"])}


def to_numpy(arrays: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """Batches of tf.data as other backends take them."""
    return {
        group: {name: np.asarray(array) for name, array in named.items()}
        for group, named in arrays.items()
    }
