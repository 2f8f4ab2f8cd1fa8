"""A rank's GPU: which, and what of its memory; and NCCL between ranks.

What follows from TensorFlow's list of GPUs is tested anywhere, with a list that is made up; what
needs GPUs is marked so, and was not run yet.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

from strategies import gpus

DISTRIBUTED = (pytest.param("horovod", marks=pytest.mark.horovod), "multiworker")


@pytest.mark.parametrize(("local_rank", "expected"), [(0, "a"), (1, "b"), (2, "a")])
def test_a_rank_takes_one_gpu_and_memory_as_it_needs_it(monkeypatch, local_rank, expected):
    import tensorflow as tf

    said = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a", "b"])
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *given: said.append(given))
    grow = tf.config.experimental
    monkeypatch.setattr(grow, "set_memory_growth", lambda *given: said.append(given))
    assert gpus.pin(local_rank)
    assert said == [(expected, "GPU"), (expected, True)]


def test_without_gpus_nothing_is_set(monkeypatch):
    import tensorflow as tf

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *given: pytest.fail(str(given)))
    assert not gpus.pin(0)


RANK = """
    import json, sys
    import tensorflow as tf
    import strategies

    strategy = strategies.get(sys.argv[1])
    own = tf.fill((2**20,), float(strategy.rank + 1))
    step = tf.function(lambda x: strategy.run(lambda v: strategy.sum_gradients([v])[0], x))
    total = step(own)
    found = {
        "rank": strategy.rank,
        "gpu": [int(gpu.name.rpartition(":")[2]) for gpu in tf.config.get_visible_devices("GPU")],
        "device": total.device.rpartition("/")[2],
        "sums": sorted(set(total.numpy().tolist())),
    }
    sys.stderr.write("found " + json.dumps(found) + "\\n")
    strategies.leave(strategy)
"""


def run_ranks(strategy: str, folder: pathlib.Path, num_ranks: int, **environ: str) -> list[str]:
    """What RANK says on each of so many ranks, and what NCCL does."""
    script = folder / "rank.py"
    script.write_text(textwrap.dedent(RANK))
    launch = ["-m", "strategies.launch", "--strategy", strategy, "--workers", str(num_ranks), "--"]
    done = subprocess.run(
        [sys.executable, *launch, sys.executable, str(script), strategy],
        capture_output=True,
        text=True,
        env=os.environ | environ,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return (done.stdout + done.stderr).splitlines()


@pytest.mark.gpu
@pytest.mark.parametrize("strategy", DISTRIBUTED)
def test_ranks_have_a_gpu_each_and_sum_by_nccl(strategy, num_gpus, tmp_path):
    import json

    if num_gpus < 2:
        pytest.skip(f"NCCL needs a GPU a rank; {num_gpus} here")
    if strategy == "horovod":
        hvd = pytest.importorskip("horovod.tensorflow", reason="Horovod is not built here")
        if not hvd.nccl_built():
            pytest.skip("Horovod is built without NCCL here")
    lines = run_ranks(strategy, tmp_path, 2, NCCL_DEBUG="INFO")
    said = [json.loads(line.partition("found ")[2]) for line in lines if "found {" in line]
    assert sorted((each["rank"], each["gpu"]) for each in said) == [(0, [0]), (1, [1])]
    assert all(each["device"] == "device:GPU:0" and each["sums"] == [3.0] for each in said)
    assert any("NCCL INFO" in line and "nranks 2" in line for line in lines), "NCCL is silent"


@pytest.mark.gpu
def test_ranks_share_a_gpu(num_gpus, tmp_path):
    """More ranks than GPUs: a rank that took all memory would leave none to the next."""
    lines = run_ranks("multiworker", tmp_path, num_gpus + 1, KERASS2_COLLECTIVES="RING")
    assert len([line for line in lines if "found {" in line]) == num_gpus + 1
