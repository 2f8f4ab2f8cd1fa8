"""`python -m kerass2.launch --hosts h1:4,h2:4 -- COMMAND`: ranks where there is ssh, no scheduler.

horovodrun's own machinery starts and ends them (over ssh, or mpirun where Horovod has MPI); this
command adds what it does not tell the ranks: which host each is on, so that multiworker runs too.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import socket
import sys
import time

import click

from kerass2 import cli
from kerass2.config import ConfigError
from strategies import cluster, meeting
from strategies.base import StrategyError

# Seconds after which a host whose rank has failed is tried again: at first, at most.
COOLDOWN = (5, 300)


@click.command(cls=cli.Command)
@click.option("--hosts", metavar="H1:N,H2:N", help="Hosts, and how many ranks each has.")
@click.option(
    "--elastic",
    metavar="MIN:MAX",
    help="Go on with the ranks that are left when a host fails, and with it when it is back; "
    "kerass2.fit --strategy horovod only, over TCP.",
)
@click.option(
    "--discover",
    type=click.Path(path_type=pathlib.Path),
    metavar="SCRIPT",
    help="With --elastic instead of --hosts: prints a line H:N for each host there is now.",
)
@click.option("--interface", help="Network interface of the ranks' traffic, e.g. ib0.")
@click.option("--ssh-port", type=click.IntRange(1, 65535), help="Default: ssh's own.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def main(
    hosts: str | None,
    elastic: str | None,
    discover: pathlib.Path | None,
    interface: str | None,
    ssh_port: int | None,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND as the ranks of one job on several hosts.

    All hosts must let you in by ssh without a password and have the same files under the same
    paths. For example: python -m kerass2.launch --hosts h1:4,h2:4 -- python -m kerass2.fit
    --strategy horovod --workdir runs/one

    With --elastic, ranks that fail or come make all begin again from the newest checkpoint; the
    global batch stays. horovodrun does not notice a host that stays silent instead of failing.
    """
    arguments = build_command(hosts, interface, ssh_port, command, elastic, discover)
    found = cluster.detect(os.environ)
    if found.launcher != "none":
        raise StrategyError(
            f"already rank {found.rank} of {found.world_size} under {found.launcher}: "
            "run the command itself"
        )
    if importlib.util.find_spec("horovod") is None:
        raise StrategyError("horovodrun starts the ranks, and Horovod is not here: `make setup`")
    for host in dict.fromkeys(cluster.expand_hosts(hosts) if hosts else ()):
        meeting.resolve(host)
    told = {"KERASS2_INTERFACE": interface} if interface else {}
    if elastic:
        # horovodrun alone knows which hosts are there; ranks know the run by its name.
        told[cluster.JOB] = f"{socket.gethostname()}:{os.getpid()}:{time.time_ns()}"
    elif hosts:
        told[cluster.HOSTS] = hosts
    sys.stdout.flush()
    os.execve(arguments[0], arguments, {**os.environ, **told})


def build_command(
    hosts: str | None,
    interface: str | None,
    ssh_port: int | None,
    command: tuple[str, ...],
    elastic: str | None = None,
    discover: pathlib.Path | None = None,
) -> list[str]:
    """The command line of horovodrun.

    Raises:
        ConfigError: the hosts are not of the form h1:4,h2:4, or one is named twice; or `elastic` is
            not of the form 4:8, or there are fewer ranks or hosts than it needs; or what there is
            does not go together.
    """
    if (hosts is None) == (discover is None) or (discover and not elastic):
        raise ConfigError("give --hosts, or --elastic with --discover")
    ranks = _count_ranks(hosts) if hosts else {}
    options = ["--network-interfaces", interface] if interface else []
    options += ["--ssh-port", str(ssh_port)] if ssh_port else []
    number = str(sum(ranks.values()))
    if elastic:
        number, most = _parse_range(elastic, ranks)
        options += ["--min-np", number, "--max-np", most]
        options += ["--blacklist-cooldown-range", *map(str, COOLDOWN)]
    where = ["-H", hosts] if hosts else ["--host-discovery-script", str(discover)]
    runner = [sys.executable, "-m", "horovod.runner.launch", "-np", number, *where]
    return [*runner, *options, *command]


def _count_ranks(hosts: str) -> dict[str, int]:
    """Host -> ranks."""
    try:
        ranks = cluster.expand_hosts(hosts)
    except ValueError as error:
        raise ConfigError(f"--hosts {hosts}: {error}") from None
    names = [item.strip().partition(":")[0] for item in hosts.split(",")]
    if len(set(names)) < len(names):
        raise ConfigError(f"--hosts {hosts}: a host is named twice; expected each once")
    return {name: ranks.count(name) for name in names}


def _parse_range(text: str, ranks: dict[str, int]) -> tuple[str, str]:
    """Least and most ranks; `ranks` of each host, empty where a script finds them."""
    match = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text)
    if not match or int(match[1]) > int(match[2]):
        raise ConfigError(f"--elastic {text}: expected MIN:MAX ranks, as in 4:8")
    if ranks and len(ranks) < 2:
        raise ConfigError(
            f"--elastic {text}: goes on without a host that fails, and --hosts names one only"
        )
    if ranks and int(match[2]) > sum(ranks.values()):
        raise ConfigError(f"--elastic {text}: --hosts has {sum(ranks.values())} ranks only")
    return match[1], match[2]


if __name__ == "__main__":
    cli.run(main)
