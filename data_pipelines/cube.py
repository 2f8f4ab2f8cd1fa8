"""A granule to patches under Wald's protocol; here alone (band, y, x) becomes (y, x, band)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import sentinel2, wald
from data_pipelines.granule import CHUNK, Granule
from data_pipelines.spec import DataError, DatasetSpec, TensorSpec
from data_pipelines.windows import Window

__all__ = ["TASKS", "Granule", "Task", "build_spec", "cut", "target_shape"]

# Rows of the target that are in memory at once [px].
STRIP = 512
# Radius of the models' receptive field on the target grid [px]: 14 convolutions of 3 x 3 (DSen2).
RECEPTIVE_RADIUS = 14


@dataclasses.dataclass(frozen=True)
class Task:
    """A super-resolution task. Pixels of patches are counted on the target's grid."""

    name: str
    """Also the name of the target."""
    inputs: tuple[str, ...]
    """Cubes that go in, all degraded by `scale`."""
    target: str
    """The cube whose original pixels are the truth."""
    scale: int
    """Ratio of the target's GSD to 10 m: how much all cubes are degraded."""
    patch_size: int
    """Edge of a patch as in DSen2 [px of the target]."""

    @property
    def gsd(self) -> int:
        """GSD of the target [m]."""
        return sentinel2.GSDS[self.target]

    @property
    def gap(self) -> int:
        """Least distance of patches of two splits [px of the target].

        The models' receptive field, and what the blur of Wald's protocol mixes in on both sides.
        """
        return RECEPTIVE_RADIUS + 2 * wald.blur_radius(self.scale)

    def ratio(self, name: str) -> int:
        """Pixels of the target along one pixel of a degraded input."""
        return sentinel2.GSDS[name] * self.scale // self.gsd


# Bands and sizes: DSen2 (Lanaras et al. 2018).
TASKS = {
    task.name: task
    for task in (
        Task("superres_20m", ("gsd10", "gsd20"), "gsd20", 2, 32),
        Task("superres_60m", ("gsd10", "gsd20", "gsd60"), "gsd60", 6, 96),
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
        DataError: the patch size is not a multiple of the task's scale.
    """
    size = task.patch_size if patch_size is None else patch_size
    if size < 1 or size % task.scale:
        raise DataError(f"patch size {size}: {task.name} needs a positive multiple of {task.scale}")
    inputs = {}
    for name in task.inputs:
        edge, bands = size // task.ratio(name), sentinel2.bands_at(sentinel2.GSDS[name])
        gsd = float(sentinel2.GSDS[name] * task.scale)
        inputs[name] = TensorSpec((edge, edge, len(bands)), bands, gsd)
    bands = sentinel2.bands_at(task.gsd)
    target = TensorSpec((size, size, len(bands)), bands, float(task.gsd))
    return DatasetSpec(task.name, inputs, {task.name: target})


def target_shape(task: Task, shape: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the target that can be cut from a granule of `shape` [px of 10 m].

    The rest that does not fill a pixel of the coarsest degraded grid is left out.
    """
    step = task.gsd // 10 * task.scale
    height, width = (n // step * task.scale for n in shape)
    return height, width


def cut(
    granule: Granule, task: Task, windows: Iterable[Window]
) -> Iterator[tuple[Window, dict[str, Any]]]:
    """Patches of one granule from top to bottom, without those that see a pixel without data.

    Args:
        granule: where to cut.
        task: what to cut.
        windows: where [px of the target], multiples of the task's scale.

    Yields:
        The window, and {"inputs": {name: (y, x, band) uint16}, "targets": {...}, "patch_id": text}:
        DN, degraded ones rounded; the id is NAME/yYYYYY_xXXXXX, the granule and the position in it
        [px of the target].

    Raises:
        DataError: the granule lacks a cube, or a window reaches outside of it.
    """
    todo = sorted(windows)
    if not todo:
        return
    cubes = _crop(granule, task)
    height, width = cubes[task.target].shape[1:]
    for window in todo:
        if window.clipped(height, width) != window:
            raise DataError(f"{granule.name}: {window} reaches outside of {height} x {width} px")
    inputs = {name: wald.degrade(cubes[name], task.scale) for name in task.inputs}
    for group in _strips(todo):
        first = group[0].y
        last = max(window.y + window.height for window in group)
        rows = Window(first, 0, last - first, width)
        valid = _validity(cubes, task, rows)
        arrays = {
            name: _pixels(cube, rows.coarser(task.ratio(name))) for name, cube in inputs.items()
        }
        target = _pixels(cubes[task.target], rows)
        for window in group:
            local = dataclasses.replace(window, y=window.y - first)
            if valid[local.slices].all():
                example = {
                    "inputs": {
                        name: array[local.coarser(task.ratio(name)).slices]
                        for name, array in arrays.items()
                    },
                    "targets": {task.name: target[local.slices]},
                    "patch_id": f"{granule.name}/y{window.y:05d}_x{window.x:05d}",
                }
                yield window, example


def _crop(granule: Granule, task: Task) -> Mapping[str, Any]:
    """The task's cubes, cropped to whole pixels of the degraded grids; in memory if small."""
    missing = [name for name in task.inputs if name not in granule.cubes]
    if missing:
        found = ", ".join(granule.cubes)
        raise DataError(f"{granule.name}: {task.name} needs {', '.join(missing)}; found {found}")
    height, width = target_shape(task, granule.shape)
    cubes = {}
    for name in task.inputs:
        ratio = task.gsd // sentinel2.GSDS[name]
        cube = granule.cubes[name].isel(y=slice(height * ratio), x=slice(width * ratio))
        # Below a few chunks a graph costs more than the pixels, and threads more than they gain.
        small = max(granule.shape) <= 2 * CHUNK
        cubes[name] = cube.compute(scheduler="synchronous") if small else cube
    return cubes


def _strips(windows: Sequence[Window]) -> Iterator[list[Window]]:
    """Windows sorted by row, in groups that start within STRIP rows."""
    group: list[Window] = []
    for window in windows:
        if group and window.y >= group[0].y + STRIP:
            yield group
            group = []
        group.append(window)
    yield group


def _pixels(cube: Any, window: Window) -> NDArray[np.uint16]:
    """(y, x, band) of one strip, rounded."""
    values = np.asarray(cube[(slice(None), *window.slices)].data)
    if values.dtype != np.uint16:
        values = np.clip(np.rint(values), 0, sentinel2.LARGEST_DN).astype(np.uint16)
    return np.ascontiguousarray(values.transpose(1, 2, 0))


def _validity(cubes: Mapping[str, Any], task: Task, rows: Window) -> NDArray[np.bool_]:
    """(y, x) of a strip: where no pixel without data goes in, be it by the blur."""
    from scipy import ndimage

    radius = wald.blur_radius(task.scale)
    height, width = cubes[task.target].shape[1:]
    view = rows.grown(radius).clipped(height, width)
    bad = np.zeros((view.height, view.width), bool)
    for name in task.inputs:
        ratio = task.gsd // sentinel2.GSDS[name]
        pixels = np.asarray(cubes[name][(slice(None), *view.finer(ratio).slices)].data)
        empty = (pixels == sentinel2.NO_DATA).any(axis=0)
        bad |= empty.reshape(view.height, ratio, view.width, ratio).any(axis=(1, 3))
    if bad.any():
        # Windows are whole pixels of all degraded grids, so only the blur reaches beyond them.
        bad = ndimage.maximum_filter(bad, 2 * radius + 1, mode="constant")
    inside = dataclasses.replace(rows, y=rows.y - view.y)
    return np.asarray(~bad[inside.slices])
