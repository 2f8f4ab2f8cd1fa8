"""Ranks compare what must be the same on all of them, and stop with one line where it is not.

What is compared is a digest of 48 bits, which float64 holds exactly: each rank puts its own into
its row of a zero matrix, and the sum over ranks is the table of all.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kerass2 import workdir as folder
from strategies.base import StrategyError

if TYPE_CHECKING:
    from kerass2.job import Job
    from strategies.base import Strategy

# Time that a node may take to see another's new file [s]: NFS keeps what it knows of a folder.
SHARED_SECONDS = 60.0
# Their rounding is part of the result.
LIBRARIES = ("keras", "numpy", "tensorflow", "tensorflow-cpu", "horovod")


def digest(parts: Iterable[bytes]) -> int:
    """48 bits of the SHA-256 of some bytes."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return int.from_bytes(found.digest()[:6], "big")


def find_difference(strategy: Strategy, digests: Sequence[int]) -> tuple[int, int] | None:
    """(position, rank) of the first digest in which a rank differs from most; None if none does.

    Every rank calls it with as many digests, and gets the same. Of two values that are as frequent,
    rank 0's counts as that of most.
    """
    own = np.zeros((strategy.world_size, len(digests)))
    own[strategy.rank] = digests
    table = strategy.sum(own)
    for position, column in enumerate(table.T):
        values, counts = np.unique(column, return_counts=True)
        if len(values) > 1:
            most = values[counts == counts.max()]
            usual = column[0] if column[0] in most else most[0]
            return position, int(np.flatnonzero(column != usual)[0])
    return None


def require_same(strategy: Strategy, items: Mapping[str, tuple[str, str]]) -> None:
    """Refuse ranks that differ. Every rank calls it.

    Args:
        strategy: of the ranks.
        items: name -> (this rank's value, what to do where ranks differ in it); the same names on
            all.

    Raises:
        StrategyError: says which rank differs, and in what.
    """
    values = [digest([value.encode()]) for value, _ in items.values()]
    found = find_difference(strategy, values)
    if found is None:
        return
    (name, (value, remedy)), odd = list(items.items())[found[0]], found[1]
    raise StrategyError(
        f"ranks differ in {name}: rank {odd} of {strategy.world_size} from most others; "
        f"on rank {strategy.rank} it is {value}. {remedy}"
    )


def check_start(job: Job, strategy: Strategy) -> None:
    """Refuse ranks of other code, another experiment or other data. Every rank calls it.

    Before anything else that ranks do together: it might not come to an end.

    Raises:
        StrategyError: they differ.
    """
    if strategy.world_size == 1:
        return
    # By itself and first: other code may compare other things.
    require_same(strategy, {"the code": (_describe_code(), "Install the same on all nodes")})
    experiment, command = job.experiment.to_json(), "Give all ranks the same command line"
    items = {
        "run.seed": (str(job.experiment.run.seed), command),
        **{
            f"the experiment ({key})": (json.dumps(value, sort_keys=True), command)
            for key, value in experiment.items()
        },
        "the data": (
            f"{job.data.digest} ({job.data.description})",
            "Give all ranks the same data, or copies of them",
        ),
        "the starting weights": (job.init.digest if job.init else "none", command),
        "the run in the workdir": (
            f"{'old' if job.resume else 'new'}, {job.workdir} holds {_describe_run(job.workdir)}",
            "Give a --workdir on a file system that all nodes share",
        ),
    }
    require_same(strategy, items)


def check_shared(workdir: pathlib.Path, strategy: Strategy) -> None:
    """Refuse a workdir that is another folder on another node. Every rank calls it.

    After rank 0 has begun a run there; the others wait until they see it.

    Raises:
        StrategyError: a rank does not see what rank 0 has written.
    """
    if strategy.world_size == 1:
        return
    path = workdir / folder.DATA
    own = digest([_read(path)]) if strategy.is_chief else 0
    expected = strategy.sum(np.array([float(own)]))[0]
    deadline = time.monotonic() + SHARED_SECONDS
    while (found := digest([_read(path)])) != expected and time.monotonic() < deadline:
        time.sleep(0.1)
    difference = find_difference(strategy, [int(found == expected)])
    if difference is not None:
        raise StrategyError(
            f"rank {difference[1]} does not see in {workdir} what rank 0 has written there: give a "
            "--workdir on a file system that all nodes share"
        )


def check_weights(model: Any, strategy: Strategy, done: int, equal_at: int | None) -> None:
    """Refuse ranks whose weights differ by a bit. Every rank calls it.

    Args:
        model: whose trainable weights are compared, layer by layer; moving statistics may differ.
        strategy: of the ranks.
        done: steps done.
        equal_at: steps after which they were last found equal; None: never looked at.

    Raises:
        StrategyError: names the first layer and the rank.
    """
    if strategy.world_size == 1:
        return
    digests = layer_digests(model)
    found = find_difference(strategy, list(digests.values()))
    if found is not None:
        since = "" if equal_at is None else f", and were equal after {equal_at}"
        raise StrategyError(
            f"ranks hold different weights after {done} steps{since}: layer "
            f"{list(digests)[found[0]]} of rank {found[1]} differs from most others. A summed "
            "gradient was not the same on all ranks, or a processor or its memory errs; "
            "checkpoints that are older than that are sound (--set run.check_every=0: never look)"
        )


def layer_digests(model: Any) -> dict[str, int]:
    """Layer -> digest of its trainable weights, in the model's order."""
    layers: dict[str, list[Any]] = {}
    for weight in model.trainable_variables:
        layers.setdefault(weight.path.rpartition("/")[0], []).append(weight)
    return {
        name: digest(np.asarray(weight).tobytes() for weight in weights)
        for name, weights in layers.items()
    }


def _describe_code() -> str:
    """Versions of this package and of the libraries, and a digest of our own sources."""
    import data_pipelines
    import kerass2
    import strategies

    folders = [pathlib.Path(p.__path__[0]) for p in (kerass2, strategies, data_pipelines)]
    sources = [path for each in folders for path in sorted(each.rglob("*.py"))]
    versions = []
    for name in LIBRARIES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    code = digest(path.read_bytes() for path in sources)
    return f"kerass2 {kerass2.__version__} ({code:012x}), {', '.join(versions)}"


def _describe_run(workdir: pathlib.Path) -> str:
    """What decides where a run goes on: its files of settings, and its checkpoints' names."""
    from kerass2 import checkpoint

    settings = digest(_read(workdir / name) for name in (folder.EXPERIMENT, folder.DATA))
    steps = [path.stem for path in checkpoint.find(workdir / folder.CHECKPOINTS)]
    return f"settings {settings:012x} and {', '.join(steps) or 'no checkpoint'}"


def _read(path: pathlib.Path) -> bytes:
    """A file's bytes; none where there is no such file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
