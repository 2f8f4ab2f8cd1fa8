"""Pointwise arithmetic on large tensors in one pass over memory, in prediction and training steps.

TensorFlow runs one operation after the other, each a pass over tensors that no cache holds: between
two convolutions in bfloat16 that takes as long as one of them. XLA makes one pass of them. JAX does
so by itself; under torch they stay as they are. Shapes have to be known: each one is compiled.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kerass2 import backend

# Numbers in a tensor from which on one pass is worth its compilation, a tenth of a second: 4 MB in
# float32.
LEAST_SIZE = 2**20
# Residual sums for which the stream is written once. Six sums and casts to bfloat16, 128 filters,
# 544 x 544 px, 2 cores: 142 ms one by one, 112 by twos, 107 by threes. Each holds one more branch.
TOGETHER = 3


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

    _start_xla()
    return tf.function(function, jit_compile=True, autograph=False)


@functools.cache
def _start_xla() -> None:
    """Run XLA once without the four lines about itself that it then writes to standard error.

    They heed no log level and do not come again; with TensorFlow's notes on they stay.
    """
    import tensorflow as tf

    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "0") in ("0", "1"):
        return
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with tf.init_scope(), tf.device("/cpu:0"):
            tf.function(lambda x: x + 1, jit_compile=True, autograph=False)(tf.constant(0.0))
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _is_known(tensor: Any) -> bool:
    return not isinstance(tensor, keras.KerasTensor) and None not in tuple(tensor.shape)


@functools.cache
def _scaled_sum(scale: float, dtype: str) -> Callable[..., Any]:
    def add(stream: Any, *branches: Any) -> Any:
        for branch in branches:
            stream = stream + ops.cast(branch, stream.dtype) * scale
        return ops.cast(stream, dtype)

    return add


class OnePassSum(keras.layers.Layer):
    """ResidualSums, one after the other, in one pass. Made for prediction and never saved."""

    def __init__(self, scale: float, out: str = "float32", **kwargs: Any) -> None:
        """`scale` is that of the ResidualSums; their float32 sum comes out as type `out`."""
        super().__init__(**{"dtype": "float32", **kwargs, "autocast": False})
        self.scale = scale
        self.out = out

    def call(self, stream: Any, *branches: Any) -> Any:
        """All of one shape, which that of the sum is, too."""
        return one_pass(_scaled_sum(self.scale, self.out), stream, *branches)

    def compute_output_spec(self, stream: Any, *branches: Any) -> Any:
        """The stream's shape."""
        return keras.KerasTensor(stream.shape, dtype=self.out)


def fuse(model: keras.Model) -> keras.Model:
    """The model with its residual sums in one pass each; other layers and weights are shared.

    Under TensorFlow a convolution in bfloat16 then takes what one pass gives in that type: summed
    in float32, from the stream as it was last written and the branches since. The stream itself is
    written every TOGETHER sums only.
    """
    from kerass2.models.layers import ResidualSum

    together = TOGETHER if keras.backend.backend() == "tensorflow" else 1
    # By the id of what a sum gives, which is kept with it so that no id is given twice.
    sums: dict[int, tuple[Any, float, tuple[Any, ...]]] = {}

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        _, scale, parts = sums.get(id(args[0]) if args else 0, (None, 0.0, args[:1]))
        if type(layer) is ResidualSum:
            stream, branch = args
            if len(parts) > together or scale != layer.scale or branch.dtype == stream.dtype:
                parts = (stream,)
            parts += (branch,)
            total = OnePassSum(layer.scale)(*parts)
            sums[id(total)] = total, layer.scale, parts
            return total
        if 1 < len(parts) <= together and hasattr(layer, "kernel_size"):
            low = layer.compute_dtype
            if low != args[0].dtype:
                args = (OnePassSum(scale, low)(*parts),)
        return layer(*args, **kwargs)

    return keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=call)


class InBoth(keras.layers.Layer):
    """A ResidualSum's float32 stream, and the same in bfloat16; its gradient is made in one pass.

    Made for training steps and never saved.
    """

    def __init__(self, scale: float = 1.0, **kwargs: Any) -> None:
        """`scale` is that of the ResidualSum."""
        super().__init__(**{"dtype": "float32", **kwargs, "autocast": False})
        self.scale = scale

    def call(self, stream: Any, *branch: Any) -> tuple[Any, Any]:
        """(batch, y, x, filter) float32, and the branch to add, if any; float32 and bfloat16."""
        return _in_both(self.scale)(stream, *branch)

    def compute_output_spec(self, stream: Any, *branch: Any) -> tuple[Any, Any]:
        """The stream's shape, twice."""
        whole, low = (keras.KerasTensor(stream.shape, dtype=x) for x in ("float32", "bfloat16"))
        return whole, low


@functools.cache
def _in_both(scale: float) -> Callable[..., tuple[Any, Any]]:
    def add(stream: Any, branch: Any) -> tuple[Any, Any]:
        total = _scaled_sum(scale, "float32")(stream, branch)
        return total, ops.cast(total, "bfloat16")

    def join(upstream: Any, upstream_low: Any) -> Any:
        return upstream + ops.cast(upstream_low, "float32")

    def divide(upstream: Any, upstream_low: Any) -> tuple[Any, Any]:
        gradient = join(upstream, upstream_low)
        return gradient, ops.cast(gradient * scale, "bfloat16")

    @ops.custom_gradient
    def in_both(stream: Any, *branch: Any) -> Any:
        if not branch:
            return (stream, ops.cast(stream, "bfloat16")), functools.partial(one_pass, join)
        return one_pass(add, stream, *branch), functools.partial(one_pass, divide)

    made: Callable[..., tuple[Any, Any]] = in_both
    return made


def fuse_step(model: keras.Model) -> keras.Model:
    """The model as a training step computes it: layers and weights are shared.

    Under TensorFlow on processors, where a convolution in bfloat16 takes the float32 stream, sum
    and cast are one pass, and so is all that becomes of their gradients. Other models come back as
    they are.
    """
    from kerass2.models.layers import ResidualSum

    def is_low(layer: Any) -> bool:
        return hasattr(layer, "kernel_size") and layer.compute_dtype == "bfloat16"

    streams = any(type(layer) is ResidualSum for layer in model.layers)
    if not (streams and any(map(is_low, model.layers)) and backend.is_on_processors()):
        return model
    # By the id of a tensor, which is kept with it so that no id is given twice: the scale and parts
    # of a sum; what takes the place of a stream.
    sums: dict[int, tuple[Any, float, tuple[Any, ...]]] = {}
    streams_in_both: dict[int, tuple[Any, Any]] = {}

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if is_low(layer) and args[0].dtype == "float32":
            stream, scale, parts = sums.get(id(args[0]), (args[0], 1.0, args))
            whole, low = InBoth(scale)(*parts)
            streams_in_both[id(stream)] = stream, whole
            return layer(low, **kwargs)
        args = tuple(streams_in_both.get(id(each), (each, each))[1] for each in args)
        found = layer(*args, **kwargs)
        if type(layer) is ResidualSum:
            sums[id(found)] = found, layer.scale, args
        return found

    return keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=call)
