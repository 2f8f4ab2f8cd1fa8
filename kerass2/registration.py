"""`keras.models.load_model` opens our files after `import kerass2`, which imports no Keras.

Keras finds a saved model's layers by registered names. A name is registered here with a stand-in
that imports the layer's module when a model is read; the module then registers the layer itself.
Where Keras is not imported yet, that is done when it is.
"""

from __future__ import annotations

import importlib
import importlib.abc
import sys
from importlib.machinery import ModuleSpec
from typing import Any

# Registered class -> its module. A test holds it equal to what the modules register.
CLASSES = {
    "LAMB": "kerass2.layerwise",
    "LARS": "kerass2.layerwise",
    "Labels": "kerass2.models.labels",
    "SeededDropout": "kerass2.models.labels",
    "StandardiseBands": "kerass2.models.labels",
    "LastOf": "kerass2.models.layers",
    "MeanShift": "kerass2.models.layers",
    "ResidualSum": "kerass2.models.layers",
    "ScaleReflectance": "kerass2.models.layers",
    "SelfAttention": "kerass2.models.layers",
    "Upsample": "kerass2.models.layers",
    "FusedBatchNormalization": "kerass2.models.normalization",
    "SyncBatchNormalization": "kerass2.models.normalization",
    "Nadam": "kerass2.optimizers",
    "SGD": "kerass2.optimizers",
    "Constant": "kerass2.schedules",
    "Cosine": "kerass2.schedules",
    "Linear": "kerass2.schedules",
    "ModifiedLinear": "kerass2.schedules",
    "Polynomial": "kerass2.schedules",
    "Scaled": "kerass2.schedules",
}


class StandIn:
    """What Keras finds in the place of a class whose module is not imported yet."""

    def __init__(self, name: str) -> None:
        """`name` is a key of CLASSES."""
        self._name = name

    def from_config(self, config: dict[str, Any]) -> Any:
        """The real class' object."""
        real = getattr(importlib.import_module(CLASSES[self._name]), self._name)
        return real.from_config(config)


def register() -> None:
    """Register all stand-ins; what is registered already stays."""
    import keras

    known = keras.saving.get_custom_objects()
    for name in CLASSES:
        known.setdefault(f"kerass2>{name}", StandIn(name))


class _Waiting(importlib.abc.MetaPathFinder):
    """Sees Keras being imported, once.

    Looking for Keras is not importing it: TensorFlow looks first.
    """

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != "keras":
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((each for each in found if each is not None), None)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_register(module: Any) -> None:
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            run(module)
            register()

        spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


def register_with_keras() -> None:
    """Register now or, where Keras is not imported yet, as soon as it is."""
    if "keras" in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _Waiting())
