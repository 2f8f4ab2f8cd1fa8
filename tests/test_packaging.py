"""What a user installs: metadata and lock agree, the wheel is whole, the commands answer fast."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import zipfile

import pytest
import rasterio
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from data_pipelines import sentinel2

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("kerass2", "data_pipelines", "strategies", "benchmarks")
COMMANDS = ("fit", "evaluate", "predict", "prepare", "report", "view", "card")
LOCKED_EXTRAS = ("cpu", "io", "horovod", "export", "jax", "torch", "dev", "docs")
# Modules that are named otherwise than their distribution.
DISTRIBUTIONS = {
    "google": "protobuf",
    "skimage": "scikit-image",
    "tensorflow": "tensorflow-cpu",
}


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def requirements(text: str) -> list[Requirement]:
    return [Requirement(line) for line in text.splitlines() if line.strip()]


def lock() -> dict[str, Version]:
    """Distribution -> the version in constraints.txt. Fails on a line that is no plain pin."""
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.]*)", line)
            assert match, f"constraints.txt: {line!r} is not NAME==VERSION"
            pins[canonicalize_name(match[1])] = Version(match[2])
    return pins


def run(*command: str | os.PathLike[str], **options: object) -> subprocess.CompletedProcess[str]:
    """Run to its end and return it; the output of a failure is the test's message."""
    options = {"timeout": 300, **options}
    done = subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done  # type: ignore[no-any-return]


# --- metadata and lock --------------------------------------------------------------------------


def test_every_requirement_is_in_the_lock() -> None:
    config, pins = setup_cfg(), lock()
    wanted = requirements(config["options"]["install_requires"])
    for extra in LOCKED_EXTRAS:
        wanted += requirements(config["options.extras_require"][extra])
    assert len(wanted) > 25
    for requirement in wanted:
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} has no line in constraints.txt"
        assert pin in requirement.specifier, f"{requirement} excludes the lock's {pin}"


def test_every_requirement_has_a_reason() -> None:
    """A comment stands above each line of install_requires, or above the line before it."""
    text = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    block = text.partition("install_requires =\n")[2].partition("\n\n")[0].splitlines()
    reasons = [line for line in block if line.lstrip().startswith("#")]
    assert block[0].lstrip().startswith("#")
    assert len(reasons) >= 0.8 * (len(block) - len(reasons))


def test_this_environment_is_the_lock() -> None:
    """What the tests run with is what users are told to install."""
    if pathlib.Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        pytest.skip("runs in the environment that `make setup` makes")
    pins = lock()
    installed = {canonicalize_name(d.name): d.version for d in importlib.metadata.distributions()}
    wrong = [
        f"{name} {version}, lock {pins.get(name)}"
        for name, version in installed.items()
        if name not in {"kerass2", "pip"} and pins.get(name) != Version(version)
    ]
    assert wrong == []


def test_sources_import_declared_packages_only() -> None:
    config = setup_cfg()
    extras = config["options.extras_require"].values()
    text = "\n".join([config["options"]["install_requires"], *extras])
    declared = {canonicalize_name(requirement.name) for requirement in requirements(text)}
    allowed = declared | {canonicalize_name(name) for name in PACKAGES}
    wrong = []
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                for root in {name.split(".")[0] for name in names} - sys.stdlib_module_names:
                    if canonicalize_name(DISTRIBUTIONS.get(root, root)) not in allowed:
                        wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} imports {root}")
    assert wrong == []


# --- commands -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_answers_in_half_a_second(command: str, tmp_path: pathlib.Path) -> None:
    """The whole process; the best of some tries, as the machine may be busy with something else."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    best = float("inf")
    for _ in range(15):
        start = time.perf_counter()
        done = run(
            sys.executable, "-m", f"kerass2.{command}", "--help", cwd=tmp_path, env=environment
        )
        best = min(best, time.perf_counter() - start)
        assert "Usage:" in done.stdout
        if best < 0.5:
            break
    assert best < 0.5


# --- wheel --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The wheel, built from a copy so that no build folder is left in the project."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (*PACKAGES, "slurm"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignore)
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    run(*command, str(folder / "source"), cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_carries_every_source_and_data_file(wheel: pathlib.Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    data = f"{wheel.name.split('-py3')[0]}.data/data/share/kerass2"
    wanted |= {f"{data}/slurm/{path.name}" for path in (ROOT / "slurm").iterdir()}
    assert sorted(wanted - names) == []
    assert {"kerass2/py.typed", "kerass2/fit.py", f"{data}/slurm/fit_horovod.sbatch"} <= names
    assert {"kerass2/weights/sources.csv", "kerass2/templates/card.md"} <= names
    extra = [name for name in names - wanted if ".dist-info/" not in name]
    assert sorted(extra) == []


def test_wheel_metadata(wheel: pathlib.Path) -> None:
    archive = zipfile.ZipFile(wheel)
    about = [name for name in archive.namelist() if ".dist-info/" in name]
    read = {name.rpartition("/")[2]: archive.read(name).decode() for name in about}
    metadata = read["METADATA"]
    version = re.search(r'__version__ = "(.+)"', (ROOT / "kerass2/__init__.py").read_text())
    assert version
    assert f"\nVersion: {version[1]}\n" in metadata
    assert "\nLicense: Apache-2.0\n" in metadata
    assert "Apache License" in read["LICENSE"]
    # Of the scripts that come along, each of which says whose it is.
    for folder in sorted((ROOT / "kerass2/viewer/pages").glob("*/")):
        assert "Copyright (c)" in read[f"LICENSE-{folder.name}.md"]
    for extra in ("cpu", "gpu", "horovod", "io", "jax", "torch", "dev"):
        assert f"\nProvides-Extra: {extra}\n" in metadata
    assert "kerass2 = kerass2.cli:main" in read["entry_points.txt"]
    assert " @ " not in "".join(re.findall(r"^Requires-Dist:.*$", metadata, re.MULTILINE))


def make_environment(folder: pathlib.Path) -> pathlib.Path:
    """An empty environment's interpreter; this environment's pip installs into it."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    return folder / "bin" / "python"


def install(python: pathlib.Path, *arguments: str | os.PathLike[str]) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    run(*pip, "install", "-q", *arguments)


def check_commands(python: pathlib.Path, folder: pathlib.Path) -> None:
    """The installed commands answer from a folder that holds nothing of the project."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    where = run(
        python, "-c", "import kerass2; print(kerass2.__file__)", cwd=folder, env=environment
    )
    assert pathlib.Path(where.stdout.strip()).is_relative_to(python.parents[1])
    for command in COMMANDS:
        done = run(python, "-m", f"kerass2.{command}", "--help", cwd=folder, env=environment)
        assert "Usage:" in done.stdout
    done = run(python.with_name("kerass2"), "--help", cwd=folder, env=environment)
    assert all(command in done.stdout for command in COMMANDS)


@pytest.fixture(scope="module")
def installed(wheel: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """An interpreter with the wheel, without an index: other packages are this environment's."""
    folder = tmp_path_factory.mktemp("installed")
    python = make_environment(folder)
    install(python, "--no-deps", "--no-index", wheel)
    (found,) = folder.glob("lib/python*/site-packages")
    packages = pathlib.Path(next(p for p in sys.path if p.endswith("site-packages")))
    # Not followed from there: the .pth file that puts the working tree on this environment's path.
    (found / "packages.pth").write_text(f"{packages}\n")
    return python


def test_wheel_runs_from_another_folder(installed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert (installed.parents[1] / "share/kerass2/slurm/fit_horovod.sbatch").is_file()
    check_commands(installed, tmp_path)


def test_xarray_finds_the_engine_by_its_name(
    installed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """By the entry point of the installed package."""
    script = (
        "import xarray; from data_pipelines import synthetic; synthetic.write_granule('granule'); "
        "tree = xarray.open_datatree('granule', engine='kerass2'); "
        "print(*sorted(tree.children), *tree['gsd20'].data_vars)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = run(installed, "-c", script, cwd=tmp_path, env=environment)
    assert done.stdout.split() == ["gsd10", "gsd20", "gsd60", *sentinel2.BANDS_20M]


def test_wheel_predicts_without_a_model(installed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Right after installation: all 12 bands of a product, which is made up here."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"KERASS2_CACHE": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    command = [installed, "-m", "kerass2.predict", "synthetic", "-o", "out.tif", "--bands", "all"]
    done = run(*command, "--roi", "0,0,96,96", cwd=tmp_path, env=environment)
    assert "weights: superres_20m_L1C, superres_60m_L1C, which come with kerass2" in done.stderr
    with rasterio.open(tmp_path / "out.tif") as file:
        assert (file.count, file.shape, file.res) == (12, (96, 96), (10.0, 10.0))
        assert (file.read() > 0).all()


@pytest.mark.docs  # it takes half a minute, and is what the README begins with
def test_install_in_an_empty_environment(tmp_path: pathlib.Path) -> None:
    """`pip install .` as a user types it: an empty environment, dependencies from the index."""
    probe = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-cache-dir"]
    probe += ["--retries", "0", "--timeout", "20", "-d", str(tmp_path), "iniconfig==2.3.1"]
    try:
        subprocess.run(probe, check=True, capture_output=True, timeout=60)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        pytest.skip("no package index answers")
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*", "build", "demo", "tests")
    shutil.copytree(ROOT, source, ignore=ignore)
    python = make_environment(tmp_path / "environment")
    # Byte code would be of all of TensorFlow; the commands below need little of it.
    install(python, "--no-compile", "-c", ROOT / "constraints.txt", source)
    check_commands(python, tmp_path)
