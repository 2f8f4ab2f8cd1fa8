"""One process: every member of the contract as a world of one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from strategies.base import StrategyError
from strategies.cluster import Cluster


class SingleStrategy:
    """A world of one rank. See strategies.base.Strategy for the members."""

    name = "single"

    def __init__(self, cluster: Cluster) -> None:
        """Refuse a launcher's environment of several ranks.

        Each would train alone and overwrite the others.
        """
        if cluster.world_size > 1:
            raise StrategyError(
                f"strategy single under {cluster.launcher} with {cluster.world_size} ranks: "
                "start one process, or choose horovod or multiworker"
            )
        self.rank, self.local_rank, self.world_size = 0, 0, 1

    @property
    def is_chief(self) -> bool:
        """Always."""
        return True

    def scope(self) -> AbstractContextManager[Any]:
        """No scope is needed."""
        return contextlib.nullcontext()

    def distribute(self, make: Callable[[int, int], Any]) -> Iterable[Any]:
        """The whole batches."""
        dataset: Iterable[Any] = make(0, 1)
        return dataset

    def run(self, step: Callable[..., Any], *args: Any) -> Any:
        """step(*args)."""
        return step(*args)

    def sum_gradients(self, tensors: Sequence[Any]) -> list[Any]:
        """The tensors themselves."""
        return list(tensors)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The values themselves."""
        return np.asarray(values, np.float64)

    def start(self, model: Any, optimizer: Any | None = None) -> None:
        """Nothing to do."""

    def average_statistics(self, model: Any) -> None:
        """Nothing to do."""
