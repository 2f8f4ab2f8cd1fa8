"""The made-up data of `python -m benchmarks pipeline`: one granule in every form."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import record, store
from data_pipelines.spec import Batch, DatasetSpec


def make(folder: pathlib.Path, task: str, size: int, readers: Sequence[str]) -> dict[str, Any]:
    """The same patches for every reader that takes this task; what is there already stays.

    Returns:
        {"task": ..., "sources": {reader: path}, "bytes": of one patch, "count": patches}.
    """
    from data_pipelines import convert, geotiff, synthetic

    granule = folder / "granule"
    if not granule.exists():
        pixels = synthetic.build_cubes(size, seed=1)
        geotiff.write_folder(
            granule, pixels, crs=synthetic.CRS, corner=synthetic.CORNER, synthetic=True
        )
    sources = {"cube": str(granule)}
    for name in store.FORMATS:
        target = folder / name
        if not target.exists():
            convert.convert([granule], target, task, only_split="train", file_format=name)
        sources[name] = str(target)
    source = store.open_source(sources["tfrecord"], "train")
    sources["memory map"] = str(_write_arrays(folder / "arrays", source))
    if task == "patches":
        sources["geotiff"] = str(_write_geotiffs(folder / "geotiff", source))
    num_bytes = sum(tensor.num_bytes for _, tensor in record.features(source.spec))
    known = {name: sources[name] for name in readers if name in sources}
    return {"task": task, "sources": known, "bytes": num_bytes, "count": len(source)}


class ArraySource:
    """Examples in one memory-mapped array a feature: the ceiling, since nothing is decoded."""

    def __init__(self, folder: pathlib.Path) -> None:
        """Map what _write_arrays wrote."""
        self.spec = DatasetSpec.from_json(json.loads((folder / "spec.json").read_text()))
        self.split = "train"
        self._names = np.load(folder / "names.npy")
        self._arrays = {
            key: np.load(folder / f"{key.replace('/', '-')}.npy", mmap_mode="r")
            for key, _ in record.features(self.spec)
        }

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._names)

    def read(self, indices: Sequence[int] | NDArray[Any]) -> Batch:
        """See spec.Source."""
        batch: Batch = {"inputs": {}, "targets": {}, "patch_id": self._names[indices]}
        for key, array in self._arrays.items():
            group, name = key.split("/", 1)
            batch[group][name] = array[indices]
        return batch


class GeoTIFFSource:
    """Patches as BigEarthNet's archive has them: a folder each, a GeoTIFF a band."""

    def __init__(self, folder: pathlib.Path, spec: DatasetSpec) -> None:
        """Look at the names only."""
        self.spec, self.split = spec, "train"
        self._folders = sorted(folder.iterdir())

    def __len__(self) -> int:
        """Number of patches."""
        return len(self._folders)

    def read(self, indices: Sequence[int] | NDArray[Any]) -> Batch:
        """See spec.Source."""
        import rasterio

        inputs: dict[str, list[NDArray[Any]]] = {name: [] for name in self.spec.inputs}
        for index in indices:
            for name, tensor in self.spec.inputs.items():
                bands = []
                for band in tensor.bands:
                    with rasterio.open(self._folders[index] / f"{band}.tif") as file:
                        bands.append(file.read(1))
                inputs[name].append(np.stack(bands, axis=-1))
        names = np.array([self._folders[index].name for index in indices])
        stacked = {name: np.stack(values) for name, values in inputs.items()}
        return {"inputs": stacked, "targets": {}, "patch_id": names}


def make_products(root: pathlib.Path, tile: int) -> list[pathlib.Path]:
    """Two whole L1C products with lossless JP2; written once."""
    from data_pipelines import synthetic_product

    products = []
    for number, name in enumerate(("T32UMC", "T32UNC")):
        folder = root / f"product-{tile}-{name}"
        if not folder.exists():
            pixels = synthetic_product.build_tile(tile, seed=number)
            synthetic_product.write_product(folder, pixels, level="L1C", tile=name)
        products += [next(folder.glob("*.SAFE"))]
    return products


def _write_arrays(folder: pathlib.Path, source: Any) -> pathlib.Path:
    """Every feature of a source as one .npy."""
    if (folder / "spec.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    count = len(source)
    arrays = {
        key: np.lib.format.open_memmap(
            folder / f"{key.replace('/', '-')}.npy", "w+", tensor.dtype, (count, *tensor.shape)
        )
        for key, tensor in record.features(source.spec)
    }
    names = []
    for start in range(0, count, 64):
        batch = source.read(np.arange(start, min(start + 64, count)))
        names += batch["patch_id"].tolist()
        for key, array in arrays.items():
            group, name = key.split("/", 1)
            array[start : start + 64] = batch[group][name]
    np.save(folder / "names.npy", np.array(names))
    (folder / "spec.json").write_text(json.dumps(source.spec.to_json()))
    return folder


def _write_geotiffs(folder: pathlib.Path, source: Any) -> pathlib.Path:
    """One folder a patch, one GeoTIFF a band, as BigEarthNet stores them (no compression)."""
    import warnings

    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    if folder.exists():
        return folder
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    for position in range(len(source)):
        batch = source.read([position])
        target = folder / f"{position:06d}"
        target.mkdir(parents=True)
        for name, tensor in source.spec.inputs.items():
            size = tensor.shape[0]
            profile = {"driver": "GTiff", "dtype": "uint16", "count": 1}
            for number, band in enumerate(tensor.bands):
                path = target / f"{band}.tif"
                with rasterio.open(path, "w", height=size, width=size, **profile) as file:
                    file.write(batch["inputs"][name][0, :, :, number], 1)
    return folder
