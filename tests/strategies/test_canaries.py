"""Strict canaries: they say when Keras or Horovod repairs, or moves, what we work around."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest


def run_ranks(strategy: str, code: str) -> subprocess.CompletedProcess:
    launcher = ["-m", "strategies.launch", "--strategy", strategy, "--workers", "2", "--"]
    return subprocess.run(
        [sys.executable, *launcher, sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        timeout=200,
    )


@pytest.mark.xfail(
    strict=True, reason="keras-team/keras#20585: fit fails under MultiWorkerMirroredStrategy"
)
def test_keras_fit_under_multiworker():
    result = run_ranks(
        "multiworker",
        """
        import keras, numpy as np, tensorflow as tf
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        with strategy.scope():
            model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            model.compile("sgd", "mse")
        model.fit(np.ones((8, 2)), np.ones((8, 1)), batch_size=4, verbose=0)
        """,
    )
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.horovod
@pytest.mark.xfail(
    strict=True, reason="Keras 3 never calls the hooks of Horovod's optimizer: nothing is reduced"
)
def test_horovods_keras_optimizer_reduces(tmp_path):
    pytest.importorskip("horovod", reason="Horovod is not built here")
    result = run_ranks(
        "horovod",
        f"""
        import horovod.tensorflow.keras as hvd, keras, numpy as np
        hvd.init()
        dense = keras.layers.Dense(1, kernel_initializer="zeros")
        model = keras.Sequential([keras.Input((2,)), dense])
        model.compile(hvd.DistributedOptimizer(keras.optimizers.SGD(0.1)), "mse")
        x = np.full((4, 2), 1.0 + hvd.rank())
        model.fit(x, np.ones((4, 1)), batch_size=4, verbose=0)
        np.save({str(tmp_path)!r} + f"/{{hvd.rank()}}.npy", model.get_weights()[0])
        """,
    )
    kernels = [np.load(tmp_path / f"{rank}.npy") for rank in range(2)]
    assert result.returncode == 0
    np.testing.assert_allclose(kernels[0], kernels[1])


def test_horovods_canary_fails_for_its_reason(tmp_path):
    """The optimizer runs and moves weights; only the sum is missing."""
    pytest.importorskip("horovod", reason="Horovod is not built here")
    result = run_ranks(
        "horovod",
        """
        import horovod.tensorflow.keras as hvd, keras
        hvd.init()
        hvd.DistributedOptimizer(keras.optimizers.SGD(0.1))
        """,
    )
    assert result.returncode == 0, result.stderr[-2000:]


def test_the_private_hook_of_keras_optimizers_is_there():
    """strategies/multiworker.py replaces it on the instance.

    (gradients and variables) -> the same, summed.
    """
    import keras

    hook = keras.optimizers.Adam()._all_reduce_sum_gradients
    assert list(inspect.signature(hook).parameters) == ["grads_and_vars"]
    assert keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()).inner_optimizer is not None


def test_keras_calls_the_private_hook_once_a_step():
    """If Keras stopped calling it, or called another, multiworker would sum gradients twice."""
    import keras
    import tensorflow as tf

    optimizer = keras.optimizers.SGD(0.5)
    calls = []
    optimizer._all_reduce_sum_gradients = lambda pairs: calls.append(1) or list(pairs)
    variable = keras.Variable(np.ones(2, np.float32))
    optimizer.build([variable])
    optimizer.apply([tf.constant([1.0, 2.0])], [variable])
    assert calls == [1]
    np.testing.assert_allclose(np.asarray(variable), [0.5, 0.0])
