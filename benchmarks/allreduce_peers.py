"""One rank of `python -m benchmarks allreduce` by what others have: no TensorFlow is imported.

tcp          to the next rank of a ring and from the one before at once, as many bytes as a ring
             all-reduce moves: the bound
memory-copy  bytes from one array to another
torch-gloo   torch.distributed, in place; many tensors each by itself, all under way at once, or
             as DistributedDataParallel sends them: copied into buckets of 25 MB, which are summed
             while the next one is filled, and back; the faster of the two
mpi4py       Allreduce in place; many tensors copied into one array and back
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import turns

FLOAT = 4
BUCKET = 25 * 2**20  # bytes: torch's bucket_cap_mb
WAIT_SECONDS = 60.0

Build = Callable[[Sequence[int]], turns.Run]


def main(kind: str, rank: int, ranks: int, folder: str) -> None:
    """Be one of `ranks` of that kind, which meet in a folder."""
    with contextlib.ExitStack() as stack:
        build, rank = KINDS[kind](rank, ranks, pathlib.Path(folder), stack)
        known: dict[tuple[int, ...], turns.Run] = {}

        def measure(request: dict[str, Any]) -> float:
            tensors = tuple(request["tensors"])
            if tensors not in known:
                known.clear()
                known[tensors] = build(tensors)
            return turns.time_steps(known[tensors], request["steps"], request["warm_up"])

        turns.answer(measure, rank)


def _start_copy(
    rank: int, ranks: int, folder: pathlib.Path, stack: contextlib.ExitStack
) -> tuple[Build, int]:
    def build(tensors: Sequence[int]) -> turns.Run:
        source = np.ones(sum(tensors), np.uint8)
        target = np.zeros_like(source)

        def run(steps: int) -> None:
            for _ in range(steps):
                np.copyto(target, source)

        return run

    return build, rank


def _start_tcp(
    rank: int, ranks: int, folder: pathlib.Path, stack: contextlib.ExitStack
) -> tuple[Build, int]:
    before, after = _join_ring(rank, ranks, folder, stack)

    def build(tensors: Sequence[int]) -> turns.Run:
        size = 2 * (ranks - 1) * sum(tensors) // ranks
        sent, room = np.ones(size, np.uint8), np.zeros(size, np.uint8)

        def run(steps: int) -> None:
            def send() -> None:
                for _ in range(steps):
                    after.sendall(sent)

            sender = threading.Thread(target=send)
            sender.start()
            for _ in range(steps):
                receive(before, room)
            sender.join()

        return run

    return build, rank


def receive(line: socket.socket, room: np.ndarray) -> None:
    """Fill `room`, bytes, from a connection.

    Raises:
        ConnectionError: the other side has ended it.
    """
    view = memoryview(room)
    while view:
        count = line.recv_into(view)
        if not count:
            raise ConnectionError("the rank before has ended the connection")
        view = view[count:]


def _join_ring(
    rank: int, ranks: int, folder: pathlib.Path, stack: contextlib.ExitStack
) -> tuple[socket.socket, socket.socket]:
    """Connections from the rank before and to the one after, by ports that they leave in files."""
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    own = folder / f"{rank}.part"
    own.write_text(str(server.getsockname()[1]))
    own.rename(folder / f"{rank}.port")
    other, deadline = folder / f"{(rank + 1) % ranks}.port", time.monotonic() + WAIT_SECONDS
    while not other.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"rank {(rank + 1) % ranks} has not come")
        time.sleep(0.01)
    after = stack.enter_context(socket.create_connection(("127.0.0.1", int(other.read_text()))))
    after.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    before = stack.enter_context(server.accept()[0])
    return before, after


def _start_torch(
    rank: int, ranks: int, folder: pathlib.Path, stack: contextlib.ExitStack
) -> tuple[Build, int]:
    import torch
    from torch import distributed

    torch.set_num_threads(max(1, len(os.sched_getaffinity(0))))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = f"file://{folder.resolve()}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)

    def build(tensors: Sequence[int]) -> turns.Run:
        # Zeros, since what is summed in place grows.
        given = [torch.zeros(max(1, size // FLOAT)) for size in tensors]

        def in_place(steps: int) -> None:
            for _ in range(steps):
                for work in [distributed.all_reduce(each, async_op=True) for each in given]:
                    work.wait()

        if len(given) == 1:
            return in_place
        ways = [in_place, _in_buckets(given)]
        took = torch.tensor([turns.time_steps(way, 2, warm_up=1) for way in ways])
        distributed.all_reduce(took)
        return ways[int(took.argmin())]

    return build, rank


def _in_buckets(given: Sequence[Any]) -> turns.Run:
    """Sums of tensors that are copied into buckets and back."""
    import torch
    from torch import distributed

    parts = _fill(given, BUCKET)
    buckets = [torch.empty(sum(each.numel() for each in part)) for part in parts]
    pairs = zip(buckets, parts, strict=True)
    views = [list(bucket.split([each.numel() for each in part])) for bucket, part in pairs]

    def run(steps: int) -> None:
        for _ in range(steps):
            waiting = []
            for part, bucket, view in zip(parts, buckets, views, strict=True):
                torch._foreach_copy_(view, part)
                waiting.append(distributed.all_reduce(bucket, async_op=True))
            for work, part, view in zip(waiting, parts, views, strict=True):
                work.wait()
                torch._foreach_copy_(part, view)

    return run


def _fill(tensors: Sequence[Any], most: int) -> list[list[Any]]:
    """Neighbours together until they have `most` bytes."""
    parts: list[list[Any]] = [[]]
    held = 0
    for tensor in tensors:
        if held >= most:
            parts.append([])
            held = 0
        parts[-1].append(tensor)
        held += FLOAT * tensor.numel()
    return parts


def _start_mpi(
    rank: int, ranks: int, folder: pathlib.Path, stack: contextlib.ExitStack
) -> tuple[Build, int]:
    from mpi4py import MPI

    world = MPI.COMM_WORLD

    def build(tensors: Sequence[int]) -> turns.Run:
        given = [np.ones(max(1, size // FLOAT), np.float32) for size in tensors]
        ends = np.cumsum([each.size for each in given])
        flat = np.empty(ends[-1], np.float32)
        views = np.split(flat, ends[:-1])
        out = [np.empty_like(each) for each in given] if len(given) > 1 else []

        def run(steps: int) -> None:
            for _ in range(steps):
                for view, each in zip(views, given, strict=True):
                    np.copyto(view, each)
                world.Allreduce(MPI.IN_PLACE, flat)
                for view, each in zip(views, out, strict=False):
                    np.copyto(each, view)

        return run

    return build, world.Get_rank()


KINDS = {
    "memory-copy": _start_copy,
    "tcp": _start_tcp,
    "torch-gloo": _start_torch,
    "mpi4py": _start_mpi,
}

if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
