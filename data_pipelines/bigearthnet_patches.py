"""BigEarthNet patches as arrays: found, read at once, checked; and what an example of them holds.

bigearthnet.py opens the same patches as granules, lazily, which costs several times their reading.
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from data_pipelines import bigearthnet, geotiff, nomenclature, sentinel2
from data_pipelines.bigearthnet import BANDS, SIZES
from data_pipelines.spec import DataError, DatasetSpec, TensorSpec

TASK = "bigearthnet"
# Edge of a patch on the ground [m].
EDGE = 1200.0

# "gsd10", "gsd20", "gsd60" -> (y, x, band) uint16 DN, bands as sentinel2.bands_at has them.
Images = Mapping[str, NDArray[np.uint16]]
# (images, place, name of the patch) -> (y, x, band) uint16 DN of all BANDS at 10 m.
Upsampler = Callable[[Images, str, str], NDArray[np.uint16]]


def find_patches(archive: pathlib.Path) -> dict[str, str]:
    """Name -> where it lies (its folder, or the LMDB) of every patch of an archive, sorted.

    Args:
        archive: a folder of patch folders, v1 or v2, down to three levels; or the LMDB's folder, or
            one that holds it.

    Raises:
        DataError: not found, no patch there, or a patch that is there twice.
    """
    if not archive.is_dir():
        raise DataError(f"{archive}: not found; expected the folder of a BigEarthNet archive")
    files = (archive / "data.mdb", *sorted(archive.glob("*/data.mdb")))
    lmdbs = [file.parent for file in files if file.is_file()]
    found: dict[str, str] = {}
    if lmdbs:
        pairs = [(name, str(path)) for path in lmdbs for name in bigearthnet.list_lmdb(path)]
    else:
        pairs = [(folder.name, str(folder)) for folder in bigearthnet.patch_folders(archive)]
    for name, place in pairs:
        if name in found:
            raise DataError(f"{archive}: {name} is there twice: in {found[name]} and in {place}")
        found[name] = place
    if not found:
        raise DataError(
            f"{archive}: no BigEarthNet patch; expected folders such as "
            "S2A_MSIL2A_20170613T101031_87_48, or an LMDB (data.mdb)"
        )
    return {name: found[name] for name in sorted(found)}


def read_images(place: str, name: str) -> dict[str, NDArray[np.uint16]]:
    """All 12 bands of a patch.

    Args:
        place: its folder of GeoTIFFs, or the LMDB that holds it.
        name: of the patch.

    Raises:
        DataError: a band is missing, damaged, or not of the size of its GSD.
    """
    path = pathlib.Path(place)
    if path.name == name:
        files = bigearthnet.band_files(path)
        planes = {band: geotiff.read_pixels(file, 1) for band, file in files.items()}
    else:
        values = bigearthnet.read_lmdb(path, name, BANDS)
        planes = dict(zip(BANDS, values, strict=True))
    images = {}
    for key, size in SIZES.items():
        bands = sentinel2.bands_at(sentinel2.GSDS[key])
        images[key] = np.empty((size, size, len(bands)), np.uint16)
        for index, band in enumerate(bands):
            bigearthnet.check_band(place, name, band, planes[band])
            images[key][..., index] = planes[band]
    return images


def read_labels(place: str, name: str) -> tuple[str, ...]:
    """Names of the classes of a v1 patch, from the file beside its pixels.

    Raises:
        DataError: no such file, damaged, or without labels.
    """
    path = pathlib.Path(place, f"{name}_labels_metadata.json")
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}; expected the labels of v1, or metadata.parquet of v2"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: damaged, expected JSON: {error}") from error
    labels = values.get("labels") if isinstance(values, dict) else None
    if not isinstance(labels, list) or not labels or not all(isinstance(x, str) for x in labels):
        raise DataError(f"{path}: labels {labels!r}; expected a list of names of classes")
    return tuple(labels)


def is_synthetic(place: str, name: str) -> bool:
    """Whether a patch's files say that they were made up; LMDBs say nothing."""
    file = pathlib.Path(place, f"{name}_B02.tif")
    return file.is_file() and bool(geotiff.read_facts(file)["synthetic"])


def build_spec(num_classes: int = 43, *, upsampled: bool = False) -> DatasetSpec:
    """What one example holds.

    Args:
        num_classes: 43 or 19; target "labels" is (num_classes,) uint8 of 0 and 1, and its `bands`
            are the names of the classes in CORINE order.
        upsampled: one input "bands", all BANDS at 10 m; else inputs "gsd10", "gsd20", "gsd60".
    """
    if upsampled:
        size = SIZES["gsd10"]
        inputs = {"bands": TensorSpec((size, size, len(BANDS)), BANDS, 10.0)}
    else:
        inputs = {}
        for key, size in SIZES.items():
            gsd = sentinel2.GSDS[key]
            bands = sentinel2.bands_at(gsd)
            inputs[key] = TensorSpec((size, size, len(bands)), bands, float(gsd))
    names = nomenclature.class_names(num_classes)
    return DatasetSpec(
        TASK, inputs, {"labels": TensorSpec((len(names),), names, EDGE, "uint8", 1.0)}
    )


def upsample_bilinear(images: Images, place: str = "", name: str = "") -> NDArray[np.uint16]:
    """All bands at 10 m: half-pixel centres, borders repeated (OpenCV's INTER_LINEAR), rounded.

    Nothing but `images` counts.
    """
    size = SIZES["gsd10"]
    out = np.empty((size, size, len(BANDS)), np.uint16)
    for key, image in images.items():
        bands = sentinel2.bands_at(sentinel2.GSDS[key])
        where = [BANDS.index(band) for band in bands]
        scale = size // image.shape[0]
        if scale == 1:
            out[..., where] = image
            continue
        weights = _weights(image.shape[0], scale)
        # In order: numpy multiplies matrices that are not by a slow loop of its own.
        planes = np.moveaxis(image, -1, 0).astype(np.float32, order="C")
        out[..., where] = np.rint(np.moveaxis(weights @ planes @ weights.T, 0, -1))
    return out


UPSAMPLERS: dict[str, Upsampler | None] = {"none": None, "bilinear": upsample_bilinear}


@functools.lru_cache(maxsize=4)
def _weights(size: int, scale: int) -> NDArray[np.float32]:
    """(size * scale, size): what each coarse pixel gives to each fine one along an axis."""
    position = np.clip((np.arange(size * scale) + 0.5) / scale - 0.5, 0, size - 1)
    first = np.minimum(position.astype(int), size - 2)
    rows = np.arange(size * scale)
    weights = np.zeros((size * scale, size), np.float32)
    weights[rows, first] = 1 - (position - first)
    weights[rows, first + 1] = position - first
    return weights
