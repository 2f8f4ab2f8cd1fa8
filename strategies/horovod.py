"""Horovod, by low-level calls only (grouped_allreduce, broadcast).

Its Keras optimizer reduces nothing on Keras 3, silently: a canary test holds that failure.
Source: horovod.readthedocs.io, "Horovod with TensorFlow".
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from strategies.base import StrategyError, average_moving_statistics
from strategies.cluster import Cluster


class HorovodStrategy:
    """Synchronous ring all-reduce by Horovod. See strategies.base.Strategy for the members."""

    name = "horovod"

    def __init__(self, cluster: Cluster) -> None:
        """Start Horovod and pin this rank's GPU, if there is one."""
        self._hvd = _import_horovod()
        several = cluster.world_size > 1
        if cluster.launcher == "slurm" and several and not self._hvd.mpi_built():
            raise StrategyError(
                "Horovod under srun needs a build with MPI (make setup with mpicc present); "
                "this one has Gloo only"
            )
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        if not gpus:
            # Horovod's own thread wakes every cycle [ms] to ask the other ranks for tensors that
            # are ready, and takes that time from a step on the same core; a tensor waits for the
            # cycle's end. Of a step of 1.6 s two ranks lost 4 % at 5, 3 % at 20 and 6 % at 40, of
            # one of 2 s 6 % at the default of 1.
            os.environ.setdefault("HOROVOD_CYCLE_TIME", "20")
        self._hvd.init()
        if self._hvd.size() != cluster.world_size:
            raise StrategyError(
                f"{cluster.launcher} started {cluster.world_size} ranks, "
                f"but Horovod sees {self._hvd.size()}: "
                "is it built with MPI (horovodrun --check-build)?"
            )
        self.rank: int = self._hvd.rank()
        self.local_rank: int = self._hvd.local_rank()
        self.world_size: int = self._hvd.size()
        if gpus:
            tf.config.set_visible_devices(gpus[self.local_rank % len(gpus)], "GPU")
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
    _import_horovod(module="horovod.runner")
    from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts
    from horovod.runner.http.http_server import RendezvousServer

    server = RendezvousServer()
    port = server.start()
    slots = get_host_assignments(parse_hosts(f"localhost:{workers}"), workers)
    server.init(slots)
    try:
        yield [
            {
                "HOROVOD_RANK": str(slot.rank),
                "HOROVOD_SIZE": str(slot.size),
                "HOROVOD_LOCAL_RANK": str(slot.local_rank),
                "HOROVOD_LOCAL_SIZE": str(slot.local_size),
                "HOROVOD_CROSS_RANK": str(slot.cross_rank),
                "HOROVOD_CROSS_SIZE": str(slot.cross_size),
                "HOROVOD_HOSTNAME": slot.hostname,
                "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1",
                "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
                "HOROVOD_CONTROLLER": "gloo",
                "HOROVOD_CPU_OPERATIONS": "gloo",
                "HOROVOD_GLOO_IFACE": "lo" if sys.platform == "linux" else "lo0",
            }
            for slot in slots
        ]
    finally:
        server.stop()


def _import_horovod(module: str = "horovod.tensorflow") -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise StrategyError(
            f"Horovod is not usable here ({error}): "
            "build it with `make setup`, or use --strategy multiworker"
        ) from error
