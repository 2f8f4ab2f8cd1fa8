"""Memory for the arrays of batches: given out again when nobody holds it any more.

Batches come and go by the second. The system clears every page that it gives to a process, which
takes as long as to fill it; and TensorFlow copies an array that does not begin where its own would.
"""

from __future__ import annotations

import collections
import contextlib
import math
import mmap
import weakref
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

# Bytes: the largest of Eigen's EIGEN_MAX_ALIGN_BYTES, which TensorFlow asks of an array's address.
ALIGNMENT = 64
# Smaller arrays are left to numpy, which keeps small memory itself.
SMALL = 2**16
# What waits to be used again, at most; a batch of 128 patches of BigEarthNet takes 60 MB.
MAX_FREE_BYTES = 2**28

# Blocks that nobody holds, the last one freed at the end. Threads may change it without a lock:
# each does so by single operations.
_free: collections.deque[mmap.mmap] = collections.deque()


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Like numpy.empty, 64-byte aligned; the memory comes back when no view of it is left."""
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    if size < SMALL:
        small = np.empty(size + ALIGNMENT, np.uint8)
        start = -small.ctypes.data % ALIGNMENT
        return small[start : start + size].view(kind).reshape(shape)
    block = _take(size)
    # Views of this array hold it, not the block: so it ends with the last of them.
    whole = np.frombuffer(block, np.uint8, size)
    weakref.finalize(whole, _give_back, block).atexit = False
    return whole.view(kind).reshape(shape)


def _take(size: int) -> mmap.mmap:
    """A block of that size: one that was used before, or a new one."""
    for _ in range(len(_free)):
        try:
            block = _free.pop()
        except IndexError:  # another thread took it
            break
        if len(block) == size:
            return block
        _free.appendleft(block)
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    return block


def _give_back(block: mmap.mmap) -> None:
    """Keep a block, and let the oldest ones go where too many wait."""
    _free.append(block)
    # Another thread may take one meanwhile.
    with contextlib.suppress(IndexError, RuntimeError):
        waiting = sum(len(each) for each in tuple(_free))
        while waiting > MAX_FREE_BYTES:
            waiting -= len(_free.popleft())
