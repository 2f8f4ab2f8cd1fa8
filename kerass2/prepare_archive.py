"""`python -m kerass2.prepare ARCHIVE --task bigearthnet`: a BigEarthNet archive to a data set."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from kerass2 import messages

if TYPE_CHECKING:
    from data_pipelines.bigearthnet_convert import Summary

# Patches that could not be read, and absent ones, that are named.
NAMED = 20
# Patches of the word synthetic without a number.
SYNTHETIC = 1000


def run(
    sources: tuple[pathlib.Path, ...],
    output: pathlib.Path,
    split: str,
    options: Mapping[str, Any],
    *,
    as_json: bool = False,
) -> None:
    """Convert one archive and print the account; exit code 1 if a patch could not be read.

    Raises:
        click.UsageError: not one archive, or models that do not fit --upsample.
        DataError: see bigearthnet_convert.convert_archive.
    """
    from data_pipelines import bigearthnet_convert, sample

    if len(sources) != 1:
        raise click.UsageError(f"--task bigearthnet: expected one ARCHIVE, got {len(sources)}")
    classes = None if options["classes"] is None else int(options["classes"])
    word, _, number = str(sources[0]).partition(":")
    if word == "synthetic" and not sources[0].exists():
        folder = _write_synthetic(output, number, split, classes, options)
        told = {"folder": str(folder), "synthetic": True}
        click.echo(json.dumps(told, indent=2) if as_json else f"written: {folder}")
        click.echo("THIS DATA SET IS SYNTHETIC: MADE UP, NOT MEASURED", err=True)
        return
    is_sample = word == "sample" and not sources[0].exists()
    archive = sample.fetch_archive() if is_sample else sources[0]
    upsample = _find_upsampler(options)
    shared = ("file_format", "processes", "scheduler", "overwrite", "resume")
    with messages.progress("reading patches") as advance:
        summary = bigearthnet_convert.convert_archive(
            archive,
            output,
            num_classes=classes,
            split="official" if split == "auto" else split,
            upsample=upsample,
            lists=options["lists"] or (archive if is_sample else None),
            provenance={"sources": [str(source) for source in sources]},
            advance=advance,
            **{name: options[name] for name in shared},
        )
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(summary), indent=2, default=str))
        _print_errors(summary)
    else:
        print_summary(summary)
    if summary.failed:
        click.get_current_context().exit(1)


def _find_upsampler(options: Mapping[str, Any]) -> Any:
    """A method by its name, or a description and what upsamples.

    Raises:
        click.UsageError: options that contradict each other.
        DataError: models or tiles that do not fit.
    """
    from data_pipelines import bigearthnet_tiles
    from kerass2 import upsamplers

    method, models = options["upsample"], [options["model"], options["model_60m"]]
    paths = tuple(path.absolute() for path in models if path is not None)
    if options["tiles"] is not None:
        if method is not None or paths:
            raise click.UsageError("--tiles are upsampled already: no --upsample and no --model")
        tiles = bigearthnet_tiles.find_tiles(options["tiles"])
        return tiles.description, tiles
    if method not in upsamplers.METHODS:
        if paths:
            raise click.UsageError("--model: only with --upsample dsen2 or s2x")
        return method or "none"
    if options["model"] is None:
        raise click.UsageError(f"--upsample {method}: expected --model, and --model-60m if any")
    found = upsamplers.Models(method, paths)
    found.load()  # what is wrong with it shows before any patch is read
    return found.description, found


def _write_synthetic(
    output: pathlib.Path,
    number: str,
    split: str,
    classes: int | None,
    options: Mapping[str, Any],
) -> pathlib.Path:
    """The data set of a made-up archive, which is never written itself."""
    from data_pipelines import bigearthnet_patches, synthetic_archive

    if number and not number.isdigit():
        raise click.UsageError(f"synthetic:{number}: expected a number of patches, synthetic:20000")
    if split != "auto":
        raise click.UsageError("--split: a synthetic archive is split by whole tiles")
    if options["upsample"] not in (None, *bigearthnet_patches.UPSAMPLERS) or options["tiles"]:
        raise click.UsageError(
            f"a synthetic archive: --upsample {' or '.join(bigearthnet_patches.UPSAMPLERS)}"
        )
    with messages.progress("making patches up") as advance:
        folder = synthetic_archive.write_dataset(
            output,
            int(number or SYNTHETIC),
            num_classes=classes or 43,
            upsample=options["upsample"] or "none",
            file_format=options["file_format"],
            overwrite=options["overwrite"],
            advance=advance,
        )
    return pathlib.Path(folder)


def print_summary(summary: Summary) -> None:
    """What became of each patch: tables that add up to the archive's size."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title=f"bigearthnet: {summary.total:,} patches in the archive")
    table.add_column("what became of them")
    table.add_column("patches", justify="right")
    for name, count in summary.counts.items():
        table.add_row(name, f"{count:,}")
    for reason, count in summary.left_out.items():
        table.add_row(f"left out: {reason}", f"{count:,}", style="dim")
    table.add_section()
    table.add_row("all", f"{sum((*summary.counts.values(), *summary.left_out.values())):,}")
    console.print(table)
    classes = Table(title="patches with each class")
    classes.add_column("class", overflow="fold")
    for name in summary.counts:
        classes.add_column(name, justify="right")
    for name, counts in summary.classes.items():
        classes.add_row(name, *(f"{count:,}" for count in counts.values()))
    console.print(classes)
    for what, tally in (("countries", summary.countries), ("seasons", summary.seasons)):
        if tally:
            text = ", ".join(f"{name} {count:,}" for name, count in tally.items())
            console.print(f"{what}: {text}", soft_wrap=True)
    if summary.lists:
        console.print(f"lists: {', '.join(summary.lists)}", soft_wrap=True)
    else:
        console.print("no list of patches with snow, cloud or shadow found: none is left out")
    if summary.absent:
        names = ", ".join(summary.absent[:3]) + (", ..." if len(summary.absent) > 3 else "")
        console.print(
            f"{len(summary.absent):,} patches have a split but are not in the archive ({names})",
            soft_wrap=True,
        )
    console.print(f"written: {summary.folder}", soft_wrap=True)
    _print_errors(summary)


def _print_errors(summary: Summary) -> None:
    """What must be seen, on the error output."""
    if summary.synthetic:
        click.echo("THIS DATA SET IS SYNTHETIC: MADE UP, NOT MEASURED", err=True)
    for name, why in list(summary.failed.items())[:NAMED]:
        click.echo(f"error: {why if name in why else f'{name}: {why}'}", err=True)
    if len(summary.failed) > NAMED:
        click.echo(
            f"error: and {len(summary.failed) - NAMED:,} more; {summary.folder}/manifest.json "
            "names them all",
            err=True,
        )
