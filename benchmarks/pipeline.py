"""`python -m benchmarks pipeline`: how fast products become patches, and patches batches.

  cutting     a tile in memory to patches under Wald's protocol, against the direct way
  reading     shuffled training batches from every format, against a memory map in the same tf.data
              graph, and against one GeoTIFF a band and patch
  sequential  an HDF5 data set from first to last, by our reader against tensorflow-io
  prepare     two whole JP2 products, by 2 processes against 1, with the memory of all processes
  labels      augmented batches of a made-up BigEarthNet, native and upsampled, against the steps of
              ResNet-50
  memory      the peak of writing and reading each format, with 10 times the patches against once

Ratios are of measurements that take turns in one run. Reading and memory run in processes of their
own (pipeline_rank.py).
"""

from __future__ import annotations

import pathlib
import tempfile

import click

from benchmarks import (
    options,
    pipeline_cutting,
    pipeline_labels,
    pipeline_memory,
    pipeline_reading,
    record,
)

PARTS = ("cutting", "reading", "sequential", "labels", "prepare", "memory")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="Default: all.")
@click.option(
    "--size",
    default=2880,
    type=click.IntRange(min=240),
    show_default=True,
    help="Edge of the granule that is cut and read [px of 10 m], a multiple of 240.",
)
@click.option(
    "--tile",
    default=10980,
    type=click.IntRange(min=120),
    show_default=True,
    help="Edge of the products of `prepare` [px of 10 m], a multiple of 6.",
)
@click.option(
    "--batch", default=128, type=click.IntRange(min=2), show_default=True, help="Global batch."
)
@options.count("--rounds", 5)
@click.option(
    "--seconds",
    default=1.5,
    type=click.FloatRange(min=0.01),
    show_default=True,
    help="Length of a turn of one source in `reading`.",
)
@click.option(
    "--count",
    default=3000,
    type=click.IntRange(min=1),
    show_default=True,
    help="Patches of the smaller data set in `memory`; 3000 fill a shard.",
)
@click.option(
    "--patches",
    default=1200,
    type=click.IntRange(min=6),
    show_default=True,
    help="Of the archive in `labels`.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="As in kerass2.fit, for the model in `labels`.",
)
@click.option(
    "--folder",
    type=click.Path(path_type=pathlib.Path),
    help="Where the made-up data lie, kept for the next run; default: a temporary folder.",
)
@record.output_options("pipeline.jsonl")
def main(
    parts: tuple[str, ...],
    size: int,
    tile: int,
    batch: int,
    rounds: int,
    seconds: float,
    count: int,
    patches: int,
    settings: tuple[str, ...],
    folder: pathlib.Path | None,
    output: pathlib.Path,
) -> None:
    """Measure data_pipelines on this machine."""
    if size % 240:
        raise click.UsageError(f"--size {size}: expected a multiple of 240")
    with tempfile.TemporaryDirectory() as temporary:
        root = (folder or pathlib.Path(temporary)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        for part in parts or PARTS:
            if part == "cutting":
                pipeline_cutting.measure(size, rounds, output)
            elif part == "reading":
                options = {"batch": batch, "rounds": rounds, "seconds": seconds}
                pipeline_reading.measure_shuffled(root, size, options, output)
            elif part == "sequential":
                pipeline_reading.measure_sequential(root, size, batch, rounds, output)
            elif part == "labels":
                options = {"batch": batch, "rounds": rounds, "seconds": seconds}
                pipeline_labels.measure(root, patches, options, output, settings)
            elif part == "prepare":
                pipeline_memory.measure_prepare(root, tile, output)
            else:
                pipeline_memory.measure_growth(root, count, output)
