"""`python -m benchmarks pipeline`: how fast products become patches, and patches batches.

  cutting     a tile in memory to patches under Wald's protocol, against the direct way
  reading     shuffled training batches from every format, against a memory map in the same tf.data
              graph, and against one GeoTIFF a band and patch
  sequential  an HDF5 data set from first to last, by our reader against tensorflow-io
  prepare     two whole JP2 products, by 2 processes against 1, with the memory of all processes
  memory      the peak of writing and reading each format, with 10 times the patches against once

Ratios are of measurements that take turns in one run. Reading and memory run in processes of their
own (pipeline_rank.py).
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import numpy as np

from benchmarks import record
from data_pipelines import store

PARTS = ("cutting", "reading", "sequential", "prepare", "memory")
# Sources that "reading" compares; the last is what people have.
READERS = ("memory map", *store.FORMATS, "cube", "geotiff")


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
@click.option("--rounds", default=5, type=click.IntRange(min=1), show_default=True)
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
    "--folder",
    type=click.Path(path_type=pathlib.Path),
    help="Where the made-up data lie, kept for the next run; default: a temporary folder.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=pathlib.Path),
    default="benchmarks/results/local/pipeline.jsonl",
    show_default=True,
    help="Record to append to.",
)
def main(
    parts: tuple[str, ...],
    size: int,
    tile: int,
    batch: int,
    rounds: int,
    seconds: float,
    count: int,
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
                _measure_cutting(size, rounds, output)
            elif part == "reading":
                _measure_reading(
                    root, size, {"batch": batch, "rounds": rounds, "seconds": seconds}, output
                )
            elif part == "sequential":
                _measure_sequential(root, size, batch, rounds, output)
            elif part == "prepare":
                _measure_prepare(root, tile, output)
            else:
                _measure_memory(root, count, output)


# --- cutting -------------------------------------------------------------------------------------


def _measure_cutting(size: int, rounds: int, output: pathlib.Path) -> None:
    """The package's cut against the direct way, on one tile in memory."""
    from data_pipelines import cube, synthetic
    from data_pipelines.granule import Granule, build_cube
    from data_pipelines.sentinel2 import GSDS, bands_at
    from data_pipelines.windows import lattice

    task = cube.TASKS["superres_20m"]
    pixels = synthetic.build_cubes(size, seed=1)
    cubes = {n: build_cube(pixels[n], bands_at(gsd), gsd) for n, gsd in GSDS.items()}
    granule = Granule("tile", "tile", "tile", cubes)
    edge = task.patch_size
    windows = list(lattice(*cube.target_shape(task, granule.shape), edge, edge // 2))

    def ours() -> list[dict[str, Any]]:
        return [example for _, example in cube.cut(granule, task, windows)]

    seconds: dict[str, list[float]] = {"ours": [], "direct": []}
    difference = _largest_difference(ours(), _cut_directly(pixels, task, windows))  # and warm-up
    for _ in range(rounds):
        for name, cut in (
            ("direct", lambda: _cut_directly(pixels, task, windows)),
            ("ours", ours),
        ):
            begin = time.perf_counter()
            cut()
            seconds[name].append(time.perf_counter() - begin)
    what = {"task": task.name, "size": size, "patches": len(windows), "difference_dn": difference}
    _report(output, "cutting over the direct way", seconds["direct"], seconds["ours"], what)


def _cut_directly(
    pixels: dict[str, Any], task: Any, windows: list[Any]
) -> list[dict[str, dict[str, Any]]]:
    """Blur and block mean of each band of the tile, inputs enlarged, patches copied one by one."""
    from scipy import ndimage
    from skimage import measure, transform

    scale = task.scale
    inputs, enlarged = {}, {}
    for name in task.inputs:
        bands = [
            measure.block_reduce(
                ndimage.gaussian_filter(band.astype(np.float32), 1 / scale), scale, np.mean
            )
            for band in pixels[name]
        ]
        inputs[name] = np.stack(bands, axis=-1)
    target = pixels[task.target].transpose(1, 2, 0)
    for name, image in inputs.items():
        enlarged[name] = transform.resize(image, target.shape[:2], order=1, preserve_range=True)
    examples = []
    for window in windows:
        coarse = {
            n: image[window.coarser(task.ratio(n)).slices].copy() for n, image in inputs.items()
        }
        fine = {n: image[window.slices].copy() for n, image in enlarged.items()}
        truth = {task.name: target[window.slices].copy()}
        examples.append({"inputs": coarse, "enlarged": fine, "targets": truth})
    return examples


def _largest_difference(ours: list[dict[str, Any]], direct: list[dict[str, Any]]) -> float:
    """Of any pixel that both ways give [DN].

    Raises:
        click.ClickException: more than 1 DN: then the two do not do the same.
    """
    largest = 0.0
    for one, other in zip(ours, direct, strict=True):
        for group in ("inputs", "targets"):
            for name, values in one[group].items():
                gap = np.abs(values.astype(np.float64) - other[group][name]).max()
                largest = max(largest, float(gap))
    if largest > 1:
        raise click.ClickException(f"the two ways of cutting differ by {largest} DN")
    return largest


# --- reading -------------------------------------------------------------------------------------


def _measure_reading(
    root: pathlib.Path, size: int, options: dict[str, Any], output: pathlib.Path
) -> None:
    """Training batches a second from each source, 1 rank and 2."""
    from benchmarks import pipeline_data

    for task in ("patches", "superres_20m"):
        case = pipeline_data.make(root / f"{task}-{size}", task, size, READERS)
        readers = [name for name in READERS if name in case["sources"]]
        for ranks in (1, 2):
            request = {**case, **options, "readers": readers}
            rates = _sum_of_ranks(request, ranks)
            megabytes = case["bytes"] / 1e6
            for name in readers:
                what = {"task": task, "ranks": ranks, "batch": options["batch"], "source": name}
                what["patch_bytes"] = case["bytes"]
                for base in ("memory map", "geotiff"):
                    if base in rates and base != name:
                        ratios = [a / b for a, b in zip(rates[name], rates[base], strict=True)]
                        what[f"over {base}"] = record.figure(ratios, "1")
                throughput = record.figure(rates[name], "patches/s")
                record.append(output, "reading", **what, throughput=throughput)
                ratio = what.get("over memory map", {"median": 1.0})["median"]
                click.echo(
                    f"reading {task}, {ranks} ranks, {name}: {throughput['median']:,.0f} patches/s,"
                    f" {throughput['median'] * megabytes:,.0f} MB/s, {ratio:.2f} of the memory map"
                )


def _sum_of_ranks(request: dict[str, Any], ranks: int) -> dict[str, list[float]]:
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


# --- sequential ---------------------------------------------------------------------------------


def _measure_sequential(
    root: pathlib.Path, size: int, batch: int, rounds: int, output: pathlib.Path
) -> None:
    """One pass over an HDF5 data set in storage order: store.open_source against tensorflow-io.

    Both check everything: ours each record, tensorflow-io's way each file before it begins.
    """
    from benchmarks import pipeline_data
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
    _report(
        output, "HDF5 in order over tensorflow-io", seconds["tensorflow-io"], seconds["ours"], what
    )


# --- prepare -------------------------------------------------------------------------------------


def _measure_prepare(root: pathlib.Path, tile: int, output: pathlib.Path) -> None:
    """Two products by 1 process and by 2: seconds, and the memory of all processes together."""
    from benchmarks import pipeline_data

    products = pipeline_data.make_products(root, tile)
    found = {}
    for processes in (1, 2):
        target = root / f"prepared-{processes}"
        command = [sys.executable, "-m", "kerass2.prepare", *map(str, products)]
        command += ["-o", str(target), "--processes", str(processes), "--overwrite"]
        command += ["--patches-per-tile", "8000"]
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        with _watching(process.pid) as peak:
            if process.wait():
                raise click.ClickException(f"kerass2.prepare ended with {process.returncode}")
        found[processes] = time.perf_counter() - begin, peak()
    manifests = [(root / f"prepared-{n}" / "manifest.json").read_bytes() for n in (1, 2)]
    what = {
        "tile": tile,
        "products": len(products),
        "same": manifests[0] == manifests[1],
        "resident_gib": {str(n): peak for n, (_, peak) in found.items()},
    }
    _report(output, "prepare by 2 processes over 1", [found[1][0]], [found[2][0]], what)
    click.echo(
        "resident in all processes: "
        + ", ".join(f"{n} processes {peak:.2f} GiB" for n, (_, peak) in found.items())
    )


class _watching:
    """Peak resident memory of a process and all below it, summed, sampled every 0.1 s [GiB].

    Shared pages count once for each process that has them: an upper bound.
    """

    def __init__(self, pid: int) -> None:
        self._pid, self._peak, self._stop = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Callable[[], float]:
        self._thread.start()
        return lambda: self._peak / 2**30

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        while not self._stop.wait(0.1):
            total = 0
            try:
                root = psutil.Process(self._pid)
                for process in (root, *root.children(recursive=True)):
                    total += process.memory_info().rss
            except psutil.Error:
                continue
            self._peak = max(self._peak, total)


# --- memory --------------------------------------------------------------------------------------


def _measure_memory(root: pathlib.Path, count: int, output: pathlib.Path) -> None:
    """Peak resident memory with 10 times the patches over that with once, writing and reading."""
    for name in store.FORMATS:
        for kind in ("write", "read"):
            peaks = []
            for patches in (count, 10 * count):
                case = {"format": name, "count": patches, "kind": kind}
                with tempfile.TemporaryDirectory(dir=root) as folder:
                    case["folder"] = str(pathlib.Path(folder) / "data")
                    peaks.append(_peak(case))
            what = {"format": name, "kind": kind, "count": count, "mib": peaks}
            ratio = record.figure([peaks[1] / peaks[0]], "1")
            record.append(
                output, "peak memory, 10 times the patches over once", **what, ratio=ratio
            )
            click.echo(
                f"peak memory of {kind}, {name}: {peaks[0]:.0f} MiB, with 10 times the patches "
                f"{peaks[1]:.0f} MiB ({ratio['median']:.3f})"
            )


def _peak(case: dict[str, Any]) -> float:
    """Peak resident memory of the process that does it [MiB]."""
    if case["kind"] == "read":
        _peak({**case, "kind": "write"})
    command = [sys.executable, "-m", "benchmarks.pipeline_rank", "memory", json.dumps(case)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(found.stdout.split()[-1])


def _report(
    output: pathlib.Path,
    name: str,
    base: list[float],
    measured: list[float],
    what: dict[str, Any],
) -> None:
    """Append one record of seconds and print it; the ratio is base over measured, turn by turn."""
    ratio = record.figure([a / b for a, b in zip(base, measured, strict=True)], "1")
    seconds = {"base": record.figure(base, "s"), "measured": record.figure(measured, "s")}
    record.append(output, name, **what, ratio=ratio, seconds=seconds)
    low, high = ratio["quartiles"]
    click.echo(
        f"{name}: {ratio['median']:.2f} ({low:.2f} to {high:.2f}), "
        f"{seconds['base']['median']:.2f} s against {seconds['measured']['median']:.2f} s"
    )


def stream(count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Made-up examples of superres_20m, one at a time, all of one array: only memory matters."""
    from data_pipelines import cube

    spec = cube.build_spec(cube.TASKS["superres_20m"])
    arrays = {
        group: {name: np.full(t.shape, 1000, t.dtype) for name, t in tensors.items()}
        for group, tensors in (("inputs", spec.inputs), ("targets", spec.targets))
    }
    for number in range(count):
        yield "train", {**arrays, "patch_id": f"patch_{number:06d}"}
