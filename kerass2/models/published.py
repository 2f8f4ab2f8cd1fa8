"""DSen2's published weights as files have them; nothing in a file is unpickled.

14 convolutions or more: first, residual blocks of two, last. They come as an .npz (conv00 to
conv13, each `_kernel_OIHW` (output, input, y, x) and `_bias`) or in the HDF5 that Keras 2 wrote
(a group a layer with `kernel:0` (y, x, input, output) and `bias:0`).
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import zipfile
from typing import Any

import numpy as np

from data_pipelines.spec import DataError

RESIDUAL_SCALE = 0.1
HDF5_SIGNATURE, ZIP_SIGNATURE = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"


@dataclasses.dataclass(frozen=True)
class Published:
    """Weights of a file in the order of its convolutions."""

    kernels: list[tuple[np.ndarray, np.ndarray]]
    """(y, x, input, output) and bias of each."""
    residual_scale: float
    """What the branches of blocks are multiplied by."""


def read(path: pathlib.Path) -> Published:
    """The convolutions of an .npz or HDF5 file.

    Raises:
        DataError: no such file, damaged, or of another network; names the file.
    """
    try:
        with path.open("rb") as stream:
            hdf5 = stream.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE
    except FileNotFoundError:
        raise DataError(f"{path}: no such file of weights") from None
    return _read_hdf5(path) if hdf5 else _read_npz(path)


def _read_npz(path: pathlib.Path) -> Published:
    """All convolutions of an .npz file; pickled arrays are refused."""
    try:
        # Opened here: numpy leaves the file open when it is no zip archive.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable .npz file of weights: {error}") from error
    found = sorted(int(m[1]) for key in arrays if (m := re.fullmatch(r"conv(\d+)_bias", key)))
    if not found or found != list(range(len(found))):
        raise DataError(
            f"{path}: {len(found)} convolutions, numbered {found}; conv00_bias, conv01_bias ... "
            "are needed"
        )
    kernels = []
    for number in found:
        try:
            kernel = np.transpose(arrays[f"conv{number:02d}_kernel_OIHW"], (2, 3, 1, 0))
        except (KeyError, ValueError) as error:
            raise DataError(
                f"{path}: conv{number:02d} has no kernel of 4 axes and bias: {error}"
            ) from error
        kernels.append((kernel, arrays[f"conv{number:02d}_bias"]))
    return Published(kernels, float(arrays.get("residual_scale", RESIDUAL_SCALE)))


def _read_hdf5(path: pathlib.Path) -> Published:
    """All convolutions of a model or of weights that Keras 2 saved, in its order of layers.

    It wrote kernels as (y, x, input, output) whatever the model's data format. Only DSen2's plain
    convolutions are taken; a network with other layers is another one.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            group = file.get("model_weights", file)
            layers = [_layer_arrays(group[_text(name)]) for name in group.attrs["layer_names"]]
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise DataError(
            f"{path}: not a readable HDF5 file of Keras 2 with weights: {error}"
        ) from error
    layers = [arrays for arrays in layers if arrays]
    kernels = []
    for number, arrays in enumerate(layers):
        (name, *_), shapes = arrays, [array.shape for array in arrays.values()]
        if not re.match(r"conv2d(_\d+)?/", name) or len(shapes) != 2 or len(shapes[0]) != 4:
            raise DataError(
                f"{path}: layer {number} with weights is {name} {shapes}; DSen2 has convolutions "
                "with bias only"
            )
        kernel, bias = arrays.values()
        kernels.append((kernel, bias))
    if not kernels:
        raise DataError(f"{path}: no layer with weights")
    return Published(kernels, RESIDUAL_SCALE)


def _layer_arrays(group: Any) -> dict[str, np.ndarray]:
    """Name -> array of a layer's weights, in Keras' order: kernel, bias."""
    return {
        name: np.asarray(group[name])
        for name in (_text(value) for value in group.attrs["weight_names"])
    }


def _text(value: Any) -> str:
    """Names are bytes or text, by the version of h5py that wrote them."""
    return value.decode() if isinstance(value, bytes) else str(value)
