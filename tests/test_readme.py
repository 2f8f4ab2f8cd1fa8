"""The README's commands and its example, run as they stand."""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^ {4}(python -m .+)$", README, re.MULTILINE)
TOUR = [command for command in COMMANDS if "my_training.py" not in command]


def run(command: str, folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        words,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "PYTHONPATH": path},
    )


@pytest.mark.horovod
def test_the_tour(tmp_path):
    assert {command.split()[2] for command in TOUR} == {
        f"kerass2.{name}" for name in ("prepare", "fit", "evaluate", "predict", "report")
    }
    for command in TOUR:
        result = run(command, tmp_path)
        assert result.returncode == 0, f"{command}\n{result.stderr}"
    for name in ("data/manifest.json", "runs/one/model.keras", "runs/one/report.html", "sharp.tif"):
        assert (tmp_path / name).is_file()


@pytest.mark.horovod
@pytest.mark.parametrize("strategy", ["horovod", "multiworker"])
def test_the_example_of_an_own_model(tmp_path, strategy):
    (code,) = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 35
    (tmp_path / "my_training.py").write_text(code.replace('"horovod")', f'"{strategy}")'))
    (command,) = [command for command in COMMANDS if "my_training.py" in command]
    result = run(command.replace("horovod", strategy), tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^2 ranks, last loss 0\.\d+$", result.stdout, re.MULTILINE), result.stdout


def test_the_makefile_has_the_targets_named():
    named = set(re.findall(r"`make ([a-z-]+)", README)) | {"demo", "test"}
    makefile = (ROOT / "Makefile").read_text()
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
