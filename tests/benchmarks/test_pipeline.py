"""`python -m benchmarks pipeline` runs on little data and writes all; no time is judged."""

from __future__ import annotations

import json
import pathlib
import types

import click.testing
import pytest

from benchmarks import (
    pipeline,
    pipeline_data,
    pipeline_labels,
    pipeline_memory,
    pipeline_reading,
)
from data_pipelines import store

LITTLE = """--size 480 --tile 600 --batch 4 --rounds 1 --seconds 0.05 --count 20 --patches 100
    --set model.options.depth=10 --set model.options.width=4 --set run.precision=float32"""
FORMATS = ("tfrecord", "zarr")


@pytest.mark.parametrize(
    "formats", [FORMATS, pytest.param(tuple(store.FORMATS), marks=pytest.mark.slow)]
)
def test_the_command_writes_every_part(monkeypatch, tmp_path, formats):
    """The short form reads with two ranks alone, and looks at the memory of two formats."""
    whole = formats != FORMATS
    real, begun = pipeline_reading.sum_of_ranks, []

    def sum_of_ranks(request, ranks):
        begun.append(ranks)
        if whole or ranks == 2:
            return real(request, ranks)
        return {name: [1.0] * request["rounds"] for name in request["readers"]}

    monkeypatch.setattr(pipeline_reading, "sum_of_ranks", sum_of_ranks)
    chosen = {name: store.FORMATS[name] for name in formats}
    monkeypatch.setattr(pipeline_memory, "store", types.SimpleNamespace(FORMATS=chosen))
    path = tmp_path / "pipeline.jsonl"
    arguments = [*LITTLE.split(), "-o", str(path)]
    result = click.testing.CliRunner().invoke(pipeline.main, arguments)
    assert result.exit_code == 0, result.output
    assert begun == [1, 2, 1, 2, 2]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    by_part = {what: [line for line in lines if line["what"] == what] for what in
               dict.fromkeys(line["what"] for line in lines)}  # fmt: skip
    cutting, reading, sequential, labels, prepare, memory = by_part.values()
    assert cutting[0]["what"] == "cutting over the direct way"
    assert cutting[0]["difference_dn"] <= 1
    assert cutting[0]["patches"] > 100
    found = {(line["task"], line["ranks"], line["source"]) for line in reading}
    assert found == {
        (task, ranks, source)
        for task in ("patches", "superres_20m")
        for ranks in (1, 2)
        for source in pipeline_reading.READERS
        if (task, source) != ("superres_20m", "geotiff")
    }
    assert cutting[0]["ratio"]["warm_up"] == 1
    assert {line["throughput"]["warm_up"] for line in reading + labels} == {4}
    for line in reading:
        assert line["throughput"]["median"] > 0
        assert ("over memory map" in line) == (line["source"] != "memory map")
    assert {line["source"] for line in labels} == {
        f"{name}, {kind}" for name in pipeline_labels.FORMATS for kind in pipeline_labels.KINDS
    }
    for line in labels:
        expected = line["throughput"]["median"] / line["model"]["median"]
        assert line["over_model"]["median"] == pytest.approx(expected)
    assert prepare[0]["same"] is True
    assert set(prepare[0]["resident_gib"]) == {"1", "2"}
    assert {(line["format"], line["kind"]) for line in memory} == {
        (name, kind) for name in formats for kind in ("write", "read")
    }
    for line in cutting + sequential + prepare + memory:
        assert line["ratio"]["median"] > 0


@pytest.mark.parametrize("task", ["patches", "superres_20m"])
def test_all_sources_hold_the_same_patches(tmp_path, task):
    """What is compared has to be the same: the ceiling and people's files too."""
    case = pipeline_data.make(tmp_path, task, 480, pipeline_reading.READERS)
    expected = store.open_source(case["sources"]["tfrecord"], "train")
    order = [2, 0, 1]
    batch = expected.read(order)
    sources = {"memory map": pipeline_data.ArraySource(pathlib.Path(case["sources"]["memory map"]))}
    if task == "patches":
        folder = pathlib.Path(case["sources"]["geotiff"])
        sources["geotiff"] = pipeline_data.GeoTIFFSource(folder, expected.spec)
    for name, source in sources.items():
        assert len(source) == len(expected) == case["count"]
        found = source.read(order)
        for group in ("inputs", "targets"):
            assert set(found[group]) == set(batch[group]), name
            for key, values in batch[group].items():
                assert (found[group][key] == values).all(), name
