"""The process of `python -m benchmarks short` that calls a network with attention in two forms."""

from __future__ import annotations

import json
import sys
from typing import Any

from benchmarks import turns


def main(case: dict[str, Any]) -> None:
    """Answer {"block": edge, 0: none, "steps", "warm_up"} with seconds of a call."""
    import numpy as np
    import tensorflow as tf

    from kerass2 import models

    size, calls = case["size"], {}
    shapes = {"gsd10": (1, size, size, 4), "gsd20": (1, size // 2, size // 2, 6)}
    given = {name: np.full(shape, 0.1, np.float32) for name, shape in shapes.items()}

    def measure(request: dict[str, Any]) -> float:
        block = request["block"]
        if block not in calls:
            model = models.build("s2x", filters=case["filters"], blocks=1, block=block)
            calls[block] = tf.function(lambda inputs: model(inputs))

        def run(steps: int) -> None:
            for _ in range(steps):
                tf.nest.map_structure(np.asarray, calls[block](given))

        return turns.time_steps(run, request["steps"], request["warm_up"])

    turns.answer(measure, 0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
