"""The log on a disk that is full: training goes on, and nothing is written twice or said twice."""

from __future__ import annotations

import json

from kerass2.logs import TrainingLog


def test_a_full_disk_does_not_end_the_training(tmp_path, capsys):
    log = TrainingLog(
        tmp_path,
        every=1,
        first_step=0,
        num_steps=5,
        global_batch=4,
        seconds=0.0,
        learning_rate=lambda: 0.1,
    )
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
