"""names.py: a list of texts in one piece of memory."""

from __future__ import annotations

import pickle
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.names import Names

TEXTS = st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=5))


@given(TEXTS)
def test_it_is_the_list_that_went_in(texts: list[str]) -> None:
    names = Names(texts)
    assert list(names) == texts
    assert len(names) == len(texts)
    assert [names[i] for i in range(-len(texts), len(texts))] == texts * 2
    assert names[1:3] == texts[1:3]
    assert names == Names.from_text(names.to_text())
    assert list(pickle.loads(pickle.dumps(names))) == texts


@given(TEXTS, TEXTS)
def test_it_equals_the_same_list_only(one: list[str], other: list[str]) -> None:
    assert (Names(one) == Names(other)) == (one == other)
    assert Names(one) != one


@given(TEXTS, TEXTS)
def test_it_grows(first: list[str], more: list[str]) -> None:
    names = Names.from_text(Names(first).to_text())
    for text in more:
        names.append(text)
    assert list(names) == first + more


def test_outside_is_an_error() -> None:
    for index in (2, -3):
        with pytest.raises(IndexError):
            Names("ab")[index]
    with pytest.raises(ValueError, match=r"end with NUL, this with 'b'"):
        Names.from_text("b")
    with pytest.raises(ValueError, match="surrogates not allowed"):
        Names.from_text("\ud800\0")


def test_a_name_costs_its_bytes_and_nine() -> None:
    names = Names(f"patch_{number:06d}" for number in range(10_000))
    held = sys.getsizeof(names._data) + sys.getsizeof(names._ends)
    assert held < 1.15 * 10_000 * (12 + 1 + 8)
