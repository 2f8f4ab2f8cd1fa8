"""Whole scenes under Wald's protocol: degraded, sharpened, compared.

As the papers evaluate tiles: each pixel of the original bands is compared once. The model sees the
scene as kerass2.predict shows it, on its lattice or by DSen2's procedure, mirrored at the scene's
edges; or as a single window, beyond whose edges its convolutions see zeros: the network by itself,
which is what reference figures are of. Of small scenes the edges are a good part: with zeros
DSen2's RMSE is 0.3 to 2 % larger on scenes of 200 to 500 px of 20 m, up to 9 % on 70 to 100 px of
60 m. One scene is in memory at a time, and the prediction of one method.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.sentinel2 import GSDS, NO_DATA, QUANTIFICATION, SATURATED, bands_at
from data_pipelines.spec import DataError
from data_pipelines.windows import Window
from kerass2 import gaps, inputs, methods, metrics, networks, tiling
from kerass2.similarity import SSIM_WINDOW

if TYPE_CHECKING:
    import keras

    from data_pipelines.granule import Granule
    from kerass2.scores import Scores

SPLIT = "whole scenes"
# How a model sees a scene.
SINGLE = "single"
VIEWS = (*networks.PROCEDURES, SINGLE)
# Edge of what is predicted at once [px of the target], about.
REGION = 512
# Rows of the target that are scored at once.
ROWS = 128


@dataclasses.dataclass(frozen=True)
class Scene:
    """A scene in memory, degraded; a pixel that is not to be used is no data (0) in the inputs."""

    name: str
    cubes: Mapping[str, NDArray[np.uint16]]
    """{input: (band, y, x)} DN, degraded."""
    target: NDArray[np.uint16]
    """(y, x, band) DN, the truth."""
    valid: NDArray[np.bool_]
    """(y, x): where the truth, and the inputs at that place, have data."""


def open_data(path: str | pathlib.Path, task_name: str) -> inputs.Data:
    """The scenes at a path as a data set of one split, "whole scenes"; `open` gives nothing.

    Raises:
        DataError: nothing there, no scene, two of one name, one that lacks a cube, or one too small
            for SSIM's windows.
    """
    from data_pipelines import cube, fingerprint, granule

    if (pathlib.Path(path) / "manifest.json").is_file():
        raise DataError(
            f"{path}: patches; whole scenes need a product, a scene (.npz) or a folder of them"
        )
    task, found = cube.find_task(task_name), list(granule.open_granules(path))
    names = [each.name for each in found]
    if not found or len(set(names)) < len(names):
        raise DataError(f"{path}: scenes {', '.join(names) or 'none'}; expected each once")
    for each in found:
        missing = [name for name in task.inputs if name not in each.cubes]
        if missing:
            there = ", ".join(each.cubes)
            raise DataError(f"{each.name}: {task.name} needs {', '.join(missing)}; found {there}")
        shape = cube.target_shape(task, each.shape)
        if min(shape) < SSIM_WINDOW:
            raise DataError(
                f"{each.name}: {shape[0]} x {shape[1]} px of {task.gsd} m can be compared; at "
                f"least {SSIM_WINDOW} x {SSIM_WINDOW} are needed"
            )
    provenance = {
        "scenes": names,
        "products": {each.name: each.scene for each in found},
        "levels": sorted({str(e.facts["level"]) for e in found if e.facts.get("level")}),
        "synthetic": any(each.synthetic for each in found),
    }
    digest = fingerprint.of_product(path, found, {"task": task_name})[0]
    return inputs.Data(
        pathlib.Path(path), str(path), digest, {SPLIT: len(found)}, provenance, _no_patches
    )


def _no_patches(split: str) -> Any:
    raise DataError(f"whole scenes have no split {split!r} of patches")


def score(
    path: pathlib.Path,
    models_by_name: Mapping[str, keras.Model],
    scores: Scores,
    *,
    view: str,
    rank: int,
    world_size: int,
) -> None:
    """Add this rank's scenes, every world_size-th one, to the scores.

    Args:
        path: see open_data.
        models_by_name: {method: model}; `scores` may have the interpolations too.
        scores: takes the sums.
        view: one of VIEWS.
        rank: 0 to world_size - 1.
        world_size: number of ranks.
    """
    from data_pipelines import cube, granule
    from kerass2 import models

    for model in models_by_name.values():
        _check_bands(model)
    # Once each: what is compiled serves scenes of every size.
    predicts = {name: _compile(model, view) for name, model in models_by_name.items()}
    described = models.describe(next(iter(models_by_name.values())))
    task = cube.find_task(described["task"])
    for number, each in enumerate(granule.open_granules(path)):
        if number % world_size != rank:
            continue
        _score_scene(read(each, task), predicts, inputs.lowres_input(described), scores)


def _score_scene(
    scene: Scene,
    predicts: Mapping[str, Callable[[Scene], NDArray[np.float32]]],
    lowres: str,
    scores: Scores,
) -> None:
    """Add one scene, by each method; `lowres`: the input that has the bands of the target."""
    for start in range(0, len(scene.target), ROWS):
        rows = slice(start, start + ROWS)
        truth = scene.target[rows][scene.valid[rows]]
        scores.add_target(truth / np.float32(QUANTIFICATION))
    coarse = scene.cubes[lowres]
    for method in scores.methods:
        if method in predicts:
            predicted = predicts[method](scene)
        else:
            given = _filled(coarse, scores.scale)[None]
            predicted = methods.interpolate(method, given, scores.scale)[0]
        for sums in _strip_sums(predicted, scene, coarse, scores.scale):
            scores.add(method, scores.find_scene(scene.name), sums)


def _check_bands(model: keras.Model) -> None:
    """Refuse a model that takes or gives other bands than scenes have.

    Raises:
        DataError: both sides.
    """
    from kerass2 import models

    described = models.describe(model)
    wanted = {**described["inputs"], inputs.lowres_input(described): described["target_bands"]}
    for name, bands in wanted.items():
        there = bands_at(GSDS[name]) if name in GSDS else ()
        if tuple(bands) != there:
            raise DataError(
                f"model {described['model']} takes {name} {','.join(bands)}; scenes have "
                f"{','.join(there) or 'no such cube'}"
            )


def read(granule: Granule, task: Any) -> Scene:
    """A scene degraded by Wald's protocol, whole DN as in data sets of patches."""
    from data_pipelines import cube, wald

    cubes = {name: np.asarray(data) for name, data in cube.crop(granule, task).items()}
    target = np.moveaxis(cubes[task.target], 0, -1)
    valid = _usable(cubes[task.target])
    degraded = {}
    for name, data in cubes.items():
        coarse = np.rint(wald.degrade(data, task.scale))
        coarse = np.clip(coarse, NO_DATA + 1, SATURATED - 1).astype(np.uint16)
        # A degraded pixel that has seen a missing one means nothing: it is missing too.
        good = wald.degrade((~_usable(data)).astype(np.float32), task.scale) == 0
        degraded[name] = np.where(good, coarse, np.uint16(NO_DATA))
        ratio = task.ratio(name)
        valid = valid & good.repeat(ratio, axis=0).repeat(ratio, axis=1)
    return Scene(granule.name, degraded, target, valid)


def _usable(cube: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """(y, x): neither without data nor saturated in any band."""
    return np.asarray(((cube != NO_DATA) & (cube != SATURATED)).all(axis=0))


def _compile(model: keras.Model, view: str) -> Callable[[Scene], NDArray[np.float32]]:
    """A function that gives (y, x, band) reflectance of a whole scene."""
    import keras

    from kerass2 import models

    if view != SINGLE:
        network = networks.build_network(model, procedure=view)
        return lambda scene: _by_windows(network, scene)
    described = models.describe(model)

    def at_once(scene: Scene) -> NDArray[np.float32]:
        width = scene.valid.shape[1]
        cubes = {name: scene.cubes[name] for name in described["inputs"]}
        given = {n: _filled(cube, width // cube.shape[2])[None] for n, cube in cubes.items()}
        # Not compiled: each scene of another size would be compiled anew.
        predicted = model(given, training=False)[described["target"]]
        return np.asarray(keras.ops.convert_to_numpy(predicted)[0])

    return at_once


def _by_windows(network: networks.Network, scene: Scene) -> NDArray[np.float32]:
    """As kerass2.predict: regions side by side, mirrored beyond the scene."""
    shape = scene.valid.shape[0], scene.valid.shape[1]
    out = np.empty((*shape, len(network.bands)), np.float32)
    core = max(REGION // network.step, 1) * network.step
    for region in tiling.list_regions(Window(0, 0, *shape), core):
        union = tiling.reading_window([network], region, shape)
        given = {}
        for name, ratio in network.ratios.items():
            seen, cube = union.coarser(ratio), scene.cubes[name]
            rows = tiling.mirrored(seen.y, seen.y + seen.height, cube.shape[1])
            columns = tiling.mirrored(seen.x, seen.x + seen.width, cube.shape[2])
            given[name] = _filled(cube[:, rows[:, None], columns], ratio)
        pieces = network.place(region, shape)
        out[region.slices] = networks.predict_region(network, given, union, pieces, region)
    return out


def _filled(cube: NDArray[np.uint16], ratio: int) -> NDArray[np.float32]:
    """(y, x, band) reflectance of (band, y, x) DN, near the edges of gaps too; see kerass2.gaps."""
    reflectance = np.moveaxis(cube, 0, -1) / np.float32(QUANTIFICATION)
    gaps.fill(reflectance, ratio)
    return reflectance


def _strip_sums(
    predicted: NDArray[np.float32], scene: Scene, lowres: NDArray[np.uint16], scale: int
) -> Iterator[Mapping[str, NDArray[np.float64]]]:
    """metrics.sums of a scene strip by strip: the same as of the whole, in bounded memory."""
    height = len(predicted)
    bounds = [*range(0, max(1, height - SSIM_WINDOW + 1), ROWS), height]
    for start, stop in itertools.pairwise(bounds):
        below = 0 if stop == height else SSIM_WINDOW - 1
        rows = slice(start, stop + below)
        yield metrics.sums(
            predicted[None, rows],
            scene.target[None, rows] / np.float32(QUANTIFICATION),
            None,
            scale,
            valid=scene.valid[None, rows],
            below=below,
        )
    nothing = metrics.zeros(predicted.shape[-1])
    yield {**nothing, **_consistency(predicted, scene.valid, lowres, scale)}


def _consistency(
    predicted: NDArray[np.float32], valid: NDArray[np.bool_], lowres: NDArray[np.uint16], scale: int
) -> Mapping[str, NDArray[np.float64]]:
    """metrics.consistency_sums of a scene, band by band."""
    from data_pipelines import wald

    good = (lowres != NO_DATA).all(axis=0)
    good &= wald.degrade((~valid).astype(np.float32), scale) == 0
    parts = [
        metrics.consistency_sums(
            metrics.DN * predicted[None, ..., band : band + 1].astype(np.float64),
            lowres[band][None, ..., None].astype(np.float64),
            scale,
            good[None],
        )
        for band in range(len(lowres))
    ]
    return {
        "input_error": np.concatenate([part["input_error"] for part in parts]),
        "input_pixels": parts[0]["input_pixels"],
    }
