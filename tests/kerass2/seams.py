"""How much an image differs across given lines, compared with other places of the same image."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

# What every difference has at least [DN], so that flat ground has a ratio too.
FLOOR = 2.0


@dataclasses.dataclass(frozen=True)
class Seams:
    """Excess of the differences across lines over those between the lines beside them."""

    excess: float
    """Mean, relative: 0.1 means 10 % larger across the lines."""
    error: float
    """Standard error of the mean."""

    @property
    def show(self) -> bool:
        """Whether the lines show: an excess of more than three standard errors."""
        return self.excess > 3 * self.error


def measure(
    prediction: NDArray[np.floating],
    interpolation: NDArray[np.floating],
    *,
    unit: int,
    edge: int,
) -> Seams:
    """Compare |difference| across lines with that nearby, piece by piece.

    A sample is a piece of a line, `edge` px long: the mean |difference| across it over that of the
    interpolated input at the same place, against the same beside it. Only lines between pixels of
    the coarsest input are compared with each other: within a pixel differences are smaller.

    Args:
        prediction: (y, x, band) DN.
        interpolation: the input, interpolated, which has no lines; likewise.
        unit: pixels of the target along the side of a pixel of the coarsest input.
        edge: distance between the lines [px], the first at 0; a multiple of `unit`.
    """
    images = prediction, interpolation
    pairs = [images, [image.swapaxes(0, 1) for image in images]]
    samples = np.concatenate([_samples(*pair, unit, edge) for pair in pairs])
    return Seams(float(samples.mean()), float(samples.std(ddof=1) / np.sqrt(len(samples))))


def _samples(
    prediction: NDArray[np.floating], interpolation: NDArray[np.floating], unit: int, edge: int
) -> NDArray[np.floating]:
    """log(ratio on a line) - mean log(ratio beside it), of each piece; lines are along axis 1."""
    ratios = np.log(_sums(prediction, unit, edge) / _sums(interpolation, unit, edge)).mean(axis=-1)
    step = edge // unit
    beside = [k for k in range(-(step // 2), step // 2 + 1) if 4 * abs(k) >= step]
    lines = np.arange(step, len(ratios) - step // 2, step)
    near = np.mean([ratios[lines + k] for k in beside], axis=0)
    return (ratios[lines] - near).ravel()


def _sums(image: NDArray[np.floating], unit: int, edge: int) -> NDArray[np.floating]:
    """(line, piece, band): sum of |difference| across lines at multiples of `unit`, floor added."""
    pixels = image.shape[1] // edge * edge
    lines = np.arange(unit, len(image), unit)
    # The first line would be the image's own edge.
    across = np.abs(image[lines].astype(np.float64) - image[lines - 1])[:, :pixels]
    pieces = across.reshape(len(lines), -1, edge, image.shape[2]).sum(axis=2) + FLOOR * edge
    return np.concatenate([np.ones_like(pieces[:1]), pieces])
