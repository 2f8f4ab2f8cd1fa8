"""What a model costs: parameters and floating-point operations, counted from its layers."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


@dataclasses.dataclass(frozen=True)
class Cost:
    """Operations of the forward pass: two for each multiplication with its sum.

    Convolutions and matrix products are counted; sums, activations, means, softmax and
    interpolation are not: less than 2 % of a network with 128 filters. A training step takes three
    times as many.
    """

    parameters: int
    """Weights of all layers."""
    convolutions: int
    """Operations of the convolutions for one pixel of the output."""
    projections: int
    """Operations of the attention's 1 x 1 convolutions for one pixel."""
    attention_per_key: int
    """Operations of the attention for one pixel and each pixel it looks at."""
    block: int | None
    """Edge [px] of the blocks that attention looks at; None: the whole input, or no attention."""

    def attention(self, patch: int) -> int:
        """Operations of the attention for one pixel, where the input has `patch` x `patch` px."""
        edge = patch if self.block is None else min(patch, self.block)
        return self.projections + self.attention_per_key * edge**2

    def of_patch(self, patch: int) -> int:
        """Operations for a patch of `patch` x `patch` px of the output."""
        return patch**2 * (self.convolutions + self.attention(patch))


def count_classifier(model: keras.Model, patch: int) -> Cost:
    """The cost of a classifier for patches of `patch` x `patch` px of 10 m.

    Its convolutions work on grids of their own: their operations are counted for a patch, and
    divided by its pixels.
    """
    import keras

    from kerass2.models import labels

    gsd = labels.describe(model)["gsd"]
    inputs = {
        key: keras.Input((round(patch * 10 / gsd[key]),) * 2 + (tensor.shape[-1],), name=key)
        for key, tensor in model.input.items()
    }
    sized = keras.models.clone_model(model, input_tensors=inputs)
    operations = 0
    for layer in sized.layers:
        if isinstance(layer, keras.layers.Conv2D):
            positions = layer.output.shape[1] * layer.output.shape[2]
            height, width, channels, filters = layer.kernel.shape
            operations += 2 * positions * height * width * channels * filters
        elif isinstance(layer, keras.layers.Dense):
            operations += 2 * layer.kernel.shape[0] * layer.kernel.shape[1]
    return Cost(model.count_params(), round(operations / patch**2), 0, 0, None)


def count(model: keras.Model) -> Cost:
    """The cost of a model of this package that gives an image.

    All its convolutions and its attention work on the grid of the output. Where two lattices are
    blended (blending.blend, as rasters are predicted) the attention counts twice.
    """
    import keras

    from kerass2.models.blending import Blended
    from kerass2.models.layers import SelfAttention

    convolutions = projections = per_key = 0
    block = None
    for outer in model.layers:
        blended = isinstance(outer, Blended)
        layer, lattices = (outer.inner, len(outer.lattices)) if blended else (outer, 1)
        if isinstance(layer, keras.layers.Conv2D):
            height, width, channels, filters = layer.kernel.shape
            convolutions += 2 * height * width * channels * filters
        elif isinstance(layer, SelfAttention):
            channels = layer.h.units
            projections += lattices * 2 * channels * (2 * layer.key_filters + channels)
            per_key += lattices * 2 * (layer.key_filters + channels)
            block = layer.block
    return Cost(model.count_params(), convolutions, projections, per_key, block)
