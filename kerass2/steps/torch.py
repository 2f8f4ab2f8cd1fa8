"""The training step on the torch backend: one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from keras import ops

from kerass2.steps import value as values
from strategies.base import Strategy


def build_step(
    strategy: Strategy, recipe: values.Recipe
) -> Callable[[Mapping[str, Any], bool], dict[str, float]]:
    """See kerass2.steps.build_step; `xla` asks for torch.compile."""
    weights, optimizer, parts = recipe.model.trainable_variables, recipe.optimizer, recipe.parts
    compute = torch.compile(values.compute) if recipe.xla else values.compute

    def gradient(batch: Any, part: int) -> tuple[Any, list[Any]]:
        value = compute(recipe, batch, part)
        scaled = optimizer.scale_loss(value)
        # A weight that takes no part in the loss has no gradient: None, as in TensorFlow.
        found = torch.autograd.grad(scaled, [w.value for w in weights], allow_unused=True)
        return value.detach(), list(found)

    def step(batch: Mapping[str, Any], stop: bool) -> dict[str, float]:
        arrays = {
            group: {name: ops.convert_to_tensor(array) for name, array in named.items()}
            for group, named in values.to_numpy(values.choose(batch, recipe.taken)).items()
        }
        value, gradients = gradient(_part(arrays, 0, parts), 0)
        for number in range(1, parts):
            more, others = gradient(_part(arrays, number, parts), number)
            value = value + more
            gradients = [
                a if b is None else b if a is None else a + b
                for a, b in zip(gradients, others, strict=True)
            ]
        with torch.no_grad():
            present = [each for each in gradients if each is not None]
            norm = torch.stack([torch.sum(torch.square(each)) for each in present]).sum().sqrt()
            optimizer.apply(gradients, weights)
            if recipe.average is not None:
                recipe.average.update()
        return {"loss": float(value), "gradient_norm": float(norm), "stop": float(stop)}

    return step


def _part(batch: Any, number: int, parts: int) -> Any:
    """One of the equal parts of a batch."""
    if parts == 1:
        return batch
    return {
        group: {
            name: array.reshape(parts, array.shape[0] // parts, *array.shape[1:])[number]
            for name, array in named.items()
        }
        for group, named in batch.items()
    }


def compile_gradient(function: Callable[..., Any]) -> Callable[..., Sequence[Any]]:
    """As kerass2.steps.tensorflow.compile_gradient; nothing is compiled."""

    def gradient(*arguments: Any) -> Sequence[Any]:
        needed = [each.detach().requires_grad_() for each in arguments]
        found: Sequence[Any] = torch.autograd.grad(function(*needed), needed)
        return found

    return gradient
