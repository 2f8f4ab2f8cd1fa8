"""The regression watch: what falls below its band fails, twice, with both records; nothing else."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import click.testing
import pytest

from benchmarks import record, short

NAMES = list(short.LEAST)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[float]]]:
    """Ratio -> what its measurements find, one after the other; the last one stays."""
    found: dict[str, list[list[float]]] = {name: [[1.0, 1.0, 1.0]] for name in NAMES}

    def measure(names: tuple[str, ...]) -> short.Ratios:
        return {
            name: (found[name].pop(0) if len(found[name]) > 1 else found[name][0])
            for name in names
            if found[name][0]
        }

    groups = {names: (lambda names=names: measure(names)) for names in short.GROUPS}
    monkeypatch.setattr(short, "GROUPS", groups)
    return found


@pytest.fixture
def kept(measured: Any, tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "kept.jsonl"
    assert call(path, "--keep").exit_code == 0
    return path


def call(kept: pathlib.Path, *options: str) -> Any:
    return click.testing.CliRunner().invoke(short.main, ["--kept", str(kept), *options])


def test_what_is_as_kept_passes(kept: pathlib.Path) -> None:
    result = call(kept)
    assert result.exit_code == 0, result.output
    assert len(record.read(kept)[0]) == len(NAMES)
    assert all(f"{name}: 1.000, kept 1.000" in result.output for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_fall_below_the_band_fails_with_both_records(
    name: str, kept: pathlib.Path, measured: Any, tmp_path: pathlib.Path
) -> None:
    measured[name] = [[1 - short.LEAST[name] - 0.01] * 3]
    result = call(kept, "-o", str(tmp_path / "o.jsonl"))
    assert result.exit_code == 1
    assert f"below the kept ratio, twice: {name} (" in result.output
    shown = [line.partition(" ")[2] for line in result.output.splitlines() if "{" in line]
    before, after = (json.loads(text) for text in shown)
    assert (before["ratio_of"], before["ratio"]["median"]) == (name, 1.0)
    assert after["ratio"]["median"] < 1 - short.LEAST[name]
    assert len(record.read(tmp_path / "o.jsonl")[0]) > len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_within_the_band_above_it_or_once_below_it_passes(
    name: str, kept: pathlib.Path, measured: Any
) -> None:
    least = 1 - short.LEAST[name]
    for values in ([[least + 0.01] * 3], [[3.0] * 3], [[0.1] * 3, [1.0] * 3]):
        measured[name] = values
        result = call(kept)
        assert result.exit_code == 0, result.output
    assert "BELOW" in result.output


def test_a_wide_record_has_a_wide_band() -> None:
    name = "loop over bare"
    narrow = record.figure([2.0, 2.0, 2.0], "1")
    assert short.band(name, narrow) == pytest.approx((2 * 0.85, 2 * 1.15))
    wide = record.figure([1.8, 2.0, 2.2], "1")  # quartiles 1.9 and 2.1: a tenth apart
    assert short.band(name, wide) == pytest.approx((2 * 0.7, 2 * 1.3))


def test_another_processor_is_not_compared_where_it_counts(
    kept: pathlib.Path, measured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = {**record.where(), "cpu": "another"}
    monkeypatch.setattr(record, "where", lambda: where)
    measured[short.SAME_CPU[0]] = [[0.1] * 3]
    result = call(kept)
    assert result.exit_code == 0, result.output
    assert "another processor, not compared" in result.output
    measured[NAMES[0]] = [[0.1] * 3]
    assert call(kept).exit_code == 1


def test_what_cannot_be_measured_fails(kept: pathlib.Path, measured: Any) -> None:
    measured[NAMES[0]] = [[]]
    result = call(kept)
    assert result.exit_code == 1
    assert f"{NAMES[0]}: not measured" in result.output


def test_missing_and_damaged_records_are_named(kept: pathlib.Path, measured: Any) -> None:
    result = call(kept.with_name("none.jsonl"))
    assert result.exit_code == 1
    assert f"keeps nothing of {NAMES[0]}" in result.output
    with kept.open("a") as file:
        file.write('{"version": 2')
    result = call(kept)
    assert result.exit_code == 1
    assert f"line {len(NAMES) + 1}: damaged" in result.output


def test_the_kept_record_has_every_ratio() -> None:
    found = short.read_kept(short.KEPT, NAMES)
    assert set(found) == set(NAMES)
