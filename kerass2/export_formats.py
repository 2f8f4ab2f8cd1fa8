"""The formats that models are exported to: how each is written, and run by its own runtime.

All compute in float32. keras and savedmodel take any batch and size; so does onnx; tflite's
interpreter has the sizes that it was converted for, or is told others before it allocates memory.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import logging
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    import keras

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], Arrays]
# ONNX operators as of 2021: every runtime of today has them.
OPSET = 17


@dataclasses.dataclass(frozen=True)
class Format:
    """A format by its word on the command line."""

    file: str
    """Name of the file or folder."""
    framework: str
    """As STAC's machine-learning-model extension calls it."""
    media_type: str
    """Of the file."""
    needs: tuple[str, ...]
    """Modules that write it, besides Keras."""
    runtime: tuple[str, ...]
    """Modules of which one runs it."""
    write: Callable[[keras.Model, pathlib.Path, Mapping[str, Any], str], None]
    """(model in float32, path, {input: (y, x, band)}, y and x None where they are free; a text that
    says what the model is, for formats that have a place for it)."""
    open: Callable[[pathlib.Path], Run]
    """The written file as a function from {input: (batch, y, x, band) float32} to {output: ..}."""

    def missing(self) -> str | None:
        """A module that writing needs and that is not installed."""
        return next((name for name in self.needs if not _is_there(name)), None)

    @property
    def can_run(self) -> bool:
        """Whether a runtime is installed."""
        return any(_is_there(name) for name in self.runtime)


def to_float32(model: keras.Model) -> keras.Model:
    """A copy whose layers all compute in float32, and whose attention has no loops."""
    import keras

    from kerass2.models.layers import SelfAttention

    def copy(layer: Any) -> Any:
        return type(layer).from_config({**layer.get_config(), "dtype": "float32"})

    copied = keras.models.clone_model(model, clone_function=copy)
    copied.set_weights(model.get_weights())
    for layer in copied.layers:
        if isinstance(layer, SelfAttention):
            layer.plain = True
    return copied


# --- keras and savedmodel -----------------------------------------------------------------------


def _write_keras(
    model: keras.Model, path: pathlib.Path, sizes: Mapping[str, Any], note: str
) -> None:
    model.save(path)


def _open_keras(path: pathlib.Path) -> Run:
    from kerass2 import models, tiling

    return tiling.compile_prediction(models.load_model(path))


def _write_savedmodel(
    model: keras.Model, path: pathlib.Path, sizes: Mapping[str, Any], note: str
) -> None:
    """With the signature "serving_default", which takes and gives tensors by name."""
    import keras

    names = list(sizes)
    archive = keras.export.ExportArchive()
    archive.track(model)
    with _quiet():
        archive.add_endpoint(
            "serve",
            lambda inputs: model({name: inputs[name] for name in names}, training=False),
            input_signature=[dict(zip(names, _specs(sizes), strict=True))],
        )
        archive.write_out(str(path), verbose=False)


def _open_savedmodel(path: pathlib.Path) -> Run:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))  # must live as long as its signature
    call = loaded.signatures["serving_default"]

    def run(given: Arrays) -> Arrays:
        found = call(**{name: tf.constant(array) for name, array in given.items()})
        return {name: value.numpy() for name, value in found.items()} if loaded else {}

    return run


def _specs(sizes: Mapping[str, Any]) -> list[Any]:
    """A tf.TensorSpec an input, of any batch."""
    import tensorflow as tf

    return [tf.TensorSpec((None, *size), tf.float32, name) for name, size in sizes.items()]


# --- onnx ---------------------------------------------------------------------------------------


def _write_onnx(
    model: keras.Model, path: pathlib.Path, sizes: Mapping[str, Any], note: str
) -> None:
    """By tf2onnx, as Keras does it, which leaves inputs of a dictionary without their names."""
    import onnx
    import tensorflow as tf
    import tf2onnx
    from keras.src.export.tf2onnx_lib import patch_tf2onnx

    @tf.function(autograph=False)
    def predict(*tensors: Any) -> Any:
        return model(dict(zip(sizes, tensors, strict=True)), training=False)

    with _quiet():
        patch_tf2onnx()
        proto, _ = tf2onnx.convert.from_function(
            predict, input_signature=_specs(sizes), opset=OPSET
        )
    onnx.helper.set_model_props(proto, {"kerass2": note})
    onnx.save(proto, str(path))


def _open_onnx(path: pathlib.Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return lambda given: dict(zip(names, session.run(names, dict(given)), strict=True))


# --- tflite -------------------------------------------------------------------------------------


def _write_tflite(
    model: keras.Model, path: pathlib.Path, sizes: Mapping[str, Any], note: str
) -> None:
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder, _quiet():
        _write_savedmodel(model, pathlib.Path(folder), sizes, note)
        converter = tf.lite.TFLiteConverter.from_saved_model(
            folder, signature_keys=["serving_default"]
        )
        path.write_bytes(converter.convert())


def _open_tflite(path: pathlib.Path) -> Run:
    """An interpreter, made anew for each call; its signature takes whatever sizes it is given."""
    interpreter_of: Any
    if _is_there("ai_edge_litert"):
        interpreter_of = importlib.import_module("ai_edge_litert.interpreter").Interpreter
    else:
        interpreter_of = importlib.import_module("tensorflow").lite.Interpreter

    def run(given: Arrays) -> Arrays:
        with _quiet():
            interpreter = interpreter_of(model_path=str(path))
        found: Arrays = interpreter.get_signature_runner("serving_default")(**given)
        return found

    return run


FORMATS = {
    "keras": Format(
        "model.keras", "Keras", "application/vnd.keras", (), ("keras",), _write_keras, _open_keras
    ),
    "savedmodel": Format(
        "saved_model",
        "TensorFlow",
        "application/vnd.tensorflow.savedmodel",
        ("tensorflow",),
        ("tensorflow",),
        _write_savedmodel,
        _open_savedmodel,
    ),
    "onnx": Format(
        "model.onnx",
        "ONNX",
        "application/onnx",
        ("tensorflow", "tf2onnx", "onnx"),
        ("onnxruntime",),
        _write_onnx,
        _open_onnx,
    ),
    "tflite": Format(
        "model.tflite",
        "LiteRT",
        "application/vnd.tensorflow.tflite",
        ("tensorflow",),
        ("ai_edge_litert", "tensorflow"),
        _write_tflite,
        _open_tflite,
    ),
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what converters say of themselves; errors stay."""
    loggers = [logging.getLogger(name) for name in ("tensorflow", "tf2onnx", "absl")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _is_there(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
