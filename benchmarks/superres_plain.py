"""The plain way that `python -m benchmarks superres` compares with: Keras and rasterio, no more.

The 20 m bands of a product in windows of 128 px with a border, as DSen2's own scripts do: bands
read as wholes, all patches in memory, `model.predict`, and one array written as a COG. And S2x as
one writes it in Keras, whose attention is over all pixels of a window at once.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.sentinel2 import BANDS_10M, BANDS_20M, QUANTIFICATION

if TYPE_CHECKING:
    import keras

WINDOW = 128


def sharpen(
    model: keras.Model, product: pathlib.Path, output: pathlib.Path, border: int, batch: int
) -> NDArray[np.uint16]:
    """Sharpen a product (L1C before baseline 04.00: no offset); returns DN (band, y, x).

    Args:
        model: takes {"gsd10", "gsd20"} reflectance, gives one output.
        product: the .SAFE folder.
        output: COG to write.
        border: pixels of a window that are not kept [px of 10 m], even.
        batch: windows at once in model.predict.
    """
    fine, profile = _read(product, BANDS_10M)
    coarse, _ = _read(product, BANDS_20M)
    core, size = WINDOW - 2 * border, fine.shape[1]
    starts = [*range(0, size - core, core), size - core]
    patches = {
        "gsd10": _cut(fine, starts, border, WINDOW),
        "gsd20": _cut(coarse, [start // 2 for start in starts], border // 2, WINDOW // 2),
    }
    made = model.predict(patches, batch_size=batch, verbose=0)
    made = next(iter(made.values())) if isinstance(made, dict) else made
    image = np.empty((len(BANDS_20M), size, size), np.uint16)
    inside = slice(border, border + core)
    for number, patch in enumerate(made):
        y, x = (starts[n] for n in divmod(number, len(starts)))
        dn = np.clip(np.rint(patch[inside, inside] * QUANTIFICATION), 1, 65534)
        image[:, y : y + core, x : x + core] = dn.astype(np.uint16).transpose(2, 0, 1)
    _write(image, profile, output)
    return image


def _read(product: pathlib.Path, bands: Sequence[str]) -> tuple[NDArray[np.uint16], dict[str, Any]]:
    """(band, y, x) DN of a product's images, and what rasterio says of the first."""
    import rasterio

    images, profiles = [], []
    for band in bands:
        with rasterio.open(next(product.glob(f"GRANULE/*/IMG_DATA/*_{band}.jp2"))) as file:
            images.append(file.read(1))
            profiles.append(file.profile)
    return np.stack(images), profiles[0]


def _cut(
    cube: NDArray[np.uint16], starts: Sequence[int], border: int, window: int
) -> NDArray[np.float32]:
    """(patch, y, x, band) reflectance of windows on a mirrored image."""
    padded = np.pad(cube, ((0, 0), (border, border), (border, border)), mode="symmetric")
    image = padded.transpose(1, 2, 0).astype(np.float32) / QUANTIFICATION
    return np.stack([image[y : y + window, x : x + window] for y in starts for x in starts])


def _write(image: NDArray[np.uint16], profile: dict[str, Any], output: pathlib.Path) -> None:
    """A COG of an array, by rasterio and GDAL's defaults but for what ours has too."""
    import rasterio

    options = {"compress": "deflate", "predictor": "yes", "overview_resampling": "average"}
    kept = {key: profile[key] for key in ("crs", "transform", "width", "height", "dtype")}
    with rasterio.open(output, "w", driver="COG", count=len(image), **kept, **options) as file:
        file.write(image)


def build_s2x(filters: int, blocks: int, dtype: str, patch: int) -> keras.Model:
    """S2x in plain Keras for patches of one size, all of it under one policy but the output.

    Args:
        filters: width.
        blocks: residual blocks; attention after half of them.
        dtype: Keras policy.
        patch: edge of a patch [px of 10 m].
    """
    import keras
    from keras import layers

    def convolution(channels: int, **options: Any) -> Any:
        return layers.Conv2D(channels, 3, padding="same", dtype=dtype, **options)

    inputs = {
        "gsd10": keras.Input((patch, patch, len(BANDS_10M)), name="gsd10"),
        "gsd20": keras.Input((patch // 2, patch // 2, len(BANDS_20M)), name="gsd20"),
    }
    fine, coarse = (layers.Rescaling(5.0)(inputs[name]) for name in ("gsd10", "gsd20"))
    enlarged = layers.UpSampling2D(2, interpolation="bilinear")(coarse)
    x = layers.Concatenate()([fine, enlarged])
    means = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = convolution(filters)(layers.Subtract()([x, means]))
    for number in range(1, blocks + 1):
        branch = convolution(filters)(convolution(filters, activation="relu")(x))
        branch = layers.Rescaling(0.1, dtype=dtype)(branch)
        x = layers.Add(dtype=dtype)([x, branch])
        if number == (blocks + 1) // 2:
            x = _attend(x, filters, dtype, patch)
    x = layers.Conv2D(len(BANDS_20M), 3, padding="same", dtype="float32")(x)
    x = layers.Add()([x, enlarged])
    return keras.Model(inputs, {"superres_20m": layers.Rescaling(0.2)(x)})


def _attend(x: Any, filters: int, dtype: str, patch: int) -> Any:
    """Add gamma * softmax(g f^T) h to x; gamma is a depthwise convolution: one for a filter."""
    from keras import layers

    pixels = layers.Reshape((patch * patch, filters), dtype=dtype)(x)
    f, g, h = (layers.Dense(n, dtype=dtype)(pixels) for n in (16, 16, filters))
    scores = layers.Dot(axes=2, dtype=dtype)([g, f])
    shares = layers.Softmax(dtype=dtype)(scores)
    found = layers.Reshape((patch, patch, filters), dtype=dtype)(
        layers.Dot(axes=(2, 1), dtype=dtype)([shares, h])
    )
    gamma = layers.DepthwiseConv2D(1, use_bias=False, depthwise_initializer="zeros", dtype=dtype)
    return layers.Add(dtype=dtype)([x, gamma(found)])
