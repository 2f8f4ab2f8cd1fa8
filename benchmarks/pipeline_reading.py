"""Batches from every format: shuffled on 1 rank and 2, and one format from first to last."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import click
import numpy as np

from benchmarks import pipeline_data, record
from benchmarks.pipeline_rank import WARM_UP
from data_pipelines import store

# Sources that are compared; the last is what people have.
READERS = ("memory map", *store.FORMATS, "cube", "geotiff")


def measure_shuffled(
    root: pathlib.Path, size: int, options: dict[str, Any], output: pathlib.Path
) -> None:
    """Training batches a second from each source, 1 rank and 2."""
    for task in ("patches", "superres_20m"):
        case = pipeline_data.make(root / f"{task}-{size}", task, size, READERS)
        readers = [name for name in READERS if name in case["sources"]]
        for ranks in (1, 2):
            request = {**case, **options, "readers": readers}
            rates = sum_of_ranks(request, ranks)
            megabytes = case["bytes"] / 1e6
            for name in readers:
                what = {"task": task, "ranks": ranks, "batch": options["batch"], "source": name}
                what["patch_bytes"] = case["bytes"]
                for base in ("memory map", "geotiff"):
                    if base in rates and base != name:
                        ratios = [a / b for a, b in zip(rates[name], rates[base], strict=True)]
                        what[f"over {base}"] = record.figure(ratios, "1", warm_up=WARM_UP)
                throughput = record.figure(rates[name], "patches/s", warm_up=WARM_UP)
                record.append(output, "reading", **what, throughput=throughput)
                ratio = what.get("over memory map", {"median": 1.0})["median"]
                click.echo(
                    f"reading {task}, {ranks} ranks, {name}: {throughput['median']:,.0f} patches/s,"
                    f" {throughput['median'] * megabytes:,.0f} MB/s, {ratio:.2f} of the memory map"
                )


def sum_of_ranks(request: dict[str, Any], ranks: int) -> dict[str, list[float]]:
    """Patches a second of all ranks together, by source; ranks are processes that run at once."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [pathlib.Path(folder) / f"{rank}.json" for rank in range(ranks)]
        processes = []
        for rank, path in enumerate(paths):
            case = {**request, "rank": rank, "world_size": ranks, "output": str(path)}
            command = [sys.executable, "-m", "benchmarks.pipeline_rank", "read", json.dumps(case)]
            processes.append(subprocess.Popen(command))
        for process in processes:
            if process.wait():
                raise click.ClickException(f"a rank of the benchmark ended with {process.wait()}")
        found = [json.loads(path.read_text()) for path in paths]
    return {
        name: [sum(v) for v in zip(*(f[name] for f in found), strict=True)] for name in found[0]
    }


def measure_sequential(
    root: pathlib.Path, size: int, batch: int, rounds: int, output: pathlib.Path
) -> None:
    """One pass over an HDF5 data set in storage order: store.open_source against tensorflow-io.

    Both check everything: ours each record, tensorflow-io's way each file before it begins.
    """
    from data_pipelines import hdf5_io

    folder = pipeline_data.make(root / f"patches-{size}", "patches", size, ["hdf5"])["sources"]
    source = store.open_source(folder["hdf5"], "train")

    def ours() -> None:
        for start in range(0, len(source), batch):
            source.read(np.arange(start, min(start + batch, len(source))))

    def theirs() -> None:
        for _ in hdf5_io.build_dataset(folder["hdf5"], "train", batch):
            pass

    seconds: dict[str, list[float]] = {"ours": [], "tensorflow-io": []}
    for _ in range(rounds):
        for name, read in (("tensorflow-io", theirs), ("ours", ours)):
            begin = time.perf_counter()
            read()
            seconds[name].append(time.perf_counter() - begin)
    what = {"task": "patches", "patches": len(source), "batch": batch}
    record.compare(
        output, "HDF5 in order over tensorflow-io", seconds["tensorflow-io"], seconds["ours"], what
    )
