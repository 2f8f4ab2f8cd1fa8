"""Land cover of a made-up BigEarthNet: how often classes come, which come together, how they look.

Supports are the published ones, so that the imbalance is the real one; spectra and textures are
made up. In blue, green and red classes of one group differ little more than their patches do; the
other bands tell them better, as they do in reality.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from data_pipelines import nomenclature, synthetic

# Patches of the test set with each class in CORINE order: Sedona et al. 2019 (Remote Sensing
# 11(24) 3056), table 3.
SUPPORTS = (
    1975, 13338, 2417, 671, 93, 157, 835, 181, 244, 338, 996, 36562, 2505, 709, 1821, 875, 2372,
    20770, 1275, 21142, 26447, 5611, 28090, 33583, 35975, 2273, 1060, 2114, 29671, 319, 511, 261,
    66, 1142, 3411, 264, 75, 216, 1914, 11545, 287, 197, 13964,
)  # fmt: skip
# Patches that these come from. The paper does not say it; BigEarthNet has 2.95 labels a patch.
PATCHES = sum(SUPPORTS) / 2.95
# Classes of one group come together. Each: last class (from the one before), name.
GROUPS = (
    (11, "urban"), (14, "arable"), (17, "groves"), (21, "mosaic"), (25, "forest"), (29, "heath"),
    (33, "bare"), (35, "bog"), (38, "salt"), (40, "water"), (43, "sea"),
)  # fmt: skip
# How strongly: standard deviation of a group's log odds, of which TILE is common to a whole tile.
TOGETHER, TILE = 1.6, 0.5
# Most classes of a patch.
MOST = 8
# Two materials of each class, the share of the second, and the texture.
LOOKS = (
    ("roof", "asphalt", 0.3, "blocks"), ("roof", "meadow", 0.5, "blocks"),
    ("pale", "asphalt", 0.4, "blocks"), ("asphalt", "soil", 0.2, "smooth"),
    ("asphalt", "water", 0.4, "blocks"), ("asphalt", "meadow", 0.5, "rows"),
    ("soil", "pale", 0.5, "clumps"), ("soil", "asphalt", 0.5, "clumps"),
    ("soil", "pale", 0.2, "blocks"), ("meadow", "broad", 0.5, "clumps"),
    ("meadow", "roof", 0.1, "smooth"), ("ripe", "soil", 0.3, "rows"),
    ("crop", "soil", 0.2, "rows"), ("crop", "water", 0.4, "smooth"),
    ("soil", "crop", 0.4, "rows"), ("broad", "soil", 0.3, "rows"),
    ("broad", "soil", 0.5, "grain"), ("meadow", "crop", 0.2, "smooth"),
    ("crop", "broad", 0.3, "rows"), ("crop", "ripe", 0.5, "blocks"),
    ("crop", "broad", 0.5, "clumps"), ("ripe", "broad", 0.3, "grain"),
    ("broad", "broad", 0.0, "clumps"), ("needle", "needle", 0.0, "grain"),
    ("broad", "needle", 0.5, "clumps"), ("meadow", "ripe", 0.4, "clumps"),
    ("meadow", "needle", 0.4, "clumps"), ("broad", "ripe", 0.4, "grain"),
    ("broad", "meadow", 0.5, "grain"), ("pale", "soil", 0.3, "smooth"),
    ("asphalt", "pale", 0.3, "clumps"), ("ripe", "asphalt", 0.3, "clumps"),
    ("asphalt", "needle", 0.5, "clumps"), ("meadow", "water", 0.4, "clumps"),
    ("ripe", "water", 0.3, "clumps"), ("meadow", "water", 0.6, "grain"),
    ("water", "pale", 0.4, "blocks"), ("water", "soil", 0.4, "smooth"),
    ("water", "meadow", 0.15, "smooth"), ("water", "water", 0.0, "smooth"),
    ("water", "soil", 0.15, "smooth"), ("water", "soil", 0.25, "grain"),
    ("water", "water", 0.0, "grain"),
)  # fmt: skip
# Classes that lie as a line across a patch.
LINES = ("Road and rail networks and associated land", "Water courses")
# How much a texture changes the brightness.
AMPLITUDES = {"smooth": 0.04, "clumps": 0.12, "grain": 0.10, "rows": 0.10, "blocks": 0.25}
# How much a class differs from the mixture of its materials (standard deviation of the logarithm):
# in blue, green and red, and in the other bands.
VISIBLE, INFRARED = 0.08, 0.16
TEXTURE_SIZE = 256


@dataclasses.dataclass(frozen=True)
class Looks:
    """How each of the 43 classes looks."""

    spectra: NDArray[np.float32]
    """(class, band) reflectance [1], bands in the order of synthetic.BANDS."""
    textures: NDArray[np.float32]
    """(texture, y, x), mean 0, standard deviation 1."""
    texture_of: NDArray[np.int64]
    """(class,) which texture."""
    amplitude_of: NDArray[np.float32]
    """(class,) how much it changes the brightness."""


def draw_labels(tile: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """(patch, 43) 0 or 1: at least one class a patch, at most MOST.

    Args:
        tile: (patch,) number of its tile.
        rng: consumed.
    """
    group = np.repeat(np.arange(len(GROUPS)), np.diff([0, *(last for last, _ in GROUPS)]))
    of_tile = rng.standard_normal((int(tile.max()) + 1, len(GROUPS)))[tile]
    of_patch = rng.standard_normal((len(tile), len(GROUPS)))
    latent = np.sqrt(TILE) * of_tile + np.sqrt(1 - TILE) * of_patch
    odds = _base_odds() + TOGETHER * latent[:, group]
    surplus = 1 / (1 + np.exp(-odds)) - rng.random(odds.shape)
    labels = surplus > 0
    alone = ~labels.any(axis=1)
    labels[alone, odds[alone].argmax(axis=1)] = True
    # Where there are too many the rarest stay.
    rarity = np.where(labels, np.array(SUPPORTS), np.iinfo(np.int64).max)
    rank = rarity.argsort(axis=1).argsort(axis=1)
    kept: NDArray[np.uint8] = (labels & (rank < MOST)).astype(np.uint8)
    return kept


def _base_odds() -> NDArray[np.float64]:
    """Log odds of each class that give its published frequency on average over the groups."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(31)  # type: ignore[no-untyped-call]
    wanted = np.array(SUPPORTS) / PATCHES
    low, high = np.full(len(wanted), -20.0), np.full(len(wanted), 20.0)
    for _ in range(60):
        middle = (low + high) / 2
        mean = 1 / (1 + np.exp(-(middle[:, None] + TOGETHER * nodes))) @ weights / weights.sum()
        low, high = np.where(mean < wanted, middle, low), np.where(mean < wanted, high, middle)
    odds: NDArray[np.float64] = (low + high) / 2
    return odds


def build_looks() -> Looks:
    """The same in every archive: what is learned from one holds in another."""
    rng = np.random.default_rng(43)
    table = np.array([synthetic.SPECTRA[name] for name in synthetic.MATERIALS], np.float32)
    visible = np.isin(synthetic.BANDS, ("B02", "B03", "B04"))
    spread = np.where(visible, VISIBLE, INFRARED).astype(np.float32)
    spectra = np.empty((len(LOOKS), len(synthetic.BANDS)), np.float32)
    for index, (first, second, share, _) in enumerate(LOOKS):
        one, other = (table[synthetic.MATERIALS.index(name)] for name in (first, second))
        own = np.exp(spread * rng.standard_normal(len(spread)))
        spectra[index] = (one * (1 - share) + other * share) * own
    kinds = list(AMPLITUDES)
    textures = np.stack([_texture(kind, rng) for kind in kinds])
    texture_of = np.array([kinds.index(look[3]) for look in LOOKS])
    amplitudes = np.array([AMPLITUDES[look[3]] for look in LOOKS], np.float32)
    return Looks(spectra, textures, texture_of, amplitudes)


def _texture(kind: str, rng: np.random.Generator) -> NDArray[np.float32]:
    """(y, x), mean 0, standard deviation 1."""
    from scipy import ndimage

    size = TEXTURE_SIZE
    if kind == "rows":
        y, x = np.mgrid[:size, :size]
        image = np.sin(2 * np.pi * (y + 0.3 * x) / 5.0) + 0.3 * rng.standard_normal((size, size))
    elif kind == "blocks":
        image = np.kron(rng.standard_normal((size // 4, size // 4)), np.ones((4, 4)))
    else:
        blur = {"grain": 0.7, "clumps": 2.5, "smooth": 12.0}[kind]
        image = ndimage.gaussian_filter(rng.standard_normal((size, size)), blur, mode="wrap")
    normal: NDArray[np.float32] = ((image - image.mean()) / image.std()).astype(np.float32)
    return normal


def line_classes() -> tuple[int, ...]:
    """Positions of LINES among the classes."""
    return tuple(nomenclature.CLASSES_43.index(name) for name in LINES)
