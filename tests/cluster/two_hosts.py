"""Two hosts on this machine: namespaces with a cable between them, names and loopbacks apart.

Nothing of them outlives the process that made them: a namespace goes with its last process.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence

# Names are not those of a machine of Debian's: there the own one is a loopback address.
HOSTS = {"khost1": "10.77.0.1", "khost2": "10.77.0.2"}
CABLE = "cable"
PROGRAMS = ("hostname", "ip", "mount", "nsenter", "unshare")
SPACES = ("--net", "--uts", "--mount")
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclasses.dataclass
class Hosts:
    """The two, each held by a process that sleeps."""

    keepers: list[subprocess.Popen[bytes]]

    def start(self, host: int, command: Sequence[str], **environ: str) -> subprocess.Popen[str]:
        """Start a command on one of them."""
        entered = ["nsenter", f"--target={self.keepers[host].pid}", f"--wd={os.getcwd()}", *SPACES]
        return subprocess.Popen(
            [*entered, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environ,
            preexec_fn=_end_with_us(),
        )

    def start_ranks(self, command: Sequence[str], **environ: str) -> list[subprocess.Popen[str]]:
        """One rank on each, with the environment that srun gives them."""
        srun = {
            "SLURM_JOB_ID": str(time.monotonic_ns()),
            "SLURM_STEP_ID": "0",
            "SLURM_STEP_NODELIST": ",".join(HOSTS),
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
            "SLURM_LOCALID": "0",
        }
        places = [{"SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank)} for rank in range(2)]
        return [
            self.start(rank, command, **srun, **place, **environ)
            for rank, place in enumerate(places)
        ]

    def run(self, host: int, *command: str) -> None:
        """Run a command on one of them, and fail if it does."""
        process = self.start(host, command)
        out, err = process.communicate(timeout=20)
        assert process.returncode == 0, f"{command}\n{out}\n{err}"

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """Nothing arrives, in either direction, inside the `with` block."""
        self.run(0, "ip", "link", "set", CABLE, "down")
        try:
            yield
        finally:
            self.run(0, "ip", "link", "set", CABLE, "up")


@contextlib.contextmanager
def start(folder: pathlib.Path) -> Iterator[Hosts]:
    """The hosts, inside the `with` block; what runs on them ends with it. A file goes to folder."""
    names = folder / "hosts"
    lines = [f"{address} {name}" for name, address in HOSTS.items()]
    names.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
    with contextlib.ExitStack() as stack:
        hosts = Hosts([])
        for name in HOSTS:
            script = f"mount --bind {names} /etc/hosts && hostname {name} && echo && exec sleep inf"
            keeper = subprocess.Popen(
                ["unshare", *SPACES, "--kill-child", "--fork", "sh", "-c", script],
                stdout=subprocess.PIPE,
                preexec_fn=_end_with_us(),
            )
            stack.callback(keeper.wait)
            stack.callback(keeper.kill)
            hosts.keepers.append(keeper)
            with keeper.stdout as said:
                assert said.readline(), f"{name} does not start"
        ends = [str(keeper.pid) for keeper in hosts.keepers]
        cable = f"ip link add {CABLE} netns {ends[0]} type veth peer name {CABLE} netns {ends[1]}"
        subprocess.run(cable.split(), check=True)
        for host, address in enumerate(HOSTS.values()):
            hosts.run(host, "ip", "address", "add", f"{address}/24", "dev", CABLE)
            for name in ("lo", CABLE):
                hosts.run(host, "ip", "link", "set", name, "up")
        yield hosts


def _end_with_us():
    libc, parent = ctypes.CDLL(None), os.getpid()

    def before_exec() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return before_exec
