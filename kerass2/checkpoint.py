"""Checkpoints: one atomic .npz a step.

Written by rank 0, read by any number of ranks and either strategy.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.files import replacing
from data_pipelines.spec import DataError

VERSION = 1


def save(
    folder: pathlib.Path,
    step: int,
    model: Any,
    optimizer: Any,
    *,
    keep: int,
    averages: Sequence[Any] = (),
    **state: Any,
) -> pathlib.Path:
    """Write all variables after `step` steps, and `state` (plain types).

    `averages` are further variables. Deletes all but the newest `keep`. The file appears under its
    name when it is complete. zip's own CRC finds damage when it is read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.npz"
    variables = _variables(model, optimizer, averages)
    arrays = {name: np.asarray(variable) for name, variable in variables.items()}
    arrays["state"] = np.array(json.dumps({"version": VERSION, "step": step, **state}))
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    for old in find(folder)[keep:]:
        old.unlink()
    return path


def find(folder: pathlib.Path) -> list[pathlib.Path]:
    """Checkpoints of a run, newest first."""
    return sorted(
        (p for p in folder.glob("step-*.npz") if re.fullmatch(r"step-\d{8}\.npz", p.name)),
        reverse=True,
    )


def discard(folder: pathlib.Path, step: int) -> None:
    """Delete the checkpoint of `step`, if there is one."""
    (folder / f"step-{step:08d}.npz").unlink(missing_ok=True)


def restore(
    path: pathlib.Path, model: Any, optimizer: Any, averages: Sequence[Any] = ()
) -> dict[str, Any]:
    """Assign all variables from a checkpoint and return its state: "step" and what save was given.

    Raises:
        DataError: the file is damaged, or holds other variables than this model and optimizer have.
    """
    variables = _variables(model, optimizer, averages)
    try:
        # np.load leaves a file that it cannot read open; this does not.
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        state: dict[str, Any] = json.loads(str(arrays.pop("state")))
    except Exception as error:  # a damaged zip makes zipfile and numpy raise nearly anything
        raise DataError(
            f"{path}: damaged checkpoint ({error}); delete it to resume from the one before"
        ) from error
    expected = {name: tuple(variable.shape) for name, variable in variables.items()}
    found = {name: array.shape for name, array in arrays.items()}
    if found != expected or state.get("version") != VERSION:
        differing = sorted(
            name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
        )
        raise DataError(
            f"{path}: checkpoint of another model: "
            f"{len(found)} variables, expected {len(expected)}; "
            f"first that differ: {', '.join(differing[:3])}"
        )
    for name, variable in variables.items():
        variable.assign(arrays[name])
    return state


def _variables(model: Any, optimizer: Any, averages: Sequence[Any]) -> dict[str, Any]:
    """Key -> variable, by order: paths hold layer names that Keras numbers anew in each process."""
    keys = {f"model/{i:04d}/{v.name}": v for i, v in enumerate(model.variables)}
    keys |= {f"optimizer/{i:04d}": v for i, v in enumerate(optimizer.variables)}
    return keys | {f"average/{i:04d}": v for i, v in enumerate(averages)}
