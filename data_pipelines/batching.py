"""Which patches make up step k, which of them are rank r's, and the tf.data around both.

Order is computed, not streamed: the global batch of a step is a pure function of (seed, step), and
rank r takes its slice of it. So it is the same for any number of ranks, every patch is in exactly
one slice, and a run resumed at step k sees what the unbroken run would have seen. All of it is
numpy; the builder hands it to datasets.py, where TensorFlow comes in.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_pipelines import datasets, mixing
from data_pipelines.datasets import cause as cause  # of an error out of the datasets built here
from data_pipelines.spec import Batch, DataError, Source
from data_pipelines.transforms import TRANSFORMS, Transform, counter_hash, to_physical

# Neighbouring records that stay together, and blocks shuffled together: reads of 16 records are
# long enough for a parallel file system, and 1024 records mix well. A source whose records lie in
# larger pieces has an attribute `shuffle` with its own (block, window).
BLOCK = 16
WINDOW = 64

Positions = NDArray[np.int64]
Scalar = TypeVar("Scalar", bound=np.generic)

# First counters of the hash: the two shuffles draw different numbers.
_BLOCKS, _RECORDS = 1, 2


class BatchError(DataError):
    """A batch size that fits neither the ranks nor the data; the message has the numbers."""


# --- arithmetic ----------------------------------------------------------------------------------


def divide(global_batch: int, world_size: int) -> int:
    """Local batch of each rank.

    Raises:
        BatchError: the ranks cannot share the global batch equally; names the nearest that fit.
    """
    if global_batch < 1 or world_size < 1:
        raise BatchError(f"global batch {global_batch}, ranks {world_size}: expected at least 1")
    if global_batch % world_size:
        below = global_batch - global_batch % world_size
        nearest = [str(fit) for fit in (below, below + world_size) if fit]
        raise BatchError(
            f"global batch {global_batch} cannot be shared equally by {world_size} ranks; "
            f"nearest that fit: {' and '.join(nearest)}"
        )
    return global_batch // world_size


def num_steps(num_records: int, global_batch: int) -> int:
    """Training steps of an epoch; the last incomplete global batch is dropped.

    Raises:
        BatchError: not even one global batch.
    """
    if global_batch < 1:
        raise BatchError(f"global batch {global_batch}: expected at least 1")
    if num_records < global_batch:
        raise BatchError(
            f"{num_records} patches are fewer than one global batch of {global_batch}; "
            f"choose a global batch of at most {num_records}, or prepare more patches"
        )
    return num_records // global_batch


def num_evaluation_steps(num_records: int, global_batch: int) -> int:
    """Steps that see each record once; the last one may be padded."""
    return -(-num_records // global_batch)


def indices(
    num_records: int,
    seed: int,
    epoch: int,
    step: int,
    global_batch: int,
    *,
    block: int = BLOCK,
    window: int = WINDOW,
) -> Positions:
    """Records of one global batch; over all steps of an epoch no record comes twice.

    Two levels: blocks of `block` neighbouring records are permuted; then the records of `window`
    such blocks, one window after the other, are shuffled. The work of a step is that of its
    windows, whatever the number of records.

    Args:
        num_records: size of the split.
        seed: of the run.
        epoch: from 0.
        step: within the epoch, from 0.
        global_batch: records of all ranks together.
        block: neighbouring records that move together; 1 shuffles freely.
        window: blocks that are mixed.

    Returns:
        int64 (global_batch,).

    Raises:
        BatchError: the epoch has no such step.
    """
    steps = num_steps(num_records, global_batch)
    if not 0 <= step < steps:
        raise BatchError(f"step {step} of an epoch of {steps} steps")
    order, short = _block_order(num_records, seed, epoch, block)

    def window_start(number: int) -> int:
        """Records of the epoch before a window: the short block counts for what it has."""
        blocks = min(number * window, len(order))
        missing = len(order) * block - num_records
        return blocks * block - (missing if short < blocks else 0)

    first, last = step * global_batch, (step + 1) * global_batch
    # Windows begin where full blocks would put them or, after the short block, a little earlier.
    number = first // (block * window)
    parts = []
    while window_start(number) < last:
        start = window_start(number)
        records = _window(num_records, seed, epoch, number, block, window)
        parts.append(records[max(first - start, 0) : last - start])
        number += 1
    return np.concatenate(parts)


def rank_slice(batch_indices: NDArray[Scalar], rank: int, world_size: int) -> NDArray[Scalar]:
    """The contiguous part of a global batch that one rank reads.

    Raises:
        BatchError: see divide.
    """
    local_batch = divide(len(batch_indices), world_size)
    if not 0 <= rank < world_size:
        raise BatchError(f"rank {rank} of {world_size} ranks")
    return batch_indices[rank * local_batch : (rank + 1) * local_batch]


def evaluation_positions(
    num_records: int, global_batch: int, step: int
) -> tuple[Positions, NDArray[np.float32]]:
    """Records of one global batch of evaluation, in storage order, and which of them count.

    Returns:
        int64 (global_batch,), padded with the last record, and float32 (global_batch,): 1, or 0
        for padding.

    Raises:
        BatchError: there is no such step.
    """
    steps = num_evaluation_steps(num_records, global_batch)
    if not 0 <= step < steps:
        raise BatchError(f"step {step} of an evaluation of {steps} steps")
    positions = np.arange(step * global_batch, (step + 1) * global_batch)
    mask = (positions < num_records).astype(np.float32)
    return np.minimum(positions, num_records - 1), mask


@functools.lru_cache(maxsize=4)
def _block_order(num_records: int, seed: int, epoch: int, block: int) -> tuple[Positions, int]:
    """Permutation of the blocks, and where the last one came, which may be short of records.

    Sorting hashes shuffles alike in every version of numpy; its generators do not promise that.
    """
    numbers = np.arange(-(-num_records // block))
    order = np.argsort(counter_hash(_BLOCKS, seed, epoch, numbers), kind="stable")
    order.flags.writeable = False  # shared by all callers
    return order, int(np.argmax(order))


@functools.lru_cache(maxsize=64)
def _window(
    num_records: int, seed: int, epoch: int, number: int, block: int, window: int
) -> Positions:
    """The shuffled records of one window."""
    order, _ = _block_order(num_records, seed, epoch, block)
    blocks = order[number * window : (number + 1) * window]
    records = (blocks[:, None] * block + np.arange(block)).ravel()
    records = records[records < num_records]
    keys = counter_hash(_RECORDS, seed, epoch, records)
    records = records[np.argsort(keys, kind="stable")]
    records.flags.writeable = False
    return records


# --- batches in numpy ----------------------------------------------------------------------------


def training_batch(
    source: Source,
    *,
    seed: int,
    step: int,
    global_batch: int,
    rank: int = 0,
    world_size: int = 1,
    augment: Sequence[str] = (),
    mix_up: float = 0.0,
    mix_up_subtracts: bool = False,
) -> Batch:
    """One rank's slice of a training step, read, augmented and in physical units.

    Args:
        source: the training split.
        seed: of the run; order and augmentation follow from it.
        step: from the start of the run; epoch = step // steps of an epoch.
        global_batch: patches of all ranks together.
        rank: 0 to world_size - 1.
        world_size: number of ranks.
        augment: names from transforms.TRANSFORMS, applied in this order.
        mix_up: alpha of mixing.fractions; 0: patches are not mixed.
        mix_up_subtracts: see mixing.mix.

    Returns:
        {"inputs": {name: (b, y, x, band) float32}, "targets": likewise, "patch_id": (b,) str,
        "index": (b,) int64 position in the split, "mask": (b,) float32 of ones}; b is global_batch
        / world_size.

    Raises:
        BatchError: batch and ranks or data do not fit.
        DataError: a record is damaged, or no such transform.
    """
    epoch, step_of_epoch = divmod(step, num_steps(len(source), global_batch))
    block, window = getattr(source, "shuffle", (BLOCK, WINDOW))
    chosen = indices(
        len(source), seed, epoch, step_of_epoch, global_batch, block=block, window=window
    )
    mine = rank_slice(chosen, rank, world_size)
    chain = _transforms(augment)

    def read(wanted: Positions) -> Batch:
        batch = {**source.read(wanted), "index": wanted, "mask": np.ones(len(wanted), np.float32)}
        for transform in chain:
            batch = transform(batch, seed, epoch)
        return to_physical(batch, source.spec)

    if not mix_up:
        return read(mine)
    # A partner is read and augmented as on the rank that has it in its slice.
    others = chosen[rank_slice(mixing.partners(chosen, seed, epoch), rank, world_size)]
    kept = mixing.fractions(mine, seed, epoch, mix_up)
    return mixing.mix(read(mine), read(others), kept, subtract=mix_up_subtracts)


def evaluation_batch(
    source: Source, *, step: int, global_batch: int, rank: int = 0, world_size: int = 1
) -> Batch:
    """One rank's slice of an evaluation step, as training_batch; "mask" is 0 for padding."""
    positions, mask = evaluation_positions(len(source), global_batch, step)
    mine = rank_slice(positions, rank, world_size)
    batch = {**source.read(mine), "index": mine, "mask": rank_slice(mask, rank, world_size)}
    return to_physical(batch, source.spec)


def _transforms(names: Sequence[str]) -> list[Transform]:
    """Transforms by name."""
    unknown = [name for name in names if name not in TRANSFORMS]
    if unknown:
        raise DataError(f"no transform {unknown[0]!r}; there is {', '.join(TRANSFORMS)}")
    return [TRANSFORMS[name] for name in names]


# --- tf.data -------------------------------------------------------------------------------------


def build_training_dataset(
    source: Source,
    *,
    seed: int,
    global_batch: int,
    rank: int,
    world_size: int,
    start_step: int,
    stop_step: int,
    augment: Sequence[str] = (),
    mix_up: float = 0.0,
    mix_up_subtracts: bool = False,
) -> Any:
    """The tf.data.Dataset of training_batch for start_step <= step < stop_step of the run.

    Elements as in training_batch, patch_id as tf.string, shapes static. An exception inside comes
    out of the iteration as a tf.errors.OpError: see `cause`.
    """
    local_batch = divide(global_batch, world_size)
    num_steps(len(source), global_batch)
    _transforms(augment)
    if not 0 <= start_step <= stop_step:
        raise BatchError(f"steps {start_step} to {stop_step}: expected 0 <= start <= stop")

    def read(step: int) -> Batch:
        return training_batch(
            source,
            seed=seed,
            step=step,
            global_batch=global_batch,
            rank=rank,
            world_size=world_size,
            augment=augment,
            mix_up=mix_up,
            mix_up_subtracts=mix_up_subtracts,
        )

    return datasets.build(read, start_step, stop_step, source.spec, local_batch)
