"""tf.distribute's MultiWorkerMirroredStrategy.

One process and one device a rank, all-reduce over gRPC or NCCL.
Keras' own fit does not work under it (keras-team/keras#20585; canary test), an explicit loop does.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from strategies import meeting, settings
from strategies.base import average_moving_statistics
from strategies.cluster import Cluster


class MultiWorkerStrategy:
    """Synchronous all-reduce by tf.distribute. See strategies.base.Strategy for the members."""

    name = "multiworker"

    def __init__(self, cluster: Cluster) -> None:
        """Join the other workers; blocks until all are there."""
        chosen = settings.read(os.environ)
        if cluster.world_size > 1 and "TF_CONFIG" not in os.environ:
            os.environ["TF_CONFIG"] = _meet(cluster, chosen)
        if chosen.interface:
            os.environ.setdefault("NCCL_SOCKET_IFNAME", chosen.interface)
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        if gpus:
            tf.config.set_visible_devices(gpus[cluster.local_rank % len(gpus)], "GPU")
        collectives = chosen.collectives or ("NCCL" if gpus else "RING")
        self._strategy = tf.distribute.MultiWorkerMirroredStrategy(
            communication_options=tf.distribute.experimental.CommunicationOptions(
                implementation=tf.distribute.experimental.CommunicationImplementation[collectives]
            )
        )
        self._tf = tf
        self.rank, self.local_rank = cluster.rank, cluster.local_rank
        self.world_size = self._strategy.num_replicas_in_sync

    @property
    def is_chief(self) -> bool:
        """True on rank 0."""
        return self.rank == 0

    def scope(self) -> AbstractContextManager[Any]:
        """Variables made inside are mirrored: every rank starts with rank 0's values."""
        scope: AbstractContextManager[Any] = self._strategy.scope()
        return scope

    def distribute(self, make: Callable[[int, int], Any]) -> Iterable[Any]:
        """This rank's slices.

        tf.distribute's own iterator would ask all workers at each step whether they have one more
        batch: an all-reduce that ranks with as many steps each do not need.
        """
        dataset: Iterable[Any] = make(self.rank, self.world_size)
        return dataset

    def run(self, step: Callable[..., Any], *args: Any) -> Any:
        """Step in replica context, where sum_gradients works."""
        return self._strategy.run(step, args=args)

    def sum_gradients(self, tensors: Sequence[Any]) -> list[Any]:
        """One all-reduce call, which tf.distribute packs; None stays None."""
        # identity: all_reduce wants tensors that bear this replica's device, and some have none.
        present = [self._tf.identity(tensor) for tensor in tensors if tensor is not None]
        context = self._tf.distribute.get_replica_context()
        summed = iter(context.all_reduce("SUM", present) if present else [])
        return [None if tensor is None else next(summed) for tensor in tensors]

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Reduce outside the step, in float64."""
        total = self._strategy.reduce(
            "SUM", self._tf.constant(np.asarray(values, np.float64)), axis=None
        )
        return np.asarray(total)

    def start(self, model: Any, optimizer: Any | None = None) -> None:
        """Switch the optimizer's own sum off.

        It comes after clipping and the loss-scale check, ours before. `_all_reduce_sum_gradients`
        is the one private Keras hook that this package relies on (canary test).
        """
        while optimizer is not None:
            optimizer._all_reduce_sum_gradients = list
            optimizer = getattr(optimizer, "inner_optimizer", None)

    def average_statistics(self, model: Any) -> None:
        """Batch-norm moving statistics, averaged over ranks."""
        average_moving_statistics(self, model)


@contextlib.contextmanager
def local_environments(workers: int) -> Iterator[list[dict[str, str]]]:
    """TF_CONFIG of each of `workers` ranks on this host, on ports that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(workers)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    yield [{"TF_CONFIG": _tf_config(addresses, rank)} for rank in range(workers)]


def _meet(cluster: Cluster, chosen: settings.Settings) -> str:
    """TF_CONFIG of this rank, for ranks that a launcher has started on known hosts.

    Each takes a port that is free on its host, and they tell each other.

    Raises:
        StrategyError: the hosts are not known, or do not reach each other.
    """
    host = cluster.require_hosts()[cluster.rank]
    own = meeting.address_of(chosen.interface) if chosen.interface else host
    with socket.socket() as kept:
        # Bound until all have met, so that ranks of one host take different ports.
        kept.bind(("", 0))
        line = f"{own}:{kept.getsockname()[1]}"
        addresses = meeting.exchange(cluster, line, chosen)
    for each in {address.rpartition(":")[0] for address in addresses}:
        meeting.resolve(each)
    return _tf_config(addresses, cluster.rank)


def _tf_config(addresses: Sequence[str], rank: int) -> str:
    """tf.distribute's own description of the workers and of this one's place."""
    return json.dumps(
        {"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": rank}}
    )
