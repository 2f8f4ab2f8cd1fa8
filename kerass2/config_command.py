"""`python -m kerass2.config list|show|diff|validate`: experiments, before they are trained.

EXPERIMENT is a name, FILE.py:NAME, a work folder or its experiment.json.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import click

from kerass2 import cli, config

_SETTINGS = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="E.g. run.global_batch=64."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys, as --set takes them, of Experiment.to_json."""
    return dict(_items(values, prefix))


def _items(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _items(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def find_differences(one: config.Experiment, two: config.Experiment) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> value in each, where they differ; None where a key is not there."""
    first, second = flatten(one.to_json()), flatten(two.to_json())
    return {
        key: (first.get(key), second.get(key))
        for key in {**first, **second}
        if first.get(key) != second.get(key)
    }


def validate(experiment: config.Experiment) -> str:
    """Build all that an experiment names, without data; a line about the network.

    Raises:
        ConfigError: what does not exist, or does not go together.
    """
    import numpy as np

    from data_pipelines.transforms import TRANSFORMS
    from kerass2 import losses, models, optimizers, precision

    unknown = [name for name in experiment.data.augment if name not in TRANSFORMS]
    if unknown:
        there = ", ".join(TRANSFORMS)
        raise config.ConfigError(f"data.augment: no transform {unknown[0]!r}; there are: {there}")
    ready = config.with_global_batch(experiment, 1)
    run = ready.run
    # Of a run in epochs the data decide how many steps that are.
    num_steps = config.num_steps(ready, 1000)
    policy = precision.POLICIES.get(run.precision, "float32")
    model = models.build(ready.model.name, dtype=policy, **ready.model.options)
    told = models.describe(model)
    # Counts of labels come with data: here each class is on half of the patches.
    counts = np.ones(len(told["target_bands"]), np.int64), 2
    losses.get(ready.loss, ready.loss_options, counts)
    optimizers.build(
        ready.optimizer,
        precision=run.precision,
        global_batch=run.global_batch or 1,
        num_steps=num_steps,
        steps_per_epoch=1000,
    )
    if told["task"] != ready.data.task:
        raise config.ConfigError(
            f"data.task is {ready.data.task}, but model {ready.model.name} is for {told['task']}"
        )
    return f"{ready.model.name}, {model.count_params():,} parameters, {told['task']}"


@click.group(cls=cli.Group)
def main() -> None:
    """Show, compare and check experiments: names, FILE.py:NAME, work folders, experiment.json."""


@main.command("list")
@_JSON
def list_names(as_json: bool) -> None:
    """Experiments that come with kerass2."""
    import ast
    import importlib.util

    lines = {}
    for name in config.names():
        spec = importlib.util.find_spec(f"kerass2.configs.{name}")
        source = pathlib.Path((spec and spec.origin) or "").read_text(encoding="utf-8")
        lines[name] = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
    if as_json:
        click.echo(json.dumps(lines, indent=2))
        return
    width = max(map(len, lines))
    for name, text in lines.items():
        click.echo(f"{name:<{width}}  {text}")


@main.command
@click.argument("experiment")
@_SETTINGS
@_JSON
def show(experiment: str, settings: tuple[str, ...], as_json: bool) -> None:
    """Print every value of EXPERIMENT, with keys as --set takes them."""
    found = config.override(config.find(experiment), settings).to_json()
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for key, value in flatten(found).items():
        click.echo(f"{key} = {json.dumps(value)}")


@main.command
@click.argument("one")
@click.argument("other")
@_JSON
def diff(one: str, other: str, as_json: bool) -> None:
    """Print the values in which two experiments differ; exit code 1 if there are any."""
    found = find_differences(config.find(one), config.find(other))
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        for key, (here, there) in found.items():
            click.echo(f"{key}: {json.dumps(here)} -> {json.dumps(there)}")
    if found:
        raise click.exceptions.Exit(1)


@main.command("validate")
@click.argument("experiments", metavar="EXPERIMENT...", nargs=-1, required=True)
@_SETTINGS
def validate_all(experiments: tuple[str, ...], settings: tuple[str, ...]) -> None:
    """Build network, loss, optimizer and schedule of each EXPERIMENT, without data."""
    for name in experiments:
        try:
            told = validate(config.override(config.find(name), settings))
        except config.ConfigError as error:
            raise config.ConfigError(f"{name}: {error}") from error
        click.echo(f"{name}: {told}")


def run() -> NoReturn:
    """As `python -m kerass2.config`."""
    cli.run(main)


if __name__ == "__main__":
    run()
