"""The baselines without weights: the bands to sharpen, enlarged and nothing else."""

from __future__ import annotations

import keras

from kerass2.models.dsen2 import BANDS, TASKS, open_inputs
from kerass2.models.layers import LastOf, ScaleReflectance


def build_bicubic(*, task: str = "superres_20m") -> keras.Model:
    """OpenCV's bicubic enlargement (a = -0.75), the paper's "Bicubic".

    Args:
        task: "superres_20m" or "superres_60m".

    Returns:
        A model of the same inputs and output as the networks of that task.
    """
    return _interpolation("bicubic", task)


def build_bilinear(*, task: str = "superres_20m") -> keras.Model:
    """OpenCV's bilinear enlargement, what the networks add their details to; as build_bicubic."""
    return _interpolation("bilinear", task)


def _interpolation(kernel: str, task: str) -> keras.Model:
    """All inputs of the task go in, so that the model can stand wherever a network does."""
    inputs, fine = open_inputs(task, kernel)
    bands = BANDS[list(TASKS[task].values())[-1]]
    x = LastOf(name="coarsest")(fine)
    outputs = {task: ScaleReflectance(task, bands, 10, inverse=True, name=task)(x)}
    return keras.Model(inputs, outputs, name=kernel)
