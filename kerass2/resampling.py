"""Bilinear and bicubic interpolation by a whole factor, the same numbers on every Keras backend.

Grids nest: fine pixel `o` has its centre at coarse coordinate (o + 0.5) / scale - 0.5 (half-pixel
centres), and pixels beyond the border repeat the border. That is OpenCV's convention, and TF's
`resize(antialias=False)` for the bilinear kernel. The cubic kernel has a = -0.75, OpenCV's
INTER_CUBIC, with which the super-resolution paper made its "Bicubic" rows; TF's cubic has a = -0.5,
scipy's `zoom(order=3)` is a spline.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

CUBIC_A = -0.75
"""Slope of OpenCV's cubic kernel at distance 1."""


def linear_weights(fraction: float) -> tuple[float, ...]:
    """Weights of the pixels at 0 and 1 for a point at `fraction` between them."""
    return (1.0 - fraction, fraction)


def cubic_weights(fraction: float) -> tuple[float, ...]:
    """Weights of the pixels at -1 to 2 for a point at `fraction` between 0 and 1 (Keys 1981)."""

    def near(d: float) -> float:
        return ((CUBIC_A + 2) * d - (CUBIC_A + 3)) * d * d + 1

    def far(d: float) -> float:
        return CUBIC_A * (((d - 5) * d + 8) * d - 4)

    return (far(1 + fraction), near(fraction), near(1 - fraction), far(2 - fraction))


def bilinear(x: Any, scale: int) -> Any:
    """Enlarge (batch, y, x, band) float32 by a whole factor; equals OpenCV's INTER_LINEAR."""
    return _enlarge(x, scale, linear_weights)


def bicubic(x: Any, scale: int) -> Any:
    """Enlarge (batch, y, x, band) float32 by a whole factor; equals OpenCV's INTER_CUBIC."""
    return _enlarge(x, scale, cubic_weights)


def _enlarge(x: Any, scale: int, weights: Callable[[float], tuple[float, ...]]) -> Any:
    """Both axes, one after the other: the kernels are separable."""
    if not isinstance(scale, int) or scale < 1:
        raise ValueError(f"scale {scale!r}: a whole number of at least 1 is needed")
    x = ops.convert_to_tensor(x)
    if len(x.shape) != 4:
        raise ValueError(f"shape {tuple(x.shape)}: (batch, y, x, band) is needed")
    if keras.backend.is_int_dtype(x.dtype):
        x = ops.cast(x, "float32")
    if scale == 1:
        return x
    return _enlarge_axis(_enlarge_axis(x, 1, scale, weights), 2, scale, weights)


def _enlarge_axis(
    x: Any, axis: int, scale: int, weights: Callable[[float], tuple[float, ...]]
) -> Any:
    """One axis: each of the `scale` phases of the fine grid is a sum of shifted coarse pixels.

    No gather and no resize kernel: slices and sums exist on every backend with sizes known only at
    run time, and the sum runs in the same order everywhere.
    """
    taps = len(weights(0.0))
    margin = taps // 2
    shape = list(ops.shape(x))
    size = shape[axis]
    first, last = _slice(x, axis, 0, 1), _slice(x, axis, size - 1, size)
    padded = ops.concatenate([first] * margin + [x] + [last] * margin, axis=axis)
    phases = []
    for phase in range(scale):
        position = (phase + 0.5) / scale - 0.5
        start = math.floor(position)
        total = None
        for tap, weight in enumerate(weights(position - start)):
            # Tap 0 of the kernel lies margin - 1 pixels before `start`; the padding adds margin.
            offset = start + tap + 1
            part = _slice(padded, axis, offset, size + offset) * weight
            total = part if total is None else total + part
        phases.append(total)
    shape[axis] = size * scale
    return ops.reshape(ops.stack(phases, axis=axis + 1), shape)


def _slice(x: Any, axis: int, start: Any, stop: Any) -> Any:
    """x[..., start:stop, ...] along an axis."""
    return x[(slice(None),) * axis + (slice(start, stop),)]
