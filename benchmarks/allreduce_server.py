"""The thing that a ring all-reduce replaces: a parameter server, by tf.distribute's own strategy.

Plain variables lie on one process; each worker adds its tensors to them and reads the sums back, so
that the server moves as much as all workers together. Real processes: a server, workers, and the
coordinator that starts them and answers for them all.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import turns

FLOAT = 4


def serve(role: str, index: int, cluster: dict[str, list[str]]) -> None:
    """Be a server or a worker until the coordinator ends."""
    import tensorflow as tf

    # A step blocks a thread on each process that it touches: with as many threads as there are
    # cores (one), a push would wait for ever for what the same thread has to send.
    options = tf.compat.v1.ConfigProto(inter_op_parallelism_threads=len(cluster["worker"]) + 1)
    server = tf.distribute.Server(
        cluster, job_name=role, task_index=index, protocol="grpc", config=options
    )
    server.join()


def coordinate(workers: int) -> None:
    """Start the others, and push and pull when told; see allreduce_rank.main."""
    import tensorflow as tf

    cluster = {"ps": _addresses(1), "worker": _addresses(workers), "chief": _addresses(1)}
    # The coordinator and the server share the cores; a worker has its own, as a rank has.
    cores = turns.share_cores(workers)
    places = [("ps", 0, sorted(os.sched_getaffinity(0)))]
    places += [("worker", index, cores[index]) for index in range(workers)]
    others = [
        subprocess.Popen(
            [
                *turns.pinned(where),
                *(sys.executable, "-m", "benchmarks.allreduce_server"),
                *(role, str(index), json.dumps(cluster)),
            ]
        )
        for role, index, where in places
    ]
    try:
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec(cluster), rpc_layer="grpc", task_type="chief", task_id=0
        )
        strategy = tf.distribute.ParameterServerStrategy(resolver)
        coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
        known: dict[tuple[int, ...], turns.Run] = {}

        def measure(request: dict[str, Any]) -> float:
            tensors = tuple(request["tensors"])
            if tensors not in known:
                known.clear()
                known[tensors] = build_exchange(strategy, coordinator, tensors, workers)
            return turns.time_steps(known[tensors], request["steps"], request["warm_up"])

        turns.answer(measure, 0)
    finally:
        for process in others:
            process.kill()
            process.wait()


def build_exchange(
    strategy: Any, coordinator: Any, tensors: Sequence[int], workers: int
) -> turns.Run:
    """Every worker pushes all tensors and pulls the sums, at once.

    Raises:
        RuntimeError: a sum is wrong.
    """
    import tensorflow as tf

    numbers = [max(1, size // FLOAT) for size in tensors]
    with strategy.scope():
        variables = [tf.Variable(tf.zeros([number])) for number in numbers]

    @tf.function(autograph=False)
    def push() -> Any:
        for variable, number in zip(variables, numbers, strict=True):
            variable.assign_add(tf.fill([number], 1.0))
        return tf.constant(0)

    @tf.function(autograph=False)
    def pull() -> Any:
        # The largest is found by the worker, which needs all of them for that.
        return tf.stack([tf.reduce_max(tf.identity(variable)) for variable in variables])

    def run(steps: int) -> None:
        for _ in range(steps):
            for function in (push, pull):
                for _ in range(workers):
                    coordinator.schedule(function)
                coordinator.join()

    run(1)
    found = coordinator.fetch(coordinator.schedule(pull))
    if not (found == workers).all():
        raise RuntimeError(f"the sums are {sorted(set(found))}, expected {workers}")
    return run


def _addresses(count: int) -> list[str]:
    """Addresses on this host whose ports were free a moment ago."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [f"127.0.0.1:{server.getsockname()[1]}" for server in servers]
    for server in servers:
        server.close()
    return found


if __name__ == "__main__":
    if sys.argv[1] == "coordinate":
        coordinate(int(sys.argv[2]))
    else:
        serve(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
