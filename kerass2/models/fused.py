"""Pointwise arithmetic on large tensors in one pass over memory, for prediction.

TensorFlow runs one operation after the other, each a pass over tensors that no cache holds: between
two convolutions in bfloat16 that takes as long as one of them. XLA makes one pass of them. JAX does
so by itself; under torch they stay as they are. Shapes have to be known: each one is compiled.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

# Numbers in a tensor from which on one pass is worth its compilation, a tenth of a second: 16 MB in
# float32.
LEAST_SIZE = 2**22


def one_pass(function: Callable[..., Any], *args: Any) -> Any:
    """function(*args), as one pass where that can be.

    Args:
        function: of tensors, without weights; the same object each time, or it is compiled again.
        args: tensors of shapes that are known.
    """
    if keras.backend.backend() != "tensorflow" or not all(_is_known(each) for each in args):
        return function(*args)
    if math.prod(args[0].shape) < LEAST_SIZE:
        return function(*args)
    return _compiled(function, tuple(tuple(each.shape) for each in args))(*args)


@functools.lru_cache(maxsize=64)
def _compiled(function: Callable[..., Any], shapes: tuple[tuple[int, ...], ...]) -> Any:
    """By shape, since TensorFlow warns of one function for many."""
    import tensorflow as tf

    return tf.function(function, jit_compile=True, autograph=False)


def _is_known(tensor: Any) -> bool:
    return not isinstance(tensor, keras.KerasTensor) and None not in tuple(tensor.shape)


@functools.cache
def _scaled_sum(scale: float) -> Callable[[Any, Any], Any]:
    return lambda stream, branch: stream + ops.cast(branch, stream.dtype) * scale


class OnePassSum(keras.layers.Layer):
    """A ResidualSum in one pass. Made for prediction and never saved."""

    def __init__(self, scale: float, **kwargs: Any) -> None:
        """`scale` is that of the ResidualSum."""
        super().__init__(**{"dtype": "float32", **kwargs, "autocast": False})
        self.scale = scale

    def call(self, stream: Any, branch: Any) -> Any:
        """Two tensors of one shape; the type of the first out."""
        return one_pass(_scaled_sum(self.scale), stream, branch)

    def compute_output_spec(self, stream: Any, branch: Any) -> Any:
        """The stream's."""
        return keras.KerasTensor(stream.shape, dtype=stream.dtype)


def fuse(model: keras.Model) -> keras.Model:
    """The model with its residual sums in one pass each; other layers and weights are shared."""
    from kerass2.models.layers import ResidualSum

    def wrap(layer: Any) -> Any:
        if type(layer) is ResidualSum:
            return OnePassSum(layer.scale, name=f"{layer.name}_one_pass")
        return layer

    return keras.models.clone_model(model, clone_function=wrap)
