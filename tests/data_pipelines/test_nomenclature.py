"""nomenclature.py: 43 and 19 classes, their order, and labels that are none of them."""

from __future__ import annotations

import csv
import json
import pathlib

import numpy as np
import pytest

from data_pipelines import nomenclature
from data_pipelines.nomenclature import CLASSES_19, CLASSES_43, NEWER
from data_pipelines.spec import DataError


@pytest.mark.shared_data
def test_classes_and_their_order_are_the_published_ones(shared_data: pathlib.Path) -> None:
    with (shared_data / "published" / "bigearthnet_classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class_43"] for row in rows] == list(CLASSES_43)
    assert [row["index_43"] for row in rows] == [str(i) for i in range(43)]
    assert [row["class_19"] or None for row in rows] == [NEWER[row["class_43"]] for row in rows]
    for row in rows:
        if row["class_19"]:
            assert CLASSES_19[int(row["index_19"])] == row["class_19"]


@pytest.mark.shared_data
def test_43_become_19_as_in_real_labels(shared_data: pathlib.Path) -> None:
    labels = json.loads((shared_data / "bigearthnet" / "v1_configilm_labels.json").read_text())
    assert len(labels) == 30
    for name, both in labels.items():
        row = nomenclature.encode(both["labels43"], 19, name)
        np.testing.assert_array_equal(row, nomenclature.encode(both["labels19"], 19, name))
        assert {CLASSES_19[i] for i in row.nonzero()[0]} == set(both["labels19"])
        row = nomenclature.encode(both["labels43"], 43, name)
        assert {CLASSES_43[i] for i in row.nonzero()[0]} == set(both["labels43"])


def test_order_is_not_that_of_the_names() -> None:
    """Two programs that sort, and one that does not, agree on no class but by chance."""
    assert list(CLASSES_43) != sorted(CLASSES_43)
    assert list(CLASSES_19) != sorted(CLASSES_19)
    assert (len(set(CLASSES_43)), len(set(CLASSES_19))) == (43, 19)
    row = nomenclature.encode(["Sea and ocean", "Continuous urban fabric"], 43, "x")
    assert (row.dtype, row.nonzero()[0].tolist()) == (np.uint8, [0, 42])


def test_a_class_that_19_do_not_have_is_no_error() -> None:
    assert not nomenclature.encode(["Airports", "Bare rock"], 19, "x").any()
    row = nomenclature.encode(["Airports", "Estuaries", "Sea and ocean"], 19, "x")
    assert row.nonzero()[0].tolist() == [CLASSES_19.index("Marine waters")]


@pytest.mark.parametrize(
    ("labels", "num_classes", "words"),
    [
        ([], 43, "a.json: no labels; expected at least one of 43"),
        (["Pasture"], 43, "a.json: unknown label 'Pasture'; expected .*such as 'Pastures'"),
        (["Pastures", "Marine waters"], 43, "'Marine waters' is of the nomenclature of 19"),
        (["pastures"], 19, "unknown label 'pastures'"),
        (["Pastures"], 20, "20 classes: .* of 43 and of 19"),
    ],
)
def test_labels_that_are_none(labels: list[str], num_classes: int, words: str) -> None:
    with pytest.raises(DataError, match=words):
        nomenclature.encode(labels, num_classes, "a.json")


def test_names_are_checked_at_once() -> None:
    nomenclature.check_names({"Pastures", "Airports"}, 19, "x")
    with pytest.raises(DataError, match="'Arable land' is of the nomenclature of 19"):
        nomenclature.check_names({"Pastures", "Arable land"}, 43, "x")
