"""memory.py: arrays that TensorFlow takes as they are, in memory that is used again."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines import memory

BIG = (memory.SMALL,)  # of float32: four times what is left to numpy


@pytest.fixture(autouse=True)
def nothing_waits() -> None:
    """Each test begins without free blocks."""
    gc.collect()
    memory._free.clear()


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=3), st.sampled_from(["u1", "u2", "f4", "f8"])
)
def test_an_array_is_as_asked_for_aligned_and_writable(shape: list[int], dtype: str) -> None:
    array = memory.empty(tuple(shape), dtype)
    assert array.shape == tuple(shape)
    assert array.dtype == np.dtype(dtype)
    assert array.flags.c_contiguous
    assert array.ctypes.data % memory.ALIGNMENT == 0 or not array.size
    array[...] = 1
    assert (array == 1).all()


def test_memory_is_used_again_once_no_view_is_left() -> None:
    array = memory.empty(BIG, np.float32)
    address = array.ctypes.data
    view = array[5:].reshape(-1)[::2].view(np.int32)
    del array
    assert memory.empty(BIG, np.float32).ctypes.data != address  # the view still needs it
    del view
    assert address in {memory.empty(BIG, np.float32).ctypes.data for _ in range(2)}


def test_an_array_that_is_held_keeps_what_it_holds() -> None:
    arrays = []
    for number in range(20):
        array = memory.empty(BIG, np.float32)
        array[...] = number
        arrays.append(array[::3])
        memory.empty(BIG, np.float32)[...] = -1  # let go at once
    for number, array in enumerate(arrays):
        assert (array == number).all()


def test_what_waits_is_bounded() -> None:
    size = memory.MAX_FREE_BYTES // 4
    arrays = [memory.empty((size,), np.uint8) for _ in range(7)]
    del arrays
    assert sum(len(block) for block in memory._free) <= memory.MAX_FREE_BYTES


def test_threads_never_share_a_block() -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(300):
            array = memory.empty(BIG, np.int32)
            array[...] = number
            if not (array == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_tensorflow_does_not_copy_it() -> None:
    import tensorflow as tf

    array = memory.empty(BIG, np.float32)
    array[...] = 1
    dataset = tf.data.Dataset.range(1).map(
        lambda _: tf.numpy_function(lambda: array, [], tf.float32)
    )
    tensor = next(iter(dataset))
    array[0] = 7
    assert float(tensor[0]) == 7
