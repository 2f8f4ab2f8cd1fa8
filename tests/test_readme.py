"""The README's commands and its example, run as they stand.

`make test-docs` runs the long ones. `make demo` (under both strategies) and `make test` themselves
are run by .ci/run, in a clean clone: here they could only run each other.
`python -m benchmarks ...` is run by tests/benchmarks.
"""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from benchmarks.__main__ import COMMANDS as COMMANDS_OF_BENCHMARKS
from kerass2 import fit

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^ {4}(python -m .+)$", README, re.MULTILINE)
TOUR = [command for command in COMMANDS if "my_training.py" not in command]


def run(command: str, folder: pathlib.Path, **variables: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        words,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "PYTHONPATH": path, **variables},
    )


@pytest.mark.docs
@pytest.mark.horovod
def test_the_tour(tmp_path):
    names = ("prepare", "data", "fit", "evaluate", "predict", "report", "doctor")
    assert {command.split()[2] for command in TOUR} == {f"kerass2.{name}" for name in names}
    for command in TOUR:
        result = run(command, tmp_path)
        assert result.returncode == 0, f"{command}\n{result.stderr}"
    made = "data/manifest.json patches.png runs/one/model.keras runs/one/report.html sharp.tif"
    for name in made.split():
        assert (tmp_path / name).is_file()


def test_the_console_script(tmp_path):
    """`kerass2 NAME` does what `python -m kerass2.NAME` does."""
    script = pathlib.Path(sys.executable).with_name("kerass2")
    if not script.is_file():
        pytest.skip(f"kerass2 is not installed as a script beside {sys.executable}")
    assert "`kerass2 NAME`" in README
    command = next(command for command in TOUR if "prepare synthetic -o data" in command)
    command = command.replace("python -m kerass2.", f"{script} ")
    result = run(command, tmp_path)
    assert result.returncode == 0, f"{command}\n{result.stderr}"
    assert (tmp_path / "data/manifest.json").is_file()


@pytest.mark.parametrize("strategy", ["horovod", "multiworker"])
def test_the_batch_file(tmp_path, strategy):
    """Without a cluster: its syntax, and what it would have srun start, read by fit itself."""
    (words,) = set(re.findall(r"`sbatch .*?(slurm/fit_horovod\.sbatch .+?)`", README))
    assert "`slurm/fit_multiworker.sbatch`" in README
    script, *arguments = words.replace("horovod", strategy).split()
    assert run(f"bash -n {ROOT / script}", tmp_path).returncode == 0
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    srun.chmod(0o755)
    result = run(
        shlex.join(["bash", script, *arguments]),
        ROOT,
        PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        VENV=sys.prefix,
    )
    assert result.returncode == 0, result.stderr
    started = result.stdout.splitlines()
    started = started[started.index("python") :]  # before it: srun's own options
    assert started[:3] == ["python", "-m", "kerass2.fit"]
    given = fit.main.make_context("fit", started[3:]).params
    assert given["experiment"] == "superres_20m"
    assert given["strategy"] == strategy
    assert str(given["data"]) == "DIR"


@pytest.mark.parametrize(
    ("code", "requeued"), [(1, True), (137, True), (2, False), (75, False), (143, False)]
)
def test_which_failures_put_the_job_back(tmp_path, code, requeued):
    """While RESTARTS allows it."""
    for name, body in {"srun": f"exit {code}", "scontrol": 'echo "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "VENV": sys.prefix}
    for restarts, count in (("2", "1"), ("2", "2"), ("", "0")):
        told = {"RESTARTS": restarts, "SLURM_RESTART_COUNT": count, "SLURM_JOB_ID": "7"}
        result = run("bash slurm/fit_horovod.sbatch", ROOT, **variables, **told)
        assert result.returncode == code
        expected = "requeue 7\n" if requeued and restarts > count else ""
        assert result.stdout == expected, result.stderr


@pytest.mark.docs
@pytest.mark.horovod
@pytest.mark.parametrize("strategy", ["horovod", "multiworker"])
def test_the_example_of_an_own_model(tmp_path, strategy):
    (code,) = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    assert 20 <= len([line for line in code.splitlines() if line.strip()]) <= 30
    (tmp_path / "my_training.py").write_text(code.replace('"horovod")', f'"{strategy}")'))
    (command,) = [command for command in COMMANDS if "my_training.py" in command]
    result = run(command.replace("horovod", strategy), tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^2 ranks, last loss 0\.\d+$", result.stdout, re.MULTILINE), result.stdout


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Those of docs/ are checked by the site's build."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        if name.startswith("https:"):
            continue
        target = page.parent / name if name else page
        assert target.is_file(), link
        headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE) if anchor else []
        known = [re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings]
        assert not anchor or anchor in known, link


def test_the_makefile_has_the_targets_named():
    named = set(re.findall(r"`make ([a-z-]+)", README)) | {"demo", "test"}
    assert {"demo", "test", "setup", "help", "bench", "bench-step"} <= named
    makefile = (ROOT / "Makefile").read_text()
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize(
    ("variables", "sharpened"),
    [("", "sample"), ("DATA=synthetic", "synthetic"), ("DATA=synthetic INPUT=DIR", "DIR")],
)
def test_what_the_demo_would_do(variables, sharpened):
    """`make -n`: the commands without running them."""
    result = run(f"make -n VENV=ENV demo {variables}", ROOT)
    assert result.returncode == 0, result.stderr
    assert f"kerass2.predict demo {sharpened} -o" in result.stdout
    assert "kerass2.fit --strategy horovod --workers 2 " in result.stdout
    assert ("--data synthetic" in result.stdout) == ("DATA=synthetic" in variables)


def test_make_help():
    result = run("make help", ROOT)
    assert result.returncode == 0, result.stderr
    assert "make demo" in result.stdout


def test_the_figures_are_made_by_commands_that_exist():
    (section,) = re.findall(r"^## How equal, how fast\n(.+?)^## ", README, re.MULTILINE | re.DOTALL)
    commands = set(re.findall(r"\| `([^`]+)` \|$", section, re.MULTILINE))
    benchmarks = {f"python -m benchmarks {name}" for name in COMMANDS_OF_BENCHMARKS}
    assert {"make test", "make demo"} < commands <= {"make test", "make demo"} | benchmarks
