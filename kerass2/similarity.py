"""SSIM and the universal quality index UIQ in windows, as sums that can be added."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Wang et al. 2004; Wang and Bovik 2002.
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
UIQ_WINDOW = 8
# Of the textbook's SSIM: DN of reflectance 1.
DATA_RANGE = 10_000.0


def window_sums(x: Array, p: Array, good: NDArray[np.bool_], below: int) -> dict[str, Array]:
    """Sums over windows of SSIM and UIQ, (band,), and the number of windows.

    Args:
        x: (patch, y, x, band) DN, the truth.
        p: the prediction, likewise.
        good: (patch, y, x) False for a pixel with which no window counts.
        below: rows at the bottom in which no window begins, see metrics.sums.
    """
    # (patch, band, y, x): both passes of a window are then matrix products.
    x, p = (np.ascontiguousarray(np.moveaxis(array, -1, 1)) for array in (x, p))
    fields = np.stack([x, p, x * x + p * p, x * p])
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    gaussian = np.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    moments = _window_moments(fields, gaussian / gaussian.sum())
    # Windows of UIQ are smaller: fewer of the rows below complete those that begin above.
    rows = x.shape[2] - max(0, below - (UIQ_WINDOW - 1))
    uniform = _window_moments(fields[..., :rows, :], np.full(UIQ_WINDOW, 1 / UIQ_WINDOW))
    whole = _whole_windows(good, SSIM_WINDOW)
    whole_uiq = _whole_windows(good[:, :rows], UIQ_WINDOW)
    values = {
        "ssim": (_similarity(*moments, (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2), whole),
        "ssim_paper": (_similarity(*moments, 0.0, 0.0), whole),
        "uiq": (_similarity(*uniform, 0.0, 0.0), whole_uiq),
    }
    return {
        **{
            name: np.einsum("nbyx,nyx->b", value, used.astype(np.float64))
            for name, (value, used) in values.items()
        },
        "ssim_windows": np.array([float(whole.sum())]),
        "uiq_windows": np.array([float(whole_uiq.sum())]),
    }


def _whole_windows(good: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """(patch, y, x): windows of size x size px without a pixel that does not count."""
    height, width = good.shape[1:]
    if good.all():
        return np.ones((len(good), height - size + 1, width - size + 1), bool)
    taps = np.ones(size)
    counts = _windows(height, taps) @ (good.astype(np.float64) @ _windows(width, taps).T)
    return np.asarray(counts > size**2 - 0.5)


def _window_moments(fields: Array, taps: Array) -> tuple[Array, Array, Array, Array]:
    """Means of x and p, sum of their variances, covariance, in every window inside the patch."""
    height, width = fields.shape[-2:]
    fields = _windows(height, taps) @ (fields @ _windows(width, taps).T)
    mean_x, mean_p, squares, product = fields
    return mean_x, mean_p, squares - mean_x**2 - mean_p**2, product - mean_x * mean_p


def _windows(size: int, taps: Array) -> Array:
    """(size - taps + 1, size): row i weighs the pixels from i on."""
    matrix = np.zeros((size - len(taps) + 1, size))
    for row in range(len(matrix)):
        matrix[row, row : row + len(taps)] = taps
    return matrix


def _similarity(
    mean_x: Array, mean_p: Array, variances: Array, covariance: Array, c1: float, c2: float
) -> Array:
    """Luminance times structure of each window; with c1 = c2 = 0 the universal quality index.

    A term whose denominator is 0 counts as 1, as in Wang's own code: both windows are flat, or both
    are 0.
    """
    squares = mean_x**2 + mean_p**2
    # Flat up to rounding: float64 leaves about 1e-16 of the mean square, one DN in one of 64 pixels
    # 1e-10 and more.
    flat = variances <= 1e-12 * squares
    luminance = _ratio(2 * mean_x * mean_p + c1, squares + c1, squares + c1 == 0)
    structure = _ratio(2 * covariance + c2, variances + c2, flat & (c2 == 0))
    return luminance * structure


def _ratio(above: Array, below: Array, undefined: NDArray[np.bool_]) -> Array:
    """Quotient, 1 where it is undefined."""
    return np.where(undefined, 1.0, above / np.where(undefined, 1.0, below))
