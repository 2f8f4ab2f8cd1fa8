"""One rank of `python -m benchmarks faults`."""

from __future__ import annotations

import json
import math
import pathlib
import statistics
import sys
import time
from typing import Any

import numpy as np

from benchmarks import step_rank
from strategies.base import leave


def main(case: dict[str, Any]) -> None:
    """Measure; rank 0 writes lists of one number a round.

    "step": seconds of a step; "wait": seconds that the loop waits for a checkpoint; "thread":
    processor time of writing it; "with": steps of case["seconds"] with a checkpoint over those
    without; "check": seconds of a comparison of weights.
    """
    import strategies
    from kerass2 import agreement, checkpoint

    strategy = strategies.get(case["strategy"])
    model, optimizer, step = step_rank.build_step(strategy, case, "float32")
    writer = checkpoint.Writer(pathlib.Path(case["folder"]) / "checkpoints", keep=2)
    spent: list[float] = []
    write = checkpoint.write

    def timed_write(*arguments: Any) -> pathlib.Path:
        begin = time.thread_time()
        path = write(*arguments)
        spent.append(time.thread_time() - begin)
        return path

    checkpoint.write = timed_write  # type: ignore[assignment]
    for _ in range(step_rank.WARM_UP):
        step()
    one = statistics.median(_time(step) for _ in range(3))
    # The slowest rank's, so that all make as many steps.
    one = float(strategy.sum(np.array([one]))[0]) / strategy.world_size
    steps = max(1, math.ceil(case["seconds"] / one))
    found: dict[str, Any] = {"step": one, "wait": [], "with": [], "check": []}

    def save() -> None:
        if strategy.is_chief:
            writer.save(1, model, optimizer, seconds=0.0)

    def block(*, saves: bool) -> float:
        begin = time.perf_counter()
        if saves:
            found["wait"].append(_time(save))
        for _ in range(steps):
            step()
        writer.wait()  # what is not written by then would be paid for by the next block
        return time.perf_counter() - begin

    for turn in range(case["rounds"]):
        # Each comes first as often as the other: what warms up or slows down is no cost of either.
        order = (False, True) if turn % 2 else (True, False)
        taken = {saves: block(saves=saves) for saves in order}
        found["with"].append(taken[True] / taken[False])
        found["check"].append(_time(lambda: agreement.check_weights(model, strategy, 1, None)))
    writer.close()
    leave(strategy)
    if strategy.is_chief:
        pathlib.Path(case["output"]).write_text(json.dumps({**found, "thread": spent}))


def _time(function: Any) -> float:
    """Seconds of a call."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
