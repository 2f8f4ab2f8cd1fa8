"""transforms.py: hashes, symmetries, units."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines import transforms
from data_pipelines.spec import DataError, DatasetSpec, TensorSpec

MASK = 2**64 - 1
SEEDS = st.integers(-(2**70), 2**70)


def splitmix64(state: int) -> int:
    """One output of the reference implementation, in Python's integers."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def make_batch(count: int, size: int = 12, seed: int = 0) -> dict:
    """Images of three GSDs that nest, and labels."""
    rng = np.random.default_rng(seed)

    def images(pixels: int, bands: int) -> np.ndarray:
        return rng.integers(0, 2**16, (count, pixels, pixels, bands), dtype=np.uint16)

    return {
        "inputs": {"gsd10": images(size, 4), "gsd20": images(size // 2, 6)},
        "targets": {"superres_20m": images(size, 6), "labels": rng.integers(0, 2, (count, 19))},
        "patch_id": np.array([f"p{i}" for i in range(count)]),
        "index": rng.permutation(count),
    }


def test_hash_gives_the_published_first_outputs_of_splitmix64() -> None:
    # Seed 0, and seed 1234567 as in Rosetta Code's and the Java test vectors.
    assert int(transforms.counter_hash(0)) == 0xE220A8397B1DCDAF
    assert int(transforms.counter_hash(1234567)) == 6457827717110365317


@given(SEEDS, SEEDS, st.lists(st.integers(0, 2**62), min_size=1, max_size=20))
def test_hash_is_splitmix64_folded_over_the_counters(a: int, b: int, numbers: list[int]) -> None:
    found = transforms.counter_hash(a, b, np.array(numbers))
    head = splitmix64(splitmix64(a & MASK) ^ (b & MASK))
    assert found.dtype == np.uint64
    assert found.tolist() == [splitmix64(head ^ number) for number in numbers]


def test_hashes_of_patches_never_collide_and_bits_are_even() -> None:
    bits = transforms.counter_hash(1, 2, np.arange(200_000))
    assert len(np.unique(bits)) == 200_000
    ones = [np.mean(bits >> np.uint64(b) & np.uint64(1)) for b in range(64)]
    assert np.abs(np.array(ones) - 0.5).max() < 0.006  # 5 sigma of a fair coin


@given(st.integers(0, 7))
def test_turn_and_its_inverse_are_the_identity(element: int) -> None:
    images = make_batch(2)["inputs"]["gsd10"]
    inverse = element if element >= 4 else (4 - element) % 4
    found = transforms.turn(transforms.turn(images, element), inverse)
    np.testing.assert_array_equal(found, images)


def test_the_eight_elements_are_the_group_of_the_square() -> None:
    image = np.arange(9).reshape(1, 3, 3, 1)
    turned = {transforms.turn(image, e).tobytes() for e in range(8)}
    assert len(turned) == 8
    both = itertools.product(range(8), repeat=2)
    assert {transforms.turn(transforms.turn(image, a), b).tobytes() for a, b in both} == turned


@given(SEEDS, st.integers(0, 100))
def test_dihedral_turns_all_images_of_an_example_alike(seed: int, epoch: int) -> None:
    """Averaging 2 x 2 pixels before or after gives the same: the grids stay nested."""
    batch = make_batch(6)
    fine = batch["inputs"]["gsd10"]
    batch["inputs"]["gsd20"] = fine.reshape(6, 6, 2, 6, 2, 4).sum((2, 4))
    found = transforms.dihedral(batch, seed, epoch)["inputs"]
    again = found["gsd10"].reshape(6, 6, 2, 6, 2, 4).sum((2, 4))
    np.testing.assert_array_equal(found["gsd20"], again)


@given(SEEDS, st.integers(0, 100), st.permutations(range(7)), st.integers(1, 7))
def test_dihedral_depends_on_the_patch_not_on_its_batch(
    seed: int, epoch: int, order: list[int], count: int
) -> None:
    def part(values: dict, rows: list[int]) -> dict:
        groups = {g: {k: v[rows] for k, v in values[g].items()} for g in ("inputs", "targets")}
        return {**groups, "patch_id": values["patch_id"][rows], "index": values["index"][rows]}

    batch = make_batch(7)
    rows = order[:count]
    whole = part(transforms.dihedral(batch, seed, epoch), rows)
    alone = transforms.dihedral(part(batch, rows), seed, epoch)
    for group in ("inputs", "targets"):
        for name, values in whole[group].items():
            np.testing.assert_array_equal(alone[group][name], values)


def test_dihedral_is_one_of_numpys_own_turns_and_leaves_the_rest() -> None:
    batch = make_batch(40)
    before = {name: images.copy() for name, images in batch["inputs"].items()}
    found = transforms.dihedral(batch, 3, 1)
    for source, result in zip(batch["inputs"]["gsd10"], found["inputs"]["gsd10"], strict=True):
        flips = (source, np.fliplr(source))
        assert any(np.array_equal(np.rot90(f, k), result) for f in flips for k in range(4))
    np.testing.assert_array_equal(found["targets"]["labels"], batch["targets"]["labels"])
    np.testing.assert_array_equal(found["patch_id"], batch["patch_id"])
    for name, images in before.items():
        np.testing.assert_array_equal(batch["inputs"][name], images)  # the argument is not changed


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("bands", [1, 2, 3, 4, 6, 12])
def test_pixels_of_any_size_are_turned_whole(bands: int, dtype: type) -> None:
    """Of each size in bytes numpy copies them another way."""
    rng = np.random.default_rng(bands)
    images = rng.integers(0, 256, (16, 5, 5, 2 * bands)).astype(dtype)[..., ::2]
    batch = {"inputs": {"gsd10": images}, "targets": {}, "index": np.arange(16)}
    result = transforms.dihedral(batch, 3, 1)["inputs"]["gsd10"]
    assert result.dtype == dtype
    drawn = set()
    for number in range(16):
        turned = [transforms.turn(images[number : number + 1], e)[0] for e in range(8)]
        drawn.add([np.array_equal(result[number], each) for each in turned].index(True))
    assert len(drawn) > 3


def test_dihedral_draws_each_element_equally_often_and_anew_each_epoch() -> None:
    count = 8000
    image = np.arange(4, dtype=np.uint16).reshape(1, 2, 2, 1)
    batch = {
        "inputs": {"gsd10": np.repeat(image, count, axis=0)},
        "targets": {},
        "index": np.arange(count),
    }
    drawn = []
    for epoch in range(2):
        rows = transforms.dihedral(batch, 0, epoch)["inputs"]["gsd10"].reshape(count, 4)
        kinds, number, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
        assert len(kinds) == 8
        assert np.sum((counts - count / 8) ** 2 / (count / 8)) < 29.9  # chi2, 7 dof, p = 1e-4
        drawn.append(number.ravel())
    assert abs(np.mean(drawn[0] == drawn[1]) - 1 / 8) < 0.02


def test_dihedral_refuses_images_that_are_not_square() -> None:
    batch = make_batch(2)
    batch["inputs"]["gsd10"] = batch["inputs"]["gsd10"][:, :8]
    with pytest.raises(DataError, match=r"gsd10 is \(8, 12\) pixels"):
        transforms.dihedral(batch, 0, 0)


def test_gain_multiplies_an_example_by_one_factor_of_a_half_to_two() -> None:
    batch = make_batch(400)
    batch["inputs"] = {name: images // 3 for name, images in batch["inputs"].items()}
    batch["targets"]["superres_20m"] //= 3
    out = transforms.gain(batch, 3, 5)
    pairs = [(batch["inputs"][name], out["inputs"][name]) for name in batch["inputs"]]
    pairs.append((batch["targets"]["superres_20m"], out["targets"]["superres_20m"]))
    found = [
        new.sum((1, 2, 3), dtype=np.float64) / old.sum((1, 2, 3), dtype=np.float64)
        for old, new in pairs
    ]
    factors = found[0]
    for other in found[1:]:
        np.testing.assert_allclose(other, factors, rtol=1e-4)
    for old, new in pairs:
        assert new.dtype == old.dtype
        exact = old * factors[:, None, None, None]
        assert np.abs(new - exact).max() <= 2.5  # half a DN, and the factor's own error
    assert 0.5 <= factors.min() < 0.52 and 1.94 < factors.max() <= 2
    assert abs(np.log2(factors).mean()) < 0.15  # 5 sigma of 400 uniform draws of -1 to 1
    np.testing.assert_array_equal(out["targets"]["labels"], batch["targets"]["labels"])


def test_gain_depends_on_the_patch_not_on_its_batch_and_never_wraps_around() -> None:
    batch = make_batch(40)
    out = transforms.gain(batch, 1, 2)["inputs"]["gsd10"]
    part = {
        **batch,
        "index": batch["index"][7:9],
        **{
            group: {name: images[7:9] for name, images in batch[group].items()}
            for group in ("inputs", "targets")
        },
    }
    np.testing.assert_array_equal(transforms.gain(part, 1, 2)["inputs"]["gsd10"], out[7:9])
    assert (transforms.gain(batch, 1, 3)["inputs"]["gsd10"] != out).any()
    brighter = out.mean((1, 2, 3)) > batch["inputs"]["gsd10"].mean((1, 2, 3)) * 1.05
    assert brighter.any()
    assert (out[brighter] >= batch["inputs"]["gsd10"][brighter]).all()
    assert out.max() == np.iinfo(np.uint16).max


def test_every_dn_survives_reflectance() -> None:
    spec = DatasetSpec("t", {"gsd10": TensorSpec((256, 256, 1), ("B02",), 10.0)}, {})
    stored = np.arange(2**16, dtype=np.uint16).reshape(1, 256, 256, 1)
    found = transforms.to_physical({"inputs": {"gsd10": stored}, "targets": {}}, spec)
    physical = found["inputs"]["gsd10"]
    assert physical.dtype == np.float32
    np.testing.assert_allclose(physical, stored / 10000, rtol=1.2e-7)
    np.testing.assert_array_equal(np.rint(physical / np.float32(1e-4)), stored)


def test_each_array_has_its_own_scale() -> None:
    tensors = {
        "a": TensorSpec((1,), ("x",), 10.0, "int16", 0.5),
        "b": TensorSpec((1,), ("x",), 10.0, "float32", 1.0),
    }
    batch = {
        "inputs": {"a": np.array([[-3]], np.int16)},
        "targets": {"b": np.array([[0.1]], np.float32)},
        "mask": np.ones(1),
    }
    found = transforms.to_physical(
        batch, DatasetSpec("t", {"a": tensors["a"]}, {"b": tensors["b"]})
    )
    assert found["inputs"]["a"].tolist() == [[-1.5]]
    assert found["targets"]["b"][0, 0] == np.float32(0.1)
    assert found["mask"] is batch["mask"]
