"""A classifier's probabilities on a split, joined over ranks, and what its scores come to."""

from __future__ import annotations

import zlib
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


def compile_models(
    networks: Mapping[str, keras.Model], sources: Mapping[str, Source]
) -> dict[str, Predict]:
    """A compiled call of each model, for the split that it sees.

    Raises:
        DataError: the split is empty, of another task or other classes.
    """
    from kerass2 import methods

    predicts = {}
    for name, network in networks.items():
        source = sources[name]
        if not len(source):
            raise DataError(f"split {source.split} holds no patches to evaluate")
        predicts[name] = methods.compile_for(network, source.spec, f"split {source.split}")
    return predicts


def predict_tables(predicts: Mapping[str, Predict], source: Source, strategy: Strategy) -> Tables:
    """Labels and, by model, probabilities of a split: (patch, class). Every rank gets all of them.

    Raises:
        DataError: a record is damaged.
    """
    marked, tables = _predict(predicts, source, strategy)
    return marked[:, 1:] > 0.5, tables


def predict_sources(
    predicts: Mapping[str, Predict], sources: Mapping[str, Source], strategy: Strategy
) -> Tables:
    """predict_tables of models that see the same patches in data sets of their own.

    Args:
        predicts: calls by name.
        sources: the split for each name; one that is there several times is read once.
        strategy: shares the patches.

    Raises:
        DataError: a record is damaged, or the data sets hold other patches or labels.
    """
    tables, expected = dict[str, NDArray[np.float32]](), None
    for source in {id(each): each for each in sources.values()}.values():
        mine = {name: predict for name, predict in predicts.items() if sources[name] is source}
        marked, found = _predict(mine, source, strategy)
        tables |= found
        expected = marked if expected is None else expected
        if marked.shape != expected.shape or (marked != expected).any():
            raise DataError(
                f"{', '.join(mine)}: the {source.split} split of its data holds {len(marked)} "
                f"patches that are not, with their labels, the {len(expected)} of "
                f"{next(iter(sources))}'s data; expected the same in the same order"
            )
    if expected is None:
        raise ValueError("no models")
    return expected[:, 1:] > 0.5, {name: tables[name] for name in predicts}


def _predict(
    predicts: Mapping[str, Predict], source: Source, strategy: Strategy
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float32]]]:
    """(patch, 1 + class): a checksum of the patch's name, its labels; and predict_tables' tables.

    Each rank fills the rows of its share and leaves the others 0, so that their sum is exact.
    """
    from data_pipelines import batching
    from kerass2.models import labels

    shape = (len(source), len(source.spec.targets[labels.TARGET].bands))
    marked = np.zeros((shape[0], 1 + shape[1]))
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
        names = np.asarray(batch["patch_id"])[counts]
        marked[rows, 0] = [zlib.crc32(str(name).encode()) for name in names]
        marked[rows, 1:] = batch["targets"][labels.TARGET][counts]
        for name, predict in predicts.items():
            found[name][rows] = predict(batch["inputs"])[labels.PROBABILITY][counts]
    joined = {name: sum_tables(strategy, table).astype(np.float32) for name, table in found.items()}
    return sum_tables(strategy, marked), joined


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
    own: Mapping[str, tuple[Source, Source | None]] | None = None,
) -> dict[str, Any]:
    """Score classifiers on a split. Every rank calls it and gets the same.

    Args:
        networks: models by name.
        source: the split.
        strategy: shares the patches among its ranks; the scores do not depend on it.
        tune_on: the validation split, where thresholds are tuned for each class; None: all are 0.5.
        own: {name: (source, tune_on)} of models that were trained on another form of the same
            patches, such as bilinear ones beside super-resolved ones, and are scored on that.

    Returns:
        {"task": .., "split": .., "patches": number, "classes": [name], "methods": {PRIOR: scores,
        name: scores}, "thresholds": {method: [of each class]}, "tuned": bool, "confusion",
        "precision_recall", "examples": {name: see label_scores}, "definitions": {score: text}}.
    """
    given = {name: (own or {}).get(name, (source, tune_on)) for name in networks}
    sources = {name: each for name, (each, _) in given.items()}
    predicts = compile_models(networks, sources)
    truth, tables = predict_sources(predicts, sources, strategy)
    tables = {PRIOR: _prior(truth), **tables}
    thresholds = {name: np.full(truth.shape[1], 0.5) for name in tables}
    if tune_on is not None:
        tuning = {name: each for name, (_, each) in given.items() if each is not None}
        known, there = predict_sources(predicts, tuning, strategy)
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
