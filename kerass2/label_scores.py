"""Scores of labels that do not exclude each other, in the definitions of scikit-learn.

All of them are computed from one table of probabilities and one of labels, patch by class, which
ranks fill together (see label_evaluation.py): no score depends on the number of ranks. A quotient
whose divisor is 0 (a class that is never predicted, or that no patch has) counts as 0, as
scikit-learn's zero_division=0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

AVERAGES = ("micro", "macro", "weighted", "samples")
# Score -> what it is.
DEFINITIONS = {
    "precision": "true positives / predicted positives",
    "recall": "true positives / patches that have the class",
    "f1": "harmonic mean of precision and recall",
    "average_precision": "sum over thresholds of (gain in recall) x precision",
    "hamming_loss": "fraction of wrong labels, over patches and classes",
    "one_error": "fraction of patches whose most probable class they do not have",
    "coverage": "classes from the most probable on that cover all of a patch's, mean over patches",
    "subset_accuracy": "fraction of patches all of whose labels are right",
}

Labels = NDArray[np.bool_]
Probabilities = NDArray[np.floating[Any]]
Thresholds = float | NDArray[np.floating[Any]]


def score(
    labels: Labels, probabilities: Probabilities, thresholds: Thresholds = 0.5
) -> dict[str, Any]:
    """All scores of a split.

    Args:
        labels: (patch, class), true where the patch has the class.
        probabilities: the same shape, 0 to 1.
        thresholds: from which on a class is predicted; one, or one for each class.

    Returns:
        {"micro" | "macro" | "weighted" | "samples": {"precision": .., "recall": .., "f1": ..},
        "average_precision": {"micro": .., "macro": ..}, "hamming_loss": .., "one_error": ..,
        "coverage": .., "subset_accuracy": .., "classes": {"precision": [..], "recall": [..],
        "f1": [..], "average_precision": [..], "support": [..], "predicted": [..]}}; the macro mean
        of average precision is over classes that some patch has.
    """
    labels, predicted = labels.astype(bool), probabilities >= thresholds
    hits = (labels & predicted).sum(axis=0)
    support, found = labels.sum(axis=0), predicted.sum(axis=0)
    precision, recall, f1 = _prf(hits, found, support)
    each = {"precision": precision, "recall": recall, "f1": f1}
    micro = _prf(hits.sum(), found.sum(), support.sum())
    rows = _prf((labels & predicted).sum(axis=1), predicted.sum(axis=1), labels.sum(axis=1))
    weights = support / max(support.sum(), 1)
    columns = zip(labels.T, probabilities.T, strict=True)
    averages = [average_precision(truth, values) for truth, values in columns]
    there = support > 0
    return {
        "micro": _named(micro),
        "macro": {name: float(values.mean()) for name, values in each.items()},
        "weighted": {name: float((weights * values).sum()) for name, values in each.items()},
        "samples": _named(tuple(values.mean() for values in rows)),
        "average_precision": {
            "micro": average_precision(labels.ravel(), probabilities.ravel()),
            "macro": float(np.mean(np.array(averages)[there])) if there.any() else 0.0,
        },
        "hamming_loss": float((labels != predicted).mean()),
        **_ranking(labels, probabilities),
        "subset_accuracy": float((labels == predicted).all(axis=1).mean()),
        "classes": {
            **{name: values.tolist() for name, values in each.items()},
            "average_precision": averages,
            "support": support.tolist(),
            "predicted": found.tolist(),
        },
    }


def _prf(hits: Any, predicted: Any, support: Any) -> tuple[Any, Any, Any]:
    """Precision, recall and F1 of counts."""
    return (
        _divide(hits, predicted),
        _divide(hits, support),
        _divide(2 * np.asarray(hits), np.asarray(predicted) + support),
    )


def _divide(a: Any, b: Any) -> Any:
    """0 where b is 0."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.divide(a, b, out=np.zeros_like(b), where=b > 0)


def _named(values: tuple[Any, Any, Any]) -> dict[str, float]:
    return {n: float(v) for n, v in zip(("precision", "recall", "f1"), values, strict=True)}


def precision_recall(
    labels: Labels, probabilities: Probabilities
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Precision, recall and threshold (point,) for each threshold that tells patches apart.

    Thresholds fall. Equal probabilities are one point.
    """
    order = np.argsort(-probabilities, kind="stable")
    values, hits = probabilities[order], np.cumsum(labels[order])
    last = np.flatnonzero(np.append(values[1:] != values[:-1], True))
    true = hits[last].astype(np.float64)
    recall = true / max(int(labels.sum()), 1)
    return true / (last + 1.0), recall, values[last].astype(np.float64)


def average_precision(labels: Labels, probabilities: Probabilities) -> float:
    """Area below the steps of the precision-recall curve; 0 where no label is true."""
    if not labels.any():
        return 0.0
    precision, recall, _ = precision_recall(labels.astype(bool), probabilities)
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def _ranking(labels: Labels, probabilities: Probabilities) -> dict[str, float]:
    """One-error over patches that have a class, and coverage over all of them."""
    top = labels[np.arange(len(labels)), probabilities.argmax(axis=1)]
    some = labels.any(axis=1)
    # The least probable true class; how many classes are as probable.
    least = np.where(labels, probabilities, np.inf).min(axis=1)
    covered = np.where(some, (probabilities >= least[:, None]).sum(axis=1), 0)
    return {
        "one_error": float((~top)[some].mean()) if some.any() else 0.0,
        "coverage": float(covered.mean()),
    }


def tune_thresholds(labels: Labels, probabilities: Probabilities) -> NDArray[np.float64]:
    """For each class the threshold of the largest F1; 0.5 for a class that no patch has.

    To be found on the validation split. It lies half-way to the next probability below, so that
    rounding does not decide; where several are as good, the highest is taken.
    """
    found = np.full(labels.shape[1], 0.5)
    for c in range(labels.shape[1]):
        truth = labels[:, c].astype(bool)
        if not truth.any():
            continue
        precision, recall, thresholds = precision_recall(truth, probabilities[:, c])
        best = int(np.argmax(_divide(2 * precision * recall, precision + recall)))
        below = thresholds[best + 1] if best + 1 < len(thresholds) else 0.0
        found[c] = (thresholds[best] + below) / 2
    return found


def confusion(
    labels: Labels, probabilities: Probabilities, thresholds: Thresholds = 0.5
) -> dict[str, list[list[int]]]:
    """How classes occur together and are taken for each other, (class, class) counts of patches.

    Returns:
        "together": have both classes; "predicted_together": are predicted to have both; "confused":
        have the first class, which is not predicted, and are wrongly predicted to have the second.
    """
    truth, predicted = labels.astype(bool), probabilities >= thresholds
    missed, invented = truth & ~predicted, predicted & ~truth

    def count(a: Labels, b: Labels) -> list[list[int]]:
        # In float64, whose product is a fast one, and exact below 2 ** 53.
        counts: list[list[int]] = (a.T.astype(float) @ b.astype(float)).astype(int).tolist()
        return counts

    return {
        "together": count(truth, truth),
        "predicted_together": count(predicted, predicted),
        "confused": count(missed, invented),
    }


# --- for the report ------------------------------------------------------------------------------


def sample_curves(labels: Labels, probabilities: Probabilities, points: int = 50) -> dict[str, Any]:
    """Precision-recall curves at the points where recall reaches 1 / points, 2 / points, ...

    Returns:
        {"micro": curve, "classes": [curve, None for a class that no patch has]}; a curve is
        {"precision": [..], "recall": [..]}.
    """

    def sample(truth: Labels, values: Probabilities) -> dict[str, list[float]] | None:
        if not truth.any():
            return None
        precision, recall, _ = precision_recall(truth.astype(bool), values)
        at = np.searchsorted(recall, np.linspace(1 / points, 1, points) - 1e-9)
        at = np.unique(np.minimum(at, len(recall) - 1))
        curve = {"precision": precision[at], "recall": recall[at]}
        return {name: values.round(4).tolist() for name, values in curve.items()}

    columns = zip(labels.T, probabilities.T, strict=True)
    return {
        "micro": sample(labels.ravel(), probabilities.ravel()),
        "classes": [sample(truth, values) for truth, values in columns],
    }


def pick_examples(
    labels: Labels, probabilities: Probabilities, thresholds: Thresholds = 0.5, count: int = 6
) -> dict[str, list[dict[str, Any]]]:
    """Patches to look at: right and wrong ones, evenly spaced, and the most confident wrong ones.

    Confident is who is far from the threshold. A patch is right where all its labels are.

    Returns:
        {"right" | "wrong" | "most confident wrong": [{"position": in the split, "labels": [class
        numbers], "missed": {class number: probability}, "invented": likewise}]}.
    """
    truth, predicted = labels.astype(bool), probabilities >= thresholds
    wrong = truth != predicted
    distance = np.where(wrong, np.abs(probabilities - thresholds), -1.0).max(axis=1)
    rows, right = np.flatnonzero(wrong.any(axis=1)), np.flatnonzero(~wrong.any(axis=1))
    confident = rows[np.argsort(-distance[rows], kind="stable")][:count]

    def spaced(found: NDArray[Any]) -> NDArray[Any]:
        chosen = np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int)
        return np.asarray(found[chosen])

    def tell(row: int) -> dict[str, Any]:
        missed = np.flatnonzero(truth[row] & ~predicted[row])
        invented = np.flatnonzero(predicted[row] & ~truth[row])
        of = {int(c): round(float(probabilities[row, c]), 4) for c in (*missed, *invented)}
        return {
            "position": row,
            "labels": np.flatnonzero(truth[row]).tolist(),
            "missed": {str(c): of[c] for c in missed.tolist()},
            "invented": {str(c): of[c] for c in invented.tolist()},
        }

    kinds = {"right": spaced(right), "wrong": spaced(rows), "most confident wrong": confident}
    return {kind: [tell(row) for row in found.tolist()] for kind, found in kinds.items()}
