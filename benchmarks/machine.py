"""What a record says of where it was made: processor, GPUs, software, commit; no name of a host."""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import shutil
import socket
import subprocess
from typing import Any

PACKAGES = ("kerass2", "keras", "tensorflow-cpu", "tensorflow", "horovod", "numpy")
PACKAGES += ("torch", "jax", "mpi4py")
ROOT = pathlib.Path(__file__).parents[1]
# Records that are being written are no change of what is measured.
RESULTS = "benchmarks/results"


def describe() -> dict[str, Any]:
    """This machine, its software and the commit, at this moment."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **_lasting(),
        # Ready processes of the last minute and quarter of an hour: more than `cores` is a crowd.
        "load": [round(os.getloadavg()[0], 2), round(os.getloadavg()[2], 2)],
        "cores": len(os.sched_getaffinity(0)),
        "commit": find_commit(ROOT),
    }


@functools.cache
def _lasting() -> dict[str, Any]:
    return {
        "host": fingerprint(socket.gethostname()),
        "cpu": _cpu(),
        "gpus": list_gpus(),
        "python": platform.python_version(),
        "software": {name: version for name in PACKAGES if (version := _version(name))},
    }


def fingerprint(name: str) -> str:
    """Eight letters that tell hosts apart and do not name them."""
    return hashlib.sha256(f"kerass2 {name}".encode()).hexdigest()[:8]


def list_gpus() -> list[str]:
    """Names of the GPUs, as their driver tells them; none where there is no driver."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, "--query-gpu=name", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False)
    return found.stdout.splitlines() if found.returncode == 0 else []


def _cpu() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("avx512f", "avx512_bf16", "amx_bf16")
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    return " ".join(
        [names[0] if names else platform.processor(), *(flag for flag in wanted if flag in flags)]
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def find_commit(folder: pathlib.Path) -> str | None:
    """The commit of a working tree, with "-dirty" where files other than records differ from it."""
    git = ["git", "-C", str(folder)]
    describe = [*git, "describe", "--always", "--abbrev=12"]
    changed = [*git, "status", "--porcelain", "--untracked-files=no", "--", ".", f":!{RESULTS}"]
    try:
        found = [
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            for command in (describe, changed)
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return found[0] + ("-dirty" if found[1] else "")
