"""S2x (Zhang, Cavallaro and Jitsev 2020): residual network with one self-attention in its middle.

The figures of the paper are not in its text. Read from the text: bilinear upsampling, band fusion
(mean-shift, then a convolution over the concatenation; no activation, as in the residual networks
it follows), half of the blocks, attention, the other half, last convolution, plus the upsampled
bands.
"""

from __future__ import annotations

from typing import Any

import keras

from kerass2.config import ConfigError
from kerass2.models.dsen2 import TASKS, close_output, convolution, open_inputs, residual_block
from kerass2.models.layers import MeanShift, SelfAttention


def build(
    *,
    task: str = "superres_20m",
    filters: int = 128,
    blocks: int = 6,
    attention: bool = True,
    key_filters: int = 16,
    block: int = 0,
    dtype: str = "float32",
) -> keras.Model:
    """S2x.

    Args:
        task: "superres_20m"; the inputs of another task make the network of that task.
        filters: width of all convolutions but the last.
        blocks: residual blocks; the attention stands after half of them.
        attention: False leaves the self-attention out.
        key_filters: width of f and g in the attention.
        block: edge [px of 10 m] of the squares that mean-shift and attention act on; 0: the whole
            input. A raster's values then do not depend on the window they are computed in, and
            patches no larger than a block are as without.
        dtype: Keras policy of blocks and attention; residual stream, first and last convolution
            stay float32.

    Returns:
        A model of {"gsd10": (batch, y, x, 4), "gsd20": (batch, y/2, x/2, 6)} float32 reflectance
        [1] that gives {task: (batch, y, x, band)}.

    Raises:
        ConfigError: an unknown task, or a block that cuts through pixels of the coarsest input.
    """
    inputs, fine = open_inputs(task)
    coarsest = max(TASKS[task].values()) // 10
    if block % coarsest:
        raise ConfigError(f"block = {block}: {task} needs a multiple of {coarsest}")
    edge = block or None
    x = fuse_bands(fine, filters, edge)
    for number in range(1, blocks + 1):
        x = residual_block(x, filters, f"block{number}", dtype)
        if attention and number == (blocks + 1) // 2:
            x = SelfAttention(key_filters, edge, dtype=dtype, name="attention")(x)
    return keras.Model(inputs, close_output(x, fine[-1], task), name="s2x")


def fuse_bands(fine: list[Any], filters: int, block: int | None) -> Any:
    """Band fusion: all bands in one tensor, each block's band means moved to 0, a convolution."""
    x = keras.layers.Concatenate(name="fusion")(fine)
    return convolution(filters, "conv_first")(MeanShift(block, name="mean_shift")(x))
