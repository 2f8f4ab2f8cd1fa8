"""The made-up BigEarthNet of the benchmarks of labels: whole archive, small patches.

All that a synthetic archive has but its size on disk: 12 bands, 43 classes as rare as the published
ones, splits of whole tiles. Patches are brought to 10 m, then averaged to fewer pixels, so that two
cores can train on all of them.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import bigearthnet_patches, nomenclature, store, synthetic_patches
from data_pipelines.bigearthnet import BANDS, SIZES
from data_pipelines.spec import SPLITS, DatasetSpec, TensorSpec


def make(folder: pathlib.Path, count: int, edge: int, *, seed: int = 0) -> pathlib.Path:
    """A prepared data set of `count` patches of `edge` x `edge` px; one that is there stays.

    Returns:
        Its folder, named after the arguments.
    """
    target = folder / f"bigearthnet-{count}-{edge}-{seed}"
    if target.exists():
        return target
    plan = synthetic_patches.build_plan(count, seed=seed)
    weights = shrinking(SIZES["gsd10"], edge)

    def examples() -> Iterator[tuple[str, dict[str, Any]]]:
        for index in range(count):
            images = synthetic_patches.render(plan, index)
            fine = bigearthnet_patches.upsample_bilinear(images).astype(np.float32)
            planes = weights @ np.ascontiguousarray(np.moveaxis(fine, -1, 0)) @ weights.T
            pixels = np.rint(np.moveaxis(planes, 0, -1)).astype(np.uint16)
            labels = nomenclature.encode(plan.label_names(index), 43, plan.name(index))
            yield (
                SPLITS[plan.split[index]],
                {
                    "inputs": {"bands": pixels},
                    "targets": {"labels": labels},
                    "patch_id": plan.name(index),
                },
            )

    facts = {"source": "synthetic BigEarthNet, made up", "synthetic": True, "seed": seed}
    facts |= {"split": "whole tiles", "upsample": f"bilinear, then averaged to {edge} px"}
    return store.write(target, build_spec(edge), examples(), provenance=facts, splits=SPLITS)


def build_spec(edge: int) -> DatasetSpec:
    """What an example holds: all bands on one grid of `edge` x `edge` px, and its labels."""
    whole = bigearthnet_patches.build_spec(43, upsampled=True)
    gsd = bigearthnet_patches.EDGE / edge
    inputs = {"bands": TensorSpec((edge, edge, len(BANDS)), BANDS, gsd)}
    return DatasetSpec(whole.task, inputs, whole.targets)


def shrinking(fine: int, coarse: int) -> NDArray[np.float32]:
    """(coarse, fine): means over the part of the edge that each coarse pixel covers."""
    width = fine / coarse
    begin, end = np.arange(coarse)[:, None] * width, np.arange(1, coarse + 1)[:, None] * width
    pixel = np.arange(fine)
    overlap = np.minimum(end, pixel + 1) - np.maximum(begin, pixel)
    weights: NDArray[np.float32] = (np.maximum(overlap, 0) / width).astype(np.float32)
    return weights
