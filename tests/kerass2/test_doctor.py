"""The doctor on this machine and on two real ranks; its judgement on tables made by hand."""

from __future__ import annotations

import json
import os
import pathlib
import platform
import re
import subprocess
import sys

import pytest

from kerass2 import doctor, launch
from kerass2.config import ConfigError


def run(module: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", **environ},
        timeout=200,
    )


def sections(output: str) -> dict[str, dict[str, str]]:
    """Title -> name -> text of what the doctor prints."""
    found: dict[str, dict[str, str]] = {}
    for line in output.splitlines():
        if line.startswith("  "):
            name, _, text = line.strip().partition("  ")
            found[list(found)[-1]][name] = text.strip()
        else:
            found[line] = {}
    return found


@pytest.fixture(scope="module")
def two_ranks() -> subprocess.CompletedProcess[str]:
    return run("kerass2.doctor", "--strategy", "multiworker", "--workers", "2", "--mebibytes", "2")


def test_it_finds_nothing_wrong_here(two_ranks):
    """Where the tests run, all that it looks for is installed; Horovod need not be."""
    lines = two_ranks.stdout.splitlines()
    problems = [line for line in lines if line.startswith("problem: ")]
    if not any("--strategy horovod does not work" in line for line in problems):
        assert problems == [], two_ranks.stderr
        assert "nothing wrong was found" in lines
    assert two_ranks.returncode == bool(problems)


def test_it_says_what_is_installed(two_ranks):
    import keras
    import rasterio

    found = sections(two_ranks.stdout)
    assert found["software"]["keras"] == keras.__version__
    assert found["GDAL"]["version"] == rasterio.__gdal_version__
    with rasterio.Env() as env:
        there = env.drivers()
    for driver in doctor.GDAL_DRIVERS:
        assert (found["GDAL"][driver] == "yes") is (driver in there)
    assert found["ways between nodes"]["multiworker"].startswith("TCP needed")


def test_it_shows_and_measures_the_ranks(two_ranks):
    found = sections(two_ranks.stdout)
    rows = found["2 ranks, strategy multiworker"]
    assert list(rows) == ["rank 0", "rank 1"]
    assert ["local 0" in row for row in rows.values()] == [True, False]
    assert list(found["all-reduce"]) == ["1 MiB", "2 MiB"]
    assert all(text.endswith("right") for text in found["all-reduce"].values())
    assert two_ranks.stdout.count("software") == 1, "one rank speaks"


def test_json_has_all_of_it(run_here):
    """Of this process; what it finds wrong (no Horovod) is in it, too."""
    done = run_here("doctor", "--json")
    found = json.loads(done.stdout)
    assert found["software"]["python"] == platform.python_version()
    assert set(found["GDAL"]) == {"version", *doctor.GDAL_DRIVERS}
    assert (found["strategy"], list(found["ranks"])) == ("single", ["rank 0"])
    assert found["all-reduce"] == []
    assert done.returncode == bool(found["problems"])


def test_bandwidth_is_that_of_nccl_tests():
    """2 GB in 4 s among 4 ranks: each moves 2 (N - 1) / N of it."""
    measured = doctor.AllReduce(2e9 / 2**20, 4.0, True)
    assert measured.bandwidth(4) == pytest.approx((0.5, 0.75))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["a local 0 cores 8 gpus 2 by slurm", "a local 1 cores 8 gpus 2 by slurm"], None),
        (["a local 0 cores 1 gpus 0 by slurm", "b local 0 cores 1 gpus 0 by slurm"], None),
        (["a local 0 cores 8 gpus 1 by slurm", "a local 1 cores 8 gpus 1 by slurm"], None),
        (
            [f"a local {rank} cores 8 gpus 2 by slurm" for rank in range(3)],
            "a: 3 ranks share 2 GPUs; expected one each",
        ),
        (
            ["a local 0 cores 8 gpus 1 by slurm", "a local 1 cores 8 gpus 0 by slurm"],
            "a: ranks see different numbers of GPUs",
        ),
        (
            ["a local 0 cores 1 gpus 1 by slurm", "b local 0 cores 1 gpus 1 by slurm"],
            "a: one core for a rank with a GPU, which cannot feed it: give --cpus-per-task",
        ),
        (
            [
                f"{place} cores 8 gpus 0 by slurm"
                for place in ("a local 0", "a local 1", "b local 0")
            ],
            "nodes have different numbers of ranks (a 2, b 1): the fullest sets the pace",
        ),
    ],
)
def test_what_is_wrong_with_the_places(rows, expected):
    problems = doctor.check_ranks({f"rank {n}": row for n, row in enumerate(rows)})
    assert problems[:1] == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "processor\t: 0\nflags\t\t: fpu avx512_bf16\n\nflags\t\t: other\n",
            {"fpu", "avx512_bf16"},
        ),
        ("Features\t: fp asimd bf16\n", {"fp", "asimd", "bf16"}),
        ("nothing\n", set()),
    ],
)
def test_cpu_flags(tmp_path, text, expected):
    (tmp_path / "cpuinfo").write_text(text)
    assert doctor.read_cpu_flags(tmp_path / "cpuinfo") == expected
    assert doctor.read_cpu_flags(tmp_path / "missing") == set()


def test_a_missing_driver_is_a_problem(monkeypatch):
    monkeypatch.setitem(doctor.GDAL_DRIVERS, "NOSUCH", "something")
    problems: list[str] = []
    assert doctor.describe_gdal(problems)["NOSUCH"] == "NO: something will fail"
    assert problems == ["GDAL has no driver NOSUCH: something will fail"]


# --- kerass2.launch ---------------------------------------------------------------------------


def test_launch_is_horovodrun():
    command = launch.build_command("h1:4,h2:4", "ib0", 2222, ("python", "-m", "x", "--np", "3"))
    assert command[1:] == [
        *("-m", "horovod.runner.launch", "-np", "8", "-H", "h1:4,h2:4"),
        *("--network-interfaces", "ib0", "--ssh-port", "2222", "python", "-m", "x", "--np", "3"),
    ]


@pytest.mark.parametrize("hosts", ["h1", "h1:0", "h1:2,h1:2", "h1:2;h2:2"])
def test_launch_refuses_hosts_of_another_form(hosts):
    with pytest.raises(ConfigError, match=f"--hosts {hosts}: .*expected"):
        launch.build_command(hosts, None, None, ("true",))


def test_elastic_is_horovodruns_own():
    """It begins with what there is, from the least on."""
    elastic = ["--min-np", "4", "--max-np", "6", "--blacklist-cooldown-range", "5", "300", "true"]
    command = launch.build_command("h1:4,h2:4", None, None, ("true",), "4:6")
    assert command[3:] == ["-np", "4", "-H", "h1:4,h2:4", *elastic]
    script = pathlib.Path("hosts.sh")
    command = launch.build_command(None, None, None, ("true",), "4:6", script)
    assert command[3:] == ["-np", "4", "--host-discovery-script", "hosts.sh", *elastic]


@pytest.mark.parametrize(
    ("hosts", "elastic", "discover", "said"),
    [
        ("h1:2,h2:2", "3:5", None, "--elastic 3:5: --hosts has 4 ranks only"),
        ("h1:2,h2:2", "3", None, "--elastic 3: expected MIN:MAX ranks, as in 4:8"),
        ("h1:2,h2:2", "0:2", None, "--elastic 0:2: expected MIN:MAX ranks, as in 4:8"),
        ("h1:2,h2:2", "3:2", None, "--elastic 3:2: expected MIN:MAX ranks, as in 4:8"),
        (
            "h1:4",
            "1:4",
            None,
            "--elastic 1:4: goes on without a host that fails, and",
        ),
        ("h1:2,h2:2", "1:4", "hosts.sh", "give --hosts, or --elastic with --discover"),
        (None, None, "hosts.sh", "give --hosts, or --elastic with --discover"),
        (None, "1:4", None, "give --hosts, or --elastic with --discover"),
    ],
)
def test_launch_refuses_what_does_not_go_together(hosts, elastic, discover, said):
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}"):
        launch.build_command(hosts, None, None, ("true",), elastic, discover)


@pytest.mark.horovod
def test_launch_names_a_host_that_does_not_resolve():
    pytest.importorskip("horovod", reason="Horovod is not built here")
    result = run("kerass2.launch", "--hosts", "no-such-host.invalid:2", "--", "true")
    assert result.returncode == 1
    assert "host no-such-host.invalid does not resolve on " in result.stderr.splitlines()[-1]


@pytest.mark.horovod
@pytest.mark.parametrize("strategy", ["horovod", "multiworker"])
def test_launch_starts_ranks_on_hosts(strategy):
    """This machine, which horovodrun, or the mpirun that it starts, reaches without ssh."""
    pytest.importorskip("horovod", reason="Horovod is not built here")
    here = "localhost:2"
    command = [sys.executable, "-m", "kerass2.doctor", "--strategy", strategy, "--mebibytes", "1"]
    result = run("kerass2.launch", "--hosts", here, "--interface", "lo", "--", *command)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "rank 0  localhost local 0" in result.stdout
    assert "rank 1  localhost local 1" in result.stdout
    assert "nothing wrong was found" in result.stdout
