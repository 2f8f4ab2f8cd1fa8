"""Checkpoints: one atomic .npz a step.

Written by rank 0, read by any number of ranks and either strategy. zip keeps a CRC-32 of each
array, which is verified when it is read: a file gives what was written, or DamagedError.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.files import replacing
from data_pipelines.spec import DataError
from kerass2 import messages

VERSION = 1


class DamagedError(DataError):
    """A checkpoint that cannot be read, or not whole."""


class Writer:
    """Writes checkpoints while training goes on, one at a time, in a thread of its own.

    The variables are copied when `save` is called. Where a file cannot be written, as on a full
    disk, that is said, those before it stay, and training goes on.
    """

    def __init__(self, folder: pathlib.Path, *, keep: int, saved: int = 0) -> None:
        """Write to `folder`, and keep the newest `keep`; `saved`: steps of what lies there."""
        self._folder, self._keep, self._saved = folder, keep, saved
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._writing: tuple[int, concurrent.futures.Future[pathlib.Path]] | None = None

    def save(
        self, step: int, model: Any, optimizer: Any, *, averages: Sequence[Any] = (), **state: Any
    ) -> None:
        """Begin to write all variables after `step` steps, and `state` (plain types)."""
        self.wait()
        arrays = copy(step, model, optimizer, averages, **state)
        self._writing = step, self._thread.submit(write, self._folder, step, arrays, self._keep)

    def wait(self) -> int:
        """Wait for the file that is being written; steps of the newest that has been."""
        if self._writing is None:
            return self._saved
        (step, writing), self._writing = self._writing, None
        try:
            writing.result()
            self._saved = step
        except OSError as error:
            messages.warn(
                f"the checkpoint of {step} steps could not be written "
                f"({error.strerror or error}): {self._folder}; earlier ones stay, and training "
                "goes on"
            )
        return self._saved

    def discard(self, step: int) -> None:
        """Delete the checkpoint of `step`, if there is one."""
        if self.wait() == step:
            _path(self._folder, step).unlink(missing_ok=True)

    def close(self) -> int:
        """As `wait`, and end the thread."""
        try:
            return self.wait()
        finally:
            self._thread.shutdown()


def copy(
    step: int, model: Any, optimizer: Any, averages: Sequence[Any] = (), **state: Any
) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint; `averages` are further variables, `state` are plain types."""
    variables = _variables(model, optimizer, averages)
    # np.asarray might give a view of memory that the next step writes to.
    arrays = {name: np.array(variable, copy=True) for name, variable in variables.items()}
    arrays["state"] = np.array(json.dumps({"version": VERSION, "step": step, **state}))
    return arrays


def write(
    folder: pathlib.Path, step: int, arrays: Mapping[str, np.ndarray], keep: int
) -> pathlib.Path:
    """Write a checkpoint, and delete all but the newest `keep` up to it; its path.

    The file appears under its name when it is complete. Those of later steps go: the run went back
    behind them because they were damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # What a process that was killed has left takes space.
    for rest in folder.glob(".step-*.npz"):
        rest.unlink(missing_ok=True)
    path = _path(folder, step)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    found = find(folder)
    place = found.index(path)
    for old in found[:place] + found[place + keep :]:
        old.unlink(missing_ok=True)
    return path


def find(folder: pathlib.Path) -> list[pathlib.Path]:
    """Checkpoints of a run, newest first."""
    return sorted(
        (p for p in folder.glob("step-*.npz") if re.fullmatch(r"step-\d{8}\.npz", p.name)),
        reverse=True,
    )


def restore(
    path: pathlib.Path, model: Any, optimizer: Any, averages: Sequence[Any] = ()
) -> dict[str, Any]:
    """Assign all variables from a checkpoint and return its state: "step", and what `copy` got.

    Raises:
        DamagedError: the file is damaged.
        DataError: it holds other variables than this model and optimizer have.
    """
    variables = _variables(model, optimizer, averages)
    try:
        # np.load leaves a file that it cannot read open; this does not.
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        state: dict[str, Any] = json.loads(str(arrays.pop("state")))
    except Exception as error:  # a damaged zip makes zipfile and numpy raise nearly anything
        raise DamagedError(f"{path}: damaged checkpoint ({error})") from error
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


def _path(folder: pathlib.Path, step: int) -> pathlib.Path:
    return folder / f"step-{step:08d}.npz"


def _variables(model: Any, optimizer: Any, averages: Sequence[Any]) -> dict[str, Any]:
    """Key -> variable, by order: paths hold layer names that Keras numbers anew in each process."""
    keys = {f"model/{i:04d}/{v.name}": v for i, v in enumerate(model.variables)}
    keys |= {f"optimizer/{i:04d}": v for i, v in enumerate(optimizer.variables)}
    return keys | {f"average/{i:04d}": v for i, v in enumerate(averages)}
