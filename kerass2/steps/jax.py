"""The training step on the JAX backend: one process, one function under jax.jit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras

from kerass2.steps import value as values
from strategies.base import Strategy

Arrays = Sequence[Any]


def build_step(
    strategy: Strategy, recipe: values.Recipe
) -> Callable[[Mapping[str, Any], bool], dict[str, float]]:
    """See kerass2.steps.build_step.

    Variables are arguments and results of the compiled function, and are assigned after it. The
    optimizer's own apply reads no variables but its own and the weights, so the recipe's
    `rate_factor` is a constant of the compiled function, which is compiled anew when validation
    has lowered it.
    """
    model, average = recipe.model, recipe.average
    state = [
        model.trainable_variables,
        model.non_trainable_variables,
        recipe.optimizer.variables,
        [] if average is None else average.variables,
    ]
    compiled = jax.jit(functools.partial(_update, recipe, state), static_argnums=2)

    def step(batch: Mapping[str, Any], stop: bool) -> dict[str, float]:
        arrays = values.to_numpy(values.choose(batch, recipe.taken))
        now = [[variable.value for variable in group] for group in state]
        rate = None if recipe.rate_factor is None else float(recipe.rate_factor)
        after, found = compiled(now, arrays, rate)
        for group, new in zip(state, after, strict=True):
            for variable, array in zip(group, new, strict=True):
                variable.assign(array)
        return {**{name: float(each) for name, each in found.items()}, "stop": float(stop)}

    return step


def _update(
    recipe: values.Recipe,
    state: Sequence[Sequence[Any]],
    now: Sequence[Arrays],
    batch: Any,
    rate: float | None,
) -> tuple[Sequence[Arrays], dict[str, Any]]:
    """Values of the variables of `state` after a step, from those before it, and what it found.

    `rate` says no more than that another rate wants another compiled function.
    """
    trained, before, steps, averaged = now
    gradient = jax.value_and_grad(functools.partial(_share, recipe, state), has_aux=True)
    value, after, gradients = _sum_parts(gradient, trained, before, steps, batch, recipe.parts)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(each)) for each in gradients))
    trained, steps = recipe.optimizer.stateless_apply(steps, gradients, trained)
    if recipe.average is not None:
        weights, *_, averages = state
        mapping = [*zip(weights, trained, strict=True), *zip(averages, averaged, strict=True)]
        with keras.StatelessScope(mapping) as scope:
            recipe.average.update()
        averaged = [scope.get_current_value(variable) for variable in averages]
    return (trained, after, steps, averaged), {"loss": value, "gradient_norm": norm}


def _share(
    recipe: values.Recipe,
    state: Sequence[Sequence[Any]],
    trained: Arrays,
    fixed: Mapping[str, Arrays],
    batch: Any,
    part: Any,
) -> Any:
    """(loss as scaled in float16, (loss, moving statistics after it)) of a part."""
    weights, moving, optimizer, _ = state
    mapping = [
        *zip(weights, trained, strict=True),
        *zip(moving, fixed["moving"], strict=True),
        *zip(optimizer, fixed["optimizer"], strict=True),
    ]
    with keras.StatelessScope(mapping, collect_losses=True) as scope:
        value = values.compute(recipe, batch, part)
        scaled = recipe.optimizer.scale_loss(value)
    return scaled, (value, [scope.get_current_value(variable) for variable in moving])


def _sum_parts(
    gradient: Callable[..., Any],
    trained: Arrays,
    moving: Arrays,
    optimizer: Arrays,
    batch: Any,
    parts: int,
) -> tuple[Any, Arrays, Arrays]:
    """(loss, moving statistics, gradients) of a batch, one of its equal parts after the other."""
    if parts == 1:
        fixed = {"moving": moving, "optimizer": optimizer}
        (_, (value, moving)), gradients = gradient(trained, fixed, batch, 0)
        return value, moving, gradients
    divided = jax.tree_util.tree_map(
        lambda array: array.reshape(parts, array.shape[0] // parts, *array.shape[1:]), batch
    )

    def add(sums: Any, each: Any) -> tuple[Any, None]:
        value, before, total = sums
        number, part = each
        fixed = {"moving": before, "optimizer": optimizer}
        (_, (more, after)), gradients = gradient(trained, fixed, part, number)
        return (value + more, after, jax.tree_util.tree_map(jnp.add, total, gradients)), None

    start = (jnp.zeros(()), list(moving), [jnp.zeros_like(each) for each in trained])
    (value, moving, gradients), _ = jax.lax.scan(add, start, (jnp.arange(parts), divided))
    return value, moving, gradients


def compile_gradient(function: Callable[..., Any]) -> Callable[..., Sequence[Any]]:
    """As kerass2.steps.tensorflow.compile_gradient, of two tensors."""
    compiled: Callable[..., Sequence[Any]] = jax.jit(jax.grad(function, argnums=(0, 1)))
    return compiled
