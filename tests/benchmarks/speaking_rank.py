"""A rank of a job in the tests of turns.py: what it does when told takes a known time."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import sys
import threading
import time

from benchmarks import turns

PIECE = 100_000  # bytes


def sleep(request: dict[str, float]) -> float:
    """Seconds of a step that sleeps."""
    return turns.time_steps(
        lambda steps: [time.sleep(request["seconds"]) for _ in range(steps)], request["steps"], 1
    )


def transfer(request: dict[str, float]) -> float:
    """Seconds of a step that sends bytes by a real connection at a known rate [bytes/s]."""
    near, far = socket.socketpair()

    def send() -> None:
        begin, sent = time.perf_counter(), 0
        while sent < request["bytes"] * request["steps"]:
            near.sendall(b"x" * PIECE)
            sent += PIECE
            time.sleep(max(0.0, begin + sent / request["rate"] - time.perf_counter()))
        near.close()

    def receive(steps: int) -> None:
        count = 0
        while count < request["bytes"] * steps:
            count += len(far.recv(2**20))

    sender = threading.Thread(target=send)
    sender.start()
    seconds = turns.time_steps(receive, int(request["steps"]))
    sender.join()
    return seconds


def main(rank: int, folder: str) -> None:
    """Answer; note when, for the order of turns."""

    def measure(request: dict[str, float]) -> float:
        if request.get("end") == rank:
            print("a last word", file=sys.stderr, flush=True)
            os._exit(3)
        with (pathlib.Path(folder) / "order").open("a") as file:
            file.write(json.dumps([request.get("name"), rank]) + "\n")
        return transfer(request) if "rate" in request else sleep(request)

    turns.answer(measure, rank)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
