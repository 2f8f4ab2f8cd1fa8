"""Starting weights: a saved model of ours, or DSen2's published ones, bands matched by name.

Files of DSen2's weights do not name their bands; the network was trained on them in the order of
ESA's file format, where the 10 m bands are B04, B03, B02, B08.
"""

from __future__ import annotations

import os
import pathlib
import re
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from data_pipelines.sentinel2 import BANDS_20M, BANDS_60M
from data_pipelines.spec import DataError
from kerass2 import models
from kerass2.models import imagenet, labels, published
from kerass2.models.layers import MeanShift, SelfAttention
from kerass2.models.published import HDF5_SIGNATURE, RESIDUAL_SCALE, ZIP_SIGNATURE

# Source: GDAL's 10 m subdataset and up42/s2-superresolution. With B02 and B04 exchanged the 60 m
# network's RMSE of B01 is 215 DN instead of 14.
FILE_BANDS_10M = ("B04", "B03", "B02", "B08")
# Network inputs of a file by task, in its order; the last group is what it sharpens.
FILE_BANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "superres_20m": (FILE_BANDS_10M, BANDS_20M),
    "superres_60m": (FILE_BANDS_10M, BANDS_20M, BANDS_60M),
}
REFLECTANCE_SCALE = 0.2


def initialise(model: keras.Model, path: str | os.PathLike[str]) -> str:
    """Fill a model with the weights of a file; an attention that the file lacks stays as it is.

    With the attention's gamma at 0, as it begins, the model then computes what the file's network
    does, unless it shifts means or differs in the first activation: no bias can make up for a
    shift, since W * (x - mean) differs from W * x by W * mean, another number for each patch.

    Args:
        model: of models.build, any dtype.
        path: a .keras file of this package, or DSen2's published weights, .npz or .hdf5, or for a
            classifier keras.applications' (see imagenet.py). What it is, its content tells, not its
            name.

    Returns:
        One line that says what was loaded, and what differs.

    Raises:
        DataError: no such file, of another kind, or its layers, bands, shapes or scales are not the
            model's; says what both have. The model is then as it was.
    """
    path = pathlib.Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(len(HDF5_SIGNATURE))
    except OSError as error:
        raise DataError(f"{path}: no such file of weights ({error.strerror})") from None
    if start.startswith(ZIP_SIGNATURE) and _is_keras(path):
        return _load_saved(model, path)
    if labels.find(model) is not None:
        return imagenet.load(model, path)
    if start.startswith((HDF5_SIGNATURE, ZIP_SIGNATURE)):
        load_dsen2(model, path)
        return f"DSen2's, {path}{_differences(model, mean_shift=False, activation='relu')}"
    raise DataError(
        f"{path}: weights of an unknown kind; a .keras file, or DSen2's .npz or .hdf5 is needed"
    )


def load_dsen2(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Fill a dsen2 model, or an s2x with its convolutions, with DSen2's published weights.

    Args:
        model: of `models.build("dsen2", task=..., filters=128, blocks=6)`, any dtype.
        path: the .npz or HDF5 file; level (L1C, L2A) and task are in its name only.

    Raises:
        DataError: no such file, or its layers, bands, shapes or scales are not the model's; says
            what both have.
    """
    path = pathlib.Path(path)
    found = published.read(path)
    takes = models.describe(model)
    if "conv_first" not in (layer.name for layer in model.layers):
        raise DataError(
            f"{path}: DSen2's first convolution is over all bands at once; the model "
            f"{model.name!r} has no such layer (conv_first)"
        )
    names = ["conv_first", *_block_convolutions(model), "conv_last"]
    kernels = found.kernels
    if len(kernels) != len(names):
        raise DataError(
            f"{path}: {len(kernels)} convolutions, the model {model.name!r} has {len(names)}"
        )
    _check_scales(path, found.residual_scale, takes)
    inputs = _input_order(path, kernels[0][0].shape[2], takes)
    outputs = _order(path, "output", FILE_BANDS[takes["task"]][-1], takes["target_bands"])
    # All of them before the first is set, so that a file that does not fit leaves the model as it
    # was.
    values = [
        _layer_weights(path, kernel, bias, number, model.get_layer(name))
        for number, (name, (kernel, bias)) in enumerate(zip(names, kernels, strict=True))
    ]
    values[0][0] = values[0][0][:, :, inputs, :]
    values[-1] = [array[..., outputs] for array in values[-1]]
    for name, weights in zip(names, values, strict=True):
        model.get_layer(name).set_weights(weights)


# --- saved models of ours -----------------------------------------------------------------------


def _is_keras(path: pathlib.Path) -> bool:
    """True for a zip file with a model's configuration in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "config.json" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def _load_saved(model: keras.Model, path: pathlib.Path) -> str:
    """Weights by layer name; the bands have to be the model's, the precision need not."""
    source = models.load_model(path)
    there, here = models.describe(source), models.describe(model)
    for key in ("task", "inputs", "target_bands", "reflectance_scale"):
        if there[key] != here[key]:
            raise DataError(f"{path}: its {key} is {there[key]}, the model has {here[key]}")
    given = {layer.name: layer.get_weights() for layer in source.layers if layer.weights}
    wanted = {layer.name: layer for layer in model.layers if layer.weights}
    fresh = [name for name in wanted if name not in given]
    missing = [name for name in fresh if not isinstance(wanted[name], SelfAttention)]
    left = [name for name in given if name not in wanted]
    if missing or left:
        raise DataError(
            f"{path}: model {source.name!r} of {len(given)} layers with weights; the model "
            f"{model.name!r} has {len(wanted)}; "
            + "; ".join(
                f"only {which} has {', '.join(names[:3])}"
                for which, names in (("the file", left), ("the model", missing))
                if names
            )
        )
    for name, weights in given.items():
        found, expected = [w.shape for w in weights], [tuple(w.shape) for w in wanted[name].weights]
        if found != expected:
            raise DataError(f"{path}: layer {name!r} is {found}, that of the model {expected}")
    for name, weights in given.items():
        wanted[name].set_weights(weights)
    told = _differences(
        model,
        mean_shift=any(isinstance(layer, MeanShift) for layer in source.layers),
        activation=_activation(source),
    )
    return f"{there['model']}'s, {path}{told}"


def _differences(model: keras.Model, *, mean_shift: bool, activation: str) -> str:
    """What of a model without weights of its own is not as where its weights come from."""
    shifts = any(isinstance(layer, MeanShift) for layer in model.layers)
    differing = []
    if shifts != mean_shift:
        differing.append(f"mean_shift is {shifts} here, {mean_shift} there")
    if _activation(model) != activation:
        differing.append(f"first activation is {_activation(model)} here, {activation} there")
    if not differing:
        return ""
    return f" (WARNING: {', '.join(differing)}: the first output is not that network's)"


def _activation(model: keras.Model) -> str:
    """Name of the activation after the first convolution; "none" where there is no such layer."""
    found = [layer.activation for layer in model.layers if layer.name == "conv_first"]
    return str(keras.activations.serialize(found[0])) if found else "none"


# --- DSen2's published weights ------------------------------------------------------------------


def _block_convolutions(model: keras.Model) -> list[str]:
    """Names of the convolutions inside the residual blocks, in order."""
    names = [layer.name for layer in model.layers if re.fullmatch(r"block\d+_conv[12]", layer.name)]
    return sorted(names, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])


def _check_scales(path: pathlib.Path, residual: float, takes: Mapping[str, Any]) -> None:
    """The numbers outside the kernels: DN / 2000 before the network, residuals x 0.1 inside."""
    if residual != RESIDUAL_SCALE:
        raise DataError(f"{path}: residual scale {residual}, the model's is {RESIDUAL_SCALE}")
    if takes["reflectance_scale"] != REFLECTANCE_SCALE:
        raise DataError(
            f"{path}: made for reflectance / {REFLECTANCE_SCALE}, the model divides by "
            f"{takes['reflectance_scale']}"
        )


def _layer_weights(
    path: pathlib.Path,
    kernel: np.ndarray,
    bias: np.ndarray,
    number: int,
    layer: keras.layers.Layer,
) -> list[np.ndarray]:
    """Kernel (y, x, input, output) and bias of a convolution of the file, of the layer's shapes."""
    expected = tuple(layer.kernel.shape)
    if kernel.shape != expected or bias.shape != expected[3:]:
        raise DataError(
            f"{path}: conv{number:02d} is {kernel.shape} (y, x, input, output), its bias "
            f"{bias.shape}, layer {layer.name!r} of the model {expected}"
        )
    return [kernel, bias]


def _input_order(path: pathlib.Path, num_inputs: int, takes: Mapping[str, Any]) -> list[int]:
    """Positions in the file of the model's input bands, in the model's order."""
    wanted = [band for bands in takes["inputs"].values() for band in bands]
    tasks = {sum(map(len, groups)): task for task, groups in FILE_BANDS.items()}
    if tasks.get(num_inputs) != takes["task"]:
        raise DataError(
            f"{path}: {num_inputs} input bands (those of {tasks.get(num_inputs, 'no task')}), "
            f"the model for {takes['task']} has {len(wanted)}: {','.join(wanted)}"
        )
    return _order(
        path, "input", [band for group in FILE_BANDS[takes["task"]] for band in group], wanted
    )


def _order(path: pathlib.Path, kind: str, there: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Positions of `wanted` in `there`, which must hold the same bands."""
    if sorted(there) != sorted(wanted):
        raise DataError(f"{path}: {kind} bands {','.join(there)}, the model has {','.join(wanted)}")
    return [list(there).index(band) for band in wanted]
