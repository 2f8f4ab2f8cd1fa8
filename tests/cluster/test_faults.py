"""Every kind of fault at every time, in real runs of both strategies; and many random ones.

KERASS2_FAULTS says how many random ones, KERASS2_SEED which. README has the table of a run.
"""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys

import pytest

from tests.kerass2 import faults

pytestmark = pytest.mark.cluster
NUM_FAULTS = int(os.environ.get("KERASS2_FAULTS", "6"))
RANDOM_STRATEGIES = ("single", "horovod", "multiworker")


@pytest.fixture(scope="module")
def unbroken(prepared, tmp_path_factory):
    """Strategy -> weights of a run without a fault."""
    found = {}

    def train(strategy: str):
        if strategy not in found:
            workdir = tmp_path_factory.mktemp(strategy) / "w"
            command = ["-m", "kerass2.fit", *faults.command(prepared, workdir, strategy)]
            subprocess.run([sys.executable, *command], check=True, capture_output=True, timeout=200)
            found[strategy] = faults.weights(workdir)
        return found[strategy]

    return train


# Each kind and each time under both strategies, and each of both ranks.
CASES = [
    faults.Case("horovod", "stop", 1, "step", 6),
    faults.Case("horovod", "kill", 0, "checkpoint", 2),
    faults.Case("horovod", "raise", 1, "start", 0),
    faults.Case("horovod", "memory", 0, "validation", 0),
    faults.Case("multiworker", "stop", 0, "validation", 0),
    faults.Case("multiworker", "kill", 1, "start", 0),
    faults.Case("multiworker", "raise", 0, "checkpoint", 1),
    faults.Case("multiworker", "exit", 1, "step", 9),
]


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[pytest.mark.horovod] * (c.strategy == "horovod")) for c in CASES],
    ids=str,
)
def test_all_ranks_end_and_the_cause_is_last(prepared, tmp_path, case):
    if case.strategy == "horovod":
        pytest.importorskip("horovod", reason="Horovod is not built here")
    faults.check_end(case, faults.run(case, prepared, tmp_path / "w"))


def test_random_faults_lose_nothing(unbroken, prepared, tmp_path):
    """--restarts goes on to the weights of an unbroken run; no checkpoint is lost."""
    there = importlib.util.find_spec("horovod") is not None
    generator, rows = random.Random(faults.SEED), []
    for number in range(NUM_FAULTS):
        case = faults.draw(generator, [s for s in RANDOM_STRATEGIES if there or s != "horovod"])
        workdir = tmp_path / str(number)
        outcome = faults.run(case, prepared, workdir, "--restarts", "1")
        faults.check_recovery(case, outcome, workdir, unbroken(case.strategy))
        rows.append((case, outcome))
        print(f"{number}: {case}: {outcome.seconds} s, went on after {outcome.resumed_after}")
    print(faults.table(iter(rows)))
