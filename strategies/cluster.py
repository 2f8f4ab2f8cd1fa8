"""Which rank is this process?

Pure functions of an environment mapping; no process is started or asked here.
"""

from __future__ import annotations

import dataclasses
import json
import re
import zlib
from collections.abc import Mapping

from strategies.base import StrategyError

# Ports below are given to other services, above to outgoing connections (Linux: 32768 upwards).
FIRST_PORT, NUM_PORTS = 20000, 12000


@dataclasses.dataclass(frozen=True)
class Cluster:
    """This process' place among the ranks of one job."""

    launcher: str
    """What started the ranks: "tf_config", "horovodrun", "openmpi", "pmi", "slurm" or "none"."""
    rank: int = 0
    """0 to world_size - 1."""
    world_size: int = 1
    """Number of ranks."""
    local_rank: int = 0
    """Rank among the processes of this host."""
    local_size: int = 1
    """Number of ranks on this host."""
    hosts: tuple[str, ...] = ()
    """Host of each rank where the environment tells it, else empty."""
    job: str = ""
    """A name that all ranks of this job share and other jobs do not."""

    def __post_init__(self) -> None:
        """Refuse a place outside the world."""
        if not (0 <= self.rank < self.world_size and 0 <= self.local_rank < self.local_size):
            raise StrategyError(
                f"{self.launcher}: rank {self.rank} of {self.world_size}, "
                f"local rank {self.local_rank} of {self.local_size}: "
                "not a place in a job; is the environment left over from another one?"
            )


def detect(environ: Mapping[str, str]) -> Cluster:
    """The place that the environment gives this process; a world of one where no launcher is seen.

    TF_CONFIG and horovodrun come first: they are explicit, and may stand inside a Slurm or MPI job.

    Raises:
        StrategyError: a launcher's variables are there but incomplete or contradict each other.
    """
    for launcher, marker, read in (
        ("tf_config", "TF_CONFIG", _from_tf_config),
        ("horovodrun", "HOROVOD_RANK", _from_horovodrun),
        ("openmpi", "OMPI_COMM_WORLD_RANK", _from_openmpi),
        ("slurm", "SLURM_STEP_NODELIST", _from_slurm),
        ("pmi", "PMI_RANK", _from_pmi),
    ):
        if marker in environ:
            try:
                return read(environ)
            except (KeyError, ValueError) as error:
                raise StrategyError(
                    f"{launcher}: {marker} is set, but the environment is incomplete: {error!r}"
                ) from error
    return Cluster("none")


def tf_config(cluster: Cluster) -> str:
    """TF_CONFIG for this rank: one worker a rank, ports derived from the job's name.

    Raises:
        StrategyError: the environment does not tell the ranks' hosts.
    """
    hosts = cluster.hosts
    if not hosts and cluster.local_size == cluster.world_size:
        hosts = ("127.0.0.1",) * cluster.world_size
    if len(hosts) != cluster.world_size:
        raise StrategyError(
            f"{cluster.launcher} does not tell the hosts of the {cluster.world_size} ranks: "
            "set TF_CONFIG on each rank, or start them with srun"
        )
    base = FIRST_PORT + zlib.crc32(cluster.job.encode()) % NUM_PORTS
    workers = [f"{host}:{base + rank}" for rank, host in enumerate(hosts)]
    return json.dumps(
        {"cluster": {"worker": workers}, "task": {"type": "worker", "index": cluster.rank}}
    )


def expand_nodelist(nodelist: str) -> list[str]:
    """Slurm's compressed host list in full.

    "jwb[0001-0003,0010],login1" -> jwb0001, jwb0002, jwb0003, jwb0010, login1.

    Source: slurm.schedmd.com/scontrol.html, "show hostnames".
    """
    names: list[str] = []
    for item in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodelist):
        expanded = [""]
        for text, ranges in re.findall(r"([^\[]+)|\[([^\]]*)\]", item):
            parts = [text] if text else _expand_ranges(ranges)
            expanded = [prefix + part for prefix in expanded for part in parts]
        names += expanded
    return names


def _expand_ranges(ranges: str) -> list[str]:
    parts: list[str] = []
    for piece in ranges.split(","):
        first, _, last = piece.partition("-")
        parts += [f"{n:0{len(first)}d}" for n in range(int(first), int(last or first) + 1)]
    return parts


def _expand_tasks(tasks: str) -> list[int]:
    """Slurm's "2(x3),1" -> [2, 2, 2, 1]: tasks on each node."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks):
        counts += [int(count)] * int(times or 1)
    return counts


def _from_tf_config(environ: Mapping[str, str]) -> Cluster:
    config = json.loads(environ["TF_CONFIG"])
    workers = config["cluster"]["worker"]
    index = int(config["task"]["index"])
    hosts = tuple(worker.rpartition(":")[0] for worker in workers)
    if not 0 <= index < len(hosts):
        raise StrategyError(f"TF_CONFIG: task index {index} with {len(hosts)} workers")
    same = [rank for rank, host in enumerate(hosts) if host == hosts[index]]
    return Cluster(
        "tf_config", index, len(hosts), same.index(index), len(same), hosts, job=",".join(workers)
    )


def _from_horovodrun(environ: Mapping[str, str]) -> Cluster:
    return Cluster(
        "horovodrun",
        int(environ["HOROVOD_RANK"]),
        int(environ["HOROVOD_SIZE"]),
        int(environ["HOROVOD_LOCAL_RANK"]),
        int(environ["HOROVOD_LOCAL_SIZE"]),
        job=f"horovod:{environ.get('HOROVOD_GLOO_RENDEZVOUS_PORT', '')}",
    )


def _from_openmpi(environ: Mapping[str, str]) -> Cluster:
    return Cluster(
        "openmpi",
        int(environ["OMPI_COMM_WORLD_RANK"]),
        int(environ["OMPI_COMM_WORLD_SIZE"]),
        int(environ["OMPI_COMM_WORLD_LOCAL_RANK"]),
        int(environ["OMPI_COMM_WORLD_LOCAL_SIZE"]),
        job=environ.get("PMIX_NAMESPACE", environ.get("OMPI_MCA_ess_base_jobid", "openmpi")),
    )


def _from_pmi(environ: Mapping[str, str]) -> Cluster:
    return Cluster(
        "pmi",
        int(environ["PMI_RANK"]),
        int(environ["PMI_SIZE"]),
        int(environ.get("MPI_LOCALRANKID", environ["PMI_RANK"])),
        int(environ.get("MPI_LOCALNRANKS", environ["PMI_SIZE"])),
        job=environ.get("PMI_JOBID", "pmi"),
    )


def _from_slurm(environ: Mapping[str, str]) -> Cluster:
    """Inside srun only: SLURM_STEP_* is not set in a batch script itself."""
    nodes = expand_nodelist(environ["SLURM_STEP_NODELIST"])
    tasks = _expand_tasks(environ["SLURM_STEP_TASKS_PER_NODE"])
    if len(nodes) != len(tasks):
        raise StrategyError(f"slurm: {len(nodes)} nodes but tasks on {len(tasks)} of them")
    return Cluster(
        "slurm",
        int(environ["SLURM_PROCID"]),
        int(environ["SLURM_STEP_NUM_TASKS"]),
        int(environ["SLURM_LOCALID"]),
        tasks[int(environ["SLURM_NODEID"])],
        # Block distribution, srun's default: the first node's tasks have the lowest ranks.
        tuple(node for node, count in zip(nodes, tasks, strict=True) for _ in range(count)),
        job=f"{environ['SLURM_JOB_ID']}.{environ['SLURM_STEP_ID']}",
    )
