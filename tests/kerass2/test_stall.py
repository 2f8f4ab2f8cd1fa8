"""A call that does not come back ends the process; others do not."""

from __future__ import annotations

import subprocess
import sys
import time

PRELUDE = "import os, signal, sys, time; from kerass2.stall import Watch\n"


def run(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PRELUDE + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_call_that_takes_too_long_ends_the_process():
    begin = time.monotonic()
    result = run("Watch(1, 3).timed(time.sleep)(50)")
    assert result.returncode == 1
    assert time.monotonic() - begin < 15
    assert result.stderr.startswith("error: rank 3 has waited 1 s for the others: one is stopped")
    assert "KERASS2_STALL_SECONDS" in result.stderr


def test_calls_that_come_back_and_time_between_them_do_not_count():
    calls = "[wait(0.2) for _ in range(10)]; time.sleep(2); wait(0.5)"
    result = run(f"wait = Watch(1, 0).timed(time.sleep); {calls}; Watch(0, 0).timed(time.sleep)(1)")
    assert (result.returncode, result.stderr) == (0, "")


def test_a_process_that_was_stopped_itself_has_not_waited():
    code = (
        "child = os.fork()\n"
        "if child == 0: Watch(2, 0).timed(time.sleep)(1); os._exit(0)\n"
        "time.sleep(0.3); os.kill(child, signal.SIGSTOP)\n"
        "time.sleep(4); os.kill(child, signal.SIGCONT)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    assert run(code).returncode == 0
