from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from typing import Any

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from data_pipelines.spec import DataError, DatasetSpec, TensorSpec
from kerass2 import config, models
from kerass2.config import ConfigError
from kerass2.models import layers

BANDS = {
    "gsd10": ("B02", "B03", "B04", "B08"),
    "gsd20": ("B05", "B06", "B07", "B8A", "B11", "B12"),
    "gsd60": ("B01", "B09"),
}
RATIOS = {"gsd10": 1, "gsd20": 2, "gsd60": 6}
NETWORKS = ("dsen2", "vdsen2", "s2x", "s6x")
INTERPOLATIONS = {"bicubic": cv2.INTER_CUBIC, "bilinear": cv2.INTER_LINEAR}
POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")


def batch(
    height: int = 16, width: int = 16, keys: tuple[str, ...] = ("gsd10", "gsd20"), size: int = 2
) -> dict[str, np.ndarray]:
    """Reflectances."""
    rng = np.random.default_rng(0)
    return {
        key: rng.uniform(
            0.02, 0.4, (size, height // RATIOS[key], width // RATIOS[key], len(BANDS[key]))
        ).astype(np.float32)
        for key in keys
    }


def small(name: str = "s2x", **options: Any) -> keras.Model:
    """A quick model whose attention takes part."""
    model = models.build(name, **{"task": "superres_20m", "filters": 8, "blocks": 2, **options})
    for variable in model.trainable_variables:
        if variable.name == "gamma":
            variable.assign(0.1)
    return model


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("dsen2", {}, 1_789_574),
        ("dsen2", {"task": "superres_60m"}, 1_787_266),
        ("dsen2", {"filters": 256, "blocks": 32}, 37_802_246),
        ("dsen2", {"filters": 256, "blocks": 32, "task": "superres_60m"}, 37_797_634),
        # DSen2 and the attention: f and g of 128 x 16 + 16, h of 128 x 128 + 128, gamma.
        ("s2x", {}, 1_789_574 + 20_641),
        ("s2x", {"attention": False}, 1_789_574),
        ("vdsen2", {}, 37_802_246),
        ("vdsen2", {"task": "superres_60m"}, 37_797_634),
        ("s6x", {}, 1_787_266 + 20_641),
        ("s6x", {"mean_shift": False, "attention_at": "end"}, 1_787_266 + 20_641),
        # A convolution of 9 x 4 and one of 9 x 6 bands with biases, then 1 x 1 of 256, for 9 x 10.
        ("s2x", {"fusion": "branches"}, 1_789_574 + 20_641 + 256 + 256 * 128),
        ("bicubic", {}, 0),
    ],
)
def test_number_of_parameters(name: str, options: dict[str, Any], count: int) -> None:
    assert models.build(name, **options).count_params() == count


@pytest.mark.parametrize("name", ["dsen2", "s2x", "s6x"])
def test_64_filters_are_compact(name: str) -> None:
    assert models.build(name, filters=64).count_params() <= 500_000


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("compiled", [False, True])
def test_any_size_in_float32_out(name: str, compiled: bool) -> None:
    model = small(name)
    keys = {key: tf.TensorSpec((None, None, None, len(BANDS[key]))) for key in ("gsd10", "gsd20")}
    call: Callable[..., Any] = tf.function(model, input_signature=[keys]) if compiled else model
    for size in [(16, 16), (8, 24), (10, 6)]:
        found = call(batch(*size))
        assert list(found) == ["superres_20m"]
        assert tuple(found["superres_20m"].shape) == (2, *size, 6)
        assert found["superres_20m"].dtype == tf.float32


def test_60m_takes_three_inputs() -> None:
    found = small("dsen2", task="superres_60m")(batch(24, 12, ("gsd10", "gsd20", "gsd60")))
    assert {key: tuple(value.shape) for key, value in found.items()} == {
        "superres_60m": (2, 24, 12, 2)
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_without_its_convolutions_it_is_bilinear(name: str) -> None:
    model = small(name)
    model.get_layer("conv_last").set_weights([np.zeros((3, 3, 8, 6)), np.zeros(6)])
    inputs = batch()
    expected = tf.image.resize(inputs["gsd20"], (16, 16), "bilinear", antialias=False)
    np.testing.assert_allclose(model(inputs)["superres_20m"], expected, atol=1e-6)


def test_s2x_ignores_brightness_of_a_band() -> None:
    """Mean-shift: a constant on a 10 m band changes nothing, on a 20 m band moves its output."""
    model, inputs = small(), batch()
    before = np.asarray(model(inputs)["superres_20m"])
    shift = np.linspace(0, 0.2, 6).astype(np.float32)
    moved = {"gsd10": inputs["gsd10"] + np.float32(0.1), "gsd20": inputs["gsd20"] + shift}
    np.testing.assert_allclose(model(moved)["superres_20m"], before + shift, atol=2e-5)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", POLICIES)
def test_what_stays_float32(name: str, dtype: str) -> None:
    model = small(name, dtype=dtype)
    computed = {layer.name: layer.compute_dtype for layer in model.layers}
    low = {key for key, value in computed.items() if value != "float32"}
    inner = {key for key in computed if key.startswith("block") and "_conv" in key} | {
        "attention"
    } & set(computed)
    assert low == (set() if dtype == "float32" else inner)
    assert {variable.dtype for variable in model.variables} == {"float32"}
    stream = [
        layer.output.dtype for layer in model.layers if not layer.name.endswith(("conv1", "conv2"))
    ]
    assert set(stream) == {"float32"}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", POLICIES)
def test_trains_in_every_precision(name: str, dtype: str) -> None:
    keras.utils.set_random_seed(0)
    model = small(name, dtype=dtype, blocks=1)
    inputs = batch()
    target = tf.image.resize(inputs["gsd20"], (16, 16), "bicubic") + 0.05 * inputs["gsd10"][..., :1]
    optimizer = keras.optimizers.Adam(3e-3)
    if dtype == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=1024.0)

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.abs(model(inputs, training=True)["superres_20m"] - target))
            scaled = optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, model.trainable_variables)
        for gradient in gradients:
            tf.debugging.assert_all_finite(gradient, "gradient")
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    losses = [float(step()) for _ in range(25)]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("dtype", POLICIES[1:])
def test_low_precision_stays_near_float32(dtype: str) -> None:
    low, full = small(dtype=dtype), small()
    low.set_weights(full.get_weights())
    inputs = batch()
    difference = np.asarray(low(inputs)["superres_20m"]) - np.asarray(full(inputs)["superres_20m"])
    assert 0 < np.abs(difference).max() < 2e-3


@pytest.mark.parametrize("dtype", POLICIES)
@pytest.mark.parametrize("name", NETWORKS)
def test_saved_and_read_again(tmp_path: pathlib.Path, name: str, dtype: str) -> None:
    model, inputs = small(name, dtype=dtype), batch()
    model.save(tmp_path / "model.keras")
    again = models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(inputs)["superres_20m"], model(inputs)["superres_20m"])
    assert models.describe(again) == models.describe(model)


@pytest.mark.parametrize("name", INTERPOLATIONS)
@pytest.mark.parametrize("task", ["superres_20m", "superres_60m"])
def test_interpolations_are_those_of_opencv(name: str, task: str, tmp_path: pathlib.Path) -> None:
    models.build(name, task=task).save(tmp_path / "model.keras")
    model = models.load_model(tmp_path / "model.keras")
    keys = ("gsd10", "gsd20", "gsd60")[: 2 if task == "superres_20m" else 3]
    inputs = batch(24, 36, keys)
    found = np.asarray(model(inputs)[task])
    for image, lowres in zip(found, inputs[keys[-1]], strict=True):
        expected = cv2.resize(lowres, (36, 24), interpolation=INTERPOLATIONS[name])
        np.testing.assert_allclose(image, expected.reshape(image.shape), atol=1e-6)
    described = models.describe(model)
    assert (described["task"], tuple(described["inputs"]), described["block"]) == (task, keys, None)


def test_interpolations_fit_the_data_of_networks() -> None:
    models.check_fits(models.build("bicubic"), spec(), "DIR")


@pytest.mark.parametrize(
    "options",
    [
        {"attention": False},
        {"mean_shift": False},
        {"attention_at": "end"},
        {"fusion": "branches"},
        {"fusion_activation": "relu", "mean_shift": False},
    ],
)
def test_ablations_are_saved(tmp_path: pathlib.Path, options: dict[str, Any]) -> None:
    model, inputs = small("s6x", task="superres_60m", block=12, **options), batch(24, 12, BANDS)
    names = [layer.name for layer in model.layers]
    assert options.get("mean_shift", True) == any(name.startswith("mean_shift") for name in names)
    assert options.get("attention", True) == ("attention" in names)
    place = "block2_sum" if options.get("attention_at") == "end" else "block1_sum"
    assert "attention" not in names or names[names.index("attention") - 1] == place
    model.save(tmp_path / "model.keras")
    again = models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(inputs)["superres_60m"], model(inputs)["superres_60m"])


@pytest.mark.parametrize(
    "setting", ["attention=false", "attention_at=end", "mean_shift=false", "fusion=branches"]
)
@pytest.mark.parametrize("name", ["superres_20m", "superres_60m_compact"])
def test_ablations_by_configuration(name: str, setting: str) -> None:
    plain = config.load(name)
    changed = config.override(plain, [f"model.options.{setting}"])
    one, other = (models.build(each.model.name, **each.model.options) for each in (plain, changed))
    assert [layer.name for layer in one.layers] != [layer.name for layer in other.layers]


def test_s2x_without_mean_shift_holds_dsen2() -> None:
    """The stated ablation: while gamma is 0, DSen2's weights give DSen2's output."""
    dsen2 = small("dsen2")
    s2x = models.build("s2x", filters=8, blocks=2, mean_shift=False, fusion_activation="relu")
    for layer in dsen2.layers:
        s2x.get_layer(layer.name).set_weights(layer.get_weights())
    inputs = batch()
    expected = np.asarray(dsen2(inputs)["superres_20m"])
    np.testing.assert_allclose(s2x(inputs)["superres_20m"], expected, atol=1e-6)


OTHER_BACKEND = """
import sys, keras, numpy as np
from keras import ops
from kerass2 import models
model = models.load_model(sys.argv[1])
assert keras.backend.backend() == sys.argv[2]
with np.load(sys.argv[3]) as file:
    inputs = {key: file[key] for key in ("gsd10", "gsd20")}
    found = model.predict(inputs, verbose=0)["superres_20m"]
    assert np.abs(found - file["expected"]).max() < 2e-5, np.abs(found - file["expected"]).max()
    model.compile(keras.optimizers.Adam(1e-3), loss={"superres_20m": "mae"})
    before = model.evaluate(inputs, {"superres_20m": 0.9 * found}, verbose=0)
    model.fit(inputs, {"superres_20m": 0.9 * found}, epochs=10, verbose=0)
    assert model.evaluate(inputs, {"superres_20m": 0.9 * found}, verbose=0) < before
"""


@pytest.mark.backends
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_load_predict_and_train(tmp_path: pathlib.Path, backend: str) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed (pip install kerass2[{backend}])")
    model, inputs = small(), batch()
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", expected=model(inputs)["superres_20m"], **inputs)
    arguments = [str(tmp_path / "model.keras"), backend, str(tmp_path / "data.npz")]
    done = subprocess.run(
        [sys.executable, "-c", OTHER_BACKEND, *arguments],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("s3x", {}, "unknown model 's3x'; there are: bicubic, bilinear, dsen2, resnet"),
        (
            "dsen2",
            {"attention": True},
            "'dsen2' has no option attention; there are: task, filters, blocks, dtype",
        ),
        ("s2x", {"filters": "many"}, "filters = 'many' is str, int is needed"),
        ("s2x", {"filters": 0}, "filters = 0, at least 1"),
        ("s2x", {"blocks": True}, "blocks = True is bool"),
        ("s2x", {"dtype": "bfloat16"}, "there are: float32, mixed_bfloat16, mixed_float16"),
        ("s2x", {"attention_at": "start"}, "attention_at = 'start'; there are: middle, end"),
        ("s6x", {"fusion": "sum"}, "fusion = 'sum'; there are: concatenate, branches"),
        ("s2x", {"fusion_activation": "tanh"}, "'tanh'; there are: linear, relu"),
        ("bicubic", {"filters": 8}, "'bicubic' has no option filters; there are: task"),
        ("bilinear", {"task": "superres_5m"}, "unknown task 'superres_5m'"),
        (
            "s2x",
            {"task": "superres_5m"},
            "unknown task 'superres_5m'; there are: superres_20m, superres_60m",
        ),
    ],
)
def test_what_cannot_be_built(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        models.build(name, **options)


def test_what_cannot_be_loaded(tmp_path: pathlib.Path) -> None:
    (tmp_path / "text.keras").write_text("no model")
    with zipfile.ZipFile(tmp_path / "zip.keras", "w") as archive:
        archive.writestr("config.json", json.dumps({"class_name": "Nothing"}))
    for name, message in {
        "missing.keras": "no such file",
        "text.keras": "not a readable Keras model",
        "zip.keras": "not a readable Keras model",
        "": "no such file",
    }.items():
        with pytest.raises(DataError, match=f"{tmp_path / name}: {message}"):
            models.load_model(tmp_path / name)


def test_code_in_a_file_is_not_run(tmp_path: pathlib.Path) -> None:
    inputs = keras.Input((2,))
    keras.Model(inputs, keras.layers.Lambda(lambda x: 2 * x)(inputs)).save(tmp_path / "code.keras")
    with pytest.raises(DataError, match=r"code\.keras"):
        models.load_model(tmp_path / "code.keras")


def test_describe() -> None:
    assert models.describe(small("dsen2", task="superres_60m")) == {
        "model": "dsen2",
        "task": "superres_60m",
        "inputs": BANDS,
        "target": "superres_60m",
        "target_bands": ("B01", "B09"),
        "gsd": {"gsd10": 10.0, "gsd20": 20.0, "gsd60": 60.0},
        "scale": 6,
        "reflectance_scale": 0.2,
        "block": None,
    }
    found = models.describe(small())
    assert (found["task"], list(found["inputs"]), found["scale"]) == (
        "superres_20m",
        ["gsd10", "gsd20"],
        2,
    )


def test_describe_refuses_a_model_without_bands() -> None:
    inputs = keras.Input((2,))
    with pytest.raises(DataError, match="does not tell its bands"):
        models.describe(keras.Model(inputs, inputs))


def spec(task: str = "superres_20m", **changes: Any) -> DatasetSpec:
    """A data set of 32 px patches; a change replaces an array's bands or size."""

    def tensor(key: str, default: str, size: int) -> TensorSpec:
        bands, pixels = changes.get(key, (BANDS[default], size))
        return TensorSpec((pixels, pixels, len(bands)), tuple(bands), 20.0)

    inputs = {"gsd10": tensor("gsd10", "gsd10", 32), "gsd20": tensor("gsd20", "gsd20", 16)}
    return DatasetSpec(task, inputs, {task: tensor(task, "gsd20", 32)})


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (spec("superres_60m"), "its task is superres_60m; it has no superres_20m"),
        (spec(gsd10=(("B04", "B03", "B02", "B08"), 32)), "its gsd10 has B04,B03,B02,B08"),
        (spec(superres_20m=(("B05",), 32)), "its superres_20m has B05"),
        (
            spec(gsd20=(BANDS["gsd20"], 15)),
            "gsd20 of 15 x 15 px times 2 is not its target's 32 x 32",
        ),
    ],
)
def test_data_that_do_not_fit(found: DatasetSpec, message: str) -> None:
    with pytest.raises(DataError, match=f"DIR does not fit model s2x: .*{message}") as caught:
        models.check_fits(small(), found, "DIR")
    assert "gsd10 B02,B03,B04,B08" in str(caught.value)  # what the model needs
    assert found.describe() in str(caught.value)


def test_data_that_fit() -> None:
    models.check_fits(small(), spec(), "DIR")


def test_wrong_number_of_bands() -> None:
    with pytest.raises(ValueError, match="gsd20: 5 bands received, 6 needed"):
        layers.ScaleReflectance("gsd20", BANDS["gsd20"], 20)(keras.Input((4, 4, 5)))


def test_scaling_and_back() -> None:
    x = batch()["gsd10"]
    scaled = layers.ScaleReflectance("gsd10", BANDS["gsd10"], 10)(x)
    np.testing.assert_allclose(scaled, 10_000 * x / 2000, rtol=1e-6)
    back = layers.ScaleReflectance("gsd10", BANDS["gsd10"], 10, inverse=True)(scaled)
    np.testing.assert_allclose(back, x, rtol=1e-6)


def test_attention_by_its_formula() -> None:
    layer = layers.SelfAttention(3)
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)
    np.testing.assert_array_equal(layer(x), x)  # gamma starts at 0
    layer.gamma.assign(0.7)
    pixels = x.reshape(2, 20, 6).astype(np.float64)
    f, g, h = (
        pixels @ np.asarray(d.kernel) + np.asarray(d.bias) for d in (layer.f, layer.g, layer.h)
    )
    expected = np.empty_like(pixels)
    for n in range(2):
        for j in range(20):
            scores = np.exp([f[n, i] @ g[n, j] for i in range(20)])
            expected[n, j] = pixels[n, j] + 0.7 * (scores / scores.sum()) @ h[n]
    np.testing.assert_allclose(layer(x), expected.reshape(x.shape), rtol=1e-4, atol=1e-5)


def test_attention_keeps_a_float32_stream() -> None:
    layer = layers.SelfAttention(4, dtype="mixed_bfloat16")
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 8)).astype(np.float32)
    np.testing.assert_array_equal(layer(x), x)  # not rounded to bfloat16 on the way
    assert layer(x).dtype == tf.float32
    assert layer(tf.cast(x, tf.bfloat16)).dtype == tf.bfloat16


def normalised(axis_channels: int = 5) -> tuple[Any, Any]:
    """Our layer and Keras' with the same, uneven weights."""
    pair = (
        layers.SyncBatchNormalization(momentum=0.9),
        keras.layers.BatchNormalization(momentum=0.9),
    )
    rng = np.random.default_rng(3)
    weights = [rng.uniform(0.5, 1.5, axis_channels) for _ in range(4)]
    for layer in pair:
        layer.build((None, None, None, axis_channels))
        layer.set_weights(weights)
    return pair


# Means up to 10 times the standard deviation.
PIXELS = (
    np.random.default_rng(4).normal(size=(12, 6, 7, 5)) * [1, 2, 0.5, 1, 3] + [0, 5, 5, -10, 1]
).astype(np.float32)


@pytest.mark.parametrize("synchronised", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_of_one_process_is_keras(training: bool, synchronised: bool) -> None:
    ours, theirs = normalised()
    if synchronised:
        ours.sum_over_ranks = list
    np.testing.assert_allclose(
        ours(PIXELS, training=training), theirs(PIXELS, training=training), atol=2e-6
    )
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_batch_norm_over_ranks_is_keras_on_the_whole_batch() -> None:
    """One rank holds 5 of 12 examples; the other's sums come through sum_over_ranks."""
    ours, theirs = normalised()
    mine, other = PIXELS[:5], PIXELS[5:].astype(np.float64)
    weight = np.random.default_rng(5).normal(size=mine.shape).astype(np.float32)

    def sum_over_ranks(values: list[Any]) -> list[Any]:
        axes = (0, 1, 2)
        others = [np.array([other[..., 0].size], np.float64), other.sum(axes), (other**2).sum(axes)]
        assert [value.shape.as_list() for value in values] == [[1], [5], [5]]
        return [value + more for value, more in zip(values, others, strict=True)]

    ours.sum_over_ranks = sum_over_ranks
    x, whole = tf.Variable(mine), tf.Variable(PIXELS)
    with tf.GradientTape() as tape:
        found = ours(x, training=True)
        loss = tf.reduce_sum(weight * found)
    with tf.GradientTape() as whole_tape:
        expected = theirs(whole, training=True)[:5]
        whole_loss = tf.reduce_sum(weight * expected)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(
        tape.gradient(loss, x), whole_tape.gradient(whole_loss, whole)[:5], atol=2e-5
    )
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_synchronise_statistics_reaches_nested_models_and_is_not_saved(
    tmp_path: pathlib.Path,
) -> None:
    inner_input = keras.Input((None, None, 3))
    inner = keras.Model(
        inner_input, layers.SyncBatchNormalization(name="inner")(inner_input), name="nested"
    )
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, layers.SyncBatchNormalization(name="outer")(inner(inputs)))

    def refuse(values: list[Any]) -> list[Any]:
        raise RuntimeError("asked for a sum over ranks")

    assert layers.synchronise_statistics(model, refuse) == 2
    with pytest.raises(RuntimeError, match="asked for"):
        model(np.zeros((1, 2, 2, 3), np.float32), training=True)
    model(np.zeros((1, 2, 2, 3), np.float32), training=False)
    model.save(tmp_path / "model.keras")
    models.load_model(tmp_path / "model.keras")(np.zeros((1, 2, 2, 3), np.float32), training=True)
    assert layers.synchronise_statistics(small(), refuse) == 0


def test_batch_norm_refuses_other_axes() -> None:
    with pytest.raises(ValueError, match="last axis"):
        layers.SyncBatchNormalization(axis=1)
