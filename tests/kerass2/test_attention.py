"""The forms of the attention against float64 numpy and against the direct form."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from kerass2 import backend, models
from kerass2.models import attention, blocks, fused, layers, tiled_attention

FILTERS, KEYS = 6, 3
# bfloat16's errors need a width over which to average.
WIDE = {"filters": 64, "keys": 16}
# Relative to the largest value: the requirement.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}


@pytest.fixture
def tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of at most 10 pixels, for any block."""
    monkeypatch.setattr(tiled_attention, "TILE", 10)
    monkeypatch.setattr(attention, "GROUP", 8)
    monkeypatch.setattr(attention, "PATCHES_BYTES", 0)
    monkeypatch.setattr(attention, "RASTER_BYTES", 0)


def data(
    height: int, width: int, size: int = 2, filters: int = FILTERS, keys: int = KEYS
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """A stream, weights of f, g and h, and a gradient from above."""
    rng = np.random.default_rng(height * 100 + width)
    shapes = [(filters, keys), (keys,), (filters, keys), (keys,), (filters, filters), (filters,)]
    x, above = rng.normal(size=(2, size, height, width, filters)).astype(np.float32)
    # As at the start of training: products of about 1.
    weights = [rng.normal(0, filters**-0.5, shape).astype(np.float32) for shape in shapes]
    return x, weights, above


def by_numpy(x: np.ndarray, gamma: float, weights: list[np.ndarray], block: int) -> np.ndarray:
    """The formula, pixel by pixel in float64."""
    x, weights = x.astype(np.float64), [w.astype(np.float64) for w in weights]
    out = x.copy()
    for n in range(len(x)):
        for i in range(0, x.shape[1], block):
            for j in range(0, x.shape[2], block):
                part = np.s_[n, i : i + block, j : j + block]
                pixels = x[part].reshape(-1, FILTERS)
                f, g, h = (pixels @ weights[k] + weights[k + 1] for k in (0, 2, 4))
                scores = g @ f.T
                shares = np.exp(scores - scores.max(axis=1, keepdims=True))
                found = shares / shares.sum(axis=1, keepdims=True) @ h
                out[part] += gamma * found.reshape(x[part].shape)
    return out


def gradients(
    form: Any, x: Any, weights: list[Any], above: Any, block: int | None, dtype: str
) -> tuple[Any, list[Any]]:
    """Value, and gradients of x, gamma and the weights."""
    x, gamma, *weights = (tf.constant(value, tf.float32) for value in (x, 0.7, *weights))
    with tf.GradientTape() as tape:
        tape.watch([x, gamma, *weights])
        out = form(x, gamma, weights, blocks.divide(x, block), dtype)
        loss = tf.reduce_sum(out * above)
    return out, tape.gradient(loss, [x, gamma, *weights])


def check_close(found: Any, expected: Any, tolerance: float) -> None:
    """Within a share of the largest value."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (4, 5), (6, 7), (9, 5), (11, 13)])
@pytest.mark.parametrize("block", [4, 20])
@pytest.mark.parametrize("form", [attention.direct, attention.grouped, tiled_attention.attend])
def test_values_in_numpy(tiled: None, form: Any, size: tuple[int, int], block: int) -> None:
    x, weights, _ = data(*size)
    found = form(x, np.float32(0.7), weights, blocks.divide(x, block), "float32")
    check_close(found, by_numpy(x, 0.7, weights, block), 1e-5)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 13),
    st.integers(1, 13),
    st.one_of(st.none(), st.integers(1, 14)),
    st.sampled_from([8, 10, 33]),
    st.sampled_from([attention.grouped, tiled_attention.attend]),
)
def test_all_forms_agree(
    height: int, width: int, block: int | None, tile: int, form: Callable[..., Any]
) -> None:
    """Tiles of large blocks, groups of small ones, and groups that the last one overlaps."""
    x, weights, above = data(height, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled_attention, "TILE", tile)
        patch.setattr(attention, "GROUP", tile)
        out, found = gradients(form, x, weights, above, block, "float32")
    expected_out, expected = gradients(attention.direct, x, weights, above, block, "float32")
    check_close(out, expected_out, 1e-5)
    scale = max(np.abs(value).max() for value in expected)
    for a, b in zip(found, expected, strict=True):
        # The bias of f has no true gradient (softmax is shift-invariant), nor have f and g where a
        # block is one pixel: what they hold is noise.
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(b).max(), 0.1 * scale))


@pytest.mark.parametrize("form", [attention.grouped, tiled_attention.attend])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gradients_of_all_forms(tiled: None, dtype: str, form: Callable[..., Any]) -> None:
    """Without that of the bias of f, which is noise, see above."""
    x, weights, above = data(12, 11, **WIDE)
    out, found = gradients(form, x, weights, above, None, dtype)
    expected_out, expected = gradients(attention.direct, x, weights, above, None, dtype)
    check_close(out, expected_out, TOLERANCE[dtype])
    _, exact = gradients(attention.direct, x, weights, above, None, "float32")
    for number, (a, b, true) in enumerate(zip(found, expected, exact, strict=True)):
        if number == 3:
            continue
        ours, direct = (np.linalg.norm(np.asarray(v) - true) / np.linalg.norm(true) for v in (a, b))
        # In bfloat16 the direct form is off too, of small gradients by more than a percent.
        assert ours < max(TOLERANCE[dtype], 1.5 * direct), (number, ours, direct)


def count_softmaxes(batch: int, size: int, dtype: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often the graph of a value and its gradients computes maps."""
    calls = []
    softmax = attention.ops.softmax

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return softmax(*args, **kwargs)

    monkeypatch.setattr(attention.ops, "softmax", counted)
    x = np.zeros((batch, size, size, FILTERS), np.float32)
    _, weights, _ = data(1, 1)
    step = tf.function(
        lambda: gradients(attention.grouped, x, weights, x, None, dtype), autograph=False
    )
    step.get_concrete_function()
    return len(calls)


@pytest.mark.parametrize(
    ("batch", "size", "dtype", "expected"),
    [
        (128, 32, "bfloat16", 1),
        (129, 32, "bfloat16", 2),
        (4, 32, "float32", 2),
        (4, 36, "bfloat16", 2),
        (4, 30, "bfloat16", 1),
    ],
)
def test_which_maps_are_kept(
    monkeypatch: pytest.MonkeyPatch, batch: int, size: int, dtype: str, expected: int
) -> None:
    """256 MiB of bfloat16 maps of whole blocks; others are computed once more for the gradients."""
    assert count_softmaxes(batch, size, dtype, monkeypatch) == expected


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("block", [None, 20])
def test_kept_maps_give_the_same_gradients(
    monkeypatch: pytest.MonkeyPatch, block: int | None, compiled: bool
) -> None:
    """As maps computed again, block by block; blocks that the edge cuts, and under `run.xla`."""
    monkeypatch.setattr(attention, "GROUP", 400)
    monkeypatch.setattr(fused, "LEAST_SIZE", 0)
    x, weights, above = data(22, 20, **WIDE)

    def build(limit: int) -> Any:
        monkeypatch.setattr(attention, "KEPT_BYTES", limit)
        step = tf.function(
            lambda: gradients(attention.grouped, x, weights, above, block, "bfloat16"),
            autograph=False,
            jit_compile=compiled,
        )
        step.get_concrete_function()
        return step()

    (out, found), (expected_out, expected) = build(2**28), build(0)
    np.testing.assert_array_equal(out, expected_out)
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        if number != 3:  # noise, see above
            assert np.linalg.norm(a - b) < 1e-2 * np.linalg.norm(b), number


def test_kept_maps_serve_a_persistent_tape_twice() -> None:
    values = [tf.random.stateless_normal((3, 30, 30, FILTERS), (0, n)) for n in range(2)]
    _, weights, _ = data(1, 1)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(values[0])
        arguments = (blocks.divide(values[0], None), "bfloat16")
        out = attention.grouped(values[0], np.float32(0.7), weights, *arguments)
        loss = tf.reduce_sum(out * values[1])
    first, second = (tape.gradient(loss, values[0]) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("form", [attention.grouped, tiled_attention.attend])
def test_gradients_by_differences(tiled: None, form: Callable[..., Any]) -> None:
    """Along random directions, against the float64 formula."""
    x, weights, above = data(5, 6, size=1)
    _, found = gradients(form, x, weights, above, 4, "float32")
    rng, step = np.random.default_rng(9), 1e-5
    for _ in range(5):
        move = [rng.normal(size=np.shape(value)) for value in (x, 0.7, *weights)]

        def loss(sign: int, move: list[Any] = move) -> float:
            moved = [v + sign * step * m for v, m in zip((x, 0.7, *weights), move, strict=True)]
            return float((by_numpy(moved[0], moved[1], moved[2:], 4) * above).sum())

        slope = (loss(1) - loss(-1)) / (2 * step)
        along = sum(float((np.asarray(g) * m).sum()) for g, m in zip(found, move, strict=True))
        assert along == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("limit", [0, 20 * 20 * 2 * 4])
def test_form_is_chosen_at_run_time(
    monkeypatch: pytest.MonkeyPatch, limit: int, training: bool
) -> None:
    """In a graph whose height and width are unknown; the larger size is above all limits."""
    monkeypatch.setattr(tiled_attention, "TILE", 20)
    monkeypatch.setattr(attention, "PATCHES_BYTES", limit)
    layer = layers.SelfAttention(KEYS)
    layer.build((None, None, None, FILTERS))
    layer.gamma.assign(0.7)

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, FILTERS))] * 2, autograph=False)
    def step(x: Any, above: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x, training=training) * above)
        return tape.gradient(loss, [x, *(w.value for w in layer.trainable_variables)])

    infer = tf.function(layer, input_signature=[tf.TensorSpec((None, None, None, FILTERS))])
    weights = [np.asarray(w) for w in (layer.f.kernel, layer.f.bias, layer.g.kernel)]
    weights += [np.asarray(w) for w in (layer.g.bias, layer.h.kernel, layer.h.bias)]
    for size in [(4, 5), (7, 9)]:
        x, _, above = data(*size)
        value, expected = gradients(attention.direct, x, weights, above, None, "float32")
        check_close(infer(x), value, 1e-5)
        found = step(x, above)
        check_close(found[0], expected[0], 1e-5)
        for gradient, weight in zip(found[1:], layer.trainable_variables, strict=True):
            if weight is layer.gamma:
                np.testing.assert_allclose(gradient, expected[1], rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize(
    ("shape", "block", "processors", "expected"),
    [
        ((64, 32, 32), None, True, "grouped"),
        ((64, 18, 18), None, True, "direct"),
        ((256, 32, 32), None, False, "direct"),
        ((257, 32, 32), None, False, "grouped"),
        ((1, 48, 48), None, True, "grouped"),
        ((1, 48, 48), None, False, "direct"),
        ((1, 49, 48), None, True, "tiled"),
        ((1, 49, 48), None, False, "tiled"),
        ((1, 96, 96), 32, False, "direct"),
        ((1, 512, 512), 32, False, "grouped"),
        ((1, 512, 512), 32, True, "grouped"),
        ((1, 512, 512), 8, True, "direct"),
    ],
)
def test_which_form_is_taken(
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, int, int],
    block: int | None,
    processors: bool,
    expected: str,
) -> None:
    """Tiles of 48 px; where nothing else is faster 1 GiB of maps of examples, 64 MiB of blocks."""
    monkeypatch.setattr(backend, "is_on_processors", lambda: processors)
    monkeypatch.setattr(attention, "direct", lambda *rest: "direct")
    monkeypatch.setattr(attention, "grouped", lambda *rest: "grouped")
    monkeypatch.setattr(tiled_attention, "attend", lambda *rest: "tiled")
    x = np.zeros((*shape, 1), np.float32)
    found = attention.attend(x, 0.0, [], blocks.divide(x, block), "float32")
    assert found == expected


def test_training_alone_has_a_gradient_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow never drops one: a long process that predicts would keep every graph."""
    monkeypatch.setattr(attention, "grouped", lambda *rest: "training")
    monkeypatch.setattr(attention, "grouped_without_gradient", lambda *rest: "prediction")
    x = np.zeros((2, 32, 32, 1), np.float32)
    for training in (True, False):
        found = attention.attend(x, 0.0, [], blocks.divide(x, None), "float32", training)
        assert found == ("training" if training else "prediction")


def test_groups_under_xla(tiled: None) -> None:
    """What `run.xla` compiles: groups of one block, in loops."""
    x, weights, above = data(8, 4)
    step = tf.function(
        lambda: gradients(attention.grouped, x, weights, above, 2, "float32"), jit_compile=True
    )
    out, found = step()
    expected_out, expected = gradients(attention.direct, x, weights, above, 2, "float32")
    check_close(out, expected_out, 1e-5)
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        if number != 3:
            check_close(a, b, 1e-4)


def test_in_a_strategy(tiled: None) -> None:
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        model = models.build("s2x", filters=FILTERS, blocks=2, block=6)
    x = {"gsd10": np.ones((1, 12, 8, 4), np.float32), "gsd20": np.ones((1, 6, 4, 6), np.float32)}

    def replica(inputs: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(inputs, training=True)["superres_20m"] ** 2)
        return tape.gradient(loss, [w.value for w in model.trainable_variables])

    step = tf.function(lambda inputs: strategy.run(replica, (inputs,)), autograph=False)
    for gradient in step(x):
        assert np.isfinite(gradient).all()


def test_models_saved_before_blocks_still_load(tmp_path: pathlib.Path) -> None:
    """Their files name neither block nor kernel, and layers that lay in one module."""
    model = models.build("s2x", filters=8, blocks=2)
    model.get_layer("attention").gamma.assign(0.3)
    model.save(tmp_path / "new.keras")
    with zipfile.ZipFile(tmp_path / "new.keras") as new:
        config = json.loads(new.read("config.json"))
        for layer in config["config"]["layers"]:
            layer["config"].pop("block", None)
            layer["config"].pop("kernel", None)
        with zipfile.ZipFile(tmp_path / "old.keras", "w") as old:
            old.writestr("config.json", json.dumps(config))
            for name in ("metadata.json", "model.weights.h5"):
                old.writestr(name, new.read(name))
    again = models.load_model(tmp_path / "old.keras")
    x = {"gsd10": np.full((1, 8, 8, 4), 0.1), "gsd20": np.full((1, 4, 4, 6), 0.2)}
    np.testing.assert_array_equal(again(x)["superres_20m"], model(x)["superres_20m"])


MEMORY = """
import sys, tensorflow as tf
from kerass2.models import layers

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024

layer = layers.SelfAttention(16)
layer.build((None, None, None, 32))
layer.gamma.assign(0.5)
weights = [weight.value for weight in layer.trainable_variables]

@tf.function(autograph=False)
def step(x):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x, training=True) ** 2)
    return tape.gradient(loss, weights)

step(tf.ones((1, 50, 50, 32)))
before = peak()
step(tf.random.stateless_normal((6, 80, 80, 32), (1, 2)))
print(peak() - before)
"""


def test_memory_grows_with_the_pixels() -> None:
    """Six blocks of 6400 px: their maps alone are 983 MB."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout) < 250


OTHER_BACKEND = """
import sys, keras, numpy as np
from kerass2.models import attention, blocks, tiled_attention
_, path, dtype, form, backend = sys.argv
assert keras.backend.backend() == backend
if form == "tiled":
    tiled_attention.TILE = 10
if form == "grouped":  # a block of 81 px after the other
    tiled_attention.TILE = 100
    attention.PATCHES_BYTES = attention.RASTER_BYTES = 0
with np.load(path) as file:
    values = [file[f"v{i}"] for i in range(8)]
    above, expected = file["above"], [file[f"g{i}"] for i in range(8)]
    out, limits = file["out"], file["limits"]

def loss(x, gamma, *weights):
    found = attention.attend(x, gamma, weights, blocks.divide(x, 9), dtype)
    return keras.ops.sum(found * above), found

if backend == "jax":
    import jax
    call = jax.jit(jax.value_and_grad(loss, argnums=tuple(range(8)), has_aux=True))
    (_, found), gradients = call(*values)
else:
    import torch
    values = [torch.tensor(value, requires_grad=True) for value in values]
    above = torch.tensor(above)
    total, found = loss(*values)
    total.backward()
    gradients = [value.grad for value in values]
pairs = zip([found, *gradients], [out, *expected], limits, strict=True)
for number, (a, b, limit) in enumerate(pairs):
    a = keras.ops.convert_to_numpy(a)
    if dtype == "float32":
        assert np.abs(a - b).max() < 1e-5 * max(np.abs(b).max(), 10), (a, b)
    elif number != 4:  # the gradient of the bias of f is noise
        assert np.linalg.norm(a - b) < limit * np.linalg.norm(b), number
"""


@pytest.mark.backends
@pytest.mark.parametrize("backend", ["jax", "torch"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("form", ["direct", "grouped", "tiled"])
def test_other_backends_agree(
    tmp_path: pathlib.Path, backend: str, dtype: str, form: str, run_on_backend: Callable[..., None]
) -> None:
    """In bfloat16 as in test_gradients_of_all_forms: the direct form's own errors count."""
    x, weights, above = data(12, 11, **(WIDE if dtype == "bfloat16" else {}))
    out, found = gradients(attention.direct, x, weights, above, 9, "float32")
    low, lows = gradients(attention.direct, x, weights, above, 9, dtype)
    limits = [
        max(TOLERANCE[dtype], 1.5 * np.linalg.norm(a - b) / np.linalg.norm(b))
        for a, b in zip([low, *lows], [out, *found], strict=True)
    ]
    limits[2] = 0.1  # gamma's gradient, one number, a sum that cancels: direct is off by 2 to 5 %
    arrays = {f"v{i}": value for i, value in enumerate((x, np.float32(0.7), *weights))}
    arrays.update({f"g{i}": np.asarray(value) for i, value in enumerate(found)})
    np.savez(tmp_path / "data.npz", above=above, out=out, limits=limits, **arrays)
    run_on_backend(backend, OTHER_BACKEND, tmp_path / "data.npz", dtype, form)
