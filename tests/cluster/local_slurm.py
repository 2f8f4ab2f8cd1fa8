"""A real Slurm on this machine: munge, one controller, two nodes, all of them this test's own.

Nothing of it outlives the process that started it, even one that was killed: the kernel then ends
the daemons, and with a node's first process all others of that node.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import getpass
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import training

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Node -> address. Two names and two addresses, so that one taken for the other shows.
NODES = {"knode01": "127.0.1.1", "knode02": "127.0.1.2"}
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare", "mount")
# As root, the Slurm programs lie in folders that a user's PATH may lack.
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
START_SECONDS = 60.0
# From Slurm's polite signal to its hard one; between two looks at a job.
KILL_WAIT, POLL_SECONDS = 20, 0.2
# Without a sign of life for so long, a node counts as down.
NODE_SECONDS = 15
# So long Slurm keeps a job that is back in the queue from starting again, two minutes unless told.
# The end of its old batch script must be known by then, and nothing on its way that ends it,
# KILL_WAIT and more after a node is gone: it would be taken for the new one's. 20 were too few.
AGAIN_SECONDS = 60
ENDED = ("FAILED", "TIMEOUT", "CANCELLED", "COMPLETED", "NODE_FAIL")
PR_SET_PDEATHSIG = 1  # linux/prctl.h
CONFIGURATION = """
ClusterName=kerass2test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire={again_seconds}
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
# This machine may have fewer cores than the nodes say.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
# PMIx makes a folder there that has the same name on all nodes of a job.
TmpFS={folder}/tmp-%n
SlurmdTimeout={node_seconds}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
KillWait={kill_wait}
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} {size}\n"
NODE_SIZE = "CPUs=4 RealMemory=4000 State=UNKNOWN"


@dataclasses.dataclass
class Slurm:
    """The running cluster, and what tests ask of it."""

    folder: pathlib.Path
    environment: dict[str, str]
    daemons: dict[str, subprocess.Popen[bytes]] = dataclasses.field(default_factory=dict)

    def run(self, *command: str, check: bool = True) -> str:
        """Standard output of one of Slurm's commands."""
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment, cwd=ROOT, timeout=60
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def submit(self, *command: str, **environ: str) -> str:
        """sbatch [OPTION...] FILE [ARGUMENT...] with a rank on each of two nodes; the id."""
        output = f"--output={self.folder}/%j.out"
        done = subprocess.run(
            ["sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", output, *command],
            capture_output=True,
            text=True,
            env=self.environment | environ,
            cwd=ROOT,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def output(self, job: str) -> str:
        """What the job has written so far."""
        path = self.folder / f"{job}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def show(self, job: str) -> dict[str, str]:
        """What the controller knows of the job: JobState, Restarts, ExitCode, ..."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.run("scontrol", "-o", "show", "job", job)))

    def wait(self, job: str, *states: str, seconds: float = 180) -> dict[str, str]:
        """Wait until the job is in one of these states, and fail if it ends in another."""
        deadline = time.monotonic() + seconds
        while (shown := self.show(job))["JobState"] not in states:
            ended = shown["JobState"] in ENDED
            late = time.monotonic() > deadline
            assert not (ended or late), f"{shown['JobState']}\n{self.output(job)[-4000:]}"
            time.sleep(POLL_SECONDS)
        return shown

    def end_jobs(self) -> None:
        """Cancel what still runs or waits, and wait for its end."""
        if not self.run("squeue", "--noheader", check=False):
            return
        ours = f"--user={getpass.getuser()}"
        self.run("scancel", "--quiet", ours, check=False)
        self.run("scancel", "--quiet", "--signal=KILL", ours, check=False)
        deadline = time.monotonic() + 2 * KILL_WAIT
        while self.run("squeue", "--noheader", check=False) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def kill_node(self, name: str) -> None:
        """End all of a node's processes at once, as a power cut does."""
        self.daemons[name].kill()
        self.daemons.pop(name).wait()

    def start_daemon(self, name: str, command: Sequence[str]) -> None:
        """Start a part of the cluster, which ends with this process at the latest."""
        libc, parent = ctypes.CDLL(None), os.getpid()

        def before_exec() -> None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        with (self.folder / f"{name}.log").open("ab") as log:
            # A session of their own: an interrupt is for the tests, which then end them in order.
            self.daemons[name] = subprocess.Popen(
                command,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=before_exec,
            )

    def start_node(self, name: str) -> None:
        """Start a node: names and processes of its own."""
        isolated = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        hosts = f"mount --bind {self.folder}/hosts /etc/hosts"
        # The shell, first of the node's processes, collects those whose parent has ended.
        self.start_daemon(name, [*isolated, "sh", "-c", f"{hosts}; slurmd -D -N {name} & wait"])

    def wait_for_nodes(self) -> None:
        """Wait until all nodes have come."""
        deadline = time.monotonic() + START_SECONDS
        expected = f"{len(NODES)} idle"
        while self.run("sinfo", "--noheader", "--format=%D %t", check=False) != expected:
            if time.monotonic() > deadline:
                logs = [path.read_text()[-2000:] for path in self.folder.glob("*.log")]
                raise RuntimeError("Slurm does not start:\n" + "\n".join(logs))
            time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def start() -> Iterator[Slurm]:
    """Slurm with the nodes of NODES, inside the `with` block; its jobs end with it."""
    # Not in pytest's own folders: munge wants to pass through all above its socket.
    with tempfile.TemporaryDirectory(prefix="kslurm-", ignore_cleanup_errors=True) as name:
        slurm = Slurm(pathlib.Path(name), _configure(pathlib.Path(name)))
        try:
            munge = ["munged", "--foreground"]
            for option in ("key", "socket", "pid", "log", "seed"):
                suffix = "" if option == "socket" else "-file"
                munge.append(f"--{option}{suffix}={name}/munge/{option}")
            slurm.start_daemon("munged", munge)
            slurm.start_daemon("slurmctld", ["slurmctld", "-D", "-f", f"{name}/slurm.conf"])
            for node in NODES:
                slurm.start_node(node)
            slurm.wait_for_nodes()
            yield slurm
            slurm.end_jobs()
        finally:
            for process in reversed(slurm.daemons.values()):
                process.kill()
                process.wait()


def _configure(folder: pathlib.Path) -> dict[str, str]:
    """Write what the daemons read; the environment of all Slurm commands."""
    for name in ("munge", "state", *(f"tmp-{node}" for node in NODES)):
        (folder / name).mkdir()
    for path in (folder, folder / "munge"):
        path.chmod(0o711)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for each in sockets:
            each.bind(("", 0))
        ports = [each.getsockname()[1] for each in sockets]
    host = socket.gethostname()
    values = {"folder": folder, "user": getpass.getuser(), "host": host, "ports": ports}
    times = {"kill_wait": KILL_WAIT, "node_seconds": NODE_SECONDS, "again_seconds": AGAIN_SECONDS}
    text = CONFIGURATION.format(**values, **times)
    nodes = zip(NODES, ports[1:], strict=True)
    text += "".join(
        NODE.format(name=name, host=host, port=port, size=NODE_SIZE) for name, port in nodes
    )
    (folder / "slurm.conf").write_text(text)
    hosts = "".join(f"{address} {name}\n" for name, address in NODES.items())
    (folder / "hosts").write_text(pathlib.Path("/etc/hosts").read_text() + "\n" + hosts)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
    return kept | {
        "PATH": PATH,
        "SLURM_CONF": str(folder / "slurm.conf"),
        "VENV": sys.prefix,  # slurm/env.generic.sh
        "PYTHONPATH": str(ROOT),
        "TF_CPP_MIN_LOG_LEVEL": "2",
        **training.RANKS,
    }
