"""`python -m kerass2.launch --hosts h1:4,h2:4 -- COMMAND`: ranks where there is ssh, no scheduler.

horovodrun's own machinery starts and ends them (over ssh, or mpirun where Horovod has MPI); this
command adds what it does not tell the ranks: which host each is on, so that multiworker runs too.
"""

from __future__ import annotations

import importlib.util
import os
import sys

import click

from kerass2 import cli
from kerass2.config import ConfigError
from strategies import cluster, meeting
from strategies.base import StrategyError


@click.command(cls=cli.Command)
@click.option(
    "--hosts", required=True, metavar="H1:N,H2:N", help="Hosts, and how many ranks each has."
)
@click.option("--interface", help="Network interface of the ranks' traffic, e.g. ib0.")
@click.option("--ssh-port", type=click.IntRange(1, 65535), help="Default: ssh's own.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def main(hosts: str, interface: str | None, ssh_port: int | None, command: tuple[str, ...]) -> None:
    """Run COMMAND as the ranks of one job on several hosts.

    All hosts must let you in by ssh without a password and have the same files under the same
    paths. For example: python -m kerass2.launch --hosts h1:4,h2:4 -- python -m kerass2.fit
    --strategy horovod --workdir runs/one
    """
    arguments = build_command(hosts, interface, ssh_port, command)
    found = cluster.detect(os.environ)
    if found.launcher != "none":
        raise StrategyError(
            f"already rank {found.rank} of {found.world_size} under {found.launcher}: "
            "run the command itself"
        )
    if importlib.util.find_spec("horovod") is None:
        raise StrategyError("horovodrun starts the ranks, and Horovod is not here: `make setup`")
    for host in dict.fromkeys(cluster.expand_hosts(hosts)):
        meeting.resolve(host)
    told = {cluster.HOSTS: hosts} | ({"KERASS2_INTERFACE": interface} if interface else {})
    sys.stdout.flush()
    os.execve(arguments[0], arguments, {**os.environ, **told})


def build_command(
    hosts: str, interface: str | None, ssh_port: int | None, command: tuple[str, ...]
) -> list[str]:
    """The command line of horovodrun.

    Raises:
        ConfigError: the hosts are not of the form h1:4,h2:4, or one is named twice.
    """
    try:
        ranks = cluster.expand_hosts(hosts)
    except ValueError as error:
        raise ConfigError(f"--hosts {hosts}: {error}") from None
    names = [item.strip().partition(":")[0] for item in hosts.split(",")]
    if len(set(names)) < len(names):
        raise ConfigError(f"--hosts {hosts}: a host is named twice; expected each once")
    options = ["--network-interfaces", interface] if interface else []
    options += ["--ssh-port", str(ssh_port)] if ssh_port else []
    runner = [sys.executable, "-m", "horovod.runner.launch", "-np", str(len(ranks)), "-H", hosts]
    return [*runner, *options, *command]


if __name__ == "__main__":
    cli.run(main)
