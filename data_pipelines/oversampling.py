"""Patches of rare classes several times an epoch: repeat factors (Gupta et al. 2019, LVIS).

The repeated patches are a source of their own, longer than the one it is made from. Order, slices
and resume are batching's as for any other, so every repetition is in exactly one rank's slice, and
each is augmented in its own way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.spec import Batch, DatasetSpec, Source
from data_pipelines.transforms import counter_hash

MOST = 20.0
"""Largest repeat factor."""
_ROUNDING = int.from_bytes(b"repeat", "little")


def read_labels(
    source: Source, target: str = "labels", *, first: int = 0, step: int = 1, piece: int = 256
) -> NDArray[np.uint8]:
    """Labels of a split (patch, class), read piece by piece; no pixels where the source can that.

    Args:
        source: the split.
        target: name of the labels.
        first: which piece to begin with, and
        step: go on by how many: the pieces of one rank. Rows of other pieces are 0.
        piece: patches read at once.

    Raises:
        DataError: a damaged record.
    """
    read = getattr(source, "read_targets", lambda rows: source.read(rows)["targets"])
    found = np.zeros((len(source), *source.spec.targets[target].shape), np.uint8)
    for start in range(first * piece, len(source), step * piece):
        rows = np.arange(start, min(start + piece, len(source)))
        found[rows] = read(rows)[target]
    return found


def repeat_factors(labels: NDArray[np.integer[Any]], threshold: float) -> NDArray[np.float64]:
    """How often each patch comes, on average: the largest factor of its classes, at least 1.

    A class that a fraction f of the patches has: sqrt(threshold / f), at most MOST.

    Args:
        labels: (patch, class) of 0 and 1.
        threshold: fraction below which a class is rare.
    """
    frequency = np.maximum(labels.mean(axis=0), 1 / max(len(labels), 1))
    factors = np.clip(np.sqrt(threshold / frequency), 1.0, MOST)
    return np.asarray(np.where(labels > 0, factors, 1.0).max(axis=1))


def repeats(labels: NDArray[np.integer[Any]], threshold: float, seed: int) -> NDArray[np.int64]:
    """Whole numbers with the mean of repeat_factors: up or down by a hash of (seed, patch).

    The same in all epochs, so that each has the same number of steps.
    """
    factors = repeat_factors(labels, threshold)
    bits = counter_hash(_ROUNDING, seed, np.arange(len(labels)))
    uniform = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.floor(factors + uniform).astype(np.int64)


def spread(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions 0, 1, ... in their order, each counts[i] times, repetitions far from each other.

    Each first stands where it stood, and its repetitions at equal distances from there around the
    whole: batches are drawn from blocks of neighbours, which would hold one rare patch many times.
    """
    position = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(position)) - np.repeat(np.cumsum(counts) - counts, counts)
    place = (position / max(len(counts), 1) + number / counts[position]) % 1.0
    return position[np.argsort(place, kind="stable")]


class Oversampled:
    """A source in which record i of another one comes counts[i] times; see `spread`."""

    def __init__(self, source: Source, counts: NDArray[np.int64]) -> None:
        """`counts` of each record, at least 1: see `repeats`."""
        self.spec: DatasetSpec = source.spec
        self.split: str = source.split
        self._source = source
        self._positions = spread(counts)
        if hasattr(source, "shuffle"):
            self.shuffle = source.shuffle

    def __len__(self) -> int:
        """Number of records, repetitions included."""
        return len(self._positions)

    def read(self, indices: Sequence[int] | NDArray[Any]) -> Batch:
        """As data_pipelines.spec.Source."""
        return self._source.read(self._positions[np.asarray(indices)])
