"""Networks over a granule, window by window: reading and computing overlap, memory is bounded.

Regions lie side by side, counted from the granule's first pixel, and a network reads around each
what it needs. Beyond the granule's edges pixels are mirrored.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_pipelines.sentinel2 import QUANTIFICATION
from data_pipelines.spec import DataError
from data_pipelines.windows import Window
from kerass2 import gaps

if TYPE_CHECKING:
    import xarray

    from kerass2.networks import Network

# Graphs of known sizes that are kept: windows of a raster have four sizes, as they are cut at the
# right, below, at both or not.
GRAPHS = 8
# Addresses reserved for TensorFlow's tensors: 2 GiB.
RESERVED = (2, 2**30)

Predict = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
_Item = TypeVar("_Item")


@dataclasses.dataclass(frozen=True)
class Lattice:
    """Square windows that write `core` pixels each and read `halo` more on every side."""

    core: int
    """Edge of what a window writes [px of the target]."""
    halo: int
    """Pixels read beyond it [px of the target]."""
    ratios: Mapping[str, int]
    """Pixel size of each input over that of the target, e.g. {"gsd10": 1, "gsd20": 2}."""

    def __post_init__(self) -> None:
        """Refuse windows that cut through a pixel of an input."""
        step = math.lcm(*self.ratios.values())
        if self.core < 1 or self.halo < 0 or self.core % step or self.halo % step:
            raise DataError(
                f"windows of {self.core} px with a halo of {self.halo} px: "
                f"both must be multiples of {step} px, a pixel of the coarsest input"
            )

    @property
    def window(self) -> int:
        """Edge of what a window reads [px of the target]."""
        return self.core + 2 * self.halo


def receptive_radius(model: Any) -> int:
    """Pixels that the convolutions reach to each side; an upper bound where branches are parallel.

    14 for six residual blocks: 2 x 6 convolutions of 3 x 3, one before and one after them.
    """
    radius = 0
    for layer in model.layers:
        if hasattr(layer, "layers"):
            radius += receptive_radius(layer)
        elif hasattr(layer, "kernel_size"):
            sizes = zip(layer.kernel_size, layer.dilation_rate, strict=True)
            radius += max(dilation * (kernel // 2) for kernel, dilation in sizes)
    return radius


def exact_halo(radius: int, ratios: Mapping[str, int]) -> int:
    """Halo with which a core is what the whole image would give, for convolutions of this radius.

    A coarse input is interpolated inside the window. The outermost pixel that the convolutions
    reach lies between two coarse pixels, and the outer one must be there too: 14 px become 16 with
    inputs of 20 m and 18 with inputs of 60 m.
    """
    from kerass2.cropping import interpolation_margin

    step = math.lcm(*ratios.values())
    reach = max(interpolation_margin(radius, ratio) for ratio in ratios.values())
    return math.ceil(reach / step) * step


def build_lattice(model: Any, ratios: Mapping[str, int], window: int) -> Lattice:
    """Windows of about `window` pixels with a halo for the model's convolutions.

    Args:
        model: a model of kerass2.models.
        ratios: see Lattice.
        window: edge of a window with its halo [px]; more where the halo would leave less than half
            of that.

    Raises:
        DataError: `window` is too small for the model's halo.
    """
    step = math.lcm(*ratios.values())
    halo = exact_halo(receptive_radius(model), ratios)
    core = (max(window, 4 * halo) - 2 * halo) // step * step
    return Lattice(core, halo, dict(ratios))


@functools.cache
def _reserve_memory() -> None:
    """Have TensorFlow's allocator for the CPU take its memory in one piece.

    It takes regions, each twice the one before, and never gives them back; tensors of a large
    window do not share a region well: full-size S2x touched 1060 MiB where 700 were in use at once.
    What is not touched is not resident.
    """
    import tensorflow as tf

    with contextlib.suppress(tf.errors.ResourceExhaustedError), tf.device("CPU:0"):
        tf.raw_ops.Empty(shape=RESERVED, dtype=tf.uint8, init=False)


def compile_prediction(model: Any, *, sizes_known: bool = False) -> Predict:
    """A compiled call: {input: (batch, y, x, band) float32 reflectance} to {target: likewise}.

    Args:
        model: a model of kerass2.models.
        sizes_known: trace the model again for each size of its inputs, GRAPHS of which are kept:
            worth it where there are few of them, since it then knows that blocks are whole.

    Under TensorFlow a function of our own instead of model.predict_on_batch, which goes through
    tf.distribute when the model was made in a strategy's scope: every rank would then have to take
    part in each call.
    """
    import keras

    if keras.backend.backend() != "tensorflow":

        def predict(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
            outputs = model.predict_on_batch(dict(inputs))
            return {name: np.asarray(value) for name, value in outputs.items()}

        return predict
    import tensorflow as tf

    _reserve_memory()

    def compiled() -> Any:
        # A batch of another size is traced once more; then the batch axis is left open.
        return tf.function(
            lambda inputs: model(inputs, training=False),
            reduce_retracing=not sizes_known,
            autograph=False,
        )

    call, traced = compiled(), dict[Any, Any]()

    def find(given: Mapping[str, Any]) -> Any:
        """The graph for inputs of these sizes, a function of its own, so that it can be dropped."""
        specs = {name: tf.TensorSpec.from_tensor(value) for name, value in given.items()}
        key = tuple(specs.items())
        graph = traced.pop(key, None) or compiled().get_concrete_function(specs)
        traced[key] = graph
        if len(traced) > GRAPHS:
            del traced[next(iter(traced))]  # the one that was not used for the longest time
        return graph

    def predict_tensorflow(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        given = {name: tf.convert_to_tensor(value) for name, value in inputs.items()}
        outputs = (find(given) if sizes_known else call)(given)
        return {name: value.numpy() for name, value in outputs.items()}

    return predict_tensorflow


def granule_shape(cubes: Mapping[str, Any], ratios: Mapping[str, int]) -> tuple[int, int]:
    """Height and width of the target [px].

    Raises:
        DataError: a cube is missing, empty, or does not cover the same ground as the others.
    """
    missing = [name for name in ratios if name not in cubes]
    if missing:
        raise DataError(f"no {', '.join(missing)}; the input has {', '.join(cubes) or 'nothing'}")
    sizes = {name: cubes[name].shape[1:] for name in ratios}
    ground = {(sizes[name][0] * r, sizes[name][1] * r) for name, r in ratios.items()}
    if len(ground) > 1 or 0 in min(ground):
        found = ", ".join(f"{name} {y} x {x} px" for name, (y, x) in sizes.items())
        raise DataError(f"grids do not cover the same ground: {found}")
    height, width = ground.pop()
    return height, width


def list_regions(roi: Window, core: int) -> list[Window]:
    """Squares of `core` px counted from the granule's first pixel, cut to a window, row by row."""
    regions = []
    for y in range(roi.y // core * core, roi.y + roi.height, core):
        for x in range(roi.x // core * core, roi.x + roi.width, core):
            y0, x0 = max(y, roi.y), max(x, roi.x)
            y1, x1 = min(y + core, roi.y + roi.height), min(x + core, roi.x + roi.width)
            regions.append(Window(y0, x0, y1 - y0, x1 - x0))
    return regions


def reading_window(networks: Iterable[Network], region: Window, shape: tuple[int, int]) -> Window:
    """The window around all that networks read for a region, the region itself among it.

    With what filling gaps at its edges takes, see gaps.fill.
    """
    pieces = (piece for network in networks for piece in network.place(region, shape))
    views = [piece.view.grown(gaps.REACH) for piece in pieces]
    unit = math.lcm(*(ratio for network in networks for ratio in network.ratios.values()))
    corners = [(w.y, w.x, w.y + w.height, w.x + w.width) for w in (region, *views)]
    y, x = (min(values) // unit * unit for values in list(zip(*corners, strict=True))[:2])
    y1, x1 = (-(-max(values) // unit) * unit for values in list(zip(*corners, strict=True))[2:])
    return Window(y, x, y1 - y, x1 - x)


def mirrored(start: int, stop: int, size: int) -> NDArray[np.int64]:
    """Indices start to stop along an axis of `size` pixels, mirrored beyond both ends."""
    index = np.arange(start, stop) % (2 * size)
    return np.where(index < size, index, 2 * size - 1 - index)


class Rows:
    """Rows of a cube (band, y, x) from top to bottom; each chunk of a lazy one is read once.

    A chunk is read as a whole, and is higher than a row of windows: without this a tile would be
    decoded ten times over. What is left of one is cut off, so that no more than two and what is
    above them are in memory.
    """

    def __init__(self, cube: xarray.DataArray, columns: tuple[int, int]) -> None:
        """Only `columns` (first, end) are read."""
        self.shape = cube.shape
        self.first = columns[0]
        self._cube = cube.data[:, :, slice(*columns)]
        chunks = getattr(self._cube, "chunks", None)
        self._lazy = chunks is not None
        self._edges, self._ends = (
            [0, *np.cumsum(sizes).tolist()]
            for sizes in (self._cube.shape[1:] if chunks is None else chunks)[-2:]
        )
        self._held: dict[int, tuple[int, NDArray[np.uint16], int]] = {}

    def read(
        self, start: int, stop: int, right: int | None = None
    ) -> dict[int, NDArray[np.uint16]]:
        """First row -> (band, rows, columns) of what is held: rows start to stop and more.

        Columns from `right` on, where it is given, may hold anything: they are read, into the same
        arrays, once they are asked for.
        """
        width = self._cube.shape[2]
        wanted = width if right is None else right - self.first
        until = min(end for end in self._ends if end >= wanted)
        held = {}
        for begin, end in itertools.pairwise(self._edges):
            if not begin < stop or not start < end:
                continue
            # Its end tells a chunk apart: its first rows may be gone.
            top, pixels, filled = self._held.get(end, (end, None, 0))
            if pixels is None or top > max(begin, start):
                top, pixels, filled = begin, *self._open(begin, end)
            elif self._lazy and top < start and end - start < (end - begin) // 2:
                # A copy, so that the rest is freed. Of more it would be a second one for a while:
                # the windows before, which are worked on, have the whole.
                top, pixels = start, pixels[:, start - top :].copy()
            if filled < until:
                self._fill(pixels[:, :, filled:until], slice(top, end), slice(filled, until))
            held[end] = top, pixels, max(filled, until)
        self._held = held
        return {top: pixels for top, pixels, _ in held.values()}

    def _open(self, begin: int, end: int) -> tuple[NDArray[np.uint16], int]:
        """Rows, and how many of their columns are there."""
        rows = self._cube[:, begin:end]
        if self._lazy:
            return np.empty(rows.shape, rows.dtype), 0
        return np.asarray(rows), rows.shape[2]

    def _fill(self, pixels: NDArray[np.uint16], rows: slice, columns: slice) -> None:
        """Chunks go where they belong one by one: dask would hold all, and join a second copy."""
        import dask.array

        dask.array.store(self._cube[:, rows, columns], pixels, lock=False)


class Held:
    """Pixels of a cube around one window, with the attributes of Rows that Strips looks at."""

    def __init__(
        self, shape: Sequence[int], corner: tuple[int, int], pixels: NDArray[np.uint16]
    ) -> None:
        """`shape` of the whole cube; `corner`: first row and column of the pixels."""
        self.shape, self.first = tuple(shape), corner[1]
        self.rows = {corner[0]: np.asarray(pixels)}


class Strips:
    """What is in memory of a granule's cubes: the rows that a row of regions reads."""

    def __init__(
        self, rows: Mapping[str, Rows | Held], held: Mapping[str, Mapping[int, Any]]
    ) -> None:
        """`held`: {cube: of Rows.read}."""
        self._rows, self._held = rows, held

    def cut(self, name: str, window: Window) -> NDArray[np.uint16]:
        """(band, y, x) DN of a window of a cube [px of that cube], mirrored at the edges."""
        rows = self._rows[name]
        y = mirrored(window.y, window.y + window.height, rows.shape[1])
        x = mirrored(window.x, window.x + window.width, rows.shape[2])
        first, last = int(y.min()), int(y.max()) + 1
        left, right = int(x.min()), int(x.max()) + 1
        parts = []
        for start, pixels in sorted(self._held[name].items()):
            a, b = max(first, start) - start, min(last, start + pixels.shape[1]) - start
            if a < b:
                parts.append(pixels[:, a:b, left - rows.first : right - rows.first])
        inside: NDArray[np.uint16]
        inside = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        if (last - first, right - left) != (len(y), len(x)) or y[0] != first or x[0] != left:
            inside = inside[:, y - first][:, :, x - left]
        return inside


def read_strips(
    cubes: Mapping[str, xarray.DataArray],
    networks: Sequence[Network],
    regions: Sequence[Window],
    shape: tuple[int, int],
) -> Iterator[tuple[Window, Strips]]:
    """Regions, top to bottom, each with the pixels that it needs, read as far as a row ahead.

    The first is there when what it sees is read, and what lies left of that, not all of its row. A
    region's Strips are for it alone: what lies further right may not have been read.

    Args:
        cubes: those that are read, lazy or not.
        networks: they say what a region needs.
        regions: of list_regions, in that order; some may be left out.
        shape: of the granule [px of the target].
    """
    from data_pipelines.sentinel2 import GSDS

    if not regions:
        return
    windows = {region: reading_window(networks, region, shape) for region in regions}

    def bounds(some: Sequence[Window], ratio: int, axis: int) -> tuple[int, int]:
        """First pixel and end along y (0) or x (1) that the mirrored windows hold."""
        ends = []
        for window in some:
            w = windows[window].coarser(ratio)
            start, size = (w.y, w.height) if axis == 0 else (w.x, w.width)
            index = mirrored(start, start + size, shape[axis] // ratio)
            ends += [int(index.min()), int(index.max()) + 1]
        return min(ends), max(ends)

    ratios = {name: GSDS[name] // 10 for name in cubes}
    rows = {name: Rows(cubes[name], bounds(regions, r, 1)) for name, r in ratios.items()}
    by_row: dict[int, list[Window]] = {}
    for region in regions:
        by_row.setdefault(region.y, []).append(region)

    def read() -> Iterator[tuple[Window, Strips]]:
        for row in by_row.values():
            high = {name: bounds(row, r, 0) for name, r in ratios.items()}
            for region in row:
                right = {name: bounds([region], r, 1)[1] for name, r in ratios.items()}
                held = {name: rows[name].read(*high[name], right[name]) for name in ratios}
                yield region, Strips(rows, held)

    # No more than a row. The first and last may be parts of one, and any where some are left out.
    lengths = list(map(len, by_row.values()))
    yield from ahead(read(), min(lengths[1:-1], default=max(lengths)))


def ahead(items: Iterable[_Item], most: int = 1) -> Iterator[_Item]:
    """The same items, made by another thread, up to `most` while the one before is worked on."""
    iterator, end = iter(items), object()
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
        following = collections.deque(pool.submit(next, iterator, end) for _ in range(most))
        try:
            while (item := following.popleft().result()) is not end:
                following.append(pool.submit(next, iterator, end))
                yield item  # type: ignore[misc]
        finally:
            pool.shutdown(cancel_futures=True)


def read_region(
    cubes: Mapping[str, xarray.DataArray], strips: Strips, window: Window
) -> dict[str, NDArray[np.float32]]:
    """{cube: (y, x, band) float32 reflectance} of a window around a region, gaps filled."""
    import xarray

    from data_pipelines.granule import harmonise
    from data_pipelines.sentinel2 import GSDS

    given = {}
    for name, cube in cubes.items():
        dn = strips.cut(name, window.coarser(GSDS[name] // 10))
        pixels = xarray.DataArray(dn, {"band": cube.band}, cube.dims, attrs=cube.attrs)
        same = harmonise(pixels).data
        given[name] = same.transpose(1, 2, 0).astype(np.float32) / np.float32(QUANTIFICATION)
        gaps.fill(given[name], GSDS[name] // 10)
    return given
