"""Self-attention in memory that grows with the pixels, not with their square.

Blocks are taken one after the other and their maps in tiles, with a running softmax (Milakov and
Gimelshein 2018; Rabe and Staats 2021; Dao et al. 2022). The backward pass computes the tiles again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kerass2.models import blocks
from kerass2.models.loops import each, fold, put

# Pixels along the sides of a tile; a block of no more takes another form. Measured on 2 cores at
# 96 px: smaller tiles cost time (1024: a fifth more), larger ones memory (21 MB for each of the
# four maps that are alive).
TILE = 2304
# Score of a key that is not there: its exponential is 0 beside any real score.
ABSENT = -1e30
LOWEST = -3e38


def attend(x: Any, gamma: Any, weights: Sequence[Any], grid: blocks.BlockGrid, dtype: str) -> Any:
    """Block after block and tile after tile, forward and backward."""

    @ops.custom_gradient
    def attend_tiled(x: Any, gamma: Any, *weights: Any) -> Any:
        out, log_sums = _forward(x, weights, grid, dtype)
        total = add_attended(x, gamma, blocks.join(out, grid))

        def backward(*args: Any, upstream: Any = None) -> Any:
            if upstream is None:  # torch passes all arguments, the others the gradient alone
                (upstream,) = args
            return _backward(x, gamma, weights, (out, log_sums), upstream, grid, dtype)

        return total, backward

    return attend_tiled(x, *(ops.copy(value) for value in (gamma, *weights)))


def add_attended(x: Any, gamma: Any, attended: Any) -> Any:
    """Residual sum of every form of the attention: x + gamma * attended, in the type of x."""
    return x + ops.cast(gamma, x.dtype) * ops.cast(attended, x.dtype)


def _forward(x: Any, weights: Any, grid: blocks.BlockGrid, dtype: str) -> tuple[Any, Any]:
    """Attention without the residual: (block, pixel, filter) in `dtype`, (block, pixel) float32.

    The second is the logarithm of each query's sum of exponentials: with it the backward pass needs
    no running maximum. Its pixels are filled up to whole tiles.
    """
    parts, tiling = blocks.split(x, grid), _tiling(grid)
    num_tiles, size, pixels, channels = tiling.num_tiles, tiling.size, tiling.pixels, x.shape[-1]

    def one_block(number: Any) -> tuple[Any, Any]:
        queries, keys, values = _tiles(parts[number], weights, dtype, number, tiling)
        keys = ops.swapaxes(keys, -1, -2)

        def one_tile(tile: Any) -> tuple[Any, Any]:
            found = _running_softmax(queries[tile], keys, values, num_tiles)
            return tuple(ops.expand_dims(value, 0) for value in found)

        like = ops.zeros((size, channels), dtype), ops.zeros((size,))
        out, log_sums = each(one_tile, num_tiles, 1, like)
        out = ops.reshape(out, (1, num_tiles * size, channels))[:, :pixels]
        return out, ops.reshape(log_sums, (1, num_tiles * size))

    like = ops.zeros((pixels, channels), dtype), ops.zeros((num_tiles * size,))
    return each(one_block, ops.shape(parts)[0], 1, like)


def _running_softmax(queries: Any, keys: Any, values: Any, num_tiles: Any) -> tuple[Any, Any]:
    """One tile of queries against all tiles of keys.

    Args:
        queries: (query, key filter) float32.
        keys: (tile, key filter, key) float32.
        values: (tile, key, filter).
        num_tiles: number of tiles of keys.

    Returns:
        (query, filter) in the type of the values, and the logarithm of the sums, (query) float32.
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

    zeros = ops.zeros_like(queries[..., 0])
    start = zeros + LOWEST, zeros, ops.zeros((*ops.shape(zeros), values.shape[-1]))
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
    parts, arrivals, tiling = blocks.split(x, grid), blocks.split(upstream, grid), _tiling(grid)
    out, log_sums = saved

    def one_block(number: Any) -> tuple[Any, ...]:
        part = parts[number]
        arrived = ops.cast(arrivals[number], "float32")
        attended = ops.cast(out[number], "float32")
        of_gamma = ops.sum(arrived * attended)
        arrived = ops.cast(ops.cast(gamma, "float32") * arrived, dtype)
        dots = ops.sum(ops.cast(arrived, "float32") * attended, axis=-1, keepdims=True)
        of_tiles = _tile_gradients(
            *_tiles(part, weights, dtype, number, tiling),
            _cut(ops.expand_dims(log_sums[number], -1), tiling),
            _cut(arrived, tiling),
            ops.swapaxes(_cut(dots, tiling), -1, -2),
        )
        found = (*_project_back(ops.cast(part, dtype), weights, of_tiles, tiling), of_gamma)
        return tuple(ops.expand_dims(value, 0) for value in found)

    like = (
        ops.zeros((tiling.pixels, x.shape[-1]), dtype),
        *(ops.zeros(weight.shape) for weight in weights),
        ops.zeros(()),
    )
    of_x, *others = each(one_block, ops.shape(parts)[0], 1, like)
    *of_weights, of_gamma = (ops.sum(value, axis=0) for value in others)
    of_x = upstream + ops.cast(blocks.join(of_x, grid), x.dtype)
    return (of_x, ops.cast(of_gamma, gamma.dtype), *of_weights)


def _tile_gradients(
    queries: Any, keys: Any, values: Any, log_sums: Any, arrived: Any, dots: Any
) -> tuple[Any, Any, Any]:
    """Gradients of keys, queries and values, float32 with their axes, from those of the output.

    Maps are computed with keys along y, so that of each product only small factors are transposed.

    Args:
        queries: (tile, query, key filter + 1) float32, see _tiles.
        keys: likewise.
        values: (tile, key, filter).
        log_sums: (tile, query, 1) float32.
        arrived: (tile, query, filter), the gradient of the output.
        dots: (tile, 1, query) float32, the output times its gradient.
    """
    num_tiles, size, _ = ops.shape(queries)
    # exp(score - log_sum) by one product.
    score_keys = ops.concatenate([keys, ops.ones_like(log_sums)], axis=-1)
    score_queries = ops.swapaxes(ops.concatenate([queries, -log_sums], axis=-1), -1, -2)
    keys, queries = ops.swapaxes(keys[..., :-1], -1, -2), queries[..., :-1]
    arrived_across = ops.swapaxes(arrived, -1, -2)
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
            return put(of_queries, q, ops.expand_dims(of_query, 0)), of_key, of_value

        start = ops.zeros((size, length)), ops.zeros((size, channels))
        of_queries, *found = fold(query_tile, num_tiles, (of_queries, *start))
        of_key, of_value = (ops.expand_dims(value, 0) for value in found)
        return of_queries, put(of_keys, k, of_key), put(of_values, k, of_value)

    start = (
        ops.zeros((num_tiles, length, size)),
        ops.zeros((num_tiles, size, length)),
        ops.zeros((num_tiles, size, channels)),
    )
    of_queries, of_keys, of_values = fold(key_tile, num_tiles, start)
    return of_keys, ops.swapaxes(of_queries, -1, -2), of_values


def _project_back(
    part: Any, weights: Any, of_tiles: Sequence[Any], tiling: _Tiling
) -> tuple[Any, ...]:
    """Gradients of a block (pixel, filter) and of its share in the weights'."""
    across, of_part, of_weights = ops.transpose(part), None, []
    for kernel, value in zip(weights[::2], of_tiles, strict=True):
        whole = (tiling.num_tiles * tiling.size, value.shape[-1])
        gradient = ops.cast(ops.reshape(value, whole)[: tiling.pixels], part.dtype)
        more = ops.matmul(gradient, ops.transpose(ops.cast(kernel, part.dtype)))
        of_part = more if of_part is None else of_part + more
        of_weights.append(ops.cast(ops.matmul(across, gradient), "float32"))
        of_weights.append(ops.sum(ops.cast(gradient, "float32"), axis=0))
    return (of_part, *of_weights)


def project(x: Any, weights: Sequence[Any], dtype: str) -> tuple[Any, Any, Any]:
    """Keys and queries (..., pixel, key filter) float32 and values (..., pixel, filter)."""
    x = ops.cast(x, dtype)
    keys, queries, values = (
        _multiply(x, ops.cast(kernel, dtype)) + ops.cast(bias, dtype)
        for kernel, bias in zip(weights[::2], weights[1::2], strict=True)
    )
    return ops.cast(keys, "float32"), ops.cast(queries, "float32"), values


def _multiply(x: Any, kernel: Any) -> Any:
    """Their product, in their type."""
    if keras.backend.backend() == "jax":
        import jax

        if jax.default_backend() == "cpu":
            # JAX 0.4.30 compiles a wrong gradient of a bfloat16 kernel, where a factor lies column
            # by column (openxla/xla#15776); of the same numbers in float32 it is right.
            found = ops.matmul(*(ops.cast(each, "float32") for each in (x, kernel)))
            return ops.cast(found, x.dtype)
    return ops.matmul(x, kernel)


def with_presence(queries: Any, keys: Any, inside: Any) -> tuple[Any, Any]:
    """Queries and keys with one more filter, whose product is 0 inside and ABSENT elsewhere.

    So the mask costs no pass over the scores.
    """
    column = ops.where(inside, ops.cast(0.0, "float32"), ops.cast(ABSENT, "float32"))
    keys = ops.concatenate([keys, ops.expand_dims(column, -1)], axis=-1)
    queries = ops.concatenate([queries, ops.ones_like(queries[..., :1])], axis=-1)
    return queries, keys


@dataclasses.dataclass(frozen=True)
class _Tiling:
    """How a block is taken; sizes are int, or scalars of the graph."""

    pixels: Any
    """Of a block."""
    num_tiles: Any
    """Tiles along the pixels of a block; the last may be filled up."""
    size: Any
    """Pixels along a tile."""
    inside: Any
    """(blocks of an example, pixel) bool, see blocks.inside."""


def _tiling(grid: blocks.BlockGrid) -> _Tiling:
    """The tiling of the blocks of a lattice."""
    pixels = grid.block_height * grid.block_width
    num_tiles = -(-pixels // TILE)
    return _Tiling(pixels, num_tiles, -(-pixels // num_tiles), blocks.inside(grid))


def _tiles(
    part: Any, weights: Any, dtype: str, number: Any, tiling: _Tiling
) -> tuple[Any, Any, Any]:
    """Queries, keys and values of block `number` (pixel, filter).

    All are (tile, pixel, filter); queries and keys have a filter more, see with_presence.
    """
    keys, queries, values = project(_fill(part, tiling), weights, dtype)
    inside = tiling.inside[number % ops.shape(tiling.inside)[0]]
    queries, keys = with_presence(queries, keys, _fill(inside, tiling))
    return _cut(queries, tiling), _cut(keys, tiling), _cut(values, tiling)


def _fill(x: Any, tiling: _Tiling) -> Any:
    """(pixel, ...) with zeros up to whole tiles."""
    missing = tiling.num_tiles * tiling.size - ops.shape(x)[0]
    if blocks.is_equal(missing, 0):
        return x
    return ops.pad(x, ((0, missing), *((0, 0) for _ in x.shape[1:])))


def _cut(x: Any, tiling: _Tiling) -> Any:
    """(pixel, filter) to (tile, pixel of a tile, filter)."""
    return ops.reshape(_fill(x, tiling), (tiling.num_tiles, tiling.size, x.shape[-1]))
