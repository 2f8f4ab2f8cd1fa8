"""The process of `python -m benchmarks predict` for one model: predicts a made-up granule."""

from __future__ import annotations

import json
import sys
from typing import Any

from benchmarks import turns


def main(case: dict[str, Any]) -> None:
    """Answer {"precision", "steps", "warm_up"} with seconds of a whole granule in memory."""
    import keras

    from data_pipelines import sentinel2, synthetic
    from data_pipelines.granule import Granule, build_cube
    from kerass2 import models, networks, sharpen

    keras.utils.set_random_seed(0)
    model = models.build(case["model"], **case["options"])
    cubes = {
        name: build_cube(pixels, sentinel2.bands_at(sentinel2.GSDS[name]), sentinel2.GSDS[name])
        for name, pixels in synthetic.build_cubes(case["size"]).items()
    }
    granule = Granule("made up", "made up", "made up", cubes)
    plans: dict[str, Any] = {}

    def predict(precision: str, steps: int) -> None:
        for _ in range(steps):
            for _ in sharpen.make_regions(plans[precision]):
                pass

    def measure(request: dict[str, Any]) -> float:
        precision = request["precision"]
        if precision not in plans:
            network = networks.build_network(model, precision=precision)
            plans[precision] = sharpen.build_plan(granule, [network])
        return turns.time_steps(
            lambda steps: predict(precision, steps), request["steps"], request["warm_up"]
        )

    turns.answer(measure, 0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
