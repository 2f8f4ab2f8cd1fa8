"""One compiled training step for each Keras backend; train.py calls it.

What a step computes is in value.py, for all of them; a backend's file says how it is compiled.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from kerass2 import backend

if TYPE_CHECKING:
    from kerass2.averaging import WeightAverage
    from strategies.base import Strategy

Loss = Callable[[Any, Any], Any]
Step = Callable[[Mapping[str, Any], bool], dict[str, float]]


def build_step(
    strategy: Strategy,
    model: Any,
    optimizer: Any,
    loss: Loss,
    global_batch: int,
    *,
    xla: bool = False,
    parts: int = 1,
    average: WeightAverage | None = None,
    compression: str = "none",
    rate_factor: Any = None,
) -> Step:
    """The compiled step of Keras' backend; see kerass2.steps.tensorflow.build_step.

    Args:
        strategy: as there, and those below; on other backends than TensorFlow a world of one.
        model: built.
        optimizer: built.
        loss: (target, prediction) -> (batch,) numbers.
        global_batch: patches of all ranks.
        xla: compile with XLA, which JAX always does; on torch: with torch.compile.
        parts: equal parts of the batch that are computed one after the other.
        average: takes in the weights after each step.
        compression: of what ranks send.
        rate_factor: the variable that the schedule's rate is multiplied by, if any.

    Raises:
        ValueError: ranks, or a compression of what they send, on another backend than TensorFlow.
    """
    name = backend.find()
    module = importlib.import_module(backend.STEPS[name])
    options: dict[str, Any] = {"xla": xla, "parts": parts, "average": average}
    if name == "tensorflow":
        options["compression"] = compression
    elif strategy.world_size > 1:
        raise ValueError(f"{strategy.world_size} ranks on {name}: expected 1")
    elif name == "jax":
        options["rate_factor"] = rate_factor
    step: Step = module.build_step(strategy, model, optimizer, loss, global_batch, **options)
    return step
