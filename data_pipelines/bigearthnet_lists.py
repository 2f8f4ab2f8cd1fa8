"""What lists and tables beside a BigEarthNet archive say of its patches: splits, snow, labels.

v1 comes with lists of names (train.csv, val.csv, test.csv, patches_with_seasonal_snow.csv,
patches_with_cloud_and_shadow.csv; plain, .bz2 or .gz), v2 with two tables (metadata.parquet, and
metadata_for_patches_with_snow_cloud_or_shadow.parquet).
"""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from data_pipelines.spec import SPLITS, DataError

# Words that lists and tables have for a split.
WORDS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
SNOW, CLOUD = "patches_with_seasonal_snow.csv", "patches_with_cloud_and_shadow.csv"
METADATA = "metadata.parquet"
EXCLUDED = "metadata_for_patches_with_snow_cloud_or_shadow.parquet"
# Of a table: the columns that it must have.
NEEDED = {
    METADATA: ("patch_id", "labels", "split"),
    EXCLUDED: ("patch_id", "labels", "contains_seasonal_snow", "contains_cloud_or_shadow"),
}
_OPENERS: Mapping[str, Callable[..., Any]] = {"": open, ".bz2": bz2.open, ".gz": gzip.open}
# First cells of a list that has a line of headings.
_HEADINGS = ("patch_id", "patch", "patch_name", "name")
_PATCH = re.compile(r"S2[A-D]_MSIL\d[AC]_\w+_\d+_\d+")


@dataclasses.dataclass
class Lists:
    """What is known of patches, by their names."""

    splits: dict[str, str] = dataclasses.field(default_factory=dict)
    """Name -> train, validation or test."""
    snow: set[str] = dataclasses.field(default_factory=set)
    """Those with seasonal snow."""
    cloud: set[str] = dataclasses.field(default_factory=set)
    """Those with cloud or its shadow."""
    labels: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Names of their classes; of v2 only: v1 has them in a file beside each patch's pixels."""
    countries: dict[str, str] = dataclasses.field(default_factory=dict)
    """Name -> country, where a table has it."""
    files: list[str] = dataclasses.field(default_factory=list)
    """Where all this was read."""


def find_lists(folders: Sequence[pathlib.Path]) -> Lists:
    """Lists and tables of the one folder that holds any; empty where none does.

    Raises:
        DataError: one of them is damaged or contradicts another, or two folders hold some: which of
            them are meant is for the user to say.
    """
    found = [lists for lists in map(read_folder, folders) if lists.files]
    if len(found) > 1:
        first, second = (lists.files[0] for lists in found[:2])
        raise DataError(
            f"lists in two places, such as {first} and {second}; expected one, or --lists FOLDER"
        )
    return found[0] if found else Lists()


def read_folder(folder: pathlib.Path) -> Lists:
    """Everything that a folder's lists and tables say; empty where it has none.

    Raises:
        DataError: one of them is damaged, or a patch is in two splits.
    """
    lists = Lists()
    for stem, split in WORDS.items():
        if file := _find(folder, f"{stem}.csv"):
            _add_splits(lists, file, ((name, split) for name, _ in read_list(file)))
    for name, group in ((SNOW, lists.snow), (CLOUD, lists.cloud)):
        if file := _find(folder, name):
            group.update(patch for patch, _ in read_list(file))
            lists.files.append(str(file))
    for name in (METADATA, EXCLUDED):
        if (file := folder / name).is_file():
            _add_table(lists, file, NEEDED[name])
    return lists


def read_splits(path: pathlib.Path) -> Lists:
    """The splits that a user names: a folder of lists, a table, or a list with a second column.

    Args:
        path: folder of train.csv, val.csv and test.csv; .parquet with columns patch_id and split;
            or .csv (.bz2, .gz) with a patch and its split a line.

    Raises:
        DataError: not found, damaged, a word that is no split, or a patch in two of them.
    """
    if path.is_dir():
        lists = read_folder(path)
    else:
        lists = Lists()
        if path.suffix == ".parquet":
            rows = read_table(path, ("patch_id", "split"))
            pairs: Iterator[tuple[str, str]] = zip(rows["patch_id"], rows["split"], strict=True)
        else:
            pairs = ((name, cells[0] if cells else "") for name, cells in read_list(path))
        _add_splits(lists, path, pairs)
    if not lists.splits:
        raise DataError(f"{path}: no patch has a split; expected train.csv, val.csv and test.csv")
    return lists


def read_list(path: pathlib.Path) -> Iterator[tuple[str, list[str]]]:
    """Patch name and further cells of each line; a line of headings is passed over.

    Raises:
        DataError: not found, damaged, or a line that begins with no name of a patch.
    """
    opener = _OPENERS.get(path.suffix, open)
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                name, *cells = (cell.strip().strip('"') for cell in line.split(","))
                if not line.strip() or (number == 1 and name.lower() in _HEADINGS):
                    continue
                if not _PATCH.fullmatch(name):
                    raise DataError(
                        f"{path}, line {number}: {name[:80]!r}; expected the name of a patch, "
                        "such as S2A_MSIL2A_20170613T101031_87_48"
                    )
                yield name, cells
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as a list of patches: {error}") from error


def read_table(path: pathlib.Path, needed: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of a parquet file by name.

    Raises:
        DataError: not readable, or without one of the columns that are needed.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(path).names
        missing = [name for name in needed if name not in names]
        if missing:
            raise DataError(
                f"{path}: no column {', '.join(missing)}; found {', '.join(names) or 'none'}"
            )
        wanted = {*needed, "country", "contains_seasonal_snow", "contains_cloud_or_shadow"}
        table = pyarrow.parquet.read_table(path, columns=[n for n in names if n in wanted])
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not readable as BigEarthNet metadata: {error}") from error
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _find(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """A list under its name, or packed."""
    files = (folder / f"{name}{suffix}" for suffix in _OPENERS)
    return next((file for file in files if file.is_file()), None)


def _add_splits(lists: Lists, file: pathlib.Path, pairs: Iterator[tuple[str, str]]) -> None:
    """Take note of the split of each patch.

    Raises:
        DataError: a word that is no split, or a patch in two of them.
    """
    for name, word in pairs:
        split = WORDS.get(str(word))
        if split is None:
            raise DataError(f"{file}: {name}: split {word!r}; expected one of {', '.join(SPLITS)}")
        before = lists.splits.setdefault(name, split)
        if before != split:
            raise DataError(f"{file}: {name} is in two splits: {before} and {split}")
    lists.files.append(str(file))


def _add_table(lists: Lists, file: pathlib.Path, needed: Sequence[str]) -> None:
    """Take note of what v2's metadata say.

    Raises:
        DataError: damaged, a column is missing, or a patch stands there twice.
    """
    rows = read_table(file, needed)
    names: list[str] = rows["patch_id"]
    if "split" in rows:
        _add_splits(lists, file, zip(names, rows["split"], strict=True))
    else:
        lists.files.append(str(file))
    known: dict[tuple[str, ...], tuple[str, ...]] = {}
    for name, labels in zip(names, rows["labels"], strict=True):
        if name in lists.labels:
            raise DataError(f"{file}: {name} is there twice")
        # Half a million patches have few different sets of labels: one tuple for each set.
        row = tuple(labels or ())
        lists.labels[name] = known.setdefault(row, row)
    for column, group in (
        ("contains_seasonal_snow", lists.snow),
        ("contains_cloud_or_shadow", lists.cloud),
    ):
        flags = rows.get(column, [False] * len(names))
        group.update(name for name, flag in zip(names, flags, strict=True) if flag)
    if "country" in rows:
        lists.countries.update(zip(names, rows["country"], strict=True))
