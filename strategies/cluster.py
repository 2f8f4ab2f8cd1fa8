"""Which rank is this process?

Pure functions of an environment mapping; no process is started or asked here.
"""

from __future__ import annotations

import dataclasses
import json
import re
import zlib
from collections.abc import Mapping, Sequence

from strategies.base import StrategyError

# Ports below are given to other services, above to outgoing connections (Linux: 32768 upwards).
FIRST_PORT, NUM_PORTS = 20000, 12000
# What `python -m kerass2.launch` tells the ranks, which horovodrun and the mpirun that it may call
# do not: "h1:4,h2:4". Launchers that tell the hosts themselves are believed.
HOSTS = "KERASS2_HOSTS"
# What strategies.launch tells ranks that it may start again: the job's name, how often it has.
JOB, RESTARTS = "KERASS2_JOB", "KERASS2_RESTARTS"


@dataclasses.dataclass(frozen=True)
class Cluster:
    """This process' place among the ranks of one job."""

    launcher: str
    """What started the ranks: a key of LAUNCHERS, or "none"."""
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
    mpi: bool = False
    """True where the launcher gives MPI what it needs to find the other ranks."""

    def __post_init__(self) -> None:
        """Refuse a place outside the world."""
        if not (0 <= self.rank < self.world_size and 0 <= self.local_rank < self.local_size):
            raise StrategyError(
                f"{self.launcher}: rank {self.rank} of {self.world_size}, "
                f"local rank {self.local_rank} of {self.local_size}: "
                "not a place in a job; is the environment left over from another one?"
            )

    @property
    def port(self) -> int:
        """A port that follows from the job's name: that of rank 0's meeting."""
        return FIRST_PORT + zlib.crc32(self.job.encode()) % NUM_PORTS

    def require_hosts(self) -> tuple[str, ...]:
        """Host of each rank.

        Raises:
            StrategyError: the environment does not tell them.
        """
        if not self.hosts and self.local_size == self.world_size:
            return ("127.0.0.1",) * self.world_size
        if len(self.hosts) != self.world_size:
            raise StrategyError(
                f"{self.launcher} does not tell the hosts of the {self.world_size} ranks: start "
                "them with srun or `python -m kerass2.launch`, or set TF_CONFIG on each"
            )
        return self.hosts


def detect(environ: Mapping[str, str]) -> Cluster:
    """The place that the environment gives this process; a world of one where no launcher is seen.

    Raises:
        StrategyError: a launcher's variables are there but incomplete or contradict each other.
    """
    for launcher, (marker, read) in LAUNCHERS.items():
        if marker in environ:
            try:
                return _with_hosts(read(environ), environ)
            except (LookupError, ValueError, TypeError, ZeroDivisionError) as error:
                raise StrategyError(
                    f"{launcher}: {marker} is set, but the environment is incomplete: {error!r}"
                ) from error
    return Cluster("none")


def _with_hosts(cluster: Cluster, environ: Mapping[str, str]) -> Cluster:
    """The hosts that HOSTS names, where the launcher tells none."""
    if cluster.hosts or HOSTS not in environ:
        return cluster
    hosts = expand_hosts(environ[HOSTS])
    rank = cluster.rank
    if (
        len(hosts) != cluster.world_size
        or hosts[:rank].count(hosts[rank]) != cluster.local_rank
        or hosts.count(hosts[rank]) != cluster.local_size
    ):
        raise StrategyError(
            f"{HOSTS}={environ[HOSTS]}, but {cluster.launcher} made this rank {rank} of "
            f"{cluster.world_size}, {cluster.local_rank} of {cluster.local_size} on its host: "
            "is it left over from another job?"
        )
    return dataclasses.replace(cluster, hosts=hosts)


def num_restarts(environ: Mapping[str, str]) -> int:
    """How often the batch system, or strategies.launch, has started this job again."""
    return int(environ.get("SLURM_RESTART_COUNT", "0")) + int(environ.get(RESTARTS, "0"))


def batch_job(environ: Mapping[str, str]) -> str:
    """A name that the starts of one job share, and no other job has; empty where nothing tells."""
    return environ.get(JOB) or environ.get("SLURM_JOB_ID", "")


def requeue_command(environ: Mapping[str, str]) -> list[str] | None:
    """The command that ends this job and puts it back into the queue; None outside one."""
    job = environ.get("SLURM_JOB_ID")
    return ["scontrol", "requeue", job] if job else None


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


def expand_hosts(hosts: str) -> tuple[str, ...]:
    """Host of each rank: horovodrun's "h1:2,h2:1" -> h1, h1, h2.

    Raises:
        ValueError: not of this form.
    """
    names: list[str] = []
    for item in hosts.split(","):
        match = re.fullmatch(r"([\w.-]+):(\d+)", item.strip())
        if not match or int(match[2]) < 1:
            raise ValueError(f"{item!r}: expected HOST:RANKS, as in h1:4,h2:4")
        names += [match[1]] * int(match[2])
    return tuple(names)


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


def _allocation(environ: Mapping[str, str]) -> list[str]:
    """Nodes of the Slurm or LSF job around another launcher; empty where there is none.

    LSF's variable is "host slots host slots ..."; where a launch node comes first, it has one slot.
    Source: IBM Spectrum LSF, "Environment variables set for job execution".
    """
    if "SLURM_JOB_NODELIST" in environ:
        return expand_nodelist(environ["SLURM_JOB_NODELIST"])
    words = environ.get("LSB_MCPU_HOSTS", "").split()
    hosts, slots = words[::2], [int(word) for word in words[1::2]]
    has_launch_node = len(slots) > 1 and slots[0] == 1 < slots[1]
    return hosts[1:] if has_launch_node else hosts


def _packed(
    nodes: Sequence[str], rank: int, world_size: int, local_rank: int, local_size: int
) -> tuple[str, ...]:
    """Host of each rank where ranks fill one node after the other, each with as many; else empty.

    mpirun's, mpiexec's and jsrun's default. Another placement shows in a rank that is not where it
    would be: its local rank.
    """
    if len(nodes) * local_size != world_size or rank % local_size != local_rank:
        return ()
    return tuple(node for node in nodes for _ in range(local_size))


def _from_tf_config(environ: Mapping[str, str]) -> Cluster:
    """tf.distribute counts a chief before the workers."""
    config = json.loads(environ["TF_CONFIG"])
    roles, task = config["cluster"], config["task"]
    strange = sorted(set(roles) - {"chief", "worker"})
    if strange:
        raise StrategyError(f"TF_CONFIG: role {strange[0]!r}; expected chief and worker only")
    addresses = [*roles.get("chief", []), *roles.get("worker", [])]
    if task["type"] not in roles or not 0 <= int(task["index"]) < len(roles[task["type"]]):
        raise StrategyError(
            f"TF_CONFIG: task {task['type']} {task['index']} with {len(addresses)} workers"
        )
    rank = int(task["index"])
    rank += len(roles.get("chief", [])) if task["type"] == "worker" else 0
    hosts = tuple(address.rpartition(":")[0] for address in addresses)
    same = [other for other, host in enumerate(hosts) if host == hosts[rank]]
    return Cluster(
        "tf_config", rank, len(hosts), same.index(rank), len(same), hosts, job=",".join(addresses)
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
    place = (
        int(environ["OMPI_COMM_WORLD_RANK"]),
        int(environ["OMPI_COMM_WORLD_SIZE"]),
        int(environ["OMPI_COMM_WORLD_LOCAL_RANK"]),
        int(environ["OMPI_COMM_WORLD_LOCAL_SIZE"]),
    )
    job = environ.get("PMIX_NAMESPACE", environ.get("OMPI_MCA_ess_base_jobid", "openmpi"))
    return Cluster("openmpi", *place, _packed(_allocation(environ), *place), job, mpi=True)


def _from_jsrun(environ: Mapping[str, str]) -> Cluster:
    """IBM's job step manager under LSF.

    Source: the variables that lightning.fabric's LSFEnvironment reads.
    """
    place = (
        int(environ["JSM_NAMESPACE_RANK"]),
        int(environ["JSM_NAMESPACE_SIZE"]),
        int(environ["JSM_NAMESPACE_LOCAL_RANK"]),
        int(environ["JSM_NAMESPACE_LOCAL_SIZE"]),
    )
    job = f"{environ['LSB_JOBID']}.{environ.get('JSM_NAMESPACE_ID', '')}"
    return Cluster("jsrun", *place, _packed(_allocation(environ), *place), job, mpi=True)


def _from_pmi(environ: Mapping[str, str]) -> Cluster:
    """MPICH and its descendants: Hydra's names of the local rank, or Cray's."""
    names = ("MPI_LOCALRANKID", "MPI_LOCALNRANKS")
    if "PMI_LOCAL_RANK" in environ:
        names = ("PMI_LOCAL_RANK", "PMI_LOCAL_SIZE")
    place = (
        int(environ["PMI_RANK"]),
        int(environ["PMI_SIZE"]),
        int(environ[names[0]]),
        int(environ[names[1]]),
    )
    job = environ.get("PMI_JOBID", environ.get("SLURM_JOB_ID", environ.get("LSB_JOBID", "pmi")))
    return Cluster("pmi", *place, _packed(_allocation(environ), *place), job, mpi=True)


def _from_slurm(environ: Mapping[str, str]) -> Cluster:
    """Inside srun only: SLURM_STEP_* is not set in a batch script itself."""
    nodes = expand_nodelist(environ["SLURM_STEP_NODELIST"])
    tasks = _expand_tasks(environ["SLURM_STEP_TASKS_PER_NODE"])
    if len(nodes) != len(tasks):
        raise StrategyError(f"slurm: {len(nodes)} nodes but tasks on {len(tasks)} of them")
    rank, node = int(environ["SLURM_PROCID"]), int(environ["SLURM_NODEID"])
    hosts = _place(nodes, tasks, environ.get("SLURM_DISTRIBUTION", "block"))
    if len(hosts) != int(environ["SLURM_STEP_NUM_TASKS"]):
        raise StrategyError(
            f"slurm: {environ['SLURM_STEP_NUM_TASKS']} tasks, {len(hosts)} of them on nodes"
        )
    if hosts[rank] != nodes[node]:
        raise StrategyError(
            f"slurm: rank {rank} is on {nodes[node]}, expected on {hosts[rank]}: "
            "give srun --distribution=block"
        )
    return Cluster(
        "slurm",
        rank,
        len(hosts),
        int(environ["SLURM_LOCALID"]),
        tasks[node],
        hosts,
        job=f"{environ['SLURM_JOB_ID']}.{environ['SLURM_STEP_ID']}",
        mpi=any(name in environ for name in ("PMIX_RANK", "PMI_RANK")),
    )


def _place(nodes: Sequence[str], tasks: Sequence[int], distribution: str) -> tuple[str, ...]:
    """Host of each rank: block fills the first node first, cyclic gives each node one in turn."""
    places = [(index, turn) for index, count in enumerate(tasks) for turn in range(count)]
    if distribution.startswith("cyclic"):
        places.sort(key=lambda place: place[1])
    return tuple(nodes[index] for index, _ in places)


# Launcher -> the variable that shows it, and what reads its environment. What is explicit comes
# first: TF_CONFIG and horovodrun's ranks may stand inside a Slurm or MPI job, mpirun's inside Slurm
# or LSF; srun with PMI-2 sets the variables of both.
LAUNCHERS = {
    "tf_config": ("TF_CONFIG", _from_tf_config),
    "horovodrun": ("HOROVOD_RANK", _from_horovodrun),
    "openmpi": ("OMPI_COMM_WORLD_RANK", _from_openmpi),
    "jsrun": ("JSM_NAMESPACE_RANK", _from_jsrun),
    "slurm": ("SLURM_STEP_NODELIST", _from_slurm),
    "pmi": ("PMI_RANK", _from_pmi),
}
