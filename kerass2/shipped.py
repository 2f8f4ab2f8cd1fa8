"""The weights that come with the package, by task and level: no MODEL has to be given.

kerass2/weights holds of each a model (superres_20m_L1C.keras), its card (.json) and the card for
readers (.md), all three written by kerass2.card; sources.csv there lists the scenes that they were
trained and scored on, with licences.
"""

from __future__ import annotations

import pathlib
import zipfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_pipelines.spec import DataError
from kerass2 import workdir

if TYPE_CHECKING:
    from data_pipelines.granule import Granule

FOLDER = pathlib.Path(__file__).parent / "weights"
SOURCES = FOLDER / "sources.csv"
# Its weights stand in for the other level's, which start from them, where those do not exist.
FALLBACK = "L1C"
# Words that kerass2.predict takes for inputs.
_MADE = ("sample", "synthetic")


def names() -> list[str]:
    """Of all weights that are there: TASK_LEVEL."""
    return sorted(path.stem for path in FOLDER.glob("*.keras"))


def find(task: str, level: str | None = None) -> pathlib.Path:
    """The model for a task.

    Args:
        task: "superres_20m" or "superres_60m".
        level: "L1C" or "L2A"; of a level that has no weights, or None, FALLBACK's are meant.

    Raises:
        DataError: none for that task; says which there are.
    """
    for each in (level, FALLBACK):
        path = FOLDER / f"{task}_{each}.keras"
        if path.is_file():
            return path
    there = ", ".join(names()) or "none"
    raise DataError(
        f"no weights for {task} come with this package (there are: {there}); give MODEL"
    )


def find_tasks(bands: Sequence[str] | None) -> tuple[str, ...]:
    """Tasks whose bands are wanted, where no model tells; None: the 20 m bands."""
    from data_pipelines import sentinel2

    coarse = bands is not None and {"all", *sentinel2.BANDS_60M} & set(bands)
    fine = bands is None or {"all", *sentinel2.BANDS_20M} & set(bands)
    wanted = zip(("superres_20m", "superres_60m"), (fine, coarse), strict=True)
    return tuple(task for task, is_wanted in wanted if is_wanted) or ("superres_20m",)


def find_level(granule: Granule) -> str | None:
    """Level of a granule's product: by its XML or, where that is gone, by its name."""
    from kerass2 import methods

    told = granule.facts.get("level")
    levels = methods.find_levels([granule.name, granule.scene])
    return str(told) if told else levels[0] if len(levels) == 1 else None


def by_name(path: str | pathlib.Path) -> pathlib.Path | None:
    """The model that a word such as superres_20m_L1C means; None for any other, or a real path."""
    known = str(path) in names() and not pathlib.Path(path).exists()
    return FOLDER / f"{path}.keras" if known else None


def is_own(path: pathlib.Path) -> bool:
    """Whether a file is one of the package's own models."""
    return path.resolve().parent == FOLDER.resolve()


def say_which(models: Sequence[pathlib.Path]) -> tuple[str, ...]:
    """A line about the models of the package among some; none where there are none."""
    own = ", ".join(path.stem for path in models if is_own(path))
    return (f"weights: {own}, which come with kerass2",) if own else ()


def complete(
    arguments: Sequence[pathlib.Path], tasks: Sequence[str], model_60m: pathlib.Path | None
) -> tuple[list[pathlib.Path], Sequence[pathlib.Path]]:
    """(models, inputs) of kerass2.predict's [MODEL] INPUT...; without MODEL the package's own.

    Args:
        arguments: of the command line.
        tasks: what the package's own have to do.
        model_60m: a model that is given for the 60 m bands.

    Raises:
        DataError: no weights for a task, or inputs of two levels that need other weights each.
    """
    first, sources = split(arguments)
    given = [] if model_60m is None else [model_60m]
    if first is not None:
        return [first, *given], sources
    wanted = tasks if model_60m is None else ("superres_20m",)
    levels = {_level_of(source): source for source in sources}
    choices = {tuple(find(task, level) for task in wanted): level for level in levels}
    if len(choices) > 1:
        one, other = list(choices.values())[:2]
        raise DataError(
            f"{levels[one]} is {one or 'of an unknown level'}, {levels[other]} is "
            f"{other or 'of an unknown level'}: weights differ; sharpen them by two commands, or "
            "give MODEL"
        )
    return [*next(iter(choices)), *given], sources


def _level_of(source: pathlib.Path) -> str | None:
    """Level of a product, by its name or else by what is in it; None where nothing tells."""
    from kerass2 import methods

    levels = methods.find_levels([source.name])
    if len(levels) == 1:
        return levels[0]
    if not source.exists():
        return None
    from data_pipelines.granule import open_granule

    try:
        return find_level(open_granule(source))
    except DataError:
        return None  # it is named, and why, when its turn comes


def split(
    arguments: Sequence[pathlib.Path],
) -> tuple[pathlib.Path | None, Sequence[pathlib.Path]]:
    """(model, inputs) of [MODEL] INPUT...; the model is None where the first one is an input.

    A model is a file of weights, the work folder of a run, or the name of weights of the package.
    What does not exist, is no file by its name, and has others behind it, is taken for a model.
    """
    first, *others = arguments
    missing = not first.exists() and not first.suffix and str(first) not in _MADE
    run = any((first / name).is_file() for name in (workdir.MODEL, workdir.EXPERIMENT))
    if _is_file_of_weights(first) or run or by_name(first) or (missing and others):
        return first, others
    return None, arguments


def _is_file_of_weights(path: pathlib.Path) -> bool:
    """By the name's end; an .npz is a scene unless it has DSen2's first convolution."""
    if path.suffix.lower() != ".npz":
        return path.suffix.lower() in (".keras", ".hdf5", ".h5")
    try:
        with zipfile.ZipFile(path) as archive:
            return "conv00_bias.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def find_for_data(data: str | None) -> pathlib.Path:
    """The model to evaluate on a data set, a product or scenes: by their task and level.

    A product tells no task: the one of 20 m bands is meant. See kerass2.evaluate for `data`.

    Raises:
        DataError: a damaged manifest, or no weights for its task.
    """
    from data_pipelines import sample, store
    from data_pipelines.manifest import MANIFEST
    from kerass2 import methods

    if data is None or not (pathlib.Path(data) / MANIFEST).is_file():
        levels = methods.find_levels([data or "L2A"])  # the sample's is L2A
        return find(sample.TASK, levels[0] if len(levels) == 1 else None)
    manifest = store.read_manifest(data)
    levels = methods.find_levels(manifest.provenance.get("scenes", ()))
    return find(manifest.spec.task, levels[0] if len(levels) == 1 else None)
