"""batching.py: the order of patches, each rank's part of it, and the tf.data around both."""

from __future__ import annotations

import itertools
import math
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from data_pipelines import batching, datasets, store, transforms
from data_pipelines.batching import BatchError
from data_pipelines.spec import DataError, DatasetSpec, TensorSpec

SPEC = DatasetSpec(
    "superres_20m",
    {
        "gsd10": TensorSpec((4, 4, 2), ("B02", "B03"), 20.0),
        "gsd20": TensorSpec((2, 2, 3), ("B05", "B06", "B07"), 40.0),
    },
    {"superres_20m": TensorSpec((4, 4, 3), ("B05", "B06", "B07"), 20.0)},
)


class Memory:
    """A spec.Source of random pixels in memory."""

    def __init__(self, count: int, broken: Exception | None = None, at: int = -1) -> None:
        rng = np.random.default_rng(count)
        self.spec, self.split = SPEC, "train"
        self.count, self.broken, self.at = count, broken, at
        self.groups = {
            group: {
                name: rng.integers(0, 2**16, (count, *tensor.shape), dtype=np.uint16)
                for name, tensor in tensors.items()
            }
            for group, tensors in (("inputs", SPEC.inputs), ("targets", SPEC.targets))
        }

    def __len__(self) -> int:
        return self.count

    def read(self, indices: Sequence[int] | np.ndarray) -> dict[str, Any]:
        rows = np.asarray(indices)
        if self.broken and self.at in rows:
            raise self.broken
        arrays = {g: {n: v[rows] for n, v in group.items()} for g, group in self.groups.items()}
        return {**arrays, "patch_id": np.array([f"patch é {row}" for row in rows])}


def assert_equal(one: Any, two: Any) -> None:
    """Two batches are the same, bit for bit."""
    assert set(one) == set(two)
    for key, value in one.items():
        if isinstance(value, dict):
            assert_equal(value, two[key])
        else:
            assert value.dtype == two[key].dtype
            np.testing.assert_array_equal(value, two[key])


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Slices of the ranks put together."""
    return {
        key: joined([part[key] for part in parts])
        if isinstance(value, dict)
        else np.concatenate([part[key] for part in parts])
        for key, value in parts[0].items()
    }


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("global_batch", "world_size", "words"),
    [
        (10, 4, "global batch 10 cannot be shared equally by 4 ranks; nearest that fit: 8 and 12"),
        (3, 4, "global batch 3 cannot be shared equally by 4 ranks; nearest that fit: 4"),
        (0, 2, "global batch 0, ranks 2: expected at least 1"),
        (4, 0, "global batch 4, ranks 0: expected at least 1"),
    ],
)
def test_what_the_ranks_cannot_share(global_batch: int, world_size: int, words: str) -> None:
    with pytest.raises(BatchError) as caught:
        batching.divide(global_batch, world_size)
    assert str(caught.value) == words


@given(st.integers(1, 10**6), st.integers(1, 2000))
def test_divide_names_sizes_that_fit(global_batch: int, world_size: int) -> None:
    try:
        assert batching.divide(global_batch, world_size) * world_size == global_batch
    except BatchError as error:
        fits = [int(n) for n in str(error).rsplit(": ", 1)[1].split(" and ")]
        assert all(batching.divide(fit, world_size) for fit in fits)
        assert min(abs(fit - global_batch) for fit in fits) <= max(
            world_size / 2, world_size - global_batch
        )


@pytest.mark.parametrize(("records", "batch", "steps"), [(8, 8, 1), (15, 8, 1), (16, 8, 2)])
def test_an_epoch_drops_the_incomplete_batch(records: int, batch: int, steps: int) -> None:
    assert batching.num_steps(records, batch) == steps


def test_fewer_patches_than_a_batch_is_one_clear_error() -> None:
    words = "7 patches are fewer than one global batch of 8; choose a global batch of at most 7"
    for call in (
        lambda: batching.num_steps(7, 8),
        lambda: batching.indices(7, 0, 0, 0, 8),
        lambda: batching.training_batch(Memory(7), seed=0, step=0, global_batch=8),
    ):
        with pytest.raises(BatchError, match=words):
            call()
    with pytest.raises(BatchError, match="global batch 0"):
        batching.num_steps(7, 0)


# --- order ----------------------------------------------------------------------------------------


def splitmix64(state: int) -> int:
    mask = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def whole_epoch(num_records: int, seed: int, epoch: int, block: int, window: int) -> list[int]:
    """The order of an epoch written the long way: lists, sorted by hashes in Python's integers."""

    def key(level: int, number: int) -> int:
        state = 0
        for counter in (level, seed, epoch, number):
            state = splitmix64(state ^ (counter & (2**64 - 1)))
        return state

    records = list(range(num_records))
    blocks = [records[i : i + block] for i in range(0, num_records, block)]
    order = sorted(range(len(blocks)), key=lambda number: key(1, number))
    result = []
    for first in range(0, len(blocks), window):
        together = [r for b in order[first : first + window] for r in blocks[b]]
        result += sorted(together, key=lambda record: key(2, record))
    return result


@given(
    num_records=st.integers(1, 200),
    seed=st.integers(-(2**63), 2**63),
    epoch=st.integers(0, 1000),
    global_batch=st.integers(1, 80),
    block=st.integers(1, 20),
    window=st.integers(1, 10),
)
@example(num_records=33, seed=0, epoch=0, global_batch=33, block=16, window=1)
@settings(max_examples=300)
def test_indices_are_the_two_level_shuffle(
    num_records: int, seed: int, epoch: int, global_batch: int, block: int, window: int
) -> None:
    assume(global_batch <= num_records)
    steps = batching.num_steps(num_records, global_batch)
    found = [
        batching.indices(num_records, seed, epoch, s, global_batch, block=block, window=window)
        for s in range(steps)
    ]
    assert all(f.dtype == np.int64 and f.shape == (global_batch,) for f in found)
    expected = whole_epoch(num_records, seed, epoch, block, window)
    assert sorted(expected) == list(range(num_records))
    assert np.concatenate(found).tolist() == expected[: steps * global_batch]


def test_the_order_is_pinned() -> None:
    """A change here changes what every resumed run sees: it needs a new version, not a new list."""
    found = batching.indices(100, 1, 2, 3, 8, block=4, window=3)
    assert found.tolist() == [22, 59, 58, 70, 23, 20, 68, 71]


@pytest.mark.parametrize("step", [-1, 12])
def test_a_step_outside_the_epoch_is_refused(step: int) -> None:
    with pytest.raises(BatchError, match=f"step {step} of an epoch of 12 steps"):
        batching.indices(100, 0, 0, step, 8)


def test_epochs_and_seeds_differ_and_patches_mix() -> None:
    count = 20_000
    orders = [
        np.concatenate([batching.indices(count, seed, epoch, s, 200) for s in range(100)])
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    for one, two in itertools.combinations(orders, 2):
        assert np.mean(one == two) < 0.001
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.05
    # Where a record lies says nothing about when it comes; blocks of 16 leave 1250 free places.
    assert abs(np.corrcoef(orders[0], np.arange(count))[0, 1]) < 4 / math.sqrt(count / 16)
    # Neighbours in time come from all over the window, not from one block.
    assert np.mean(np.abs(np.diff(orders[0])) < 16) < 0.05


def test_a_batch_touches_few_blocks_windows_at_most() -> None:
    chosen = batching.indices(10**6, 0, 0, 7, 128)
    assert len(np.unique(chosen // batching.BLOCK)) <= 2 * batching.WINDOW


def test_a_step_costs_its_window_not_the_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []

    def counting(*counters: Any) -> np.ndarray:
        hashed.append(np.size(counters[-1]))
        return transforms.counter_hash(*counters)

    monkeypatch.setattr(batching, "counter_hash", counting)
    batching.indices(3 * 10**6, 99, 0, 0, 128)
    assert sorted(hashed) == [1024, math.ceil(3 * 10**6 / 16)]
    hashed.clear()
    for step in range(1, 9):
        batching.indices(3 * 10**6, 99, 0, step, 128)
    assert sum(hashed) <= 1024


# --- shares ---------------------------------------------------------------------------------------


@given(st.integers(1, 64), st.integers(1, 8), st.integers(0, 2**32), st.integers(0, 5))
def test_each_patch_is_in_exactly_one_slice(
    world_size: int, local_batch: int, seed: int, epoch: int
) -> None:
    chosen = batching.indices(1024, seed, epoch, 1, world_size * local_batch)
    slices = [batching.rank_slice(chosen, rank, world_size) for rank in range(world_size)]
    assert all(len(part) == local_batch for part in slices)
    assert np.concatenate(slices).tolist() == chosen.tolist()
    assert len(set(chosen.tolist())) == len(chosen)


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_that_does_not_exist_is_refused(rank: int) -> None:
    with pytest.raises(BatchError, match=f"rank {rank} of 2 ranks"):
        batching.rank_slice(np.arange(4), rank, 2)


@given(st.integers(1, 300), st.integers(1, 70), st.integers(1, 6))
def test_evaluation_sees_each_patch_once(records: int, local_batch: int, world_size: int) -> None:
    global_batch = local_batch * world_size
    seen = []
    steps = batching.num_evaluation_steps(records, global_batch)
    for step in range(steps):
        positions, mask = batching.evaluation_positions(records, global_batch, step)
        assert positions.shape == mask.shape == (global_batch,)
        assert mask.dtype == np.float32
        assert set(mask.tolist()) <= {0.0, 1.0}
        assert (positions[mask == 0] == records - 1).all()
        for rank in range(world_size):
            mine = batching.rank_slice(positions, rank, world_size)
            seen += mine[batching.rank_slice(mask, rank, world_size) == 1].tolist()
    assert sorted(seen) == list(range(records))
    with pytest.raises(BatchError, match=f"step {steps} of an evaluation"):
        batching.evaluation_positions(records, global_batch, steps)


# --- batches in numpy -----------------------------------------------------------------------------


@given(st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 50), st.integers(0, 9))
def test_the_global_batch_does_not_depend_on_the_ranks(ranks: int, step: int, seed: int) -> None:
    source = Memory(40)
    options: dict[str, Any] = {"seed": seed, "step": step, "global_batch": 12}
    options["augment"] = ("dihedral",)
    whole = batching.training_batch(source, **options)
    parts = [
        batching.training_batch(source, **options, rank=rank, world_size=ranks)
        for rank in range(ranks)
    ]
    assert_equal(joined(parts), whole)


def test_a_training_batch_holds_what_the_source_holds() -> None:
    source = Memory(40)
    for step in (0, 2, 3, 7):  # 3 steps an epoch
        batch = batching.training_batch(source, seed=5, step=step, global_batch=12)
        chosen = batching.indices(40, 5, step // 3, step % 3, 12)
        np.testing.assert_array_equal(batch["index"], chosen)
        assert batch["patch_id"].tolist() == [f"patch é {row}" for row in chosen]
        assert batch["mask"].tolist() == [1.0] * 12
        for group in ("inputs", "targets"):
            for name, values in batch[group].items():
                assert values.dtype == np.float32
                stored = source.groups[group][name][chosen]
                np.testing.assert_allclose(values, stored / 1e4, rtol=1e-6)
    turned = batching.training_batch(source, seed=5, step=7, global_batch=12, augment=("dihedral",))
    expected = transforms.dihedral(batch, 5, 2)
    assert_equal(turned, expected)
    assert not np.array_equal(turned["inputs"]["gsd10"], batch["inputs"]["gsd10"])


def test_an_unknown_transform_is_refused() -> None:
    options: dict[str, Any] = {"seed": 0, "global_batch": 4, "augment": ("mirror",)}
    with pytest.raises(DataError, match="no transform 'mirror'; there is dihedral"):
        batching.training_batch(Memory(8), step=0, **options)
    with pytest.raises(DataError, match="no transform 'mirror'; there is dihedral"):
        build(Memory(8), 0, 1, **options)


# --- tf.data --------------------------------------------------------------------------------------


def build(source: Any, start: int, stop: int, **options: Any) -> Any:
    """A training dataset of one rank, of 12 patches a step unless told otherwise."""
    defaults: dict[str, Any] = {"seed": 3, "global_batch": 12, "rank": 0, "world_size": 1}
    options = {**defaults, "augment": ("dihedral",), **options}
    return batching.build_training_dataset(source, start_step=start, stop_step=stop, **options)


def as_list(dataset: Any) -> list[dict[str, Any]]:
    """Elements in numpy, with patch ids as text."""
    elements = list(dataset.as_numpy_iterator())
    for element in elements:
        element["patch_id"] = np.array([name.decode() for name in element["patch_id"]])
    return elements


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_tf_data_gives_the_numpy_batches(world_size: int) -> None:
    source = Memory(40)
    ranks = [
        as_list(build(source, 1, 6, rank=rank, world_size=world_size)) for rank in range(world_size)
    ]
    for step, parts in enumerate(zip(*ranks, strict=True), start=1):
        expected = batching.training_batch(
            source, seed=3, step=step, global_batch=12, augment=("dihedral",)
        )
        assert_equal(joined(parts), expected)
    assert step == 5


def test_a_resumed_run_sees_the_unbroken_one_even_with_other_ranks() -> None:
    source = Memory(40)
    unbroken = as_list(build(source, 0, 8))
    resumed = [as_list(build(source, 5, 8, rank=rank, world_size=4)) for rank in range(4)]
    for expected, parts in zip(unbroken[5:], zip(*resumed, strict=True), strict=True):
        assert_equal(joined(parts), expected)


def test_shapes_are_static_and_the_length_known() -> None:
    import tensorflow as tf

    dataset = build(Memory(40), 2, 7, rank=1, world_size=2)
    assert dataset.cardinality() == 5
    for values, shape, dtype in (
        (dataset.element_spec["inputs"]["gsd10"], (6, 4, 4, 2), tf.float32),
        (dataset.element_spec["inputs"]["gsd20"], (6, 2, 2, 3), tf.float32),
        (dataset.element_spec["targets"]["superres_20m"], (6, 4, 4, 3), tf.float32),
        (dataset.element_spec["patch_id"], (6,), tf.string),
        (dataset.element_spec["index"], (6,), tf.int64),
        (dataset.element_spec["mask"], (6,), tf.float32),
    ):
        assert values == tf.TensorSpec(shape, dtype)
    assert as_list(build(Memory(40), 2, 2)) == []


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2)])
def test_steps_that_run_backwards_are_refused(start: int, stop: int) -> None:
    with pytest.raises(BatchError, match=f"steps {start} to {stop}"):
        build(Memory(40), start, stop)


def test_the_builder_refuses_at_once_what_cannot_be_read() -> None:
    with pytest.raises(BatchError, match="nearest that fit: 10 and 15"):
        build(Memory(40), 0, 1, world_size=5)
    with pytest.raises(BatchError, match="7 patches are fewer"):
        build(Memory(7), 0, 1)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_each_patch_is_evaluated_once(world_size: int) -> None:
    source = Memory(13)
    options = {"global_batch": 8, "world_size": world_size}
    steps = [
        [
            batching.evaluation_batch(source, step=step, rank=rank, **options)
            for rank in range(world_size)
        ]
        for step in range(batching.num_evaluation_steps(13, 8))
    ]
    seen = joined([joined(parts) for parts in steps])
    real = seen["mask"] == 1
    assert seen["index"][real].tolist() == list(range(13))
    assert seen["index"][~real].tolist() == [12, 12, 12]
    np.testing.assert_allclose(
        seen["inputs"]["gsd20"][real], source.groups["inputs"]["gsd20"] / 1e4, rtol=1e-6
    )


@pytest.mark.parametrize(
    "error",
    [DataError("shard 7, record 3: CRC"), KeyError("x"), OSError(5, "I/O"), StopIteration()],
)
def test_the_cause_of_a_broken_iteration_is_the_exception_itself(error: Exception) -> None:
    dataset = build(Memory(40, error, at=11), 0, 8)
    with pytest.raises(Exception) as caught:
        list(dataset)
    assert batching.cause(caught.value) is error


def test_a_damaged_shard_is_named_after_tf_data(tmp_path: pathlib.Path) -> None:
    source = Memory(24)
    rows = (source.read([i]) for i in range(24))
    patches = (
        (
            "train",
            {g: {k: v[0] for k, v in row[g].items()} for g in ("inputs", "targets")}
            | {"patch_id": str(row["patch_id"][0])},
        )
        for row in rows
    )
    store.write(tmp_path / "d", SPEC, patches)
    opened = store.open_source(tmp_path / "d", "train")
    assert_equal(as_list(build(opened, 1, 2))[0], as_list(build(source, 1, 2))[0])
    path = tmp_path / "d" / "train-00000.tfrecord"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(Exception) as caught:
        list(build(opened, 0, 2))
    cause = batching.cause(caught.value)
    assert isinstance(cause, DataError)
    assert f"{path}, record " in str(cause)
    assert str(cause) in str(caught.value)


def test_other_errors_are_their_own_cause() -> None:
    error = ValueError("shard 7")
    assert batching.cause(error) is error


def test_a_process_ends_well_in_the_middle_of_an_epoch() -> None:
    """Readers that still run must not hang the interpreter's end, as tf.data's own did."""
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "from tests.data_pipelines.test_batching import Memory, build\n"
        "kept = [iter(build(Memory(40), 0, 10**6)) for _ in range(8)]\n"
        "print(*(next(batches)['index'].shape for batches in kept))"
    )
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, timeout=120, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(12,) " * 7 + "(12,)\n"


def test_readers_work_ahead_and_tensorflow_calls_only_when_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    ahead = datasets._Ahead.__call__
    monkeypatch.setattr(
        datasets._Ahead, "__call__", lambda self, step: calls.append(step) or ahead(self, step)
    )
    source = Memory(40)
    reads: list[int] = []
    read = source.read
    monkeypatch.setattr(source, "read", lambda rows: reads.append(1) or read(rows))
    batches = iter(build(source, 0, 50))
    next(batches)
    time.sleep(0.5)
    assert calls == [0]
    assert len(reads) == 1 + datasets.STEPS_AHEAD
    next(batches)
    time.sleep(0.5)
    assert calls == [0, 1]
    assert len(reads) == 2 + datasets.STEPS_AHEAD


def test_iterators_of_one_dataset_do_not_disturb_each_other() -> None:
    dataset = build(Memory(40), 0, 9)
    expected = as_list(build(Memory(40), 0, 9))
    first = dataset.as_numpy_iterator()
    for _ in range(3):
        next(first)
    for one, two in zip(as_list(dataset), expected, strict=True):  # from the start again
        assert_equal(one, two)
    both = zip(dataset.skip(2).as_numpy_iterator(), dataset.as_numpy_iterator(), strict=False)
    for step, (one, two) in enumerate(both):
        np.testing.assert_array_equal(one["index"], expected[step + 2]["index"])
        np.testing.assert_array_equal(two["index"], expected[step]["index"])
    np.testing.assert_array_equal(next(first)["index"], expected[3]["index"])
