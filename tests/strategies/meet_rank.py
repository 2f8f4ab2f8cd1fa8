"""Starts a strategy as a launcher's rank and prints "RANK of SIZE: SUM", the sum of all ranks + 1.

python meet_rank.py STRATEGY.
"""

from __future__ import annotations

import os

import click
import numpy as np

import strategies
from kerass2 import cli
from strategies import base


@click.command()
@click.argument("name")
def main(name: str) -> None:
    strategy = strategies.get(name)
    total = strategy.sum(np.array([strategy.rank + 1.0]))
    interface = os.environ.get("HOROVOD_GLOO_IFACE", "")
    place = f"{strategy.rank} of {strategy.world_size}, local {strategy.local_rank}"
    print(f"{place}: {total[0]:g} {interface}".rstrip(), flush=True)
    base.leave(strategy)


if __name__ == "__main__":
    cli.run(main)
