"""manifest.py: its text in pieces is that of the whole. What it says is tested in test_store.py."""

from __future__ import annotations

import json
import pathlib
import re
import tracemalloc

import google_crc32c
from hypothesis import given
from hypothesis import strategies as st
from store_cases import SPEC

from data_pipelines import manifest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(JSON)
def test_pieces_are_the_whole(value: object) -> None:
    values = {"of": value, "shape": [3, 4]}
    whole = json.dumps(values, indent=2)
    lines = re.sub(r"\[\n[\d,\s]+\]", lambda found: " ".join(found[0].split()), whole)
    assert "".join(manifest._encode(values)) == lines
    assert json.loads(lines) == values
    plain = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    assert manifest.checksum(values) == f"{google_crc32c.value(plain):08x}"


def test_memory_is_that_of_the_numbers(tmp_path: pathlib.Path) -> None:
    """Of 24 hexadecimal digits a record, and not once more for the text around them."""
    count = 100_000
    file = manifest.File("train.tfrecord", 10**9, 0)
    shard = manifest.Shard((file,), range(count), range(count))
    found = manifest.Manifest("tfrecord", SPEC, {"train": (shard,) * 5}, {})
    tracemalloc.start()
    manifest.write(tmp_path, found)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    digits = 5 * 24 * count
    assert (tmp_path / "manifest.json").stat().st_size > digits
    assert most < 2 * digits
    assert manifest.read(tmp_path, ["tfrecord"]) == found
