"""The log where a disk is full or TensorBoard missing: training goes on, and it is said once."""

from __future__ import annotations

import importlib.util
import json

import numpy as np

from kerass2.logs import TrainingLog


def open_log(folder):
    return TrainingLog(
        folder,
        every=1,
        first_step=0,
        num_steps=5,
        global_batch=4,
        seconds=0.0,
        learning_rate=lambda: 0.1,
    )


def test_without_tensorboard_the_numbers_are_there(tmp_path, capsys, monkeypatch):
    """TensorFlow 2.21 comes without it."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name == "tensorboard" else find(name)
    )
    with open_log(tmp_path) as log:
        log.step(1, 0.5)
        log.images(1, validation=np.zeros((1, 4, 12, 3), np.uint8))
        log.event(1, validation_rmse=3.0)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line.get("validation_rmse") for line in lines] == [None, 3.0]
    assert not (tmp_path / "tensorboard").exists()
    assert capsys.readouterr().err.count("tensorboard is not installed") == 1


def test_a_full_disk_does_not_end_the_training(tmp_path, capsys):
    log = open_log(tmp_path)
    with log:
        log.step(1, 0.5)
        disk, log._file = log._file, open("/dev/full", "a")  # noqa: SIM115
        log.step(2, 0.5)
        log.step(3, 0.5)
        full, log._file = log._file, disk
        log.step(4, 0.5)
        disk, log._file = log._file, full
    disk.close()
    assert full.closed
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "could not be written" in line] == [
        f"warning: {tmp_path}/log.jsonl could not be written (No space left on device): training "
        "goes on"
    ]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 4]
