"""Self-attention over the pixels of a block: x + gamma * softmax(g f^T) h.

f, g and h are 1 x 1 convolutions of x. The direct form holds a (pixels x pixels) map for each
block, 4.2 MB in float32 for 32 x 32 pixels, 340 MB for 96 x 96; where maps get large, the tiled
form takes its place. Both give the same values and gradients.

Scores and softmax are float32 and products with h of the layer's type: an exponential of a bfloat16
number is off by several percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from kerass2.models import blocks, tiled_attention

# Maps of all blocks together [bytes] up to which the direct form is taken if a block is one tile:
# where each example is one block (256 patches of 32 px), and on rasters of many blocks.
PATCHES_BYTES = 2**30
RASTER_BYTES = 2**28


def attend(x: Any, gamma: Any, weights: Sequence[Any], grid: blocks.BlockGrid, dtype: str) -> Any:
    """Give x + gamma * softmax(g f^T) h in each block of a lattice.

    Args:
        x: (batch, y, x, filter).
        gamma: scalar float32.
        weights: kernel (filter, output filter) and bias of f, g and h, float32.
        grid: the blocks of x.
        dtype: what projections and products with h are computed in.

    Returns:
        Shape and type of x.
    """
    few = _is_few(ops.shape(x)[0], grid)
    if isinstance(few, bool):
        form = direct if few else tiled_attention.attend
        return form(x, gamma, weights, grid, dtype)
    return ops.cond(
        few,
        lambda: direct(x, gamma, weights, grid, dtype),
        lambda: tiled_attention.attend(x, gamma, weights, grid, dtype),
    )


def _is_few(num_examples: Any, grid: blocks.BlockGrid) -> Any:
    """Whether the direct form fits; a bool of the graph where sizes are known at run time only."""
    pixels = grid.block_height * grid.block_width
    if all(isinstance(size, int) for size in (num_examples, pixels, grid.num_blocks)):
        limit = PATCHES_BYTES if grid.num_blocks == 1 else RASTER_BYTES
        size = num_examples * grid.num_blocks * pixels**2 * 4
        return bool(pixels <= tiled_attention.TILE and size <= limit)
    if isinstance(pixels, int) and pixels > tiled_attention.TILE:
        return False
    limit = ops.where(ops.equal(grid.num_blocks, 1), float(PATCHES_BYTES), float(RASTER_BYTES))
    # In float32: 32 bits do not hold the number of bytes.
    size = 4.0 * ops.cast(num_examples * grid.num_blocks, "float32")
    size = size * ops.square(ops.cast(pixels, "float32"))
    return ops.logical_and(ops.less_equal(pixels, tiled_attention.TILE), size <= limit)


def direct(x: Any, gamma: Any, weights: Sequence[Any], grid: blocks.BlockGrid, dtype: str) -> Any:
    """All scores at once."""
    n, height, width, channels = ops.shape(x)
    pixels = ops.reshape(x, (n, height * width, channels))
    keys, queries, values = (
        blocks.split(ops.reshape(value, (n, height, width, value.shape[-1])), grid)
        for value in tiled_attention.project(pixels, weights, dtype)
    )
    if not grid.is_uncut:
        inside = ops.tile(blocks.inside(grid), (n, 1))
        queries, keys = tiled_attention.with_presence(queries, keys, inside)
    scores = ops.matmul(queries, ops.transpose(keys, (0, 2, 1)))
    # Keras warns of a softmax over one thing, which is 1 and has no gradient.
    one = blocks.is_equal(scores.shape[-1], 1)
    shares = ops.exp(scores - scores) if one else ops.softmax(scores, axis=-1)
    out = ops.matmul(ops.cast(shares, dtype), values)
    out = ops.cast(blocks.join(out, grid), x.dtype)
    return x + ops.cast(gamma, x.dtype) * out
