"""DSen2 and VDSen2 (Lanaras et al. 2018): a plain residual network for the 20 m or the 60 m bands.

The input stage, the residual block and the output stage are those of the attention model too.
"""

from __future__ import annotations

from typing import Any

import keras

from data_pipelines import sentinel2
from kerass2.config import ConfigError
from kerass2.models.layers import ResidualSum, ScaleReflectance, Upsample

# Inputs of each task with their GSD [m]; the last one is sharpened and gives the target its bands.
TASKS: dict[str, dict[str, int]] = {
    "superres_20m": {"gsd10": 10, "gsd20": 20},
    "superres_60m": {"gsd10": 10, "gsd20": 20, "gsd60": 60},
}
BANDS: dict[int, tuple[str, ...]] = {
    10: sentinel2.BANDS_10M,
    20: sentinel2.BANDS_20M,
    60: sentinel2.BANDS_60M,
}


def build(
    *, task: str = "superres_20m", filters: int = 128, blocks: int = 6, dtype: str = "float32"
) -> keras.Model:
    """DSen2.

    Args:
        task: "superres_20m" or "superres_60m".
        filters: width of all convolutions but the last.
        blocks: residual blocks.
        dtype: Keras policy of the convolutions inside the blocks; all else stays float32.

    Returns:
        A model of {"gsd10": (batch, y, x, 4), "gsd20": (batch, y/2, x/2, 6), ...} float32
        reflectance [1] that gives {task: (batch, y, x, band)}.
    """
    return _network("dsen2", task, filters, blocks, dtype)


def build_vdsen2(
    *, task: str = "superres_20m", filters: int = 256, blocks: int = 32, dtype: str = "float32"
) -> keras.Model:
    """VDSen2, the very deep one; as build."""
    return _network("vdsen2", task, filters, blocks, dtype)


def _network(name: str, task: str, filters: int, blocks: int, dtype: str) -> keras.Model:
    """Concatenation, convolution, residual blocks, convolution, plus the enlarged bands."""
    inputs, fine = open_inputs(task)
    x = keras.layers.Concatenate(name="fusion")(fine)
    x = convolution(filters, "conv_first", activation="relu")(x)
    for number in range(1, blocks + 1):
        x = residual_block(x, filters, f"block{number}", dtype)
    return keras.Model(inputs, close_output(x, fine[-1], task), name=name)


def residual_block(x: Any, filters: int, name: str, dtype: str) -> Any:
    """Conv - ReLU - conv, times 0.1, added to the float32 stream."""
    branch = convolution(filters, f"{name}_conv1", activation="relu", dtype=dtype)(x)
    branch = convolution(filters, f"{name}_conv2", dtype=dtype)(branch)
    return ResidualSum(0.1, name=f"{name}_sum")(x, branch)


def convolution(
    filters: int,
    name: str,
    *,
    size: int = 3,
    activation: str | None = None,
    dtype: str = "float32",
) -> keras.layers.Layer:
    """3 x 3 unless another size is given, zero padding, He-uniform."""
    return keras.layers.Conv2D(
        filters,
        size,
        padding="same",
        activation=activation,
        kernel_initializer="he_uniform",
        dtype=dtype,
        name=name,
    )


def open_inputs(task: str, kernel: str = "bilinear") -> tuple[dict[str, Any], list[Any]]:
    """Inputs of a task, and the same scaled and enlarged to 10 m, the bands to sharpen last.

    Args:
        task: a key of TASKS.
        kernel: how to enlarge, see layers.Upsample.

    Raises:
        ConfigError: an unknown task; the message lists those there are.
    """
    if task not in TASKS:
        raise ConfigError(f"unknown task {task!r}; there are: {', '.join(TASKS)}")
    inputs, fine = {}, []
    for key, gsd in TASKS[task].items():
        bands = BANDS[gsd]
        inputs[key] = keras.Input((None, None, len(bands)), name=key, dtype="float32")
        x = ScaleReflectance(key, bands, gsd, name=f"{key}_scaled")(inputs[key])
        fine.append(Upsample(gsd // 10, kernel, name=f"{key}_upsampled")(x) if gsd > 10 else x)
    return inputs, fine


def close_output(x: Any, upsampled: Any, task: str) -> dict[str, Any]:
    """Last convolution in float32, plus the upsampled bands, back in reflectance [1]."""
    bands = BANDS[list(TASKS[task].values())[-1]]
    residual = convolution(len(bands), "conv_last")(x)
    x = keras.layers.Add(name="residual_sum", dtype="float32")([residual, upsampled])
    return {task: ScaleReflectance(task, bands, 10, inverse=True, name=task)(x)}
