"""`python -m benchmarks allreduce`: sums over ranks as training makes them.

Each path sums the same sizes, and the gradients of models as training has them, in turns: A B A B.
  horovod-*, multiworker-*   sum_gradients of our strategies, in a compiled step under `run`
  parameter-server           what a ring replaces: variables pushed to and pulled from one process
  torch-gloo, mpi4py         peers, where they are installed (--peers-python)
  tcp                        the bound: the bytes of a ring all-reduce by plain connections
  memory-copy                the bytes, copied once
Algorithm bandwidth is bytes over time, bus bandwidth 2 (N - 1) / N of it, as in nccl-tests; "over
bound" is the time of tcp over a path's, in the same turn: 1 is all that a ring over TCP can give.
What does not overlap with it stands in the time too: copies into and out of one buffer, and with
Horovod the wait for its thread (HOROVOD_CYCLE_TIME).

--variant tries settings: a further job of a path with other environment variables.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from benchmarks import options, project_model, record, turns

SIZES = tuple(2**power for power in range(10, 29, 2))  # 1 kB to 256 MB
SETS = ("superres_20m", "bigearthnet_ms")
BOUND = "tcp"
WARM_UP = 1
# Path -> strategy and environment of its ranks.
OURS = {
    "horovod-gloo": ("horovod", {"HOROVOD_CONTROLLER": "gloo", "HOROVOD_CPU_OPERATIONS": "gloo"}),
    "horovod-mpi": ("horovod", {"HOROVOD_CONTROLLER": "mpi", "HOROVOD_CPU_OPERATIONS": "mpi"}),
    "horovod-nccl": ("horovod", {"HOROVOD_CONTROLLER": "gloo"}),
    "multiworker-ring": ("multiworker", {"KERASS2_COLLECTIVES": "RING"}),
    "multiworker-nccl": ("multiworker", {"KERASS2_COLLECTIVES": "NCCL"}),
}
PEERS = {"torch-gloo": "torch", "mpi4py": "mpi4py"}  # path -> module
PATHS = (*OURS, "parameter-server", *PEERS, BOUND, "memory-copy")
# Measured where --path names it: four more processes of TensorFlow.
ON_REQUEST = ("parameter-server",)
# Measured over base, turn by turn.
RATIOS = (
    ("horovod-gloo", "torch-gloo"),
    ("horovod-mpi", "mpi4py"),
    ("multiworker-ring", "horovod-gloo"),
    ("multiworker-nccl", "horovod-nccl"),
    ("parameter-server", "horovod-gloo"),
    ("parameter-server", "multiworker-ring"),
)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--path", "paths", multiple=True, type=click.Choice(PATHS), help="Default: all here.")
@click.option("--ranks", default=2, type=click.IntRange(min=2), show_default=True)
@click.option(
    "--size", "sizes", multiple=True, type=click.IntRange(min=4), help="Bytes; default: 1 kB on."
)
@click.option("--set", "sets", multiple=True, help="Experiment whose gradients; default: two.")
@options.count("--rounds", 5)
@click.option(
    "--seconds", default=0.3, show_default=True, help="Length of a path's turn, at least a step."
)
@click.option(
    "--variant", "variants", multiple=True, metavar="PATH:KEY=VALUE[,...]", help="See above."
)
@click.option("--peers-python", default=sys.executable, help="A Python that has torch or mpi4py.")
@click.option("--short", is_flag=True, help="Three sizes, one set, three rounds.")
@record.output_options("allreduce.jsonl")
def main(
    paths: tuple[str, ...],
    ranks: int,
    sizes: tuple[int, ...],
    sets: tuple[str, ...],
    rounds: int,
    seconds: float,
    variants: tuple[str, ...],
    peers_python: str,
    short: bool,
    output: pathlib.Path,
) -> None:
    """Measure sums over ranks on this machine."""
    if short:
        sizes, sets, rounds = sizes or (2**10, 2**20, 2**26), sets or SETS[:1], min(rounds, 3)
    only_one = bool(sizes) != bool(sets) and not short
    cases = [("", [size]) for size in sizes or (() if only_one else SIZES)]
    cases += list(list_gradients(sets or (() if only_one else SETS)).items())
    chosen = paths or find_paths(peers_python)
    with tempfile.TemporaryDirectory() as folder:
        starts = {path: start(path, ranks, pathlib.Path(folder), peers_python) for path in chosen}
        for text in variants:
            path, environment = parse_variant(text)
            starts[text] = start(path, ranks, pathlib.Path(folder), peers_python, environment)
        with turns.open_jobs(starts) as jobs:
            for name, tensors in cases:
                measure(jobs, name, tensors, ranks, rounds, seconds, output)


def parse_variant(text: str) -> tuple[str, dict[str, str]]:
    """A path and environment variables.

    Raises:
        click.BadParameter: it says something else.
    """
    path, _, settings = text.partition(":")
    pairs = [setting.partition("=") for setting in settings.split(",")]
    if path not in OURS or not all(key and equals for key, equals, _ in pairs):
        raise click.BadParameter(
            f"--variant {text}: expected PATH:KEY=VALUE,..., with a path of {', '.join(OURS)}"
        )
    return path, {key: value for key, _, value in pairs}


def find_paths(peers_python: str) -> list[str]:
    """The paths that can be measured here; says what is missing for the others."""
    missing = {}
    built = _ask_horovod()
    gpus = bool(record.where()["gpus"])
    for kind in ("gloo", "mpi", "nccl"):
        if not built.get(kind):
            missing[f"horovod-{kind}"] = f"Horovod is not built with {kind} here"
    if not shutil.which("mpirun"):
        missing["horovod-mpi"] = missing["mpi4py"] = "there is no mpirun"
    if not gpus:
        missing["horovod-nccl"] = missing["multiworker-nccl"] = "there is no GPU"
    for path, module in PEERS.items():
        code = f"import importlib.util; raise SystemExit(not importlib.util.find_spec('{module}'))"
        if subprocess.run([peers_python, "-c", code], check=False).returncode:
            missing.setdefault(path, f"{module} is not installed (--peers-python)")
    for path, why in missing.items():
        click.echo(f"left out: {path}: {why}", err=True)
    return [path for path in PATHS if path not in missing and path not in ON_REQUEST]


def _ask_horovod() -> dict[str, bool]:
    """What Horovod is built with, asked in a process of its own; nothing where there is none."""
    code = "import json; from strategies import horovod; print(json.dumps(horovod.describe()))"
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=quiet, check=False
    )
    lines = found.stdout.splitlines()
    return dict(json.loads(lines[-1])) if found.returncode == 0 and lines else {}


def list_gradients(experiments: Sequence[str]) -> dict[str, list[int]]:
    """{experiment: bytes of each gradient of its model}; TensorFlow stays out of this process."""
    if not experiments:
        return {}
    command = [sys.executable, "-m", "benchmarks.allreduce_rank", "tensors", *experiments]
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    found = subprocess.run(command, capture_output=True, text=True, env=quiet, check=False)
    if found.returncode:
        raise click.ClickException(found.stderr.strip().splitlines()[-1])
    return dict(json.loads(found.stdout.splitlines()[-1]))


def start(
    path: str,
    ranks: int,
    folder: pathlib.Path,
    peers_python: str,
    environment: Mapping[str, str] | None = None,
) -> Callable[[], turns.Job]:
    """What starts the job of a path; each rank has its share of the cores."""
    cores = sorted(os.sched_getaffinity(0))
    told = dict(environment or {})
    if path == "parameter-server":
        command = [sys.executable, "-m", "benchmarks.allreduce_server", "coordinate", str(ranks)]
        return lambda: turns.Job(path, [command], 1)
    if path in OURS:
        strategy, own = OURS[path]
        rank = [sys.executable, "-m", "benchmarks.allreduce_rank", strategy]
        mpi = path == "horovod-mpi"
        started = _mpirun(ranks, rank) if mpi else turns.launched(strategy, ranks, cores, rank)
        name = path if not told else f"{path} with {told}"
        return lambda: turns.Job(name, [started], ranks, {**own, **_AS_ROOT, **told})
    python = peers_python if path in PEERS else sys.executable
    meeting = folder / f"{path}{len(told)}"
    meeting.mkdir(exist_ok=True)
    module = [python, "-m", "benchmarks.allreduce_peers", path]
    if path == "mpi4py":
        command = _mpirun(ranks, [*module, "0", str(ranks), str(meeting)])
        return lambda: turns.Job(path, [command], ranks, _AS_ROOT)
    shares = turns.share_cores(ranks)
    commands = [
        [*turns.pinned(shares[rank]), *module, str(rank), str(ranks), str(meeting)]
        for rank in range(ranks)
    ]
    return lambda: turns.Job(path, commands, ranks)


# Open MPI refuses root, the user of many containers, without both.
_AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def _mpirun(ranks: int, command: Sequence[str]) -> list[str]:
    fits = ranks <= len(os.sched_getaffinity(0))
    binding = ["--map-by", "core", "--bind-to", "core"] if fits else ["--bind-to", "none"]
    return ["mpirun", "-np", str(ranks), "--oversubscribe", *binding, *command]


def measure(
    jobs: dict[str, turns.Job],
    name: str,
    tensors: Sequence[int],
    ranks: int,
    rounds: int,
    turn: float,
    output: pathlib.Path,
) -> None:
    """Sum one size, or one set of tensors, by every path in turns; append and print."""
    first = {"tensors": list(tensors), "steps": 1, "warm_up": WARM_UP}
    once = turns.take_turns(jobs, dict.fromkeys(jobs, first), 1)
    for path in set(jobs) - set(once):
        del jobs[path]  # it has failed: open_jobs ends it
    requests = {
        path: {**first, "steps": turns.choose_steps(seconds[0], turn)}
        for path, seconds in once.items()
    }
    found = turns.take_turns(jobs, requests, rounds)
    size = sum(tensors)
    labels = {"ranks": ranks, "bytes": size, "tensors": len(tensors), "set": name}
    click.echo(f"{name or f'{size:,} bytes'}, {len(tensors)} tensors of {size / 1e6:.3f} MB")
    for path, seconds in found.items():
        steps = requests[path]["steps"]
        what = _label(path, labels)
        figures = list_figures(path, seconds, found.get(BOUND), size, ranks, steps)
        record.append(output, "allreduce", **what, **figures)
        click.echo(_describe(path, figures))
    for measured, base in _pairs(found):
        ratios = [b / a for a, b in zip(found[measured], found[base], strict=True)]
        ratio = record.figure(ratios, "1", warm_up=WARM_UP)
        record.append(output, "allreduce ratio", **_label(measured, labels), base=base, ratio=ratio)
        click.echo(f"  {measured} over {base}: {record.tell(ratio)}")


def list_figures(
    path: str,
    seconds: Sequence[float],
    bound: Sequence[float] | None,
    size: int,
    ranks: int,
    steps: int,
) -> dict[str, Any]:
    """Figures of a path from seconds a step, one a turn."""
    moved = size if path == "memory-copy" else project_model.ring_bound(ranks) * size

    def figure(values: Sequence[float], unit: str) -> dict[str, Any]:
        return record.figure(values, unit, warm_up=WARM_UP, steps=steps)

    figures = {
        "seconds": figure(seconds, "s"),
        "algorithm_bandwidth": figure([size / s / 1e9 for s in seconds], "GB/s"),
        "bus_bandwidth": figure([moved / s / 1e9 for s in seconds], "GB/s"),
    }
    if bound is not None and path != "memory-copy" and len(bound) == len(seconds):
        shares = [b / s for b, s in zip(bound, seconds, strict=True)]
        figures["over_bound"] = figure(shares, "1")
    return figures


def _label(name: str, labels: dict[str, Any]) -> dict[str, Any]:
    """Labels of a path or of a variant of one."""
    path, _, settings = name.partition(":")
    return {"path": path, **({"settings": settings} if settings else {}), **labels}


def _pairs(found: Mapping[str, Sequence[float]]) -> list[tuple[str, str]]:
    """What is divided by what: RATIOS, and variants by the path that they are of."""
    variants = [(name, name.partition(":")[0]) for name in found if ":" in name]
    return [
        (measured, base)
        for measured, base in (*RATIOS, *variants)
        if measured in found and base in found and len(found[measured]) == len(found[base])
    ]


def _describe(path: str, figures: Mapping[str, Any]) -> str:
    seconds, share = figures["seconds"], figures.get("over_bound")
    text = f"  {path}: {figures['algorithm_bandwidth']['median']:.3f} GB/s, bus "
    text += f"{figures['bus_bandwidth']['median']:.3f} GB/s, {seconds['median'] * 1e3:.3f} ms"
    text += f", {share['median']:.2f} of the bound" if share else ""
    return text + (" (disturbed)" if seconds.get("disturbed") else "")
