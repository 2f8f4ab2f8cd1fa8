"""Published DSen2 weights into our dsen2 models, bands matched by name.

Such a file (.npz) has conv00 to conv13, each `_kernel_OIHW` (output, input, y, x) and `_bias`:
first convolution, six residual blocks of two, last convolution. It does not name its bands; the
network was trained on them in the order of ESA's file format, where the 10 m bands are B04, B03,
B02, B08.
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

# Source: GDAL's 10 m subdataset and up42/s2-superresolution. With B02 and B04 exchanged the 60 m
# network's RMSE of B01 is 215 DN instead of 14.
FILE_BANDS_10M = ("B04", "B03", "B02", "B08")
# Network inputs of a file by task, in its order; the last group is what it sharpens.
FILE_BANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "superres_20m": (FILE_BANDS_10M, BANDS_20M),
    "superres_60m": (FILE_BANDS_10M, BANDS_20M, BANDS_60M),
}
REFLECTANCE_SCALE, RESIDUAL_SCALE = 0.2, 0.1


def load_dsen2(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Fill a dsen2 model with the weights of a file.

    Args:
        model: of `models.build("dsen2", task=..., filters=128, blocks=6)`, any dtype.
        path: the .npz file; level (L1C, L2A) and task are in its name only.

    Raises:
        DataError: no such file, or its layers, bands, shapes or scales are not the model's; says
            what both have.
    """
    path = pathlib.Path(path)
    arrays = _read(path)
    takes = models.describe(model)
    names = ["conv_first", *_block_convolutions(model), "conv_last"]
    numbers = sorted(
        int(match[1]) for key in arrays if (match := re.fullmatch(r"conv(\d+)_bias", key))
    )
    if numbers != list(range(len(names))):
        raise DataError(
            f"{path}: {len(numbers)} convolutions, the model {model.name!r} has {len(names)}"
        )
    _check_scales(path, arrays, takes)
    inputs = _input_order(path, arrays, takes)
    outputs = _order(path, "output", FILE_BANDS[takes["task"]][-1], takes["target_bands"])
    # All of them before the first is set, so that a file that does not fit leaves the model as it
    # was.
    values = [
        _layer_weights(path, arrays, number, model.get_layer(name))
        for number, name in enumerate(names)
    ]
    values[0][0] = values[0][0][:, :, inputs, :]
    values[-1] = [array[..., outputs] for array in values[-1]]
    for name, weights in zip(names, values, strict=True):
        model.get_layer(name).set_weights(weights)


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file; pickled ones are refused."""
    try:
        # Opened here: numpy leaves the file open when it is no zip archive.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file of weights") from None
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable .npz file of weights: {error}") from error


def _block_convolutions(model: keras.Model) -> list[str]:
    """Names of the convolutions inside the residual blocks, in order."""
    names = [layer.name for layer in model.layers if re.fullmatch(r"block\d+_conv[12]", layer.name)]
    return sorted(names, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])


def _check_scales(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], takes: Mapping[str, Any]
) -> None:
    """The numbers outside the kernels: DN / 2000 before the network, residuals x 0.1 inside."""
    residual = float(arrays.get("residual_scale", RESIDUAL_SCALE))
    if residual != RESIDUAL_SCALE:
        raise DataError(f"{path}: residual scale {residual}, the model's is {RESIDUAL_SCALE}")
    if takes["reflectance_scale"] != REFLECTANCE_SCALE:
        raise DataError(
            f"{path}: made for reflectance / {REFLECTANCE_SCALE}, the model divides by "
            f"{takes['reflectance_scale']}"
        )


def _layer_weights(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], number: int, layer: keras.layers.Layer
) -> list[np.ndarray]:
    """Kernel (y, x, input, output) and bias of a convolution of the file, of the layer's shapes."""
    try:
        kernel = np.transpose(arrays[f"conv{number:02d}_kernel_OIHW"], (2, 3, 1, 0))
        bias = arrays[f"conv{number:02d}_bias"]
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{path}: conv{number:02d} has no kernel of 4 axes and bias: {error}"
        ) from error
    expected = tuple(layer.kernel.shape)
    if kernel.shape != expected or bias.shape != expected[3:]:
        raise DataError(
            f"{path}: conv{number:02d} is {kernel.shape} (y, x, input, output), its bias "
            f"{bias.shape}, layer {layer.name!r} of the model {expected}"
        )
    return [kernel, bias]


def _input_order(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], takes: Mapping[str, Any]
) -> list[int]:
    """Positions in the file of the model's input bands, in the model's order."""
    num_inputs = np.shape(arrays.get("conv00_kernel_OIHW", np.zeros((0, 0))))[1]
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
