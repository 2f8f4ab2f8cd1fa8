"""Checkpoints: exact, atomic, and refused when damaged or of another model."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from data_pipelines.spec import DataError
from kerass2 import checkpoint


def make(units: int = 3, seed: int = 0, *, scaled: bool = False):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(units),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(1),
        ]
    )
    optimizer = keras.optimizers.Adam(1e-2)
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(seed)
    for variable in [*model.variables, *optimizer.variables]:
        if np.issubdtype(np.asarray(variable).dtype, np.floating):
            variable.assign(rng.random(variable.shape))
    return model, optimizer


def values(model, optimizer):
    return [np.asarray(v) for v in [*model.variables, *optimizer.variables]]


@pytest.mark.parametrize("scaled", [False, True])
def test_restores_every_bit_and_the_state(tmp_path, scaled):
    model, optimizer = make(scaled=scaled)
    path = checkpoint.save(tmp_path, 12, model, optimizer, keep=2, seconds=3.5)
    other = make(seed=1, scaled=scaled)
    state = checkpoint.restore(path, *other)
    assert (state["step"], state["seconds"]) == (12, 3.5)
    for found, expected in zip(values(*other), values(model, optimizer), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_keeps_the_newest(tmp_path):
    model, optimizer = make()
    for step in (1, 2, 10, 3):
        checkpoint.save(tmp_path, step, model, optimizer, keep=2)
    assert [path.name for path in checkpoint.find(tmp_path)] == [
        "step-00000010.npz",
        "step-00000003.npz",
    ]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_flipped_byte_is_found_or_does_not_matter(tmp_path):
    path = checkpoint.save(tmp_path, 1, *make(), keep=1)
    sound = path.read_bytes()
    model, optimizer = make(seed=1)
    checkpoint.restore(path, model, optimizer)
    expected = values(model, optimizer)
    found_damaged = 0
    for position in np.random.default_rng(0).integers(0, len(sound), 100):
        damaged = bytearray(sound)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            checkpoint.restore(path, model, optimizer)
        except DataError as error:
            assert "step-00000001.npz" in str(error)
            found_damaged += 1
        for found, value in zip(values(model, optimizer), expected, strict=True):
            np.testing.assert_array_equal(found, value)
    assert found_damaged > 50  # a flipped time stamp in a zip header changes nothing


def test_a_cut_file_is_found(tmp_path):
    path = checkpoint.save(tmp_path, 1, *make(), keep=1)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match="damaged checkpoint"):
        checkpoint.restore(path, *make())


def test_another_models_checkpoint_is_refused(tmp_path):
    path = checkpoint.save(tmp_path, 1, *make(3), keep=1)
    with pytest.raises(DataError, match=r"checkpoint of another model.*kernel"):
        checkpoint.restore(path, *make(5))


def test_an_error_while_writing_leaves_the_old_ones(tmp_path, monkeypatch):
    model, optimizer = make()
    checkpoint.save(tmp_path, 1, model, optimizer, keep=1)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, 2, model, optimizer, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.npz"]
