"""Both strategies, on 2 and 3 real ranks, against one process that never imports them.

Two ranks train all cases here, three some of them; the others of three have the mark `cluster`.

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
# Each rank has less than a core: more threads would only wait for each other, and small models for
# Horovod's cycles [ms].
THREADS = {"TF_NUM_INTRAOP_THREADS": "1", "HOROVOD_CYCLE_TIME": "1"}
ENVIRONMENT = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", **THREADS}
TOLERANCE = 1e-5
STRATEGIES = tuple(name for name in strategies.STRATEGIES if name != "single")

# Ranks -> what their job trains in `make test`.
PART = {2: "all", 3: "few"}

Weights = dict[str, list[np.ndarray]]


def run_ranks(
    out: pathlib.Path, strategy: str, workers: int, part: str
) -> subprocess.CompletedProcess[str]:
    """Run train_rank.py as the ranks of one job, by the real launcher."""
    if strategy == "horovod":
        pytest.importorskip("horovod", reason="Horovod is not built here")
    launcher = ["-m", "strategies.launch", "--strategy", strategy, "--workers", str(workers), "--"]
    command = [sys.executable, str(HERE / "train_rank.py"), strategy, part, str(out)]
    return subprocess.run(
        [sys.executable, *launcher, *command],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=500,
    )


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
def reference(tmp_path_factory) -> Callable[[str], Weights]:
    """Part of the cases -> what one process gives, for the jobs that train it."""

    @functools.cache
    def run(*jobs: str) -> Weights:
        path = tmp_path_factory.mktemp("reference") / "weights.npz"
        script = [sys.executable, str(HERE / "train_reference.py"), str(path), *jobs]
        subprocess.run(script, check=True, env=ENVIRONMENT, timeout=500)
        return load(path)

    return lambda part: run("3", "rest") if part == "rest" else run("2", "all", "3", "few")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory) -> Callable[[str, int, str], pathlib.Path]:
    """(strategy, number of ranks, part) -> what the ranks of that job left; each job runs once."""

    @functools.cache  # of what has failed, too
    def run(
        strategy: str, workers: int, part: str
    ) -> tuple[pathlib.Path, subprocess.CompletedProcess[str]]:
        out = tmp_path_factory.mktemp("ranks")
        return out, run_ranks(out, strategy, workers, part)

    def folder(strategy: str, workers: int, part: str) -> pathlib.Path:
        out, result = run(strategy, workers, part)
        assert result.returncode == 0, result.stderr[-3000:]
        return out

    return folder


@pytest.fixture(scope="module")
def trained(jobs) -> Callable[[str, int, str], list[Weights]]:
    """The same -> weights by rank."""

    @functools.cache
    def read(strategy: str, workers: int, part: str) -> list[Weights]:
        out = jobs(strategy, workers, part)
        return [load(out / f"rank{rank}.npz") for rank in range(workers)]

    return read


def name_of(case: cases.Case) -> str:
    return "/".join(map(str, case))


CASES = [
    pytest.param(
        *(strategy, workers, part, case),
        id="-".join(map(str, (strategy, workers, *case))),
        marks=pytest.mark.cluster if part == "rest" else (),
    )
    for strategy in STRATEGIES
    for workers, part in ((2, "all"), (3, "few"), (3, "rest"))
    for case in cases.PARTS[part]
]


@pytest.mark.parametrize(("strategy", "workers", "part", "case"), CASES)
def test_ranks_equal_one_process(trained, reference, strategy, workers, part, case):
    """And each other, in every bit."""
    expected = reference(part)[f"{cases.num_slices(case, workers)}/{name_of(case)}"]
    first, *others = (weights[name_of(case)] for weights in trained(strategy, workers, part))
    relative, largest = distance(first, expected)
    assert relative <= TOLERANCE, (relative, largest)
    assert largest <= TOLERANCE, (relative, largest)
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_reference_moves_and_clips(reference):
    """The cases differ, so agreement means something."""
    found = reference("all")
    for model in cases.MODELS:
        clipped, free = (
            found[f"{cases.num_slices(case, 2)}/{name_of(case)}"]
            for case in ((model, "sgd", 0.05), (model, "sgd", None))
        )
        assert distance(clipped, free)[0] > 100 * TOLERANCE
    # The reference of synchronised statistics is the same network on the whole batch.
    local, whole = found["2/batch_norm/adam/None"], found["1/batch_norm_synchronised/adam/None"]
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
        with np.load(jobs(strategy, workers, PART[workers]) / f"compressed{rank}.npz") as file:
            sums.append(file[compression])
    expected = cases.NUMBERS * sum(range(1, workers + 1))
    error = np.abs(sums[0] / expected - 1)
    assert error.max() <= workers * 2.0**-bits
    assert compression == "none" or error.max() > 2.0**-20, "it travelled uncompressed"
    for other in sums[1:]:
        np.testing.assert_array_equal(other, sums[0])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_broken_sum_is_noticed(jobs, reference, strategy):
    broken = load(jobs(strategy, 2, "all") / "broken0.npz")
    for name in ("/".join(map(str, case)) for case in cases.BROKEN):
        relative, largest = distance(broken[name], reference("all")[f"1/{name}"])
        assert relative > 10 * TOLERANCE, (name, relative, largest)
        assert largest > 10 * TOLERANCE, (name, relative, largest)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_float16_overflow_on_one_rank_is_skipped_by_all(jobs, strategy):
    for rank in range(2):
        with np.load(jobs(strategy, 2, "all") / f"overflow{rank}.npz") as found:
            # Steps 0 and 2 are sound, step 1 overflows on rank 1 alone.
            scales, moved = found["scales"], found["moved"]
        np.testing.assert_array_equal(scales, [2.0**15, 2.0**14, 2.0**14])
        np.testing.assert_array_equal(moved, [True, False, True])
