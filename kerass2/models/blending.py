"""Half-shifted lattices blended, so that their borders do not show on rasters.

Mean-shift and attention act on blocks. A trained S2x makes up for the jumps of the block means only
in part: on real scenes differences across the borders of its lattice were a quarter larger than
elsewhere. On a patch no larger than a block, as in training, there is one block and no border.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from kerass2.models import fused
from kerass2.models.layers import MeanShift, SelfAttention

# Lattices by how they are moved along y and x [half blocks]. Two do, but where a border of one
# crosses a border of the other; four leave no such place, which means cost nothing for.
LATTICES = {
    MeanShift: ((0, 0), (1, 1), (0, 1), (1, 0)),
    SelfAttention: ((0, 0), (1, 1)),
}


class Blended(keras.layers.Layer):
    """A layer on its lattice and on others, moved by half a block along both axes or one.

    Made for prediction and never saved. The weight of each lattice falls towards its own borders,
    where another's blocks have their middle. Takes tensors larger than a block; within half a block
    of their edges only their own lattice counts, so a window needs as much more around what is
    kept.
    """

    def __init__(self, inner: Any, **kwargs: Any) -> None:
        """`inner` is a MeanShift or a SelfAttention with a block."""
        super().__init__(**{**kwargs, "autocast": False})
        if type(inner) not in LATTICES or not inner.block:
            raise ValueError(f"{inner!r}: a layer that acts on blocks is needed")
        self.inner = inner
        self.block = int(inner.block)
        self.lattices = LATTICES[type(inner)]

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Weights are those of the inner layer."""
        if not self.inner.built:
            self.inner.build(input_shape)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """(batch, y, x, filter) in and out, in the type of the input."""
        _, height, width, _ = ops.shape(inputs)
        shares = blending_weights(height, width, self.block, self.lattices)
        own = self.inner(inputs)
        total = own
        half, rest = self.block // 2, self.block - self.block // 2
        for moved, share in zip(self.lattices[1:], shares[1:], strict=True):
            rows, columns = (slice(half, -rest) if m else slice(None) for m in moved)
            part = self.inner(inputs[:, rows, columns])
            margins = tuple((half, rest) if m else (0, 0) for m in moved)
            total = fused.one_pass(_adding(margins), total, share, part, own)
        return total

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        """Shape and type of the input."""
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)


@functools.cache
def _adding(margins: tuple[tuple[int, int], ...]) -> Callable[..., Any]:
    """Adds a moved lattice's part, which has no blocks in `margins`, to those before it."""

    def add(total: Any, share: Any, part: Any, own: Any) -> Any:
        # total + share * (part - own): so the sum of the shares is 1 to the last digit.
        part = ops.pad(part, ((0, 0), *margins, (0, 0)))
        return total + ops.cast(share, total.dtype) * (part - own)

    return add


def blending_weights(
    height: Any, width: Any, block: int, lattices: Sequence[tuple[int, int]]
) -> list[Any]:
    """(y, x, 1) float32: the share of each lattice; the first begins at the first pixel.

    The square of the distance to a lattice's nearest border, over the sum of all lattices': squares
    keep the places small where borders of all cross. Within half a block of the tensor's edges
    moved lattices have no pixels.
    """
    half = block // 2

    def distance(size: Any, moved: int) -> Any:
        place = (ops.arange(size, dtype="int32") + moved * (block - half)) % block
        centre = ops.cast(place, "float32") + 0.5
        return ops.minimum(centre, block - centre)

    def outermost(size: Any) -> Any:
        place = ops.arange(size, dtype="int32")
        return ops.logical_or(place < half, place >= size - (block - half))

    edge = ops.logical_or(
        ops.expand_dims(outermost(height), 1), ops.expand_dims(outermost(width), 0)
    )
    nearest = []
    for number, (down, right) in enumerate(lattices):
        rows, columns = distance(height, down), distance(width, right)
        squares = ops.square(ops.minimum(ops.expand_dims(rows, 1), ops.expand_dims(columns, 0)))
        nearest.append(ops.where(edge, 0.0, squares) if number else squares)
    total = sum(nearest[1:], nearest[0])
    return [ops.expand_dims(squares / total, -1) for squares in nearest]


def blend(model: keras.Model) -> keras.Model:
    """The model with its lattices blended; the same layers and weights.

    Layers without a block, and blocks of one pixel, which have no half, stay as they are.
    """

    def wrap(layer: Any) -> Any:
        if type(layer) in LATTICES and (layer.block or 0) > 1:
            return Blended(layer, name=f"{layer.name}_blended")
        return layer

    return keras.models.clone_model(model, clone_function=wrap)
