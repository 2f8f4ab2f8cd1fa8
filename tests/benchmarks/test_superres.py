"""`python -m benchmarks superres` runs on a tiny model and writes all; no time is judged."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import click.testing
import numpy as np
import pytest

from benchmarks import options, superres, superres_attention, superres_plain, superres_rank

TINY = {
    **{"small": 240, "filters": 8, "blocks": 1},
    **{"batch": 2, "patch": 16, "rounds": 2},
}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is a process of its own otherwise, in this one: TensorFlow is imported once."""

    modules = {"superres_rank": superres_rank, "superres_attention": superres_attention}

    def run(self: Any, kind: str, case: dict[str, Any], module: str = "superres_rank") -> Any:
        found = getattr(modules[module], kind)(json.loads(json.dumps(case)))
        return json.loads(json.dumps(found))

    monkeypatch.setattr(superres._Bench, "_run", run)
    monkeypatch.setattr(superres_rank, "MATRICES", (64,))
    monkeypatch.setattr(superres_plain, "WINDOW", 64)  # attention over 128 px takes a GB


def call(path: pathlib.Path, *arguments: str) -> tuple[list[dict[str, Any]], str]:
    tiny = [f"--{key}={value}" for key, value in TINY.items()]
    result = click.testing.CliRunner().invoke(
        superres.main, [*tiny, *arguments, "-o", str(path)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in path.read_text().splitlines()], result.output


def test_tiles_and_their_growth(here: None, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "superres.jsonl"
    sizes = ("--size", "72", "--size", "144")
    lines, text = call(path, "--part", "tile", "--model", "s2x", "--precision", "bfloat16", *sizes)
    assert [(line["what"], line.get("size")) for line in lines] == [
        ("tile", 72),
        ("tile", 144),
        ("growth", None),
    ]
    small, large, growth = lines
    for line in (small, large):
        assert line["share"] == pytest.approx(
            line["flop"] / line["seconds"] / line["matrix_product_flop_s"]
        )
        assert line["windows_s"] + line["output_s"] <= line["seconds"]
        assert 0 < line["overlap"] < 1
        assert line["resident_gib"] > 0.2
    assert growth["seconds_a_pixel"] == pytest.approx(large["seconds"] / small["seconds"] / 4)
    assert "growth 72 to 144 px, s2x, bfloat16" in text


def test_against_the_plain_way(here: None, tmp_path: pathlib.Path) -> None:
    """With an exact border both give the same pixels: what is compared does the same."""
    from data_pipelines import sentinel2, synthetic

    scene, path = tmp_path / "scene.npz", tmp_path / "superres.jsonl"
    pixels = synthetic.build_cubes(240, seed=1)
    names = {gsd: np.array(sentinel2.bands_at(gsd)) for gsd in (10, 20, 60)}
    arrays = {f"im{gsd}": pixels[f"gsd{gsd}"] for gsd in names}
    np.savez(scene, **arrays, **{f"bands{gsd}": bands for gsd, bands in names.items()})
    parts = ["--part", "plain", "--part", "attention", "--scene", str(scene)]
    narrow, exact, error, attention = call(path, *parts, "--precision", "float32")[0]
    assert (narrow["border"], exact["border"]) == (8, 16)
    assert exact["largest"] <= 1
    assert (attention["model"], attention["border"]) == ("s2x", 8)
    for line in (narrow, exact, attention):
        assert line["ratio"] == pytest.approx(line["plain"]["seconds"] / line["ours"]["seconds"])
    found = error["rmse_dn"]
    assert set(found) == set(options.PRECISIONS)
    assert error["ratio"] == pytest.approx(found["bfloat16"] / found["float32"])
    assert 0.9 < error["ratio"] < 1.1


def test_training(here: None, tmp_path: pathlib.Path) -> None:
    lines, text = call(tmp_path / "superres.jsonl", "--part", "training", "--precision", "float32")
    (line,) = lines
    assert line["ratio"]["repeats"] == 2
    assert line["share"]["loop"]["median"] > 0
    assert "training over fit, float32" in text


def test_memory(here: None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four patches of 48 px have maps of 85 MB, several of which the direct form holds (300 MB)."""
    monkeypatch.setattr(superres, "LARGE_BATCH", 4)
    arguments = ("--part", "memory", "--precision", "float32", "--large", "48")
    lines, text = call(tmp_path / "superres.jsonl", *arguments)
    extra, *ratios, whole, parts = lines
    assert 20 < extra["extra_mib"] < 250
    assert [line["patch"] for line in ratios] == [16, 48]
    assert all(line["ratio"]["median"] > 0 for line in ratios)
    assert (whole["parts"], parts["parts"]) == (1, 4)
    assert 0.2 < whole["resident_gib"] <= parts["resident_gib"]  # of one process here
    assert "S6x, 4 of 48 px, bfloat16, in 4 parts" in text


def test_softmax(here: None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its softmax leaves: the less, the longer it takes beside a block's arithmetic."""
    monkeypatch.setattr(superres_attention, "BLOCKS", 2)
    lines, text = call(tmp_path / "superres.jsonl", "--part", "softmax", "--precision", "bfloat16")
    (line,) = lines
    assert line["softmax_s"]["median"] > 0
    # Of S2x's one block and 8 filters, by hand: convolutions, and attention with 16 key filters
    # over two lattices; one of them has a map a block.
    convolutions = 2 * 9 * (10 * 8 + 2 * 8 * 8 + 8 * 6)
    attention = 2 * (2 * 8 * (2 * 16 + 8) + 2 * (16 + 8) * 32**2)
    flop = 32**2 * (convolutions + attention) / 2
    spent = line["softmax_s"]["median"] * line["matrix_product_flop_s"] / flop
    assert line["share"]["median"] == pytest.approx(1 / (1 + spent))
    assert "S2x, bfloat16: attention" in text


def test_the_plain_network_is_s2x() -> None:
    """The same parameters but for gamma, one for each filter there."""
    from kerass2 import models

    plain = superres_plain.build_s2x(8, 2, "float32", 32)
    ours = models.build("s2x", filters=8, blocks=2)
    assert plain.count_params() == ours.count_params() + 8 - 1
