"""Which Keras backend computes: found, and checked, without importing Keras."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import pathlib
import sys

from kerass2.config import ConfigError

# Backend -> the module of this package that compiles its training step.
STEPS = {
    "tensorflow": "kerass2.steps.tensorflow",
    "jax": "kerass2.steps.jax",
    "torch": "kerass2.steps.torch",
}
TAKEN_ALONG = ("sklearn", "matplotlib", "cv2")


def find() -> str:
    """The backend that Keras uses, or will use when it is imported.

    KERAS_BACKEND decides, else "backend" of keras.json in KERAS_HOME or ~/.keras, else it is
    tensorflow: Keras' own rule.
    """
    if "keras" in sys.modules and hasattr(sys.modules["keras"], "backend"):
        return str(sys.modules["keras"].backend.backend())
    told = os.environ.get("KERAS_BACKEND")
    if told:
        return told
    home = pathlib.Path(os.environ.get("KERAS_HOME") or pathlib.Path.home() / ".keras")
    try:
        return str(json.loads((home / "keras.json").read_bytes())["backend"])
    except (OSError, ValueError, KeyError, TypeError):
        return "tensorflow"


def is_on_processors() -> bool:
    """Whether TensorFlow computes, without a GPU: caches hold a map, and its loops cost little."""
    if find() != "tensorflow":
        return False
    import tensorflow as tf

    return not tf.config.get_visible_devices("GPU")


def import_keras() -> None:
    """Import Keras without the libraries that it takes along where they are installed.

    Of scikit-learn, matplotlib and OpenCV it needs nothing unless its wrappers and galleries are
    used, which this process then has not; they are 100 MiB of memory and a third of the import's
    time. They can be imported afterwards. TensorFlow imports Keras, so this comes first.
    """
    missing = [name for name in TAKEN_ALONG if name not in sys.modules]
    for name in missing:
        sys.modules[name] = None  # type: ignore[assignment]  # "cannot be imported", says Python
    try:
        importlib.import_module("keras")
    finally:
        for name in missing:
            del sys.modules[name]


def check(strategy: str = "single") -> None:
    """Refuse a backend that this package does not run on, is not there, or cannot be distributed.

    Args:
        strategy: the word of --strategy.

    Raises:
        ConfigError: says what works instead.
    """
    name = find()
    if name not in STEPS:
        raise ConfigError(f"KERAS_BACKEND={name}: there are {', '.join(STEPS)}")
    # Batches come through tf.data on every backend.
    for module in (name, "tensorflow"):
        if importlib.util.find_spec(module) is None:
            extra = "cpu" if module == "tensorflow" else module
            raise ConfigError(
                f"KERAS_BACKEND={name}: {module} is not installed: pip install 'kerass2[{extra}]'"
            )
    if name != "tensorflow" and strategy != "single":
        raise ConfigError(
            f"KERAS_BACKEND={name} with --strategy {strategy}: horovod and multiworker spread "
            f"TensorFlow's steps. Choose --strategy single on {name}, or KERAS_BACKEND=tensorflow; "
            "weights and work folders are the same for all"
        )
