"""The models by name, and what a saved one tells of itself. Keras is imported when needed."""

from __future__ import annotations

import importlib
import math
import os
import pathlib
from typing import TYPE_CHECKING, Any

from data_pipelines.spec import DataError, DatasetSpec
from kerass2.config import ConfigError

if TYPE_CHECKING:
    import keras

# Name -> module whose `build(**options)` returns the model, or "module:function" for a further one
# of a file. A new model is one file and one line here.
MODELS: dict[str, str] = {
    "dsen2": "kerass2.models.dsen2",
    "vdsen2": "kerass2.models.dsen2:build_vdsen2",
    "s2x": "kerass2.models.attention_sr",
    "s6x": "kerass2.models.attention_sr:build_s6x",
    "bicubic": "kerass2.models.interpolation:build_bicubic",
    "bilinear": "kerass2.models.interpolation:build_bilinear",
    "resnet": "kerass2.models.resnet",
    "wide_resnet": "kerass2.models.wide_resnet",
}


def build(name: str, **options: Any) -> keras.Model:
    """Build a model with fresh weights.

    Args:
        name: a key of MODELS.
        **options: keywords of that model's `build`: task, filters, blocks, dtype, ...

    Raises:
        ConfigError: unknown name or option; the message lists what exists.
    """
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}; there are: {', '.join(sorted(MODELS))}")
    module, _, function = MODELS[name].partition(":")
    build_model = getattr(importlib.import_module(module), function or "build")
    # Keyword-only arguments, so that this list is the whole list of options.
    allowed = build_model.__kwdefaults__
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ConfigError(
            f"model {name!r} has no option {', '.join(unknown)}; there are: {', '.join(allowed)}"
        )
    for key, value in options.items():
        _check_option(name, key, value, allowed[key])
    model: keras.Model = build_model(**options)
    return model


def _check_option(name: str, key: str, value: Any, default: Any) -> None:
    """An option has the type of its default; a count is at least 1, or 0 if that is the default."""
    if type(value) is not type(default):
        raise ConfigError(
            f"model {name!r}: {key} = {value!r} is {type(value).__name__}, "
            f"{type(default).__name__} is needed"
        )
    if type(value) is int and value < (least := min(1, default)):
        raise ConfigError(f"model {name!r}: {key} = {value}, at least {least} is needed")
    policies = ("float32", "mixed_bfloat16", "mixed_float16")
    if key == "dtype" and value not in policies:
        raise ConfigError(f"model {name!r}: dtype {value!r}; there are: {', '.join(policies)}")


def load_model(path: str | os.PathLike[str]) -> keras.Model:
    """Read a .keras file, in Keras' safe mode: it runs no code that the file brings.

    Raises:
        DataError: no such file, no model in it, or one that would run code that is not known; the
            message names the file.
    """
    import keras

    from kerass2.models import archive

    path = pathlib.Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; a saved model (.keras) is needed")
    archive.check_safe(path)
    try:
        model: keras.Model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises whatever its zip, JSON and HDF5 readers do
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{path}: not a readable Keras model: {reason}") from error
    return model


def describe(model: keras.Model) -> dict[str, Any]:
    """What a model takes and gives, from its ScaleReflectance layers; of a classifier see labels.

    Returns:
        {"model": name, "task": task, "inputs": {"gsd10": ("B02", ...), ...}, "target": name of the
        output, "target_bands": ("B05", ...), "gsd": {"gsd10": 10.0, ...}, "scale": fine pixels
        along the side of one coarse pixel of the target bands (2 or 6), "reflectance_scale": 0.2,
        "block": edge [px of the target] of the lattice of layers that act on blocks, None where
        there is no such layer or one that acts on the whole input}.

    Raises:
        DataError: the model has no such layers.
    """
    from kerass2.models import labels
    from kerass2.models.layers import MeanShift, ScaleReflectance, SelfAttention

    if labels.find(model) is not None:
        return labels.describe(model)
    edges = {layer.block for layer in model.layers if isinstance(layer, MeanShift | SelfAttention)}
    layers = [layer for layer in model.layers if isinstance(layer, ScaleReflectance)]
    layers.sort(
        key=lambda layer: layer.gsd
    )  # "gsd10", "gsd20", "gsd60": Keras lists layers by depth
    inputs = {layer.key: layer for layer in layers if not layer.inverse}
    targets = [layer for layer in layers if layer.inverse]
    if not inputs or len(targets) != 1:
        raise DataError(
            f"model {model.name!r} does not tell its bands: {len(inputs)} ScaleReflectance inputs "
            f"and {len(targets)} outputs found, one output is needed"
        )
    target = targets[0]
    source = next((layer for layer in inputs.values() if layer.bands == target.bands), target)
    return {
        "model": model.name,
        "task": target.key,
        "inputs": {key: layer.bands for key, layer in inputs.items()},
        "target": target.key,
        "target_bands": target.bands,
        "gsd": {key: layer.gsd for key, layer in inputs.items()},
        "scale": round(source.gsd / target.gsd),
        "reflectance_scale": target.scale,
        "block": _common_block(edges),
    }


def _common_block(edges: set[int | None]) -> int | None:
    """The lattice that all blocks lie on; None where there are none, or one is the whole input."""
    known = [edge for edge in edges if edge is not None]
    return math.lcm(*known) if known and len(known) == len(edges) else None


def name_classes(model: keras.Model, spec: DatasetSpec) -> None:
    """Give a new classifier the names of a data set's classes; others stay as they are."""
    from kerass2.models import labels

    labels.name_classes(model, spec)


def check_fits(model: keras.Model, spec: DatasetSpec, where: str) -> None:
    """Refuse data of another task or with other bands than a model's.

    Args:
        model: a model of this package.
        spec: what the data set holds; inputs that the model does not use may be there too.
        where: names the data set in the message.

    Raises:
        DataError: task, inputs, bands or sizes differ; the message shows both sides.
    """
    from kerass2.models import labels

    takes = describe(model)
    problems = []
    labelling = labels.find(model) is not None
    if spec.task != takes["task"]:
        problems.append(f"its task is {spec.task}")
    wanted = dict(takes["inputs"])
    if not labelling:
        wanted[takes["target"]] = takes["target_bands"]
    found = {**spec.inputs, **spec.targets}
    for key, bands in wanted.items():
        if key not in found:
            problems.append(f"it has no {key}")
        elif tuple(found[key].bands) != tuple(bands):
            problems.append(f"its {key} has {','.join(found[key].bands)}")
    if not problems:
        problems += labels.find_problems(model, spec) if labelling else _wrong_sizes(takes, spec)
    if problems:
        arrays = "; ".join(f"{key} {','.join(bands)}" for key, bands in wanted.items())
        raise DataError(
            f"{where} does not fit model {takes['model']}: {'; '.join(problems)}. "
            f"The model needs {takes['task']}: {arrays}. The data hold {spec.describe()}"
        )


def _wrong_sizes(takes: dict[str, Any], spec: DatasetSpec) -> list[str]:
    """Inputs whose pixels are not as many times fewer than the target's as their GSD is coarser."""
    height, width = spec.targets[takes["target"]].shape[:2]
    # The target's; a model need not take an input as fine as that.
    fine = takes["gsd"][next(reversed(takes["gsd"]))] / takes["scale"]
    problems = []
    for key, gsd in takes["gsd"].items():
        ratio = round(gsd / fine)
        found = spec.inputs[key].shape[:2]
        if (found[0] * ratio, found[1] * ratio) != (height, width):
            problems.append(
                f"its {key} of {found[0]} x {found[1]} px times {ratio} is not its target's "
                f"{height} x {width}"
            )
    return problems
