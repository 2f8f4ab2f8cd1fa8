"""Results of a classifier as the classification paper's Tables 2 and 3 print them."""

from __future__ import annotations

import csv
import pathlib
from collections.abc import Mapping
from typing import Any

from data_pipelines.spec import DataError
from kerass2 import methods
from kerass2.tables import Cell, Table

# Columns of published results: of all patches (Table 2), and class by class (Table 3).
GLOBAL = ("model", "precision", "recall", "f1")
PER_CLASS = ("class", "support", "f1_multispectral", "f1_rgb")
# Where a shorter name was printed than the nomenclature's.
SHORTENED = {
    "Land principally occupied by agriculture": (
        "Land principally occupied by agriculture, with significant areas of natural vegetation"
    )
}


def overall(result: Mapping[str, Any]) -> Table:
    """Table 2: precision, recall and F1 over all labels; behind them what it does not have."""
    further = {
        "f1 macro": ("macro", "f1"),
        "f1 weighted": ("weighted", "f1"),
        "f1 samples": ("samples", "f1"),
        "ap macro": ("average_precision", "macro"),
        "ap micro": ("average_precision", "micro"),
    }
    plain = ("hamming_loss", "one_error", "coverage", "subset_accuracy")
    rows: list[tuple[Cell, ...]] = []
    for method, found in result["methods"].items():
        first = (found["micro"][name] for name in GLOBAL[1:])
        more = (found[group][name] for group, name in further.values())
        rows.append((method, "measured", *first, *more, *(found[name] for name in plain)))
    ends: tuple[int, ...] = (len(rows) - 1,)
    published = result.get("published", {}).get("global", ())
    for row in published:
        nothing = (None,) * (len(further) + len(plain))
        # As printed: 0.70 says more than 0.7.
        rows.append((row["model"], "published", *(row[name] for name in GLOBAL[1:]), *nothing))
    if published:
        ends = (*ends, len(rows) - 1)
    columns = ("method", "source", *GLOBAL[1:], *further, *plain)
    caption = f"{result['task']}, {result['split']}: the columns of the paper's Table 2, and more"
    return Table(caption, columns, tuple(rows), ends, _notes(result), texts=2)


def by_class(result: Mapping[str, Any]) -> Table:
    """Table 3: support and F1 of each class, method by method; published columns behind ours."""
    methods = result["methods"]
    classes = {name: found["classes"] for name, found in methods.items()}
    support = next(iter(classes.values()))["support"]
    published = {row["class"]: row for row in result.get("published", {}).get("classes", ())}
    ours = [f"{score} {name}" for name in classes for score in ("f1", "ap")]
    theirs = [f"published {name}" for name in PER_CLASS[1:]] if published else []
    rows: list[tuple[Cell, ...]] = []
    for number, name in enumerate(result["classes"]):
        own = [each[k][number] for each in classes.values() for k in ("f1", "average_precision")]
        row = published.get(name, {})
        printed = [row.get(key) for key in PER_CLASS[1:]] if theirs else []
        rows.append((name, support[number], *own, *printed))
    ends = [len(rows) - 1]
    means = [
        value
        for found in methods.values()
        for value in (found["macro"]["f1"], found["average_precision"]["macro"])
    ]
    rows.append(("macro mean", sum(support), *means, *([None] * len(theirs))))
    caption = f"{result['task']}, {result['split']}: F1 and average precision of each class"
    columns = ("class", "support", *ours, *theirs)
    return Table(caption, columns, tuple(rows), tuple(ends), _notes(result), texts=1)


def confused(result: Mapping[str, Any], most: int = 10) -> Table:
    """Pairs of classes: how often the model saw the second one in place of the first."""
    counts = result["confusion"][methods.MAIN]
    pairs = [
        (number, i, j)
        for i, row in enumerate(counts["confused"])
        for j, number in enumerate(row)
        if number
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1:]))
    names, together = result["classes"], counts["together"]
    rows: list[tuple[Cell, ...]] = [
        (names[i], names[j], number, together[i][i], together[i][j])
        for number, i, j in pairs[:most]
    ]
    caption = f"{result['task']}, {result['split']}: classes taken for each other"
    columns = ("missed", "predicted instead", "patches", "support of the missed", "have both")
    note = "instead: in patches that do not have it. A patch with several classes may count twice."
    return Table(caption, columns, tuple(rows), (len(rows) - 1,), (note,), texts=2)


def _notes(result: Mapping[str, Any]) -> tuple[str, ...]:
    tuned = "tuned for each class on the validation split" if result.get("tuned") else "0.5"
    notes = [f"thresholds: {tuned}; prior: each class as probable as it is frequent, everywhere."]
    if "published" in result:
        files = ", ".join(result["published"]["files"])
        notes.append(f"published: as printed, from {files}; measured on other patches.")
    return tuple(notes)


# --- published results ---------------------------------------------------------------------------


def read_published(path: pathlib.Path) -> dict[str, Any]:
    """Rows of CSV files of published results.

    Args:
        path: a file with the columns GLOBAL or PER_CLASS, or a folder where such files are named
            bigearthnet*.csv; others there are passed over.

    Returns:
        {"files": [name], "global": [{column: text}], "classes": [{column: text}]}, numbers as
        printed, classes by the nomenclature's names.

    Raises:
        DataError: no such file, none in the folder, other columns, or a cell that is no number.
    """
    files = sorted(path.glob("bigearthnet*.csv")) if path.is_dir() else [path]
    found: dict[str, Any] = {"files": [], "global": [], "classes": []}
    for file in files:
        header, rows = _read(file)
        kinds: dict[tuple[str, ...], str] = {GLOBAL: "global", PER_CLASS: "classes"}
        kind = kinds.get(header)
        if kind is None and not path.is_dir():
            raise DataError(
                f"{file}: columns {','.join(header) or 'none'}; expected {','.join(GLOBAL)} or "
                f"{','.join(PER_CLASS)}"
            )
        if kind is not None:
            found["files"].append(file.name)
            found[kind] += [_check(file, number, row) for number, row in enumerate(rows, 2)]
    if not found["files"]:
        raise DataError(f"{path}: holds no bigearthnet*.csv of published results")
    for row in found["classes"]:
        row["class"] = SHORTENED.get(row["class"], row["class"])
    return found


def _read(file: pathlib.Path) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            return tuple(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: not readable as CSV: {error}") from None


def _check(file: pathlib.Path, number: int, row: dict[str, Any]) -> dict[str, str]:
    """Every cell but the first is a number."""
    name, *values = row.values()
    for value in values:
        try:
            float(value)
        except (TypeError, ValueError):
            raise DataError(f"{file}, line {number}: {name}: {value!r} is no number") from None
    return row
