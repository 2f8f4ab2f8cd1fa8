"""What a training step computes of a batch, on every backend."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from keras import ops

from kerass2.models.labels import drawing_part

if TYPE_CHECKING:
    from kerass2.averaging import WeightAverage


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a step is made of."""

    model: Any
    """Built, in the strategy's scope."""
    optimizer: Any
    """Built, likewise."""
    loss: Callable[[Any, Any], Any]
    """(target, prediction) -> (batch,) numbers."""
    global_batch: int
    """Patches of all ranks."""
    xla: bool = False
    """Compile with XLA, which JAX always does; on torch: with torch.compile."""
    parts: int = 1
    """Equal parts of a rank's batch that are computed one after the other, so that the activations
    of one take memory at a time; they are summed before the all-reduce."""
    average: WeightAverage | None = None
    """Takes in the weights after each step."""
    compression: str = "none"
    """A key of strategies.base.COMPRESSIONS; loss and wish to stop travel uncompressed."""
    rate_factor: Any = None
    """The variable that the schedule's rate is multiplied by, if any."""

    @property
    def taken(self) -> list[str]:
        """Names of the inputs that the model takes."""
        return list(self.model.input)


def compute(recipe: Recipe, batch: Mapping[str, Any], part: Any, world_size: int = 1) -> Any:
    """A part's share of the global loss: sum(per-example loss) / global_batch + regularisation.

    Args:
        recipe: its model is called as in training.
        batch: {"inputs", "targets"} of tensors by name; no inputs that the model does not take.
        part: number of this part of the rank's batch, which dropout draws by.
        world_size: ranks, among whose parts the regularisation is divided.

    Returns:
        A float32 scalar.
    """
    model, loss = recipe.model, recipe.loss
    with drawing_part(model, part, recipe.parts):
        prediction = model(batch["inputs"], training=True)
        per_example = [loss(target, prediction[name]) for name, target in batch["targets"].items()]
        value = ops.sum(functools.reduce(ops.add, per_example)) / recipe.global_batch
        if model.losses:
            value = value + functools.reduce(ops.add, model.losses) / (world_size * recipe.parts)
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
