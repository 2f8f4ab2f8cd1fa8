"""Ranks of one job meet at rank 0's host and tell each other a line, such as an address.

For launchers that start ranks but do not connect them (srun without MPI). TCP and IPv4.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import socket
import struct
import time
from typing import Any

from strategies.base import StrategyError
from strategies.cluster import Cluster
from strategies.settings import Settings

SIOCGIFADDR = 0x8915  # linux/sockios.h
RETRY_SECONDS = 0.2
# A rank that has connected sends its line at once.
LINE_SECONDS = 10.0
# Of the answer, with an address for each of some ten thousand ranks [byte].
LONGEST_LINE = 2**20


def exchange(cluster: Cluster, own: str, settings: Settings) -> list[str]:
    """The line of every rank, in order of rank. Every rank calls it.

    Raises:
        StrategyError: a rank has not come in time, rank 0's host has no address, its port is
            taken, or another job waits there.
    """
    host, port = cluster.require_hosts()[0], settings.port or cluster.port
    deadline = time.monotonic() + settings.start_seconds
    if cluster.rank == 0:
        return _serve(cluster, own, port, deadline)
    return _visit(cluster, own, host, port, deadline)


def _serve(cluster: Cluster, own: str, port: int, deadline: float) -> list[str]:
    """Rank 0's part: wait for all, then answer all."""
    lines = {0: own}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(port, cluster.world_size))
        guests = []
        while len(lines) < cluster.world_size:
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                guest = stack.enter_context(server.accept()[0])
            except TimeoutError:
                missing = [str(r) for r in range(cluster.world_size) if r not in lines]
                raise StrategyError(
                    f"{len(missing)} of {cluster.world_size} ranks have not come to "
                    f"{socket.gethostname()}:{port} in time: {', '.join(missing[:8])}; did they "
                    "start, and does TCP reach this host? (KERASS2_START_SECONDS, KERASS2_PORT)"
                ) from None
            said = _receive(guest)
            if said is None or said.get("job") != cluster.job or said.get("rank") in lines:
                _send(guest, {"job": cluster.job})
                guest.close()
                continue
            lines[said["rank"]] = said["line"]
            guests.append(guest)
        answer = [lines[rank] for rank in range(cluster.world_size)]
        for guest in guests:
            _send(guest, {"job": cluster.job, "lines": answer})
    return answer


def _listen(port: int, world_size: int) -> socket.socket:
    try:
        return socket.create_server(("", port), backlog=world_size)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise StrategyError(
            f"port {port} is taken on {socket.gethostname()}, where rank 0 waits for the others: "
            "set KERASS2_PORT to another one"
        ) from None


def _visit(cluster: Cluster, own: str, host: str, port: int, deadline: float) -> list[str]:
    """The others' part: knock until rank 0 opens, then wait for its answer."""
    address = resolve(host)
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise StrategyError(
                f"rank {cluster.rank} did not reach rank 0 at {host}:{port} in time: did it "
                "start, and does TCP reach it? (KERASS2_START_SECONDS, KERASS2_PORT)"
            )
        try:
            guest = socket.create_connection((address, port), timeout=left)
        except OSError:
            time.sleep(min(RETRY_SECONDS, left))
            continue
        with guest:
            _send(guest, {"job": cluster.job, "rank": cluster.rank, "line": own})
            said = _receive(guest, left)
        if said is None:
            raise StrategyError(
                f"rank 0 at {host}:{port} left before all {cluster.world_size} ranks had come"
            )
        if said.get("job") != cluster.job or "lines" not in said:
            raise StrategyError(
                f"{host}:{port}: rank 0 of another job ({said.get('job')}) waits there, expected "
                f"{cluster.job}: set KERASS2_PORT to another port, the same on all ranks"
            )
        return [str(line) for line in said["lines"]]


def _send(connection: socket.socket, value: dict[str, Any]) -> None:
    try:
        connection.sendall(json.dumps(value).encode() + b"\n")
    except OSError:
        return  # whoever waits for it sees the connection's end


def _receive(connection: socket.socket, seconds: float = LINE_SECONDS) -> dict[str, Any] | None:
    """One line; None where none came, or not one of ours."""
    connection.settimeout(seconds)
    try:
        with connection.makefile("rb") as file:
            value = json.loads(file.readline(LONGEST_LINE))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def resolve(host: str) -> str:
    """IPv4 address of a host's name.

    Raises:
        StrategyError: it has none here.
    """
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        raise StrategyError(
            f"host {host} does not resolve on {socket.gethostname()} ({error.strerror or error}): "
            "is it in DNS or /etc/hosts?"
        ) from None


def address_of(interface: str) -> str:
    """IPv4 address of a network interface of this host.

    Raises:
        StrategyError: there is no such interface, or it has none.
    """
    address = _address(interface)
    if address is None:
        names = [name for _, name in socket.if_nameindex() if _address(name)]
        raise StrategyError(
            f"no interface {interface!r} with an IPv4 address on {socket.gethostname()}; "
            f"there are {', '.join(names)}"
        )
    return address


def interface_towards(host: str) -> str | None:
    """The interface whose address this host has when it talks to `host`; None where none fits.

    Raises:
        StrategyError: the host does not resolve.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Nothing is sent: connecting a datagram socket only chooses the route.
        probe.connect((resolve(host), 9))
        own = probe.getsockname()[0]
    if own.startswith("127."):
        own = "127.0.0.1"
    return next((name for _, name in socket.if_nameindex() if _address(name) == own), None)


def _address(interface: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            request = struct.pack("256s", interface.encode()[:15])
            return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)[20:24])
        except OSError:
            return None
