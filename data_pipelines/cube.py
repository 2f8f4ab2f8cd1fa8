"""A granule to patches: native ones, or pairs under Wald's protocol."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import clouds, sentinel2, strips, wald
from data_pipelines.granule import CHUNK, Granule, harmonise
from data_pipelines.spec import DataError, DatasetSpec, TensorSpec
from data_pipelines.windows import Window

__all__ = ["TASKS", "Granule", "Task", "build_spec", "cut", "target_shape"]

# Rows of the target that are made at once [px]; a multiple of all scales.
STRIP = 252
# Radius of the models' receptive field on the target grid [px]: 14 convolutions of 3 x 3 (DSen2).
RECEPTIVE_RADIUS = 14
# Why a patch is left out, by code (0: it is not).
REASONS = ("", "pixels without data", "saturated pixels", "too much cloud")
CLOUDY = 3


@dataclasses.dataclass(frozen=True)
class Task:
    """What patches hold. Their pixels are counted on the target's grid; without one, at 10 m."""

    name: str
    """Also the name of the target."""
    inputs: tuple[str, ...]
    """Cubes that go in, all degraded by `scale`."""
    target: str | None
    """The cube whose original pixels are the truth; None: there is no target."""
    scale: int
    """Ratio of the target's GSD to 10 m: how much all cubes are degraded; 1: not at all."""
    patch_size: int
    """Usual edge of a patch [px of the target]."""

    @property
    def gsd(self) -> int:
        """GSD of the target [m]."""
        return 10 if self.target is None else sentinel2.GSDS[self.target]

    @property
    def multiple(self) -> int:
        """What edges and positions of patches are multiples of: a pixel of the coarsest input."""
        return max(self.ratio(name) for name in self.inputs)

    @property
    def overlapping(self) -> bool:
        """Whether training patches overlap unless a stride is given."""
        return self.target is not None

    @property
    def gap(self) -> int:
        """Least distance of patches of two splits [px of the target].

        The models' receptive field, and what the blur of Wald's protocol mixes in on both sides.
        Native patches are looked at one by one: they only must not overlap.
        """
        return 0 if self.scale == 1 else RECEPTIVE_RADIUS + 2 * wald.blur_radius(self.scale)

    def ratio(self, name: str) -> int:
        """Pixels of the target along one pixel of a degraded input."""
        return sentinel2.GSDS[name] * self.scale // self.gsd


# Bands and sizes: DSen2 (Lanaras et al. 2018); BigEarthNet (Sumbul et al. 2019).
TASKS = {
    task.name: task
    for task in (
        Task("superres_20m", ("gsd10", "gsd20"), "gsd20", 2, 32),
        Task("superres_60m", ("gsd10", "gsd20", "gsd60"), "gsd60", 6, 96),
        Task("patches", ("gsd10", "gsd20", "gsd60"), None, 1, 120),
    )
}


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        DataError: there is none; the message lists what exists.
    """
    if name not in TASKS:
        raise DataError(f"no task {name!r}; there are {', '.join(TASKS)}")
    return TASKS[name]


def build_spec(task: Task, patch_size: int | None = None) -> DatasetSpec:
    """What one example of a task holds.

    Raises:
        DataError: the patch size is not a multiple of the task's.
    """
    size = task.patch_size if patch_size is None else patch_size
    check_multiple(task, "patch size", size)
    inputs = {}
    for name in task.inputs:
        edge, bands = size // task.ratio(name), sentinel2.bands_at(sentinel2.GSDS[name])
        gsd = float(sentinel2.GSDS[name] * task.scale)
        inputs[name] = TensorSpec((edge, edge, len(bands)), bands, gsd)
    targets = {}
    if task.target is not None:
        bands = sentinel2.bands_at(task.gsd)
        targets[task.name] = TensorSpec((size, size, len(bands)), bands, float(task.gsd))
    return DatasetSpec(task.name, inputs, targets)


def check_multiple(task: Task, what: str, value: int) -> None:
    """Refuse a size or a distance that does not nest in the pixels of the coarsest input.

    Raises:
        DataError: names `what`, the value and what is allowed.
    """
    if value < 1 or value % task.multiple:
        raise DataError(f"{what} {value}: {task.name} needs a positive multiple of {task.multiple}")


def target_shape(task: Task, shape: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the target that can be cut from a granule of `shape` [px of 10 m].

    The rest that does not fill a pixel of the coarsest degraded grid is left out.
    """
    step = task.gsd // 10 * task.multiple
    height, width = (n // step * task.multiple for n in shape)
    return height, width


def cut(
    granule: Granule,
    task: Task,
    windows: Iterable[Window],
    *,
    max_cloud: float | None = None,
    left_out: MutableMapping[str, int] | None = None,
) -> Iterator[tuple[Window, dict[str, Any]]]:
    """Patches of one granule from top to bottom, without those that see an unusable pixel.

    Memory holds a row of the granule's chunks at a time, and no chunk is computed twice.

    Args:
        granule: where to cut.
        task: what to cut.
        windows: where [px of the target], multiples of the task's.
        max_cloud: leave out patches of which a mask says that more than this share is cloud.
        left_out: is added to: patches that are left out, by their reason (REASONS).

    Yields:
        The window, and {"inputs": {name: (y, x, band) uint16}, "targets": {...}, "patch_id": text}:
        harmonised DN, degraded ones rounded; the id is NAME/yYYYYY_xXXXXX, the granule and the
        position in it [px of the target]. Arrays are views of a strip: copy those that you keep.

    Raises:
        DataError: the granule lacks a cube or (with max_cloud) a mask, or a window reaches outside
            of it.
    """
    for window, reason, example in _scan(granule, task, windows, max_cloud, pixels=True):
        if not reason:
            yield window, example
        elif left_out is not None:
            left_out[REASONS[reason]] = left_out.get(REASONS[reason], 0) + 1


def usable(
    granule: Granule, task: Task, windows: Iterable[Window], *, max_cloud: float | None = None
) -> Iterator[tuple[Window, bool]]:
    """Which windows `cut` would give patches for, in its order; reads pixels but degrades none."""
    for window, reason, _ in _scan(granule, task, windows, max_cloud, pixels=False):
        yield window, not reason


def _scan(
    granule: Granule,
    task: Task,
    windows: Iterable[Window],
    max_cloud: float | None,
    *,
    pixels: bool,
) -> Iterator[tuple[Window, int, dict[str, Any]]]:
    """Window, code of its reason, and its example, which is empty if it is left out."""
    table = _table(windows)
    if not len(table):
        return
    cubes = crop(granule, task)
    _check_windows(granule, task, table)
    columns = slice(int(table[:, 1].min()), int((table[:, 1] + table[:, 3]).max()))
    inputs = {
        name: strips.Strip(
            cube,
            scale=task.scale,
            ratio=task.ratio(name),
            columns=columns,
            keep_original=name == task.target,
        )
        for name, cube in cubes.items()
    }
    cloud = None if max_cloud is None else clouds.open_cloud(granule, task.gsd)
    stops = _stops(cubes, task)
    last = first = 0
    for window in _in_order(table):
        if window.y + window.height > last:
            first, last = window.y, _strip_end(stops, window)
            for strip in inputs.values():
                strip.advance(first, last, pixels=pixels)
        y, x = window.slices
        reason = _worst(strip.find(y, x) for strip in inputs.values())
        if not reason and cloud is not None and cloud.share(window) > (max_cloud or 0):
            reason = CLOUDY
        if reason or not pixels:
            yield window, reason, {}
        else:
            yield window, 0, _example(granule, task, window, inputs, first, columns.start)


def _table(windows: Iterable[Window]) -> NDArray[np.int32]:
    """Windows as rows (y, x, height, width) from top to bottom: a twentieth of the objects."""
    numbers = ((w.y, w.x, w.height, w.width) for w in windows)
    table = np.fromiter(itertools.chain.from_iterable(numbers), np.int32).reshape(-1, 4)
    ordered: NDArray[np.int32] = table[np.lexsort(table.T[::-1])]
    return ordered


def _in_order(table: NDArray[np.int32]) -> Iterator[Window]:
    """The windows of a table, one by one."""
    for start in range(0, len(table), 1024):
        for row in table[start : start + 1024].tolist():
            yield Window(*row)


def _worst(codes: Iterable[int]) -> int:
    """No data before saturated; 0 where there is neither."""
    return min((code for code in codes if code), default=0)


def _example(
    granule: Granule,
    task: Task,
    window: Window,
    inputs: Mapping[str, strips.Strip],
    top: int,
    left: int,
) -> dict[str, Any]:
    """Views of what the strips hold, whose first pixel is (top, left)."""
    y, x = window.y - top, window.x - left
    arrays = {}
    for name, strip in inputs.items():
        r = task.ratio(name)
        arrays[name] = strip.pixels[
            y // r : (y + window.height) // r, x // r : (x + window.width) // r
        ]
    targets = {}
    if task.target is not None:
        original = inputs[task.target].original
        targets[task.name] = original[y : y + window.height, x : x + window.width]
    name = f"{granule.name}/y{window.y:05d}_x{window.x:05d}"
    return {"inputs": arrays, "targets": targets, "patch_id": name}


def _check_windows(granule: Granule, task: Task, table: NDArray[np.int32]) -> None:
    """Refuse windows outside of the granule, or that cut through pixels of an input."""
    height, width = target_shape(task, granule.shape)
    stop_y, stop_x = table[:, 0] + table[:, 2], table[:, 1] + table[:, 3]
    outside = (table[:, :2] < 0).any(axis=1) | (stop_y > height) | (stop_x > width)
    what = f"reaches outside of {height} x {width} px"
    skew = (table % task.multiple).any(axis=1)
    for bad, why in ((outside, what), (skew, f"cuts through pixels {task.multiple} times larger")):
        if bad.any():
            window = Window(*table[int(bad.argmax())].tolist())
            raise DataError(f"{granule.name}: {window} {why}")


def crop(granule: Granule, task: Task) -> dict[str, Any]:
    """The task's pixels, harmonised, cropped to whole pixels of the degraded grids: dask or numpy.

    In memory if the granule is small.
    """
    missing = [name for name in task.inputs if name not in granule.cubes]
    if missing:
        found = ", ".join(granule.cubes)
        raise DataError(f"{granule.name}: {task.name} needs {', '.join(missing)}; found {found}")
    height, width = target_shape(task, granule.shape)
    # Below a few chunks a graph costs more than the pixels.
    small = max(granule.shape) <= 2 * CHUNK
    cubes = {}
    for name in task.inputs:
        ground = task.gsd, sentinel2.GSDS[name]
        rows, columns = (n * ground[0] // ground[1] for n in (height, width))
        data = harmonise(granule.cubes[name]).data[:, :rows, :columns]
        lazy = small and hasattr(data, "dask")
        cubes[name] = data.compute(scheduler="synchronous") if lazy else data
    return cubes


def _stops(cubes: Mapping[str, Any], task: Task) -> list[int]:
    """Rows of the target that can be made from whole rows of chunks, ascending.

    Chunks of all cubes cover the same ground, so the first cube's say it; the coarsest cube, whose
    blur reaches farthest, says how much less can be made of them.
    """
    data = cubes[task.inputs[0]]
    height = data.shape[1] * sentinel2.GSDS[task.inputs[0]] // task.gsd
    if not hasattr(data, "dask"):
        return [height]
    coarsest = task.inputs[-1]
    radius = 0 if task.scale == 1 else wald.blur_radius(task.scale)
    stops = []
    for edge in np.cumsum(data.chunks[1])[:-1].tolist():
        ground = edge * sentinel2.GSDS[task.inputs[0]]
        rows = (ground // sentinel2.GSDS[coarsest] - radius) * task.ratio(coarsest) // task.scale
        stops.append(rows // task.multiple * task.multiple)
    return [*(stop for stop in stops if stop > 0), height]


def _strip_end(stops: list[int], window: Window) -> int:
    """Behind the last row to make, so that the first window that waits is in it."""
    need = window.y + window.height
    whole = stops[bisect.bisect_left(stops, need)]
    return min(whole, max(need, window.y + STRIP))
