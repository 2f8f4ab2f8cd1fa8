"""What tells one product from another without reading its pixels, and whether it has changed."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import google_crc32c

from data_pipelines.granule import Granule

# Raise it when the same options give other patches.
VERSION = 1
# Bytes of each file that are read, at its beginning and at its end: headers, and the directory of a
# zip with the checksums of its members.
EDGE = 2**16


def of_product(
    path: str | os.PathLike[str], granules: Iterable[Granule], options: Mapping[str, Any]
) -> tuple[str, str]:
    """Two digests of a product and of how it is cut, 12 hexadecimal digits each.

    Args:
        path: the product; files below it count by name inside it, size, beginning and end; with a
            STAC item those of its assets that are files on this machine.
        granules: what was found in it; facts, grids and offsets count.
        options: JSON values; how patches are placed and chosen.

    Returns:
        (digest, stamp). The digest is the same on every machine that has the same product, wherever
        it lies. The stamp is for this machine: of the place and the time of the last change, too.
    """
    files = [(_name(path, file), file) for file in _files(pathlib.Path(path))]
    # By their last part: the item, which counts, says where they lie.
    files += [(file.name, file) for file in _assets(pathlib.Path(path))]
    content = {
        "version": VERSION,
        "files": [(name, file.stat().st_size, _edges(file)) for name, file in files],
        "granules": [_describe(granule) for granule in granules],
        "options": dict(options),
    }
    here = str(pathlib.Path(path).resolve()), [file.stat().st_mtime_ns for _, file in files]
    return _digest(content), _digest([content, here])


def _files(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """The files of a product in a fixed order; metadata stand for all that lies beside them."""
    root = path.parent if path.suffix.lower() == ".xml" else path
    if root.is_file():
        yield root
        return
    for folder, folders, names in os.walk(root):
        folders.sort()
        files = [pathlib.Path(folder, name) for name in sorted(names)]
        yield from (file for file in files if file.is_file())


def _assets(path: pathlib.Path) -> list[pathlib.Path]:
    """Files beside a STAC item that hold its bands; none of anything else."""
    from data_pipelines import stac

    return stac.local_files(path) if path.suffix.lower() == ".json" else []


def _name(path: str | os.PathLike[str], file: pathlib.Path) -> str:
    return pathlib.PurePosixPath(os.path.relpath(file, path)).as_posix()


def _edges(file: pathlib.Path) -> str:
    """CRC-32C of a file's beginning and end."""
    with file.open("rb") as content:
        crc = google_crc32c.value(content.read(EDGE))
        content.seek(max(0, file.stat().st_size - EDGE))
        return f"{google_crc32c.extend(crc, content.read(EDGE)):08x}"


def _describe(granule: Granule) -> dict[str, Any]:
    """What a granule is, and where."""
    cubes = {
        name: {
            "shape": list(cube.shape),
            "bands": [str(band) for band in cube.band.values],
            "attributes": {key: str(value) for key, value in sorted(cube.attrs.items())},
        }
        for name, cube in granule.cubes.items()
    }
    facts = {key: str(value) for key, value in sorted(getattr(granule, "facts", {}).items())}
    place = granule.place, granule.plane, granule.origin
    return {"name": granule.name, "scene": granule.scene, "place": place, "facts": facts} | cubes


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
