"""spec.py: what a data set may say of itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.spec import DataError, DatasetSpec, TensorSpec, json_text

BAND = st.text(st.characters(codec="utf-8"), min_size=1, max_size=5)


@st.composite
def tensor_specs(draw: st.DrawFn) -> TensorSpec:
    bands = tuple(draw(st.lists(BAND, min_size=1, max_size=5)))
    shape = (*draw(st.lists(st.integers(1, 200), max_size=2)), len(bands))
    gsd, scale = draw(st.floats(0.1, 100)), draw(st.floats(1e-9, 1))
    dtype = draw(st.sampled_from(["uint8", "uint16", "int16", "float32", "bool"]))
    return TensorSpec(shape, bands, gsd, dtype, scale, draw(st.sampled_from(["1", "K"])))


GROUPS = st.dictionaries(st.sampled_from(["gsd10", "gsd20", "gsd60"]), tensor_specs())


@given(st.text(), GROUPS, GROUPS)
def test_a_spec_comes_back_from_json(task: str, inputs: dict, targets: dict) -> None:
    spec = DatasetSpec(task, inputs, targets)
    assert DatasetSpec.from_json(json.loads(json_text(spec.to_json()))) == spec


@given(tensor_specs())
def test_num_bytes_is_that_of_the_array(spec: TensorSpec) -> None:
    assert spec.num_bytes == np.zeros(spec.shape, spec.dtype).nbytes


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"shape": ()}, "shape"),
        ({"shape": (0, 4, 2)}, "at least 1"),
        ({"shape": (4, 4, 3)}, "2 band names"),
        ({"scale": 0.0}, "scale 0.0"),
        ({"scale": float("nan")}, "scale nan"),
        ({"gsd": -10.0}, "gsd -10"),
    ],
)
def test_a_contradiction_is_refused(values: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        TensorSpec(**{"shape": (4, 4, 2), "bands": ("B02", "B03"), "gsd": 10.0, **values})


def test_describe_names_task_bands_and_shapes() -> None:
    spec = DatasetSpec(
        "superres_20m",
        {"gsd10": TensorSpec((32, 32, 2), ("B02", "B03"), 20.0)},
        {"superres_20m": TensorSpec((32, 32, 1), ("B05",), 20.0)},
    )
    assert spec.describe() == (
        "superres_20m: input gsd10 32x32x2 B02,B03 at 20 m; target superres_20m 32x32x1 B05 at 20 m"
    )
