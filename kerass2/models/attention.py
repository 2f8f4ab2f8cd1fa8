"""Self-attention over the pixels of a block: x + gamma * softmax(g f^T) h.

f, g and h are 1 x 1 convolutions of x. The direct form holds a (pixels x pixels) map for each
block, 4.2 MB in float32 for 32 x 32 pixels, 340 MB for 96 x 96. The grouped form computes a few
maps at a time, forward and backward, the tiled form parts of one. All give the same values and
gradients. On processors the grouped form keeps bfloat16 maps for the backward pass, if they fit.

Scores and softmax are float32 and products with h of the layer's type: an exponential of a bfloat16
number is off by several percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kerass2 import backend
from kerass2.models import blocks, fused, loops, tiled_attention

# Maps of all blocks together [bytes] up to which the direct form is taken, where it is the fastest:
# where each example is one block (256 patches of 32 px), and on rasters of many blocks.
PATCHES_BYTES = 2**30
RASTER_BYTES = 2**26
# Pixels along the square that the maps of a group fill on processors (elsewhere: a tile's), and
# groups computed at once, forward and backward: a block of 32 px each, 4 MB. Two at once, each by
# one core, take 0.7 of the time of one after the other, each by both. A training step takes 0.93
# (float32) and 0.75 (bfloat16) of the direct form's time, and a fifth and a third of its memory.
GROUP = 1024
AT_ONCE = 4
AT_ONCE_BACKWARD = 2
# Maps of all blocks together [bytes] up to which a training step in bfloat16 keeps them on
# processors: 128 patches of 32 px. Computing them again takes a quarter longer; in float32, where
# they are twice as large, keeping them takes longer.
KEPT_BYTES = 2**28


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
        training: False takes groups in a form whose gradient, which is right too, is not sparing of
            memory, but whose graphs can be dropped: TensorFlow keeps every gradient of our own.
        plain: take the direct form whatever the sizes: no conditions and no loops, which formats
            that models are exported to run slowly or not at all.

    Returns:
        Shape and type of x.
    """
    if plain:
        return direct(x, gamma, weights, grid, dtype)
    small = grid.block_height * grid.block_width <= tiled_attention.TILE
    fits = _fits(ops.shape(x)[0], grid)
    forms = [direct, grouped if training else grouped_without_gradient, tiled_attention.attend]
    arguments = (x, gamma, weights, grid, dtype)
    if small is False:
        return forms[2](*arguments)
    if small is True and isinstance(fits, bool):
        return forms[0 if fits else 1](*arguments)
    # One switch: TensorFlow has no gradient of a condition inside of a condition.
    number = ops.where(small, ops.where(fits, 0, 1), 2)
    return ops.switch(number, [lambda form=form: form(*arguments) for form in forms])


def _fits(num_examples: Any, grid: blocks.BlockGrid) -> Any:
    """Whether the direct form is to be taken: all maps fit, and one after the other is no faster.

    A bool of the graph where sizes are known at run time only.
    """
    pixels = grid.block_height * grid.block_width
    if isinstance(pixels, int) and GROUP // pixels <= 1 and backend.is_on_processors():
        return False
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
    attended = _mix(*_mark(keys, queries, grid), values)
    return tiled_attention.add_attended(x, gamma, blocks.join(attended, grid))


def grouped(x: Any, gamma: Any, weights: Sequence[Any], grid: blocks.BlockGrid, dtype: str) -> Any:
    """A part of a block, or some blocks at once, whose maps are small together; backward too."""
    return _add_groups(_mix_groups, x, gamma, weights, grid, dtype)


def grouped_without_gradient(
    x: Any, gamma: Any, weights: Sequence[Any], grid: blocks.BlockGrid, dtype: str
) -> Any:
    """As grouped, forward."""
    return _add_groups(_mix_forward, x, gamma, weights, grid, dtype)


def _add_groups(
    mix: Any, x: Any, gamma: Any, weights: Sequence[Any], grid: blocks.BlockGrid, dtype: str
) -> Any:
    parts = blocks.split(ops.cast(x, dtype), grid)
    keys, queries, values = tiled_attention.project(parts, weights, dtype)
    attended = mix(*_mark(keys, queries, grid), values)
    return tiled_attention.add_attended(x, gamma, blocks.join(attended, grid))


def _mark(keys: Any, queries: Any, grid: blocks.BlockGrid) -> tuple[Any, Any]:
    """Keys and queries of all blocks, where pixels that fill up cut blocks get no share."""
    if grid.is_uncut:
        return keys, queries
    num_examples = ops.shape(keys)[0] // grid.num_blocks
    inside = ops.tile(blocks.inside(grid), (num_examples, 1))
    queries, keys = tiled_attention.with_presence(queries, keys, inside)
    return keys, queries


def _mix_forward(keys: Any, queries: Any, values: Any) -> Any:
    """_mix, a group after the other."""
    count, pixels, channels = ops.shape(values)
    parts = _parts(pixels)
    size = pixels // parts
    group = 1 if parts > 1 else _group_size(count, pixels)

    def one_group(number: Any) -> tuple[Any]:
        first, start = number // parts, (number % parts) * size
        query = _take(queries, first, group, start, size)
        found = _mix(_take(keys, first, group), query, _take(values, first, group))
        return (ops.reshape(found, (group, size, channels)),)

    like = (ops.zeros((size, channels), values.dtype),)
    (rows,) = loops.each(one_group, count * parts, group, like, at_once=AT_ONCE)
    return ops.reshape(rows, (count, pixels, channels))


@ops.custom_gradient
def _mix_groups(keys: Any, queries: Any, values: Any) -> Any:
    """_mix_forward, whose backward pass computes each group's maps again, or finds them kept."""
    kept = None
    if _are_maps_kept(values):
        out, kept = _mix_and_keep(keys, queries, values)
    else:
        out = _mix_forward(keys, queries, values)
    count, pixels, _ = ops.shape(values)
    group = 1 if _parts(pixels) > 1 else _group_size(count, pixels)

    def backward(*args: Any, upstream: Any = None) -> tuple[Any, ...]:
        if upstream is None:  # torch passes all arguments, the others the gradient alone
            (upstream,) = args
        dots = ops.cast(upstream, "float32") * ops.cast(out, "float32")
        given = (keys, queries, values, upstream, ops.sum(dots, axis=-1, keepdims=True))
        like = tuple(ops.zeros(ops.shape(x)[1:], x.dtype) for x in given[:3])

        def one_group(first: Any) -> tuple[Any, ...]:
            parts = [_take(x, first, group) for x in given]
            found = _mix_back(kept(first) if kept else _shares(*parts[:2]), *parts)
            pairs = zip(found, like, strict=True)
            return tuple(ops.reshape(x, (group, *ops.shape(row))) for x, row in pairs)

        return loops.each(one_group, count, group, like, at_once=AT_ONCE_BACKWARD)

    # Another tensor than the one that `backward` keeps: under torch that would be kept for ever.
    return out[:], backward


def _are_maps_kept(values: Any) -> bool:
    """Whether maps are kept for the backward pass: one is a group, and all fit."""
    count, pixels, _ = ops.shape(values)
    is_low = keras.backend.standardize_dtype(values.dtype) == "bfloat16"
    if not (is_low and backend.is_on_processors()):
        return False
    if not (isinstance(count, int) and isinstance(pixels, int)):
        return False
    alone = _parts(pixels) == 1 and _group_size(count, pixels) == 1
    return alone and count * pixels**2 * 2 <= KEPT_BYTES


def _mix_and_keep(keys: Any, queries: Any, values: Any) -> tuple[Any, Any]:
    """_mix_forward, and a function from a block's number to its map, in the type of the values."""

    def one_block(number: Any) -> tuple[Any, Any]:
        shares = _shares(_take(keys, number, 1), _take(queries, number, 1))
        shares = ops.cast(shares, values.dtype)
        return ops.matmul(shares, _take(values, number, 1)), shares

    return loops.each_kept(one_block, values.shape[0], values.dtype, AT_ONCE)


def _take(x: Any, first: Any, group: Any, start: Any = 0, size: Any = None) -> Any:
    """Some blocks' pixels, `size` from `start` on or all; one block has no axis of blocks.

    Products of two axes are faster than of three.
    """
    _, pixels, channels = ops.shape(x)
    size = pixels if size is None else size
    rows = ops.slice(x, (first, start, 0), (group, size, channels))
    return ops.reshape(rows, (size, channels)) if blocks.is_equal(group, 1) else rows


def _group_size(count: Any, pixels: Any) -> Any:
    """How many blocks have maps no larger than a group's together, at least 1 and at most all."""
    group = (_group_edge() // pixels) ** 2
    if isinstance(group, int) and (group <= 1 or isinstance(count, int)):
        return max(min(group, count), 1) if isinstance(count, int) else 1
    return ops.minimum(ops.maximum(group, 1), count)


def _group_edge() -> int:
    return GROUP if backend.is_on_processors() else tiled_attention.TILE


def _parts(pixels: Any) -> int:
    """Equal parts of a block's pixels, so that a map of one part and the block is small enough."""
    if not isinstance(pixels, int):
        return 1
    parts = -(-(pixels**2) // _group_edge() ** 2)
    return parts if pixels % parts == 0 else 1


def _mix(keys: Any, queries: Any, values: Any) -> Any:
    """softmax(queries keys^T) values: ([block,] pixel, filter), see tiled_attention.project."""
    return ops.matmul(ops.cast(_shares(keys, queries), values.dtype), values)


def _shares(keys: Any, queries: Any) -> Any:
    """The maps: ([block,] query, key) float32."""
    scores = ops.matmul(queries, ops.swapaxes(keys, -1, -2))
    # Keras warns of a softmax over one thing, which is 1 and has no gradient.
    one = blocks.is_equal(scores.shape[-1], 1)
    return ops.exp(scores - scores) if one else ops.softmax(scores, axis=-1)


def _mix_back(
    shares: Any, keys: Any, queries: Any, values: Any, upstream: Any, dots: Any
) -> tuple[Any, Any, Any]:
    """Gradients of _mix's arguments from that of its result, those of keys and queries float32.

    Args:
        shares: ([block,] query, key), float32, or in the type of the values where it was kept. The
            gradient of the scores is of its type, too.
        keys: as in _mix.
        queries: likewise.
        values: likewise.
        upstream: gradient of the result, of its shape and type.
        dots: ([block,] query, 1) float32, the result times its gradient.
    """
    dtype = keras.backend.standardize_dtype(shares.dtype)
    of_shares = ops.matmul(upstream, ops.swapaxes(values, -1, -2))
    # On bfloat16 numbers TensorFlow makes four slow passes of it.
    in_pass = fused.one_pass if dtype == "bfloat16" else _call
    of_scores = in_pass(_of_scores, shares, of_shares, dots)
    of_keys = ops.matmul(ops.swapaxes(of_scores, -1, -2), ops.cast(queries, dtype))
    of_queries = ops.matmul(of_scores, ops.cast(keys, dtype))
    across = ops.swapaxes(ops.cast(shares, values.dtype), -1, -2)
    of_keys, of_queries = (ops.cast(x, "float32") for x in (of_keys, of_queries))
    return of_keys, of_queries, ops.matmul(across, upstream)


def _of_scores(shares: Any, of_shares: Any, dots: Any) -> Any:
    """Gradient of the scores, computed in float32, in the type of the shares."""
    difference = ops.cast(of_shares, "float32") - dots
    return ops.cast(ops.cast(shares, "float32") * difference, shares.dtype)


def _call(function: Any, *args: Any) -> Any:
    return function(*args)
