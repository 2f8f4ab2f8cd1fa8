"""A classifier's probabilities on a split, joined over ranks, and what its scores come to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.spec import DataError
from kerass2 import label_scores

if TYPE_CHECKING:
    import keras

    from data_pipelines.spec import Source
    from kerass2.tiling import Predict
    from strategies.base import Strategy

# Patches a rank predicts at once.
LOCAL_BATCH = 32
# Numbers that ranks add up at once: 8 MB.
PIECE = 2**20
PRIOR = "prior"
"""A method that knows nothing of a patch: each class as probable as it is frequent."""

Tables = tuple[NDArray[np.bool_], dict[str, NDArray[np.float32]]]


def compile_models(networks: Mapping[str, keras.Model], source: Source) -> dict[str, Predict]:
    """A compiled call of each model, for predict_tables.

    Raises:
        DataError: the split is empty, of another task or other classes.
    """
    from kerass2 import methods

    if not len(source):
        raise DataError(f"split {source.split} holds no patches to evaluate")
    where = f"split {source.split}"
    return {name: methods.compile_for(each, source.spec, where) for name, each in networks.items()}


def predict_tables(predicts: Mapping[str, Predict], source: Source, strategy: Strategy) -> Tables:
    """Labels and, by model, probabilities of a split: (patch, class). Every rank gets all of them.

    Each rank fills the rows of its share and leaves the others 0, so that their sum is exact.

    Raises:
        DataError: a record is damaged.
    """
    from data_pipelines import batching
    from kerass2.models import labels

    shape = (len(source), len(source.spec.targets[labels.TARGET].bands))
    truth = np.zeros(shape)
    found = {name: np.zeros(shape) for name in predicts}
    global_batch = LOCAL_BATCH * strategy.world_size
    for step in range(batching.num_evaluation_steps(len(source), global_batch)):
        batch = batching.evaluation_batch(
            source,
            step=step,
            global_batch=global_batch,
            rank=strategy.rank,
            world_size=strategy.world_size,
        )
        counts = np.asarray(batch["mask"]) > 0
        if not counts.any():
            continue
        rows = np.asarray(batch["index"])[counts]
        truth[rows] = batch["targets"][labels.TARGET][counts]
        for name, predict in predicts.items():
            found[name][rows] = predict(batch["inputs"])[labels.PROBABILITY][counts]
    joined = {name: sum_tables(strategy, table).astype(np.float32) for name, table in found.items()}
    return sum_tables(strategy, truth) > 0.5, joined


def sum_tables(strategy: Strategy, table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over ranks, some rows at a time."""
    flat = table.ravel()
    pieces = [strategy.sum(flat[start : start + PIECE]) for start in range(0, flat.size, PIECE)]
    joined: NDArray[np.float64] = np.concatenate(pieces)
    return joined.reshape(table.shape)


def evaluate_models(
    networks: Mapping[str, keras.Model],
    source: Source,
    strategy: Strategy,
    *,
    tune_on: Source | None = None,
) -> dict[str, Any]:
    """Score classifiers on a split. Every rank calls it and gets the same.

    Args:
        networks: models by name.
        source: the split.
        strategy: shares the patches among its ranks; the scores do not depend on it.
        tune_on: the validation split, where thresholds are tuned for each class; None: all are 0.5.

    Returns:
        {"task": .., "split": .., "patches": number, "classes": [name], "methods": {PRIOR: scores,
        name: scores}, "thresholds": {method: [of each class]}, "tuned": bool, "confusion",
        "precision_recall", "examples": {name: see label_scores}, "definitions": {score: text}}.
    """
    predicts = compile_models(networks, source)
    truth, tables = predict_tables(predicts, source, strategy)
    tables = {PRIOR: _prior(truth), **tables}
    thresholds = {name: np.full(truth.shape[1], 0.5) for name in tables}
    if tune_on is not None:
        known, there = predict_tables(predicts, tune_on, strategy)
        for name, table in {PRIOR: _prior(known), **there}.items():
            thresholds[name] = label_scores.tune_thresholds(known, table)
    names = source.spec.targets["labels"].bands
    return {
        "task": source.spec.task,
        "split": source.split,
        "patches": len(source),
        "classes": list(names),
        "methods": {
            name: label_scores.score(truth, table, thresholds[name])
            for name, table in tables.items()
        },
        "thresholds": {name: values.tolist() for name, values in thresholds.items()},
        "tuned": tune_on is not None,
        "confusion": {
            name: label_scores.confusion(truth, tables[name], thresholds[name]) for name in networks
        },
        "precision_recall": {
            name: label_scores.sample_curves(truth, tables[name]) for name in networks
        },
        "examples": {
            name: label_scores.pick_examples(truth, tables[name], thresholds[name])
            for name in networks
        },
        "definitions": dict(label_scores.DEFINITIONS),
    }


def _prior(truth: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Each class' frequency, for every patch."""
    return np.tile(truth.mean(axis=0, dtype=np.float32), (len(truth), 1))
