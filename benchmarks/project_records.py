"""Which lines of a folder of records are looked at: a system's, of each kind the newest."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from benchmarks import record, systems
from data_pipelines.spec import DataError


def read(
    system: systems.System, folder: pathlib.Path | None
) -> tuple[list[record.Line], list[record.Problem]]:
    """The newest line of each kind and label that was measured on a system.

    No folder, where none was asked for, is no record.

    Raises:
        DataError: there is no such folder, though it was asked for.
    """
    path = record.RESULTS / system.name if folder is None else folder
    if not path.exists():
        if folder is not None:
            raise DataError(f"{path}: not found; expected a folder of records (*.jsonl)")
        return [], []
    lines, problems = record.read(path)
    return newest([line for line in lines if line["system"] == system.name]), problems


def newest(lines: Sequence[record.Line]) -> list[record.Line]:
    """Of lines that measure the same thing the one that was made last, in the order of the files.

    What is neither a number with a point, nor holds one, nor tells of the machine is a label. A
    training with settings of its own is another experiment; of several batches of an experiment the
    last one counts, so that curves over ranks are of one kind.
    """
    by_time = sorted(lines, key=lambda line: str(line.get("where", {}).get("time", "")))
    last, batches = {}, {}
    for line in by_time:
        last[_labels(line)] = line
        batches[_kind(line)] = _batch(line)
    kept = {id(line) for line in last.values() if _batch(line) == batches[_kind(line)]}
    return [_name_settings(line) for line in lines if id(line) in kept]


def _labels(line: record.Line) -> str:
    """What a line measures."""
    ignored = ("where", "version", "mllog", "note", "difference_dn")
    labels = {k: v for k, v in line.items() if k not in ignored and not _is_measured(v)}
    return json.dumps(labels, sort_keys=True)


def _is_measured(value: Any) -> bool:
    """Whether a value is a number with a point, or holds one."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, float) or any(_is_measured(part) for part in parts)


def _kind(line: record.Line) -> str:
    """What belongs into one curve over ranks."""
    if "experiment" not in line:
        return _labels(line)
    keys = ("what", "experiment", "precision", "mode", "settings", "strategy", "cores_each")
    return json.dumps([line.get(key) for key in keys if line["what"] == "scaling" or key == "what"])


def _batch(line: record.Line) -> Any:
    """Of a rank, in a curve over ranks."""
    if line["what"] != "scaling":
        return None
    ranks = line["ranks"] if line["mode"] == "weak" else 1
    return line["global_batch"] / ranks, line.get("patch")


def _name_settings(line: record.Line) -> record.Line:
    """The line, its experiment named with the settings that change it."""
    if "experiment" not in line or not line.get("settings"):
        return line
    return {**line, "experiment": f"{line['experiment']} with {', '.join(line['settings'])}"}
