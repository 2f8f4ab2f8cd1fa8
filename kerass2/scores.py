"""Scores of several methods, scene by scene: added up batch by batch, joined over ranks once.

Every patch counts once, whatever the number of ranks: each rank adds up its share, one sum over
ranks joins them, and the division comes last. What a rank sends has one size, which follows from
the methods, the bands and the data set's list of scenes: every rank knows it without asking,
whichever patches it has seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.spec import DataError
from kerass2 import inputs, metrics

if TYPE_CHECKING:
    import keras

    from data_pipelines.spec import Source
    from kerass2.tiling import Predict
    from strategies.base import Strategy

Results = dict[str, dict[str, float]]

# Patches a rank predicts at once.
LOCAL_BATCH = 8
# The scene of patches whose name begins with none of the data set's scenes.
UNKNOWN = "(not listed)"


class Scores:
    """Sums by method and scene."""

    def __init__(
        self, methods: Sequence[str], scenes: Sequence[str], bands: Sequence[str], scale: int
    ) -> None:
        """All zero.

        Args:
            methods: names, in the order of the tables.
            scenes: of the data set; the same list on every rank.
            bands: of the target.
            scale: pixel size that was sharpened over that of the target.
        """
        self.methods, self.bands, self.scale = tuple(methods), tuple(bands), scale
        self.scenes = (*scenes, UNKNOWN)
        # Longer names first: a scene may be named like the beginning of another.
        self._longest = sorted(enumerate(scenes), key=lambda pair: -len(pair[1]))
        self._like = metrics.zeros(len(bands))
        size = metrics.pack(self._like).size
        self._sums = np.zeros((len(self.methods), len(self.scenes), size))
        self._histogram = np.zeros(metrics.LARGEST_DN + 1)

    def find_scene(self, patch: str) -> int:
        """Which scene a patch is of: its id begins with the granule's name, and that with it."""
        found = (number for number, scene in self._longest if patch.startswith(scene))
        return next(found, len(self.scenes) - 1)

    def add_target(self, target: NDArray[Any], mask: NDArray[Any] | None = None) -> None:
        """Take note of a truth, once for all methods: see metrics.histogram."""
        self._histogram += metrics.histogram(target, mask)

    def add(self, method: str, scene: int, values: Mapping[str, NDArray[np.float64]]) -> None:
        """Add metrics.sums of a method and a scene."""
        self._sums[self.methods.index(method), scene] += metrics.pack(values)

    def add_batch(
        self,
        predictions: Mapping[str, NDArray[Any]],
        batch: Mapping[str, Any],
        names: Mapping[str, str],
    ) -> None:
        """Add a batch of batching.evaluation_batch.

        Args:
            predictions: {method: (patch, y, x, band) reflectance}.
            batch: targets, inputs, mask and patch ids.
            names: of the target and of the input with its bands.
        """
        target, lowres = batch["targets"][names["target"]], batch["inputs"][names["lowres"]]
        mask = np.asarray(batch["mask"]) > 0
        self.add_target(target, mask)
        owners = np.array([self.find_scene(str(patch)) for patch in batch["patch_id"]])
        for scene in np.unique(owners[mask]).tolist():
            mine = mask & (owners == scene)
            for method, predicted in predictions.items():
                sums = metrics.sums(predicted, target, mine, self.scale, lowres=lowres)
                self.add(method, scene, sums)

    def add_ranks(self, strategy: Strategy) -> None:
        """Add what the other ranks have, by one collective call. Every rank calls it."""
        total = strategy.sum(np.concatenate([self._sums.ravel(), self._histogram]))
        sums, self._histogram = np.split(total, [self._sums.size])
        self._sums = sums.reshape(self._sums.shape)

    def results(self) -> dict[str, Any]:
        """Metrics of all patches, of each scene that has any, and over scenes.

        Returns:
            {"methods": {method: {metric: {"mean" or band: value}}}, "scenes": {scene: {"pixels":
            number, "methods": likewise}}, "over_scenes": {method: {metric: {"mean" or band:
            {"mean": .., "std": ..}}}}}: mean and sample standard deviation (n - 1) of the scenes'
            values, each listed scene counting once; the latter is NaN for one scene. Without a
            list of scenes both are empty.

        Raises:
            ValueError: no patch.
        """
        dn_range = metrics.data_range(self._histogram)

        def score(vector: NDArray[np.float64]) -> Results:
            return metrics.results(metrics.unpack(vector, self._like), self.bands, dn_range)

        scenes: dict[str, dict[str, Any]] = {}
        for number, scene in enumerate(self.scenes):
            pixels = metrics.unpack(self._sums[0, number], self._like)["pixels"][0]
            if pixels and len(self.scenes) > 1:
                found = zip(self.methods, self._sums[:, number], strict=True)
                scenes[scene] = {
                    "pixels": int(pixels),
                    "methods": {method: score(vector) for method, vector in found},
                }
        listed = [scene for scene in scenes if scene != UNKNOWN]
        total = zip(self.methods, self._sums.sum(axis=1), strict=True)
        return {
            "methods": {method: score(vector) for method, vector in total},
            "scenes": scenes,
            "over_scenes": {
                method: over_scenes([scenes[scene]["methods"][method] for scene in listed])
                for method in self.methods
                if listed
            },
        }


def over_scenes(results: Sequence[Results]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and sample standard deviation over scenes of each value; NaN where there are too few."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for metric, values in results[0].items() if results else ():
        found[metric] = {}
        for key in values:
            numbers = np.array([result[metric][key] for result in results])
            # Infinite values (a perfect scene) have no deviation: NaN, without numpy's warning.
            with np.errstate(invalid="ignore"):
                std = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else float("nan")
            found[metric][key] = {"mean": float(np.mean(numbers)), "std": std}
    return found


def finite(value: Any) -> Any:
    """The same nested values, None for each number that is not finite."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- models on data -----------------------------------------------------------------------------


def evaluate_model(
    model: keras.Model,
    source: Source,
    strategy: Strategy,
    *,
    global_batch: int | None = None,
    scenes: Sequence[str] = (),
    also: Mapping[str, keras.Model] | None = None,
    baselines: Sequence[str] = ("bicubic",),
) -> dict[str, Any]:
    """Score a model and bicubic interpolation on a split. Every rank calls it and gets the same.

    Args:
        model: a super-resolution model of kerass2.models.
        source: the split.
        strategy: shares the patches among its ranks.
        global_batch: patches of all ranks at once, a multiple of their number; 8 a rank by
            default. The results do not depend on it.
        scenes: of the data set, the same list on every rank, for results by scene; see
            scores.Scores.find_scene.
        also: more models by name, on the same patches.
        baselines: names of interpolations, see methods.BASELINES.

    Returns:
        {"task": .., "split": .., "patches": number,
        "methods": {"bicubic": {"rmse": {"mean": .., "B05": ..}, ..}, "model": {..}},
        "scenes": .., "over_scenes": .. (see scores.Scores.results),
        "units": {metric: unit}, "definitions": {metric: definition}}.

    Raises:
        DataError: data of another task or band set, or a damaged record.
    """
    from kerass2 import methods, models

    described = models.describe(model)
    where = f"split {source.split}"
    predicts = {
        name: methods.compile_for(each, source.spec, where)
        for name, each in {methods.MAIN: model, **(also or {})}.items()
    }
    if not len(source):
        raise DataError(f"split {source.split} holds no patches to evaluate")
    scores = Scores((*baselines, *predicts), scenes, described["target_bands"], described["scale"])
    batch = global_batch or LOCAL_BATCH * strategy.world_size
    _score_patches(scores, predicts, described, source, strategy, batch, baselines)
    facts = {"task": source.spec.task, "split": source.split, "patches": len(source)}
    return {**facts, **_results(scores)}


def _score_patches(
    scores: Scores,
    predicts: Mapping[str, Predict],
    described: Mapping[str, Any],
    source: Source,
    strategy: Strategy,
    global_batch: int,
    baselines: Sequence[str],
) -> None:
    """Add a split, this rank's share of each batch, and what the other ranks have.

    Batches in numpy: no rank's work depends on the others before the sum, every backend can do it,
    and reading takes a hundredth of the time that the model takes.
    """
    from data_pipelines import batching

    names = {"target": described["target"], "lowres": inputs.lowres_input(described)}
    for step in range(batching.num_evaluation_steps(len(source), global_batch)):
        batch = batching.evaluation_batch(
            source,
            step=step,
            global_batch=global_batch,
            rank=strategy.rank,
            world_size=strategy.world_size,
        )
        if batch["mask"].any():
            predicted = predict_methods(predicts, described, batch["inputs"], baselines)
            scores.add_batch(predicted, batch, names)
    scores.add_ranks(strategy)


def evaluate_scenes(
    data: inputs.Data, networks: Mapping[str, keras.Model], strategy: Strategy, *, view: str
) -> dict[str, Any]:
    """Like evaluate_model for whole scenes, with all interpolations. Every rank calls it.

    Args:
        data: of whole.open_data.
        networks: {method: model}, methods.MAIN among them.
        strategy: shares the scenes among its ranks.
        view: one of whole.VIEWS.
    """
    from kerass2 import methods, models, whole

    described = models.describe(networks[methods.MAIN])
    scores = Scores(
        (*methods.BASELINES, methods.SPLINE, *networks),
        data.provenance["scenes"],
        described["target_bands"],
        described["scale"],
    )
    whole.score(
        data.path,
        networks,
        scores,
        view=view,
        rank=strategy.rank,
        world_size=strategy.world_size,
    )
    scores.add_ranks(strategy)
    facts = {"task": described["task"], "split": whole.SPLIT, "patches": data.counts[whole.SPLIT]}
    facts["products"] = data.provenance["products"]
    return {**facts, "view": view, **_results(scores)}


def _results(scores: Scores) -> dict[str, Any]:
    """What the scores come to, with units and definitions."""
    return {
        **scores.results(),
        "units": dict(metrics.UNITS),
        "definitions": dict(metrics.DEFINITIONS),
    }


def predict_methods(
    predict: Predict | Mapping[str, Predict],
    described: Mapping[str, Any],
    given: Mapping[str, NDArray[Any]],
    baselines: Sequence[str] = ("bicubic",),
) -> dict[str, NDArray[Any]]:
    """The target by each method: {"bicubic": .., "model": ..}, (batch, y, x, band) reflectance.

    Args:
        predict: see tiling.compile_prediction; or several by name.
        described: of models.describe.
        given: {input: (batch, y, x, band) float32 reflectance}.
        baselines: names of interpolations, which come first.
    """
    from kerass2 import methods

    lowres, target = given[inputs.lowres_input(described)], described["target"]
    found = {name: methods.interpolate(name, lowres, described["scale"]) for name in baselines}
    predicts = {methods.MAIN: predict} if callable(predict) else predict
    return {**found, **{name: each(given)[target] for name, each in predicts.items()}}
