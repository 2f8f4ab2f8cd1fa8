"""`python -m benchmarks startup` times every strategy; no time is judged."""

from __future__ import annotations

import json

import pytest

TINY = """--experiment dsen2_20m_compact --set model.options.filters=8 --set model.options.blocks=1
    --batch 2 --rounds 1"""


@pytest.mark.slow
@pytest.mark.horovod
def test_the_command_times_every_strategy(run_benchmark, tmp_path):
    pytest.importorskip("horovod", reason="Horovod is not built here")
    path = tmp_path / "startup.jsonl"
    result = run_benchmark("startup", *TINY.split(), "-o", path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = {line["strategy"]: line for line in map(json.loads, path.read_text().splitlines())}
    assert {name: line["ranks"] for name, line in lines.items()} == {
        "single": 1,
        "horovod": 2,
        "multiworker": 2,
    }
    one = lines["single"]["seconds"]["median"]
    for line in lines.values():
        assert line["what"] == "start-up"
        assert line["seconds"]["median"] > 1  # TensorFlow alone takes so long
        assert line["ratio"]["median"] == pytest.approx(line["seconds"]["median"] / one)
