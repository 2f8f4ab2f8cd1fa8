"""Patches straight from a product, without files: a Source over lazy cubes.

The patches, their order and their pixels are those of a data set that is prepared with the same
options. They are cut when they are asked for: neighbouring patches of the split form a region,
whose rows are read chunk by chunk in threads, degraded, and kept in a buffer of bounded size. The
source's `shuffle` tells batching.py to mix only as many regions as the buffer holds, so that a
region is read once or twice an epoch. Of a product that fits into the buffer all patches are mixed,
in the order of a prepared data set.

Which patches see pixels without data must be known before the first is read: opening a product
reads all of it once. The answer can be kept in a folder for the next time.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import os
import pathlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from data_pipelines import batching, cube, fingerprint, placement, sentinel2, split
from data_pipelines.files import replacing
from data_pipelines.granule import CHUNK, Granule, open_granules
from data_pipelines.record import empty_rows
from data_pipelines.region import THREADS, Buffer, Region, read_window
from data_pipelines.spec import SPLITS, Batch, DataError, DatasetSpec
from data_pipelines.windows import Window

# Bytes of pixels that are ready to be cut: 0.6 of a whole tile's for the 20 m task.
BUFFER = 512 * 2**20
# Regions that the buffer holds at least, so that patches from several places are mixed.
REGIONS = 4
# Granules are held open; an archive of thousands is better prepared once.
MAX_GRANULES = 512
# Of the checksum behind what is kept of a product.
CRC_BYTES = 4

Advance = Callable[[int, int], None]


def open_source(
    path: str | os.PathLike[str], task_name: str, split_name: str, **options: Any
) -> CubeSource:
    """Random access to one split of a product; see open_product for options and errors."""
    return open_product(path, task_name, **options).source(split_name)


def open_product(
    path: str | os.PathLike[str],
    task_name: str,
    *,
    max_cloud: float | None = None,
    buffer_bytes: int = BUFFER,
    cache: pathlib.Path | None = None,
    advance: Advance = lambda done, total: None,
    **options: Any,
) -> Product:
    """Open the granules at a path and find out which patches they give; reads all pixels once.

    Args:
        path: anything that granule.open_granules takes.
        task_name: a key of cube.TASKS.
        max_cloud: leave out patches of which a mask says that more than this share is cloud.
        buffer_bytes: pixels to hold, of all splits together. While a region is read, it takes up to
            half as much again.
        cache: folder that keeps which patches are usable, so that the next call need not look; a
            product that has changed is looked at again. None keeps nothing.
        advance: called with (patches looked at, patches placed), by one thread at a time.
        **options: how patches are placed: placement.place_surveyed.

    Raises:
        DataError: bad input, too many granules, or no patch at all.
    """
    task = cube.find_task(task_name)
    granules = list(itertools.islice(open_granules(path), MAX_GRANULES + 1))
    if len(granules) > MAX_GRANULES:
        raise DataError(
            f"{path}: more than {MAX_GRANULES} granules: make a data set of them with "
            "kerass2.prepare, and give that"
        )
    for granule in granules:
        missing = [name for name in task.inputs if name not in granule.cubes]
        if missing:
            found = ", ".join(granule.cubes)
            raise DataError(
                f"{granule.name}: {task.name} needs {', '.join(missing)}; found {found}"
            )
    placed = placement.place(granules, task, **options)
    provenance = {"sources": [str(path)], **placed.facts, "max_cloud": max_cloud}
    chosen = {**options, **placed.facts, "task": task_name, "max_cloud": max_cloud}
    digest, stamp = fingerprint.of_product(path, granules, chosen)
    file = None if cache is None else cache / f"{stamp}.usable"
    usable = None if file is None else _read_usable(file, len(placed.patches.split))
    if usable is None:
        usable = find_usable(granules, task, placed, max_cloud=max_cloud, advance=advance)
        if file is not None:
            _write_usable(file, usable)
    if not usable.any():
        raise DataError(f"{path}: no patch is free of pixels without data")
    provenance["left_out"] = int((~usable).sum())
    patches = placed.patches.take(usable)
    return Product(granules, task, placed.size, patches, provenance, digest, buffer_bytes)


def find_usable(
    granules: Sequence[Granule],
    task: cube.Task,
    placed: placement.Placement,
    *,
    max_cloud: float | None = None,
    advance: Advance = lambda done, total: None,
) -> NDArray[np.bool_]:
    """Which patches a data set would hold, (patch,); every chunk is read, a few rows at a time.

    Args: see open_product; `placed`: of these granules.
    """
    patches, size, pieces = placed.patches, placed.size, []
    for site, granule in enumerate(granules):
        first, last = np.searchsorted(patches.site, [site, site + 1]).tolist()
        # Pieces of a large granule run side by side; where two meet, a row of chunks is read twice.
        number = THREADS if max(granule.shape) > 2 * CHUNK else 1
        bounds = np.linspace(first, last, number + 1).astype(int).tolist()
        pieces += [(granule, a, b) for a, b in itertools.pairwise(bounds) if a < b]
    usable = np.zeros(len(patches.split), bool)
    lock, done = threading.Lock(), itertools.count(1)

    def look(piece: tuple[Granule, int, int]) -> None:
        granule, first, last = piece
        corners = zip(patches.y[first:last].tolist(), patches.x[first:last].tolist(), strict=True)
        windows = [Window(y, x, size, size) for y, x in corners]
        found = cube.usable(granule, task, windows, max_cloud=max_cloud)
        for position, (_, good) in enumerate(found, first):
            usable[position] = good
            with lock:
                advance(next(done), len(usable))

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        for future in [pool.submit(look, piece) for piece in pieces]:
            future.result()
    return usable


def _read_usable(file: pathlib.Path, number: int) -> NDArray[np.bool_] | None:
    """What _write_usable has kept; None where that is missing or damaged."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    packed, crc = content[:-CRC_BYTES], content[-CRC_BYTES:]
    if len(packed) != -(-number // 8) or crc != _crc(packed):
        return None
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=number).astype(bool)


def _write_usable(file: pathlib.Path, usable: NDArray[np.bool_]) -> None:
    """Keep the answer where that is possible: a folder that cannot be written costs only time."""
    packed = np.packbits(usable).tobytes()
    with contextlib.suppress(OSError), replacing(file) as temporary:
        temporary.write_bytes(packed + _crc(packed))


def _crc(packed: bytes) -> bytes:
    """CRC-32C of the bits, as it stands behind them."""
    return int(google_crc32c.value(packed)).to_bytes(CRC_BYTES, "little")


class Product:
    """A product whose patches are known: gives the source of each split."""

    def __init__(
        self,
        granules: Sequence[Granule],
        task: cube.Task,
        size: int,
        patches: split.Patches,
        provenance: Mapping[str, Any],
        digest: str,
        buffer_bytes: int,
    ) -> None:
        """See open_product; `patches`: those that are usable, in the order of their records."""
        self.spec = cube.build_spec(task, size)
        self.provenance, self.digest = dict(provenance), digest
        self.counts = patches.counts()
        self._granules, self._task, self._patches = granules, task, patches
        self._buffer = Buffer(buffer_bytes)

    def source(self, split_name: str) -> CubeSource:
        """Random access to one split.

        Raises:
            DataError: there is no such split.
        """
        if split_name not in SPLITS:
            raise DataError(f"no split {split_name!r}; it has {', '.join(SPLITS)}")
        mine = self._patches.split == SPLITS.index(split_name)
        return CubeSource(
            self.spec,
            split_name,
            self._granules,
            self._task,
            self._patches.take(mine),
            self._buffer,
        )


class CubeSource:
    """One split of a product (a spec.Source). Safe to share between threads."""

    def __init__(
        self,
        spec: DatasetSpec,
        split_name: str,
        granules: Sequence[Granule],
        task: cube.Task,
        patches: split.Patches,
        buffer: Buffer,
    ) -> None:
        """See Product.source."""
        self.spec, self.split = spec, split_name
        self._granules, self._task, self._buffer = granules, task, buffer
        self._site, self._y, self._x = patches.site, patches.y, patches.x
        tensors = (*spec.targets.values(), *spec.inputs.values())
        self._size = max(tensor.shape[0] for tensor in tensors)
        self._chunk = _chunk_rows(granules[0], task)
        # Of one pixel of the target, with what all arrays hold of its ground.
        self._pixel_bytes = sum(tensor.num_bytes for tensor in tensors) / self._size**2
        self._region, self._region_bytes = self._choose_region()

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._y)

    @property
    def shuffle(self) -> tuple[int, int]:
        """(block, window) for batching.indices: a block is a region, a window what fits."""
        if self._region_bytes * -(-len(self) // self._region) <= self._buffer.limit:
            return batching.BLOCK, batching.WINDOW
        return self._region, max(1, int(self._buffer.limit / self._region_bytes))

    def read(self, indices: Sequence[int] | NDArray[Any]) -> Batch:
        """Examples in the order asked for; see spec.Source."""
        positions = np.asarray(indices, np.int64).reshape(-1)
        if positions.size and not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(
                f"positions {positions.min()} to {positions.max()} of {len(self)} patches"
            )
        rows = empty_rows(len(positions), self.spec)
        numbers = positions // self._region
        for number in np.unique(numbers).tolist():
            region = self._buffer.get((self.split, number), *self._loading(number))
            for row in np.flatnonzero(numbers == number).tolist():
                self._cut(region, int(positions[row]), row, rows)
        names = [self._name(position) for position in positions.tolist()]
        batch: Batch = {"inputs": {}, "targets": {}, "patch_id": np.array(names, dtype=np.str_)}
        for key, values in rows.items():
            group, name = key.split("/", 1)
            batch[group][name] = values
        return batch

    def _name(self, position: int) -> str:
        granule = self._granules[self._site[position]].name
        return f"{granule}/y{self._y[position]:05d}_x{self._x[position]:05d}"

    def _cut(
        self, region: Region, position: int, row: int, rows: Mapping[str, NDArray[Any]]
    ) -> None:
        """Copy one patch out of its region."""
        site, y, x = (int(a[position]) for a in (self._site, self._y, self._x))
        window, arrays = next(
            (window, arrays)
            for found, window, arrays in region
            if found == site
            and 0 <= y - window.y <= window.height - self._size
            and 0 <= x - window.x <= window.width - self._size
        )
        y, x = y - window.y, x - window.x
        for key, values in arrays.items():
            edge = rows[key].shape[1]
            ratio = self._size // edge
            top, left = y // ratio, x // ratio
            rows[key][row] = values[top : top + edge, left : left + edge]

    # --- regions ---------------------------------------------------------------------------------

    def _choose_region(self) -> tuple[int, float]:
        """Neighbouring patches that are read together, and the bytes of the largest such region.

        About a row of chunks, since a chunk is decoded as a whole; less where the buffer is small,
        but at least a row of patches: a part of one and the next would see both from end to end.
        """
        if not len(self):
            return 1, 1.0
        rows = np.flatnonzero(np.diff(self._y, prepend=-1) | np.diff(self._site, prepend=-1))
        least = int(np.diff(rows, append=len(self)).max())
        height = int(self._y.max() - self._y.min()) + self._size
        number = max(least, len(self) * self._chunk // (height * len(np.unique(self._site))))
        while number > least and self._largest(number) > self._buffer.limit / REGIONS:
            number = max(least, number // 2)
        return number, self._largest(number)

    def _largest(self, number: int) -> float:
        """Bytes of the largest region of so many patches."""
        starts = range(0, len(self), number)
        return max(
            self._pixel_bytes * sum(w.height * w.width for _, w in self._windows(start, number))
            for start in starts
        )

    def _windows(self, start: int, number: int) -> Iterator[tuple[int, Window]]:
        """Granule and window of what the patches of one region see.

        Wide ground between patches, which belongs to other splits, is left out.
        """
        # Narrower gaps lie in chunks that are decoded anyway.
        gap = max(self._size, self._chunk // 4)
        stop = min(start + number, len(self))
        site, y, x = self._site[start:stop], self._y[start:stop], self._x[start:stop]
        for rows in _runs((np.diff(site) != 0) | (np.diff(y) > gap)):
            left = np.unique(x[rows])
            top, height = int(y[rows][0]), int(y[rows][-1] - y[rows][0]) + self._size
            for columns in _runs(np.diff(left) > gap):
                first, last = int(left[columns][0]), int(left[columns][-1])
                yield int(site[rows][0]), Window(top, first, height, last - first + self._size)

    def _loading(self, number: int) -> tuple[int, Callable[[], Region]]:
        """Bytes of a region, and the function that reads it."""
        windows = list(self._windows(number * self._region, self._region))
        size = int(self._pixel_bytes * sum(w.height * w.width for _, w in windows))

        def load() -> Region:
            return [
                (site, window, read_window(self._granules[site], self._task, window))
                for site, window in windows
            ]

        return size, load


def _chunk_rows(granule: Granule, task: cube.Task) -> int:
    """Rows of the target in one chunk of a granule, or in a usual one where nothing is lazy."""
    name = task.inputs[0]
    chunks = granule.cubes[name].chunks
    height = chunks[1][0] if chunks else CHUNK
    return max(1, height * sentinel2.GSDS[name] // task.gsd)


def _runs(breaks: NDArray[np.bool_]) -> Iterator[slice]:
    """Neighbouring positions; a break at i parts i from i + 1."""
    edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(breaks) + 1]
    return itertools.starmap(slice, itertools.pairwise(edges))
