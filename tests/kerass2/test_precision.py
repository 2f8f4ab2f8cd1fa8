"""run.precision: what "auto" comes to, and that all ranks come to the same."""

from __future__ import annotations

import numpy as np
import pytest

from kerass2 import precision


class Ranks:
    """Stands for a rank; the sum over ranks is what rank 0 gives."""

    def __init__(self, is_chief: bool, chief_gives: float) -> None:
        self.is_chief, self.chief_gives = is_chief, chief_gives

    def sum(self, values: np.ndarray) -> np.ndarray:
        return values if self.is_chief else values + self.chief_gives


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_given_precision_is_kept(name):
    assert precision.resolve(name, Ranks(True, 0.0)) == name


@pytest.mark.parametrize(
    ("speed_up", "expected"), [(3.0, "bfloat16"), (1.1, "float32"), (0.3, "float32")]
)
def test_auto_follows_rank_0s_measurement(monkeypatch, speed_up, expected):
    monkeypatch.setattr(precision, "measure_speed_up", lambda: speed_up)
    assert precision.resolve("auto", Ranks(True, 0.0)) == expected
    monkeypatch.setattr(precision, "measure_speed_up", lambda: pytest.fail("rank 1 measures"))
    assert precision.resolve("auto", Ranks(False, float(speed_up > 1.2))) == expected


def test_the_measurement_is_a_ratio():
    assert 0.01 < precision.measure_speed_up(repeats=1) < 100
