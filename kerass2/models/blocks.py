"""A tensor of pixels divided into blocks on a lattice that begins at its first pixel.

Layers that look at a whole patch (mean-shift, attention) act on one block at a time, so that on a
raster of any size a pixel's value depends on its block and not on the window it is computed in.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from keras import ops


@dataclasses.dataclass(frozen=True)
class BlockGrid:
    """Blocks of (batch, y, x, channel) tensors of one height and width.

    Sizes are int, or scalars of the graph where they are known at run time only.
    """

    height: Any
    """Pixels of the tensor along y."""
    width: Any
    """Pixels of the tensor along x."""
    block_height: Any
    """Pixels of a block along y: `block`, or the height where that is less."""
    block_width: Any
    """Pixels of a block along x."""
    rows: Any
    """Blocks along y, the one that the edge cuts included."""
    columns: Any
    """Blocks along x."""

    @property
    def num_blocks(self) -> Any:
        """Blocks of one example."""
        return self.rows * self.columns

    @property
    def is_one_block(self) -> bool:
        """Whether all pixels are known to lie in one block."""
        return is_equal(self.rows, 1) and is_equal(self.columns, 1)

    @property
    def is_uncut(self) -> bool:
        """Whether all blocks are known to be whole."""
        return is_equal(self.rows * self.block_height, self.height) and is_equal(
            self.columns * self.block_width, self.width
        )


def divide(x: Any, block: int | None) -> BlockGrid:
    """The lattice of a (batch, y, x, channel) tensor.

    Args:
        x: only its shape is looked at.
        block: edge of a block [px]; None: all pixels are one block, whatever their number.
    """
    height, width = ops.shape(x)[1:3]
    if block is None:
        return BlockGrid(height, width, height, width, 1, 1)
    block_height, block_width = _minimum(height, block), _minimum(width, block)
    # Rounded up without a negative number, which ONNX's integer division would round towards 0.
    rows = (height + block_height - 1) // block_height
    columns = (width + block_width - 1) // block_width
    return BlockGrid(height, width, block_height, block_width, rows, columns)


def check_block(block: int | None) -> None:
    """Refuse an edge that is none.

    Raises:
        ValueError: it is neither None nor a positive whole number.
    """
    if block is not None and (type(block) is not int or block < 1):
        raise ValueError(f"block {block!r}: a positive number of pixels or None is needed")


def split(x: Any, grid: BlockGrid) -> Any:
    """(batch, y, x, channel) to (batch * rows * columns, pixels of a block, channel).

    Blocks that the edge cuts are filled up with zeros.
    """
    n, channels = ops.shape(x)[0], x.shape[-1]
    pixels = grid.block_height * grid.block_width
    if not grid.is_one_block:
        x = ops.reshape(pad(x, grid), _six_axes(n, grid, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (n * grid.rows * grid.columns, pixels, channels))


def join(blocks: Any, grid: BlockGrid) -> Any:
    """The inverse of split; what filled up cut blocks is dropped."""
    channels = blocks.shape[-1]
    n = ops.shape(blocks)[0] // (grid.rows * grid.columns)
    if not grid.is_one_block:
        n, rows, height, columns, width, _ = _six_axes(n, grid, channels)
        x = ops.reshape(blocks, (n, rows, columns, height, width, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        x = ops.reshape(x, (n, rows * height, columns * width, channels))
        return crop(x, grid)
    return ops.reshape(blocks, (n, grid.height, grid.width, channels))


def pad(x: Any, grid: BlockGrid) -> Any:
    """(batch, y, x, channel) with zeros below and to the right, up to whole blocks."""
    if grid.is_uncut:
        return x
    bottom = grid.rows * grid.block_height - grid.height
    right = grid.columns * grid.block_width - grid.width
    return ops.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)))


def crop(x: Any, grid: BlockGrid) -> Any:
    """The inverse of pad."""
    return x if grid.is_uncut else x[:, : grid.height, : grid.width]


def inside(grid: BlockGrid) -> Any:
    """(rows * columns, pixels of a block) bool: the pixels of each block that are not filled up."""
    y = ops.arange(grid.rows * grid.block_height) < grid.height
    x = ops.arange(grid.columns * grid.block_width) < grid.width
    y = ops.reshape(y, (grid.rows, 1, grid.block_height, 1))
    x = ops.reshape(x, (1, grid.columns, 1, grid.block_width))
    pixels = grid.block_height * grid.block_width
    return ops.reshape(ops.logical_and(y, x), (grid.rows * grid.columns, pixels))


def subtract_means(x: Any, grid: BlockGrid) -> Any:
    """(batch, y, x, channel) float32, each block's channels moved to zero mean.

    A cut block's mean is over the pixels it has.
    """
    if grid.is_one_block:
        return x - ops.mean(x, axis=(1, 2), keepdims=True)
    n, channels = ops.shape(x)[0], x.shape[-1]
    six = _six_axes(n, grid, channels)
    padded = pad(x, grid)
    # One axis after the other: backends reduce neighbouring axes fast, others by a transposed copy.
    lines = ops.sum(ops.reshape(padded, (-1, grid.block_width, channels)), axis=1)
    lines = ops.reshape(lines, (n * grid.rows, grid.block_height, -1))
    sums = ops.reshape(ops.sum(lines, axis=1), (n, grid.rows, 1, grid.columns, 1, channels))
    heights = _sizes(grid.rows, grid.block_height, grid.height)
    widths = _sizes(grid.columns, grid.block_width, grid.width)
    counts = ops.reshape(heights, (-1, 1, 1, 1, 1)) * ops.reshape(widths, (-1, 1, 1))
    shifted = ops.reshape(padded, six) - sums / counts
    return crop(ops.reshape(shifted, ops.shape(padded)), grid)


def _sizes(count: Any, block: Any, size: Any) -> Any:
    """(count,) float32: pixels of each of `count` blocks along an axis of `size` pixels."""
    return ops.cast(ops.minimum(size - ops.arange(count) * block, block), "float32")


def _six_axes(n: Any, grid: BlockGrid, channels: int) -> tuple[Any, ...]:
    """(batch, block row, y in the block, block column, x in the block, channel)."""
    rows = (grid.rows, grid.block_height)
    return (n, *rows, grid.columns, grid.block_width, channels)


def _minimum(size: Any, block: int) -> Any:
    """The lesser one, as int where the size is known."""
    return min(size, block) if isinstance(size, int) else ops.minimum(size, block)


def is_equal(a: Any, b: Any) -> bool:
    """Whether two sizes are known and the same."""
    return isinstance(a, int) and isinstance(b, int) and a == b
