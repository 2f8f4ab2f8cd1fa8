"""Results of kerass2.evaluate as tables: by band, as the paper prints them, by scene.

A cell is a text, a number, or None where there is nothing to show (a band that a metric does not
have, a column that a published table lacks). NaN is a number: what was asked for has no value.
render.py shows them.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data_pipelines.spec import DataError

Cell = str | float | int | None

# Columns of the paper's tables, and of a CSV of published results.
PUBLISHED = (
    *("method", "gpus", "global_batch", "training_time"),
    *("rmse", "sre", "sam", "ergas", "ssim", "psnr"),
)
# Column of a published table -> our metric of the same definition (metrics.DEFINITIONS).
PAPER = {
    **{name: name for name in ("rmse", "sre", "sam")},
    **{name: f"{name}_paper" for name in ("ergas", "ssim", "psnr")},
}
# Further columns: the textbook's definitions, and what the paper does not have.
TEXTBOOK = {"ergas_textbook": "ergas", "ssim_textbook": "ssim", "psnr_textbook": "psnr"}
FURTHER = {**TEXTBOOK, "uiq": "uiq", "consistency": "consistency"}
# (GPUs, batch as printed) -> batch: 128 patches a GPU make 1024 and 2048 on 8 and 16 of them.
MISPRINTS = {(8, 1028): 1024, (16, 2056): 2048}


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells below names of columns."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    ends: tuple[int, ...] = ()
    """Rows below which a line is drawn."""
    notes: tuple[str, ...] = ()
    """What a reader must know, below the table."""
    texts: int = 2
    """Columns from the left that hold text."""


def by_band(result: Mapping[str, Any]) -> Table:
    """Methods as rows below each metric, mean and bands as columns; fits 80 columns."""
    methods = result["methods"]
    # The metric with most bands first, so that a band that one lacks keeps its place.
    fullest = sorted(methods["model"].values(), key=len, reverse=True)
    columns = list(dict.fromkeys(key for found in fullest for key in found))
    rows: list[tuple[Cell, ...]] = []
    for metric in methods["model"]:
        for method, found in methods.items():
            values = (_number(found[metric], key) for key in columns)
            rows.append((_with_unit(metric, result), method, *values))
    ends = range(len(methods) - 1, len(rows), len(methods))
    caption = f"{result['task']}, {result['split']}: every metric by band"
    return Table(caption, ("metric", "method", *columns), tuple(rows), tuple(ends))


def as_in_the_paper(result: Mapping[str, Any]) -> Table:
    """The columns of the paper's tables, in its definitions; behind them the textbook's.

    Published rows stand below ours, marked as such.
    """
    columns = (*PUBLISHED, *FURTHER, "source", "note")
    metrics = {**PAPER, **FURTHER}
    rows: list[tuple[Cell, ...]] = []
    for method, found in result["methods"].items():
        facts = result.get("models", {}).get(method, {})
        seconds = facts.get("seconds")
        time = None if seconds is None else _duration(seconds)
        values = (_number(found.get(name, {}), "mean") for name in metrics.values())
        about = (method, facts.get("ranks"), facts.get("global_batch"), time)
        rows.append((*about, *values, "measured", None))
    ends: tuple[int, ...] = (len(rows) - 1,)
    published = result.get("published", {})
    for row in published.get("rows", ()):
        nothing = (None,) * len(FURTHER)
        told = (row[name] for name in PUBLISHED[: -len(PAPER)])
        # As printed: 0.9320 says more than 0.932.
        rows.append((*told, *map(row["printed"].get, PAPER), *nothing, "published", row["note"]))
    notes = [
        "ergas, ssim, psnr: as the paper defines them; *_textbook: as the textbooks do; "
        "means over bands."
    ]
    if published:
        ends = (*ends, len(rows) - 1)
        notes.append(f"published: as printed, from {published['file']}; measured on other data.")
    caption = f"{result['task']}, {result['split']}: the columns of the paper's tables"
    return Table(caption, columns, tuple(rows), ends, tuple(notes), texts=1)


def by_scene(result: Mapping[str, Any]) -> Table:
    """Every metric, the mean over bands, by scene and method; below, mean and deviation."""
    scenes, over = result["scenes"], result["over_scenes"]
    if not scenes:
        raise DataError(f"{result['data']}: the data do not say which scenes they are from")
    names = list(next(iter(result["methods"].values())))
    groups: dict[str, dict[str, Sequence[Cell]]] = {
        scene: {
            method: [_number(found[name], "mean") for name in names]
            for method, found in values["methods"].items()
        }
        for scene, values in scenes.items()
    }
    for label, key in (("mean over scenes", "mean"), ("standard deviation", "std")):
        groups[label] = {
            method: [_number(found[name]["mean"], key) for name in names]
            for method, found in over.items()
        }
    rows = [(g, method, *values) for g, found in groups.items() for method, values in found.items()]
    ends, row = [], -1
    for found in groups.values():
        row += len(found)
        ends.append(row)
    note = (
        "standard deviation: of the scenes' values (n - 1), nan for one scene; each scene counts "
        "once, whatever its size."
    )
    columns = ("scene", "method", *(_with_unit(name, result) for name in names))
    caption = f"{result['task']}, {result['split']}: every metric by scene, means over bands"
    return Table(caption, columns, tuple(rows), tuple(ends), (note,))


TABLES: dict[str, Callable[[Mapping[str, Any]], Table]] = {
    "bands": by_band,
    "paper": as_in_the_paper,
    "scenes": by_scene,
}


def _number(values: Mapping[str, float | None], key: str) -> float | None:
    """A value, NaN for one that JSON could not hold, None for one that is not there."""
    if key not in values:
        return None
    value = values[key]
    return math.nan if value is None else float(value)


def _with_unit(metric: str, result: Mapping[str, Any]) -> str:
    unit = result["units"].get(metric, "1")
    return metric if unit == "1" else f"{metric} [{unit}]"


def _duration(seconds: float) -> str:
    """As the paper has it, "24h", or what is fit for a shorter run."""
    if seconds >= 3600:
        return f"{seconds / 3600:.3g}h"
    return f"{seconds / 60:.3g}min" if seconds >= 60 else f"{seconds:.3g}s"


# --- published results ---------------------------------------------------------------------------


def read_published(path: pathlib.Path, task: str) -> dict[str, Any]:
    """Rows of a CSV of published results.

    Args:
        path: with the columns PUBLISHED, in any order; an empty cell is one that was not printed.
        task: of the models beside which it shall stand.

    Returns:
        {"file": name, "rows": [{column: value or None, "printed": {metric: text or None}, "note":
        text or None}]}; batches that are known misprints are corrected, and their note says so.

    Raises:
        DataError: no such file, other columns, a cell that is no number, or its name says that it
            is of another task.
    """
    from data_pipelines import cube

    if path.stem in cube.TASKS and path.stem != task:
        raise DataError(f"{path}: published results of {path.stem}; the models are for {task}")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not readable as CSV: {error}") from None
    header = tuple(lines[0]) if lines else ()
    if sorted(header) != sorted(PUBLISHED):
        raise DataError(
            f"{path}: columns {','.join(header) or 'none'}; expected {','.join(PUBLISHED)}"
        )
    rows = [_read_row(path, number, header, line) for number, line in enumerate(lines[1:], 2)]
    return {"file": path.name, "rows": rows}


def _read_row(
    path: pathlib.Path, number: int, header: Sequence[str], line: Sequence[str]
) -> dict[str, Any]:
    """One published result."""
    if len(line) != len(header):
        raise DataError(f"{path}, line {number}: {len(line)} cells, expected {len(header)}")
    texts = dict(zip(header, line, strict=True))
    printed = {name: texts[name].strip() or None for name in PAPER}
    row: dict[str, Any] = {"printed": printed, "note": None}
    for name, text in texts.items():
        kind: Any = str if name in ("method", "training_time") else float
        kind = int if name in ("gpus", "global_batch") else kind
        try:
            row[name] = kind(text) if text.strip() else None
        except ValueError:
            raise DataError(f"{path}, line {number}: {name} {text!r} is no number") from None
    batch = row["global_batch"]
    right = MISPRINTS.get((row["gpus"], batch))
    if right is not None:
        row |= {"global_batch": right, "note": f"batch printed as {batch}, a misprint"}
    return row
