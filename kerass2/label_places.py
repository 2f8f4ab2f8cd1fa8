"""What kerass2.predict labels: patches of an archive or a data set, or windows of a granule."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import sentinel2, windows
from data_pipelines.spec import DataError
from data_pipelines.windows import Window
from kerass2 import meaning, tiling

if TYPE_CHECKING:
    import xarray

    from data_pipelines.granule import Granule

# {input: (place, y, x, band)} uint16 DN without offset; 0 is no data.
Images = Mapping[str, NDArray[np.uint16]]
# CRS, and the corners (x, y) in it: upper left, lower left, lower right, upper right.
Outline = tuple[str, tuple[tuple[float, float], ...]]
ALL = "bands"
"""The input that holds all bands at 10 m; made here of those on their own grids."""
# Records of a data set that are read at once for their names.
NAMES_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class Grid:
    """Windows side by side, as pixels of a raster, each around the middle of its window."""

    shape: tuple[int, int]
    """Rows and columns."""
    crs: str | None
    """As text."""
    transform: tuple[float, ...] | None
    """Six numbers of an affine.Affine, pixel -> CRS."""


@dataclasses.dataclass(frozen=True)
class Places:
    """Squares of ground, each of which gets its labels."""

    name: str
    """Of all of them together."""
    count: int
    """How many there are."""
    find_names: Callable[[], Sequence[str]]
    """The name of each; of a data set its records are read for it."""
    read: Callable[[Sequence[int]], Images]
    """Some of them, by ascending numbers; raises DataError for one that is damaged."""
    outline: Callable[[int], Outline | None]
    """Where one lies; None where that is not known."""
    what: str = "patches"
    """What they are called."""
    grid: Grid | None = None
    """None where they form none."""
    synthetic: bool = False
    """Whether the pixels were made up."""


def is_empty(images: Images) -> NDArray[np.bool_]:
    """(place,): where some pixel has no data in any band of its GSD.

    A single band may well be 0 in dark water.
    """
    found = [(dn == sentinel2.NO_DATA).all(axis=-1).any(axis=(1, 2)) for dn in images.values()]
    return np.asarray(np.any(found, axis=0))


def needed(takes: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Inputs of a classifier, see labels.describe, on the grids that pixels come on."""
    if ALL not in takes["inputs"]:
        return dict(takes["inputs"])
    return {name: sentinel2.bands_at(gsd) for name, gsd in sentinel2.GSDS.items()}


def open_places(
    path: pathlib.Path,
    takes: Mapping[str, Any],
    *,
    window: int,
    stride: int,
    find_roi: Callable[[Granule], Window | None],
) -> tuple[Places, Granule | None]:
    """What lies at a path, as a classifier takes it; and the granule, where it is one.

    Args:
        path: a data set that kerass2.prepare has made, a folder of BigEarthNet patches or their
            LMDB, or what data_pipelines.granule.open_granule takes.
        takes: of labels.describe.
        window: edge of a granule's windows [px of 10 m].
        stride: distance from one window to the next [px of 10 m].
        find_roi: the part of a granule that is labelled; None: all.

    Raises:
        DataError: nothing there, several granules, or not what the model takes.
    """
    from data_pipelines import bigearthnet, granule
    from data_pipelines.manifest import MANIFEST

    if (path / MANIFEST).is_file():
        return _open_prepared(path, takes), None
    if not path.exists():
        raise DataError(f"{path}: not found")
    sources = granule.list_sources(path)
    patches = path.is_dir() and next(bigearthnet.patch_folders(path), None) is not None
    lmdb = any(file.is_file() for file in (path / "data.mdb", *path.glob("*/data.mdb")))
    if lmdb or (patches and sources != [path]):
        return _open_archive(path, takes), None
    found = granule.open_granule(path)
    return _cut(found, takes, window, stride, find_roi(found)), found


# --- patches -------------------------------------------------------------------------------------


def _open_prepared(path: pathlib.Path, takes: Mapping[str, Any]) -> Places:
    """All splits of a data set, one after the other; where its patches lie it does not say."""
    from data_pipelines import store

    found = store.read_manifest(path)
    sources = [store.open_source(path, split) for split in found.splits]
    for name, bands in takes["inputs"].items():
        tensor = found.spec.inputs.get(name)
        if tensor is None or tuple(tensor.bands) != tuple(bands):
            raise DataError(
                f"{path} holds {found.spec.describe()}; model {takes['model']} takes {name} "
                f"{','.join(bands)}"
            )
    ends = np.cumsum([0, *map(len, sources)]).tolist()

    def read(numbers: Sequence[int]) -> Images:
        parts = []
        for source, start, end in zip(sources, ends, ends[1:], strict=False):
            if own := [number - start for number in numbers if start <= number < end]:
                parts.append(source.read(own)["inputs"])
        return {key: np.concatenate([part[key] for part in parts]) for key in takes["inputs"]}

    def find_names() -> list[str]:
        return [
            str(name)
            for source in sources
            for start in range(0, len(source), NAMES_AT_ONCE)
            for name in source.read(range(len(source))[start : start + NAMES_AT_ONCE])["patch_id"]
        ]

    synthetic = bool(found.provenance.get("synthetic"))
    return Places(path.name, ends[-1], find_names, read, lambda number: None, synthetic=synthetic)


def _open_archive(path: pathlib.Path, takes: Mapping[str, Any]) -> Places:
    """All patches below a folder, or in an LMDB."""
    from data_pipelines import bigearthnet_patches

    places = bigearthnet_patches.find_patches(path)
    names, wanted = list(places), needed(takes)

    def read(numbers: Sequence[int]) -> Images:
        found = [bigearthnet_patches.read_images(places[names[n]], names[n]) for n in numbers]
        images = {key: np.stack([image[key] for image in found]) for key in wanted}
        return _enlarged(images, takes)

    synthetic = bigearthnet_patches.is_synthetic(places[names[0]], names[0])
    return Places(
        path.resolve().name,
        len(names),
        lambda: names,
        read,
        lambda number: _outline_of_patch(places[names[number]], names[number]),
        synthetic=synthetic,
    )


def _outline_of_patch(place: str, name: str) -> Outline | None:
    from data_pipelines import geotiff

    file = pathlib.Path(place, f"{name}_B02.tif")
    if not file.is_file():
        return None  # of an LMDB, which does not say where its patches lie
    facts = geotiff.read_facts(file)
    height, width = facts["shape"]
    return _outline(facts["crs"], facts["transform"], Window(0, 0, height, width))


def _outline(crs: str | None, transform: Sequence[float] | None, window: Window) -> Outline | None:
    if crs is None or transform is None:
        return None
    a, b, c, d, e, f = transform
    left, top = window.x, window.y
    right, bottom = left + window.width, top + window.height
    corners = ((left, top), (left, bottom), (right, bottom), (right, top))
    return crs, tuple((a * x + b * y + c, d * x + e * y + f) for x, y in corners)


def _enlarged(images: Images, takes: Mapping[str, Any]) -> Images:
    """As the model takes them: all bands at 10 m where it asks for that, enlarged bilinearly."""
    from data_pipelines import bigearthnet, bigearthnet_patches

    if ALL not in takes["inputs"]:
        return images
    each = [
        bigearthnet_patches.upsample_bilinear(dict(zip(images, parts, strict=True)))
        for parts in zip(*images.values(), strict=True)
    ]
    bands = [bigearthnet.BANDS.index(band) for band in takes["inputs"][ALL]]
    return {ALL: np.stack(each)[..., bands]}


# --- windows of a granule ------------------------------------------------------------------------


def _cut(
    found: Granule, takes: Mapping[str, Any], window: int, stride: int, roi: Window | None
) -> Places:
    """Windows wholly inside the region, row by row; a rest at its right and lower edge is left."""
    cubes = {name: _choose(found, name, bands) for name, bands in needed(takes).items()}
    ratios = {name: sentinel2.GSDS[name] // 10 for name in cubes}
    height, width = tiling.granule_shape(cubes, ratios)
    unit = math.lcm(*ratios.values())
    for option, value in (("--window", window), ("--stride", stride)):
        if value % unit:
            raise DataError(
                f"{option} {value}: expected a multiple of {unit} px, a pixel of the coarsest band"
            )
    roi = roi or Window(0, 0, height, width)
    y, x = (start // unit * unit for start in (roi.y, roi.x))
    bottom = min(-(-(roi.y + roi.height) // unit) * unit, height)
    right = min(-(-(roi.x + roi.width) // unit) * unit, width)
    squares = [
        Window(y + square.y, x + square.x, window, window)
        for square in windows.lattice(bottom - y, right - x, window, stride)
    ]
    if not squares:
        raise DataError(
            f"{found.name}: {bottom - y} x {right - x} px of 10 m; expected at least a window of "
            f"{window} x {window}"
        )
    rows = len({square.y for square in squares})
    columns = len(squares) // rows
    place = meaning.georeference(found)
    names = [f"{found.name}_{n // columns}_{n % columns}" for n in range(len(squares))]
    return Places(
        found.name,
        len(squares),
        lambda: [found.name] if len(squares) == 1 else names,
        _Reader(cubes, ratios, squares, takes),
        lambda number: _outline(place["crs"], place["transform"], squares[number]),
        f"windows of {window} px of 10 m",
        Grid((rows, columns), place["crs"], _step(place["transform"], squares[0], stride)),
        found.synthetic,
    )


def _choose(found: Granule, name: str, bands: Sequence[str]) -> xarray.DataArray:
    """Some bands of a cube, as DN without offset, lazy."""
    from data_pipelines.granule import harmonise

    cube = found.cubes.get(name)
    there = () if cube is None else tuple(map(str, cube.band.values))
    if cube is None or not set(bands) <= set(there):
        raise DataError(
            f"{found.name}: {name} has {','.join(there) or 'nothing'}; the model takes "
            f"{','.join(bands)}"
        )
    same = harmonise(cube)
    return same if there == tuple(bands) else same.sel(band=list(bands))


def _step(
    transform: Sequence[float] | None, first: Window, stride: int
) -> tuple[float, ...] | None:
    """Transform of pixels as large as the stride, in the middle of their windows."""
    if transform is None:
        return None
    a, b, c, d, e, f = transform
    y, x = (start + (first.height - stride) / 2 for start in (first.y, first.x))
    corner = a * x + b * y + c, d * x + e * y + f
    return a * stride, b * stride, corner[0], d * stride, e * stride, corner[1]


class _Reader:
    """Windows by ascending numbers: each chunk of the cubes is read once, and rows are kept."""

    def __init__(
        self,
        cubes: Mapping[str, xarray.DataArray],
        ratios: Mapping[str, int],
        squares: Sequence[Window],
        takes: Mapping[str, Any],
    ) -> None:
        left, right = squares[0].x, squares[-1].x + squares[-1].width
        self._rows = {
            name: tiling.Rows(cube, (left // ratios[name], right // ratios[name]))
            for name, cube in cubes.items()
        }
        self._ratios, self._squares, self._takes = ratios, squares, takes

    def __call__(self, numbers: Sequence[int]) -> Images:
        images = {}
        for name, rows in self._rows.items():
            views = []
            for number in numbers:
                seen = self._squares[number].coarser(self._ratios[name])
                held = rows.read(seen.y, seen.y + seen.height)
                strips = tiling.Strips({name: rows}, {name: held})
                views.append(np.moveaxis(strips.cut(name, seen), 0, -1))
            images[name] = np.stack(views)
        return _enlarged(images, self._takes)
