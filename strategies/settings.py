"""How ranks find and reach each other, where the launcher leaves a choice: environment variables.

KERASS2_INTERFACE
    network interface of the ranks' traffic, such as ib0 (TCP over InfiniBand). Default: horovod
    takes the one that leads to the other hosts, multiworker the addresses that the hosts' names
    have.
KERASS2_COLLECTIVES
    multiworker's all-reduce: RING (gRPC), NCCL, or AUTO (tf.distribute chooses). Default: NCCL
    where there are GPUs, else RING.
KERASS2_PORT
    where rank 0 waits for the others; default: follows from the job's id.
KERASS2_START_SECONDS
    how long ranks wait for each other at the start; default: 300.
KERASS2_STALL_SECONDS
    how long ranks wait for one that says nothing (stopped, or its cable is cut) until they end with
    an error; default: 300; 0: for ever. One that ends is noticed at once.

Horovod over MPI reads none of them; MPI's and NCCL's own variables are respected everywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from strategies.base import StrategyError

COLLECTIVES = ("AUTO", "RING", "NCCL")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The variables above, read and checked."""

    interface: str | None = None
    """Name, or None: see above."""
    collectives: str | None = None
    """One of COLLECTIVES, or None: by whether there are GPUs."""
    port: int | None = None
    """1 to 65535, or None: Cluster.port."""
    start_seconds: float = 300.0
    """Above 0 [s]."""
    stall_seconds: float = 300.0
    """0 or more [s]."""

    @property
    def library_seconds(self) -> float:
        """The same for libraries that have no "for ever": a week."""
        return self.stall_seconds or 7 * 24 * 3600.0


def read(environ: Mapping[str, str]) -> Settings:
    """The settings of an environment; an empty variable counts as none.

    Raises:
        StrategyError: a value is none of those allowed.
    """
    interface = environ.get("KERASS2_INTERFACE") or None
    collectives = environ.get("KERASS2_COLLECTIVES", "").upper() or None
    if collectives not in (None, *COLLECTIVES):
        raise StrategyError(
            f"KERASS2_COLLECTIVES={environ['KERASS2_COLLECTIVES']}: "
            f"expected {', '.join(COLLECTIVES)}"
        )
    port = environ.get("KERASS2_PORT") or None
    if port is not None and not (port.isdecimal() and 1 <= int(port) <= 65535):
        raise StrategyError(f"KERASS2_PORT={port}: expected a number from 1 to 65535")
    return Settings(
        interface,
        collectives,
        None if port is None else int(port),
        _read_seconds(environ, "KERASS2_START_SECONDS", least=1e-3),
        _read_seconds(environ, "KERASS2_STALL_SECONDS", least=0.0),
    )


def _read_seconds(environ: Mapping[str, str], name: str, least: float) -> float:
    text = environ.get(name) or "300"
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not least <= seconds < float("inf"):
        raise StrategyError(f"{name}={text}: expected a number of seconds")
    return seconds
