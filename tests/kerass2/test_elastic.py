"""Ranks of real horovodrun join a run, leave it, and wait as spares; what elastic runs refuse.

A host of its own that fails and comes back: tests/cluster/test_two_hosts.py.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from kerass2 import config, job
from tests.kerass2 import faults

SCRIPT = pathlib.Path(__file__).parent / "elastic_fit.py"
# Two ranks share it, three do not.
BATCH = ("--set", "run.global_batch=8")
# As many parts of a sum everywhere; small models do not wait for Horovod's cycles [ms].
RANKS = {"TF_NUM_INTRAOP_THREADS": "1", "HOROVOD_CYCLE_TIME": "1"}


@pytest.mark.horovod
def test_ranks_join_and_leave(prepared, tmp_path):
    """One begins; two join, one of them a spare; one of these is killed, and both are gone."""
    pytest.importorskip("horovod", reason="Horovod is not built here")
    hosts, discover, notes = (tmp_path / name for name in ("hosts", "discover.sh", "notes"))
    hosts.write_text("localhost:1\n")
    discover.write_text(f"#!/bin/sh\ncat {hosts}\n")
    discover.chmod(0o755)
    notes.mkdir()
    # horovodrun looks every second.
    plan = {"0 6": f"echo 127.0.0.1:2 >> {hosts}; sleep 2.5", "1 21": "kill -9 $PPID"}
    elastic = ["--elastic", "1:3", "--discover", str(discover), "--interface", "lo"]
    run, whole = tmp_path / "run", tmp_path / "whole"
    options = faults.command(prepared, run, "single", *BATCH, "--strategy", "horovod")
    environ = os.environ | RANKS
    command = [sys.executable, "-m", "kerass2.fit", *faults.command(prepared, whole, "single")]
    unbroken = subprocess.Popen([*command, *BATCH], env=environ, stdout=subprocess.DEVNULL)
    done = subprocess.run(
        [sys.executable, "-m", "kerass2.launch", *elastic, "--", sys.executable, SCRIPT, *options],
        env={**environ, "PLAN": json.dumps(plan), "NOTES": str(notes)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert unbroken.wait(timeout=100) == 0
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert re.findall(r"ranks +(\d), strategy horovod", done.stdout) == ["1", "2", "1"]
    assert "1 of 3 ranks waits as a spare" in done.stderr
    assert re.findall(r"resuming after (\d+)", done.stdout) == ["8", "20"]
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "loss" in line] == list(range(1, faults.STEPS + 1))
    expected = faults.weights(whole)
    difference = np.linalg.norm(faults.weights(run) - expected) / np.linalg.norm(expected)
    print(difference)
    assert difference <= 1e-6


def experiment(**run):
    """DSen2 with these settings."""
    found = config.load("dsen2_20m_compact")
    return dataclasses.replace(found, run=dataclasses.replace(found.run, **run))


def test_parts_of_a_batch_stay_equal():
    assert job.num_shares(experiment(global_batch=24)) == 24
    assert job.num_shares(experiment(global_batch=24, accumulation_steps=4)) == 6


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ({"global_batch": None, "local_batch": 4}, r"run\.local_batch = 4: .+ run\.global_batch"),
        ({"global_batch": 6, "accumulation_steps": 4}, r"run\.accumulation_steps = 4 does not"),
    ],
)
def test_batches_that_other_ranks_could_not_share(run, said):
    with pytest.raises(config.ConfigError, match=f"^{said}"):
        job.num_shares(experiment(**run))


def test_elastic_ranks_of_other_kinds_are_refused(monkeypatch):
    monkeypatch.setenv("KERASS2_JOB", "one")
    job.check_elastic("horovod")
    with pytest.raises(config.ConfigError, match="are for --strategy horovod, not multiworker"):
        job.check_elastic("multiworker")
    monkeypatch.delenv("KERASS2_JOB")
    with pytest.raises(config.ConfigError, match=r"python -m kerass2\.launch --elastic MIN:MAX"):
        job.check_elastic("horovod")
