"""Mix-up (Zhang et al. 2018): each patch mixed with another one of the same global batch.

Which one, and how much of it, is a hash of (seed, epoch, patch index) and of the global batch's
composition: the same for any number of ranks. A rank reads the partners of its slice too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.spec import Batch, DataError
from data_pipelines.transforms import counter_hash

# First counters of the hash: partners and fractions draw other numbers than any transform.
_PARTNER, _FRACTION = (int.from_bytes(name, "little") for name in (b"mix_with", b"mix_part"))


def partners(chosen: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """For each patch of a global batch, the position in that batch of the one it is mixed with.

    The batch in the order of its patches' hashes is a ring, and each one's partner is the next:
    every patch is one other's partner, and none its own unless it is alone.

    Args:
        chosen: indices of the patches of the global batch, all different.
        seed: of the run.
        epoch: from 0.
    """
    order = np.argsort(counter_hash(_PARTNER, seed, epoch, chosen), kind="stable")
    found = np.empty(len(chosen), np.int64)
    found[order] = np.roll(order, -1)
    return found


def fractions(
    chosen: NDArray[np.int64], seed: int, epoch: int, alpha: float
) -> NDArray[np.float32]:
    """How much of each patch stays: Beta(alpha, alpha) numbers from 0 to 1.

    By Joehnk's rejection (1964) of hashed uniform numbers, since numpy's generators do not promise
    the same numbers in the next version.

    Raises:
        DataError: alpha is not above 0 and at most 1, where that method is good.
    """
    if not 0 < alpha <= 1:
        raise DataError(f"mix-up: alpha {alpha}, a number above 0 and at most 1 is needed")
    found = np.full(len(chosen), np.nan)
    attempt = 0
    while (waiting := np.flatnonzero(np.isnan(found))).size:
        bits = [
            counter_hash(_FRACTION, seed, epoch, chosen[waiting], 2 * attempt + i) for i in range(2)
        ]
        # In logarithms: u ** (1 / alpha) may be too small for a number.
        uniform = [((b >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53 for b in bits]
        x, y = (np.log(values) / alpha for values in uniform)
        total = np.logaddexp(x, y)
        found[waiting] = np.where(total <= 0, np.exp(x - total), np.nan)
        attempt += 1
    return found.astype(np.float32)


def mix(batch: Batch, others: Batch, kept: NDArray[np.float32], *, subtract: bool = False) -> Batch:
    """Inputs and targets of two batches in physical units, mixed patch by patch.

    Args:
        batch: the patches.
        others: their partners, in the same order.
        kept: (n,) fraction of each patch that stays.
        subtract: take the partner's part away instead, as the classification paper's text has it
            ("taking a batch and subtracting from it a shuffled version of itself"); labels are
            mixed as they are otherwise.
    """

    def combine(
        here: Mapping[str, NDArray[Any]], there: Mapping[str, NDArray[Any]], sign: float
    ) -> dict[str, NDArray[np.float32]]:
        mixed = {}
        for name, values in here.items():
            part = kept.reshape(-1, *(1,) * (values.ndim - 1))
            mixed[name] = part * values + np.float32(sign) * (1 - part) * there[name]
        return mixed

    return {
        **batch,
        "inputs": combine(batch["inputs"], others["inputs"], -1.0 if subtract else 1.0),
        "targets": combine(batch["targets"], others["targets"], 1.0),
    }
