"""Batches of BigEarthNet patches with labels, as training reads them, against what a model uses."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import click
import numpy as np

from benchmarks import learning_rate, pipeline_reading, record
from benchmarks.pipeline_rank import WARM_UP

FORMATS = ("tfrecord", "hdf5")
# What is measured of each format -> how its data set is upsampled, and whether that is done as it
# is read: by the part of the model that enlarges native grids.
KINDS: dict[str, tuple[str, bool]] = {
    "native": ("none", False),
    "native, enlarged": ("none", True),
    "at 10 m": ("bilinear", False),
}
EXPERIMENT = "bigearthnet_ms"
# Steps of the model that are made, and of these the last that count.
STEPS, COUNTED = 7, 4


def measure(
    root: pathlib.Path,
    count: int,
    options: dict[str, Any],
    output: pathlib.Path,
    settings: Sequence[str] = (),
) -> None:
    """Augmented batches a second of 2 ranks from each format, over the steps of ResNet-50.

    Args:
        root: where the made-up data lie; what is there already stays.
        count: patches of the archive; about half of them are read.
        options: "batch", "rounds", "seconds", see pipeline_rank.read.
        output: record to append to.
        settings: of the model's experiment, as in kerass2.fit.
    """
    data = make(root, count)
    consumed = _consume(data["none", FORMATS[0]], settings)
    sources, enlarged = {}, []
    for kind, (upsample, in_model) in KINDS.items():
        for name in FORMATS:
            sources[f"{name}, {kind}"] = str(data[upsample, name])
            enlarged += [f"{name}, {kind}"] if in_model else []
    request = {**options, "sources": sources, "readers": list(sources), "enlarged": enlarged}
    rates = pipeline_reading.sum_of_ranks({**request, "augment": ["dihedral"]}, 2)
    model = record.figure(consumed, "patches/s", warm_up=STEPS - COUNTED)
    for name in sources:
        throughput = record.figure(rates[name], "patches/s", warm_up=WARM_UP)
        ratios = [rate / model["median"] for rate in rates[name]]
        ratio = record.figure(ratios, "1", warm_up=WARM_UP)
        what = {"task": "bigearthnet", "ranks": 2, "batch": options["batch"], "source": name}
        what |= {"experiment": EXPERIMENT, "settings": list(settings), "model": model}
        record.append(output, "reading labels", **what, throughput=throughput, over_model=ratio)
        click.echo(
            f"reading bigearthnet, 2 ranks, {name}, turned and flipped: "
            f"{throughput['median']:,.0f} patches/s, {ratio['median']:.0f} times the "
            f"{model['median']:.1f} of {EXPERIMENT}"
        )


def make(root: pathlib.Path, count: int) -> dict[tuple[str, str], pathlib.Path]:
    """Data sets of the same made-up patches, by upsampling and format."""
    from data_pipelines import synthetic_archive
    from kerass2 import data

    made = {}
    for upsample in dict.fromkeys(upsample for upsample, _ in KINDS.values()):
        first = root / f"labels-{count}-{upsample}-{FORMATS[0]}"
        if not first.exists():
            synthetic_archive.write_dataset(first, count, upsample=upsample, file_format=FORMATS[0])
        for name in FORMATS:
            folder = root / f"labels-{count}-{upsample}-{name}"
            if not folder.exists():
                data.copy(first, folder, name)
            made[upsample, name] = folder
    return made


def _consume(data: pathlib.Path, settings: Sequence[str]) -> list[float]:
    """Patches a second of single steps of the model, the first ones left out."""
    steps = [f"run.steps={STEPS}", "run.epochs=null", "run.log_every=1", "run.global_batch=32"]
    chosen = [f"--set={setting}" for setting in (*steps, *settings)]
    log, error = learning_rate.fit([EXPERIMENT, "--data", str(data), *chosen])
    if error:
        raise click.ClickException(error)
    rates = [line["patches_per_second"] for line in log if "patches_per_second" in line]
    return [float(rate) for rate in np.array(rates)[-COUNTED:]]
