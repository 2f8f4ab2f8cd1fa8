"""What a command line names: a model, a data set; found, opened and checked against each other."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
import time
import zipfile
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from data_pipelines.spec import DataError
from kerass2 import messages, shipped, workdir
from kerass2.config import LABEL_TASK

if TYPE_CHECKING:
    import keras

    from data_pipelines.spec import Source


# A survey that takes longer is worth a line [s].
LONG_SURVEY = 5.0


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set of either kind: prepared, or cut out of a product as it is read."""

    path: pathlib.Path
    """Its folder, or the product."""
    description: str
    """What the pixels are."""
    digest: str
    """12 hexadecimal digits that tell it from others: of the manifest, or of the product's files
    and how they are cut."""
    counts: Mapping[str, int]
    """Patches of each split."""
    provenance: Mapping[str, Any]
    """As in a manifest."""
    open: Callable[[str], Source]
    """The source of a split; raises DataError where there is none, or it is damaged."""

    @property
    def synthetic(self) -> bool:
        """True when the pixels were computed, not measured. The flag alone decides."""
        return bool(self.provenance.get("synthetic"))


def open_data(path: str | pathlib.Path, task: str, description: str = "") -> Data:
    """A data set that kerass2.prepare has made, or a product, cut as prepare would cut it.

    Args:
        path: a folder with a manifest, or anything that data_pipelines.granule.open_granules takes.
        task: what to cut; a prepared data set has its own.
        description: what the pixels are; by default the path.

    Raises:
        DataError: nothing there, damaged, or a product that gives no patch.
    """
    from data_pipelines import store
    from data_pipelines.manifest import MANIFEST

    path = pathlib.Path(path)
    if path.exists() and not (path / MANIFEST).is_file():
        return _open_product(path, task, description)
    found = store.read_manifest(path)
    digest = hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()[:12]
    counts = {split: found.num_examples(split) for split in found.splits}
    source = functools.partial(store.open_source, path)
    return Data(path, description or str(path), digest, counts, found.provenance, source)


def _open_product(path: pathlib.Path, task: str, description: str) -> Data:
    """Place the patches of a product; says how long that took where it took long."""
    from data_pipelines import cube_source, sample

    begin = time.monotonic()
    with messages.progress("looking for pixels without data") as advance:
        found = cube_source.open_product(
            path, task, cache=sample.cache_folder() / "surveys", advance=advance
        )
    seconds = time.monotonic() - begin
    if seconds > LONG_SURVEY:
        messages.note(
            f"looked for pixels without data in {path}: {seconds:.0f} s, which the next start "
            "will not need; kerass2.prepare makes a data set that is read faster"
        )
    description = description or f"{path}, cut as it is read"
    return Data(path, description, found.digest, found.counts, found.provenance, found.source)


def choose_data(data: str | None, task: str) -> Data:
    """The data set that `--data` means: a path, "synthetic", or None for the sample.

    Raises:
        DataError: see open_data.
    """
    from data_pipelines import sample
    from data_pipelines.manifest import MANIFEST

    path = None if data is None or data == "synthetic" else pathlib.Path(data)
    prepared = path is not None and (path / MANIFEST).is_file()
    if task == LABEL_TASK and path is not None and path.exists() and not prepared:
        raise DataError(
            f"{path}: no prepared data set; make one: python -m kerass2.prepare {path} -o DIR "
            f"--task {task}"
        )
    if path is not None and (task == LABEL_TASK or not prepared):
        found = open_data(path, task)
        made_up = " (SYNTHETIC: MADE UP, NOT MEASURED)" if found.synthetic else ""
        return dataclasses.replace(found, description=f"data: {found.description}{made_up}")
    folder, message = sample.resolve(data, task)
    return open_data(folder, task, message)


def find_model(path: str | pathlib.Path) -> pathlib.Path:
    """The file of a model that a path means: itself, the .keras file in a work folder, or our own.

    Raises:
        DataError: there is none.
    """
    path = shipped.by_name(path) or pathlib.Path(path)
    file = path / workdir.MODEL if path.is_dir() else path
    if not file.is_file():
        raise DataError(
            f"{file}: not found; expected a .keras file, the work folder of kerass2.fit, or "
            "DSen2's weights (.npz, .hdf5)"
        )
    return file


def load_model(path: str | pathlib.Path) -> keras.Model:
    """The model that a path means, see find_model.

    Raises:
        DataError: there is none, or the file is damaged or holds another kind of model.
    """
    from kerass2 import models

    model = models.load_model(find_model(path))
    models.describe(model)
    return model


def read_task(file: pathlib.Path) -> str:
    """Task of a saved model, without Keras: a strategy has to start before TensorFlow is used.

    Raises:
        DataError: not a .keras file of a model of ours.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            layers = json.loads(archive.read("config.json"))["config"]["layers"]
        settings = [layer["config"] for layer in layers]
        targets = (s for s in settings if (s.get("inverse") and "bands" in s) or "classes" in s)
        return next(str(s["task"] if "classes" in s else s["key"]) for s in targets)
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, StopIteration) as error:
        raise DataError(
            f"{file}: not a readable Keras model of kerass2 ({type(error).__name__}: {error})"
        ) from None


def find_data(model: str | pathlib.Path, data: str | None) -> Data:
    """The data set that a command means.

    Args:
        model: path of the .keras file or its work folder; data.json beside it says what it was
            trained on.
        data: a path or "synthetic"; None is the training data, or else the sample.

    Raises:
        DataError: it does not exist.
    """
    file = find_model(model)
    trained_on = read_json(file.parent / workdir.DATA)
    if trained_on is not None and data in (None, trained_on.get("data")):
        found = open_data(
            trained_on["data"], read_task(file), str(trained_on.get("description", ""))
        )
    else:
        found = choose_data(data, read_task(file))
    # The flag alone decides; whatever else says what the pixels are is for the reader.
    origin = str(found.provenance.get("source", ""))
    described = found.description.removeprefix("data: ").removeprefix("DATA: ")
    if origin and described == str(found.path):
        described = origin
    if found.synthetic and "SYNTHETIC" not in described:
        described = f"SYNTHETIC, NOT MEASURED: {described}"
    return dataclasses.replace(found, description=described)


def open_source(data: Data, split: str, model: keras.Model) -> Source:
    """A split of a data set that fits a model.

    Raises:
        DataError: no such split, damaged, or of another task or band set (names both specs).
    """
    from kerass2 import models

    source = data.open(split)
    models.check_fits(model, source.spec, str(data.path))
    return source


def lowres_input(described: Mapping[str, Any]) -> str:
    """Name of the input that holds the bands to sharpen; `described` is of models.describe."""
    names = [
        key for key, bands in described["inputs"].items() if bands == described["target_bands"]
    ]
    if len(names) != 1:
        raise DataError(
            f"model {described['model']}: {len(names)} inputs with the bands to sharpen, "
            f"{','.join(described['target_bands'])}; expected one"
        )
    return str(names[0])


def read_json(path: pathlib.Path) -> dict[str, Any] | None:
    """A JSON object; None where there is no file.

    Raises:
        DataError: the file is damaged.
    """
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{path}: damaged, expected JSON: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: a JSON {type(values).__name__}, expected an object")
    return values
