"""One process of `python -m benchmarks superres`: it measures one thing and writes it down."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerass2.precision import POLICIES

if TYPE_CHECKING:
    import keras

    from kerass2.networks import Network
    from kerass2.sharpen import Plan

# Edges of the square matrices whose product is the machine's rate: the faster one counts.
MATRICES = (2048, 4096)
# Steps of a turn in `training`: a call of fit begins and ends an epoch.
TURN = 6


def measure_product(precision: str, seconds: float = 1.0) -> float:
    """Rate of TensorFlow's matrix product [FLOP/s]: the median, of the faster size."""
    import tensorflow as tf

    product, rates = tf.function(tf.linalg.matmul), []
    for size in MATRICES:
        factor = tf.cast(tf.random.stateless_normal((size, size), seed=(0, 0)), precision)
        begin, found = time.perf_counter(), list[float]()
        while len(found) < 4 or time.perf_counter() - begin < seconds / len(MATRICES):
            start = time.perf_counter()
            product(factor, factor)
            found.append(2 * size**3 / (time.perf_counter() - start))
        rates.append(statistics.median(found[1:]))
    return max(rates)


def save(case: dict[str, Any]) -> dict[str, Any]:
    """A model for the others."""
    import keras

    from kerass2 import models
    from kerass2.models import weights

    keras.utils.set_random_seed(0)
    model = models.build(case["name"], **case["options"])
    if case["weights"] is not None:
        weights.initialise(model, case["weights"])
    for layer in model.layers:
        if layer.name == "attention":
            layer.gamma.assign(0.3)
    model.save(case["path"])
    return {}


def tile(case: dict[str, Any]) -> dict[str, Any]:
    """A product from JP2 to COG as kerass2.predict does it, after start-up.

    Start-up is the time from the process' begin to here, with a first call of the model for each
    size of window that there is: that is when TensorFlow compiles it.
    """
    import psutil

    import strategies
    from data_pipelines.granule import open_granule
    from kerass2 import backend, inputs, networks, outputs, sharpen

    backend.import_keras()
    model = inputs.load_model(case["model"])
    network = networks.build_network(model, precision=case["precision"])
    product, output = pathlib.Path(case["product"]), pathlib.Path(case["image"])
    _warm_up(sharpen.build_plan(open_granule(product), [network]))
    start_up = time.time() - psutil.Process().create_time()
    rates = [measure_product(case["precision"])]
    begin = time.perf_counter()
    plan = sharpen.build_plan(open_granule(product), [network])
    spent = outputs.write_output(
        plan, outputs.Target(output, "COG"), strategies.get("single"), identity={}, overwrite=True
    )
    seconds = time.perf_counter() - begin
    peak = peak_resident()
    rates.append(measure_product(case["precision"]))
    transfer_s, transfer_cpu_s = _time_transfer(plan, output.with_name(f"idle-{output.name}"))
    flop, inside = sharpen.count_work(plan)
    return {
        "seconds": seconds,
        "windows_s": spent[0],
        "output_s": spent[1],
        "transfer_s": transfer_s,
        "transfer_cpu_s": transfer_cpu_s,
        "start_up_s": start_up,
        "resident_gib": peak,
        "flop": flop,
        "overlap": 1 - inside / flop,
        "matrix_product_flop_s": max(rates),
        "share": flop / seconds / max(rates),
    }


def _warm_up(plan: Plan) -> None:
    """Call each network once for each size of window."""
    for network in plan.networks:
        views = {
            (piece.view.height, piece.view.width): piece.view
            for region in plan.regions
            for piece in network.place(region, plan.granule.shape)
        }
        for height, width in views:
            network.predict(
                {
                    name: np.full(
                        (1, height // ratio, width // ratio, len(network.inputs[name])),
                        0.1,
                        np.float32,
                    )
                    for name, ratio in network.ratios.items()
                }
            )


def _time_transfer(plan: Plan, output: pathlib.Path) -> tuple[float, float]:
    """Seconds, and seconds of processors, of the same without arithmetic: reading and writing.

    What they take of the processors, the matrix product had for itself.
    """
    import strategies
    from kerass2 import outputs

    idle = dataclasses.replace(plan, networks=tuple(_idle(n, plan) for n in plan.networks))
    begin, cpu = time.perf_counter(), time.process_time()
    target = outputs.Target(output, "COG")
    outputs.write_output(idle, target, strategies.get("single"), identity={}, overwrite=True)
    spent = time.perf_counter() - begin, time.process_time() - cpu
    output.unlink()
    return spent


def _idle(network: Network, plan: Plan) -> Network:
    """The network giving zeros at once."""
    piece = network.place(plan.regions[0], plan.granule.shape)[0]
    margin = piece.out.y - piece.view.y
    ratio = network.ratios[network.lowres]

    def predict(given: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        n, height, width, _ = given[network.lowres].shape
        size = (ratio * height - 2 * margin, ratio * width - 2 * margin)
        return np.zeros((n, *size, len(network.bands)), np.float32)

    return dataclasses.replace(network, predict=predict)


def peak_resident() -> float:
    """Of this process so far [GiB], mapped files included."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def plain(case: dict[str, Any]) -> dict[str, Any]:
    """The same product by the plain way, in float32; S2x by its plain form."""
    import psutil

    from benchmarks import superres_plain
    from kerass2 import inputs

    if case["model"] is None:
        options = case["options"]
        model = superres_plain.build_s2x(
            options["filters"], options["blocks"], "float32", superres_plain.WINDOW
        )
    else:
        model = inputs.load_model(case["model"])
    size, batch = superres_plain.WINDOW, case["batch"]
    shapes = {"gsd10": (batch, size, size, 4), "gsd20": (batch, size // 2, size // 2, 6)}
    model.predict({name: np.zeros(shape, "f4") for name, shape in shapes.items()}, verbose=0)
    start_up = time.time() - psutil.Process().create_time()
    begin = time.perf_counter()
    superres_plain.sharpen(
        model, pathlib.Path(case["product"]), pathlib.Path(case["image"]), case["border"], batch
    )
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "start_up_s": start_up, "resident_gib": peak_resident()}


def truth(case: dict[str, Any]) -> dict[str, Any]:
    """RMSE [DN] of a model on a scene under Wald's protocol, in both precisions."""
    from data_pipelines import cube, sentinel2
    from data_pipelines.granule import Granule, build_cube, open_granule
    from kerass2 import inputs, networks, sharpen, whole

    model = inputs.load_model(case["model"])
    scene = whole.read(open_granule(case["scene"]), cube.find_task("superres_20m"))
    bands = {name: sentinel2.bands_at(sentinel2.GSDS[name]) for name in scene.cubes}
    cubes = {
        name: build_cube(pixels, bands[name], sentinel2.GSDS[name])
        for name, pixels in scene.cubes.items()
    }
    found = {}
    for precision in case["precisions"]:
        network = networks.build_network(model, precision=precision)
        plan = sharpen.build_plan(Granule("scene", "scene", "scene", cubes), [network])
        error = np.empty(scene.target.shape, np.float64)
        for region, pixels in sharpen.make_regions(plan):
            error[region.slices] = pixels.transpose(1, 2, 0)
        error -= scene.target
        found[precision] = float(np.sqrt(np.mean(error[scene.valid] ** 2)))
    return found


def training(case: dict[str, Any]) -> dict[str, Any]:
    """Seconds a step of our loop and of Keras' fit, in turns, and the product's rate.

    `fit` trains the plain form and `own` the package's model. Of a call of fit the steps count; the
    end of the call, which can be that of another three steps, is in `calls` with them.
    """
    import strategies
    from benchmarks import step_rank, superres_plain
    from kerass2 import models

    options, policy = case["experiment"]["model"]["options"], POLICIES[case["precision"]]
    sizes = options["filters"], options["blocks"]
    plain = superres_plain.build_s2x(*sizes, policy, case["patch"])
    own = models.build(case["experiment"]["model"]["name"], dtype=policy, **options)
    runs = {
        "loop": step_rank._build_loop(strategies.get("single"), case, case["precision"]),
        "fit": _build_fit(case, plain),
        "own": _build_fit(case, own),
    }
    for run in runs.values():
        run(step_rank.WARM_UP)
    seconds: dict[str, list[float]] = {name: [] for name in (*runs, "calls")}
    rates = [measure_product(case["precision"])]
    for _ in range(case["rounds"]):
        for name, run in runs.items():
            begin = time.perf_counter()
            stepped, ended = run(TURN) or time.perf_counter(), time.perf_counter()
            seconds[name].append((stepped - begin) / TURN)
            if name == "fit":
                seconds["calls"].append((ended - begin) / TURN)
        rates.append(measure_product(case["precision"]))
    return {**seconds, "matrix_product_flop_s": max(rates)}


def _build_fit(case: dict[str, Any], model: keras.Model) -> Callable[[int], float]:
    """What one writes by hand in Keras: compile and fit, on a repeated batch in memory.

    Its steps' end is returned: fit waits after it for tf.data's threads to sleep their last, or
    not; measured, 0 to 7 s.
    """
    import keras
    import tensorflow as tf

    patch = case["patch"]
    model.compile(optimizer=keras.optimizers.Adam(1e-4), loss="mae")
    rng = np.random.default_rng(0)

    def draw(size: int, bands: int) -> Any:
        return tf.constant(rng.random((case["batch"], size, size, bands)), tf.float32)

    inputs = {"gsd10": draw(patch, 4), "gsd20": draw(patch // 2, 6)}
    batch = inputs, {"superres_20m": draw(patch, 6)}
    dataset = tf.data.Dataset.from_tensors(batch).repeat()

    class Clock(keras.callbacks.Callback):
        stepped = 0.0

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.stepped = time.perf_counter()

    def run(steps: int) -> float:
        clock = Clock()
        model.fit(dataset, steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=[clock])
        return clock.stepped

    return run


if __name__ == "__main__":
    kinds = {"save": save, "tile": tile, "plain": plain, "truth": truth, "training": training}
    arguments = json.loads(sys.argv[2])
    pathlib.Path(arguments["output"]).write_text(json.dumps(kinds[sys.argv[1]](arguments)))
