"""Validation between steps: the score, what follows from it, and the fixed set it is formed on."""

from __future__ import annotations

import json
import math

import keras
import numpy as np
import pytest

from data_pipelines import store
from kerass2 import evaluate, models
from kerass2.config import PlateauConfig
from kerass2.validation import EvenlySpaced, Progress, Validator
from strategies.cluster import Cluster
from strategies.single import SingleStrategy


@pytest.mark.parametrize("seed", range(12))
def test_the_plateau_rule_is_keras(seed):
    """Keras' own callback sees the same scores; values that are not finite come, too."""
    rng = np.random.default_rng(seed)
    config = PlateauConfig(
        patience=int(rng.integers(1, 4)),
        factor=float(rng.uniform(0.2, 0.8)),
        min_delta=float(rng.choice([0.0, 0.3])),
        cooldown=int(rng.integers(0, 3)),
        least=0.05,
    )
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1.0))
    theirs = keras.callbacks.ReduceLROnPlateau(
        factor=config.factor,
        patience=config.patience,
        min_delta=config.min_delta,
        cooldown=config.cooldown,
        min_lr=config.least,
    )
    theirs.set_model(model)
    theirs.on_train_begin()
    ours = Progress()
    scores = 10 - 0.05 * np.arange(60) + rng.normal(size=60)
    scores[rng.integers(0, 60, 3)] = np.nan
    for step, score in enumerate(scores):
        theirs.on_epoch_end(step, {"val_loss": score})
        ours.note(float(score), step, config)
        assert ours.rate_factor == pytest.approx(float(model.optimizer.learning_rate), rel=1e-6)
    assert ours.rate_factor < 1


def test_best_and_waiting():
    progress = Progress()
    scores = [math.nan, 5.0, 4.0, math.inf, 4.0, 3.5]
    found = [progress.note(score, 10 * i, PlateauConfig()) for i, score in enumerate(scores)]
    assert found == [False, True, True, False, False, True]
    assert (progress.best, progress.best_step, progress.waited) == (3.5, 50, 0)
    assert progress.rate_factor == 1.0


def test_progress_survives_json_exactly():
    progress = Progress(best=1 / 3, rate_factor=0.7**5, plateau_best=0.1 + 0.2, waited=2)
    assert Progress(**json.loads(json.dumps(vars(progress)))) == progress


class Numbers:
    """A source of its own positions."""

    spec, split = "spec", "validation"

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def read(self, indices):
        return {"position": np.asarray(indices)}


@pytest.mark.parametrize(("count", "asked", "expected"), [(10, 4, [0, 2, 5, 7]), (3, 9, [0, 1, 2])])
def test_evenly_spaced(count, asked, expected):
    source = EvenlySpaced(Numbers(count), asked)
    assert len(source) == len(expected)
    np.testing.assert_array_equal(source.read(range(len(source)))["position"], expected)


class Half(SingleStrategy):
    """One of two ranks, run one after the other: what both add up is collected."""

    def __init__(self, rank: int, sums: list[np.ndarray]) -> None:
        super().__init__(Cluster("none"))
        self.rank, self.world_size, self.sums = rank, 2, sums

    @property
    def is_chief(self) -> bool:
        return self.rank == 0

    def sum(self, values: np.ndarray) -> np.ndarray:
        self.sums.append(values)
        return values


def test_the_rmse_is_that_of_evaluate(prepared):
    keras.utils.set_random_seed(1)
    model = models.build("s2x", filters=8, blocks=2)
    source = store.open_source(prepared, "validation")
    one = SingleStrategy(Cluster("none"))
    expected = evaluate.evaluate_model(model, source, one)["methods"]["model"]["rmse"]["mean"]
    assert Validator(model, source, one).rmse() == pytest.approx(expected, rel=1e-6)
    sums: list[np.ndarray] = []
    for rank in (0, 1):
        Validator(model, source, Half(rank, sums)).rmse()
    pixels, *errors = sums[0] + sums[2]
    assert 1e4 * np.sqrt(np.array(errors) / pixels).mean() == pytest.approx(expected, rel=1e-6)
    some = Validator(model, source, one, 2)
    assert len(some) == 2
    assert some.rmse() != pytest.approx(expected, rel=1e-6)
