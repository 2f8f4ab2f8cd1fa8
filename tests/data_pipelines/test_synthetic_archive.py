"""The made-up BigEarthNet: repeatable, imbalanced as published, in the true layouts, learnable."""

from __future__ import annotations

import csv
import pathlib

import numpy as np
import pytest

from data_pipelines import (
    bigearthnet_convert,
    bigearthnet_patches,
    nomenclature,
    store,
    synthetic_archive,
    synthetic_labels,
    synthetic_patches,
)
from data_pipelines.bigearthnet import BANDS, parse_name
from data_pipelines.spec import SPLITS, DataError


@pytest.mark.shared_data
def test_supports_are_the_published_ones(shared_data: pathlib.Path) -> None:
    with (shared_data / "published" / "bigearthnet_resnet50_per_class.csv").open() as file:
        rows = {row["class"]: int(row["support"]) for row in csv.DictReader(file)}
    for name, support in zip(nomenclature.CLASSES_43, synthetic_labels.SUPPORTS, strict=True):
        assert support == rows[name if name in rows else name.split(",")[0]]


def test_classes_come_as_often_as_published_and_together() -> None:
    plan = synthetic_patches.build_plan(40_000)
    wanted = np.array(synthetic_labels.SUPPORTS) / synthetic_labels.PATCHES
    found = plan.labels.mean(axis=0)
    assert (plan.labels.sum(axis=1) >= 1).all()
    assert plan.labels.sum(axis=1).max() <= synthetic_labels.MOST
    assert plan.labels.sum(axis=1).mean() == pytest.approx(2.95, abs=0.2)
    assert np.abs(np.log(found / wanted)).max() < np.log(2)
    assert np.corrcoef(found, wanted)[0, 1] > 0.99
    names = nomenclature.CLASSES_43
    pair = [names.index("Water bodies"), names.index("Water courses")]
    lift = plan.labels[:, pair].all(axis=1).mean() / found[pair].prod()
    assert lift > 1.5


def test_splits_are_whole_tiles_and_names_are_true() -> None:
    plan = synthetic_patches.build_plan(4000)
    names = [plan.name(index) for index in range(4000)]
    assert len(set(names)) == 4000
    assert len({plan.name(index, 1) for index in range(4000)}) == 4000
    tiles: dict[str, set[str]] = {split: set() for split in SPLITS}
    for index, name in enumerate(names):
        product, tile, _ = parse_name(name)
        assert product and tile
        tiles[SPLITS[plan.split[index]]].add(tile)
    assert all(tiles.values())
    assert sum(map(len, tiles.values())) == len(set.union(*tiles.values())) == 10
    with pytest.raises(DataError, match="0 synthetic patches: expected 1 to"):
        synthetic_patches.build_plan(0)


def test_a_patch_depends_on_seed_and_number_alone() -> None:
    plan = synthetic_patches.build_plan(60, seed=3)
    first = synthetic_patches.render(plan, 17)
    synthetic_patches.render(plan, 18)
    again = synthetic_patches.render(synthetic_patches.build_plan(60, seed=3), 17)
    other = synthetic_patches.render(synthetic_patches.build_plan(60, seed=4), 17)
    for key, image in first.items():
        np.testing.assert_array_equal(image, again[key])
        assert (image != other[key]).any()
        assert image.min() > 0
        assert image.dtype == np.uint16


@pytest.mark.parametrize(("version", "num_classes"), [(1, 43), (2, 19)])
def test_archives_hold_what_the_data_set_holds(
    tmp_path: pathlib.Path, version: int, num_classes: int
) -> None:
    synthetic_archive.write_archive(tmp_path / "a", 16, version=version, excluded=False)
    summary = bigearthnet_convert.convert_archive(tmp_path / "a", tmp_path / "from-archive")
    synthetic_archive.write_dataset(tmp_path / "at-once", 16, num_classes=num_classes)
    assert store.verify(tmp_path / "at-once") == summary.counts
    plan = synthetic_patches.build_plan(16)
    other_name = {plan.name(i, version): plan.name(i) for i in range(16)}
    for split in SPLITS:
        one, other = (
            store.open_source(tmp_path / name, split) for name in ("from-archive", "at-once")
        )
        assert one.spec == other.spec
        a, b = one.read(range(len(one))), other.read(range(len(other)))
        rows = [b["patch_id"].tolist().index(other_name[n]) for n in a["patch_id"].tolist()]
        np.testing.assert_array_equal(a["targets"]["labels"], b["targets"]["labels"][rows])
        for key, images in a["inputs"].items():
            np.testing.assert_array_equal(images, b["inputs"][key][rows])


def test_pixels_tell_labels_and_more_bands_tell_more() -> None:
    """A linear reading of means and deviations on tiles that were not seen, against the best guess
    that knows only how often classes come.
    """
    plan = synthetic_patches.build_plan(1500)
    images = [
        bigearthnet_patches.upsample_bilinear(synthetic_patches.render(plan, i))[::2, ::2]
        for i in range(len(plan))
    ]
    pixels = np.log(np.stack(images).reshape(len(plan), -1, 12).astype(np.float32))
    features = np.stack([pixels.mean(axis=1), pixels.std(axis=1)], axis=-1)
    train, test = plan.split == 0, plan.split != 0
    truth = plan.labels[test].astype(bool)

    def f1(prediction: np.ndarray) -> float:
        return float(2 * (prediction & truth).sum() / (prediction.sum() + truth.sum()))

    def score(columns: list[int]) -> float:
        x = features[:, columns].reshape(len(plan), -1)
        x = (x - x[train].mean(axis=0)) / x[train].std(axis=0)
        x = np.concatenate([x, x**2, np.ones((len(x), 1))], axis=1)
        weights = np.linalg.solve(
            x[train].T @ x[train] + 10 * np.eye(x.shape[1]), x[train].T @ plan.labels[train]
        )
        made = x[test] @ weights
        return max(f1(made > threshold) for threshold in np.arange(0.1, 0.6, 0.05))

    frequency = plan.labels[train].mean(axis=0)
    prior = max(f1(np.tile(frequency > t, (test.sum(), 1))) for t in np.arange(0.02, 0.5, 0.02))
    rgb = score([BANDS.index(band) for band in ("B02", "B03", "B04")])
    multispectral = score(list(range(12)))
    assert rgb > prior + 0.03
    assert multispectral > rgb + 0.05
