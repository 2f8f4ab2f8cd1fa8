"""Facts of Sentinel-2's MultiSpectral Instrument, and what the numbers in its files mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_pipelines.spec import DataError

# Reflectance 1 is this many digital numbers (QUANTIFICATION_VALUE in every product so far).
QUANTIFICATION = 10_000
# Digital number of a pixel outside the swath, and of one brighter than the instrument can tell.
NO_DATA = 0
SATURATED = 65_535
LARGEST_DN = 65_535
# Scene classification (SCL) of L2A: 8 and 9 are cloud of medium and high probability, 10 is cirrus.
# Shadow (3) is no cloud: a pixel there is dark, but it shows the ground.
# Source: ESA, Sentinel-2 L2A algorithm overview, "Scene classification".
SCL_CLOUD = (8, 9, 10)


@dataclasses.dataclass(frozen=True)
class Band:
    """One spectral band."""

    name: str
    """As in file names: "B02", "B8A"."""
    gsd: int
    """Ground sampling distance: 10, 20 or 60 [m]."""
    wavelength: float
    """Central wavelength of Sentinel-2A [nm]."""
    wavelength_s2b: float
    """Central wavelength of Sentinel-2B [nm]."""
    native_order: int
    """Position in the product: band_id of the XML, 0 (B01) to 12 (B12); B8A stands behind B08."""


# Source: ESA, Sentinel-2 MSI user guide, "Spectral bands" (central wavelengths of S2A and S2B);
# band_id as in Spectral_Information of MTD_MSIL1C.xml.
BANDS: dict[str, Band] = {
    band.name: band
    for band in (
        Band("B01", 60, 442.7, 442.2, 0),
        Band("B02", 10, 492.4, 492.1, 1),
        Band("B03", 10, 559.8, 559.0, 2),
        Band("B04", 10, 664.6, 664.9, 3),
        Band("B05", 20, 704.1, 703.8, 4),
        Band("B06", 20, 740.5, 739.1, 5),
        Band("B07", 20, 782.8, 779.7, 6),
        Band("B08", 10, 832.8, 832.9, 7),
        Band("B8A", 20, 864.7, 864.0, 8),
        Band("B09", 60, 945.1, 943.2, 9),
        Band("B10", 60, 1373.5, 1376.9, 10),
        Band("B11", 20, 1613.7, 1610.4, 11),
        Band("B12", 20, 2202.4, 2185.7, 12),
    )
}

# Storage order of the super-resolution cubes. B10 sees cirrus and no ground, and L2A has none: left
# out.
BANDS_10M = ("B02", "B03", "B04", "B08")
BANDS_20M = ("B05", "B06", "B07", "B8A", "B11", "B12")
BANDS_60M = ("B01", "B09")
# GSD of each cube of a granule, finest first [m].
GSDS = {"gsd10": 10, "gsd20": 20, "gsd60": 60}


def bands_at(gsd: int) -> tuple[str, ...]:
    """Names of the super-resolution bands at 10, 20 or 60 m in storage order.

    Raises:
        ValueError: Sentinel-2 has no such GSD.
    """
    table = {10: BANDS_10M, 20: BANDS_20M, 60: BANDS_60M}
    if gsd not in table:
        raise ValueError(f"gsd {gsd}: Sentinel-2 has {', '.join(map(str, table))} m")
    return table[gsd]


def order_bands(level: str, bands: Iterable[str]) -> dict[int, tuple[str, ...]]:
    """Bands by GSD, finest first, each group in native order: {10: ("B02", ...), 20: ..., 60: ...}.

    Args:
        level: "L1C" or "L2A".
        bands: names; twice the same counts once.

    Raises:
        DataError: a band that products of this level do not have; L2A has no B10.
    """
    wanted = set(bands)
    known = [band for band in BANDS if (level, band) != ("L2A", "B10")]
    unknown = sorted(wanted.difference(known))
    if unknown:
        why = "; the atmospheric correction leaves the cirrus band out" if "B10" in unknown else ""
        raise DataError(f"{level} has no band {', '.join(unknown)}; it has {', '.join(known)}{why}")
    gsds = {gsd: [b for b in known if b in wanted and BANDS[b].gsd == gsd] for gsd in (10, 20, 60)}
    return {gsd: tuple(names) for gsd, names in gsds.items() if names}


def dn_to_reflectance(dn: ArrayLike, *, offset: float = 0.0) -> NDArray[Any]:
    """Reflectance [1] of digital numbers, float32: (dn + offset) / 10000.

    Args:
        dn: digital numbers of any shape; 0 (no data) is not treated apart.
        offset: RADIO_ADD_OFFSET or BOA_ADD_OFFSET of the product [DN]: 0 before processing
            baseline 04.00, -1000 since.
    """
    return (np.asarray(dn, np.float32) + np.float32(offset)) / np.float32(QUANTIFICATION)


def reflectance_to_dn(reflectance: ArrayLike, *, offset: float = 0.0) -> NDArray[np.uint16]:
    """Digital numbers of reflectance [1], rounded to uint16 and at least 1, since 0 means no data.

    Raises:
        ValueError: a value is NaN.
    """
    values = np.asarray(reflectance, np.float64) * QUANTIFICATION - offset
    if np.isnan(values).any():
        raise ValueError("NaN has no digital number: write NO_DATA where there are no data")
    dn: NDArray[np.uint16] = np.clip(np.rint(values), NO_DATA + 1, LARGEST_DN).astype(np.uint16)
    return dn
