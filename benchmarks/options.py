"""Options that several benchmarks have, in the same words everywhere."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import click

PRECISIONS = ("float32", "bfloat16")

Decorator = Callable[[Any], Any]


def count(name: str, default: int, text: str | None = None) -> Decorator:
    """A number, at least 1."""
    number = click.IntRange(min=1)
    return click.option(name, default=default, show_default=True, type=number, help=text)


def settings_of(*default: str) -> Decorator:
    """`--set` of a benchmark that has settings of its own."""
    return click.option(
        "--set",
        "settings",
        multiple=True,
        default=default,
        show_default=True,
        metavar="KEY=VALUE",
        help="As in kerass2.fit, for every run.",
    )


def choice(name: str, argument: str, values: Iterable[str]) -> Decorator:
    """One of `values`, given again for more; by default all."""
    every = tuple(values)
    return click.option(name, argument, multiple=True, type=click.Choice(every), default=every)


experiment = click.option(
    "--experiment", default="superres_20m", show_default=True, help="Whose model."
)
patch = count("--patch", 32, "Edge of a patch [px of 10 m].")
precisions = choice("--precision", "precisions", PRECISIONS)
settings = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="As in kerass2.fit."
)
# Of benchmarks that train on the sample to the end.
compact = click.option("--experiment", default="superres_20m_compact", show_default=True)
data = click.option("--data", help="As in kerass2.fit; default: the real sample.")
note = click.option("--note", default="", help="Kept in the record: what else this machine did.")
folder = click.option(
    "--folder",
    type=click.Path(path_type=pathlib.Path),
    help="Where data and runs lie, kept for the next time; default: a temporary folder.",
)
# Of a made-up BigEarthNet.
edge = click.option(
    "--edge", default=32, type=click.IntRange(8, 120), show_default=True, help="Of a patch [px]."
)
