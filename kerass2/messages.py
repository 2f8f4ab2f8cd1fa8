"""What commands say besides their results, on the error output; --log-level says how much.

The level stands in the environment, so that processes which a command starts have it too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

LEVELS = ("debug", "info", "warning", "error")
DEFAULT = "info"
VARIABLE = "KERASS2_LOG_LEVEL"


def shows(level: str) -> bool:
    """Whether messages of a level, a word of LEVELS, are wanted."""
    wanted = os.environ.get(VARIABLE, DEFAULT)
    return LEVELS.index(level) >= LEVELS.index(wanted if wanted in LEVELS else DEFAULT)


def note(text: str) -> None:
    """Say what is good to know."""
    if shows("info"):
        click.echo(text, err=True)


def warn(text: str) -> None:
    """Say what may be wrong."""
    if shows("warning"):
        click.echo(f"warning: {text}", err=True)


def has_progress(console: Console) -> bool:
    """Whether bars are drawn there: on terminals only, and not when notes are unwanted."""
    return console.is_terminal and shows("info")


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar, gone at its end, of what takes long; gives the function to call: (done, total)."""
    import rich.console
    import rich.progress

    console = rich.console.Console(stderr=True)
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    with rich.progress.Progress(
        *columns, console=console, transient=True, disable=not has_progress(console)
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
