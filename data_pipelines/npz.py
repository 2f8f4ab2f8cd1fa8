"""Scenes in .npz: im10, im20, im60 (band, y, x) uint16 DN; bands10, ... hold their names."""

from __future__ import annotations

import json
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from data_pipelines import sentinel2
from data_pipelines.granule import CHUNK, Granule, build_cube, check_nesting
from data_pipelines.spec import DataError


def open_scenes(path: pathlib.Path) -> Iterator[Granule]:
    """One granule from a .npz file, or one from each in a folder, in the order of their names."""
    for file in [path] if path.is_file() else sorted(path.glob("*.npz")):
        yield open_scene(file)


def open_scene(path: pathlib.Path) -> Granule:
    """A granule from one .npz file. It is read at once: members of a zip have no random access.

    Raises:
        DataError: unreadable, an array or a band missing, or grids that do not nest.
    """
    import dask.array

    arrays = _load(path)
    cubes = {}
    for name, gsd in sentinel2.GSDS.items():
        image, names = _member(path, arrays, f"im{gsd}"), _member(path, arrays, f"bands{gsd}")
        if image.ndim != 3 or image.dtype != np.uint16 or len(names) != len(image):
            raise DataError(
                f"{path}: im{gsd} is {image.dtype} {image.shape} with {len(names)} names; "
                "expected uint16 (band, y, x) and a name for each band"
            )
        order = select(path, f"bands{gsd}", [str(band) for band in names], gsd)
        size = CHUNK * 10 // gsd
        data = dask.array.from_array(image[order], chunks=(-1, size, size))
        cubes[name] = build_cube(data, sentinel2.bands_at(gsd), gsd)
    check_nesting(path, cubes)
    scene = _scene_name(path, arrays)
    return Granule(name=scene, scene=scene, place=scene, cubes=cubes, origin=(0, 0))


def select(path: Any, where: str, names: list[str], gsd: int) -> list[int]:
    """Positions in `names` of the bands of one GSD, in storage order.

    Raises:
        DataError: a band is missing.
    """
    wanted = sentinel2.bands_at(gsd)
    missing = [band for band in wanted if band not in names]
    if missing:
        found = ", ".join(names) or "none"
        raise DataError(
            f"{path}: {where}: no band {', '.join(missing)}; found {found}; "
            f"expected {', '.join(wanted)}"
        )
    return [names.index(band) for band in wanted]


def _load(path: pathlib.Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not readable as .npz: {error}") from error


def _member(path: pathlib.Path, arrays: dict[str, Any], key: str) -> Any:
    if key not in arrays:
        found = ", ".join(arrays) or "nothing"
        raise DataError(f"{path}: no array {key}; found {found}; expected im10, bands10, im20, ...")
    return arrays[key]


def _scene_name(path: pathlib.Path, arrays: dict[str, Any]) -> str:
    """The name in `meta` (JSON text) where there is one, else the file's."""
    try:
        return str(json.loads(str(arrays["meta"]))["name"])
    except (KeyError, TypeError, ValueError):
        return path.stem
