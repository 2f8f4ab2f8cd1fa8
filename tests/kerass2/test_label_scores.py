"""Scores of labels against scikit-learn's."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import sklearn.metrics

from kerass2 import label_scores, label_tables


def make(patches: int = 400, classes: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Imbalanced labels, probabilities that know of them, many ties, an empty class and patch."""
    rng = np.random.default_rng(seed)
    labels = rng.random((patches, classes)) < np.linspace(0.02, 0.6, classes)
    probabilities = np.clip(0.5 * labels + rng.normal(0.3, 0.25, labels.shape), 0, 1).round(2)
    labels[:, 3] = False
    labels[5] = False
    probabilities[:, 2] = 0.1  # never predicted
    return labels, probabilities


@pytest.fixture(params=[0.5, "each"], ids=str)
def case(request):
    labels, probabilities = make()
    thresholds = np.linspace(0.3, 0.7, 7) if request.param == "each" else request.param
    return labels, probabilities, thresholds, label_scores.score(labels, probabilities, thresholds)


@pytest.mark.parametrize("average", label_scores.AVERAGES)
def test_averages_are_scikit_learns(case, average):
    labels, probabilities, thresholds, found = case
    *expected, _ = sklearn.metrics.precision_recall_fscore_support(
        labels, probabilities >= thresholds, average=average, zero_division=0
    )
    names = ("precision", "recall", "f1")
    assert [found[average][name] for name in names] == pytest.approx(expected, abs=1e-12)


def test_classes_are_scikit_learns(case):
    labels, probabilities, thresholds, found = case
    expected = sklearn.metrics.precision_recall_fscore_support(
        labels, probabilities >= thresholds, average=None, zero_division=0
    )
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose(found["classes"][name], values, atol=1e-12)
    np.testing.assert_array_equal(
        found["classes"]["predicted"], (probabilities >= thresholds).sum(axis=0)
    )


def test_average_precision_is_scikit_learns(case):
    labels, probabilities, _, found = case
    some = labels.any(axis=0)
    expected = sklearn.metrics.average_precision_score(
        labels[:, some], probabilities[:, some], average=None
    )
    np.testing.assert_allclose(
        np.array(found["classes"]["average_precision"])[some], expected, atol=1e-12
    )
    assert found["classes"]["average_precision"][3] == 0.0
    assert found["average_precision"]["macro"] == pytest.approx(expected.mean(), abs=1e-12)
    micro = sklearn.metrics.average_precision_score(labels, probabilities, average="micro")
    assert found["average_precision"]["micro"] == pytest.approx(micro, abs=1e-12)


def test_the_others_are_scikit_learns(case):
    labels, probabilities, thresholds, found = case
    predicted = probabilities >= thresholds
    hamming = sklearn.metrics.hamming_loss(labels, predicted)
    subset = sklearn.metrics.accuracy_score(labels, predicted)
    coverage = sklearn.metrics.coverage_error(labels, probabilities)
    assert found["hamming_loss"] == pytest.approx(hamming, abs=1e-12)
    assert found["subset_accuracy"] == pytest.approx(subset, abs=1e-12)
    assert found["coverage"] == pytest.approx(coverage, abs=1e-12)
    # scikit-learn has no one-error.
    some = [row for row in range(len(labels)) if labels[row].any()]
    wrong = [not labels[row, np.argmax(probabilities[row])] for row in some]
    assert found["one_error"] == pytest.approx(np.mean(wrong), abs=1e-12)


def test_nothing_predicted_and_nothing_there():
    labels, probabilities = np.zeros((3, 2), bool), np.zeros((3, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = label_scores.score(labels, probabilities)
    assert found["micro"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert found["average_precision"] == {"micro": 0.0, "macro": 0.0}
    assert (found["one_error"], found["coverage"], found["hamming_loss"]) == (0.0, 0.0, 0.0)


def test_tuned_thresholds_have_the_largest_f1_of_all():
    labels, probabilities = make(seed=4)
    found = label_scores.tune_thresholds(labels, probabilities)
    assert found[3] == 0.5

    def f1(thresholds):
        return sklearn.metrics.f1_score(
            labels, probabilities >= thresholds, average=None, zero_division=0
        )

    everywhere = np.stack([f1(threshold) for threshold in np.arange(0, 1.01, 0.005)])
    np.testing.assert_allclose(f1(found), everywhere.max(axis=0), atol=1e-12)


def test_confusion_counts_patches():
    labels, probabilities = make(40)
    found = label_scores.confusion(labels, probabilities)
    predicted = probabilities >= 0.5
    for i in range(7):
        for j in range(7):
            rows = range(40)
            both = sum(labels[r, i] and labels[r, j] for r in rows)
            assert found["together"][i][j] == both
            assert found["predicted_together"][i][j] == sum(
                predicted[r, i] and predicted[r, j] for r in rows
            )
            assert found["confused"][i][j] == sum(
                labels[r, i] and not predicted[r, i] and predicted[r, j] and not labels[r, j]
                for r in rows
            )


def test_sampled_curves_lie_on_scikit_learns():
    labels, probabilities = make()
    found = label_scores.sample_curves(labels, probabilities, points=20)
    assert found["classes"][3] is None
    for c in (0, 5, 6):
        precision, recall, _ = sklearn.metrics.precision_recall_curve(
            labels[:, c], probabilities[:, c]
        )
        there = set(zip(precision.round(4), recall.round(4), strict=True))
        curve = found["classes"][c]
        assert set(zip(curve["precision"], curve["recall"], strict=True)) <= there
        assert curve["recall"][-1] == 1.0
        assert len(curve["recall"]) <= 20


def test_examples_are_what_they_are_called():
    labels, probabilities = make(60)
    found = label_scores.pick_examples(labels, probabilities, count=5)
    predicted = probabilities >= 0.5
    for kind, examples in found.items():
        for example in examples:
            row = example["position"]
            assert example["labels"] == np.flatnonzero(labels[row]).tolist()
            assert (predicted[row] == labels[row]).all() == (kind == "right")
            for c in example["missed"]:
                assert labels[row, int(c)]
                assert example["missed"][c] == pytest.approx(probabilities[row, int(c)])
            assert all(predicted[row, int(c)] for c in example["invented"])
    wrong = np.abs(np.where(predicted != labels, probabilities - 0.5, 0)).max(axis=1)
    confident = [wrong[example["position"]] for example in found["most confident wrong"]]
    assert confident == sorted(wrong, reverse=True)[:5]
    assert len(found["right"]) == len(found["wrong"]) == 5


def test_the_table_of_what_is_taken_for_what():
    truth = np.array([[1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1]], bool)
    predicted = np.array([[0, 1, 0], [0, 1, 1], [1, 1, 0], [0, 0, 1]], np.float32)
    result = {
        "task": "bigearthnet",
        "split": "test",
        "classes": ["pine", "oak", "sea"],
        "confusion": {"model": label_scores.confusion(truth, predicted)},
    }
    table = label_tables.confused(result)
    assert table.rows == (("pine", "oak", 2, 3, 1), ("pine", "sea", 1, 3, 0))
    assert label_tables.confused(result, most=1).rows == table.rows[:1]
