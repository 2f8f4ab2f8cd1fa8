"""A split as one ordinary HDF5 file, written by all processes of an MPI job at once.

For programs that want the classification paper's single file itself, not the virtual one beside our
shards. Where h5py is built with MPI, each rank writes its run of the records through HDF5's MPI
driver; any other h5py writes the same file in one process.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from data_pipelines import files, hdf5, record, store
from data_pipelines.manifest import Path
from data_pipelines.spec import DataError, Source

# Records that a rank holds at once: some 10 MB of patches.
PIECE = 64


def join(folder: Path, split: str, path: Path, *, world_size: int, overwrite: bool = False) -> int:
    """Write all records of a split, each compared by its checksum, to one HDF5 file.

    Args:
        folder: a data set of any format.
        split: "train", "validation" or "test".
        path: file to make; appears when it is complete. Keys and attributes are those of shards.
        world_size: processes that call this side by side, as their launcher says.
        overwrite: replace an existing file.

    Returns:
        How many records there are.

    Raises:
        DataError: no such data set or an empty split, a damaged record, a file that is there
            already, or several processes whose h5py has no MPI. All of them raise it.
    """
    target = pathlib.Path(path)
    if target.exists() and not overwrite:
        raise DataError(f"{target} is there already: --overwrite replaces it")
    source = store.open_source(folder, split)
    if not len(source):
        raise DataError(f"{folder}: split {split} holds no patches")
    if world_size == 1:
        with files.replacing(target) as temporary:
            _write(temporary, source, slice(0, len(source)), lambda value: [value])
        return len(source)
    comm = _world(world_size)
    # One name for all, which rank 0 chooses and gives up.
    temporary = target.with_name(f".{target.stem}.partial{target.suffix}")
    share = slice(*(len(source) * each // world_size for each in (comm.rank, comm.rank + 1)))
    try:
        _write(temporary, source, share, comm.allgather, driver="mpio", comm=comm)
        if comm.rank == 0:
            files.take_place(temporary, target)
    finally:
        if comm.rank == 0:
            temporary.unlink(missing_ok=True)
    comm.Barrier()
    return len(source)


def _world(world_size: int) -> Any:
    """MPI's communicator of all processes.

    Raises:
        DataError: h5py has no MPI, or MPI sees other processes than the launcher started.
    """
    import h5py

    if not h5py.get_config().mpi:
        raise DataError(
            f"{world_size} processes were started, but this h5py ({h5py.__version__}) has no MPI: "
            "start one, or build h5py with HDF5_MPI=ON"
        )
    from mpi4py import MPI

    if MPI.COMM_WORLD.size != world_size:
        raise DataError(
            f"{world_size} processes were started, MPI sees {MPI.COMM_WORLD.size}: is mpi4py "
            "built for the MPI that started them?"
        )
    return MPI.COMM_WORLD


def _write(
    path: pathlib.Path,
    source: Source,
    share: slice,
    gather: Callable[[Any], list[Any]],
    **driver: Any,
) -> None:
    """Write this process' share; what changes the file's structure is done by all together."""
    import h5py

    with h5py.File(path, "w", libver=hdf5.VERSION, **driver) as file:
        for key, tensor in record.features(source.spec):
            shape = (len(source), *tensor.shape)
            stored = record.stored_type(tensor)
            hdf5.describe(file.create_dataset(hdf5.dataset_name(key), shape, stored), tensor)
        hdf5.describe_file(file, source.spec)
        names, error = list[bytes](), None
        try:
            names = _write_arrays(file, source, share)
        except DataError as found:
            # Not raised here: the others would wait for ever in what they do together.
            error = str(found)
        width, text = 1, None
        for length, problem in gather((max(map(len, names), default=1), error)):
            width, text = max(width, length), text or problem
        if text is not None:
            raise DataError(text)
        dtype = h5py.string_dtype(length=width)
        file.create_dataset("patch_id", (len(source),), dtype)[share] = np.array(names, dtype)


def _write_arrays(file: Any, source: Source, share: slice) -> list[bytes]:
    """Write the records of a share; gives their names in UTF-8."""
    names = []
    for start in range(share.start, share.stop, PIECE):
        stop = min(start + PIECE, share.stop)
        batch = source.read(np.arange(start, stop))
        for key, _ in record.features(source.spec):
            group, name = key.split("/", 1)
            file[hdf5.dataset_name(key)][start:stop] = batch[group][name]
        names += [name.encode() for name in batch["patch_id"].tolist()]
    return names
