"""What a .keras file asks Keras to do, looked at before Keras reads it.

Such a file is a zip with the network's description (config.json) and its weights; a description may
name any Python function, or bring code of its own. Keras' safe mode refuses most of that; the list
here is shorter than Keras', and says what is wrong with which file.
"""

from __future__ import annotations

import json
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

from data_pipelines.spec import DataError

CONFIG = "config.json"
# Modules whose classes and functions a description may name; more may be registered with Keras.
TRUSTED = ("keras", "kerass2", "builtins")
# Longer descriptions are none: ResNet-50's has 0.3 MB.
MAX_BYTES = 64 * 2**20


def check_safe(path: pathlib.Path) -> None:
    """Refuse a file that is no .keras file, or that would have code run when it is read.

    Raises:
        DataError: names the file and the reason.
    """
    for place, found in _objects(_read(path)):
        name, module = str(found["class_name"]), str(found.get("module") or "keras")
        if name in ("Lambda", "__lambda__"):
            raise DataError(
                f"{path}: refused: {place} is a {name}, code that comes with the file; a model of "
                "layers that are in Keras or registered with it is needed"
            )
        if module.split(".")[0] not in TRUSTED and not _is_registered(found):
            what = found["config"] if name == "function" else name
            raise DataError(
                f"{path}: refused: {place} is {module}.{what}, which is neither Keras' nor "
                "kerass2's nor registered with Keras: what it does is not known"
            )


def _read(path: pathlib.Path) -> Any:
    """The description."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(CONFIG).file_size > MAX_BYTES:
                raise DataError(f"{path}: refused: a {CONFIG} of more than {MAX_BYTES:,} bytes")
            return json.loads(archive.read(CONFIG))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        told = str(error).strip("'\"") or type(error).__name__
        raise DataError(
            f"{path}: not a readable Keras model, a .keras file (a zip with a {CONFIG}): {told}"
        ) from None


def _objects(value: Any, place: str = "the model") -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, {"class_name", "module", ...}) of all objects in a description."""
    waiting = [(place, value)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, dict):
            config = value.get("config")
            name = config.get("name") if isinstance(config, dict) else None
            if isinstance(name, str):
                place = f"layer {name!r}"
            if "class_name" in value:
                yield place, value
            waiting += [(place, each) for each in value.values()]
        elif isinstance(value, list):
            waiting += [(place, each) for each in value]


def _is_registered(found: dict[str, Any]) -> bool:
    import keras

    name = found.get("registered_name")
    return isinstance(name, str) and name in keras.saving.get_custom_objects()
