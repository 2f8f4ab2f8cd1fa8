"""Checkpoints: exact, atomic, and refused when damaged or of another model."""

from __future__ import annotations

import threading
import time

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


def save(folder, step, model, optimizer, *, keep, **state):
    return checkpoint.write(folder, step, checkpoint.copy(step, model, optimizer, **state), keep)


def values(model, optimizer):
    return [np.asarray(v) for v in [*model.variables, *optimizer.variables]]


@pytest.mark.parametrize("scaled", [False, True])
def test_restores_every_bit_and_the_state(tmp_path, scaled):
    model, optimizer = make(scaled=scaled)
    path = save(tmp_path, 12, model, optimizer, keep=2, seconds=3.5)
    other = make(seed=1, scaled=scaled)
    state = checkpoint.restore(path, *other)
    assert (state["step"], state["seconds"]) == (12, 3.5)
    for found, expected in zip(values(*other), values(model, optimizer), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_keeps_the_newest(tmp_path):
    model, optimizer = make()
    (tmp_path / ".step-00000001.77.npz").write_bytes(b"left by a process that was killed")
    for step in (1, 2, 10):
        save(tmp_path, step, model, optimizer, keep=2)
    assert names(tmp_path) == ["step-00000002.npz", "step-00000010.npz"]
    # The run went back to 2, since 10 was damaged.
    save(tmp_path, 3, model, optimizer, keep=3)
    assert names(tmp_path) == ["step-00000002.npz", "step-00000003.npz"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_flipped_byte_is_found_or_does_not_matter(tmp_path):
    path = save(tmp_path, 1, *make(), keep=1)
    sound = path.read_bytes()
    model, optimizer = make(seed=1)
    checkpoint.restore(path, model, optimizer)
    expected = values(model, optimizer)
    found_damaged = 0
    # Anywhere: arrays, their headers, zip's own records at the file's end.
    for position in (*range(0, len(sound), 61), *range(len(sound) - 60, len(sound))):
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
    assert found_damaged > 0.7 * len(sound) / 61  # a time stamp in a zip header changes nothing


def test_a_cut_file_is_found(tmp_path):
    path = save(tmp_path, 1, *make(), keep=1)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match="damaged checkpoint"):
        checkpoint.restore(path, *make())


def test_another_models_checkpoint_is_refused(tmp_path):
    path = save(tmp_path, 1, *make(3), keep=1)
    with pytest.raises(DataError, match=r"checkpoint of another model.*kernel"):
        checkpoint.restore(path, *make(5))


def full(*args, **kwargs):
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_the_old_ones(tmp_path, monkeypatch, capsys):
    model, optimizer = make()
    writer = checkpoint.Writer(tmp_path, keep=1)
    writer.save(1, model, optimizer)
    assert writer.wait() == 1
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        writer.save(2, model, optimizer)
        assert writer.wait() == 1
    said = capsys.readouterr().err
    assert "the checkpoint of 2 steps could not be written (No space left on device)" in said
    assert names(tmp_path) == ["step-00000001.npz"]
    writer.save(3, model, optimizer)
    assert writer.close() == 3
    assert names(tmp_path) == ["step-00000003.npz"]


def test_what_is_written_is_the_state_when_it_was_asked_for(tmp_path, monkeypatch):
    """Training goes on while the file is written; the next one waits for it."""
    model, optimizer = make()
    expected = [value.copy() for value in values(model, optimizer)]
    go, real, begun = threading.Event(), np.savez, []

    def slow(*args, **kwargs):
        begun.append(len(begun))
        assert go.wait(20)
        real(*args, **kwargs)

    monkeypatch.setattr(np, "savez", slow)
    writer = checkpoint.Writer(tmp_path, keep=9)
    writer.save(1, model, optimizer)
    for variable in [*model.variables, *optimizer.variables]:
        variable.assign(np.zeros(variable.shape))
    second = threading.Thread(target=writer.save, args=(2, model, optimizer))
    second.start()
    time.sleep(0.2)
    assert begun == [0]
    assert checkpoint.find(tmp_path) == []
    go.set()
    second.join()
    assert writer.close() == 2
    other = make(seed=1)
    checkpoint.restore(tmp_path / "step-00000001.npz", *other)
    for found, value in zip(values(*other), expected, strict=True):
        np.testing.assert_array_equal(found, value)


def test_another_error_while_writing_is_raised(tmp_path, monkeypatch):
    def wrong(*args, **kwargs):
        raise ValueError("of the writing thread")

    monkeypatch.setattr(np, "savez", wrong)
    writer = checkpoint.Writer(tmp_path, keep=1)
    writer.save(1, *make())
    with pytest.raises(ValueError, match="of the writing thread"):
        writer.close()
