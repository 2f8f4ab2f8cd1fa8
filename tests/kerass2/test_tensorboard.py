"""What TensorBoard shows of a run: scalars, validation patches, a profile on request."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from kerass2 import figures, profiling

TINY = ("model.options.filters=8", "model.options.blocks=2", "run.precision=float32")
RUN = (*TINY, "run.global_batch=8", "run.validate_every=4", "run.log_every=1")


@pytest.fixture(scope="module")
def workdir(run_here, prepared, tmp_path_factory) -> pathlib.Path:
    """Of 8 steps with two validations; two steps are profiled."""
    folder = tmp_path_factory.mktemp("run") / "work"
    settings = [f"--set={each}" for each in RUN]
    given = ("--data", prepared, "--workdir", folder, "--steps", 8, "--profile", 2)
    done = run_here("fit", "superres_20m_compact", *given, *settings)
    assert done.returncode == 0, done.stderr
    return folder


def read_events(folder: pathlib.Path) -> dict[str, dict[int, np.ndarray]]:
    """Name -> step -> value; a picture's is [width, height, PNG, ...]."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for path in folder.glob("events.out.tfevents.*"):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = tf.make_ndarray(value.tensor)
    return found


def test_scalars_are_those_of_the_log(workdir: pathlib.Path) -> None:
    found = read_events(workdir / "tensorboard")
    lines = map(json.loads, (workdir / "log.jsonl").read_text().splitlines())
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert list(losses) == list(range(1, 9))
    assert {step: float(value) for step, value in found["loss"].items()} == pytest.approx(losses)


def test_every_validation_has_pictures(workdir: pathlib.Path) -> None:
    found = read_events(workdir / "tensorboard")["validation"]
    assert sorted(found) == [4, 8]
    first, last = ([tf.image.decode_png(p).numpy() for p in found[step][2:]] for step in (4, 8))
    assert [int(edge) for edge in found[4][:2]] == [3 * 32, 32]
    assert {image.shape for image in first + last} == {(32, 96, 3)}
    assert 1 <= len(first) == len(last) <= 3
    for one, two in zip(first, last, strict=True):
        # Input and truth stay, the prediction changes; the input is of coarse pixels.
        np.testing.assert_array_equal(one[:, :32], two[:, :32])
        np.testing.assert_array_equal(one[:, 64:], two[:, 64:])
        assert (one[:, 32:64] != two[:, 32:64]).any()
        np.testing.assert_array_equal(one[::2, :32:2], one[1::2, 1:32:2])
        assert (one[::2, 64::2] != one[1::2, 65::2]).any()


def test_pictures_are_stretched_as_the_truth() -> None:
    ramp = np.linspace(1000, 2000, 101).repeat(3).reshape(1, 1, 101, 3).repeat(2, axis=1)
    low = np.full((1, 1, 50, 3), 1520.0)
    (found,) = figures.strips(low, ramp[:, :, :100], ramp[:, :, :100], [2, 1, 0])
    assert found.shape == (2, 300, 3) and found.dtype == np.uint8
    # 2nd and 98th of 100 steps of 10
    inside = 255 * ((1520 - 1019.8) / (1970.2 - 1019.8)) ** 0.7
    assert np.abs(found[:, :100].astype(float) - inside).max() <= 1
    assert found[0, 100].tolist() == [0, 0, 0] and found[1, 299].tolist() == [255, 255, 255]


def test_a_profile_is_written_on_request(workdir: pathlib.Path) -> None:
    (trace,) = (workdir / "tensorboard" / "plugins" / "profile").glob("*/*.xplane.pb")
    assert trace.stat().st_size > 10_000


def test_what_is_recorded_are_the_steps_after_the_first(monkeypatch, tmp_path) -> None:
    seen = []

    class Recorder:
        def __enter__(self):
            seen.append("begin")

        def __exit__(self, *_):
            seen.append("end")

    monkeypatch.setattr(profiling, "_record", lambda folder: Recorder())
    with profiling.record_steps(lambda batch, stop: seen.append(batch), 2, tmp_path) as step:
        for number in range(7):
            step(number, False)
    assert seen == [0, 1, 2, "begin", 3, 4, "end", 5, 6]
    seen.clear()
    with profiling.record_steps(lambda batch, stop: seen.append(batch), 9, tmp_path) as step:
        for number in range(5):
            step(number, False)
    assert seen == [0, 1, 2, "begin", 3, 4, "end"]
