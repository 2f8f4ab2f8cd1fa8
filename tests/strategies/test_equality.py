"""Both strategies, on 2 and 3 real ranks, against one process that never imports them.

The norm is over all weights: a weight whose true gradient is zero (an attention bias: softmax is
shift-invariant) holds rounding noise, so elementwise relative differences mean nothing.

Clipping is proven by SGD. Adam divides by the gradient's own size, so that scaling a gradient
hardly moves its steps: its clipped cases show that clipping runs, not that the norm is the sum's.
"""

from __future__ import annotations

import functools
import os
import pathlib
import subprocess
import sys
import types
from collections.abc import Callable

import cases
import numpy as np
import pytest

import strategies
from strategies import base
from strategies.base import StrategyError

HERE = pathlib.Path(__file__).parent
ENVIRONMENT = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
TOLERANCE = 1e-5
STRATEGIES = tuple(name for name in strategies.STRATEGIES if name != "single")

Weights = dict[str, list[np.ndarray]]


def run_ranks(out: pathlib.Path, strategy: str, workers: int) -> None:
    """Run train_rank.py as the ranks of one job, by the real launcher."""
    if strategy == "horovod":
        pytest.importorskip("horovod", reason="Horovod is not built here")
    launcher = ["-m", "strategies.launch", "--strategy", strategy, "--workers", str(workers), "--"]
    command = [sys.executable, str(HERE / "train_rank.py"), strategy, str(out)]
    result = subprocess.run(
        [sys.executable, *launcher, *command],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr[-3000:]


def load(path: pathlib.Path) -> Weights:
    """Case -> weights in order."""
    weights: Weights = {}
    with np.load(path) as file:
        for name in sorted(file.files):
            weights.setdefault(name.rpartition("/")[0], []).append(file[name])
    return weights


def distance(a: list[np.ndarray], b: list[np.ndarray]) -> tuple[float, float]:
    """||a - b|| / ||b|| over all weights, and max |a - b|."""
    flat_a, flat_b = (np.concatenate([w.ravel() for w in x]).astype(np.float64) for x in (a, b))
    difference = flat_a - flat_b
    return float(np.linalg.norm(difference) / np.linalg.norm(flat_b)), float(
        np.abs(difference).max()
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Weights:
    path = tmp_path_factory.mktemp("reference") / "weights.npz"
    script = [sys.executable, str(HERE / "train_reference.py"), str(path)]
    subprocess.run(script, check=True, env=ENVIRONMENT, timeout=500)
    return load(path)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory) -> Callable[[str, int], pathlib.Path]:
    """(strategy, number of ranks) -> what the ranks of that job left; each job runs once."""

    @functools.cache
    def run(strategy: str, workers: int) -> pathlib.Path:
        out = tmp_path_factory.mktemp("ranks")
        run_ranks(out, strategy, workers)
        return out

    return run


@pytest.fixture(
    scope="module",
    params=[(s, n) for s in STRATEGIES for n in (2, 3)],
    ids=lambda p: f"{p[0]}-{p[1]}",
)
def trained(request, jobs) -> tuple[int, list[Weights]]:
    strategy, workers = request.param
    out = jobs(strategy, workers)
    return workers, [load(out / f"rank{rank}.npz") for rank in range(workers)]


@pytest.mark.parametrize("case", cases.CASES, ids=lambda c: "-".join(map(str, c)))
def test_ranks_equal_one_process(trained, reference, case):
    workers, ranks = trained
    name = "/".join(map(str, case))
    parts = workers if case[0] in cases.LOCAL else 1
    expected = reference[f"{parts}/{name}"]
    for weights in ranks:
        relative, largest = distance(weights[name], expected)
        assert relative <= TOLERANCE, (relative, largest)
        assert largest <= TOLERANCE, (relative, largest)


@pytest.mark.parametrize("case", cases.CASES, ids=lambda c: "-".join(map(str, c)))
def test_all_ranks_hold_the_same(trained, case):
    name = "/".join(map(str, case))
    first, *others = (weights[name] for weights in trained[1])
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_reference_moves_and_clips(reference):
    """The cases differ, so agreement means something."""
    for model in cases.MODELS:
        clipped, free = (reference[f"1/{model}/sgd/{clip}"] for clip in (0.05, None))
        assert distance(clipped, free)[0] > 100 * TOLERANCE
    local, whole = (reference[f"{parts}/batch_norm/adam/None"] for parts in (2, 1))
    assert distance(local, whole)[0] > 10 * TOLERANCE


@pytest.mark.parametrize(("compression", "bits"), [("none", 24), ("fp16", 11), ("bf16", 8)])
@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_compressed_sums_are_sums(jobs, strategy, workers, compression, bits):
    """Rounded to the type's digits, and the same on all ranks."""
    if (strategy, compression) in base.UNKNOWN_COMPRESSIONS:
        with pytest.raises(StrategyError, match=rf"run.compression={compression}: .*choose"):
            base.check_compression(types.SimpleNamespace(name=strategy), compression)
        return
    sums = []
    for rank in range(workers):
        with np.load(jobs(strategy, workers) / f"compressed{rank}.npz") as file:
            sums.append(file[compression])
    expected = cases.NUMBERS * sum(range(1, workers + 1))
    error = np.abs(sums[0] / expected - 1)
    assert error.max() <= workers * 2.0**-bits
    assert compression == "none" or error.max() > 2.0**-20, "it travelled uncompressed"
    for other in sums[1:]:
        np.testing.assert_array_equal(other, sums[0])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_broken_sum_is_noticed(jobs, reference, strategy):
    broken = load(jobs(strategy, 2) / "broken0.npz")
    for name in ("/".join(map(str, case)) for case in cases.BROKEN):
        relative, largest = distance(broken[name], reference[f"1/{name}"])
        assert relative > 10 * TOLERANCE, (name, relative, largest)
        assert largest > 10 * TOLERANCE, (name, relative, largest)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_float16_overflow_on_one_rank_is_skipped_by_all(jobs, strategy):
    for rank in range(2):
        with np.load(jobs(strategy, 2) / f"overflow{rank}.npz") as found:
            # Steps 0 and 2 are sound, step 1 overflows on rank 1 alone.
            scales, moved = found["scales"], found["moved"]
        np.testing.assert_array_equal(scales, [2.0**15, 2.0**14, 2.0**14])
        np.testing.assert_array_equal(moved, [True, False, True])
