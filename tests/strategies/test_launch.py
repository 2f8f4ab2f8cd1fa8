"""Ranks as real processes: output, prefixes, deaths.

The ranks here are plain Python: no TensorFlow is needed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from strategies import launch


def run_ranks(
    code: str, *, workers: int = 2, strategy: str = "multiworker", restarts: int = 0, **kwargs
) -> subprocess.CompletedProcess:
    prelude = (
        "import json, os, sys, time; rank = json.loads(os.environ['TF_CONFIG'])['task']['index']\n"
    )
    command = [
        sys.executable,
        "-m",
        "strategies.launch",
        "--strategy",
        strategy,
        "--workers",
        str(workers),
        "--restarts",
        str(restarts),
    ]
    return subprocess.run(
        [*command, "--", sys.executable, "-c", prelude + code],
        capture_output=True,
        text=True,
        timeout=60,
        **kwargs,
    )


def test_output_of_other_ranks_is_prefixed():
    # Rank 0 writes to the same stdout itself; unbuffered, print would write its newline apart.
    result = run_ranks(
        "print(f'out {rank}\\n', end=''); print('err', rank, file=sys.stderr)", workers=3
    )
    assert result.returncode == 0
    assert sorted(result.stdout.splitlines()) == ["[rank 1] out 1", "[rank 2] out 2", "out 0"]
    assert sorted(result.stderr.splitlines()) == ["[rank 1] err 1", "[rank 2] err 2", "err 0"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_failure_ends_all_and_its_traceback_is_last(rank):
    begin = time.monotonic()
    result = run_ranks(
        f"print('noise ' * 50, file=sys.stderr)\n"
        f"if rank == {rank}: raise ValueError('the cause')\n"
        "time.sleep(600)"
    )
    assert time.monotonic() - begin < 30
    assert result.returncode == 1
    assert result.stderr.rstrip().endswith("ValueError: the cause")
    assert f"rank {rank} ended with exit code 1; the other ranks were ended." in result.stderr


def test_a_killed_rank_ends_all():
    begin = time.monotonic()
    result = run_ranks("if rank == 1: os.kill(os.getpid(), 9)\ntime.sleep(600)")
    assert time.monotonic() - begin < 30
    assert result.returncode == 1
    assert "rank 1 was killed by SIGKILL" in result.stderr.splitlines()[-1]


VICTIM = "print('HorovodInternalError: Horovod has been shut down', file=sys.stderr, flush=True)\n"


@pytest.mark.parametrize("victims_end", ["os._exit(1)", "os.abort()", "os.kill(os.getpid(), 15)"])
def test_the_cause_is_found_though_a_victim_ends_first(victims_end):
    result = run_ranks(
        f"if rank == 0:\n    {VICTIM}    {victims_end}\n"
        "time.sleep(0.3)\nraise ValueError('the cause')"
    )
    assert result.returncode == 1
    assert result.stderr.rstrip().endswith("ValueError: the cause")
    assert "rank 1 ended with exit code 1" in result.stderr


@pytest.mark.parametrize("death", ["SIGKILL", "SIGSEGV", "SIGBUS"])
def test_a_killed_rank_is_the_cause_though_others_fail_first(death):
    result = run_ranks(
        "import signal\nif rank == 0: raise ValueError('not the cause')\n"
        f"time.sleep(0.3)\nos.kill(os.getpid(), signal.{death})"
    )
    assert result.returncode == 1
    assert f"rank 1 was killed by {death}" in result.stderr


def test_of_equal_failures_the_earliest_is_shown():
    result = run_ranks("time.sleep(0.5 * (1 - rank))\nraise ValueError(f'of rank {rank}')")
    assert result.stderr.rstrip().endswith("ValueError: of rank 1")


def test_a_long_traceback_is_shown_from_its_first_line():
    # Two functions in turn: Python shortens a function that calls itself.
    result = run_ranks(
        "def f(n): return g(n)\n"
        "def g(n):\n    if n: return f(n - 1)\n    raise ValueError('deep')\n"
        "f(200) if rank else time.sleep(600)"
    )
    ending = result.stderr.rpartition("the other ranks were ended.\n")[2].splitlines()
    assert len(ending) > 400
    assert ending[0] == "Traceback (most recent call last):"
    assert ending[-1] == "ValueError: deep"


def test_a_rank_that_ignores_sigterm_is_ended_too(tmp_path):
    result = run_ranks(
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(tmp_path)!r} + f'/{{rank}}', 'w').write(str(os.getpid()))\n"
        "if rank == 1: time.sleep(1); sys.exit(3)\n"
        "time.sleep(600)"
    )
    assert result.returncode == 1
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "0").read_text()), 0)


def test_ranks_do_not_outlive_a_killed_launcher(tmp_path):
    code = f"import os, time; open({str(tmp_path)!r} + f'/{{os.getpid()}}', 'w'); time.sleep(600)"
    launcher = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "strategies.launch",
            "--strategy",
            "multiworker",
            "--workers",
            "2",
            "--",
            sys.executable,
            "-c",
            code,
        ]
    )
    _until(lambda: len(list(tmp_path.iterdir())) == 2)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    pids = [int(path.name) for path in tmp_path.iterdir()]
    _until(lambda: not any(_alive(pid) for pid in pids))


def test_a_stopped_rank_is_the_cause_though_another_fails_of_it(tmp_path):
    begin = time.monotonic()
    result = run_ranks(
        "import signal\nif rank == 1: os.kill(os.getpid(), signal.SIGSTOP)\n"
        "time.sleep(1)\nraise ValueError('has waited for rank 1')"
    )
    assert time.monotonic() - begin < 30
    assert result.returncode == 1
    assert "rank 1 was stopped by a signal and did not go on" in result.stderr.splitlines()[-1]


FAILS_TWICE = """
times = os.path.join(folder, str(rank))
print(f"start {os.environ['KERASS2_RESTARTS']} {os.environ['KERASS2_JOB']}\\n", end="")
open(times, "a").write("x")
if rank == 1 and os.path.getsize(times) <= 2: raise ValueError("the cause")
if os.path.getsize(times) <= 2: time.sleep(600)
"""


@pytest.mark.parametrize(("restarts", "code"), [(2, 0), (1, 1)])
def test_ranks_are_started_again_as_often_as_told(tmp_path, restarts, code):
    result = run_ranks(f"folder = {str(tmp_path)!r}{FAILS_TWICE}", restarts=restarts)
    assert result.returncode == code
    lines = [line.split()[-3:] for line in result.stdout.splitlines()]
    assert sorted(line[1] for line in lines) == sorted([*map(str, range(restarts + 1))] * 2)
    assert len({line[2] for line in lines}) == 1  # one name, by which a run knows its own
    said = result.stderr.splitlines()
    assert said.count("ValueError: the cause") >= 2
    assert f"Starting all ranks again: {restarts} of {restarts}." in said
    if code:
        assert said[-1] == "ValueError: the cause"


def test_what_is_refused_or_saved_is_not_started_again(tmp_path):
    for code in (2, 75):
        folder = tmp_path / str(code)
        folder.mkdir()
        result = run_ranks(
            f"open({str(folder)!r} + f'/{{rank}}', 'a').write('x'); sys.exit({code})", restarts=3
        )
        assert result.returncode == code
        assert [path.stat().st_size for path in folder.iterdir()] == [1, 1]


def test_refused_arguments_give_exit_code_2():
    assert run_ranks("sys.exit(2)").returncode == 2


def test_ranks_share_the_cores():
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core only")
    result = run_ranks("print(sorted(os.sched_getaffinity(0)))")
    cores = [line.removeprefix("[rank 1] ") for line in result.stdout.splitlines()]
    assert len(cores) == len(set(cores)) == 2


@pytest.mark.parametrize(
    ("visible", "expected"), [("0,1,2", 3), ("", 2), ("-1", 2), ("GPU-5a1c,GPU-77", 2), ("3", 1)]
)
def test_default_workers_follow_visible_gpus(monkeypatch, visible, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert launch.default_workers() == expected


def test_command_line_errors():
    command = [sys.executable, "-m", "strategies.launch", "--strategy", "multiworker"]
    nothing = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert nothing.returncode == 2
    assert "no command" in nothing.stderr
    zero = subprocess.run(
        [*command, "--workers", "-1", "--", "true"], capture_output=True, text=True, timeout=60
    )
    assert zero.returncode == 1
    assert "at least 1 rank" in zero.stderr


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _until(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
