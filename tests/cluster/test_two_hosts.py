"""Both strategies across two hosts that share no loopback, and what a cut cable does to them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import types

import pytest
import two_hosts
from training import RANKS, ROOT, STEPS, TOLERANCE, distance, fit_here, logged_steps, options

pytestmark = pytest.mark.cluster

STRATEGIES = (pytest.param("horovod", marks=pytest.mark.horovod), "multiworker")
# What the test asks for, and what ranks need beside it to leave.
STALL_SECONDS, LEAVE_SECONDS = 20, 30
ELASTIC_STEPS = 30


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Two, with a cable between them."""
    missing = [name for name in two_hosts.PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {missing[0]} here (Debian: apt-get install iproute2 util-linux)")
    if subprocess.run(["unshare", *two_hosts.SPACES, "true"], check=False).returncode:
        pytest.skip("hosts need networks of their own: root, and network namespaces")
    with two_hosts.start(tmp_path_factory.mktemp("hosts")) as made:
        yield made


def fit(strategy: str, *more: str) -> list[str]:
    """The command of one rank."""
    return [sys.executable, "-m", "kerass2.fit", "--strategy", strategy, *more]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_fit_on_two_hosts_equals_two_local_ranks(hosts, prepared, reference, tmp_path, strategy):
    """By the interface that is asked for."""
    command = fit(strategy, *options(prepared, tmp_path / "run", STEPS))
    ranks = hosts.start_ranks(command, KERASS2_INTERFACE=two_hosts.CABLE, **RANKS)
    ends = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], ends
    assert distance(reference, tmp_path / "run") <= TOLERANCE


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_cut_cable_ends_both(hosts, prepared, tmp_path, strategy):
    """Neither side hears that the other is gone: nothing arrives any more, not even a reset."""
    workdir = tmp_path / "run"
    command = fit(strategy, *options(prepared, workdir, 10**6))
    ranks = hosts.start_ranks(command, KERASS2_STALL_SECONDS=str(STALL_SECONDS))
    deadline = time.monotonic() + 120
    while not logged_steps(workdir) or logged_steps(workdir)[-1] < 5:
        assert time.monotonic() < deadline
        assert all(rank.poll() is None for rank in ranks), [r.communicate() for r in ranks]
        time.sleep(0.1)
    with hosts.cut():
        begin = time.monotonic()
        try:
            ends = [rank.communicate(timeout=STALL_SECONDS + LEAVE_SECONDS) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        taken = time.monotonic() - begin
    # Not by TensorFlow's own ten seconds.
    assert taken >= 0.7 * STALL_SECONDS
    for rank, (_, err) in zip(ranks, ends, strict=True):
        assert rank.returncode == 1, err[-3000:]
        last = err.strip().splitlines()[-1]
        assert last.startswith("error: "), err[-3000:]
        assert "KERASS2_STALL_SECONDS" in last


# Horovod's options come after the host, Open MPI's none.
SSH = """#!/bin/sh
while [ $# -gt 0 ]; do
    case "$1" in
        -[op]) shift ;;
        -*) ;;
        {one.name}) target={one.pid} ;;
        {other.name}) target={other.pid} ;;
        *) break ;;
    esac
    shift
done
exec nsenter --target=$target {spaces} sh -c "$*"
"""


@pytest.fixture(scope="module")
def launch(hosts, tmp_path_factory):
    """Start kerass2.launch on one host, with a rank on each; ssh is a script of ours."""
    one, other = (
        types.SimpleNamespace(name=name, pid=keeper.pid)
        for name, keeper in zip(two_hosts.HOSTS, hosts.keepers, strict=True)
    )
    folder = tmp_path_factory.mktemp("ssh")
    ssh = folder / "ssh"
    ssh.write_text(SSH.format(one=one, other=other, spaces=" ".join(two_hosts.SPACES)))
    ssh.chmod(0o755)

    def start(*arguments: str, **environ: str) -> subprocess.Popen[str]:
        names = ",".join(f"{name}:1" for name in two_hosts.HOSTS)
        return hosts.start(
            0,
            [sys.executable, "-m", "kerass2.launch", "--hosts", names, *arguments],
            PATH=f"{folder}:{os.environ['PATH']}",
            PYTHONPATH=str(ROOT),
            # Open MPI refuses root without both.
            OMPI_ALLOW_RUN_AS_ROOT="1",
            OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
            **environ,
        )

    return start


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_launch_over_ssh(launch, strategy):
    rank = str(ROOT / "tests" / "strategies" / "meet_rank.py")
    started = launch("--", sys.executable, rank, strategy)
    out, err = started.communicate(timeout=120)
    assert started.returncode == 0, (out + err)[-3000:]
    for number in range(2):
        assert f"{number} of 2, local 0: 3" in out, (out + err)[-3000:]


@pytest.mark.horovod
def test_elastic_goes_on_without_a_host_and_with_it_again(launch, prepared, tmp_path):
    """Its rank is killed; after horovodrun's cooldown, 10 to 15 s, it is tried again and joins."""
    run, whole, notes = tmp_path / "run", tmp_path / "whole", tmp_path / "notes"
    notes.mkdir()
    plan = {"1 13": "kill -9 $PPID", "0 22": "sleep 18"}
    often = ["--set", "run.checkpoint_every=5"]
    script = str(ROOT / "tests" / "kerass2" / "elastic_fit.py")
    command = [script, "--strategy", "horovod", *options(prepared, run, ELASTIC_STEPS), *often]
    started = launch(
        *("--elastic", "1:2", "--", sys.executable, *command),
        PLAN=json.dumps(plan),
        NOTES=str(notes),
        **RANKS,
    )
    out, err = started.communicate(timeout=200)
    assert started.returncode == 0, (out + err)[-3000:]
    assert re.findall(r"ranks +(\d), strategy horovod", out) == ["2", "1", "2"], out + err
    assert re.findall(r"resuming after (\d+)", out) == ["10", "25"]
    assert logged_steps(run) == list(range(1, ELASTIC_STEPS + 1))
    assert distance(fit_here(prepared, whole, ELASTIC_STEPS), run) <= TOLERANCE
