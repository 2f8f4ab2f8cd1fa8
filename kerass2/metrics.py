"""Quality of a prediction as sums over patches, divided once at the end.

Every entry of the sums is a float64 array that only ever needs adding: over batches, over scenes,
and over ranks in one collective call. So no metric is a mean of per-batch values, and the number of
ranks and the size of batches leave no trace. Everything with a unit is in DN (reflectance x 10000).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_pipelines import wald
from kerass2 import similarity
from kerass2.similarity import SSIM_WINDOW

Array = NDArray[np.float64]
Sums = dict[str, Array]

DN = 10_000.0
"""DN of reflectance 1; also the peak of the textbook's PSNR."""
LARGEST_DN = 65_535
# Pixels of the input at the edges of a patch whose degraded prediction would need pixels beyond it.
EDGE = 1

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
    "windows of 8 x 8 px, step 1 (Wang and Bovik 2002); mean over windows and bands",
    "ssim": "Wang et al. 2004: gaussian windows of 11 x 11 px, sigma 1.5, inside the patch, "
    "K1 = 0.01, K2 = 0.03, data range 10000 DN; mean over windows and bands",
    "ssim_paper": "as ssim with K1 = K2 = 0: the paper's values behave like the quality index uiq",
    "psnr": "10 log10(peak^2 / MSE_b), peak 10000 DN (reflectance 1); mean over bands",
    "psnr_paper": "as psnr with peak = largest - smallest target DN of the split, over all bands; "
    "for its scenes too",
    "consistency": "RMSE of the prediction degraded by Wald's protocol (gaussian of sigma 1/s px, "
    "then s x s mean) against the input it was made from, on the input's grid without the "
    "outermost pixels of a patch; mean over bands. Inputs are whole DN: the truth leaves 0.3 DN",
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
    "consistency": "DN",
}


def sums(
    prediction: ArrayLike,
    target: ArrayLike,
    mask: ArrayLike | None,
    scale: int,
    *,
    lowres: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    below: int = 0,
) -> Sums:
    """Sums of one batch.

    Args:
        prediction: (patch, y, x, band) reflectance [1].
        target: the same shape, the truth.
        mask: (patch,) 1 for a patch that counts, 0 for padding, which may hold anything; None: all
            count.
        scale: pixel size that was sharpened over that of the result, 2 or 6.
        lowres: (patch, y / scale, x / scale, band), the input with the bands of the prediction, for
            the consistency; None adds nothing to it.
        valid: (patch, y, x) False for a pixel that does not count, nor any window with it, and
            which may hold anything; None: all count.
        below: rows at the bottom that only complete the windows that begin above them, SSIM_WINDOW
            - 1 of them or none: so that a raster can be scored strip by strip.

    Returns:
        Arrays whose shapes depend on the number of bands alone.

    Raises:
        ValueError: shapes differ, or patches are smaller than the windows of SSIM.
    """
    x, p = np.asarray(target), np.asarray(prediction)
    _check_shapes(x, p, below)
    counted = np.ones(len(x), bool) if mask is None else np.asarray(mask) > 0
    if counted.shape != (len(x),):
        raise ValueError(f"mask {counted.shape} for {len(x)} patches")
    x, p = (DN * array[counted].astype(np.float64) for array in (x, p))
    good = np.ones(x.shape[:3], bool) if valid is None else np.asarray(valid, bool)[counted]
    if valid is not None:
        x, p = (np.where(good[..., None], array, 0.0) for array in (x, p))
    own = slice(0, x.shape[1] - below)
    spectra, predicted = x[:, own][good[:, own]], p[:, own][good[:, own]]  # (pixel, band)
    angles = _spectral_angles(spectra, predicted)
    observed = None if lowres is None else DN * np.asarray(lowres)[counted].astype(np.float64)
    return {
        "patches": np.array([float(len(x))]),
        # A constant, as a sum: the division by the number of patches gives it back.
        "scale": np.array([float(scale * len(x))]),
        "pixels": np.array([float(len(spectra))]),
        "target": spectra.sum(axis=0),
        "squared_error": np.square(predicted - spectra).sum(axis=0),
        "angle": np.array([angles.sum()]),
        "angles": np.array([float(angles.size)]),
        **similarity.window_sums(x, p, good, below),
        **consistency_sums(p, observed, scale),
    }


def zeros(num_bands: int) -> Sums:
    """Sums of no patch: what `sums` gives where nothing counts."""
    nothing = np.zeros((0, SSIM_WINDOW, SSIM_WINDOW, num_bands))
    return sums(nothing, nothing, None, 1)


def consistency_sums(
    prediction: Array, lowres: Array | None, scale: int, valid: NDArray[np.bool_] | None = None
) -> Sums:
    """The part of `sums` that says how well a prediction explains the input it was made from.

    Args:
        prediction: (patch, y, x, band) DN.
        lowres: (patch, y / scale, x / scale, band) DN; None: nothing is compared.
        scale: see `sums`.
        valid: (patch, y / scale, x / scale) False for a pixel of the input that does not count.
    """
    error, pixels = np.zeros(prediction.shape[-1]), 0
    if lowres is not None and len(lowres):
        inside = (slice(None), *2 * (slice(EDGE, -EDGE),))
        good = np.ones(lowres.shape[:3], bool) if valid is None else valid
        degraded = wald.degrade(np.moveaxis(prediction, -1, 1), scale)
        difference = np.moveaxis(degraded, 1, -1) - lowres
        counted = difference[inside][good[inside]]
        error, pixels = np.square(counted.astype(np.float64)).sum(axis=0), len(counted)
    return {"input_error": error, "input_pixels": np.array([float(pixels)])}


def _check_shapes(x: NDArray, p: NDArray, below: int) -> None:
    """Refuse what cannot be compared."""
    if x.shape != p.shape or x.ndim != 4:
        raise ValueError(
            f"prediction {p.shape} and target {x.shape}: two equal (patch, y, x, band) are needed"
        )
    if min(x.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(
            f"patches of {x.shape[1]} x {x.shape[2]} px: SSIM needs {SSIM_WINDOW} x {SSIM_WINDOW}"
        )
    if below not in (0, SSIM_WINDOW - 1):
        raise ValueError(f"{below} rows below: 0 or {SSIM_WINDOW - 1} are needed")


def histogram(target: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """Number of values at each whole DN, (65536,), of (patch, ...) reflectance.

    The data range of a split follows from it exactly, since stored targets are whole DN, and unlike
    a largest value it can be added over batches and ranks.
    """
    x = np.asarray(target)
    x = x if mask is None else x[np.asarray(mask) > 0]
    whole = np.rint(DN * x.astype(np.float64)).clip(0, LARGEST_DN).astype(np.int64)
    return np.bincount(whole.ravel(), minlength=LARGEST_DN + 1).astype(np.float64)


def data_range(counts: Array) -> float:
    """Largest minus smallest DN that occurs in a histogram; NaN where it is empty."""
    present = np.flatnonzero(counts)
    return float(present[-1] - present[0]) if present.size else float("nan")


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


def results(
    values: Mapping[str, Array], bands: Sequence[str], dn_range: float
) -> dict[str, dict[str, float]]:
    """Metrics of all patches that went into the sums.

    Args:
        values: of `sums`, added over batches and ranks.
        bands: names of the bands in the order of the last axis.
        dn_range: of the targets of the split [DN], see data_range.

    Returns:
        {metric: {"mean": value, band: value, ...}} with the keys of DEFINITIONS; SAM and ERGAS join
        the bands and have "mean" only. A perfect prediction has infinite SRE and PSNR, a split of
        zero spectra no angle (NaN), and what was not compared with its input no consistency (NaN).

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
            "uiq": values["uiq"] / values["uiq_windows"],
            "ssim": values["ssim"] / values["ssim_windows"],
            "ssim_paper": values["ssim_paper"] / values["ssim_windows"],
            "psnr": 10 * np.log10(DN**2 / mse),
            "psnr_paper": 10 * np.log10(dn_range**2 / mse),
            "consistency": np.sqrt(values["input_error"] / values["input_pixels"]),
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
    """Angles [rad] of the pixels (pixel, band) whose two spectra are not zero."""
    lengths = np.sqrt(np.einsum("nb,nb->n", x, x) * np.einsum("nb,nb->n", p, p))
    valid = lengths > 0
    cosines = np.einsum("nb,nb->n", x, p)[valid] / lengths[valid]
    angles: Array = np.arccos(np.clip(cosines, -1.0, 1.0))
    return angles
