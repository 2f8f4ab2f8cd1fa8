"""A rank of a real run fails: all end, the run goes on from its checkpoint, nothing is lost.

A few cases; many, and every kind at every time: tests/cluster/test_faults.py.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys

import pytest

from tests.kerass2 import faults


@pytest.fixture(scope="module")
def unbroken(prepared, run_lightly, tmp_path_factory):
    """Strategy -> weights of a run without a fault."""
    found = {}

    def train(strategy: str):
        if strategy == "horovod":
            pytest.importorskip("horovod", reason="Horovod is not built here")
        if strategy not in found:
            workdir = tmp_path_factory.mktemp(strategy) / "w"
            result = run_lightly("fit", *faults.command(prepared, workdir, strategy))
            assert result.returncode == 0, result.stderr
            found[strategy] = faults.weights(workdir)
        return found[strategy]

    return train


def test_a_single_process_that_is_killed_goes_on_bit_for_bit(unbroken, prepared, tmp_path):
    case = faults.Case("single", "damage", 0, "step", random.choice(faults.DAMAGED_AT))
    outcome = faults.run(case, prepared, tmp_path / "w", "--restarts", "1", "--overwrite")
    assert "damaged checkpoint" in "\n".join(outcome.error)
    faults.check_recovery(case, outcome, tmp_path / "w", unbroken("single"))


def test_a_random_fault_of_a_rank(unbroken, prepared, tmp_path):
    there = importlib.util.find_spec("horovod") is not None
    strategies = ["horovod", "multiworker"] if there else ["multiworker"]
    case = faults.draw(random.Random(faults.SEED), strategies)
    print(case)
    outcome = faults.run(case, prepared, tmp_path / "w", "--restarts", "1")
    faults.check_recovery(case, outcome, tmp_path / "w", unbroken(case.strategy))


@pytest.mark.horovod
def test_a_weight_that_changes_on_one_rank_ends_the_run(prepared, tmp_path):
    pytest.importorskip("horovod", reason="Horovod is not built here")
    fault = {"kind": "perturb", "rank": 1, "when": "step", "step": 5, "note": str(tmp_path / "n")}
    command = faults.command(prepared, tmp_path / "w", "horovod")
    result = subprocess.run(
        [sys.executable, str(faults.SCRIPT), *command],
        env={**os.environ, "FAULT": json.dumps(fault)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert "ranks hold different weights after 8 steps, and were equal after 4: layer" in last
    assert "of rank 1 differs from most others" in last
    assert (tmp_path / "w" / "checkpoints" / "step-00000004.npz").exists()
    assert not (tmp_path / "w" / "checkpoints" / "step-00000008.npz").exists()
