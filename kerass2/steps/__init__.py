"""One compiled training step for each Keras backend; train.py calls it.

What a step computes is in value.py, for all of them; a backend's file says how it is compiled.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from kerass2 import backend

if TYPE_CHECKING:
    from strategies.base import Strategy

Loss = Callable[[Any, Any], Any]
Step = Callable[[Mapping[str, Any], bool], dict[str, float]]


def build_step(
    strategy: Strategy,
    model: Any,
    optimizer: Any,
    loss: Loss,
    global_batch: int,
    **options: Any,
) -> Step:
    """The compiled step of Keras' backend.

    (batch of this rank, this rank wants to stop) -> {"loss": global loss, "gradient_norm": of the
    summed gradient, as scaled in float16, "stop": ranks wanting}.

    Args:
        strategy: how the step spreads over ranks; on other backends than TensorFlow a world of one.
        model: this and the following: see value.Recipe.
        optimizer: see there.
        loss: see there.
        global_batch: see there.
        **options: see there.

    Raises:
        ValueError: more ranks than one on another backend than TensorFlow.
    """
    # Imports Keras.
    from kerass2.steps.value import Recipe

    name = backend.find()
    if name != "tensorflow" and strategy.world_size > 1:
        raise ValueError(f"{strategy.world_size} ranks on {name}: expected 1")
    module = importlib.import_module(backend.STEPS[name])
    recipe = Recipe(model, optimizer, loss, global_batch, **options)
    step: Step = module.build_step(strategy, recipe)
    return step
