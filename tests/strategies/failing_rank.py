"""Collective steps, then one rank raises or is killed; the others go on and suffer from it.

python failing_rank.py STRATEGY RANK raise|kill. Run by strategies.launch; ends as every command.
"""

from __future__ import annotations

import os
import signal

import click
import tensorflow as tf

import strategies
from kerass2 import cli


@click.command()
@click.argument("name")
@click.argument("rank", type=int)
@click.argument("how")
def main(name: str, rank: int, how: str) -> None:
    strategy = strategies.get(name)

    @tf.function
    def step(value: tf.Tensor) -> tf.Tensor:
        return strategy.run(lambda v: strategy.sum_gradients([v])[0], value)

    for number in range(10_000):
        if number == 3 and strategy.rank == rank:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError(f"the cause, on rank {rank}")
        step(tf.ones(3))


if __name__ == "__main__":
    cli.run(main)
