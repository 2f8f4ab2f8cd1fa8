"""The contract of a strategy: how one training step spreads over ranks.

With loss = sum(per-example loss) / global_batch + regularisation / world_size on every rank, and
gradients summed over ranks before clipping, loss-scale check and `optimizer.apply`, every rank
holds after each step the weights that one process would hold after a step on the whole global
batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

# run.compression's words -> the type in which gradients travel; None: their own.
COMPRESSIONS: dict[str, str | None] = {"none": None, "fp16": "float16", "bf16": "bfloat16"}

# (strategy, compression) -> what to do instead. Horovod's TensorFlow operations take no bfloat16:
# horovod/tensorflow/mpi_ops.cc lists their types.
UNKNOWN_COMPRESSIONS = {
    ("horovod", "bf16"): "Horovod 0.28 sends no bfloat16: choose fp16, or --strategy multiworker"
}


class StrategyError(RuntimeError):
    """A strategy cannot start or go on; the message says what was found and what to do."""


class Strategy(Protocol):
    """What training, evaluation and prediction need to know of the other ranks."""

    name: str
    """The word of `--strategy`."""
    rank: int
    """0 to world_size - 1."""
    local_rank: int
    """Rank among the processes of this host."""
    world_size: int
    """Number of ranks."""

    @property
    def is_chief(self) -> bool:
        """True on rank 0, which owns progress output and files."""
        ...

    def scope(self) -> AbstractContextManager[Any]:
        """Context in which model and optimizer are made."""
        ...

    def distribute(self, make: Callable[[int, int], Any]) -> Iterable[Any]:
        """Batches of this rank; make(rank, world_size): the tf.data.Dataset of its slices."""
        ...

    def run(self, step: Callable[..., Any], *args: Any) -> Any:
        """Call ``step(*args)`` as this rank's share of a distributed step, inside a tf.function."""
        ...

    def sum_gradients(self, tensors: Sequence[Any]) -> list[Any]:
        """Sum each tensor over ranks, inside `run`. Differentiable; it sums in every strategy."""
        ...

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum a float64 array over ranks, outside `run`.

        EVERY rank must call it; it is a barrier too.
        """
        ...

    def start(self, model: Any, optimizer: Any | None = None) -> None:
        """Make every rank hold rank 0's variables.

        It also makes the optimizer leave summing to sum_gradients.
        """
        ...

    def average_statistics(self, model: Any) -> None:
        """Average batch-norm moving statistics over ranks. Every rank calls it."""
        ...


def check_compression(strategy: Strategy, compression: str) -> None:
    """Refuse a compression that the strategy cannot send, before any rank waits for it.

    Raises:
        StrategyError: says what to do.
    """
    remedy = UNKNOWN_COMPRESSIONS.get((strategy.name, compression))
    if remedy is not None:
        raise StrategyError(f"run.compression={compression}: {remedy}")


def sum_compressed(
    strategy: Strategy, tensors: Sequence[Any], compression: str = "none"
) -> list[Any]:
    """strategy.sum_gradients, of tensors that travel as `compression` says: half the bytes.

    They are cast before the sum and back after it; the sum itself is then rounded on its way, too.
    None stays None.
    """
    dtype = COMPRESSIONS[compression]
    if dtype is None:
        return strategy.sum_gradients(tensors)
    import tensorflow as tf

    present = [tensor for tensor in tensors if tensor is not None]
    small = strategy.sum_gradients([tf.cast(tensor, dtype) for tensor in present])
    summed = (tf.cast(sent, own.dtype) for sent, own in zip(small, present, strict=True))
    return [None if tensor is None else next(summed) for tensor in tensors]


def leave(strategy: Strategy) -> None:
    """End together: one that is gone looks like one that died. EVERY rank calls it, last of all.

    A rank whose part of a sum is complete may be gone while another still takes its own part from
    it, and that one's call fails. So they meet twice. After the first sum all have done their work;
    a failure of the second says no more than that somebody has left already.
    """
    strategy.sum(np.zeros(1))
    with contextlib.suppress(Exception):
        strategy.sum(np.zeros(1))


def average_moving_statistics(strategy: Strategy, model: Any) -> None:
    """Replace each batch-norm moving mean and variance by its mean over ranks.

    They differ per rank where statistics are local, under Horovod and (Keras 3) under
    tf.distribute alike.
    """
    statistics = [v for v in model.variables if v.name in ("moving_mean", "moving_variance")]
    if not statistics or strategy.world_size == 1:
        return
    values = [np.asarray(v) for v in statistics]
    flat = np.concatenate([value.ravel().astype(np.float64) for value in values])
    mean = strategy.sum(flat) / strategy.world_size
    ends = np.cumsum([value.size for value in values])[:-1]
    for variable, value, part in zip(statistics, values, np.split(mean, ends), strict=True):
        variable.assign(part.reshape(value.shape).astype(value.dtype))
