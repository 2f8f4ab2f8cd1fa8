"""What every command that runs on ranks shares: its options, and the start of the ranks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kerass2 import backend, messages
from kerass2.config import ConfigError
from strategies import STRATEGIES, launch
from strategies.cluster import JOB, detect

if TYPE_CHECKING:
    from strategies.base import Strategy

_Command = TypeVar("_Command", bound=Callable[..., Any])


def options(default: str) -> Callable[[_Command], _Command]:
    """The options --strategy and --workers."""

    def add(command: _Command) -> _Command:
        command = click.option(
            "--workers",
            type=click.IntRange(min=1),
            help="Ranks to start here; default: one per GPU, else 2.",
        )(command)
        return click.option(
            "--strategy",
            type=click.Choice(list(STRATEGIES)),
            default=default,
            show_default=True,
            help="How one step spreads over ranks.",
        )(command)

    return add


def world_size(strategy: str, workers: int | None) -> int:
    """Ranks that this command line asks for, or that the launcher around it has started.

    Raises:
        ConfigError: --workers contradicts the strategy or the launcher.
    """
    cluster = detect(os.environ)
    if strategy == "single":
        if workers not in (None, 1):
            raise ConfigError(
                f"--workers {workers} with --strategy single; choose horovod or multiworker"
            )
        return 1
    if cluster.launcher == "none":
        return workers or launch.default_workers()
    if workers not in (None, cluster.world_size):
        raise ConfigError(
            f"--workers {workers}, but {cluster.launcher} has started {cluster.world_size} ranks"
        )
    return cluster.world_size


def start(strategy: str, workers: int | None, restarts: int = 0) -> Strategy:
    """This process' rank.

    Outside a launcher, a distributed strategy's ranks are started and waited for instead: every
    rank then runs this process' own command line again, and this call does not return. With
    `restarts`, likewise a single one, and all are started again when one fails.

    Raises:
        ConfigError: --workers, or Keras' backend, does not go with the strategy.
    """
    import strategies

    backend.check(strategy)
    ranks = world_size(strategy, workers)
    if not launch.needed(strategy, restarts):
        started = strategies.get(strategy)
        launcher = detect(os.environ).launcher
        if restarts and started.is_chief and launcher != "none" and JOB not in os.environ:
            messages.warn(
                f"--restarts {restarts} is for ranks that this command starts itself; "
                f"these are {launcher}'s, and Slurm puts a job back by itself (sbatch --requeue)"
            )
        return started
    cores = len(os.sched_getaffinity(0))
    if ranks > cores:
        messages.warn(f"{ranks} workers share {cores} cores and will be slower for it")
    if strategy != "single":
        why = "--workers" if workers else "default: one per GPU, else 2"
        messages.note(f"starting {ranks} {strategy} ranks on this machine ({why})")
    command = [sys.executable, *sys.orig_argv[1:]]
    raise SystemExit(launch.run(command, strategy=strategy, workers=ranks, restarts=restarts))
