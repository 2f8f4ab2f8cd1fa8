"""Strict canaries: they say when Keras or Horovod repairs, or moves, what we work around."""

from __future__ import annotations

import inspect
import os
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent


def run_ranks(strategy: str, *script: str, **environ: str) -> subprocess.CompletedProcess:
    """Run a Python script as two ranks."""
    launcher = ["-m", "strategies.launch", "--strategy", strategy, "--workers", "2", "--"]
    return subprocess.run(
        [sys.executable, *launcher, sys.executable, *script],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", **environ},
        timeout=200,
    )


@pytest.fixture(scope="module")
def keras_fit() -> subprocess.CompletedProcess:
    """Keras' own fit on two ranks of MultiWorkerMirroredStrategy."""
    code = """
        import keras, numpy as np, tensorflow as tf
        keras.config.disable_traceback_filtering()
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        with strategy.scope():
            model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            model.compile("sgd", "mse")
        model.fit(np.ones((8, 2)), np.ones((8, 1)), batch_size=4, verbose=0)
    """
    return run_ranks("multiworker", "-c", textwrap.dedent(code))


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="keras-team/keras#20585: fit fails under MultiWorkerMirroredStrategy",
)
def test_keras_fit_under_multiworker(keras_fit):
    assert keras_fit.returncode == 0, keras_fit.stderr[-2000:]


def test_keras_fit_fails_for_its_reason(keras_fit):
    """In one of the two places that reduce over replicas, not for want of a free port."""
    assert keras_fit.returncode == 1
    places = ("_maybe_symbolic_build", "reduce_per_replica")
    assert any(place in keras_fit.stderr for place in places), keras_fit.stderr[-2000:]


@pytest.fixture(scope="module")
def horovods_keras(
    tmp_path_factory,
) -> tuple[subprocess.CompletedProcess, list[np.ndarray]]:
    """What two ranks said, and each one's kernel (zero before) after a step of fit; data differ."""
    pytest.importorskip("horovod", reason="Horovod is not built here")
    out = tmp_path_factory.mktemp("kernels")
    code = f"""
        import horovod.tensorflow.keras as hvd, keras, numpy as np
        from horovod.tensorflow.elastic import TensorFlowKerasState
        hvd.init()
        dense = keras.layers.Dense(1, kernel_initializer="zeros")
        model = keras.Sequential([keras.Input((2,)), dense])
        model.compile(hvd.DistributedOptimizer(keras.optimizers.SGD(0.1)), "mse")
        x = np.full((4, 2), 1.0 + hvd.rank())
        model.fit(x, np.ones((4, 1)), batch_size=4, verbose=0)
        np.save({str(out)!r} + f"/{{hvd.rank()}}.npy", model.get_weights()[0])
        plain = keras.optimizers.SGD()
        plain.build(model.trainable_variables)
        try:
            TensorFlowKerasState(model, plain).sync()
        except Exception as error:
            print("elastic:", repr(error))
        else:
            print("elastic: works")
    """
    result = run_ranks("horovod", "-c", textwrap.dedent(code))
    return result, [np.load(out / f"{rank}.npy") for rank in range(2)]


@pytest.mark.horovod
@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="Keras 3 never calls the hooks of Horovod's optimizer: nothing is reduced",
)
def test_horovods_keras_optimizer_reduces(horovods_keras):
    _, kernels = horovods_keras
    np.testing.assert_allclose(kernels[0], kernels[1])


@pytest.mark.horovod
def test_horovods_optimizer_fails_for_its_reason(horovods_keras):
    """The same run: the step is taken on each rank, with that rank's own gradient."""
    result, kernels = horovods_keras
    assert result.returncode == 0
    # Gradient of (k.x - 1)^2 at k = 0: -2 x, with x = rank + 1.
    for rank, kernel in enumerate(kernels):
        np.testing.assert_allclose(kernel, np.full((2, 1), 0.2 * (rank + 1)), rtol=1e-5)


@pytest.mark.horovod
@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="Horovod's elastic state calls optimizer.variables(), a list in Keras 3: "
    "strategies/elastic.py goes on from files instead",
)
def test_horovods_elastic_state_takes_keras(horovods_keras):
    result, _ = horovods_keras
    said = [line for line in result.stdout.splitlines() if line.startswith("elastic: ")]
    # Anything else, such as a Horovod that does not start, is no reason to call it known.
    if not said:
        pytest.fail(result.stderr[-2000:], pytrace=False)
    assert said == ["elastic: works"], said


@pytest.fixture(scope="module")
def summed(tmp_path_factory) -> tuple[subprocess.CompletedProcess, pathlib.Path]:
    """What two ranks of sum_rank.py said, and where they left their weights."""
    out = tmp_path_factory.mktemp("summed")
    script = (str(HERE / "sum_rank.py"), "multiworker", str(out))
    return run_ranks("multiworker", *script, KERASS2_STALL_SECONDS="77.5"), out


def test_without_our_replacement_keras_sums_a_second_time(summed):
    """On two ranks, gradients 1 and 2, SGD of rate 1 from zero."""
    result, out = summed
    assert result.returncode == 0, result.stderr[-2000:]
    for rank in range(2):
        with np.load(out / f"rank{rank}.npz") as weights:
            np.testing.assert_array_equal(weights["plain"], np.full((2, 1), -2 * (1 + 2)))
            np.testing.assert_array_equal(weights["started"], np.full((2, 1), -(1 + 2)))


def test_multiworkers_patience_reaches_tensorflow(summed):
    """strategies/multiworker.py sets it by a function that is not public."""
    result, out = summed
    assert result.returncode == 0, result.stderr[-2000:]
    for rank in range(2):
        with np.load(out / f"rank{rank}.npz") as found:
            assert found["patience"] == 77_500


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
