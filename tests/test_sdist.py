"""The source distribution holds what the repository does: `make test` runs from it, too."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("kerass2/", "data_pipelines/", "strategies/", "benchmarks/")
# Hidden files are the repository's own (CI, hooks); the others are made by commands.
ABSENT = (".*", "__pycache__", "*.egg-info", "build", "dist", "demo", "demo-*", "runs", "bench")
ABSENT += ("_build", "generated", "report-*")


def test_nothing_is_left_out(tmp_path: pathlib.Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*ABSENT))
    wanted = {file.relative_to(copy).as_posix() for file in copy.rglob("*") if file.is_file()}
    assert {"Makefile", "tests/test_sdist.py", "slurm/fit_horovod.sbatch"} < wanted
    # Both, as a release is made: the wheel is built of the unpacked sdist.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path]
    done = subprocess.run([*command, copy], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = tmp_path.glob("kerass2-*.tar.gz")
    with tarfile.open(archive) as opened:
        there = {name.partition("/")[2] for name in opened.getnames()}
    assert sorted(wanted - there) == []
    (wheel,) = tmp_path.glob("kerass2-*.whl")
    packages = {name for name in wanted if name.startswith(PACKAGES)}
    assert sorted(packages - set(zipfile.ZipFile(wheel).namelist())) == []
