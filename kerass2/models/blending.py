"""Half-shifted lattices blended, so that their borders do not show on rasters.

Mean-shift and attention act on blocks. A trained S2x makes up for the jumps of the block means only
in part: on real scenes differences across the borders of its lattice were a quarter larger than
elsewhere. On a patch no larger than a block, as in training, there is one block and no border.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kerass2.models import blocks, loops
from kerass2.models.layers import MeanShift, SelfAttention

# Lattices by how they are moved along y and x [half blocks]. Two do, but where a border of one
# crosses a border of the other; four leave no such place. Two more cost little for means, and much
# for attentions.
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

    def call(self, inputs: Any) -> Any:
        """(batch, y, x, filter) in and out, in the type of the input."""
        _, height, width, _ = ops.shape(inputs)
        shares = blending_weights(height, width, self.block, self.lattices)
        if len(shares) == 2 and blocks.divide(inputs, self.block).is_uncut:
            return self._row_by_row(inputs, shares[1])
        own = self.inner(inputs)
        total = own
        half, rest = self.block // 2, self.block - self.block // 2
        for moved, share in zip(self.lattices[1:], shares[1:], strict=True):
            rows, columns = (slice(half, -rest) if m else slice(None) for m in moved)
            margins = ((half, rest) if m else (0, 0) for m in moved)
            part = ops.pad(self.inner(inputs[:, rows, columns]), ((0, 0), *margins, (0, 0)))
            total = _blend_in(total, share, part, own)
        return total

    def _row_by_row(self, inputs: Any, share: Any) -> Any:
        """Two lattices, the second moved along both axes: a row of blocks of each at a time.

        An attention makes half a dozen tensors of the size of its input: of a row of blocks they
        are small, and stay in the caches.
        """
        n, height, width, channels = ops.shape(inputs)
        block, half = self.block, self.block // 2
        rest = block - half

        def step(number: Any, above: Any) -> tuple[Any, Any]:
            """`above` is the lower half of the moved row before, which ends in this row."""
            first = number * block
            own = self.inner(ops.slice(inputs, (0, first, 0, 0), (n, block, width, channels)))
            # Below the last row the moved lattice has none: any, since its share is 0 there.
            start = ops.minimum(first + half, height - block)
            moved = ops.slice(inputs, (0, start, half, 0), (n, block, width - block, channels))
            moved = ops.pad(self.inner(moved), ((0, 0), (0, 0), (half, rest), (0, 0)))
            part = ops.concatenate([above, moved[:, :rest]], axis=1)
            here = ops.slice(share, (first, 0, 0), (block, width, 1))
            return moved[:, rest:], _blend_in(own, here, part, own)

        start = ops.zeros((n, half, width, channels), inputs.dtype)
        rows = loops.scan(step, height // block, start, inputs.dtype)
        if not blocks.is_equal(n, 1):
            rows = ops.transpose(rows, (1, 0, 2, 3, 4))
        return ops.reshape(rows, (n, height, width, channels))

    def compute_output_spec(self, inputs: Any) -> Any:
        """Shape and type of the input."""
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)


def _blend_in(total: Any, share: Any, part: Any, own: Any) -> Any:
    """A moved lattice's share in the place of as much of `own`: all shares stay 1 together."""
    return total + ops.cast(share, total.dtype) * (part - own)


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
