"""A work folder: curves of its training, read again and again while it runs, and its evaluation."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from data_pipelines.spec import DataError
from kerass2 import figures, inputs, label_tables, render, report, tables, workdir
from kerass2.config import LABEL_TASK
from kerass2.tables import Table
from kerass2.viewer.answers import Answer, Query, to_json

# Files that the page shows something of.
SHOWN = (workdir.EXPERIMENT, workdir.DATA, workdir.LOG, workdir.EVALUATION, workdir.MODEL)


class Run:
    """A page (answers.Page) of a folder that kerass2.fit writes."""

    name = "run"

    def __init__(self, folder: pathlib.Path) -> None:
        """Nothing is read yet."""
        self._folder = folder

    def answer(self, parts: tuple[str, ...], query: Query) -> Answer | None:
        """See answers.Page."""
        if parts != ("run.json",):
            return None
        stamp = self._stamp()
        # What has not changed is not read, sent and drawn again.
        if query.get("stamp") == stamp:
            return to_json({"stamp": stamp, "idle": self._idle()})
        return to_json({"stamp": stamp, "idle": self._idle(), **self.read()})

    def _stamp(self) -> str:
        """Changes whenever a file does."""
        found = []
        for name in SHOWN:
            try:
                about = (self._folder / name).stat()
                found.append(f"{about.st_mtime_ns:x}-{about.st_size:x}")
            except OSError:
                found.append("")
        return ".".join(found)

    def _idle(self) -> float | None:
        """Seconds since the last line of the log; None without a log."""
        try:
            return max(0.0, time.time() - (self._folder / workdir.LOG).stat().st_mtime)
        except OSError:
            return None

    def read(self) -> dict[str, Any]:
        """All that the folder tells now.

        What is damaged is named in "problems" and leaves its part empty: a training that runs may
        put it right.
        """
        problems: list[str] = []

        def read(function: Callable[..., Any], name: str) -> Any:
            try:
                return function(self._folder / name)
            except (DataError, OSError) as error:
                problems.append(str(error))
                return None

        experiment = read(inputs.read_json, workdir.EXPERIMENT) or {}
        data = read(inputs.read_json, workdir.DATA) or {}
        log = read(report.read_log, workdir.LOG) or []
        evaluation = read(inputs.read_json, workdir.EVALUATION)
        try:
            curves = [_describe_curve(curve) for curve in figures.select_curves(log)]
        except (TypeError, ValueError) as error:
            problems.append(f"{self._folder / workdir.LOG}: expected numbers: {error}")
            curves = []
        try:
            found = [] if evaluation is None else _list_tables(evaluation)
        except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
            path = self._folder / workdir.EVALUATION
            problems.append(f"{path}: not what kerass2.evaluate writes ({error!r})")
            found = []
        return {
            "title": str(experiment.get("name") or self._folder.resolve().name),
            "facts": _list_facts(experiment, data, log),
            "finished": (self._folder / workdir.MODEL).is_file(),
            "step": log[-1]["step"] if log else None,
            "steps": (experiment.get("run") or {}).get("steps"),
            "curves": curves,
            "tables": [_describe_table(table) for table in found],
            "definitions": dict((evaluation or {}).get("definitions") or {}),
            "problems": problems,
        }


def _list_facts(
    experiment: Mapping[str, Any], data: Mapping[str, Any], log: list[dict[str, Any]]
) -> list[tuple[str, str]]:
    """What is trained on what, as far as it is known."""
    run, model = experiment.get("run") or {}, experiment.get("model") or {}
    seconds = next((entry["seconds"] for entry in reversed(log) if "seconds" in entry), None)
    facts = {
        "model": model.get("name"),
        "data": data.get("description") or data.get("data"),
        "started from": (data.get("init") or {}).get("path"),
        "global batch": run.get("global_batch"),
        "epochs": run.get("epochs"),
        "precision": run.get("precision"),
        "training time": None if seconds is None else report.duration(float(seconds)),
    }
    return [(name, str(value)) for name, value in facts.items() if value is not None]


def _describe_curve(curve: figures.Curve) -> dict[str, Any]:
    """A curve of at most figures.MAX_POINTS points and the last one."""
    x, y = curve.x, curve.y
    thin = slice(None, None, -(-len(x) // figures.MAX_POINTS))
    xs, ys = x[thin].tolist(), y[thin].tolist()
    if xs[-1] != x[-1]:
        xs, ys = [*xs, x[-1]], [*ys, y[-1]]
    lowest = int(y.argmin())
    return {
        "key": curve.key,
        "title": curve.title,
        "x": xs,
        "y": ys,
        "level": curve.level,
        "last": [x[-1], y[-1]],
        "lowest": [x[lowest], y[lowest]],
        "points": len(x),
        # As the report: where one scale would show a line along the bottom.
        "log": curve.key == "loss" and y.min() > 0 and bool(y.max() / y.min() > 20),
    }


def _list_tables(evaluation: Mapping[str, Any]) -> list[Table]:
    """As kerass2.evaluate prints them."""
    if evaluation["task"] == LABEL_TASK:
        return [label_tables.overall(evaluation), label_tables.by_class(evaluation)]
    return [tables.by_band(evaluation)]


def _describe_table(table: Table) -> dict[str, Any]:
    return {
        "caption": table.caption,
        "columns": table.columns,
        "rows": [[render.format_cell(cell) for cell in row] for row in table.rows],
        "texts": table.texts,
        "notes": table.notes,
    }
