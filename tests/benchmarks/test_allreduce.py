"""`python -m benchmarks allreduce`: its arithmetic, its ranks without a framework, the command."""

from __future__ import annotations

import pathlib
import stat
import sys
from collections.abc import Callable
from typing import Any

import click
import pytest

from benchmarks import allreduce, record, turns


def test_bandwidths_are_nccl_tests() -> None:
    """4 ranks, 1 GB in 0.5 s: 2 GB/s; 2 x 3/4 of it on the bus. Half the bound's speed."""
    figures = allreduce.list_figures("horovod-gloo", [0.5, 0.5], [0.25, 0.25], 10**9, 4, steps=3)
    medians = {name: found["median"] for name, found in figures.items()}
    assert medians == {
        "seconds": 0.5,
        "algorithm_bandwidth": 2.0,
        "bus_bandwidth": 3.0,
        "over_bound": 0.5,
    }
    units = {name: found["unit"] for name, found in figures.items()}
    assert units == {
        "seconds": "s",
        "algorithm_bandwidth": "GB/s",
        "bus_bandwidth": "GB/s",
        "over_bound": "1",
    }
    assert figures["seconds"]["steps"] == 3
    assert figures["seconds"]["warm_up"] == allreduce.WARM_UP
    copied = allreduce.list_figures("memory-copy", [0.5], [0.25], 10**9, 4, steps=1)
    assert copied["bus_bandwidth"]["median"] == 2.0
    assert "over_bound" not in copied
    assert "over_bound" not in allreduce.list_figures("tcp", [0.5], None, 10**9, 2, steps=1)


def test_what_is_compared_with_what() -> None:
    names = ["horovod-gloo", "torch-gloo", "multiworker-ring:A=1", "tcp"]
    found = {name: [1.0] for name in names}
    found["multiworker-ring"] = [2.0]
    assert allreduce._pairs(found) == [
        ("horovod-gloo", "torch-gloo"),
        ("multiworker-ring", "horovod-gloo"),
        ("multiworker-ring:A=1", "multiworker-ring"),
    ]
    assert allreduce._pairs({"horovod-gloo": [1.0], "torch-gloo": [1.0, 2.0]}) == []


@pytest.mark.parametrize("text", ["horovod-gloo", "gloo:A=1", "horovod-gloo:A", "horovod-gloo:=1"])
def test_wrong_variants_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="expected PATH:KEY=VALUE"):
        allreduce.parse_variant(text)
    assert allreduce.parse_variant("multiworker-ring:A=1,B=x=y") == (
        "multiworker-ring",
        {"A": "1", "B": "x=y"},
    )


def test_paths_that_are_not_there_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(allreduce, "_ask_horovod", lambda: {"gloo": True, "mpi": True})
    monkeypatch.setattr(record, "where", lambda: {"gpus": []})
    monkeypatch.setenv("PATH", "/nowhere")
    found = allreduce.find_paths("/usr/bin/false")
    assert found == ["horovod-gloo", "multiworker-ring", "tcp", "memory-copy"]
    said = capsys.readouterr().err
    assert "horovod-mpi: there is no mpirun" in said
    assert "multiworker-nccl: there is no GPU" in said
    assert "torch-gloo: torch is not installed" in said


def call(tmp_path: pathlib.Path, run: Callable[..., Any], *options: str) -> list[dict[str, Any]]:
    path = tmp_path / "allreduce.jsonl"
    result = run("allreduce", *options, "-o", path, "--system", "here", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "left out" not in result.stderr
    lines, problems = record.read(tmp_path)
    assert problems == []
    assert {line["system"] for line in lines} == {"here"}
    return lines


def test_the_bound_is_measured_without_a_framework(
    run_benchmark: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    """Three ranks, more than there may be cores."""
    options = ["--path", "tcp", "--path", "memory-copy", "--ranks", "3", "--size", "3000000"]
    lines = call(tmp_path, run_benchmark, *options, "--rounds", "2", "--seconds", "0.05")
    assert [line["path"] for line in lines] == ["tcp", "memory-copy"]
    tcp = lines[0]
    assert (tcp["ranks"], tcp["bytes"], tcp["tensors"], tcp["set"]) == (3, 3_000_000, 1, "")
    assert tcp["over_bound"]["median"] == 1
    assert tcp["bus_bandwidth"]["median"] == pytest.approx(
        4 / 3 * tcp["algorithm_bandwidth"]["median"]
    )


def test_a_wrong_sum_is_no_measurement() -> None:
    from benchmarks import allreduce_rank

    class Wrong:
        rank, world_size = 0, 2

        def run(self, step: Callable[..., Any], *args: Any) -> Any:
            return step(*args)

        def sum_gradients(self, tensors: Any) -> list[Any]:
            return [2 * tensor for tensor in tensors]

    with pytest.raises(RuntimeError, match=r"the sum is 2.0 to 2.0, expected 3.0"):
        allreduce_rank.build_sum(Wrong(), [40])


def test_gradients_are_of_the_papers_models() -> None:
    """1.8 M parameters of DSen2's size and 23.6 M of ResNet-50."""
    found = allreduce.list_gradients(allreduce.SETS)
    assert 7.1e6 < sum(found["superres_20m"]) < 7.4e6
    assert 94e6 < sum(found["bigearthnet_ms"]) < 96e6
    with pytest.raises(click.ClickException, match="unknown experiment 'none'"):
        allreduce.list_gradients(["none"])


def test_a_peer_is_started_by_its_own_python(tmp_path: pathlib.Path) -> None:
    other = tmp_path / "python"
    other.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/told\nexit 4\n')
    other.chmod(other.stat().st_mode | stat.S_IXUSR)
    job = allreduce.start("torch-gloo", 2, tmp_path, str(other))()
    with pytest.raises(turns.JobError, match="torch-gloo: ended with exit code 4"):
        job.ready()
    job.close()
    assert (tmp_path / "told").read_text().startswith("-m benchmarks.allreduce_peers torch-gloo ")


def read_loopback() -> int:
    """Bytes that have come in by the loopback since it is up."""
    lines = pathlib.Path("/proc/net/dev").read_text().splitlines()
    told = {name.strip(): numbers for name, _, numbers in (each.partition(":") for each in lines)}
    return int(told["lo"].split()[0])


def test_the_tcp_ring_carries_what_a_ring_moves(tmp_path: pathlib.Path) -> None:
    """As the kernel counts it: 2 ranks, 30 MB, each sends and receives 30 MB a step."""
    before = read_loopback()
    job = allreduce.start("tcp", 2, tmp_path, sys.executable)()
    try:
        job.ready().slowest({"tensors": [30_000_000], "steps": 2, "warm_up": 1})
    finally:
        job.close()
    moved = read_loopback() - before
    assert moved >= 2 * 3 * 30_000_000
    # Headers, acknowledgements, and what other processes of this machine send.
    assert moved < 4 * 2 * 3 * 30_000_000


@pytest.mark.slow
def test_a_parameter_server_with_a_core_for_each_worker(
    run_benchmark: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    """Servers with as many threads as cores (one) would wait for each other for ever."""
    options = ["--path", "parameter-server", "--size", "40000", "--rounds", "1", "--seconds", "0"]
    (line,) = call(tmp_path, run_benchmark, *options)
    assert (line["path"], line["bytes"], line["ranks"]) == ("parameter-server", 40_000, 2)
