"""The training step on the TensorFlow backend, under any strategy."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from kerass2.models import fused
from kerass2.steps import value as values
from strategies.base import Strategy, sum_compressed

# (batch, number of the part) -> value and gradients, the latter in the order of the model's
# trainable variables.
Gradient = Callable[[Mapping[str, Any], Any], tuple[Any, Sequence[Any]]]


def build_step(
    strategy: Strategy, recipe: values.Recipe
) -> Callable[[Mapping[str, Any], bool], dict[str, float]]:
    """See kerass2.steps.build_step.

    Loss = sum(per-example loss) / global_batch + regularisation / world_size on each rank;
    gradients, loss and the wish to stop are summed in one all-reduce, so that every rank sees the
    same numbers and stops at the same step. L2 on weights, which all ranks hold alike, is added
    behind that sum.

    Ranks send nothing before the whole backward pass is done: the sum does not overlap with it.
    Within the sum, Horovod fuses tensors and sends the first while it gathers the next ones
    (HOROVOD_FUSION_THRESHOLD; HOROVOD_HIERARCHICAL_ALLREDUCE, where built for it), tf.distribute
    packs them into one.
    """
    weights, optimizer, parts = recipe.model.trainable_variables, recipe.optimizer, recipe.parts
    factors = [_l2_factor(weight) for weight in weights]
    gradient = _build_gradient(recipe, strategy.world_size)

    def replica_step(batch: Mapping[str, Any], stop: Any) -> dict[str, Any]:
        value, gradients = gradient(batch, 0) if parts == 1 else _sum_parts(gradient, batch, parts)
        if recipe.compression == "none":
            *gradients, value, stop = strategy.sum_gradients([*gradients, value, stop])
        else:
            gradients = sum_compressed(strategy, gradients, recipe.compression)
            value, stop = strategy.sum_gradients([value, stop])
        if any(factors):
            penalty, gradients = _add_l2(gradients, weights, factors, optimizer)
            value += penalty
        norm = tf.linalg.global_norm(gradients)
        optimizer.apply(gradients, weights)
        return {"loss": value, "gradient_norm": norm, "stop": stop}

    @tf.function(jit_compile=recipe.xla, autograph=False)
    def compiled(batch: Mapping[str, Any], stop: Any) -> Any:
        found = strategy.run(replica_step, batch, stop)
        if recipe.average is not None:
            recipe.average.update()
        return found

    def step(batch: Mapping[str, Any], stop: bool) -> dict[str, float]:
        found = compiled(values.choose(batch, recipe.taken), tf.constant(float(stop)))
        return {name: float(value) for name, value in found.items()}

    return step


def _build_gradient(recipe: values.Recipe, world_size: int) -> Gradient:
    """What computes a part's value, and its gradients without those of L2."""
    weights = recipe.model.trainable_variables
    recipe = dataclasses.replace(recipe, model=fused.fuse_step(recipe.model))

    def gradient(batch: Mapping[str, Any], part: Any) -> tuple[Any, Sequence[Any]]:
        with tf.GradientTape() as tape, _without_l2(weights):
            value = values.compute(recipe, batch, part, world_size)
            scaled = recipe.optimizer.scale_loss(value)
        return value, tape.gradient(scaled, [weight.value for weight in weights])

    return gradient


# --- L2 on weights -------------------------------------------------------------------------------
# Its gradient is 2 l2 weight: the tape would form squares, their sum and all that leads back from
# it, a dozen passes over memory, in every part of a batch.


def _l2_factor(weight: Any) -> float:
    """Of a weight's own keras.regularizers.L2; 0 where it has none, or another regulariser."""
    found = weight.regularizer
    return float(found.l2) if type(found) is keras.regularizers.L2 else 0.0


@contextlib.contextmanager
def _without_l2(weights: Sequence[Any]) -> Iterator[None]:
    """Inside the `with` block, Model.losses lacks what `_add_l2` adds."""
    held = [(weight, weight.regularizer) for weight in weights if _l2_factor(weight)]
    try:
        for weight, _ in held:
            weight.regularizer = None
        yield
    finally:
        for weight, regularizer in held:
            weight.regularizer = regularizer


def _add_l2(
    gradients: Sequence[Any], weights: Sequence[Any], factors: Sequence[float], optimizer: Any
) -> tuple[Any, list[Any]]:
    """The sum of factor * weight^2, and gradients with that of it, scaled as the optimizer does."""
    penalties, added = [], []
    for gradient, weight, factor in zip(gradients, weights, factors, strict=True):
        if factor:
            value = tf.convert_to_tensor(weight.value)
            penalties.append(2 * factor * tf.nn.l2_loss(value))
            own = value * optimizer.scale_loss(2 * factor)
            gradient = own if gradient is None else gradient + own
        added.append(gradient)
    return tf.add_n(penalties), added


# --- parts of a batch ----------------------------------------------------------------------------


def _sum_parts(
    gradient: Gradient, batch: Mapping[str, Any], parts: int
) -> tuple[Any, Sequence[Any]]:
    """Value and gradients summed over equal parts of a batch.

    A loop that runs one part at a time: parts written out one after the other would be independent
    of each other, and TensorFlow would run them at once.
    """
    divided = tf.nest.map_structure(
        lambda array: tf.reshape(array, (parts, array.shape[0] // parts, *array.shape[1:])), batch
    )

    def part(number: Any) -> Any:
        return gradient(tf.nest.map_structure(lambda array: array[number], divided), number)

    def add(number: Any, value: Any, sums: Sequence[Any]) -> tuple[Any, Any, Sequence[Any]]:
        more, gradients = part(number)
        # A weight that takes no part in the loss has no gradient: its sum is None, too.
        pairs = zip(sums, present(gradients), strict=True)
        return number + 1, value + more, [total + each for total, each in pairs]

    def present(gradients: Sequence[Any]) -> list[Any]:
        return [tf.convert_to_tensor(each) for each in gradients if each is not None]

    # The first part stands before the loop: it tells which weights have gradients.
    value, first = part(0)
    _, value, sums = tf.while_loop(
        lambda number, *_: number < parts,
        add,
        (tf.constant(1), value, present(first)),
        parallel_iterations=1,
    )
    summed = iter(sums)
    return value, [None if each is None else next(summed) for each in first]


def compile_gradient(function: Callable[..., Any]) -> Callable[..., Sequence[Any]]:
    """A compiled function of some tensors: the gradient of `function`'s scalar in each of them."""

    @tf.function(autograph=False)
    def gradient(*arguments: Any) -> Any:
        return tf.gradients(function(*arguments), arguments)

    compiled: Callable[..., Sequence[Any]] = gradient
    return compiled
