"""BigEarthNet patches to 10 m by super-resolution models, one patch at a time."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_pipelines.spec import DataError

if TYPE_CHECKING:
    from kerass2.networks import Network

# Names of models (kerass2.models.MODELS) that a method stands for, by the GSD of their bands.
METHODS = {"dsen2": ("dsen2", "vdsen2"), "s2x": ("s2x", "s6x")}


@dataclasses.dataclass(frozen=True)
class Models:
    """Upsamples by kerass2.predict's own path; goes to other processes by pickle."""

    method: str
    """A key of METHODS."""
    paths: tuple[pathlib.Path, ...]
    """Models or work folders: for the 20 m bands, and for the 60 m bands if there is a second."""

    @property
    def description(self) -> str:
        """The method and the models, by the checksums of their files."""
        from kerass2 import methods

        files = [methods.find(path).file for path in self.paths]
        crcs = ", ".join(f"{file.name} {zlib.crc32(file.read_bytes()):08x}" for file in files)
        return f"{self.method} ({crcs})"

    def load(self) -> tuple[Network, ...]:
        """The networks, loaded once a process.

        Raises:
            DataError: no model there, of another method, or twice for the same bands.
        """
        return _load(self.method, self.paths)

    def __call__(
        self, images: Mapping[str, NDArray[np.uint16]], place: str, name: str
    ) -> NDArray[np.uint16]:
        """All bands at 10 m, (y, x, band); those that no model makes are bilinear.

        Args:
            images: "gsd10", "gsd20", "gsd60" -> (y, x, band) uint16 DN.
            place: where the patch lies; not looked at.
            name: of the patch.

        Raises:
            DataError: a model gives NaN.
        """
        from data_pipelines import bigearthnet_patches, sentinel2
        from data_pipelines.bigearthnet import BANDS
        from data_pipelines.granule import Granule, build_cube
        from kerass2 import sharpen

        cubes = {}
        for key, image in images.items():
            gsd = sentinel2.GSDS[key]
            planes = np.ascontiguousarray(np.moveaxis(image, -1, 0))
            cubes[key] = build_cube(planes, sentinel2.bands_at(gsd), gsd)
        granule = Granule(name, name, name, cubes)
        plan = sharpen.build_plan(granule, self.load(), bands=("all",))
        out = bigearthnet_patches.upsample_bilinear(images, place, name)
        where = [BANDS.index(band) for band in plan.bands]
        for region, pixels in sharpen.make_regions(plan):
            rows, columns = region.slices
            out[rows, columns, where] = np.moveaxis(pixels, 0, -1)
        return out


@functools.lru_cache(maxsize=2)
def _load(method: str, paths: tuple[pathlib.Path, ...]) -> tuple[Network, ...]:
    from kerass2 import methods, networks

    found: list[Network] = []
    for path in paths:
        network = networks.build_network(methods.load(methods.find(path)))
        if network.name not in METHODS[method]:
            raise DataError(
                f"--upsample {method}: {path} holds a model {network.name}; expected "
                f"{' or '.join(METHODS[method])}"
            )
        if any(set(network.bands) & set(other.bands) for other in found):
            raise DataError(f"{path}: a second model for {', '.join(network.bands)}")
        found.append(network)
    return tuple(found)
