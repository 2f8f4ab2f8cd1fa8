"""What a command line names: a model, a data set; found, opened and checked against each other."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from data_pipelines.spec import DataError
from kerass2 import workdir

if TYPE_CHECKING:
    import keras

    from data_pipelines.spec import Source


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set to evaluate on."""

    path: pathlib.Path
    """Its folder."""
    description: str
    """What the pixels are."""
    synthetic: bool
    """True when they were computed, not measured."""


def find_model(path: str | pathlib.Path) -> pathlib.Path:
    """The .keras file that a path means: itself, or the one in a work folder.

    Raises:
        DataError: there is none.
    """
    path = pathlib.Path(path)
    file = path / workdir.MODEL if path.is_dir() else path
    if not file.is_file():
        raise DataError(
            f"{file}: not found; expected a .keras file or the work folder of kerass2.fit"
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
        return next(str(s["key"]) for s in settings if s.get("inverse") and "bands" in s)
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, StopIteration) as error:
        raise DataError(
            f"{file}: not a readable Keras model of kerass2 ({type(error).__name__}: {error})"
        ) from None


def find_data(model: str | pathlib.Path, data: str | None) -> Data:
    """The data set that a command means.

    Args:
        model: path of the .keras file or its work folder; data.json beside it says what it was
            trained on.
        data: a folder or "synthetic"; None is the training data, or else the sample.

    Raises:
        DataError: it does not exist.
    """
    from data_pipelines import sample, tfrecord

    file = find_model(model)
    trained_on = read_json(file.parent / workdir.DATA)
    if trained_on is not None and data in (None, trained_on.get("data")):
        path, message = pathlib.Path(trained_on["data"]), str(trained_on.get("description", ""))
    else:
        path, message = sample.resolve(data, read_task(file))
    provenance = tfrecord.read_manifest(path).provenance
    # The manifest's flag alone decides; whatever else says what the pixels are is for the reader.
    synthetic, origin = bool(provenance.get("synthetic")), str(provenance.get("source", ""))
    described = message.removeprefix("data: ").removeprefix("DATA: ")
    if origin and described in ("", str(path)):
        described = origin
    if synthetic and "SYNTHETIC" not in described:
        described = f"SYNTHETIC, NOT MEASURED: {described}"
    return Data(path, described, synthetic)


def open_source(data: Data, split: str, model: keras.Model) -> Source:
    """A split of a data set that fits a model.

    Raises:
        DataError: no such split, damaged, or of another task or band set (names both specs).
    """
    from data_pipelines import tfrecord
    from kerass2 import models

    source = tfrecord.open_source(data.path, split)
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
