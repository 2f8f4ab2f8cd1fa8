"""What commands say besides their results, on the error output; --log-level says how much.

The level stands in the environment, so that processes which a command starts have it too.
"""

from __future__ import annotations

import os
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
