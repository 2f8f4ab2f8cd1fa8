"""Patches from a tile in memory: the package's cut against the direct way."""

from __future__ import annotations

import pathlib
import time
from typing import Any

import click
import numpy as np

from benchmarks import record


def measure(size: int, rounds: int, output: pathlib.Path) -> None:
    """The package's cut against the direct way, on one tile in memory."""
    from data_pipelines import cube, synthetic
    from data_pipelines.granule import Granule, build_cube
    from data_pipelines.sentinel2 import GSDS, bands_at
    from data_pipelines.windows import lattice

    task = cube.TASKS["superres_20m"]
    pixels = synthetic.build_cubes(size, seed=1)
    cubes = {n: build_cube(pixels[n], bands_at(gsd), gsd) for n, gsd in GSDS.items()}
    granule = Granule("tile", "tile", "tile", cubes)
    edge = task.patch_size
    windows = list(lattice(*cube.target_shape(task, granule.shape), edge, edge // 2))

    def ours() -> list[dict[str, Any]]:
        return [example for _, example in cube.cut(granule, task, windows)]

    seconds: dict[str, list[float]] = {"ours": [], "direct": []}
    difference = _largest_difference(ours(), _cut_directly(pixels, task, windows))  # and warm-up
    for _ in range(rounds):
        for name, cut in (
            ("direct", lambda: _cut_directly(pixels, task, windows)),
            ("ours", ours),
        ):
            begin = time.perf_counter()
            cut()
            seconds[name].append(time.perf_counter() - begin)
    what = {"task": task.name, "size": size, "patches": len(windows), "difference_dn": difference}
    name = "cutting over the direct way"
    record.compare(output, name, seconds["direct"], seconds["ours"], what, warm_up=1)


def _cut_directly(
    pixels: dict[str, Any], task: Any, windows: list[Any]
) -> list[dict[str, dict[str, Any]]]:
    """Blur and block mean of each band of the tile, inputs enlarged, patches copied one by one."""
    from scipy import ndimage
    from skimage import measure, transform

    scale = task.scale
    inputs, enlarged = {}, {}
    for name in task.inputs:
        bands = [
            measure.block_reduce(
                ndimage.gaussian_filter(band.astype(np.float32), 1 / scale), scale, np.mean
            )
            for band in pixels[name]
        ]
        inputs[name] = np.stack(bands, axis=-1)
    target = pixels[task.target].transpose(1, 2, 0)
    for name, image in inputs.items():
        enlarged[name] = transform.resize(image, target.shape[:2], order=1, preserve_range=True)
    examples = []
    for window in windows:
        coarse = {
            n: image[window.coarser(task.ratio(n)).slices].copy() for n, image in inputs.items()
        }
        fine = {n: image[window.slices].copy() for n, image in enlarged.items()}
        truth = {task.name: target[window.slices].copy()}
        examples.append({"inputs": coarse, "enlarged": fine, "targets": truth})
    return examples


def _largest_difference(ours: list[dict[str, Any]], direct: list[dict[str, Any]]) -> float:
    """Of any pixel that both ways give [DN].

    Raises:
        click.ClickException: more than 1 DN: then the two do not do the same.
    """
    largest = 0.0
    for one, other in zip(ours, direct, strict=True):
        for group in ("inputs", "targets"):
            for name, values in one[group].items():
                gap = np.abs(values.astype(np.float64) - other[group][name]).max()
                largest = max(largest, float(gap))
    if largest > 1:
        raise click.ClickException(f"the two ways of cutting differ by {largest} DN")
    return largest
