"""`python -m kerass2.prepare SOURCE... -o DIR`: cut scenes into patches, on one core or on many."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from kerass2 import cli, messages

if TYPE_CHECKING:
    from data_pipelines.convert import Summary

# Repeated here so that --help imports neither numpy nor xarray; a test holds them equal.
TASKS = ("superres_20m", "superres_60m", "patches", "bigearthnet")
FORMATS = ("tfrecord", "hdf5", "zarr", "lmdb")
SPLITS = ("auto", "train", "validation", "test")
UPSAMPLERS = ("none", "bilinear", "dsen2", "s2x")
# Options of task bigearthnet, and options that it does not have.
ARCHIVE_OPTIONS = ("upsample", "model", "model_60m", "tiles", "classes", "lists")
CUTTING_OPTIONS = ("patch_size", "stride", "patches_per_tile", "max_cloud", "seed")


@click.command(cls=cli.Command)
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=pathlib.Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=pathlib.Path), help="Folder to make."
)
@click.option(
    "--task",
    type=click.Choice(TASKS),
    default=TASKS[0],
    show_default=True,
    help="superres_*: pairs under Wald's protocol. patches: all bands as they are, side by side. "
    "bigearthnet: the patches of a BigEarthNet archive with their labels.",
)
@click.option(
    "--format", "file_format", type=click.Choice(FORMATS), default=FORMATS[0], show_default=True
)
@click.option(
    "--split",
    metavar="SPLIT",
    default="auto",
    show_default=True,
    help="auto: by place, in about 0.8, 0.1, 0.1: three or more places (tiles or scenes) go to one "
    "split each as wholes; one or two cannot fill three splits, so they are divided into blocks of "
    "at least 2.56 km. train, validation or test: everything goes into that split. Of bigearthnet: "
    "official (default), random:SEED (each patch by itself), tiles:SEED (whole tiles), or a file "
    "or folder of lists.",
)
@click.option(
    "--upsample",
    type=click.Choice(UPSAMPLERS),
    help="bigearthnet: how bands of 20 m and 60 m come to 10 m; default: none, they stay as they "
    "are (160 kB a patch), and the model upsamples. dsen2, s2x: each patch by --model.",
)
@click.option(
    "--model",
    type=click.Path(path_type=pathlib.Path),
    help="bigearthnet: model or work folder of --upsample dsen2 or s2x, for the 20 m bands.",
)
@click.option(
    "--model-60m",
    type=click.Path(path_type=pathlib.Path),
    help="bigearthnet: another one, for B01 and B09; default: these are bilinear.",
)
@click.option(
    "--tiles",
    type=click.Path(path_type=pathlib.Path),
    metavar="FOLDER",
    help="bigearthnet: instead of --upsample, cut patches out of whole tiles, GeoTIFFs that "
    "kerass2.predict has made of the archive's products with --bands all.",
)
@click.option(
    "--classes",
    type=click.Choice(("43", "19")),
    help="bigearthnet: of the first nomenclature or of the newer one; default: the archive's.",
)
@click.option(
    "--lists",
    type=click.Path(path_type=pathlib.Path),
    help="bigearthnet: folder of metadata.parquet (v2), or of train.csv, val.csv, test.csv and the "
    "lists of patches with snow, cloud and shadow (v1); default: the archive's, or the one around.",
)
@click.option(
    "--patch-size",
    type=click.IntRange(1),
    help="Edge of a patch in pixels of the target (patches: of 10 m); default: 32 (20 m), "
    "96 (60 m), 120 (patches).",
)
@click.option(
    "--stride",
    type=click.IntRange(1),
    help="Distance of training patches in the same pixels; default: half a patch (patches: a whole "
    "one). Patches of validation and test do not overlap.",
)
@click.option(
    "--patches-per-tile",
    type=click.IntRange(1),
    metavar="N",
    help="Draw at most N of the patches that are placed in a tile; those without data are not "
    "replaced. Default: all.",
)
@click.option(
    "--max-cloud",
    type=click.FloatRange(0, 1),
    metavar="F",
    help="Leave out patches of which a mask says that more than this share is cloud.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="For the choice of places and patches."
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    metavar="N",
    help="Processes on this machine, of one core each; default: its cores. Where there are fewer "
    "parts of work, each has several cores. The result is the same for any number.",
)
@click.option(
    "--dask",
    "scheduler",
    metavar="ADDRESS",
    help="Address of a running dask scheduler (tcp://host:port) whose workers see the same files.",
)
@click.option(
    "--resume", is_flag=True, help="Go on where the same command was broken off, part by part."
)
@click.option("--overwrite", is_flag=True, help="Replace a data set that is there already.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def main(
    sources: tuple[pathlib.Path, ...],
    output: pathlib.Path,
    task: str,
    split: str,
    processes: int | None,
    scheduler: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Cut SOURCES into aligned patches.

    A SOURCE is a Sentinel-2 product (.SAFE folder, .zip, MTD_*.xml), a STAC item (.json), a folder
    of one GeoTIFF or JP2 a band or a GSD, a .npz scene or a folder of them; a BigEarthNet patch
    folder, a folder of them, or the LMDB of BigEarthNet v2. The words sample and synthetic mean an
    area of the real sample and a made-up granule. Sources that cannot be read are named at the end
    (exit code 1); the others are written. With --task bigearthnet the one SOURCE is an archive: a
    folder of patch folders, v1 or v2, or an LMDB; sample means the real sample's 24 patches, and
    synthetic:20000 so many made-up ones.
    """
    if processes is not None and scheduler is not None:
        raise click.UsageError("--processes and --dask: choose one")
    _check_options(task, split, options)

    from data_pipelines import convert, sample, workers

    cores = workers.num_cores()
    if processes is not None and processes > cores:
        messages.warn(f"{processes} processes for {cores} cores")
    if task == "bigearthnet":
        from kerass2 import prepare_archive

        chosen = {**options, "processes": processes, "scheduler": scheduler}
        with _saying_what_is_kept(output):
            prepare_archive.run(sources, output, split, chosen, as_json=as_json)
        return
    options = {name: options[name] for name in options if name not in ARCHIVE_OPTIONS}
    resolved = [sample.resolve_granule(source) for source in sources]
    for message in dict.fromkeys(message for _, message in resolved if message):
        messages.note(message)
    with _saying_what_is_kept(output), messages.progress("cutting patches") as advance:
        summary = convert.convert(
            [path for path, _ in resolved],
            output,
            task,
            only_split=None if split == "auto" else split,
            processes=processes,
            scheduler=scheduler,
            provenance={"sources": [str(source) for source in sources]},
            advance=advance,
            **options,
        )
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(summary), indent=2, default=str))
    else:
        _print_summary(summary, task, split == "auto")
    if summary.synthetic:
        click.echo("THIS DATA SET IS SYNTHETIC: MADE UP, NOT MEASURED", err=True)
    for name, why in summary.failed.items():
        click.echo(f"error: {why if name in why else f'{name}: {why}'}", err=True)
    if summary.failed:
        click.get_current_context().exit(1)


def _check_options(task: str, split: str, options: dict[str, Any]) -> None:
    """Refuse what the task does not have.

    Raises:
        click.UsageError: names the option.
    """
    context = click.get_current_context()
    commandline = click.core.ParameterSource.COMMANDLINE
    given = [name for name in options if context.get_parameter_source(name) == commandline]
    if task == "bigearthnet":
        wrong, why = [name for name in given if name in CUTTING_OPTIONS], "not with"
    else:
        wrong, why = [name for name in given if name in ARCHIVE_OPTIONS], "only with"
        if split not in SPLITS:
            raise click.BadParameter(
                f"{split!r} is not one of {', '.join(SPLITS)}", param_hint="--split"
            )
    if wrong:
        raise click.UsageError(f"--{wrong[0].replace('_', '-')}: {why} --task bigearthnet")


@contextlib.contextmanager
def _saying_what_is_kept(output: pathlib.Path) -> Iterator[None]:
    """After an error or an interruption: where the work that is done lies."""
    try:
        yield
    except BaseException:
        from data_pipelines import partial

        kept = partial.path_of(output.resolve())
        if kept.is_dir():
            click.echo(f"kept: {kept}; the same command with --resume goes on there", err=True)
        raise


def _print_summary(summary: Summary, task: str, by_place: bool) -> None:
    """A table of what came out, and what did not."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title=f"{task}: {summary.granules} granules of {summary.scenes} scenes")
    table.add_column("split")
    table.add_column("patches", justify="right")
    for name, count in summary.counts.items():
        table.add_row(name, f"{count:,}")
    for reason, count in summary.left_out.items():
        table.add_row(f"left out: {reason}", f"{count:,}", style="dim")
    console.print(table)
    empty = [name for name, count in summary.counts.items() if not count]
    if by_place and empty:
        console.print(f"no patches in {', '.join(empty)}: too few places to keep splits apart")
    if summary.unplaced:
        names = ", ".join(summary.unplaced[:3]) + (", ..." if len(summary.unplaced) > 3 else "")
        console.print(
            f"no patch lies in {len(summary.unplaced):,} granules ({names}): too small, or all too "
            "near to another split",
            soft_wrap=True,
        )
    if summary.failed:
        console.print(f"not read: {len(summary.failed):,} sources or granules, named below")
    console.print(f"written: {summary.folder}", soft_wrap=True)


if __name__ == "__main__":
    cli.run(main)
