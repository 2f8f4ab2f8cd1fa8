"""A classifier's starting weights from keras.applications' files, trained on ImageNet.

Such a file is for three channels in the order blue, green, red, in numbers from 0 to 255 less their
mean. Here bands come as red, green, blue with standard deviation 1: kernels of the first
convolution are reordered, and multiplied by the deviation of ImageNet's pixels. For 12 bands they
are inflated: each further band gets the mean of the three, and all are multiplied by 3 / 12, so
that the sum over the bands, which are alike, stays as it was. Convolutions have a bias there and
none here: the moving mean of the normalisation behind it is the smaller for it.
"""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np

from data_pipelines.spec import DataError
from kerass2.models import labels

# Standard deviation of ImageNet's red, green and blue, in numbers from 0 to 255. Source: PyTorch's
# training of ResNets (0.229, 0.224, 0.225 of 1).
DEVIATION = 255 * np.array([0.229, 0.224, 0.225])
FIRST, LAST = "conv1_conv", "predictions"


def load(model: keras.Model, path: pathlib.Path) -> str:
    """Fill a ResNet of 50 or 101 layers, but for its last layer.

    Args:
        model: of models.build("resnet", ...), any bands and dtype.
        path: the HDF5 file, with or without ImageNet's own last layer.

    Returns:
        One line that says what was loaded.

    Raises:
        DataError: the file is of another network, or damaged. The model is then as it was.
    """
    networks: dict[str, Any] = {
        "resnet50": keras.applications.ResNet50,
        "resnet101": keras.applications.ResNet101,
    }
    if model.name not in networks:
        raise DataError(
            f"{path}: weights of keras.applications; model {model.name!r} is none of "
            f"{', '.join(networks)}"
        )
    source = _read(networks[model.name], path)
    given = _without_biases(source)
    given.pop(LAST, None)
    chosen = labels.describe(model)["chosen"]
    given[FIRST][0] = inflate(given[FIRST][0], chosen)
    for name, weights in given.items():
        there = [w.shape for w in weights]
        here = [tuple(w.shape) for w in model.get_layer(name).weights]
        if there != here:
            raise DataError(f"{path}: layer {name!r} is {there}, that of the model {here}")
    for name, weights in given.items():
        model.get_layer(name).set_weights(weights)
    return f"ImageNet's, {path}, first convolution for {len(chosen)} bands, last layer new"


def _without_biases(source: keras.Model) -> dict[str, list[np.ndarray]]:
    """Weights by layer, biases of convolutions taken off the moving means behind them."""
    given = {layer.name: layer.get_weights() for layer in source.layers if layer.weights}
    for name in [name for name in given if name.endswith("_conv")]:
        kernel, bias = given[name]
        given[name] = [kernel]
        gamma, beta, mean, variance = given[f"{name.removesuffix('_conv')}_bn"]
        given[f"{name.removesuffix('_conv')}_bn"] = [gamma, beta, mean - bias, variance]
    return given


def inflate(kernel: np.ndarray, bands: tuple[str, ...]) -> np.ndarray:
    """The first convolution (y, x, blue green red, filter) for standardised bands; see above."""
    colours = dict(zip(labels.RGB, np.moveaxis(kernel[:, :, ::-1], 2, 0), strict=True))
    scaled = {band: colours[band] * DEVIATION[i] for i, band in enumerate(labels.RGB)}
    mean = np.mean(list(scaled.values()), axis=0)
    inflated = np.stack([scaled.get(band, mean) for band in bands], axis=2)
    return np.asarray(inflated * 3 / len(bands), np.float32)


def _read(network: Any, path: pathlib.Path) -> keras.Model:
    """keras.applications' own network with the file's weights: it knows its formats."""
    problems = []
    for top in (False, True):
        shape = None if top else (None, None, 3)
        try:
            source: keras.Model = network(
                include_top=top, weights=str(path), input_shape=shape, name="source"
            )
            return source
        except Exception as error:  # Keras raises whatever its readers of HDF5 do
            text = str(error).strip().splitlines()
            problems.append(text[0] if text else type(error).__name__)
    raise DataError(f"{path}: not keras.applications' weights of this network: {problems[0]}")
