"""Quality of a prediction as sums over patches, divided once at the end.

Every entry of the sums is a float64 array that only ever needs adding: over batches, and over ranks
in one collective call. So no metric is a mean of per-batch values, and the number of ranks and the
size of batches leave no trace. Everything with a unit is in DN (reflectance x 10000).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Sums = dict[str, Array]

DN = 10_000.0
"""DN of reflectance 1; also the peak of the textbook's PSNR and the data range of its SSIM."""
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
UIQ_WINDOW = 8
LARGEST_DN = 65_535

# Metric -> its definition. x is the target, p the prediction, b a band, h/l the ratio of the pixel
# sizes (1/2, 1/6). "_paper" is what the super-resolution paper (Zhang et al. 2020) printed under
# the plain name, as far as its bicubic rows tell.
DEFINITIONS: dict[str, str] = {
    "rmse": "sqrt(MSE_b), MSE_b over all pixels of the split; mean over bands",
    "sre": "10 log10(mean(x_b)^2 / MSE_b), both over the split; mean over bands",
    "sam": "angle between the spectra x and p of a pixel; mean over pixels with spectra",
    "ergas": "100 h/l sqrt(mean over bands of MSE_b / mean(x_b)^2) (Wald 2000), h/l = 1/2 at 20 m "
    "and 1/6 at 60 m",
    "ergas_paper": "as ergas with h/l = 1/2 for 60 m too",
    "uiq": "4 cov(x,p) mean(x) mean(p) / ((var(x) + var(p)) (mean(x)^2 + mean(p)^2)) in uniform "
    "windows of 8 x 8 px, step 1 (Wang and Bovik 2002); mean over windows, patches and bands",
    "ssim": "Wang et al. 2004: gaussian windows of 11 x 11 px, sigma 1.5, inside the patch, "
    "K1 = 0.01, K2 = 0.03, data range 10000 DN; mean over windows, patches and bands",
    "ssim_paper": "as ssim with K1 = K2 = 0: the paper's values behave like the quality index uiq",
    "psnr": "10 log10(peak^2 / MSE_b), peak 10000 DN (reflectance 1); mean over bands",
    "psnr_paper": "as psnr with peak = largest - smallest target DN of the split, over all bands",
}
UNITS: dict[str, str] = {
    "rmse": "DN",
    "sre": "dB",
    "sam": "deg",
    "ergas": "1",
    "ergas_paper": "1",
    "uiq": "1",
    "ssim": "1",
    "ssim_paper": "1",
    "psnr": "dB",
    "psnr_paper": "dB",
}


def sums(prediction: ArrayLike, target: ArrayLike, mask: ArrayLike | None, scale: int) -> Sums:
    """Sums of one batch.

    Args:
        prediction: (patch, y, x, band) reflectance [1].
        target: the same shape, the truth.
        mask: (patch,) 1 for a patch that counts, 0 for padding, which may hold anything; None: all
            count.
        scale: pixel size that was sharpened over that of the result, 2 or 6.

    Returns:
        Arrays whose shapes depend on the number of bands alone.

    Raises:
        ValueError: shapes differ, or patches are smaller than the windows of SSIM.
    """
    x, p = np.asarray(target), np.asarray(prediction)
    if x.shape != p.shape or x.ndim != 4:
        raise ValueError(
            f"prediction {p.shape} and target {x.shape}: two equal (patch, y, x, band) are needed"
        )
    if min(x.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(
            f"patches of {x.shape[1]} x {x.shape[2]} px: SSIM needs {SSIM_WINDOW} x {SSIM_WINDOW}"
        )
    counted = np.ones(len(x), bool) if mask is None else np.asarray(mask) > 0
    if counted.shape != (len(x),):
        raise ValueError(f"mask {counted.shape} for {len(x)} patches")
    x, p = (DN * array[counted].astype(np.float64) for array in (x, p))
    angles = _spectral_angles(x, p)
    return {
        "patches": np.array([float(len(x))]),
        # A constant, as a sum: the division by the number of patches gives it back.
        "scale": np.array([float(scale * len(x))]),
        "pixels": np.array([float(np.prod(x.shape[:3]))]),
        "target": x.sum(axis=(0, 1, 2)),
        "squared_error": np.square(p - x).sum(axis=(0, 1, 2)),
        "angle": np.array([angles.sum()]),
        "angles": np.array([float(angles.size)]),
        # Pixels by whole DN. The data range of a split follows from it exactly, since stored
        # targets are whole DN, and unlike a largest value it can be added.
        "histogram": _histogram(x),
        **_window_sums(x, p),
    }


def add(a: Mapping[str, Array], b: Mapping[str, Array]) -> Sums:
    """Sums of two disjoint sets of patches."""
    if a.keys() != b.keys():
        raise ValueError(f"sums of different metrics: {sorted(a)} and {sorted(b)}")
    return {name: a[name] + b[name] for name in a}


def pack(values: Mapping[str, Array]) -> Array:
    """Sums as one vector, for Strategy.sum."""
    return np.concatenate([np.ravel(values[name]) for name in sorted(values)])


def unpack(vector: Array, like: Mapping[str, Array]) -> Sums:
    """The inverse of pack; `like` gives names and shapes."""
    names = sorted(like)
    parts = np.split(vector, np.cumsum([like[name].size for name in names])[:-1])
    return {name: part.reshape(like[name].shape) for name, part in zip(names, parts, strict=True)}


def results(values: Mapping[str, Array], bands: Sequence[str]) -> dict[str, dict[str, float]]:
    """Metrics of all patches that went into the sums.

    Args:
        values: of `sums`, added over batches and ranks.
        bands: names of the bands in the order of the last axis.

    Returns:
        {metric: {"mean": value, band: value, ...}} with the keys of DEFINITIONS; SAM and ERGAS join
        the bands and have "mean" only. A perfect prediction has infinite SRE and PSNR, a split of
        zero spectra no angle (NaN).

    Raises:
        ValueError: no patch, or another number of bands.
    """
    patches, pixels = values["patches"][0], values["pixels"][0]
    if not patches > 0:
        raise ValueError("no patches to score")
    if len(bands) != len(values["target"]):
        raise ValueError(
            f"{len(bands)} band names {tuple(bands)} for sums of {len(values['target'])} bands"
        )
    scale = values["scale"][0] / patches
    with np.errstate(divide="ignore", invalid="ignore"):
        mse = values["squared_error"] / pixels
        mean = values["target"] / pixels
        relative = np.sqrt(np.mean(mse / mean**2))
        per_band = {
            "rmse": np.sqrt(mse),
            "sre": 10 * np.log10(mean**2 / mse),
            "uiq": values["uiq"] / patches,
            "ssim": values["ssim"] / patches,
            "ssim_paper": values["ssim_paper"] / patches,
            "psnr": 10 * np.log10(DN**2 / mse),
            "psnr_paper": 10 * np.log10(_data_range(values["histogram"]) ** 2 / mse),
        }
        joint = {
            "sam": np.degrees(values["angle"][0] / values["angles"][0]),
            "ergas": 100 / scale * relative,
            "ergas_paper": 100 / 2 * relative,
        }
    found = {name: {"mean": float(value)} for name, value in joint.items()}
    for name, value in per_band.items():
        found[name] = {
            "mean": float(np.mean(value)),
            **dict(zip(bands, value.tolist(), strict=True)),
        }
    return {name: found[name] for name in DEFINITIONS}


def _spectral_angles(x: Array, p: Array) -> Array:
    """Angles [rad] of the pixels whose two spectra are not zero."""
    lengths = np.sqrt(np.einsum("nyxb,nyxb->nyx", x, x) * np.einsum("nyxb,nyxb->nyx", p, p))
    valid = lengths > 0
    cosines = np.einsum("nyxb,nyxb->nyx", x, p)[valid] / lengths[valid]
    angles: Array = np.arccos(np.clip(cosines, -1.0, 1.0))
    return angles


def _histogram(x: Array) -> Array:
    """Number of values at each whole DN, (65536,)."""
    whole = np.rint(x).clip(0, LARGEST_DN).astype(np.int64)
    return np.bincount(whole.ravel(), minlength=LARGEST_DN + 1).astype(np.float64)


def _data_range(histogram: Array) -> float:
    """Largest minus smallest DN that occurs."""
    present = np.flatnonzero(histogram)
    return float(present[-1] - present[0])


def _window_sums(x: Array, p: Array) -> Sums:
    """Sums over patches of each patch's mean SSIM and UIQ, (band,)."""
    # (patch, band, y, x): both passes of a window are then matrix products.
    x, p = (np.ascontiguousarray(np.moveaxis(array, -1, 1)) for array in (x, p))
    fields = np.stack([x, p, x * x + p * p, x * p])
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    gaussian = np.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    moments = _window_moments(fields, gaussian / gaussian.sum())
    uniform = _window_moments(fields, np.full(UIQ_WINDOW, 1 / UIQ_WINDOW))
    return {
        "ssim": _similarity(*moments, (0.01 * DN) ** 2, (0.03 * DN) ** 2)
        .mean(axis=(2, 3))
        .sum(axis=0),
        "ssim_paper": _similarity(*moments, 0.0, 0.0).mean(axis=(2, 3)).sum(axis=0),
        "uiq": _similarity(*uniform, 0.0, 0.0).mean(axis=(2, 3)).sum(axis=0),
    }


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
