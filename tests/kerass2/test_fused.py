"""Sums and casts of a training step in one pass: values, gradients, weights, and where."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerass2 import backend, losses, models
from kerass2.models import fused
from kerass2.models.layers import ResidualSum
from kerass2.steps import build_step
from strategies.cluster import Cluster
from strategies.single import SingleStrategy
from tests.kerass2.window_cases import untrained

BATCH = 4
LOW = "mixed_bfloat16"


def draw(seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inputs of a batch, and what is to come out."""
    rng = np.random.default_rng(seed)
    sizes = {"gsd10": (BATCH, 12, 12, 4), "gsd20": (BATCH, 6, 6, 6)}
    inputs = {name: rng.random(size, "f4") for name, size in sizes.items()}
    return inputs, rng.random((BATCH, 12, 12, 6), "f4")


def count(model: keras.Model) -> tuple[int, int]:
    """Sums that give both types at once, and those left as they were."""
    kinds = [type(layer) for layer in model.layers]
    return kinds.count(fused.InBoth), kinds.count(ResidualSum)


@pytest.mark.parametrize(
    ("name", "options", "counts"),
    [
        # Of each block's input there is one; the last sum goes to a float32 convolution.
        ("dsen2", {}, (5, 1)),
        # The attention takes the third sum and gives the fourth block's input.
        ("s2x", {}, (5, 2)),
        ("s2x", {"attention": False, "fusion": "branches"}, (5, 1)),
        ("s2x", {"attention_at": "end", "block": 4}, (5, 1)),
    ],
)
@pytest.mark.parametrize("least", [0, 2**40])
def test_values_and_gradients_are_those_of_the_model(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: dict[str, Any],
    counts: tuple[int, int],
    least: int,
) -> None:
    """In one pass and, where tensors are too small for it, in several."""
    monkeypatch.setattr(fused, "LEAST_SIZE", least)
    model = untrained(name, filters=8, blocks=5, dtype=LOW, **options)
    model.get_layer("block2_sum").scale = 0.3
    found = fused.fuse_step(model)
    assert count(model) == (0, 5)
    assert count(found) == counts
    assert {id(w) for w in found.weights} == {id(w) for w in model.weights}
    inputs, target = draw()

    def gradients(network: keras.Model) -> tuple[np.ndarray, list[np.ndarray]]:
        @tf.function
        def compute(given: Any) -> Any:
            with tf.GradientTape() as tape:
                out = network(given, training=True)["superres_20m"]
                loss = tf.reduce_sum(tf.square(out - target))
            return out, tape.gradient(loss, [w.value for w in model.trainable_variables])

        out, found = compute({key: tf.constant(value) for key, value in inputs.items()})
        return out.numpy(), [each.numpy() for each in found]

    (out, ours), (expected, theirs) = gradients(found), gradients(model)
    np.testing.assert_allclose(out, expected, atol=3e-3)
    for weight, one, other in zip(model.trainable_variables, ours, theirs, strict=True):
        error = np.linalg.norm(one - other)
        assert error <= 2e-2 * np.linalg.norm(other), weight.path


def test_only_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32, networks without residual sums, and GPUs: the model itself."""
    low, high = (untrained("s2x", filters=8, blocks=2, dtype=d) for d in (LOW, "float32"))
    resnet = models.build("resnet", dtype=LOW)
    assert fused.fuse_step(low) is not low
    assert fused.fuse_step(high) is high
    assert fused.fuse_step(resnet) is resnet
    monkeypatch.setattr(backend, "is_on_processors", lambda: False)
    assert fused.fuse_step(low) is low


def test_layers_that_are_called_again() -> None:
    """One convolution and one sum for all blocks, as recurrent networks have."""
    image = keras.Input((12, 12, 4))
    convolution = keras.layers.Conv2D(8, 3, padding="same", dtype=LOW)
    branch, add = keras.layers.Conv2D(8, 3, padding="same", dtype=LOW), ResidualSum(0.1)
    stream = keras.layers.Activation("linear", dtype="float32")(convolution(image))
    for _ in range(7):
        stream = add(stream, branch(stream))
    model = keras.Model(image, keras.layers.Conv2D(2, 3, dtype="float32")(stream))
    given = np.random.default_rng(0).random((2, 12, 12, 4), "f4")
    expected = model.predict_on_batch(given)
    for found in (fused.fuse(model), fused.fuse_step(model)):
        assert {id(w) for w in found.weights} == {id(w) for w in model.weights}
        np.testing.assert_allclose(found.predict_on_batch(given), expected, atol=2e-2)
    # The image and each block's input; the last sum goes to a float32 convolution.
    assert count(found)[0] == 8


@pytest.mark.parametrize("parts", [1, 2])
def test_the_step_trains_by_it(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    """Whole and in parts: the weights of the step without, and the same that the model saves."""
    inputs, target = draw()

    def train() -> tuple[list[float], np.ndarray, int]:
        used = []
        made = fused.fuse_step

        def fuse_step(model: keras.Model) -> keras.Model:
            used.append(made(model))
            return used[-1]

        with monkeypatch.context() as patch:
            patch.setattr(fused, "fuse_step", fuse_step)
            model = untrained("s2x", filters=8, blocks=2, dtype=LOW)
            optimizer = keras.optimizers.SGD(0.1, global_clipnorm=1.0)
            optimizer.build(model.trainable_variables)
            strategy, loss = SingleStrategy(Cluster("none")), losses.get("l1")
            step = build_step(strategy, model, optimizer, loss, BATCH, parts=parts)
            batch = {"inputs": inputs, "targets": {"superres_20m": target}}
            found = [step(batch, False)["loss"] for _ in range(4)]
        flat = np.concatenate([np.asarray(w).ravel() for w in model.weights])
        return found, flat, count(used[0])[0]

    monkeypatch.setattr(fused, "LEAST_SIZE", 0)
    ours, weights, number = train()
    monkeypatch.setattr(backend, "is_on_processors", lambda: False)
    theirs, others, none = train()
    assert (number, none) == (2, 0)
    assert ours[-1] < ours[0]
    np.testing.assert_allclose(ours, theirs, rtol=2e-3)
    np.testing.assert_allclose(weights, others, atol=2e-3)
