"""The design's import rules, read from the syntax tree of every source file."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from kerass2 import cli

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("kerass2", "data_pipelines", "strategies", "benchmarks")
FORBIDDEN = {
    "data_pipelines": {"kerass2", "strategies", "benchmarks"},
    "strategies": {"kerass2", "data_pipelines", "benchmarks"},
    "kerass2": {"benchmarks"},
}
COMMANDS = ("kerass2.cli", "kerass2.models.__main__", "kerass2.config")
COMMANDS += tuple(f"kerass2.{cli.MODULES.get(name, name)}" for name in cli.COMMANDS)
# Each takes 0.1 to 4 s to import: `--help` must answer in 0.5 s.
HEAVY = {"tensorflow", "keras", "horovod", "tensorflow_io", "rasterio", "rioxarray", "dask"}
HEAVY |= {"distributed", "lmdb", "pystac", "onnx", "onnxruntime", "tf2onnx", "sklearn"}
HEAVY |= {"xarray", "pandas", "pyarrow", "scipy", "matplotlib", "h5py", "zarr", "jax", "torch"}
LOADERS = {"importlib.import_module", "import_module", "__import__"}


def sources() -> dict[str, ast.Module]:
    """Module name -> syntax tree, for every module of the four packages."""
    trees = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            trees[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return trees


TREES = sources()


def imported(node: ast.AST) -> list[str]:
    """Dotted names that an import statement, or a call of import_module, may load."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        if node.level:
            pytest.fail(f"line {node.lineno}: relative import: these rules read absolute ones only")
        module = node.module or ""
        return [module, *(f"{module}.{alias.name}" for alias in node.names)]
    if isinstance(node, ast.Call) and ast.unparse(node.func) in LOADERS:
        constants = [a.value for a in node.args if isinstance(a, ast.Constant)]
        return [value for value in constants if isinstance(value, str)]
    return []


def at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes that run at import: no function bodies, nothing that only type checkers see."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += node.decorator_list
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def docstrings(tree: ast.Module) -> set[int]:
    """Identities of the constants that are statements of their own: docstrings."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def loaded_by(command: str) -> dict[str, str]:
    """Our modules that importing `command` imports -> the module that asked for each."""
    found = {command: "python -m"}
    waiting = [command]
    while waiting:
        module = waiting.pop()
        names = [n for node in at_import(TREES[module]) for n in imported(node)]
        names += [module.rpartition(".")[0]]  # a package's __init__ comes before its module
        for name in names:
            while name:
                if name in TREES and name not in found:
                    found[name] = module
                    waiting.append(name)
                name = name.rpartition(".")[0]
    return found


def test_the_walk_sees_what_it_must() -> None:
    """The rules below rest on these four functions: they must not pass by seeing nothing."""
    tree = ast.parse(
        "import a.b\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import never\n"
        "try:\n    from c import d\nexcept ImportError:\n    pass\n"
        "class K:\n    import e\n"
        "def f():\n    import late\n"
        "importlib.import_module('g.h')\n"
    )
    names = {name for node in at_import(tree) for name in imported(node)}
    assert names == {"a.b", "typing", "typing.TYPE_CHECKING", "c", "c.d", "e", "g.h"}
    assert {"never", "late"} <= {name for node in ast.walk(tree) for name in imported(node)}
    assert len(TREES) > 20


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_run_one_way(package: str) -> None:
    wrong = [
        f"{module}:{node.lineno} imports {name}"  # type: ignore[attr-defined]
        for module, tree in TREES.items()
        if module.split(".")[0] == package
        for node in ast.walk(tree)
        for name in imported(node)
        if name.split(".")[0] in FORBIDDEN[package]
    ]
    assert wrong == []


def imports_root(root: str, tree: ast.Module) -> bool:
    return any(n.split(".")[0] == root for node in ast.walk(tree) for n in imported(node))


def names_tf_distribute(tree: ast.Module) -> bool:
    names = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    names += [name for node in ast.walk(tree) for name in imported(node)]
    places = ("tf.distribute", "tensorflow.distribute", "tensorflow.python.distribute")
    return any(name.startswith(places) for name in names)


def names_slurm(tree: ast.Module) -> bool:
    prose = docstrings(tree)
    return any(
        isinstance(node, ast.Constant) and "SLURM_" in str(node.value) and id(node) not in prose
        for node in ast.walk(tree)
    )


# Measures what the strategies replace, by the library's own way.
ONLY_MEASURED = {"benchmarks.allreduce_server"}

ONE_PLACE = {
    "import horovod": lambda tree: imports_root("horovod", tree),
    "import tensorflow_io": lambda tree: imports_root("tensorflow_io", tree),
    "tf.distribute": names_tf_distribute,
    "SLURM_": names_slurm,
}


@pytest.mark.parametrize("what", ONE_PLACE)
def test_stands_in_one_file_at_most(what: str) -> None:
    found = [module for module, tree in TREES.items() if ONE_PLACE[what](tree)]
    found = [module for module in found if module not in ONLY_MEASURED]
    assert len(found) <= 1, f"{what} stands in {found}"


def test_one_place_rules_see_what_they_must() -> None:
    assert ONE_PLACE["import horovod"](ast.parse("def f():\n    import horovod.tensorflow as hvd"))
    assert ONE_PLACE["tf.distribute"](ast.parse("x = tf.distribute.Strategy()"))
    assert ONE_PLACE["SLURM_"](ast.parse("x = env['SLURM_PROCID']"))
    assert not ONE_PLACE["SLURM_"](ast.parse('"""Reads SLURM_PROCID."""'))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command: str) -> None:
    wrong = [
        f"{module} (imported by {origin}) imports {name} when it is imported"
        for module, origin in loaded_by(command).items()
        for node in at_import(TREES[module])
        for name in imported(node)
        if name.split(".")[0] in HEAVY
    ]
    assert wrong == []


# A module takes about 0.3 ms to import: 0.5 s are some 1500.
MOST_MODULES = 1000


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_few_modules_and_nothing_heavy_in_fact(command: str) -> None:
    """By the interpreter's own account: other people's packages may import each other.

    Modules are counted, since time depends on the machine.
    """
    script = f"import sys, {command}; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    there = run.stdout.split()
    assert sorted(HEAVY & set(there)) == []
    assert len(there) < MOST_MODULES


def test_import_kerass2_imports_nothing_but_itself() -> None:
    script = "import sys; old = set(sys.modules); import kerass2; print(*set(sys.modules) - old)"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    names = {name.split(".")[0] for name in run.stdout.split()}
    assert "kerass2" in names
    assert names - {"kerass2"} <= sys.stdlib_module_names
