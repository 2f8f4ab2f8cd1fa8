"""Self-attention over the pixels of a block: x + gamma * softmax(g f^T) h.

f, g and h are 1 x 1 convolutions of x. The direct form holds a (pixels x pixels) map for each
block, 4.2 MB in float32 for 32 x 32 pixels, 340 MB for 96 x 96; where maps get large, another form
takes its place. All give the same values and gradients.

Scores and softmax are float32 and products with h of the layer's type: an exponential of a bfloat16
number is off by several percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from kerass2.models import blocks, loops, tiled_attention

# Maps of all blocks together [bytes] up to which the direct form is taken if a block is one tile:
# where each example is one block (256 patches of 32 px), and on rasters of many blocks.
PATCHES_BYTES = 2**30
RASTER_BYTES = 2**26
# Pixels along the square that the maps of a group fill, and groups computed at once where no
# gradient is asked for: a block of 32 px each, 4 MB. Two at once, each by one core, take 0.7 of the
# time of one after the other, each by both.
GROUP = 1024
AT_ONCE = 4


def attend(
    x: Any,
    gamma: Any,
    weights: Sequence[Any],
    grid: blocks.BlockGrid,
    dtype: str,
    training: bool = True,
    plain: bool = False,
) -> Any:
    """Give x + gamma * softmax(g f^T) h in each block of a lattice.

    Args:
        x: (batch, y, x, filter).
        gamma: scalar float32.
        weights: kernel (filter, output filter) and bias of f, g and h, float32.
        grid: the blocks of x.
        dtype: what projections and products with h are computed in.
        training: False takes many small blocks in a form that is faster but whose gradient, which
            is right too, is not sparing of memory.
        plain: take the direct form whatever the sizes: no conditions and no loops, which formats
            that models are exported to run slowly or not at all.

    Returns:
        Shape and type of x.
    """
    if plain:
        return direct(x, gamma, weights, grid, dtype)
    forms = (
        [direct, tiled_attention.attend] if training else [direct, grouped, tiled_attention.attend]
    )
    small = grid.block_height * grid.block_width <= tiled_attention.TILE
    fits = _fits(ops.shape(x)[0], grid)
    arguments = (x, gamma, weights, grid, dtype)
    if small is False:
        return forms[-1](*arguments)
    if small is True and isinstance(fits, bool):
        return forms[0 if fits else 1](*arguments)
    # One switch: TensorFlow has no gradient of a condition inside of a condition.
    number = ops.where(fits, 0, 1)
    number = ops.where(small, number, len(forms) - 1)
    return ops.switch(number, [lambda form=form: form(*arguments) for form in forms])


def _fits(num_examples: Any, grid: blocks.BlockGrid) -> Any:
    """Whether all maps fit; a bool of the graph where sizes are known at run time only."""
    pixels = grid.block_height * grid.block_width
    if all(isinstance(size, int) for size in (num_examples, pixels, grid.num_blocks)):
        limit = PATCHES_BYTES if grid.num_blocks == 1 else RASTER_BYTES
        return num_examples * grid.num_blocks * pixels**2 * 4 <= limit
    limit = ops.where(ops.equal(grid.num_blocks, 1), float(PATCHES_BYTES), float(RASTER_BYTES))
    # In float32: 32 bits do not hold the number of bytes.
    size = 4.0 * ops.cast(num_examples * grid.num_blocks, "float32")
    return size * ops.square(ops.cast(pixels, "float32")) <= limit


def direct(x: Any, gamma: Any, weights: Sequence[Any], grid: blocks.BlockGrid, dtype: str) -> Any:
    """All scores at once."""
    n, height, width, channels = ops.shape(x)
    pixels = ops.reshape(x, (n, height * width, channels))
    keys, queries, values = (
        blocks.split(ops.reshape(value, (n, height, width, value.shape[-1])), grid)
        for value in tiled_attention.project(pixels, weights, dtype)
    )
    inside = None if grid.is_uncut else ops.tile(blocks.inside(grid), (n, 1))
    attended = blocks.join(_mix(keys, queries, values, inside), grid)
    return tiled_attention.add_attended(x, gamma, attended)


def grouped(x: Any, gamma: Any, weights: Sequence[Any], grid: blocks.BlockGrid, dtype: str) -> Any:
    """A part of a block, or some blocks at once, whose maps are small together."""
    keys, queries, values = tiled_attention.project(
        blocks.split(ops.cast(x, dtype), grid), weights, dtype
    )
    count, pixels, channels = ops.shape(values)
    parts = _parts(pixels)
    size = pixels // parts
    group = 1 if parts > 1 else tiled_attention.group_size(count, pixels, GROUP)
    inside = None if grid.is_uncut else blocks.inside(grid)

    def one_group(number: Any) -> tuple[Any]:
        first, start = number // parts, (number % parts) * size
        query = ops.slice(queries, (first, start, 0), (group, size, queries.shape[-1]))
        key, value = (
            ops.slice(each, (first, 0, 0), (group, pixels, each.shape[-1]))
            for each in (keys, values)
        )
        there = None
        if inside is not None:
            numbers = (first + ops.arange(group, dtype="int32")) % grid.num_blocks
            there = ops.take(inside, numbers, axis=0)
        return (_mix(key, query, value, inside=there),)

    like = (ops.zeros((size, channels), dtype),)
    (out,) = loops.each(one_group, count * parts, group, like, at_once=AT_ONCE)
    attended = blocks.join(ops.reshape(out, (count, pixels, channels)), grid)
    return tiled_attention.add_attended(x, gamma, attended)


def _parts(pixels: Any) -> int:
    """Equal parts of a block's pixels, so that a map of one part and the block is small enough."""
    if not isinstance(pixels, int):
        return 1
    parts = -(-(pixels**2) // GROUP**2)
    return parts if pixels % parts == 0 else 1


def _mix(keys: Any, queries: Any, values: Any, inside: Any) -> Any:
    """softmax(queries keys^T) values for each block; see tiled_attention.project for the shapes."""
    if inside is not None:
        queries, keys = tiled_attention.with_presence(queries, keys, inside)
    scores = ops.matmul(queries, ops.transpose(keys, (0, 2, 1)))
    # Keras warns of a softmax over one thing, which is 1 and has no gradient.
    one = blocks.is_equal(scores.shape[-1], 1)
    shares = ops.exp(scores - scores) if one else ops.softmax(scores, axis=-1)
    return ops.matmul(ops.cast(shares, values.dtype), values)
