"""Horovod, by low-level calls only (grouped_allreduce, broadcast).

Its Keras optimizer reduces nothing on Keras 3, silently: a canary test holds that failure.
Source: horovod.readthedocs.io, "Horovod with TensorFlow".
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import socket
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from strategies import gpus, meeting, settings
from strategies.base import StrategyError, average_moving_statistics
from strategies.cluster import Cluster


class HorovodStrategy:
    """Synchronous ring all-reduce by Horovod. See strategies.base.Strategy for the members."""

    name = "horovod"

    def __init__(self, cluster: Cluster) -> None:
        """Start Horovod and pin this rank's GPU, if there is one."""
        self._hvd = load()
        import tensorflow as tf

        if not tf.config.list_physical_devices("GPU"):
            # Horovod's own thread wakes every cycle [ms] to ask the other ranks for tensors that
            # are ready, and takes that time from a step on the same core; a tensor waits for the
            # cycle's end. Of a step of 1.6 s two ranks lost 4 % at 5, 3 % at 20 and 6 % at 40, of
            # one of 2 s 6 % at the default of 1.
            os.environ.setdefault("HOROVOD_CYCLE_TIME", "20")
        seconds = math.ceil(settings.read(os.environ).library_seconds)
        os.environ.setdefault("HOROVOD_GLOO_TIMEOUT_SECONDS", str(seconds))
        with contextlib.ExitStack() as stack:
            if _needs_rendezvous(cluster, self._hvd):
                os.environ.update(stack.enter_context(_rendezvous(cluster)))
            self._hvd.init()
        if self._hvd.size() != cluster.world_size:
            raise StrategyError(
                f"{cluster.launcher} started {cluster.world_size} ranks, "
                f"but Horovod sees {self._hvd.size()}: "
                "does MPI find them (srun --mpi=pmix)? HOROVOD_CONTROLLER=gloo does without MPI"
            )
        self.rank: int = self._hvd.rank()
        self.local_rank: int = self._hvd.local_rank()
        self.world_size: int = self._hvd.size()
        gpus.pin(self.local_rank)
        self._tf = tf

    @property
    def is_chief(self) -> bool:
        """True on rank 0."""
        return self.rank == 0

    def scope(self) -> AbstractContextManager[Any]:
        """No scope is needed."""
        return contextlib.nullcontext()

    def distribute(self, make: Callable[[int, int], Any]) -> Iterable[Any]:
        """This rank's slices."""
        dataset: Iterable[Any] = make(self.rank, self.world_size)
        return dataset

    def run(self, step: Callable[..., Any], *args: Any) -> Any:
        """step(*args); ranks meet in sum_gradients."""
        return step(*args)

    def sum_gradients(self, tensors: Sequence[Any]) -> list[Any]:
        """One grouped all-reduce, so that a step's tensors travel fused; None stays None."""
        present = [tensor for tensor in tensors if tensor is not None]
        summed = iter(self._hvd.grouped_allreduce(present, op=self._hvd.Sum) if present else [])
        return [None if tensor is None else next(summed) for tensor in tensors]

    def sum(self, values: np.ndarray) -> np.ndarray:
        """All-reduce outside the step, in float64."""
        total = self._hvd.allreduce(
            self._tf.constant(np.asarray(values, np.float64)), op=self._hvd.Sum, name="kerass2.sum"
        )
        return np.asarray(total)

    def start(self, model: Any, optimizer: Any | None = None) -> None:
        """Rank 0's variables, the optimizer's included, go to all ranks."""
        variables = list(model.variables)
        if optimizer is not None:
            if not optimizer.built:
                optimizer.build(model.trainable_variables)
            variables += optimizer.variables
        self._hvd.broadcast_variables([variable.value for variable in variables], root_rank=0)

    def average_statistics(self, model: Any) -> None:
        """Batch-norm moving statistics, averaged over ranks."""
        average_moving_statistics(self, model)


@contextlib.contextmanager
def local_environments(workers: int) -> Iterator[list[dict[str, str]]]:
    """Environment of each of `workers` ranks on this host.

    It holds for as long as Horovod's Gloo rendezvous is served: inside the `with` block.
    Source: horovod/runner/gloo_run.py; horovodrun does the same and adds ssh.
    """
    hosts = ("localhost",) * workers
    with _serve(hosts) as port:
        yield [
            _environment(slot, "127.0.0.1", port, "lo" if sys.platform == "linux" else "lo0")
            for slot in _slots(hosts)
        ]


def describe() -> dict[str, bool]:
    """Whether "mpi", "gloo" and "nccl" are built into this Horovod.

    Raises:
        StrategyError: it cannot be imported.
    """
    hvd = load()
    return {
        "mpi": bool(hvd.mpi_built()),
        "gloo": bool(hvd.gloo_built()),
        "nccl": bool(hvd.nccl_built()),
    }


def _needs_rendezvous(cluster: Cluster, hvd: Any) -> bool:
    """True where ranks were started by what connects neither MPI nor Horovod.

    Raises:
        StrategyError: Gloo is needed and not built in.
    """
    if cluster.world_size == 1 or cluster.launcher == "horovodrun":
        return False
    controller = os.environ.get("HOROVOD_CONTROLLER", "").lower()
    if controller == "mpi" or (controller != "gloo" and cluster.mpi and hvd.mpi_built()):
        return False
    if not hvd.gloo_built():
        raise StrategyError(
            f"{cluster.launcher} does not connect MPI, and this Horovod has no Gloo: start the "
            "ranks with `srun --mpi=pmix` or mpirun, or build Horovod with Gloo (`make setup`)"
        )
    return True


@contextlib.contextmanager
def _rendezvous(cluster: Cluster) -> Iterator[dict[str, str]]:
    """Environment of this rank, for ranks that a launcher has started on known hosts.

    Rank 0 serves Horovod's own Gloo rendezvous inside the `with` block; the ranks learn its port
    when they meet.

    Raises:
        StrategyError: the hosts are not known, or do not reach each other.
    """
    chosen, hosts = settings.read(os.environ), cluster.require_hosts()
    own_host = hosts[cluster.rank]
    other = next((host for host in hosts if host != own_host), "127.0.0.1")
    interface = chosen.interface or meeting.interface_towards(other)
    # Asked on every rank: an interface that one of them lacks is found here.
    own_address = meeting.address_of(chosen.interface) if chosen.interface else own_host
    _check_own_name(interface)
    with contextlib.ExitStack() as stack:
        own = ""
        if cluster.rank == 0:
            port = stack.enter_context(_serve(hosts))
            own = f"{own_address}:{port}"
        address, _, port_text = meeting.exchange(cluster, own, chosen)[0].rpartition(":")
        slot = _slots(hosts)[cluster.rank]
        yield _environment(slot, meeting.resolve(address), int(port_text), interface)


def _check_own_name(interface: str | None) -> None:
    """See that gradients travel where they should.

    Horovod 0.28.1 forgets the interface for the connections of its process sets, which carry them:
    Gloo then takes the address of the host's own name.

    Raises:
        StrategyError: that is a loopback address, which no other host reaches.
    """
    name = socket.gethostname()
    address = meeting.resolve(name)
    if interface in (None, "lo", "lo0") or address == meeting.address_of(str(interface)):
        return
    if address.startswith("127."):
        raise StrategyError(
            f"{name} takes its own name for {address}, where no other host reaches it, and Horovod "
            "over Gloo would give that address to them: give the name the host's own address in "
            "its /etc/hosts"
        )
    warnings.warn(
        f"gradients leave {name} by {address}, the address of its own name, and not by "
        f"{interface}: Horovod over Gloo knows no other way (over MPI or multiworker it does)",
        stacklevel=2,
    )


@contextlib.contextmanager
def _serve(hosts: Sequence[str]) -> Iterator[int]:
    """Serve Horovod's Gloo rendezvous inside the `with` block, on a port that is free; the port."""
    server = load("horovod.runner.http.http_server").RendezvousServer()
    port: int = server.start()
    server.init(_slots(hosts))
    try:
        yield port
    finally:
        server.stop()


def _slots(hosts: Sequence[str]) -> list[Any]:
    """Horovod's own description of the place of each rank on `hosts`."""
    info = load("horovod.runner.common.util.hosts").SlotInfo
    local_ranks = [hosts[:rank].count(host) for rank, host in enumerate(hosts)]
    slots = []
    for rank, (host, local_rank) in enumerate(zip(hosts, local_ranks, strict=True)):
        # "Across" are the ranks with the same local rank, one a host.
        across = [other for other, local in enumerate(local_ranks) if local == local_rank]
        place = rank, local_rank, across.index(rank)
        slots.append(info(host, *place, len(hosts), hosts.count(host), len(across)))
    return slots


def _environment(slot: Any, address: str, port: int, interface: str | None) -> dict[str, str]:
    """What Horovod's Gloo controller reads. Source: horovod/runner/gloo_run.py."""
    values = {
        "HOROVOD_RANK": slot.rank,
        "HOROVOD_SIZE": slot.size,
        "HOROVOD_LOCAL_RANK": slot.local_rank,
        "HOROVOD_LOCAL_SIZE": slot.local_size,
        "HOROVOD_CROSS_RANK": slot.cross_rank,
        "HOROVOD_CROSS_SIZE": slot.cross_size,
        "HOROVOD_HOSTNAME": slot.hostname,
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": address,
        "HOROVOD_GLOO_RENDEZVOUS_PORT": port,
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
    }
    if interface:
        values["HOROVOD_GLOO_IFACE"] = interface
        # NCCL's own connections; a user's choice counts.
        values["NCCL_SOCKET_IFNAME"] = os.environ.get("NCCL_SOCKET_IFNAME", interface)
    return {name: str(value) for name, value in values.items()}


def load(module: str = "horovod.tensorflow") -> Any:
    """A module of Horovod's.

    Raises:
        StrategyError: it is not built, or for another TensorFlow.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # built for another TensorFlow, it raises nearly anything
        reason = (str(error) or repr(error)).splitlines()[0]
        raise StrategyError(
            f"Horovod is not usable here ({reason}): "
            "build it with `make setup`, or use --strategy multiworker"
        ) from error
