"""`python -m benchmarks faults` runs on a tiny model and writes what it says; no time is judged."""

from __future__ import annotations

import json

TINY = """--experiment dsen2_20m_compact --set model.options.filters=8 --set model.options.blocks=1
    --batch 2 --patch 16 --rounds 2 --seconds 0.5 --strategy multiworker"""


def test_the_command_writes_every_cost(run_benchmark, tmp_path):
    path = tmp_path / "faults.jsonl"
    result = run_benchmark("faults", *TINY.split(), "-o", path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["what"] for line in lines] == [
        "checkpoint every 0.5 s",
        "0.5 s with a checkpoint",
        "weight check every 200 steps",
    ]
    for line in lines:
        low, high = line["ratio"]["quartiles"]
        assert 0 < low <= line["ratio"]["median"] <= high
        assert line["ratio"]["repeats"] == 2
        assert line["strategy"] == "multiworker"
        assert line["step_seconds"] > 0
