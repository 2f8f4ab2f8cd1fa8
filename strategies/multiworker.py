"""tf.distribute's MultiWorkerMirroredStrategy.

One process and one device a rank, all-reduce over gRPC or NCCL.
Keras' own fit does not work under it (keras-team/keras#20585; canary test), an explicit loop does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import math
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from strategies import gpus, meeting, settings
from strategies.base import StrategyError, average_moving_statistics
from strategies.cluster import Cluster

# TensorFlow's server then takes a port (SO_REUSEPORT) that this user holds until it is there.
SHARED_PORT = "TF_GRPC_REUSE_PORT"
# Bytes that RING sums together. In one piece, tf.distribute's default, ResNet-50's 94 MB took 1.5
# to 3 times as long as in pieces of this size, and in smaller ones longer too: each costs a call.
RING_BYTES = 8 * 2**20


class MultiWorkerStrategy:
    """Synchronous all-reduce by tf.distribute. See strategies.base.Strategy for the members."""

    name = "multiworker"

    def __init__(self, cluster: Cluster) -> None:
        """Join the other workers; blocks until all are there."""
        chosen = settings.read(os.environ)
        if chosen.interface:
            os.environ.setdefault("NCCL_SOCKET_IFNAME", chosen.interface)
        with contextlib.ExitStack() as stack:
            if cluster.world_size > 1 and "TF_CONFIG" not in os.environ:
                os.environ |= stack.enter_context(_meet(cluster, chosen))
            elif cluster.world_size > 1 and SHARED_PORT not in os.environ:
                _meet_at_named_ports(cluster, chosen, os.environ["TF_CONFIG"])
            self._join(cluster, chosen)

    def _join(self, cluster: Cluster, chosen: settings.Settings) -> None:
        import tensorflow as tf

        has_gpu = gpus.pin(cluster.local_rank)
        collectives = chosen.collectives or ("NCCL" if has_gpu else "RING")
        with _patience(chosen.library_seconds):
            self._strategy = tf.distribute.MultiWorkerMirroredStrategy(
                communication_options=tf.distribute.experimental.CommunicationOptions(
                    bytes_per_pack=RING_BYTES if collectives == "RING" else 0,
                    implementation=tf.distribute.experimental.CommunicationImplementation[
                        collectives
                    ],
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
def _patience(seconds: float) -> Iterator[None]:
    """Have workers that are made inside the `with` block wait so long for one that says nothing.

    TensorFlow's own time is ten seconds, and no public function sets it (canary test).
    """
    from tensorflow.python.eager import context

    service = context.context()
    service.configure_coordination_service = functools.partial(
        service.configure_coordination_service, heartbeat_timeout_in_ms=math.ceil(1000 * seconds)
    )
    try:
        yield
    finally:
        del service.configure_coordination_service


@contextlib.contextmanager
def local_environments(workers: int) -> Iterator[list[dict[str, str]]]:
    """Environment of each of `workers` ranks on this host.

    Their ports are theirs inside the `with` block.
    """
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(_hold_port("127.0.0.1")) for _ in range(workers)]
        addresses = [f"127.0.0.1:{port}" for port in ports]
        yield [_environment(addresses, rank) for rank in range(workers)]


@contextlib.contextmanager
def _meet(cluster: Cluster, chosen: settings.Settings) -> Iterator[dict[str, str]]:
    """Environment of this rank, for ranks that a launcher has started on known hosts.

    Each takes a port that is free on its host, its own inside the `with` block, and they tell each
    other.

    Raises:
        StrategyError: the hosts are not known, or do not reach each other.
    """
    host = cluster.require_hosts()[cluster.rank]
    own = meeting.address_of(chosen.interface) if chosen.interface else host
    with _hold_port("") as port:
        addresses = meeting.exchange(cluster, f"{own}:{port}", chosen)
        for each in {address.rpartition(":")[0] for address in addresses}:
            meeting.resolve(each)
        yield _environment(addresses, cluster.rank)


@contextlib.contextmanager
def _hold_port(address: str) -> Iterator[int]:
    """A free port that nobody else gets inside the `with` block.

    But for TensorFlow's server of this user, which shares it: see _environment.
    """
    with socket.socket() as kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        kept.bind((address, 0))
        port: int = kept.getsockname()[1]
        yield port


def _meet_at_named_ports(cluster: Cluster, chosen: settings.Settings, config: str) -> None:
    """See that the workers of a TF_CONFIG that was given are there: TensorFlow waits for an hour.

    They meet at the port that it names for rank 0, which others reach where no other may be open.

    Raises:
        StrategyError: a worker has not come, or its port is taken.
    """
    roles = json.loads(config)["cluster"]
    addresses = [*roles.get("chief", []), *roles.get("worker", [])]
    ports = [int(address.rpartition(":")[2]) for address in addresses]
    try:
        socket.create_server(("", ports[cluster.rank])).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise StrategyError(
            f"port {ports[cluster.rank]} of TF_CONFIG is taken on {socket.gethostname()}: is "
            "another job running there? Give this worker another port, in TF_CONFIG on all ranks"
        ) from None
    meeting.exchange(cluster, "", dataclasses.replace(chosen, port=ports[0]))


def _environment(addresses: Sequence[str], rank: int) -> dict[str, str]:
    """What TensorFlow reads of a rank whose port is held for it."""
    return {"TF_CONFIG": _tf_config(addresses, rank), SHARED_PORT: "true"}


def _tf_config(addresses: Sequence[str], rank: int) -> str:
    """tf.distribute's own description of the workers and of this one's place."""
    return json.dumps(
        {"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": rank}}
    )
