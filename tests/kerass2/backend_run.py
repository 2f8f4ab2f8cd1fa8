"""`python backend_run.py FOLDER BACKEND`: what test_backends.py compares, on one Keras backend.

FOLDER holds models/*.keras, arrays.npz (inputs by "model/input"), and the data sets "images" and
"labels"; FOLDER/BACKEND gets what the commands write, and outputs.npz.
"""

from __future__ import annotations

import os
import pathlib
import sys
import sysconfig
from typing import Any

import click
import numpy as np

STEPS = 20
FIT = ["--steps", str(STEPS), "--set", "run.log_every=1", "--set", "run.precision=float32"]
IMAGES = {"run.global_batch": 8, "model.options.filters": 8, "model.options.blocks": 2}
LABELS = {"run.global_batch": 8, "model.options.depth": 10, "model.options.width": 4}
LABELS |= {"model.options.dropout": 0.0, "run.accumulation_steps": 2}
# Name of a run -> experiment, data, starting weights, settings.
RUNS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "s2x": ("superres_20m_compact", "images", "s2x", {**IMAGES, "run.ema": 0.9}),
    "resnet": ("bigearthnet_ms_compact", "labels", "resnet", LABELS),
}


def call(command: str, *arguments: object) -> None:
    import importlib

    main: click.Command = importlib.import_module(f"kerass2.{command}").main
    main([str(each) for each in arguments], standalone_mode=False)


def predict_all(folder: pathlib.Path) -> dict[str, np.ndarray]:
    from kerass2 import models, tiling

    found = {}
    with np.load(folder / "arrays.npz") as arrays:
        for path in sorted((folder / "models").glob("*.keras")):
            model = models.load_model(path)
            inputs = {name: arrays[f"{path.stem}/{name}"] for name in model.input}
            for name, value in tiling.compile_prediction(model)(inputs).items():
                found[f"{path.stem}/{name}"] = value
    return found


def compute_losses() -> dict[str, np.ndarray]:
    """Every loss of the tables, of (batch, ...) random numbers."""
    from keras import ops

    from kerass2 import label_losses, losses

    random = np.random.default_rng(5)
    pixels, others = random.uniform(0, 0.05, (2, 3, 8, 8, 6)).astype("f4")
    truth, logits = random.integers(0, 2, (3, 19)).astype("f4"), random.normal(0, 3, (3, 19))
    counts = np.arange(1, 20), 40
    weighted = {"class_weights": "inverse", "positive_weights": "inverse_sqrt"}
    cases = {name: (name, {}, None) for name in (*losses.LOSSES, *label_losses.LABEL_LOSSES)}
    cases["weighted"] = ("binary_crossentropy", weighted, counts)
    cases["weighted focal"] = ("focal", {"class_weights": "effective_number"}, counts)
    found = {}
    for case, (name, options, known) in cases.items():
        given = (pixels, others) if name in losses.LOSSES else (truth, logits.astype("f4"))
        value = losses.get(name, options, known)(*map(ops.convert_to_tensor, given))
        found[f"losses/{case}"] = ops.convert_to_numpy(value)
    return found


def train_in_parts(
    parts: int, precision: str, optimizer_name: str = "adam", *, xla: bool = False
) -> np.ndarray:
    """All weights after three steps, with clipping, an average and a rate that is lowered."""
    import keras

    from kerass2 import losses, models, schedules, steps
    from kerass2.averaging import WeightAverage
    from kerass2.optimizers import OPTIMIZERS
    from strategies.cluster import Cluster
    from strategies.single import SingleStrategy

    keras.utils.set_random_seed(3)
    model = models.build("s2x", filters=8, blocks=2, dtype=precision)
    model.get_layer("conv_first").kernel_regularizer = keras.regularizers.L2(0.1)
    factor = keras.Variable(1.0, trainable=False)
    make, defaults = OPTIMIZERS[optimizer_name]
    rate = schedules.Scaled(schedules.Constant(1e-3), factor)
    optimizer = make(rate, **{**defaults, "global_clipnorm": 0.1})
    if precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)
    average = WeightAverage(model, 0.5)
    average.reset()
    step = steps.build_step(
        SingleStrategy(Cluster("none")),
        model,
        optimizer,
        losses.get("l1"),
        12,
        xla=xla,
        parts=parts,
        average=average,
        rate_factor=factor,
    )
    random = np.random.default_rng(0)
    for number in range(3):
        factor.assign(1.0 if number < 2 else 0.0)
        inputs = {"gsd10": random.random((12, 8, 8, 4), "f4")}
        inputs["gsd20"] = random.random((12, 4, 4, 6), "f4")
        targets = {"superres_20m": random.random((12, 8, 8, 6), "f4")}
        before = np.concatenate([np.asarray(w).ravel() for w in model.weights])
        values = step({"inputs": inputs, "targets": targets, "patch_id": ["x"] * 12}, False)
        assert np.isfinite(values["loss"]) and values["stop"] == 0
    after = np.concatenate([np.asarray(w).ravel() for w in model.weights])
    if optimizer_name in ("adam", "nadam", "lamb"):  # a momentum would go on
        # A rate of 0 moves nothing: the factor is read in each step.
        np.testing.assert_array_equal(after, before)
    assert int(average.variables[0].value) == 3
    averaged = np.concatenate([np.asarray(v).ravel() for v in average.variables[1:]])
    assert 0 < np.abs(averaged - after).max() < 0.1
    return np.concatenate([after, averaged])


def main(folder: pathlib.Path, backend: str) -> None:
    out = folder / backend
    out.mkdir()
    for name, (experiment, data, weights, settings) in RUNS.items():
        further = [
            word for item in settings.items() for word in ("--set", "=".join(map(str, item)))
        ]
        start = folder / "models" / f"{weights}.keras"
        where = ["--data", folder / data, "--workdir", out / name, "--init", start, "--profile", 2]
        call("fit", experiment, *where, *FIT, *further)
    model = folder / "models" / "s2x.keras"
    call("evaluate", model, "--data", folder / "images", "-o", out / "evaluation.json", "--json")
    call("predict", model, folder / "granule", "-o", out / "sharp.tif", "--roi", "0,0,96,96")
    model = folder / "models" / "resnet.keras"
    call("evaluate", model, "--data", folder / "labels", "-o", out / "labels.json")
    outputs = predict_all(folder) | compute_losses()
    whole = train_in_parts(1, "float32")
    outputs["steps/adam"] = whole
    np.testing.assert_allclose(train_in_parts(3, "float32"), whole, atol=1e-5)
    # By torch.compile, which needs Python's headers; CI has them.
    headers = pathlib.Path(sysconfig.get_path("include"), "Python.h")
    if backend == "torch" and headers.is_file():
        np.testing.assert_allclose(train_in_parts(1, "float32", xla=True), whole, atol=1e-5)
    for name in ("nadam", "sgd", "lars", "lamb"):
        outputs[f"steps/{name}"] = train_in_parts(1, "float32", name)
    train_in_parts(2, "mixed_float16")
    train_in_parts(1, "mixed_bfloat16")
    np.savez(out / "outputs.npz", **outputs)


if __name__ == "__main__":
    import keras

    assert keras.backend.backend() == sys.argv[2] == os.environ["KERAS_BACKEND"]
    main(pathlib.Path(sys.argv[1]), sys.argv[2])
