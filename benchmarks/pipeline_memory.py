"""Whole products by one process and by two, and what memory grows with."""

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

from benchmarks import pipeline_data, record
from data_pipelines import store


def measure_prepare(root: pathlib.Path, tile: int, output: pathlib.Path) -> None:
    """Two products by 1 process and by 2: seconds, and the memory of all processes together."""
    products = pipeline_data.make_products(root, tile)
    found = {}
    for processes in (1, 2):
        target = root / f"prepared-{processes}"
        command = [sys.executable, "-m", "kerass2.prepare", *map(str, products)]
        command += ["-o", str(target), "--processes", str(processes), "--overwrite"]
        command += ["--patches-per-tile", "8000"]
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        with _Watching(process.pid) as peak:
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
    record.compare(output, "prepare by 2 processes over 1", [found[1][0]], [found[2][0]], what)
    click.echo(
        "resident in all processes: "
        + ", ".join(f"{n} processes {peak:.2f} GiB" for n, (_, peak) in found.items())
    )


class _Watching:
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


def measure_growth(root: pathlib.Path, count: int, output: pathlib.Path) -> None:
    """Peak resident memory with 10 times the patches over that with once, writing and reading."""
    for name in store.FORMATS:
        peaks: dict[str, list[float]] = {"write": [], "read": []}
        for patches in (count, 10 * count):
            with tempfile.TemporaryDirectory(dir=root) as folder:
                case = {"format": name, "count": patches, "folder": f"{folder}/data"}
                for kind, found in peaks.items():
                    found.append(_peak({**case, "kind": kind}))
        for kind, found in peaks.items():
            what = {"format": name, "kind": kind, "count": count, "mib": found}
            ratio = record.figure([found[1] / found[0]], "1")
            record.append(
                output, "peak memory, 10 times the patches over once", **what, ratio=ratio
            )
            click.echo(
                f"peak memory of {kind}, {name}: {found[0]:.1f} MiB, with 10 times the patches "
                f"{found[1]:.1f} MiB ({ratio['median']:.3f})"
            )


def _peak(case: dict[str, Any]) -> float:
    """Peak resident memory of the process that does it [MiB]."""
    command = [sys.executable, "-m", "benchmarks.pipeline_rank", "memory", json.dumps(case)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(found.stdout.split()[-1])


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
