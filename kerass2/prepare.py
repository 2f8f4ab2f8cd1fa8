"""`python -m kerass2.prepare SOURCE... -o DIR`: cut scenes into patches under Wald's protocol."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import click

from kerass2 import cli

if TYPE_CHECKING:
    from data_pipelines.convert import Summary

# Repeated here so that --help imports neither numpy nor xarray; a test holds them equal.
TASKS = ("superres_20m", "superres_60m")
FORMATS = ("tfrecord",)
SPLITS = ("auto", "train", "validation", "test")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=pathlib.Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=pathlib.Path), help="Folder to make."
)
@click.option("--task", type=click.Choice(TASKS), default=TASKS[0], show_default=True)
@click.option(
    "--format", "file_format", type=click.Choice(FORMATS), default=FORMATS[0], show_default=True
)
@click.option(
    "--split",
    type=click.Choice(SPLITS),
    default="auto",
    show_default=True,
    help="auto: by place, in about 0.8, 0.1, 0.1: three or more places (tiles or scenes) go to one "
    "split each as wholes; one or two cannot fill three splits, so they are divided into blocks of "
    "at least 2.56 km. Else everything goes into that split.",
)
@click.option(
    "--patch-size",
    type=click.IntRange(1),
    help="Edge of a patch in pixels of the target; default: 32 (20 m), 96 (60 m).",
)
@click.option(
    "--stride",
    type=click.IntRange(1),
    help="Distance of training patches in pixels of the target; default: half a patch. "
    "Patches of validation and test do not overlap.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="For the choice of places.")
@click.option("--overwrite", is_flag=True, help="Replace a data set that is there already.")
def main(
    sources: tuple[pathlib.Path, ...],
    output: pathlib.Path,
    task: str,
    file_format: str,
    split: str,
    patch_size: int | None,
    stride: int | None,
    seed: int,
    overwrite: bool,
) -> None:
    """Cut SOURCES into aligned patches under Wald's protocol.

    A SOURCE is a .npz scene or a folder of them; a folder of gsd10.tif, gsd20.tif, gsd60.tif; a
    BigEarthNet patch folder, a folder of them, or the LMDB of BigEarthNet v2. The words sample and
    synthetic mean an area of the real sample and a made-up granule.
    """
    from rich.console import Console
    from rich.progress import Progress

    from data_pipelines import convert, sample

    resolved = [sample.resolve_granule(source) for source in sources]
    paths = [path for path, _ in resolved]
    for message in dict.fromkeys(message for _, message in resolved if message):
        click.echo(message, err=True)
    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("cutting", total=None)
        summary = convert.convert(
            lambda: convert.open_all(paths),
            output,
            task,
            only_split=None if split == "auto" else split,
            patch_size=patch_size,
            stride=stride,
            seed=seed,
            provenance={"sources": [str(source) for source in sources], "format": file_format},
            overwrite=overwrite,
            advance=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    _print_summary(summary, task, split == "auto")
    if summary.synthetic:
        click.echo("THIS DATA SET IS SYNTHETIC: MADE UP, NOT MEASURED", err=True)


def _print_summary(summary: Summary, task: str, by_place: bool) -> None:
    """A table of what came out."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title=f"{task}: {summary.granules} granules of {summary.scenes} scenes")
    table.add_column("split")
    table.add_column("patches", justify="right")
    for name, count in summary.counts.items():
        table.add_row(name, f"{count:,}")
    console.print(table)
    if summary.dropped:
        console.print(f"left out: {summary.dropped:,} patches with pixels without data")
    empty = [name for name, count in summary.counts.items() if not count]
    if by_place and empty:
        console.print(f"no patches in {', '.join(empty)}: too few places to keep splits apart")
    console.print(f"written: {summary.folder}", soft_wrap=True)


if __name__ == "__main__":
    cli.run(main)
