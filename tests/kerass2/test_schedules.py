from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerass2 import schedules
from kerass2.config import ConfigError

GIVEN: dict[str, Any] = {
    "learning_rate": 1e-4,
    "global_batch": 512,
    "reference_batch": 128,
    "num_steps": 1000,
    "steps_per_epoch": 50,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "modified_linear": {"halve_every": 1000},
    "linear": {"warmup_epochs": 5, "drop_epochs": [30, 60, 80], "drop_factor": 0.1},
    "constant": {},
    "cosine": {"warmup_steps": 10, "final_fraction": 0.01},
    "polynomial": {"warmup_steps": 10, "power": 1.5, "scaling": "sqrt"},
}


def build(name: str, **changes: Any) -> Any:
    return schedules.build(name, **{**GIVEN, **changes})


# The paper's rows: batch 128 a GPU, rate 1e-4 x number of GPUs, n = 64,000.
@pytest.mark.parametrize(
    ("global_batch", "step", "rate"),
    [
        (128, 0, 1e-4),
        (128, 63_999, 1e-4),
        (128, 64_000, 0.5e-4),
        (128, 127_999, 0.5e-4),
        (128, 128_000, 0.25e-4),
        (512, 0, 4e-4),
        (512, 15_999, 4e-4),
        (512, 16_000, 2e-4),
        (2048, 3_999, 16e-4),
        (2048, 4_000, 8e-4),
        (2048, 40_000, 16e-4 / 1024),
        (64, 127_999, 0.5e-4),
        (64, 128_000, 0.25e-4),
    ],
)
def test_modified_linear_table(global_batch: int, step: int, rate: float) -> None:
    schedule = build("modified_linear", global_batch=global_batch)
    assert float(schedule(step)) == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("n", "batch"), [(64_000, 512), (1000, 96), (7, 128), (64_000, 1000), (3, 2048)]
)
def test_modified_linear_halves_at_the_nearest_step(n: int, batch: int, compiled: bool) -> None:
    schedule = build("modified_linear", global_batch=batch, halve_every=n)
    call = tf.function(schedule, jit_compile=compiled) if compiled else schedule
    interval = Fraction(n * 128, batch)
    around = {int(m * interval) + d for m in range(1, 40) for d in (-1, 0, 1)}
    steps = np.array(sorted({0, *(s for s in around if s >= 0)}), np.int64)
    expected = [
        1e-4 * batch / 128 * 0.5 ** math.floor((int(s) + Fraction(1, 2)) / interval) for s in steps
    ]
    np.testing.assert_allclose(call(tf.constant(steps)), expected, rtol=2e-6, atol=1e-44)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 1e-4),
        (125, 2.5e-4),
        (250, 4e-4),
        (1499, 4e-4),
        (1500, 4e-5),
        (3000, 4e-6),
        (3999, 4e-6),
        (4000, 4e-7),
    ],
)
def test_linear_table(step: int, rate: float) -> None:
    schedule = build("linear", **OPTIONS["linear"])
    assert float(schedule(step)) == pytest.approx(rate, rel=1e-5)


@pytest.mark.parametrize(("step", "rate"), [(0, 1e-4), (10**6, 1e-4)])
def test_constant_ignores_the_batch(step: int, rate: float) -> None:
    assert float(build("constant")(step)) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 1e-5), (9, 1e-4), (10, 1e-4), (505, 0.505e-4), (1000, 1e-6), (9999, 1e-6)],
)
def test_cosine_table(step: int, rate: float) -> None:
    assert float(build("cosine", **OPTIONS["cosine"])(step)) == pytest.approx(rate, rel=1e-4)


@pytest.mark.parametrize("name", ["modified_linear", "linear"])
def test_scaled_schedules_see_patches_not_ranks(name: str) -> None:
    """Batch and reference batch times 3 leave the rate as it is."""
    first, second = build(name), build(name, global_batch=1536, reference_batch=384)
    steps = np.arange(0, 100_000, 997)
    np.testing.assert_allclose(first(tf.constant(steps)), second(tf.constant(steps)), rtol=1e-6)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_saved_and_read_again(name: str) -> None:
    schedule = build(name, **OPTIONS[name])
    optimizer = keras.optimizers.Adam(schedule)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    config = again.get_config()["learning_rate"]["config"]
    assert config == schedule.get_config()
    for step in (0, 17, 400, 5000):
        rebuilt = type(schedule).from_config(schedule.get_config())
        assert float(rebuilt(step)) == float(schedule(step))


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_optimizer_uses_it_in_a_compiled_step(name: str) -> None:
    optimizer = keras.optimizers.SGD(build(name, **OPTIONS[name]))
    weight = keras.Variable(np.zeros(2, np.float32))
    optimizer.build([weight])
    step = tf.function(lambda: optimizer.apply([tf.ones(2)], [weight]), jit_compile=False)
    rates = [float(build(name, **OPTIONS[name])(s)) for s in range(3)]
    for _ in range(3):
        step()
    np.testing.assert_allclose(weight, -sum(rates), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "step",
            {},
            "unknown schedule 'step'; there are: modified_linear, linear, constant, cosine",
        ),
        ("constant", {"warmup_steps": 3}, "has no option warmup_steps; there are: none"),
        (
            "cosine",
            {"warm": 3},
            "no option warm; there are: warmup_steps, final_fraction, warmup_epochs",
        ),
        ("cosine", {"warmup_steps": 1000}, "fewer than the 1000 steps"),
        ("cosine", {"final_fraction": 2.0}, "from 0 to 1"),
        ("linear", {"warmup_steps": 3, "warmup_epochs": 1}, "twice"),
        ("linear", {"warmup_epochs": -1}, "at least 0"),
        ("linear", {"warmup_steps": 1.5}, "whole number of at least 0"),
        ("linear", {"drop_steps": ["a"]}, "whole number"),
        ("linear", {"drop_steps": 5}, "a list"),
        ("modified_linear", {"halve_every": 0}, "halve_every = 0"),
        ("modified_linear", {"learning_rate": -1.0}, "positive"),
        ("modified_linear", {"global_batch": 0}, "global_batch = 0"),
    ],
)
def test_what_makes_no_sense_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, **options)


@pytest.mark.parametrize(("scaling", "k"), [("linear", 8.0), ("sqrt", 8.0**0.5), ("none", 1.0)])
def test_polynomial_is_keras_after_its_warm_up(scaling, k):
    ours = schedules.build(
        "polynomial",
        learning_rate=0.5,
        global_batch=2048,
        reference_batch=256,
        num_steps=120,
        warmup_steps=20,
        scaling=scaling,
        final_fraction=0.1,
    )
    theirs = keras.optimizers.schedules.PolynomialDecay(0.5 * k, 100, 0.05 * k, power=2.0)
    for step in (20, 21, 60, 119, 120, 500):
        assert float(ours(step)) == pytest.approx(float(theirs(step - 20)), rel=1e-5)
    assert [float(ours(step)) for step in (0, 9, 19)] == pytest.approx([k / 40, k / 4, k / 2])
    again = schedules.Polynomial.from_config(ours.get_config())
    assert float(again(60)) == float(ours(60))
    with pytest.raises(ConfigError, match="scaling 'log'; there are: linear, sqrt, none"):
        schedules.Polynomial(0.1, 1, 1, 10, scaling="log")
    with pytest.raises(ConfigError, match="warmup_steps 10 must be fewer than the 10"):
        schedules.Polynomial(0.1, 1, 1, 10, warmup_steps=10)


@pytest.mark.parametrize("ranks", [1, 2, 4, 16])
def test_the_classification_papers_schedule(ranks):
    """0.1 k n / 256 with n = 64 patches a GPU; 5 epochs of warm-up; x 0.1 at 30, 60 and 80."""
    schedule = schedules.build(
        "linear",
        learning_rate=0.1,
        global_batch=64 * ranks,
        reference_batch=256,
        num_steps=1000,
        steps_per_epoch=10,
        warmup_epochs=5,
        drop_epochs=[30, 60, 80],
    )
    full = 0.1 * ranks * 64 / 256
    assert float(schedule(0)) == pytest.approx(min(full, 0.1))
    for epoch, factor in ((5, 1), (29.9, 1), (30, 0.1), (60, 0.01), (79.9, 0.01), (80, 0.001)):
        assert float(schedule(round(10 * epoch))) == pytest.approx(full * factor)
