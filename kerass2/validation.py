"""Validation while training goes on: the score on a fixed set, and what follows from it.

Every rank predicts its share and decides by rank 0's score, so that all lower the rate, and stop,
at the same step.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipelines.spec import DataError
from kerass2.config import LABEL_TASK, PlateauConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    import keras
    from numpy.typing import NDArray

    from data_pipelines.spec import Batch, DatasetSpec, Source
    from strategies.base import Strategy

# Patches a rank predicts at once.
LOCAL_BATCH = 8
# Patches that are drawn for TensorBoard.
DRAWN = 3
DN = 10_000.0
# What is waited for: of images, of labels.
BETTER = ("a lower RMSE", "a higher average precision")


@dataclasses.dataclass
class Progress:
    """What the validations so far have come to; part of a checkpoint."""

    best: float | None = None
    """Lowest error: RMSE [DN], or of labels 1 - average precision; None before the first finite."""
    best_step: int = 0
    """Steps after which it was found."""
    waited: int = 0
    """Validations since."""
    plateau_best: float | None = None
    """Lowest RMSE as the plateau rule counts it [DN]."""
    plateau_waited: int = 0
    """Validations without a lower one, cooldown left out."""
    cooling: int = 0
    """Validations of the cooldown that are left."""
    rate_factor: float = 1.0
    """What the schedule's rate is multiplied by."""

    def note(self, rmse: float, step: int, plateau: PlateauConfig) -> bool:
        """Take in the score after `step` steps; True if it is the lowest so far.

        A score that is not finite is never the lowest.
        """
        if plateau.patience:
            self._note_plateau(rmse, plateau)
        if math.isfinite(rmse) and (self.best is None or rmse < self.best):
            self.best, self.best_step, self.waited = rmse, step, 0
            return True
        self.waited += 1
        return False

    def _note_plateau(self, rmse: float, plateau: PlateauConfig) -> None:
        """The rule of keras.callbacks.ReduceLROnPlateau."""
        if self.cooling:
            self.cooling -= 1
            self.plateau_waited = 0
        best = math.inf if self.plateau_best is None else self.plateau_best
        if rmse < best - plateau.min_delta:
            self.plateau_best, self.plateau_waited = rmse, 0
        elif not self.cooling:
            self.plateau_waited += 1
            if self.plateau_waited >= plateau.patience:
                lower = max(self.rate_factor * plateau.factor, plateau.least)
                if lower < self.rate_factor:
                    self.rate_factor, self.cooling = lower, plateau.cooldown
                    self.plateau_waited = 0


class EvenlySpaced:
    """Some examples of a source, evenly spaced, always the same."""

    def __init__(self, source: Source, num_examples: int) -> None:
        """All of them where there are no more than `num_examples`."""
        self._source = source
        self.spec: DatasetSpec = source.spec
        self.split: str = source.split
        count = min(num_examples, len(source))
        self._positions = np.arange(count) * len(source) // max(count, 1)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._positions)

    def read(self, indices: Sequence[int] | NDArray[Any]) -> Batch:
        """As data_pipelines.spec.Source."""
        return self._source.read(self._positions[np.asarray(indices)])


class Validator:
    """The mean RMSE of a model on a split, as kerass2.evaluate defines it, at little cost.

    The call of the model is compiled once, and no other metric and method is computed.
    """

    def __init__(
        self, model: keras.Model, source: Source, strategy: Strategy, num_patches: int = 0
    ) -> None:
        """`num_patches` of the split, evenly spaced; 0: all.

        Raises:
            DataError: the split is empty, or of another task or band set.
        """
        from kerass2 import models, tiling

        models.check_fits(model, source.spec, f"split {source.split}")
        if not len(source):
            raise DataError(f"split {source.split} holds no patches to validate on")
        self._source = EvenlySpaced(source, num_patches) if num_patches else source
        self._strategy = strategy
        self._described = models.describe(model)
        self._target = self._described["target"]
        self._predict = tiling.compile_prediction(model)

    def __len__(self) -> int:
        """Patches seen each time."""
        return len(self._source)

    def rmse(self) -> float:
        """Of the model as it is now [DN], mean over bands. Every rank calls it, and gets the same.

        Raises:
            DataError: a damaged record.
        """
        from data_pipelines import batching

        strategy = self._strategy
        global_batch = LOCAL_BATCH * strategy.world_size
        sums = np.zeros(1 + len(self._source.spec.targets[self._target].bands))
        for step in range(batching.num_evaluation_steps(len(self._source), global_batch)):
            batch = batching.evaluation_batch(
                self._source,
                step=step,
                global_batch=global_batch,
                rank=strategy.rank,
                world_size=strategy.world_size,
            )
            sums += self._sums(batch)
        num_pixels, *squared_errors = strategy.sum(sums)
        rmse = DN * float(np.mean(np.sqrt(np.asarray(squared_errors) / num_pixels)))
        # Rank 0's number for all: ranks on processors of another kind may round otherwise.
        return float(strategy.sum(np.array([rmse if strategy.is_chief else 0.0]))[0])

    def score(self) -> tuple[float, dict[str, float]]:
        """The error to lower, and what to log."""
        rmse = self.rmse()
        return rmse, {"validation_rmse": rmse}

    def draw(self) -> dict[str, NDArray[np.uint8]]:
        """Input, prediction and truth of the first patches, side by side: (patch, y, x, 3)."""
        from data_pipelines.transforms import to_physical
        from kerass2 import colours, figures, inputs

        # As many as are predicted at once elsewhere: nothing is compiled anew.
        positions = np.arange(LOCAL_BATCH) % len(self._source)
        batch = to_physical(self._source.read(positions), self._source.spec)
        predicted = self._predict(batch["inputs"])[self._target]
        bands = list(self._source.spec.targets[self._target].bands)
        channels = [bands.index(band) for band in colours.choose(bands)[-1][1]]
        lowres = batch["inputs"][inputs.lowres_input(self._described)]
        arrays = (lowres, predicted, batch["targets"][self._target])
        lowres, predicted, truth = (DN * array[: min(DRAWN, len(self))] for array in arrays)
        return {"validation": figures.strips(lowres, predicted, truth, channels)}

    def _sums(self, batch: Batch) -> NDArray[np.float64]:
        """Pixels, and the sum of each band's squared errors, of the patches that count."""
        counts = np.asarray(batch["mask"]) > 0
        truth = np.asarray(batch["targets"][self._target], np.float64)[counts]
        predicted = self._predict(batch["inputs"])[self._target][counts]
        squared = np.square(predicted - truth).sum(axis=(0, 1, 2))
        return np.array([truth[..., 0].size, *squared])


class LabelValidator:
    """A classifier's scores on a split; the error to lower is 1 - average precision (micro).

    It needs no threshold, and tells models apart while none predicts anything above 0.5.
    """

    def __init__(
        self, model: keras.Model, source: Source, strategy: Strategy, num_patches: int = 0
    ) -> None:
        """As Validator.

        Raises:
            DataError: the split is empty, or of another task or other classes.
        """
        from kerass2 import label_evaluation

        self._predicts = label_evaluation.compile_models({"model": model}, {"model": source})
        self._source = EvenlySpaced(source, num_patches) if num_patches else source
        self._strategy = strategy

    def __len__(self) -> int:
        """Patches seen each time."""
        return len(self._source)

    def score(self) -> tuple[float, dict[str, float]]:
        """The error to lower, and what to log. Every rank calls it, and gets the same."""
        from kerass2 import label_evaluation, label_scores

        truth, tables = label_evaluation.predict_tables(
            self._predicts, self._source, self._strategy
        )
        found = label_scores.score(truth, tables["model"])
        values = {
            "validation_f1": found["micro"]["f1"],
            "validation_f1_macro": found["macro"]["f1"],
            "validation_ap": found["average_precision"]["micro"],
            "validation_ap_macro": found["average_precision"]["macro"],
        }
        error = 1.0 - values["validation_ap"]
        # Rank 0's number for all: ranks on processors of another kind may round otherwise.
        chief = np.array([error if self._strategy.is_chief else 0.0])
        return float(self._strategy.sum(chief)[0]), values

    def draw(self) -> dict[str, NDArray[np.uint8]]:
        """Nothing: classes are no pictures."""
        return {}


def build(
    model: keras.Model, source: Source, strategy: Strategy, num_patches: int = 0
) -> Validator | LabelValidator:
    """The validator of a model's task."""
    make = LabelValidator if source.spec.task == LABEL_TASK else Validator
    return make(model, source, strategy, num_patches)


def format_error(error: float, task: str) -> str:
    """An error for people."""
    return f"average precision {1 - error:.4f}" if task == LABEL_TASK else f"RMSE {error:.2f} DN"


def finish(model: keras.Model, source: Source, strategy: Strategy) -> tuple[dict[str, float], str]:
    """Validate on all of a split, beside the baseline: values to log, and a line for people.

    Every rank calls it.
    """
    if source.spec.task == LABEL_TASK:
        values = LabelValidator(model, source, strategy).score()[1]
        text = (
            f"validation F1 {values['validation_f1']:.4f} (macro "
            f"{values['validation_f1_macro']:.4f}), average precision "
            f"{values['validation_ap']:.4f}, {len(source)} patches"
        )
        return values, text
    from kerass2 import evaluate

    scores = evaluate.evaluate_model(model, source, strategy)
    rmse = {method: found["rmse"]["mean"] for method, found in scores["methods"].items()}
    text = (
        f"validation RMSE {rmse['model']:.2f} DN, bicubic {rmse['bicubic']:.2f} DN, "
        f"{len(source)} patches"
    )
    values = {"validation_rmse": rmse["model"], "validation_rmse_bicubic": rmse["bicubic"]}
    return values, text
