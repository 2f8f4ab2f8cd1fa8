"""What is evaluated side by side: interpolations, and models by name and path.

A model is a .keras file, the work folder of a run, or published DSen2 weights (.npz, .hdf5). What
it is for, and what it was trained on, is found out here without Keras, before ranks start.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.spec import DataError
from kerass2 import inputs, workdir

if TYPE_CHECKING:
    import keras

    from data_pipelines.spec import DatasetSpec
    from kerass2.tiling import Predict

# The model that the command line names first.
MAIN = "model"
# Interpolations that every table has; functions of kerass2.resampling.
BASELINES = ("bicubic", "bilinear")
# Of whole scenes a further one, the strongest: scipy's, whose prefilter sees the whole image.
SPLINE = "cubic_spline"
# In paths and names: MSIL1C of products, L2A of scenes, dsen2_L1C20M.npz of weights.
_LEVEL = re.compile(r"(?:^|[_\W]|MSI)(L1C|L2A)", re.IGNORECASE)
_MEANING = {"L1C": "top-of-atmosphere reflectance", "L2A": "surface reflectance"}
# Published weights; other files are models of ours.
_DSEN2_SUFFIXES = (".npz", ".hdf5", ".h5")
# Input bands of DSen2's first convolution -> task.
_DSEN2_TASKS = {10: "superres_20m", 12: "superres_60m"}


@dataclasses.dataclass(frozen=True)
class Method:
    """A model under a name."""

    name: str
    """As in tables and results."""
    file: pathlib.Path
    """The .keras file, or that of published weights."""
    task: str
    """What it is for."""
    levels: tuple[str, ...] = ()
    """Levels of the products that it was trained on, as far as is known."""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of its training, where known: `global_batch`, `ranks`, `seconds`."""

    @property
    def is_published(self) -> bool:
        """Whether the file has DSen2's published weights, with no data and no run beside it."""
        return self.file.suffix.lower() in _DSEN2_SUFFIXES


def find(path: str | pathlib.Path, name: str = MAIN) -> Method:
    """The method that a path means, found without Keras.

    Raises:
        DataError: there is none, or the file holds no model of ours.
    """
    file = inputs.find_model(path)
    if file.suffix.lower() in _DSEN2_SUFFIXES:
        return Method(name, file, _read_dsen2(file)[0], tuple(find_levels([file.stem])))
    return Method(name, file, inputs.read_task(file), _trained_on(file), _read_facts(file.parent))


def parse(also: Iterable[str]) -> list[Method]:
    """The methods of NAME=PATH texts.

    Raises:
        DataError: a text of another form, a name that is taken, or no model at the path.
    """
    methods: list[Method] = []
    taken = {MAIN, *BASELINES, SPLINE}
    for text in also:
        name, equals, path = text.partition("=")
        if not equals or not name.strip() or not path:
            raise DataError(f"--also {text}: expected NAME=PATH")
        if name in taken:
            raise DataError(f"--also {text}: {name!r} is taken; names in a table must differ")
        taken.add(name)
        methods.append(find(path, name))
    return methods


def check_tasks(methods: Sequence[Method]) -> None:
    """Refuse models for different tasks: their targets are different bands.

    Raises:
        DataError: names both.
    """
    first = methods[0]
    for method in methods[1:]:
        if method.task != first.task:
            raise DataError(
                f"{method.name} ({method.file}) is for {method.task}, {first.name} ({first.file}) "
                f"for {first.task}: models in one table need one task"
            )


def load(method: Method) -> keras.Model:
    """The model, with weights. Keras starts here.

    Raises:
        DataError: the file is damaged.
    """
    if not method.is_published:
        return inputs.load_model(method.file)
    from kerass2 import models
    from kerass2.models import weights

    task, filters, blocks = _read_dsen2(method.file)
    model = models.build("dsen2", task=task, filters=filters, blocks=blocks)
    weights.load_dsen2(model, method.file)
    return model


def compile_for(model: keras.Model, spec: DatasetSpec | None = None, where: str = "") -> Predict:
    """The model as a call that passes over inputs that it does not take; see compile_prediction.

    Args:
        model: a super-resolution model of kerass2.models.
        spec: of the data that it will see; None: not checked.
        where: names the data in messages.

    Raises:
        DataError: it does not fit the data.
    """
    from kerass2 import models, tiling

    if spec is not None:
        models.check_fits(model, spec, where)
    predict, names = tiling.compile_prediction(model), tuple(models.describe(model)["inputs"])
    return lambda given: predict({name: given[name] for name in names})


def interpolate(name: str, lowres: NDArray[Any], scale: int) -> NDArray[np.float32]:
    """(batch, y, x, band) enlarged by one of BASELINES or SPLINE; a band at a time is in memory."""
    if name == SPLINE:
        return _spline(lowres, scale)
    from keras import ops

    from kerass2 import resampling

    functions: dict[str, Callable[[Any, int], Any]] = {
        "bicubic": resampling.bicubic,
        "bilinear": resampling.bilinear,
    }
    height, width = lowres.shape[1] * scale, lowres.shape[2] * scale
    out = np.empty((len(lowres), height, width, lowres.shape[3]), np.float32)
    for band in range(lowres.shape[3]):
        enlarged = functions[name](np.ascontiguousarray(lowres[..., band : band + 1]), scale)
        out[..., band : band + 1] = ops.convert_to_numpy(enlarged)
    return out


def _spline(lowres: NDArray[Any], scale: int) -> NDArray[np.float32]:
    """Enlarged by cubic splines; pixels' corners stay where they are."""
    from scipy import ndimage

    height, width = lowres.shape[1] * scale, lowres.shape[2] * scale
    out = np.empty((len(lowres), height, width, lowres.shape[3]), np.float32)
    for number, band in np.ndindex(len(lowres), lowres.shape[3]):
        image = np.asarray(lowres[number, ..., band], np.float32)
        out[number, ..., band] = ndimage.zoom(image, scale, order=3, mode="reflect", grid_mode=True)
    return out


def find_levels(names: Iterable[object]) -> list[str]:
    """Levels of products that names speak of, "L1C" and "L2A", sorted."""
    return sorted({level.upper() for name in names for level in _LEVEL.findall(str(name))})


def data_levels(data: inputs.Data) -> list[str]:
    """Levels of the products that data come from, as far as they or their names tell, sorted."""
    facts = data.provenance
    names = (*facts.get("scenes", ()), data.path.name)
    return sorted(map(str, facts.get("levels") or find_levels(names)))


def warn_of_level(method: Method, levels: Sequence[str], what: str = "these data are") -> str:
    """What to say when a model was trained on another kind of data than it is given; else ""."""
    if not method.levels or not levels or set(levels) <= set(method.levels):
        return ""
    trained, given = (
        " and ".join(f"{level} ({_MEANING.get(level, 'another kind')})" for level in found)
        for found in (method.levels, levels)
    )
    return (
        f"{method.name} ({method.file.name}) was trained on {trained}, {what} {given}: "
        "bands relate to each other otherwise there, so its result is likely worse than that of a "
        f"model trained on {' and '.join(levels)}"
    )


def _trained_on(file: pathlib.Path) -> tuple[str, ...]:
    """Levels that a model was trained on.

    By the `levels` of its card (the .json of its name) or of data.json beside it; else by names: of
    the data set that data.json speaks of, or of the file.
    """
    card = inputs.read_json(file.with_suffix(".json")) or {}
    facts = inputs.read_json(file.parent / workdir.DATA) or {}
    for record in (card, facts):
        if record.get("levels"):
            return tuple(map(str, record["levels"]))
    try:
        manifest = json.loads((pathlib.Path(facts["data"]) / "manifest.json").read_bytes())
        names = manifest["provenance"]["scenes"]
    except (OSError, KeyError, TypeError, ValueError):
        names = []  # the data set is gone, or a product: its name may tell
    texts = (names, [facts.get("data", "")], [file.stem])
    return next((tuple(found) for text in texts if (found := find_levels(text))), ())


def _read_facts(folder: pathlib.Path) -> dict[str, Any]:
    """What a work folder tells of its training."""
    facts: dict[str, Any] = {}
    experiment = inputs.read_json(folder / workdir.EXPERIMENT) or {}
    batch = (experiment.get("run") or {}).get("global_batch")
    if batch:
        facts["global_batch"] = batch
    ranks = (inputs.read_json(folder / workdir.DATA) or {}).get("ranks")
    if ranks:
        facts["ranks"] = ranks
    try:
        lines = (folder / workdir.LOG).read_text(encoding="utf-8").splitlines()
        facts["seconds"] = next(
            float(json.loads(line)["seconds"]) for line in reversed(lines) if "seconds" in line
        )
    except (OSError, StopIteration, ValueError, KeyError, TypeError):
        pass  # no log, or one that a crash cut off: the table leaves the time out
    return facts


def _read_dsen2(file: pathlib.Path) -> tuple[str, int, int]:
    """Task, filters and blocks of published weights.

    Raises:
        DataError: not such a file.
    """
    from kerass2.models import published

    try:
        kernels = published.read(file).kernels
        *_, bands, filters = kernels[0][0].shape
        return _DSEN2_TASKS[bands], int(filters), (len(kernels) - 2) // 2
    except DataError as error:
        raise DataError(f"{file}: not DSen2's weights: {error}") from None
    except KeyError:
        raise DataError(
            f"{file}: not DSen2's weights: {bands} input bands; expected 10 (20 m) or 12 (60 m)"
        ) from None
