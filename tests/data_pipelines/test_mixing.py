"""Mix-up and oversampling: what ranks see adds up to what one process sees, and to the formulas."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from data_pipelines import batching, mixing, oversampling, transforms
from data_pipelines.spec import DataError, DatasetSpec, TensorSpec

SPEC = DatasetSpec(
    "bigearthnet",
    {"bands": TensorSpec((4, 4, 2), ("B02", "B03"), 10.0)},
    {"labels": TensorSpec((5,), tuple("abcde"), 10.0, "uint8", 1.0)},
)


class Memory:
    """Patches whose pixels tell which they are, with imbalanced labels."""

    spec, split, shuffle = SPEC, "train", (2, 8)

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(0)
        self.pixels = rng.integers(0, 10_000, (count, 4, 4, 2), dtype=np.uint16)
        self.labels = (rng.random((count, 5)) < [0.5, 0.2, 0.05, 0.02, 0.0]).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, indices):
        rows = np.asarray(indices)
        names = np.array([f"patch {row}" for row in rows])
        pixels, labels = self.pixels[rows], self.labels[rows]
        return {"inputs": {"bands": pixels}, "targets": {"labels": labels}, "patch_id": names}


def batch(source, step=0, rank=0, world_size=1, **further):
    return batching.training_batch(
        source, seed=3, step=step, global_batch=12, rank=rank, world_size=world_size, **further
    )


@pytest.mark.parametrize("world_size", [2, 3, 12])
@pytest.mark.parametrize("subtracts", [False, True])
def test_mixed_batches_do_not_depend_on_the_ranks(world_size, subtracts):
    source = Memory(50)
    further = {"mix_up": 0.3, "mix_up_subtracts": subtracts, "augment": ("dihedral",)}
    for step in (0, 3, 5):
        whole = batch(source, step, **further)
        parts = [batch(source, step, rank, world_size, **further) for rank in range(world_size)]
        for group, name in (("inputs", "bands"), ("targets", "labels")):
            joined = np.concatenate([part[group][name] for part in parts])
            np.testing.assert_array_equal(joined, whole[group][name])


@pytest.mark.parametrize("subtracts", [False, True])
def test_a_patch_is_mixed_with_another_of_the_global_batch(subtracts):
    source = Memory(50)
    plain = batch(source, augment=("dihedral",))
    mixed = batch(source, augment=("dihedral",), mix_up=0.4, mix_up_subtracts=subtracts)
    partners = mixing.partners(plain["index"], 3, 0)
    assert sorted(partners) == list(range(12))
    assert (partners != np.arange(12)).all()
    kept = mixing.fractions(plain["index"], 3, 0, 0.4)
    for i, (j, k) in enumerate(zip(partners, kept, strict=True)):
        x, y = (plain["inputs"]["bands"][n].astype(float) for n in (i, j))
        expected = k * x - (1 - k) * y if subtracts else k * x + (1 - k) * y
        np.testing.assert_allclose(mixed["inputs"]["bands"][i], expected, atol=1e-6)
        a, b = (plain["targets"]["labels"][n].astype(float) for n in (i, j))
        np.testing.assert_allclose(mixed["targets"]["labels"][i], k * a + (1 - k) * b, atol=1e-6)
    np.testing.assert_array_equal(mixed["patch_id"], plain["patch_id"])
    assert mixed["targets"]["labels"].dtype == np.float32


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0])
def test_fractions_are_of_the_beta_distribution(alpha):
    found = mixing.fractions(np.arange(20_000), 1, 2, alpha)
    assert ((found >= 0) & (found <= 1)).all()
    # Not up to the ends, where float32 rounds to 1.
    for at in (1e-4, 0.01, 0.1, 0.5, 0.7, 0.99, 0.9999):
        expected = scipy.stats.beta(alpha, alpha).cdf(at)
        assert (found < at).mean() == pytest.approx(expected, abs=0.012)


def test_fractions_and_partners_change_with_seed_and_epoch_alone():
    chosen = np.arange(100)
    first = mixing.fractions(chosen, 1, 2, 0.3)
    np.testing.assert_array_equal(first[40:60], mixing.fractions(chosen[40:60], 1, 2, 0.3))
    for seed, epoch in ((2, 2), (1, 3)):
        assert (first != mixing.fractions(chosen, seed, epoch, 0.3)).mean() > 0.9
        before = mixing.partners(chosen, 1, 2)
        assert (before != mixing.partners(chosen, seed, epoch)).mean() > 0.9


@pytest.mark.parametrize("alpha", [0.0, 1.5, -1.0])
def test_an_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(DataError, match=f"alpha {alpha}"):
        mixing.fractions(np.arange(3), 0, 0, alpha)


def test_a_batch_of_one_is_mixed_with_itself():
    assert mixing.partners(np.array([7]), 0, 0).tolist() == [0]


def test_dihedral_draws_other_numbers_than_mix_up():
    chosen = np.arange(64)
    bits = transforms.counter_hash(transforms._tag("dihedral"), 1, 0, chosen)
    for name in (mixing._PARTNER, mixing._FRACTION, oversampling._ROUNDING):
        assert not set(bits.tolist()) & set(transforms.counter_hash(name, 1, 0, chosen).tolist())


# --- oversampling --------------------------------------------------------------------------------


def test_repeat_factors_are_those_of_lvis():
    labels = Memory(5000).labels
    factors = oversampling.repeat_factors(labels, 0.1)
    frequency = labels.mean(axis=0)
    for row in range(0, 5000, 97):
        classes = [max(1.0, np.sqrt(0.1 / frequency[c])) for c in range(5) if labels[row, c]]
        assert factors[row] == pytest.approx(min(max([1.0, *classes]), oversampling.MOST))
    assert factors[labels[:, 3] > 0].min() > 2.0
    counts = oversampling.repeats(labels, 0.1, seed=1)
    assert counts.min() == 1
    assert counts.mean() == pytest.approx(factors.mean(), abs=0.02)
    assert (counts != oversampling.repeats(labels, 0.1, seed=2)).any()
    np.testing.assert_array_equal(oversampling.repeats(labels, 0.0, seed=1), 1)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_repetitions_are_shared_once_among_ranks(world_size):
    source = Memory(60)
    counts = oversampling.repeats(source.labels, 0.3, seed=1)
    assert counts.max() > 1
    longer = oversampling.Oversampled(source, counts)
    assert (len(longer), longer.shuffle, longer.split) == (counts.sum(), (2, 8), "train")
    seen, pixels = [], []
    for step in range(batching.num_steps(len(longer), 12)):
        for rank in range(world_size):
            part = batch(longer, step, rank, world_size)
            seen += part["index"].tolist()
            pixels += list(part["inputs"]["bands"][:, 0, 0, 0])
    assert len(set(seen)) == len(seen) == len(longer) // 12 * 12
    original = oversampling.spread(counts)[seen]
    np.testing.assert_allclose(pixels, source.pixels[original, 0, 0, 0] * 1e-4, atol=1e-6)


def test_repetitions_lie_apart():
    counts = np.ones(1000, np.int64)
    counts[100:104] = 5  # four rare patches, one after the other
    places = oversampling.spread(counts)
    np.testing.assert_array_equal(np.bincount(places), counts)
    rare = np.flatnonzero((places >= 100) & (places < 104))
    for patch in range(100, 104):
        gaps = np.diff(np.flatnonzero(places == patch))
        assert gaps.min() > 0.9 * len(places) / 5
    # What comes once stays in its order, so that blocks of records are read in one piece.
    once = np.delete(places, rare)
    assert (np.diff(once) > 0).all()
    assert len(oversampling.spread(np.zeros(0, np.int64))) == 0


def test_labels_are_read_once_by_the_ranks_together():
    source = Memory(50)
    whole = oversampling.read_labels(source, piece=7)
    np.testing.assert_array_equal(whole, source.labels)
    parts = [oversampling.read_labels(source, first=r, step=3, piece=7) for r in range(3)]
    np.testing.assert_array_equal(np.sum(parts, axis=0), source.labels)
