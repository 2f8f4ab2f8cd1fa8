"""`python -m kerass2.models [NAME...]`: parameters and operations of models and experiments."""

from __future__ import annotations

import json
from typing import Any

import click

from kerass2 import cli


def count_named(name: str, patch: int | None = None) -> dict[str, Any]:
    """The cost of a model with its default options, or of an experiment's.

    Args:
        name: a key of models.MODELS, or an experiment of kerass2.configs.
        patch: edge of a patch [px of the target]; by default the model's block, else what
            kerass2.prepare cuts for the task.

    Returns:
        {"name": .., "model": .., "task": .., "parameters": .., "patch": [px], "convolutions",
        "attention": operations for a pixel of the output, "patch_operations": for a patch,
        "raster": for a pixel of a raster, where two lattices are blended, without overlap of
        windows; None without a lattice}, of the forward pass.

    Raises:
        ConfigError: there is nothing of that name.
    """
    from data_pipelines import cube
    from kerass2 import config, models
    from kerass2.models import blending, cost, labels

    if name in models.MODELS:
        chosen, options = name, dict[str, Any]()
    elif name in config.names():
        experiment = config.load(name)
        chosen = experiment.model.name
        options = experiment.model.options
    else:
        there = ", ".join([*models.MODELS, *config.names()])
        raise config.ConfigError(f"no model and no experiment {name!r}; there are: {there}")
    model = models.build(chosen, **options)
    described = models.describe(model)
    on_raster = None
    if described["task"] == config.LABEL_TASK:
        patch = patch or labels.EDGE
        found = cost.count_classifier(model, patch)
    else:
        block = described["block"]
        patch = patch or block or cube.TASKS[described["task"]].patch_size
        found = cost.count(model)
        if block:
            on_raster = cost.count(blending.blend(model)).attention(block)
    return {
        "name": name,
        "model": chosen,
        "task": described["task"],
        "parameters": found.parameters,
        "patch": patch,
        "convolutions": found.convolutions,
        "attention": found.attention(patch),
        "patch_operations": found.of_patch(patch),
        "raster": None if on_raster is None else found.convolutions + on_raster,
    }


def build_table(rows: list[dict[str, Any]]) -> Any:
    """One row a model; what is worth 80 columns."""
    import rich.box
    import rich.table

    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("model or experiment", no_wrap=True)
    for title in ("parameters", "conv.\n[kFLOP/px]", "attention\n[kFLOP/px]", "patch\n[px]"):
        table.add_column(title, justify="right")
    table.add_column("a patch\n[GFLOP]", justify="right")
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['parameters']:,}",
            f"{row['convolutions'] / 1e3:,.1f}",
            f"{row['attention'] / 1e3:,.1f}",
            str(row["patch"]),
            f"{row['patch_operations'] / 1e9:,.2f}",
        )
    return table


@click.command(cls=cli.Command)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option(
    "--patch",
    type=click.IntRange(1),
    help="Edge of a patch [px of the target]; default: the model's block, else the task's patches.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def main(names: tuple[str, ...], patch: int | None, as_json: bool) -> None:
    """Parameters and floating-point operations of models and experiments; default: all.

    Operations are those of convolutions and matrix products in one forward pass, two for each
    multiplication with its sum, for one pixel of the output and for a patch; a training step takes
    three times as many.
    """
    from kerass2 import config, models

    rows = [count_named(name, patch) for name in names or (*models.MODELS, *config.names())]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    import rich.console

    rich.console.Console().print(build_table(rows))


if __name__ == "__main__":
    cli.run(main)
