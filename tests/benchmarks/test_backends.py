"""`python -m benchmarks backends` on small models; no time is judged."""

from __future__ import annotations

import pytest

from benchmarks import backends, record
from kerass2 import backend


def check(lines: list[record.Line], names: list[str]) -> None:
    assert [line["backend"] for line in lines] == names
    for line in lines:
        assert (line["what"], line["batch"], line["patch"]) == ("backends", 4, 16)
        throughput, ratio = line["throughput"], line["ratio"]
        assert throughput["unit"] == "patches/s" and ratio["unit"] == "1"
        assert throughput["repeats"] == ratio["repeats"] == 2
        assert throughput["median"] > 0 and line["first_s"] > 0
    assert lines[0]["ratio"]["quartiles"] == [1.0, 1.0]


def measure(run_benchmark, tmp_path, *options: object) -> tuple[list[record.Line], str]:
    path = tmp_path / "backends.jsonl"
    short = ("--short", "--patch", 16, "--experiment", "superres_20m_compact", "-o", path)
    result = run_benchmark("backends", *short, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines, problems = record.read(path)
    assert problems == []
    return lines, result.stderr


def test_the_base_is_always_measured(run_benchmark, tmp_path):
    lines, said = measure(run_benchmark, tmp_path, "--backend", "tensorflow-xla")
    check(lines, ["tensorflow", "tensorflow-xla"])
    assert said == ""


@pytest.mark.backends
def test_every_backend_is_measured(run_benchmark, tmp_path):
    lines, said = measure(run_benchmark, tmp_path)
    check(lines, list(backend.STEPS))
    assert said == ""


def test_every_variant_names_a_backend_that_steps_have():
    assert {name for name, _ in backends.VARIANTS.values()} == set(backend.STEPS)
