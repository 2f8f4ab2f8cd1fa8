"""`python -m kerass2.doctor`: what is installed, where the ranks are, and what is wrong.

Alone it looks at this machine; with --strategy, here or under srun, mpirun or horovodrun, at the
ranks of the job too, and measures their all-reduce.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import socket
import statistics
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from kerass2 import cli, ranks
from strategies import cluster, launch
from strategies.base import StrategyError, leave

if TYPE_CHECKING:
    from strategies.base import Strategy

PACKAGES = ("keras", "tensorflow", "tensorflow-io", "horovod", "numpy", "rasterio", "dask")
# Driver -> what needs it.
GDAL_DRIVERS = {
    "SENTINEL2": "products (.SAFE, .zip)",
    "JP2OpenJPEG": "a product's bands",
    "COG": "predict's output",
    "Zarr": "predict --format Zarr",
}
# What Linux calls a processor's bfloat16 arithmetic.
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
# Way of the ranks' traffic -> whether nodes must reach each other by TCP.
PATHS = {
    "horovod over MPI (with NCCL on GPUs)": "no TCP between nodes needed",
    "horovod over Gloo": "TCP needed (KERASS2_INTERFACE chooses the network)",
    "multiworker": "TCP needed (gRPC, also where NCCL carries the gradients)",
}
# Of a row of the table that ranks make together [byte].
ROW = 160


@dataclasses.dataclass(frozen=True)
class AllReduce:
    """One measured sum over ranks."""

    mebibytes: float
    seconds: float
    """Median of a call."""
    is_right: bool
    """Every element was the sum."""

    def bandwidth(self, world_size: int) -> tuple[float, float]:
        """(algorithm, bus) bandwidth [GB/s], as nccl-tests define them."""
        algorithm = self.mebibytes * 2**20 / self.seconds / 1e9
        return algorithm, algorithm * 2 * (world_size - 1) / world_size


@click.command(cls=cli.Command)
@ranks.options(default="single")
@click.option(
    "--mebibytes",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Size of the largest all-reduce.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def main(strategy: str, workers: int | None, mebibytes: int, as_json: bool) -> None:
    """Say what is installed, where the ranks are, how fast they are together, and what is wrong.

    Exit code 0 if nothing is wrong, else 1.
    """
    place = cluster.detect(os.environ)
    ranks.world_size(strategy, workers)
    if launch.needed(strategy):
        try:
            ranks.start(strategy, workers)  # does not return where ranks could be started
        except StrategyError:
            _show(describe_machine([]))
            raise
    problems: list[str] = []
    machine = describe_machine(problems) if place.rank == 0 else {}
    if not as_json:
        _show(machine)
    started = ranks.start(strategy, workers)
    job = describe_job(started, place, mebibytes, problems)
    if started.is_chief and as_json:
        click.echo(json.dumps({**machine, **job, "problems": problems}, indent=2))
    elif started.is_chief:
        _show_job(job)
        _show_problems(problems)
    # All ranks end alike, so that no launcher takes one for the cause of another's end.
    wrong = started.sum(_number(bool(problems)))[0]
    leave(started)
    if wrong:
        raise click.exceptions.Exit(1)


def _number(value: float) -> Any:
    import numpy as np

    return np.array([value], np.float64)


def _print(title: str, lines: Mapping[str, str]) -> None:
    click.secho(title, bold=True)
    width = max(map(len, lines), default=0)
    for name, text in lines.items():
        click.echo(f"  {name:{width}}  {text}")


def _show(sections: Mapping[str, Mapping[str, str]]) -> None:
    for title, lines in sections.items():
        _print(title, lines)


def describe_machine(problems: list[str]) -> dict[str, dict[str, str]]:
    """What is here, by section; what is wrong with it is added to `problems`."""
    versions = {"python": platform.python_version(), "kerass2": _version("kerass2")}
    return {
        "software": versions | {name: _version(name) for name in PACKAGES},
        "Horovod": describe_horovod(problems),
        "devices": describe_devices(problems),
        "GDAL": describe_gdal(problems),
        "ways between nodes": PATHS,
    }


def _version(name: str) -> str:
    # TensorFlow is one module of two distributions.
    for distribution in (name, f"{name}-cpu"):
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
        return f"{version}" + (" (without GPU support)" if distribution != name else "")
    return "not installed"


def describe_horovod(problems: list[str]) -> dict[str, str]:
    """What Horovod is built with."""
    from strategies import horovod

    try:
        built = horovod.describe()
    except StrategyError as error:
        problems.append(f"--strategy horovod does not work: {error}")
        return {"built with": "not usable"}
    names = [name for name in ("mpi", "gloo", "nccl") if built[name]]
    if built["nccl"] is False and _gpus():
        problems.append(
            "there are GPUs, but Horovod is built without NCCL: gradients go through the CPU's "
            "memory (make setup HOROVOD_OPTIONS=HOROVOD_GPU_OPERATIONS=NCCL)"
        )
    return {"built with": ", ".join(names) or "nothing that connects ranks"}


def _gpus() -> list[Any]:
    import tensorflow as tf

    gpus: list[Any] = tf.config.list_physical_devices("GPU")
    return gpus


def describe_devices(problems: list[str]) -> dict[str, str]:
    """Cores, GPUs, and whether they compute in bfloat16."""
    import tensorflow as tf

    cores = len(os.sched_getaffinity(0))
    fast = [flag for flag in BF16_FLAGS if flag in read_cpu_flags()]
    lines = {"CPU": f"{cores} cores, bfloat16: {', '.join(fast) or 'no instructions for it'}"}
    gpus = _gpus()
    for number, gpu in enumerate(gpus):
        details = tf.config.experimental.get_device_details(gpu)
        capability = details.get("compute_capability", (0, 0))
        word = "yes" if capability >= (8, 0) else "no (float16 is faster there)"
        lines[f"GPU {number}"] = (
            f"{details.get('device_name', '?')}, compute capability "
            f"{'.'.join(map(str, capability))}, bfloat16: {word}"
        )
    if not gpus and pathlib.Path("/proc/driver/nvidia/version").exists():
        problems.append(
            "an NVIDIA driver is loaded, but TensorFlow sees no GPU: install tensorflow[and-cuda] "
            "(extra gpu), or look at CUDA_VISIBLE_DEVICES"
        )
    return lines | ({} if gpus else {"GPU": "none"})


def read_cpu_flags(path: pathlib.Path = pathlib.Path("/proc/cpuinfo")) -> set[str]:
    """Features of the first core as Linux names them; empty where it does not."""
    try:
        text = path.read_text()
    except OSError:
        return set()
    lines = [line for line in text.splitlines() if line.startswith(("flags", "Features"))]
    return set(lines[0].partition(":")[2].split()) if lines else set()


def describe_gdal(problems: list[str]) -> dict[str, str]:
    """GDAL's version and the drivers that this package needs."""
    import rasterio
    from rasterio.env import Env

    with Env() as env:
        there = env.drivers()
    lines = {"version": rasterio.__gdal_version__}
    for driver, needs in GDAL_DRIVERS.items():
        lines[driver] = "yes" if driver in there else f"NO: {needs} will fail"
        if driver not in there:
            problems.append(f"GDAL has no driver {driver}: {needs} will fail")
    return lines


def describe_job(
    strategy: Strategy, place: cluster.Cluster, mebibytes: int, problems: list[str]
) -> dict[str, Any]:
    """Ranks, and how fast they sum; what is wrong is added to `problems`. Every rank calls it.

    Returns:
        {"strategy", "ranks": {"rank N": text}, "all-reduce": of each size what AllReduce has, with
        "algorithm" and "bus" bandwidth [GB/s]}.
    """
    rows = gather(strategy, _describe_rank(strategy, place))
    problems += check_ranks(rows)
    sizes = sorted({1, mebibytes}) if strategy.world_size > 1 else []
    sums = []
    for size in sizes:
        measured = measure(strategy, size)
        algorithm, bus = measured.bandwidth(strategy.world_size)
        sums.append({**dataclasses.asdict(measured), "algorithm": algorithm, "bus": bus})
        if not measured.is_right:
            problems.append(f"the sum of {size} MiB over the ranks is wrong")
    return {"strategy": strategy.name, "ranks": rows, "all-reduce": sums}


def _show_job(job: Mapping[str, Any]) -> None:
    _print(f"{len(job['ranks'])} ranks, strategy {job['strategy']}", job["ranks"])
    lines = {
        f"{each['mebibytes']:g} MiB": f"{each['seconds'] * 1e3:.1f} ms, {each['algorithm']:.2f} "
        f"GB/s (bus {each['bus']:.2f} GB/s), {'right' if each['is_right'] else 'WRONG'}"
        for each in job["all-reduce"]
    }
    if lines:
        _print("all-reduce", lines)


def _describe_rank(strategy: Strategy, place: cluster.Cluster) -> str:
    node = place.hosts[place.rank] if place.hosts else socket.gethostname()
    cores, gpus = len(os.sched_getaffinity(0)), len(_gpus())
    return f"{node} local {strategy.local_rank} cores {cores} gpus {gpus} by {place.launcher}"


def gather(strategy: Strategy, own: str) -> dict[str, str]:
    """What each rank says, up to ROW bytes of it, by "rank N". Every rank calls it."""
    import numpy as np

    table = np.zeros((strategy.world_size, ROW), np.float64)
    text = own.encode()[:ROW]
    table[strategy.rank, : len(text)] = np.frombuffer(text, np.uint8)
    summed = strategy.sum(table.ravel()).reshape(table.shape).astype(np.uint8)
    return {
        f"rank {rank}": row.tobytes().rstrip(b"\0").decode(errors="replace")
        for rank, row in enumerate(summed)
    }


def check_ranks(rows: Mapping[str, str]) -> list[str]:
    """What is wrong with the places of the ranks, from the rows that _describe_rank makes."""
    words = [row.split() for row in rows.values()]
    nodes = [row[0] for row in words]
    problems = []
    for node in dict.fromkeys(nodes):
        mine = [row for row in words if row[0] == node]
        gpus, cores = int(mine[0][6]), int(mine[0][4])
        if 1 < gpus < len(mine):
            problems.append(f"{node}: {len(mine)} ranks share {gpus} GPUs; expected one each")
        if len({int(row[6]) for row in mine}) > 1:
            problems.append(f"{node}: ranks see different numbers of GPUs")
        if cores == 1 and gpus:
            problems.append(
                f"{node}: one core for a rank with a GPU, which cannot feed it: give "
                "--cpus-per-task"
            )
    counts = {node: nodes.count(node) for node in nodes}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{node} {count}" for node, count in counts.items())
        problems.append(
            f"nodes have different numbers of ranks ({told}): the fullest sets the pace"
        )
    return problems


def measure(strategy: Strategy, mebibytes: int, rounds: int = 5) -> AllReduce:
    """All-reduce of float32 by the path that gradients take. Every rank calls it."""
    import numpy as np
    import tensorflow as tf

    own = tf.fill((mebibytes * 2**18,), np.float32(strategy.rank + 1))
    step = tf.function(lambda x: strategy.run(lambda v: strategy.sum_gradients([v])[0], x))
    summed = np.asarray(step(own))
    times = []
    for _ in range(rounds):
        strategy.sum(_number(0))  # begin together
        begin = time.perf_counter()
        np.asarray(step(own))
        times.append(time.perf_counter() - begin)
    expected = strategy.world_size * (strategy.world_size + 1) / 2
    return AllReduce(mebibytes, statistics.median(times), bool((summed == expected).all()))


def _show_problems(problems: list[str]) -> None:
    if not problems:
        click.secho("nothing wrong was found", fg="green")
    for problem in problems:
        click.secho(f"problem: {problem}", fg="red")


if __name__ == "__main__":
    cli.run(main)
