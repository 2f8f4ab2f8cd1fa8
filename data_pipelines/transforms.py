"""Batch to batch, in numpy: augmentation that can be repeated, stored numbers to physical units.

Randomness is a hash of counters, not a stream: what happens to a patch depends on (seed, epoch,
patch index) and on nothing else, so neither the number of ranks, nor threads, nor a resumed run can
change it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import memory
from data_pipelines.spec import Batch, DataError, DatasetSpec, TensorSpec

# transform(batch, seed, epoch) -> batch. The batch holds "index" (n,): each patch's position in its
# split.
Transform = Callable[[Batch, int, int], Batch]

# Bytes of a pixel -> a type of as many, which numpy copies at once; others it copies as bytes.
PIXELS: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}

# Bytes that stay near a core between two operations on them.
IN_CACHE = 2**19

# The symmetries of a square: element e is e % 4 quarter turns, after a left-right flip if e >= 4.
NUM_DIHEDRAL = 8


def counter_hash(*counters: int | NDArray[np.integer[Any]]) -> NDArray[np.uint64]:
    """64 random-looking bits for each combination of counters, the same everywhere.

    Each counter is folded in by the output function of SplitMix64 (Steele, Lea and Flood, "Fast
    splittable pseudorandom number generators", OOPSLA 2014; constants as in Vigna's splitmix64.c).
    Where only one counter varies the map is a bijection: hashes of different patches never collide.

    Args:
        counters: integers or integer arrays that broadcast against each other; taken modulo 2**64.

    Returns:
        uint64 of the broadcast shape.
    """
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        for counter in counters:
            bits = np.uint64(counter % 2**64) if isinstance(counter, int) else counter
            state = (state ^ np.asarray(bits).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return np.asarray(state)


def turn(images: NDArray[Any], element: int) -> NDArray[Any]:
    """Apply one symmetry of the square to images (n, y, x, band) or (n, y, x); a view.

    Element e and its inverse: (4 - e) % 4 for turns (e < 4), e itself for e >= 4.
    """
    if element >= 4:
        images = images[:, :, ::-1]
    return np.rot90(images, element % 4, axes=(1, 2))


def as_pixels(images: NDArray[Any]) -> NDArray[Any]:
    """(n, y, x, band) as (n, y, x) of all bands in one; a view.

    Of turned images numpy copies each innermost row by itself: of bands, those are short.
    """
    size = images.shape[-1] * images.itemsize
    pixels: NDArray[Any] = images.view(PIXELS.get(size, np.dtype((np.void, size))))[..., 0]
    return pixels


def dihedral(batch: Batch, seed: int, epoch: int) -> Batch:
    """Turn and flip each example by one of 8 symmetries, the same for its images of every GSD.

    Arrays that are not images (n, y, x, band), such as labels (n, class), stay as they are.

    Raises:
        DataError: an image is not square, so that a quarter turn would change its shape.
    """
    # The tag first, so that other transforms draw other numbers for the same patch.
    bits = counter_hash(_tag("dihedral"), seed, epoch, np.asarray(batch["index"]))
    elements = (bits >> np.uint64(61)).astype(np.int64).tolist()

    def turn_all(name: str, images: NDArray[Any]) -> NDArray[Any]:
        if images.ndim != 4:
            return images
        if images.shape[1] != images.shape[2]:
            raise DataError(f"dihedral: {name} is {images.shape[1:3]} pixels, expected a square")
        turned = memory.empty(images.shape, images.dtype)
        pixels, out = as_pixels(np.ascontiguousarray(images)), as_pixels(turned)
        views = [turn(pixels, element) for element in range(NUM_DIHEDRAL)]
        for number, element in enumerate(elements):
            out[number] = views[element][number]
        return turned

    return {
        **batch,
        "inputs": {name: turn_all(name, images) for name, images in batch["inputs"].items()},
        "targets": {name: turn_all(name, images) for name, images in batch["targets"].items()},
    }


def gain(batch: Batch, seed: int, epoch: int) -> Batch:
    """Multiply each example by one factor of 1/2 to 2, the same for its images of every GSD.

    Light and atmosphere differ more from scene to scene than a few training scenes show, and the
    sharpened picture of a brighter scene is the brighter picture. The factor's logarithm is
    uniform; values are rounded, and end at the largest that their type holds.
    """
    bits = counter_hash(_tag("gain"), seed, epoch, np.asarray(batch["index"]))
    factors = np.exp2((bits >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1).astype(np.float32)

    def scale(images: NDArray[Any]) -> NDArray[Any]:
        if images.ndim != 4:
            return images
        out = memory.empty(images.shape, np.float32)
        np.multiply(images, factors[:, None, None, None], out=out)
        if images.dtype.kind != "f":
            np.minimum(np.rint(out, out=out), np.iinfo(images.dtype).max, out=out)
        return out.astype(images.dtype, copy=False)

    return {
        **batch,
        "inputs": {name: scale(images) for name, images in batch["inputs"].items()},
        "targets": {name: scale(images) for name, images in batch["targets"].items()},
    }


def to_physical(batch: Batch, spec: DatasetSpec) -> Batch:
    """Stored numbers to physical units, float32: stored * scale, reflectance [1] for images.

    A DN survives the round trip: round(reflectance / scale) gives it back exactly for every uint16.
    """

    def convert(
        arrays: Mapping[str, NDArray[Any]], specs: Mapping[str, TensorSpec]
    ) -> dict[str, NDArray[np.float32]]:
        converted = {}
        for name, values in arrays.items():
            out = memory.empty(values.shape, np.float32)
            scale, count = np.float32(specs[name].scale), max(1, len(out))
            # Some examples at once: they are still in the processor's cache when they are scaled.
            rows = max(1, IN_CACHE * count // max(1, out.nbytes))
            for start in range(0, count, rows):
                part = out[start : start + rows]
                part[...] = values[start : start + rows]
                part *= scale
            converted[name] = out
        return converted

    return {
        **batch,
        "inputs": convert(batch["inputs"], spec.inputs),
        "targets": convert(batch["targets"], spec.targets),
    }


def _tag(name: str) -> int:
    """A constant for the first counter: a transform's name as a number."""
    return int.from_bytes(name.encode()[:8], "little")


TRANSFORMS: dict[str, Transform] = {"dihedral": dihedral, "gain": gain}
