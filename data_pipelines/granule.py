"""A granule, one xarray cube per GSD of a place at a time; and how to open one."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from data_pipelines import sentinel2
from data_pipelines.spec import DataError

if TYPE_CHECKING:
    import xarray

# Edge of a dask chunk on the finest grid [px]: 2 MB of uint16 a band, a multiple of 2, 6 and 36.
CHUNK = 1080


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
    """`gsd10`, `gsd20`, `gsd60` -> (band, y, x) uint16 DN without offset, 0 is no data; band names
    as coordinate; attributes `gsd` [m], `nodata`, and `crs` (text) and `transform` (six numbers of
    an affine.Affine) where they are known. Lazy: dask inside."""
    origin: tuple[int, int] | None = None
    """(y, x) of the upper left corner in `plane` [px of 10 m]; None where it is not known."""
    plane: str = ""
    """The pixel plane that `origin` counts in: a CRS, or a place. Empty: that of the place."""
    synthetic: bool = False
    """Whether the pixels were made up, not measured. Everything made of them says so."""

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
) -> xarray.DataArray:
    """A cube as Granule holds it, from a dask or numpy array (band, y, x) uint16 DN."""
    import xarray

    attributes: dict[str, Any] = {"gsd": float(gsd), "nodata": sentinel2.NO_DATA}
    if crs is not None:
        attributes["crs"] = crs
    if transform is not None:
        attributes["transform"] = tuple(map(float, transform))
    return xarray.DataArray(
        data, {"band": list(bands)}, ("band", "y", "x"), name=f"gsd{gsd}", attrs=attributes
    )


def check_nesting(path: str | os.PathLike[str], cubes: Mapping[str, Any]) -> None:
    """Refuse cubes whose grids do not nest: sizes in the ratio of GSDs, the same corner and CRS.

    Raises:
        DataError: found and expected sizes, corners or CRS.
    """
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
    for key in ("crs", "transform"):
        values = {name: cube.attrs.get(key) for name, cube in cubes.items()}
        comparable = {
            _corner(value, ratios[name]) if key == "transform" else value
            for name, value in values.items()
            if value is not None
        }
        if len(comparable) > 1:
            found = ", ".join(f"{name} {value}" for name, value in values.items())
            what = "one CRS" if key == "crs" else "one corner, pixels in the ratio of GSDs"
            raise DataError(f"{path}: grids do not nest: {key} {found}; expected {what}")


def _corner(transform: tuple[float, ...], ratio: int) -> tuple[float, ...]:
    """Corner, and the size of a pixel divided by its ratio: equal for grids that nest [m]."""
    a, b, c, d, e, f = transform
    return tuple(round(v, 3) for v in (a / ratio, b / ratio, c, d / ratio, e / ratio, f))


def plane_of(cube: Any) -> tuple[str, tuple[int, int]] | None:
    """(plane, origin) of a cube with a CRS and a north-up transform; None for one without."""
    crs, transform = cube.attrs.get("crs"), cube.attrs.get("transform")
    if crs is None or transform is None or transform[0] <= 0 or transform[4] >= 0:
        return None
    return str(crs), (round(-transform[5] / 10), round(transform[2] / 10))


def open_granules(path: str | os.PathLike[str]) -> Iterator[Granule]:
    """Granules of whatever lies at `path`, one by one; pixels are read when they are asked for.

    Takes a .npz scene or a folder of them; a folder of gsd10.tif, gsd20.tif, gsd60.tif; a
    BigEarthNet patch folder, a folder of them, or the v2 LMDB.

    Raises:
        DataError: nothing there, not of a known kind, unreadable, a band missing, or grids that do
            not nest.
    """
    path = pathlib.Path(path)
    return _reader(path)(path)


def _reader(path: pathlib.Path) -> Callable[[pathlib.Path], Iterator[Granule]]:
    """The reader for the kind of thing that lies at `path`."""
    from data_pipelines import bigearthnet, geotiff, npz

    if not path.exists():
        raise DataError(f"{path}: not found")
    if path.is_file():
        if path.suffix == ".npz":
            return npz.open_scenes
    elif (path / "manifest.json").is_file():
        raise DataError(f"{path}: a data set that kerass2.prepare has made, not a source for it")
    else:
        kinds: dict[str, Callable[[pathlib.Path], Iterator[Granule]]] = {
            "gsd*.tif": geotiff.open_folder,
            "data.mdb": bigearthnet.open_lmdb,
            "*.npz": npz.open_scenes,
        }
        for pattern, reader in kinds.items():
            if next(path.glob(pattern), None) is not None:
                return reader
        if next(bigearthnet.patch_folders(path), None) is not None:
            return bigearthnet.open_folders
    raise DataError(
        f"{path}: not of a known kind; expected a .npz scene, a folder of gsd10.tif, gsd20.tif and "
        "gsd60.tif, a BigEarthNet patch folder or a folder of them, or its LMDB (data.mdb)"
    )
