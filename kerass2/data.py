"""`python -m kerass2.data info|verify|convert|join|show`: look at a data set, check it, copy it."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from kerass2 import cli, messages

if TYPE_CHECKING:
    from data_pipelines.manifest import Manifest, Shard
    from data_pipelines.record import Example

Advance = Callable[[int, int], None]

# Repeated here so that --help imports neither numpy nor xarray; a test holds them equal.
FORMATS = ("tfrecord", "hdf5", "zarr", "lmdb")
SPLITS = ("train", "validation", "test")
TASKS = ("superres_20m", "superres_60m", "patches")
# Records that are copied at once: some 2 MB of patches.
PIECE = 64
# Entries of a long list in the provenance that `info` shows.
SHOWN = 4

_PATH = click.Path(path_type=pathlib.Path)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")


@click.group(cls=cli.Group)
def main() -> None:
    """Look at data sets of kerass2.prepare, check them, copy them to another format."""


# --- info ----------------------------------------------------------------------------------------


@main.command
@click.argument("folder", metavar="DIR", type=_PATH)
@_JSON
def info(folder: pathlib.Path, as_json: bool) -> None:
    """Say what a data set holds: format, splits, arrays, where the pixels came from."""
    from rich.console import Console

    from data_pipelines import store

    found = store.read_manifest(folder)
    if as_json:
        click.echo(json.dumps(describe(found), indent=2))
        return
    console = Console(highlight=False)
    pixels = sum(t.num_bytes for t in (*found.spec.inputs.values(), *found.spec.targets.values()))
    if found.provenance.get("synthetic"):
        click.echo("THIS DATA SET IS SYNTHETIC: MADE UP, NOT MEASURED")
    click.echo(f"{folder}: {found.spec.task}, format {found.format}, {size_text(pixels)} a patch\n")
    console.print(_split_table(found), _array_table(found))
    for key, value in found.provenance.items():
        click.echo(f"{key}: {_shortened(value)}")


def describe(found: Manifest) -> dict[str, Any]:
    """What `info` prints, as JSON has it."""
    return {
        "task": found.spec.task,
        "format": found.format,
        "splits": {
            split: {
                "patches": found.num_examples(split),
                "shards": len(shards),
                "bytes": sum(file.num_bytes for shard in shards for file in shard.files),
            }
            for split, shards in found.splits.items()
        },
        "arrays": {
            kind: {name: dataclasses.asdict(tensor) for name, tensor in group.items()}
            for kind, group in (("inputs", found.spec.inputs), ("targets", found.spec.targets))
        },
        "provenance": dict(found.provenance),
    }


def _split_table(found: Manifest) -> Any:
    """Splits with their patches, files and bytes."""
    table = _table("split", ">patches", ">shards", ">files", ">size on disk")
    rows = {
        split: (
            found.num_examples(split),
            len(shards),
            sum(len(shard.files) for shard in shards),
            sum(file.num_bytes for shard in shards for file in shard.files),
        )
        for split, shards in found.splits.items()
    }
    for split, (*counts, size) in rows.items():
        table.add_row(split, *(f"{count:,}" for count in counts), size_text(size))
    *counts, size = (sum(column) for column in zip(*rows.values(), strict=True))
    table.add_row("all", *(f"{count:,}" for count in counts), size_text(size))
    return table


def _array_table(found: Manifest) -> Any:
    """The arrays of one example."""
    table = _table("array", ">shape (y, x, band)", ">GSD", "type", "unit", "bands")
    for kind, group in (("input", found.spec.inputs), ("target", found.spec.targets)):
        for name, tensor in group.items():
            shape = " x ".join(map(str, tensor.shape))
            unit = f"{tensor.scale:g}" + ("" if tensor.unit == "1" else f" {tensor.unit}")
            bands = " ".join(tensor.bands)
            table.add_row(f"{kind} {name}", shape, f"{tensor.gsd:g} m", tensor.dtype, unit, bands)
    return table


def _table(*columns: str) -> Any:
    """A plain table; a column whose name begins with > is aligned to the right."""
    import rich.box
    import rich.table

    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column[0] == ">" else "left")
    return table


def _shortened(value: Any) -> str:
    """JSON on one line; of a long list its beginning and its length."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and len(value) > SHOWN:
        return f"{json.dumps(value[:SHOWN])[:-1]}, ...] ({len(value):,} in all)"
    return json.dumps(value)


def size_text(num_bytes: float) -> str:
    """Bytes as people say them, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.4g} TB"


# --- verify and convert --------------------------------------------------------------------------


@main.command
@click.argument("folder", metavar="DIR", type=_PATH)
@_JSON
def verify(folder: pathlib.Path, as_json: bool) -> None:
    """Read every record and file of a data set and compare all checksums."""
    from data_pipelines import store

    with messages.progress("verifying") as advance:
        counts = store.verify(folder, advance)
    if as_json:
        click.echo(json.dumps({"records": counts}, indent=2))
        return
    found = store.read_manifest(folder)
    for split, count in counts.items():
        click.echo(f"{split:>10}  {count:,} records")
    files = found.extra, *(shard.files for shards in found.splits.values() for shard in shards)
    click.echo(
        f"{folder}: {sum(counts.values()):,} records in {sum(map(len, files)):,} files, all as "
        "the manifest says"
    )


@main.command
@click.argument("source", metavar="SRC", type=_PATH)
@click.option("-o", "--output", required=True, type=_PATH, help="Folder to make.")
@click.option("--format", "file_format", required=True, type=click.Choice(FORMATS))
@click.option("--overwrite", is_flag=True, help="Replace a data set that is there already.")
def convert(source: pathlib.Path, output: pathlib.Path, file_format: str, overwrite: bool) -> None:
    """Copy the data set SRC to another format, every record compared by its checksum."""
    with messages.progress("copying") as advance:
        made = copy(source, output, file_format, overwrite=overwrite, advance=advance)
    total = sum(made.num_examples(split) for split in made.splits)
    click.echo(f"{total:,} records of {source}, unchanged, as {file_format}\nwritten: {output}")


def copy(
    source: pathlib.Path,
    target: pathlib.Path,
    file_format: str,
    *,
    overwrite: bool = False,
    advance: Advance = lambda done, total: None,
) -> Manifest:
    """Copy a data set to a format; spec, order, splits and provenance are kept.

    Args:
        source: the data set.
        target: folder to make; appears complete or not at all.
        file_format: a key of store.FORMATS.
        overwrite: replace an existing data set.
        advance: called with (records done, records of all splits).

    Returns:
        The new manifest.

    Raises:
        DataError: a record or file of the source is damaged, or the target exists.
    """
    from data_pipelines import manifest, store

    found = store.read_manifest(source)
    with manifest.new_folder(target.resolve(), overwrite) as partial:
        examples = _examples(source, found, advance)
        shards = store.write_shards(partial, found.spec, examples, file_format=file_format)
        listed = {split: shards.get(split, ()) for split in found.splits}
        for split in found.splits:
            _check_same(source, split, found.splits[split], listed[split])
        facts = {**found.provenance, "format": file_format}
        made = manifest.Manifest(file_format, found.spec, listed, facts)
        return store.finish(partial, made)


def _examples(
    folder: pathlib.Path, found: Manifest, advance: Advance
) -> Iterator[tuple[str, Example]]:
    """All records, split by split in their order, a few at a time."""
    import numpy as np

    from data_pipelines import store

    done, total = 0, sum(found.num_examples(split) for split in found.splits)
    for split in found.splits:
        source = store.open_source(folder, split)
        for start in range(0, len(source), PIECE):
            batch = source.read(np.arange(start, min(start + PIECE, len(source))))
            for row, patch in enumerate(batch["patch_id"].tolist()):
                arrays = {
                    group: {name: values[row] for name, values in batch[group].items()}
                    for group in ("inputs", "targets")
                }
                yield split, {**arrays, "patch_id": patch}
                done += 1
            advance(done, total)


def _check_same(
    folder: pathlib.Path, split: str, old: tuple[Shard, ...], new: tuple[Shard, ...]
) -> None:
    """Refuse a copy whose records have other checksums than the source's manifest says."""
    from data_pipelines.spec import DataError

    copied = (crc for shard in new for crc in shard.crcs)
    for shard in old:
        for number, expected in enumerate(shard.crcs):
            crc = next(copied, None)
            if crc != expected:
                found = "nothing" if crc is None else f"{crc:08x}"
                raise DataError(
                    f"{folder / shard.name}, record {number}: CRC of record {found}, expected "
                    f"{expected:08x} by manifest.json ({split})"
                )


@main.command
@click.argument("source", metavar="SRC", type=_PATH)
@click.option("-o", "--output", required=True, type=_PATH, help="HDF5 file to make.")
@click.option("--split", type=click.Choice(SPLITS), default=SPLITS[0], show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace a file that is there already.")
def join(source: pathlib.Path, output: pathlib.Path, split: str, overwrite: bool) -> None:
    """Copy a split of the data set SRC into one HDF5 file.

    Under mpirun or srun all processes write it together, if h5py is built with MPI.
    """
    from data_pipelines import hdf5_joined
    from strategies import cluster

    found = cluster.detect(os.environ)
    total = hdf5_joined.join(
        source, split, output, world_size=found.world_size, overwrite=overwrite
    )
    if found.rank == 0:
        click.echo(f"wrote {output}: {total:,} records of {source}, split {split}")


# --- show ----------------------------------------------------------------------------------------


@main.command
@click.argument("source", metavar="DIR", type=_PATH)
@click.option("-o", "--output", required=True, type=_PATH, help="PNG to write.")
@click.option("--split", type=click.Choice(SPLITS), help="Default: the first that has patches.")
@click.option(
    "--number", default=12, show_default=True, type=click.IntRange(1, 200), help="Patches to show."
)
@click.option("--seed", default=0, show_default=True, help="Chooses the patches.")
@click.option(
    "--task",
    type=click.Choice(TASKS),
    default=TASKS[0],
    show_default=True,
    help="How to cut a product; a data set of kerass2.prepare has its task.",
)
def show(
    source: pathlib.Path, output: pathlib.Path, split: str | None, number: int, seed: int, task: str
) -> None:
    """Draw a contact sheet of random patches, inputs beside targets.

    DIR is a data set of kerass2.prepare, or a product that is cut as it is read.
    """
    from data_pipelines.spec import DataError
    from kerass2 import contact_sheet, inputs

    if output.suffix.lower() != ".png" or output.is_dir():
        raise DataError(f"{output}: expected the name of a file that ends in .png")
    data = inputs.open_data(source, task)
    split = split or next((name for name, count in data.counts.items() if count), SPLITS[0])
    patches = data.open(split)
    if not len(patches):
        raise DataError(f"{source}: split {split} holds no patches")
    shown = contact_sheet.write(
        output, patches, title=str(source), number=number, seed=seed, synthetic=data.synthetic
    )
    click.echo(f"wrote {output}: {shown} of {len(patches):,} patches of split {split}")


if __name__ == "__main__":
    cli.run(main)
