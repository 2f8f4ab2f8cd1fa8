"""A granule, one xarray cube per GSD of a place at a time; and how to open one."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import safe_files, sentinel2
from data_pipelines.spec import DataError

if TYPE_CHECKING:
    import xarray

# Edge of a dask chunk on the finest grid [px]: 2 MB of uint16 a band, a multiple of 2, 6 and 36.
CHUNK = 1080
# Corners closer than this are the same: text and floating point round [m].
SAME_PLACE = 1e-3


@dataclasses.dataclass(frozen=True)
class Granule:
    """Cubes of the same ground, their upper left corners the same, their pixels nesting."""

    name: str
    """Names the pixels in patch ids; one for each granule of a data set."""
    scene: str
    """The acquisition: product and tile, or the file the pixels came from."""
    place: str
    """The ground: the MGRS tile where it is known, else the scene. Its scenes share a split."""
    cubes: Mapping[str, xarray.DataArray]
    """`gsd10`, `gsd20`, `gsd60` -> (band, y, x) uint16 DN; see build_cube. Lazy: dask inside. One
    that a partial product lacks is not there."""
    origin: tuple[int, int] | None = None
    """(y, x) of the upper left corner in `plane` [px of 10 m]; None where it is not known."""
    plane: str = ""
    """The pixel plane that `origin` counts in: a CRS, or a place. Empty: that of the place."""
    synthetic: bool = False
    """Whether the pixels were made up, not measured. Everything made of them says so."""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What is known of `product` (name), `level` ("L1C", "L2A"), `tile` ("T33UUB"), `time` (of
    sensing, ISO 8601), `baseline` of the processing ("04.00") and `spacecraft` ("S2A")."""
    masks: Mapping[str, xarray.DataArray] = dataclasses.field(default_factory=dict)
    """Those that exist, (y, x) with attribute `gsd` [m], lazy: `scl`, uint8 scene classification;
    `cloud`, bool, True where there is cloud or cirrus (not its shadow)."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width [px of 10 m]."""
        name, cube = next(iter(self.cubes.items()))
        ratio = sentinel2.GSDS[name] // 10
        return cube.shape[1] * ratio, cube.shape[2] * ratio


def build_cube(
    data: Any,
    bands: Iterable[str],
    gsd: int,
    *,
    crs: str | None = None,
    transform: tuple[float, ...] | None = None,
    offset: Sequence[float] | None = None,
    quantification: Sequence[float] | None = None,
) -> xarray.DataArray:
    """A cube as Granule holds it: reflectance = (DN + offset) / quantification.

    Args:
        data: dask or numpy array (band, y, x) uint16 DN; 0 is no data, 65535 saturated.
        bands: their names, the coordinate `band`.
        gsd: pixel size [m].
        crs: anything that GDAL takes, as text.
        transform: six numbers of an affine.Affine, pixel -> CRS.
        offset: one for each band [DN]; None: 0.
        quantification: DN of reflectance 1, one for each band; None: 10000.

    Returns:
        With attributes gsd, nodata, saturated, units, and the arguments that are not None.
    """
    import xarray

    attributes: dict[str, Any] = {
        "gsd": float(gsd),
        "nodata": sentinel2.NO_DATA,
        "saturated": sentinel2.SATURATED,
        "units": "DN",
    }
    if crs is not None:
        attributes["crs"] = crs
    numbers = {"transform": transform, "offset": offset, "quantification": quantification}
    for key, values in numbers.items():
        if values is not None:
            attributes[key] = tuple(map(float, values))
    return xarray.DataArray(
        data, {"band": list(bands)}, ("band", "y", "x"), name=f"gsd{gsd}", attrs=attributes
    )


def harmonise(cube: xarray.DataArray) -> xarray.DataArray:
    """The cube with DN that are reflectance x 10000 in every product: (DN + offset) made the same.

    0 stays no data and 65535 saturated; other values are rounded and clipped to 1 to 65534, so that
    none becomes either. A dark pixel below the offset is 1.

    Returns:
        A lazy cube without attributes offset and quantification; `cube` itself where there is
        nothing to do.
    """
    num_bands = cube.shape[0]
    offsets = cube.attrs.get("offset", (0.0,) * num_bands)
    scales = cube.attrs.get("quantification", (float(sentinel2.QUANTIFICATION),) * num_bands)
    pairs = tuple(zip(offsets, scales, strict=True))
    if set(pairs) <= {(0.0, float(sentinel2.QUANTIFICATION))}:
        return cube
    if hasattr(cube.data, "dask"):
        data = cube.data.map_blocks(
            functools.partial(_harmonise_block, pairs=pairs),
            dtype=np.uint16,
            meta=np.empty((0, 0, 0), np.uint16),
        )
    else:
        data = _harmonise_pixels(cube.data, pairs)
    harmonised = cube.copy(data=data)
    for key in ("offset", "quantification"):
        harmonised.attrs.pop(key, None)
    return harmonised


def _harmonise_block(
    block: NDArray[np.uint16], block_info: Any, *, pairs: tuple[tuple[float, float], ...]
) -> NDArray[np.uint16]:
    """One dask chunk; dask says by `block_info` which bands it has."""
    start, stop = block_info[0]["array-location"][0]
    return _harmonise_pixels(block, pairs[start:stop])


def _harmonise_pixels(
    pixels: NDArray[np.uint16], pairs: Sequence[tuple[float, float]]
) -> NDArray[np.uint16]:
    """(band, y, x) with (offset, quantification) of each band taken out."""
    out = np.empty(pixels.shape, np.uint16)
    for band, pair in enumerate(pairs):
        # Row by row in small pieces: numpy makes 8 bytes of each index.
        for row in range(0, pixels.shape[1], 64):
            rows = slice(row, row + 64)
            np.take(_table(*pair), pixels[band, rows], out=out[band, rows], mode="clip")
    return out


@functools.lru_cache(maxsize=64)
def _table(offset: float, quantification: float) -> NDArray[np.uint16]:
    """DN -> harmonised DN: a table is exact, and faster than arithmetic (it fits the L2 cache)."""
    dn = np.arange(sentinel2.LARGEST_DN + 1, dtype=np.float64)
    values = np.rint((dn + offset) * (sentinel2.QUANTIFICATION / quantification))
    table: NDArray[np.uint16]
    table = np.clip(values, sentinel2.NO_DATA + 1, sentinel2.SATURATED - 1).astype(np.uint16)
    for special in (sentinel2.NO_DATA, sentinel2.SATURATED):
        table[special] = special
    table.setflags(write=False)
    return table


def check_nesting(path: str | os.PathLike[str], cubes: Mapping[str, Any]) -> None:
    """Refuse cubes whose grids do not nest: one CRS and corner, sizes in the ratio of GSDs.

    Raises:
        DataError: found and expected CRS, pixel sizes, corners (with the shift in metres and in
            pixels of the finest cube) or sizes.
    """
    crs = {name: cube.attrs["crs"] for name, cube in cubes.items() if cube.attrs.get("crs")}
    if len(set(crs.values())) > 1:
        found = ", ".join(f"{name} {value}" for name, value in crs.items())
        raise DataError(f"{path}: grids do not nest: crs {found}; expected one CRS")
    _check_corners(path, cubes)
    ratios = {name: sentinel2.GSDS[name] // 10 for name in cubes}
    sizes = {name: tuple(n * ratios[name] for n in cube.shape[1:]) for name, cube in cubes.items()}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} {c.shape[1]} x {c.shape[2]} px" for name, c in cubes.items())
        coarsest = max(cubes, key=ratios.__getitem__)
        expected = ", ".join(
            f"{name} {' x '.join(str(n // ratios[name]) for n in sizes[coarsest])} px"
            for name in cubes
        )
        raise DataError(f"{path}: grids do not nest: found {found}; expected {expected}")


def _check_corners(path: str | os.PathLike[str], cubes: Mapping[str, Any]) -> None:
    """Pixels of the same directions, sizes in the ratio of GSDs; the same upper left corner."""
    known = {n: c.attrs["transform"] for n, c in cubes.items() if c.attrs.get("transform")}
    if len(known) < 2:
        return
    finest = min(known, key=sentinel2.GSDS.__getitem__)
    a, b, x, d, e, y = known[finest]
    for name, transform in known.items():
        ratio = sentinel2.GSDS[name] / sentinel2.GSDS[finest]
        steps = [v / ratio for i, v in enumerate(transform) if i % 3 != 2]
        if any(abs(v - w) > SAME_PLACE for v, w in zip(steps, (a, b, d, e), strict=True)):
            raise DataError(
                f"{path}: grids do not nest: transform {name} {transform}, {finest} "
                f"{known[finest]}; expected pixels in the ratio of GSDs"
            )
        east, north = transform[2] - x, transform[5] - y
        if max(abs(east), abs(north)) > SAME_PLACE:
            columns, rows = _shift_in_pixels((a, b, d, e), east, north)
            whole = all(abs(n - round(n)) * sentinel2.GSDS[finest] < 0.01 for n in (columns, rows))
            kind = "whole pixels" if whole else "a fraction of a pixel"
            raise DataError(
                f"{path}: grids do not nest: {name} begins {east:g} m east and {north:g} m north "
                f"of {finest}, {columns:g} columns and {rows:g} rows of {finest} ({kind}); "
                "expected one corner"
            )


def _shift_in_pixels(
    steps: tuple[float, float, float, float], east: float, north: float
) -> tuple[float, float]:
    """(columns, rows) of a shift in the CRS; steps: a, b, d, e of an affine.Affine."""
    a, b, d, e = steps
    area = a * e - b * d
    # Adding 0.0 makes 0 of -0.
    columns, rows = (e * east - b * north) / area, (a * north - d * east) / area
    return round(columns, 4) + 0.0, round(rows, 4) + 0.0


def plane_of(cube: Any) -> tuple[str, tuple[int, int]] | None:
    """(plane, origin) of a cube with a CRS and a north-up transform; None for one without."""
    crs, transform = cube.attrs.get("crs"), cube.attrs.get("transform")
    if crs is None or transform is None or transform[0] <= 0 or transform[4] >= 0:
        return None
    return str(crs), (round(-transform[5] / 10), round(transform[2] / 10))


def open_granule(path: str | os.PathLike[str]) -> Granule:
    """The one granule at a path; see open_granules for what may lie there.

    Raises:
        DataError: as open_granules; none there; or several (a product of several tiles, a folder of
            scenes): the message lists them.
    """
    most = 20
    found = list(itertools.islice(open_granules(path), most + 1))
    if len(found) == 1:
        return found[0]
    names = ", ".join(granule.name for granule in found[:most])
    if len(found) > most:
        names += ", ..."
    raise DataError(
        f"{path}: several granules: {names}; expected one" if found else f"{path}: no granule"
    )


def open_granules(path: str | os.PathLike[str]) -> Iterator[Granule]:
    """Granules of whatever lies at `path`, one by one; pixels are read when they are asked for.

    Takes a Sentinel-2 product (.SAFE folder, zip of one, or its MTD_*.xml), L1C or L2A, or a folder
    of them; a STAC item (.json); a folder of single-band files (B02.jp2, ...B02_10m.tif); a folder
    of gsd10.tif, gsd20.tif, gsd60.tif; a .npz scene or a folder of them; a BigEarthNet patch
    folder, a folder of them, or the v2 LMDB.

    Raises:
        DataError: nothing there, not of a known kind, unreadable, a band missing, or grids that do
            not nest.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise DataError(f"{path}: not found")
    sources = list_sources(path)
    if sources != [path]:
        return itertools.chain.from_iterable(map(open_granules, sources))
    kind = _kind_of_file(path) if path.is_file() else _kind_of_folder(path)
    if kind is None:
        raise DataError(
            f"{path}: not of a known kind; expected a .npz scene, a Sentinel-2 product (.SAFE, "
            ".zip, MTD_MSIL*.xml), a STAC item (.json), a folder of gsd10.tif, gsd20.tif and "
            "gsd60.tif or of B02.jp2, ..., a BigEarthNet patch folder or a folder of them, or its "
            "LMDB (data.mdb)"
        )
    module, function = READERS[kind]
    reader: Callable[[pathlib.Path], Iterator[Granule]]
    reader = getattr(importlib.import_module(module), function)
    return reader(path)


def list_sources(path: str | os.PathLike[str]) -> list[pathlib.Path]:
    """What is opened by itself: the sources inside a folder of several, in order; else the path.

    A folder's products, or its .npz scenes, or the BigEarthNet patches at or below it: the first of
    these that it holds. Other folders are one source, or none: open_granules says which.

    Raises:
        DataError: a folder cannot be listed.
    """
    from data_pipelines import bigearthnet

    path = pathlib.Path(path)
    single = (path / "manifest.json").is_file() or (path / "data.mdb").is_file()
    if single or not path.is_dir() or safe_files.is_product(path):
        return [path]
    try:
        found = safe_files.list_products(path) or sorted(path.glob("*.npz"))
        return found or list(bigearthnet.patch_folders(path)) or [path]
    except OSError as error:
        raise DataError(f"{path}: cannot be listed: {error.strerror}") from error


# Kind -> module and function that opens it, imported when it is asked for.
READERS = {
    "product": ("data_pipelines.safe", "open_product"),
    "stac": ("data_pipelines.stac", "open_item"),
    "bands": ("data_pipelines.band_files", "open_folder"),
    "geotiff": ("data_pipelines.geotiff", "open_folder"),
    "npz": ("data_pipelines.npz", "open_scenes"),
    "bigearthnet": ("data_pipelines.bigearthnet", "open_folders"),
    "bigearthnet_lmdb": ("data_pipelines.bigearthnet", "open_lmdb"),
}
_SUFFIXES = {".npz": "npz", ".zip": "product", ".xml": "product", ".json": "stac"}


def _kind_of_file(path: pathlib.Path) -> str | None:
    return _SUFFIXES.get(path.suffix.lower())


def _kind_of_folder(path: pathlib.Path) -> str | None:
    """The kind of thing that a folder holds.

    Raises:
        DataError: it is a data set of ours.
    """
    from data_pipelines import band_files, bigearthnet, geotiff

    def holds(*patterns: str) -> bool:
        return any(next(path.glob(pattern), None) is not None for pattern in patterns)

    if holds("manifest.json"):
        raise DataError(f"{path}: a data set that kerass2.prepare has made, not a source for it")
    # In this order: a BigEarthNet patch is a folder of single-band files too.
    kinds: dict[str, Callable[[], bool]] = {
        "product": lambda: safe_files.is_product(path),
        "bigearthnet_lmdb": lambda: holds("data.mdb"),
        "bigearthnet": lambda: next(bigearthnet.patch_folders(path), None) is not None,
        "geotiff": lambda: bool(geotiff.find_files(path)),
        "bands": lambda: bool(band_files.find_files(path)),
    }
    return next((kind for kind, fits in kinds.items() if fits()), None)
