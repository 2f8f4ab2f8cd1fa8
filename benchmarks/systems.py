"""Systems: a machine's hardware and what is published of it, one benchmarks/systems/*.toml each.

`local` has nearly nothing in its file: what it is made of is detected. A path takes the place of a
name, so that a cluster's file need not lie in the package.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pydantic

from data_pipelines.spec import DataError

FOLDER = pathlib.Path(__file__).parent / "systems"
TEMPLATE, LOCAL = "template", "local"
Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]


class _Table(pydantic.BaseModel):
    """A table of the file; a key that is not known is an error, not a wish unheard."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Node(_Table):
    """One computer."""

    devices: pydantic.PositiveInt
    """Ranks that have a device of their own: GPUs, or cores where there are none."""
    cores: pydantic.PositiveInt | None = None
    """Of all processors."""
    cpu: str = ""
    """Its name."""
    memory_gb: Positive | None = None
    """[GB]."""


class Device(_Table):
    """What one rank computes on."""

    name: str
    """As its maker calls it."""
    memory_gb: Positive | None = None
    """[GB]."""
    peak_tflops: Positive | None = None
    """Operations in float32 [TFLOP/s]."""


class Link(_Table):
    """What ranks send through."""

    name: str
    """As its maker calls it."""
    between: Literal["devices", "nodes"]
    """Devices of one node, or nodes."""
    bandwidth: Positive
    """Each way [GB/s]."""
    latency: Positive
    """Of a message [s]."""
    source: str
    """Where the figures come from, and which are assumed."""


class Curve(_Table):
    """A published figure against the number of ranks."""

    experiment: str
    """Of kerass2.configs."""
    title: str
    """Of the network, for readers."""
    quantity: Literal["epoch_seconds", "throughput"]
    """Seconds per epoch [s], or [patches/s] of all ranks."""
    strategy: str
    """horovod or multiworker."""
    mode: Literal["weak", "strong"]
    """The batch of a rank stays, or that of all."""
    local_batch: pydantic.PositiveInt
    """Patches of a rank, at the fewest ranks where `mode` is strong."""
    epoch_patches: pydantic.PositiveInt | None = None
    """Patches of an epoch, where known."""
    ranks: tuple[pydantic.PositiveInt, ...]
    """In ascending order."""
    values: tuple[Positive, ...]
    """One for each of `ranks`."""
    source: str
    """Paper, and its figure or table."""
    approximate: bool = False
    """Read from prose."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Curve:
        if not self.ranks or list(self.ranks) != sorted(set(self.ranks)):
            raise ValueError("ranks: expected ascending numbers, at least one")
        if len(self.ranks) != len(self.values):
            raise ValueError(f"values: {len(self.values)} for {len(self.ranks)} numbers of ranks")
        return self


class QualityRow(_Table):
    """One line of a published table of scores."""

    method: str
    """Model, or interpolation."""
    ranks: pydantic.PositiveInt | None = None
    """None where nothing was trained."""
    global_batch: pydantic.PositiveInt | None = None
    """Patches of a step."""
    hours: Positive | None = None
    """Of training."""
    scores: tuple[float, ...]
    """One for each metric."""


class Quality(_Table):
    """A published table of scores."""

    experiment: str
    """Of kerass2.configs."""
    title: str
    """Of the model, for readers."""
    metrics: tuple[str, ...]
    """As kerass2.evaluate names them."""
    source: str
    """Paper, and its table."""
    row: tuple[QualityRow, ...]
    """As printed."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Quality:
        for number, row in enumerate(self.row):
            if len(row.scores) != len(self.metrics):
                raise ValueError(
                    f"row {number}: {len(row.scores)} scores for {len(self.metrics)} metrics"
                )
        return self


class System(_Table):
    """A machine, and what is published of it."""

    name: str
    """As --system takes it, and as records call it."""
    title: str
    """For readers."""
    source: str
    """Where the figures of node and device come from."""
    launcher: str
    """What starts ranks there."""
    nodes: pydantic.PositiveInt | None = None
    """Of the partition that was used."""
    note: str = ""
    """What else a reader should know."""
    node: Node
    """One of its nodes."""
    device: Device
    """One of a node's devices."""
    link: tuple[Link, ...] = ()
    """At most one between devices and one between nodes."""
    curve: tuple[Curve, ...] = ()
    """Published."""
    quality: tuple[Quality, ...] = ()
    """Published."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> System:
        kinds = [link.between for link in self.link]
        if len(kinds) != len(set(kinds)):
            raise ValueError(f"link: between {kinds}; expected each at most once")
        return self

    def find_link(self, between: str) -> Link | None:
        """The link between devices or between nodes, if it is given."""
        return next((link for link in self.link if link.between == between), None)


def names() -> list[str]:
    """Systems that come with the package; the template is none."""
    return sorted(path.stem for path in FOLDER.glob("*.toml") if path.stem != TEMPLATE)


def load(name: str | os.PathLike[str]) -> System:
    """A system by its name, or by the path of its file.

    Raises:
        DataError: there is none of that name, or its file is damaged or wrong: says file, key,
            what was found and what is expected.
    """
    path = pathlib.Path(name)
    if path.suffix != ".toml":
        path = FOLDER / f"{name}.toml"
        if not path.is_file():
            raise DataError(
                f"no system {str(name)!r}; expected one of {', '.join(names())}, or the path of a "
                f".toml file ({FOLDER / TEMPLATE}.toml shows how)"
            )
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path}: expected TOML: {error}") from error
    if values.get("name") == LOCAL:
        values = {**detect(), **values}
    try:
        return System.model_validate(values)
    except pydantic.ValidationError as error:
        raise DataError("; ".join(_describe(path, error))) from error


def _describe(path: pathlib.Path, error: pydantic.ValidationError) -> Iterator[str]:
    """Every mistake as file, key, found and expected."""
    for found in error.errors():
        key = ".".join(map(str, found["loc"])) or "the whole file"
        if found["type"] == "missing":
            yield f"{path}: {key}: not there; expected a value"
        elif found["type"] == "extra_forbidden":
            yield f"{path}: {key}: found an unknown key; expected those of {TEMPLATE}.toml"
        elif found["type"] == "value_error":
            yield f"{path}: {key}: {str(found['msg']).removeprefix('Value error, ')}"
        else:
            yield f"{path}: {key}: found {found['input']!r}; expected: {found['msg']}"


def detect() -> dict[str, Any]:
    """The node and the device of this machine, as a file of a system has them.

    A GPU each where the driver's nvidia-smi names some, else a core each.
    """
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    node: dict[str, Any] = {"cores": cores, "cpu": _cpu_name(), "memory_gb": round(memory, 1)}
    gpus = _gpus()
    if gpus:
        name, mebibytes = gpus[0]
        device = {"name": name, "memory_gb": round(mebibytes * 2**20 / 1e9, 1)}
        return {"node": {"devices": len(gpus), **node}, "device": device}
    return {"node": {"devices": cores, **node}, "device": {"name": f"one core of {_cpu_name()}"}}


def _cpu_name() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, "a processor without a name")


def _gpus() -> list[tuple[str, float]]:
    """Name and memory [MiB] of each GPU; none where there is no driver or it fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
        rows = [line.rsplit(",", 1) for line in done.stdout.splitlines() if line.strip()]
        return [(name.strip(), float(memory)) for name, memory in rows]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
