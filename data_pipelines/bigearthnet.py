"""BigEarthNet: 1.2 km patches of 12 bands (no B10) in folders of GeoTIFFs (v1, v2) or LMDB (v2).

The numbers at the end of a name are the column and the row of the patch in its tile, in patches of
120 px of 10 m from the tile's upper left corner. (The real files' transforms say so: T33UUP begins
at easting 300000 and northing 5400000; patch 26_57 of v2 lies at 331200, 5331600 and patch 87_48 of
v1 at 404400, 5342400.)
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import geotiff, sentinel2
from data_pipelines.granule import Granule, build_cube, plane_of
from data_pipelines.spec import DataError

# Edge of a patch on each grid [px]: 1.2 km. Source: BigEarthNet (Sumbul et al. 2019), section 2.
SIZES = {"gsd10": 120, "gsd20": 60, "gsd60": 20}
BANDS = tuple(band for band in sentinel2.BANDS if band != "B10")

# LMDB allows a process one open environment per file; dask may read from several threads.
_ONE_ENVIRONMENT = threading.Lock()

# v1: S2A_MSIL2A_20170613T101031_87_48; v2: S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57.
_NAME = re.compile(
    r"(?P<product>S2[A-D]_MSIL\d[AC]_\w+?)(?:_T(?P<tile>\d\d[A-Z]{3}))?"
    r"_(?P<column>\d+)_(?P<row>\d+)"
)


def parse_name(name: str) -> tuple[str, str | None, tuple[int, int]]:
    """(product, tile or None, (row, column) in the tile) of a patch name; v1 names have no tile.

    Raises:
        DataError: not the name of a BigEarthNet patch.
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise DataError(
            f"{name!r}: not a BigEarthNet patch name; expected one like "
            "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57"
        )
    return match["product"], match["tile"], (int(match["row"]), int(match["column"]))


def patch_folders(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """Folders at or below `root` (three levels) that hold a patch, in the order of their names."""
    if _is_patch(root):
        yield root
        return
    yield from _search(root, 3)


def _search(folder: pathlib.Path, depth: int) -> Iterator[pathlib.Path]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir())
    for name in names:
        # By its name alone: a listing of each of half a million folders would take minutes.
        if _NAME.fullmatch(name):
            yield folder / name
        elif depth > 1:
            yield from _search(folder / name, depth - 1)


def _is_patch(folder: pathlib.Path) -> bool:
    return (
        bool(_NAME.fullmatch(folder.resolve().name))
        and next(folder.glob("*_B*.tif"), None) is not None
    )


def open_folders(path: pathlib.Path) -> Iterator[Granule]:
    """Granules of a patch folder or of all patch folders below a folder, v1 or v2."""
    for folder in patch_folders(path):
        yield open_patch(folder)


def open_patch(folder: pathlib.Path) -> Granule:
    """One patch from its 12 GeoTIFFs. Their headers are read now (B02's only), their pixels later.

    Raises:
        DataError: a band is missing or unreadable, or not of the size of its GSD.
    """
    name = folder.resolve().name
    files = band_files(folder)
    facts = geotiff.read_facts(files["B02"])

    def read(bands: Sequence[str]) -> list[NDArray[np.uint16]]:
        return [geotiff.read_pixels(files[band], 1) for band in bands]

    return _granule(name, str(folder), read, tile_from_json(folder, name), facts)


def band_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Band -> GeoTIFF of a patch folder.

    Raises:
        DataError: one is missing.
    """
    name = folder.resolve().name
    files = {band: folder / f"{name}_{band}.tif" for band in BANDS}
    missing = [band for band, file in files.items() if not file.is_file()]
    if missing:
        found = ", ".join(sorted(file.name for file in folder.glob("*.tif"))) or "no .tif"
        raise DataError(f"{folder}: no band {', '.join(missing)}; found {found}")
    return files


def tile_from_json(folder: pathlib.Path, name: str) -> str | None:
    """The tile that v1's labels_metadata.json names; None where there is none."""
    try:
        values = json.loads((folder / f"{name}_labels_metadata.json").read_text())
        match = re.search(r"_T(\d\d[A-Z]{3})_", values["tile_source"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return match[1] if match else None


def open_lmdb(
    path: pathlib.Path, exclude: Collection[str] = (), *, names: Sequence[str] | None = None
) -> Iterator[Granule]:
    """Granules of the v2 LMDB (rico-hdl): key patch name, value safetensors of its 12 bands.

    Sentinel-1 entries are passed over; so are the names in `exclude`. With `names` only these come,
    in that order, and the other keys are not looked at.

    Raises:
        DataError: unreadable, or a value is not safetensors (v1's LMDBs hold pickles: never read).
    """
    if names is None:
        names = [name for name in list_lmdb(path) if name not in exclude]
    for name in names:
        yield _granule(name, str(path), functools.partial(read_lmdb, path, name), None, {})


def list_lmdb(path: pathlib.Path) -> list[str]:
    """Names of the Sentinel-2 patches of an LMDB, sorted.

    Raises:
        DataError: unreadable, or there is none.
    """
    import lmdb

    try:
        with (
            _ONE_ENVIRONMENT,
            lmdb.open(str(path), readonly=True, lock=False, readahead=False) as environment,
            environment.begin() as transaction,
        ):
            keys = list(transaction.cursor().iternext(values=False))
    except lmdb.Error as error:
        raise DataError(f"{path}: not readable as LMDB: {error}") from error
    names = [key.decode(errors="replace") for key in keys]
    names = [name for name in names if name.startswith("S2")]
    if not names:
        raise DataError(f"{path}: no Sentinel-2 patch; expected keys that begin with S2")
    return names


def read_lmdb(path: pathlib.Path, name: str, bands: Sequence[str]) -> list[NDArray[np.uint16]]:
    """Some bands of one LMDB entry.

    Raises:
        DataError: there is no such entry, or it is not safetensors with these bands.
    """
    import lmdb
    import safetensors
    import safetensors.numpy

    try:
        with (
            _ONE_ENVIRONMENT,
            lmdb.open(str(path), readonly=True, lock=False, readahead=False) as environment,
            environment.begin() as transaction,
        ):
            value = transaction.get(name.encode())
        images = safetensors.numpy.load(value or b"")
    except (lmdb.Error, safetensors.SafetensorError, TypeError) as error:
        raise DataError(f"{path}: {name}: not readable as safetensors: {error}") from error
    missing = [band for band in bands if band not in images]
    if missing:
        found = ", ".join(sorted(images)) or "nothing"
        raise DataError(f"{path}: {name}: no band {', '.join(missing)}; found {found}")
    return [images[band] for band in bands]


def _granule(
    name: str,
    path: str,
    read: Callable[[Sequence[str]], list[NDArray[np.uint16]]],
    tile: str | None,
    facts: Mapping[str, Any],
) -> Granule:
    """A granule whose pixels come from read(band), one dask task a cube: a patch is one chunk."""
    import dask.array
    from dask.delayed import delayed

    product, name_tile, (row, column) = parse_name(name)
    tile = name_tile or tile
    crs, transform = facts.get("crs"), facts.get("transform")
    made_up = bool(facts.get("synthetic"))
    cubes = {}
    for key, size in SIZES.items():
        gsd = sentinel2.GSDS[key]
        bands = sentinel2.bands_at(gsd)
        task = delayed(_read_cube, pure=False)(path, name, bands, read)
        data = dask.array.from_delayed(task, (len(bands), size, size), np.uint16)
        place = None if transform is None else (gsd, 0, transform[2], 0, -gsd, transform[5])
        cubes[key] = build_cube(data, bands, gsd, crs=crs, transform=place)
    scene = f"{product}_T{tile}" if tile else product
    known = plane_of(cubes["gsd10"])
    if known is None and tile is None:
        # A v1 product covers several tiles: without one the numbers in the name are no position.
        return Granule(name, scene, scene, cubes, synthetic=made_up)
    grid, origin = known or (f"T{tile}", (row * SIZES["gsd10"], column * SIZES["gsd10"]))
    return Granule(name, scene, f"T{tile}" if tile else scene, cubes, origin, grid, made_up)


def _read_cube(
    path: str,
    name: str,
    bands: tuple[str, ...],
    read: Callable[[Sequence[str]], list[NDArray[np.uint16]]],
) -> NDArray[np.uint16]:
    """(band, y, x) of one GSD, checked."""
    images = []
    for band, image in zip(bands, read(bands), strict=True):
        check_band(path, name, band, image)
        images.append(image)
    return np.stack(images)


def check_band(path: str, name: str, band: str, image: NDArray[Any]) -> None:
    """Refuse a band that is not of the size of its GSD.

    Raises:
        DataError: found and expected type and size.
    """
    size = SIZES[f"gsd{sentinel2.BANDS[band].gsd}"]
    if image.shape != (size, size) or image.dtype != np.uint16:
        raise DataError(
            f"{path}: {name}: {band} is {image.dtype} {image.shape}; expected uint16 {(size, size)}"
        )


def read_exclusions(metadata: pathlib.Path) -> set[str]:
    """Patch names of a v2 metadata parquet, e.g. that of patches with snow, cloud or shadow.

    Raises:
        DataError: unreadable, or without a column patch_id.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(metadata, columns=["patch_id"])
        return set(table.column("patch_id").to_pylist())
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        raise DataError(f"{metadata}: not readable as BigEarthNet metadata: {error}") from error
