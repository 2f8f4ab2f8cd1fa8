"""What only a GPU shows: float16 that trains, attention that fits. Not run on one yet."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.gpu

STEPS = 60
# A step of S2x's gradient on one patch of 192 px, whose attention map alone is 5.4 GB in float32.
MAP_BYTES = 4 * 192**4
MEMORY = """
import tensorflow as tf
from kerass2 import models

model = models.build("s2x", filters=128, blocks=6, block=0)
batch = {"gsd10": tf.random.normal((1, 192, 192, 4)), "gsd20": tf.random.normal((1, 96, 96, 6))}

@tf.function
def step(batch):
    with tf.GradientTape() as tape:
        loss = tf.add_n([tf.reduce_sum(v) for v in model(batch, training=True).values()])
    return tape.gradient(loss, [weight.value for weight in model.trainable_variables])

step(batch)
print("peak", tf.config.experimental.get_memory_info("GPU:0")["peak"])
"""


def test_float16_trains_as_float32_does(num_gpus, prepared, run_command, tmp_path):
    """The same steps of the same batches; the loss scale begins too high and comes down first."""
    last = {}
    for precision in ("float32", "float16"):
        settings = [f"run.precision={precision}", "run.log_every=1", "run.global_batch=8"]
        options = [word for text in settings for word in ("--set", text)]
        where = ["--data", prepared, "--workdir", tmp_path / precision]
        result = run_command("fit", *where, "--steps", STEPS, *options)
        assert result.returncode == 0, result.stderr
        lines = map(json.loads, (tmp_path / precision / "log.jsonl").read_text().splitlines())
        losses = [line["loss"] for line in lines if "loss" in line]
        assert len(losses) == STEPS
        last[precision] = np.mean(losses[-10:])
        assert last[precision] < 0.7 * np.mean(losses[:5])
    np.testing.assert_allclose(last["float16"], last["float32"], rtol=0.1)


def test_attention_needs_no_whole_map(num_gpus):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout.rpartition("peak ")[2]) < 0.5 * MAP_BYTES
