"""Ranks tell each other a line over real sockets: who waits, who is missing, who is a stranger."""

from __future__ import annotations

import concurrent.futures
import socket
import subprocess
import time

import pytest

from strategies import meeting
from strategies.base import StrategyError
from strategies.cluster import Cluster
from strategies.settings import Settings, read


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def meet(places: list[tuple[int, str, int]], seconds: float = 20.0, port: int | None = None):
    """Results or errors of ranks (rank, job, world size) that start in this order, 0.2 s apart."""
    chosen = Settings(port=port or free_port(), start_seconds=seconds)

    def come(rank: int, job: str, size: int):
        cluster = Cluster("slurm", rank, size, 0, 1, ("127.0.0.1",) * size, job)
        try:
            return meeting.exchange(cluster, f"line {rank}", chosen)
        except StrategyError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        futures = []
        for place in places:
            futures.append(pool.submit(come, *place))
            time.sleep(0.2)
        return [future.result() for future in futures]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 2, 0)])
def test_all_ranks_hear_all_lines(order):
    results = meet([(rank, "7.0", 4) for rank in order])
    assert results == [["line 0", "line 1", "line 2", "line 3"]] * 4


def test_a_missing_rank_is_named():
    chief, other = meet([(0, "7.0", 3), (2, "7.0", 3)], seconds=1.5)
    assert chief.startswith("1 of 3 ranks have not come to ")
    assert " in time: 1; " in chief
    # The rank that had come hears of it too, one way or the other.
    assert "left before all 3 ranks had come" in other or "did not reach" in other


def test_rank_0_missing():
    (said,) = meet([(1, "7.0", 2)], seconds=0.5)
    assert said.startswith("rank 1 did not reach rank 0 at 127.0.0.1:")


def test_a_rank_of_another_job_is_sent_away():
    chief, stranger, guest = meet([(0, "7.0", 2), (1, "8.0", 2), (1, "7.0", 2)])
    assert chief == guest == ["line 0", "line 1"]
    assert "rank 0 of another job (7.0) waits there, expected 8.0: set KERASS2_PORT" in stranger


def test_a_taken_port_is_named():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        (said,) = meet([(0, "7.0", 2)], port=port)
    assert said.startswith(f"port {port} is taken on ")
    assert said.endswith("set KERASS2_PORT to another one")


def test_other_programs_do_not_disturb():
    """A port scanner, or what else connects and says something of its own."""
    port = free_port()
    chosen = Settings(port=port, start_seconds=20)
    clusters = [Cluster("slurm", r, 2, 0, 1, ("127.0.0.1",) * 2, "7.0") for r in range(2)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        chief = pool.submit(meeting.exchange, clusters[0], "a", chosen)
        for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\xff\x00\n", b"[1]\n", b"{}\n", b""):
            deadline = time.monotonic() + 10
            while True:
                try:
                    with socket.create_connection(("127.0.0.1", port), timeout=5) as scanner:
                        scanner.sendall(noise)
                    break
                except ConnectionRefusedError:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
        guest = pool.submit(meeting.exchange, clusters[1], "b", chosen)
        assert chief.result() == guest.result() == ["a", "b"]


def test_a_host_without_address_is_named():
    cluster = Cluster("slurm", 1, 2, 0, 1, ("no-such-host.invalid", "b"), "7.0")
    with pytest.raises(StrategyError, match=r"host no-such-host\.invalid does not resolve on "):
        meeting.exchange(cluster, "", Settings(start_seconds=5))


def test_interfaces_are_those_of_the_system():
    listed = subprocess.run(["ip", "-4", "-o", "addr"], capture_output=True, text=True, check=False)
    fields = [line.split() for line in listed.stdout.splitlines()]
    if not fields:
        pytest.skip("no `ip` here")
    addresses = {name: address.partition("/")[0] for _, name, _, address, *_ in reversed(fields)}
    for name, address in addresses.items():
        assert meeting.address_of(name) == address
    assert meeting.interface_towards("127.0.0.1") == "lo"
    assert meeting.interface_towards("127.0.1.2") == "lo"


def test_a_missing_interface_is_named():
    with pytest.raises(StrategyError, match=r"no interface 'ib7' with an IPv4 address on .* lo"):
        meeting.address_of("ib7")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Settings(None, None, None, 300.0)),
        ({"KERASS2_INTERFACE": "", "KERASS2_PORT": ""}, Settings()),
        ({"KERASS2_INTERFACE": "ib0", "KERASS2_COLLECTIVES": "nccl"}, Settings("ib0", "NCCL")),
        ({"KERASS2_PORT": "4711", "KERASS2_START_SECONDS": "2.5"}, Settings(None, None, 4711, 2.5)),
        ({"KERASS2_STALL_SECONDS": "12"}, Settings(None, None, None, 300.0, 12.0)),
    ],
)
def test_settings(environ, expected):
    assert read(environ) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KERASS2_COLLECTIVES", "MPI"),
        ("KERASS2_PORT", "0"),
        ("KERASS2_PORT", "70000"),
        ("KERASS2_PORT", "-1"),
        ("KERASS2_START_SECONDS", "soon"),
        ("KERASS2_START_SECONDS", "0"),
        ("KERASS2_START_SECONDS", "inf"),
        ("KERASS2_START_SECONDS", "nan"),
        ("KERASS2_STALL_SECONDS", "-1"),
    ],
)
def test_settings_that_are_none(name, value):
    with pytest.raises(StrategyError, match=f"{name}={value}: expected"):
        read({name: value})
