"""`kerass2.fit --profile STEPS`: what some steps spend their time on, for TensorBoard or Perfetto.

By the backend's own profiler, into the work folder's tensorboard/: TensorBoard shows it with
tensorboard-plugin-profile (of torch: torch-tb-profiler), Perfetto opens its trace files.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click

from kerass2 import backend

if TYPE_CHECKING:
    from kerass2.train import Step

_KEY = "kerass2.profile"

# Steps of a session before the first that is recorded: the first compiles, and buffers fill.
FIRST = 3


def _keep(context: click.Context, _: click.Parameter, value: int | None) -> None:
    context.meta[_KEY] = value or 0


# How a run is watched is no part of its job: the number stays with the command line.
option = click.option(
    "--profile",
    type=click.IntRange(min=1),
    metavar="STEPS",
    callback=_keep,
    expose_value=False,
    help="Record what so many steps of rank 0 spend their time on, into WORKDIR/tensorboard.",
)


def num_asked() -> int:
    """Steps that the command line of this process asks for."""
    context = click.get_current_context(silent=True)
    return 0 if context is None else int(context.meta.get(_KEY, 0))


@contextlib.contextmanager
def record_steps(step: Step, number: int, folder: pathlib.Path) -> Iterator[Step]:
    """Inside the `with` block, a step of which `number` calls are recorded, after FIRST others.

    What is recorded is written after the last of them, or at the end of the block.

    Args:
        step: as train.train calls it.
        number: 0: none.
        folder: for the backend's files.
    """
    if not number:
        yield step
        return
    done = 0
    with contextlib.ExitStack() as recording:

        def counted(batch: Mapping[str, Any], stop: bool) -> dict[str, float]:
            nonlocal done
            if done == FIRST:
                folder.mkdir(parents=True, exist_ok=True)
                recording.enter_context(_record(folder))
            values = step(batch, stop)
            done += 1
            if done == FIRST + number:
                recording.close()
            return values

        yield counted


def _record(folder: pathlib.Path) -> AbstractContextManager[Any]:
    """The backend's profiler. Steps end when their loss is known, so all of them is in it."""
    name = backend.find()
    found: AbstractContextManager[Any]
    if name == "jax":
        import jax

        found = jax.profiler.trace(str(folder))
    elif name == "torch":
        import torch

        write = torch.profiler.tensorboard_trace_handler(str(folder))
        found = torch.profiler.profile(on_trace_ready=write)
    else:
        import tensorflow as tf

        found = tf.profiler.experimental.Profile(str(folder))
    return found
