"""HDF5 shards from first to last through tensorflow-io, for evaluation and exchange.

Training reads by position, through store.open_source. This is the other way that TensorFlow
programs read HDF5: datasets of tensorflow-io, which go through a file in steps of 1024 rows and
know neither order nor shares. The only file that imports tensorflow_io.

Our reader is the faster in order, too: 11 times on 2 cores (`python -m benchmarks pipeline --part
sequential`, 92 MB). It reads each record once, to where it belongs, and checks it there; here a
shard is read once for its CRC and once more by tensorflow-io, whose elements are single rows.
"""

from __future__ import annotations

import pathlib
import warnings
from typing import Any

from data_pipelines import hdf5, store
from data_pipelines.manifest import MANIFEST, File, Path
from data_pipelines.record import features
from data_pipelines.spec import DataError, DatasetSpec


def build_dataset(folder: Path, split: str, batch: int) -> Any:
    """The tf.data.Dataset of one split of an HDF5 data set, in storage order.

    Holds up to 1024 records of each array in memory. Reads every shard once before, to compare its
    CRC: tensorflow-io checks nothing.

    Args:
        folder: a data set of format hdf5.
        split: "train", "validation" or "test".
        batch: examples of an element; the last may have fewer.

    Returns:
        Elements as spec.Source.read gives them: {"inputs": {name: (b, y, x, band)}, "targets":
        likewise, "patch_id": (b,) tf.string}, dtypes as stored.

    Raises:
        DataError: no such data set, of another format, damaged, or without patches; or
            tensorflow-io is missing or made for another TensorFlow.
    """
    found = store.read_manifest(folder)
    if found.format != "hdf5":
        path = pathlib.Path(folder) / MANIFEST
        raise DataError(f"{path}: format {found.format!r}; tensorflow-io reads hdf5 only")
    if batch < 1:
        raise DataError(f"batch {batch}: expected at least 1")
    files = [shard.files[0] for shard in found.check_files(folder, split)]
    if not files:
        raise DataError(f"{folder}: split {split} holds no patches")
    for file in files:
        file.check_crc(folder)
    import tensorflow as tf

    try:
        shards = [_open_shard(pathlib.Path(folder), file, found.spec) for file in files]
    except NotImplementedError as error:
        raise DataError(_mismatch()) from error
    except tf.errors.InvalidArgumentError as error:  # float16, for one
        raise DataError(f"{folder}: tensorflow-io cannot read it: {error.message}") from error
    dataset = shards[0]
    for shard in shards[1:]:
        dataset = dataset.concatenate(shard)
    return dataset.batch(batch).prefetch(1)


def _open_shard(folder: pathlib.Path, file: File, spec: DatasetSpec) -> Any:
    """The examples of one shard, one by one."""
    import tensorflow as tf

    tensorflow_io = _import()
    path = str((folder / file.name).resolve())

    def read(name: str, shape: tuple[int, ...]) -> Any:
        values = tensorflow_io.IODataset.from_hdf5(path, f"/{name}")
        return values.map(lambda value: tf.ensure_shape(value, shape))

    parts: dict[str, Any] = {"inputs": {}, "targets": {}, "patch_id": read("patch_id", ())}
    for key, tensor in features(spec):
        group, name = key.split("/", 1)
        parts[group][name] = read(hdf5.dataset_name(key), tensor.shape)
    return tf.data.Dataset.zip(parts)


def _import() -> Any:
    """tensorflow_io, whose warnings say what NotImplementedError says when it is used."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import tensorflow_io
    except ImportError as error:
        raise DataError(
            f"tensorflow-io cannot be imported ({error}); "
            "pip install 'kerass2[io]' brings it, and the TensorFlow it is made for"
        ) from error
    return tensorflow_io


def _mismatch() -> str:
    """What to say when its library was not made for this TensorFlow."""
    import tensorflow as tf

    return (
        f"tensorflow-io {_import().__version__} was not made for TensorFlow {tf.__version__}; "
        "0.37 goes with 2.16. Or read by position with store.open_source, which needs neither"
    )
