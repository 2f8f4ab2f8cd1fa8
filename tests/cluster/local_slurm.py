"""A real Slurm on this machine: munge, one controller, two nodes, all of them this test's own."""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Node -> address. Two names and two addresses, so that one taken for the other shows.
NODES = {"knode01": "127.0.1.1", "knode02": "127.0.1.2"}
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare")
# As root, the Slurm programs lie in folders that a user's PATH may lack.
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
START_SECONDS = 60.0
# From Slurm's polite signal to its hard one; between two looks at a job.
KILL_WAIT, POLL_SECONDS = 20, 0.2
CONFIGURATION = """
ClusterName=kerass2test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
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
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
KillWait={kill_wait}
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 State=UNKNOWN\n"


@dataclasses.dataclass
class Slurm:
    """The running cluster, and what tests ask of it."""

    folder: pathlib.Path
    environment: dict[str, str]
    jobs: list[str] = dataclasses.field(default_factory=list)

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
        self.jobs.append(done.stdout.strip())
        return self.jobs[-1]

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
            ended = shown["JobState"] in ("FAILED", "TIMEOUT", "CANCELLED", "COMPLETED")
            late = time.monotonic() > deadline
            assert not (ended or late), f"{shown['JobState']}\n{self.output(job)[-4000:]}"
            time.sleep(POLL_SECONDS)
        return shown


@contextlib.contextmanager
def start() -> Iterator[Slurm]:
    """Slurm with the nodes of NODES, inside the `with` block; its jobs end with it."""
    with contextlib.ExitStack() as stack:
        # Not in pytest's own folders: munge wants to pass through all above its socket.
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kslurm-")))
        environment = _configure(folder)
        for name, command in _daemons(folder).items():
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            # A session of their own: an interrupt is for the tests, which then end them in order.
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            stack.callback(_end, process)
        slurm = Slurm(folder, environment)
        _wait_for_nodes(slurm)
        stack.callback(_end_jobs, slurm)
        yield slurm


def _configure(folder: pathlib.Path) -> dict[str, str]:
    """Write what the daemons read; the environment of all Slurm commands."""
    for name in ("munge", "state"):
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
    text = CONFIGURATION.format(**values, kill_wait=KILL_WAIT)
    nodes = zip(NODES, ports[1:], strict=True)
    text += "".join(NODE.format(name=name, host=host, port=port) for name, port in nodes)
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
    }


def _daemons(folder: pathlib.Path) -> dict[str, list[str]]:
    """Name -> command. The nodes see their names in an /etc/hosts of their own."""
    munge = ["munged", "--foreground"]
    for option in ("key", "socket", "pid", "log", "seed"):
        suffix = "" if option == "socket" else "-file"
        munge.append(f"--{option}{suffix}={folder}/munge/{option}")
    hosts = f"mount --bind {folder}/hosts /etc/hosts"
    configuration = f"{folder}/slurm.conf"
    nodes = {
        name: ["unshare", "--mount", "sh", "-c", f"{hosts} && exec slurmd -D -N {name}"]
        for name in NODES
    }
    return {"munged": munge, "slurmctld": ["slurmctld", "-D", "-f", configuration], **nodes}


def _wait_for_nodes(slurm: Slurm) -> None:
    deadline = time.monotonic() + START_SECONDS
    while slurm.run("sinfo", "--noheader", "--format=%D %t", check=False) != "2 idle":
        if time.monotonic() > deadline:
            logs = [path.read_text()[-2000:] for path in slurm.folder.glob("*.log")]
            raise RuntimeError("Slurm does not start:\n" + "\n".join(logs))
        time.sleep(POLL_SECONDS)


def _end_jobs(slurm: Slurm) -> None:
    if slurm.jobs:
        slurm.run("scancel", "--quiet", *slurm.jobs, check=False)
        slurm.run("scancel", "--quiet", "--signal=KILL", *slurm.jobs, check=False)
    deadline = time.monotonic() + 2 * KILL_WAIT
    while slurm.run("squeue", "--noheader", check=False) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
