"""Self-attention in memory that grows with the pixels, not with their square.

Blocks are taken one after the other and their maps in tiles, with a running softmax (Milakov and
Gimelshein 2018; Rabe and Staats 2021; Dao et al. 2022); the backward pass computes the tiles again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from kerass2.models import blocks
from kerass2.models.loops import each, fold, put

# Pixels along the sides of a tile; a block of no more has one tile, and takes the direct form
# unless there are many. Measured on 2 cores at 96 px: smaller tiles cost time (1024: a fifth more),
# larger ones memory (21 MB for each of the four maps that are alive).
TILE = 2304
# Score of a key that is not there: its exponential is 0 beside any real score.
ABSENT = -1e30
LOWEST = -3e38


def attend(x: Any, gamma: Any, weights: Sequence[Any], grid: blocks.BlockGrid, dtype: str) -> Any:
    """Block after block and tile after tile, forward and backward."""

    @ops.custom_gradient
    def attend_tiled(x: Any, gamma: Any, *weights: Any) -> Any:
        out, log_sums = _forward(x, weights, grid, dtype)
        total = x + ops.cast(gamma, x.dtype) * ops.cast(blocks.join(out, grid), x.dtype)

        def backward(*args: Any, upstream: Any = None) -> Any:
            if upstream is None:  # torch passes all arguments, the others the gradient alone
                (upstream,) = args
            return _backward(x, gamma, weights, (out, log_sums), upstream, grid, dtype)

        return total, backward

    return attend_tiled(x, *(ops.copy(value) for value in (gamma, *weights)))


def _forward(x: Any, weights: Any, grid: blocks.BlockGrid, dtype: str) -> tuple[Any, Any]:
    """Attention without the residual: (block, pixel, filter), and (block, tile, pixel of a tile).

    The second is the logarithm of each query's sum of exponentials: with it the backward pass needs
    no running maximum.
    """
    pixels, channels = grid.block_height * grid.block_width, x.shape[-1]
    num_tiles, size = _tiling(pixels)
    padded = blocks.pad(x, grid)

    def one_block(number: Any) -> tuple[Any, Any]:
        queries, keys, values = _tiles(padded, weights, grid, dtype, number)
        keys = ops.transpose(keys, (0, 2, 1))
        out, log_sums = each(
            lambda tile: _running_softmax(queries[tile], keys, values, num_tiles),
            num_tiles,
            (ops.zeros((size, channels), dtype), ops.zeros((size,))),
        )
        return ops.reshape(out, (num_tiles * size, channels))[:pixels], log_sums

    like = ops.zeros((pixels, channels), dtype), ops.zeros((num_tiles, size))
    return each(one_block, ops.shape(x)[0] * grid.num_blocks, like)


def _running_softmax(queries: Any, keys: Any, values: Any, num_tiles: Any) -> tuple[Any, Any]:
    """One tile of queries against all tiles of keys.

    Args:
        queries: (query, key filter) float32.
        keys: (tile, key filter, key) float32.
        values: (tile, key, filter).
        num_tiles: number of tiles of keys.

    Returns:
        (query, filter) in the type of the values, and the logarithm of the sums, (query,) float32.
    """

    def add_tile(tile: Any, highest: Any, sums: Any, total: Any) -> Any:
        scores = ops.matmul(queries, keys[tile])
        higher = ops.maximum(highest, ops.max(scores, axis=-1))
        shares = ops.exp(scores - ops.expand_dims(higher, -1))
        # What was summed up under a lower maximum.
        shrink = ops.exp(highest - higher)
        more = ops.matmul(ops.cast(shares, values.dtype), values[tile])
        total = total * ops.expand_dims(shrink, -1) + ops.cast(more, "float32")
        return higher, sums * shrink + ops.sum(shares, axis=-1), total

    zeros = ops.zeros_like(queries[:, 0])
    start = zeros + LOWEST, zeros, ops.zeros((ops.shape(queries)[0], values.shape[-1]))
    highest, sums, total = fold(add_tile, num_tiles, start)
    return ops.cast(total / ops.expand_dims(sums, -1), values.dtype), highest + ops.log(sums)


def _backward(
    x: Any,
    gamma: Any,
    weights: Any,
    saved: tuple[Any, Any],
    upstream: Any,
    grid: blocks.BlockGrid,
    dtype: str,
) -> tuple[Any, ...]:
    """Gradients of x, gamma and the weights; `saved` is what _forward returned."""
    pixels, channels = grid.block_height * grid.block_width, x.shape[-1]
    num_tiles, size = _tiling(pixels)
    out, log_sums = saved
    padded, padded_upstream = blocks.pad(x, grid), blocks.pad(upstream, grid)

    def one_block(number: Any) -> tuple[Any, ...]:
        arrived = ops.cast(blocks.take(padded_upstream, grid, number), "float32")
        attended = ops.cast(out[number], "float32")
        of_gamma = ops.sum(arrived * attended)
        arrived = ops.cast(ops.cast(gamma, "float32") * arrived, dtype)
        dots = ops.sum(ops.cast(arrived, "float32") * attended, axis=-1)
        of_tiles = _tile_gradients(
            *_tiles(padded, weights, grid, dtype, number),
            log_sums[number],
            _cut(arrived, num_tiles, size),
            ops.reshape(_fill(dots, num_tiles, size), (num_tiles, 1, size)),
        )
        of_projected = [
            ops.cast(ops.reshape(value, (num_tiles * size, value.shape[-1]))[:pixels], dtype)
            for value in of_tiles
        ]
        block = ops.cast(blocks.take(padded, grid, number), dtype)
        return (*_project_back(block, weights, of_projected), of_gamma)

    like = (
        ops.zeros((pixels, channels), dtype),
        *(ops.zeros(weight.shape) for weight in weights),
        ops.zeros(()),
    )
    of_x, *others = each(one_block, ops.shape(x)[0] * grid.num_blocks, like)
    *of_weights, of_gamma = (ops.sum(value, axis=0) for value in others)
    of_x = upstream + ops.cast(blocks.join(of_x, grid), x.dtype)
    return (of_x, ops.cast(of_gamma, gamma.dtype), *of_weights)


def _tile_gradients(
    queries: Any, keys: Any, values: Any, log_sums: Any, arrived: Any, dots: Any
) -> tuple[Any, Any, Any]:
    """Gradients of keys, queries and values of one block, float32, from those of its output.

    Maps are computed with keys along y, so that of each product only small factors are transposed.

    Args:
        queries: (tile, query, key filter + 1) float32, see _tiles.
        keys: likewise.
        values: (tile, key, filter).
        log_sums: (tile, query) float32.
        arrived: (tile, query, filter), the gradient of the output.
        dots: (tile, 1, query) float32, the output times its gradient.
    """
    num_tiles, size = ops.shape(queries)[:2]
    # exp(score - log_sum) by one product.
    column = ops.expand_dims(log_sums, -1)
    score_keys = ops.concatenate([keys, ops.ones_like(column)], axis=-1)
    score_queries = ops.transpose(ops.concatenate([queries, -column], axis=-1), (0, 2, 1))
    keys, queries = ops.transpose(keys[..., :-1], (0, 2, 1)), queries[..., :-1]
    arrived_across = ops.transpose(arrived, (0, 2, 1))
    length, channels = queries.shape[-1], values.shape[-1]

    def key_tile(k: Any, of_queries: Any, of_keys: Any, of_values: Any) -> Any:
        def query_tile(q: Any, of_queries: Any, of_key: Any, of_value: Any) -> Any:
            shares = ops.exp(ops.matmul(score_keys[k], score_queries[q]))
            more = ops.matmul(ops.cast(shares, values.dtype), arrived[q])
            of_value = of_value + ops.cast(more, "float32")
            of_shares = ops.cast(ops.matmul(values[k], arrived_across[q]), "float32")
            of_scores = shares * (of_shares - dots[q])
            of_key = of_key + ops.matmul(of_scores, queries[q])
            of_query = of_queries[q] + ops.matmul(keys[k], of_scores)
            return put(of_queries, q, of_query), of_key, of_value

        start = of_queries, ops.zeros((size, length)), ops.zeros((size, channels))
        of_queries, of_key, of_value = fold(query_tile, num_tiles, start)
        return of_queries, put(of_keys, k, of_key), put(of_values, k, of_value)

    start = (
        ops.zeros((num_tiles, length, size)),
        ops.zeros((num_tiles, size, length)),
        ops.zeros((num_tiles, size, channels)),
    )
    of_queries, of_keys, of_values = fold(key_tile, num_tiles, start)
    return of_keys, ops.transpose(of_queries, (0, 2, 1)), of_values


def _project_back(block: Any, weights: Any, gradients: Sequence[Any]) -> tuple[Any, ...]:
    """Gradients of a block (pixel, filter) and of the weights from those of what they gave."""
    across, of_block, of_weights = ops.transpose(block), None, []
    for kernel, gradient in zip(weights[::2], gradients, strict=True):
        more = ops.matmul(gradient, ops.transpose(ops.cast(kernel, block.dtype)))
        of_block = more if of_block is None else of_block + more
        of_weights.append(ops.cast(ops.matmul(across, gradient), "float32"))
        of_weights.append(ops.sum(ops.cast(gradient, "float32"), axis=0))
    return (of_block, *of_weights)


def _tiles(
    padded: Any, weights: Any, grid: blocks.BlockGrid, dtype: str, number: Any
) -> tuple[Any, Any, Any]:
    """Queries, keys (tile, pixel, key filter + 1) and values (tile, pixel, filter) of a block."""
    num_tiles, size = _tiling(grid.block_height * grid.block_width)
    block = _fill(blocks.take(padded, grid, number), num_tiles, size)
    keys, queries, values = project(block, weights, dtype)
    inside = _fill(blocks.inside(grid)[number % grid.num_blocks], num_tiles, size)
    queries, keys = with_presence(queries, keys, inside)
    return tuple(_cut(value, num_tiles, size) for value in (queries, keys, values))


def _tiling(pixels: Any) -> tuple[Any, Any]:
    """Number of tiles of a block, and pixels of each; the last may be filled up."""
    num_tiles = -(-pixels // TILE)
    return num_tiles, -(-pixels // num_tiles)


def _fill(x: Any, num_tiles: Any, size: Any) -> Any:
    """(pixel, ...) filled up with zeros to num_tiles * size."""
    missing = num_tiles * size - ops.shape(x)[0]
    if blocks.is_equal(missing, 0):
        return x
    return ops.pad(x, ((0, missing), *((0, 0) for _ in x.shape[1:])))


def _cut(x: Any, num_tiles: Any, size: Any) -> Any:
    """(pixel, filter) to (tile, pixel, filter)."""
    return ops.reshape(_fill(x, num_tiles, size), (num_tiles, size, x.shape[-1]))


def project(x: Any, weights: Sequence[Any], dtype: str) -> tuple[Any, Any, Any]:
    """Keys and queries (..., pixel, key filter) float32 and values (..., pixel, filter)."""
    x = ops.cast(x, dtype)
    keys, queries, values = (
        ops.matmul(x, ops.cast(kernel, dtype)) + ops.cast(bias, dtype)
        for kernel, bias in zip(weights[::2], weights[1::2], strict=True)
    )
    return ops.cast(keys, "float32"), ops.cast(queries, "float32"), values


def with_presence(queries: Any, keys: Any, inside: Any) -> tuple[Any, Any]:
    """Queries and keys with one more filter, whose product is 0 inside and ABSENT elsewhere.

    So the mask costs no pass over the scores.
    """
    column = ops.where(inside, ops.cast(0.0, "float32"), ops.cast(ABSENT, "float32"))
    keys = ops.concatenate([keys, ops.expand_dims(column, -1)], axis=-1)
    queries = ops.concatenate([queries, ops.ones_like(queries[..., :1])], axis=-1)
    return queries, keys
