"""A made-up BigEarthNet, written: as archives in the true layouts, or as a data set at once."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from data_pipelines import (
    bigearthnet_lists,
    bigearthnet_patches,
    geotiff,
    nomenclature,
    sentinel2,
    store,
)
from data_pipelines.spec import SPLITS
from data_pipelines.synthetic_patches import ALONG, Plan, build_plan, product_of, render

# Every so many patches one has snow, and one cloud, where they are asked for.
SNOWY, CLOUDY = (10, 4), (14, 9)


def write_dataset(
    folder: pathlib.Path,
    count: int = 20_000,
    *,
    seed: int = 0,
    num_classes: int = 43,
    upsample: str = "none",
    file_format: str = "tfrecord",
    overwrite: bool = False,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> pathlib.Path:
    """Write a data set as kerass2.prepare writes one of an archive, without the archive.

    Patches without one of 19 classes are left out where these are wanted. Other arguments as of
    bigearthnet_convert.convert_archive.
    """
    plan = build_plan(count, seed=seed)
    upsampler = bigearthnet_patches.UPSAMPLERS[upsample]

    def examples() -> Iterator[tuple[str, dict[str, Any]]]:
        for index in range(count):
            row = nomenclature.encode(plan.label_names(index), num_classes, plan.name(index))
            if row.any():
                images = render(plan, index)
                inputs: Any = images
                if upsampler is not None:
                    inputs = {"bands": upsampler(images, "", plan.name(index))}
                yield (
                    SPLITS[plan.split[index]],
                    {"inputs": inputs, "targets": {"labels": row}, "patch_id": plan.name(index)},
                )
            advance(index + 1, count)

    spec = bigearthnet_patches.build_spec(num_classes, upsampled=upsampler is not None)
    facts = {
        "source": "synthetic BigEarthNet, made up",
        "synthetic": True,
        "seed": seed,
        "num_classes": num_classes,
        "split": "whole tiles",
        "upsample": upsample,
    }
    return store.write(
        folder,
        spec,
        examples(),
        file_format=file_format,
        provenance=facts,
        splits=SPLITS,
        overwrite=overwrite,
    )


def write_archive(
    folder: pathlib.Path, count: int, *, version: int = 2, seed: int = 0, excluded: bool = True
) -> Plan:
    """Write patches as GeoTIFFs in the true layout of v1 or v2, with their lists or tables.

    Args:
        folder: made if it is missing.
        count: how many patches. In v2 those without one of 19 classes are not there.
        version: 1 (PATCH/PATCH_B01.tif, labels in JSON, lists of names) or 2
            (BigEarthNet-S2/PRODUCT/PATCH/PATCH_B01.tif, metadata.parquet).
        seed: which archive.
        excluded: whether every tenth patch has snow and every fourteenth cloud, by the lists.
    """
    plan = build_plan(count, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(count):
        row = _row(plan, index, version, excluded)
        if not row["labels"]:
            continue
        rows.append(row)
        path = folder / row["patch_id"]
        if version == 2:
            path = folder / "BigEarthNet-S2" / row["patch_id"].rsplit("_", 2)[0] / row["patch_id"]
        _write_patch(path, plan, index)
        if version == 1:
            _write_json(path, plan, index)
    (_write_lists if version == 1 else _write_tables)(folder, rows)
    return plan


def _row(plan: Plan, index: int, version: int, excluded: bool) -> dict[str, Any]:
    """What lists and tables say of a patch."""
    labels = plan.label_names(index)
    if version == 2:
        names = (nomenclature.NEWER[label] for label in labels)
        labels = sorted({name for name in names if name})  # v2 has them by name
    return {
        "patch_id": plan.name(index, version),
        "labels": labels,
        "split": SPLITS[plan.split[index]],
        "country": plan.country(index),
        "s2v1_name": plan.name(index, 1),
        "contains_seasonal_snow": excluded and index % SNOWY[0] == SNOWY[1],
        "contains_cloud_or_shadow": excluded and index % CLOUDY[0] == CLOUDY[1],
    }


def _corner(plan: Plan, index: int) -> tuple[float, float]:
    """(easting, northing) of a patch's upper left corner [m]."""
    row, column = divmod(int(plan.position[index]), ALONG)
    return 300_000.0 + 1200 * column, 5_400_000.0 - 1200 * row


def _write_patch(path: pathlib.Path, plan: Plan, index: int) -> None:
    """The 12 GeoTIFFs, tagged as made up."""
    from affine import Affine

    from data_pipelines import raster

    path.mkdir(parents=True, exist_ok=True)
    east, north = _corner(plan, index)
    zone = product_of(int(plan.tile[index]))[1][1:3]
    for key, image in render(plan, index).items():
        gsd = sentinel2.GSDS[key]
        for number, band in enumerate(sentinel2.bands_at(gsd)):
            raster.write_geotiff(
                path / f"{path.name}_{band}.tif",
                [image[None, ..., number]],
                height=len(image),
                width=len(image),
                bands=[band],
                nodata=None,  # the real ones declare none
                crs=f"EPSG:326{zone}",
                transform=Affine(gsd, 0, east, 0, -gsd, north),
                tags=geotiff.SYNTHETIC_TAGS,
                overwrite=True,
            )


def _write_json(path: pathlib.Path, plan: Plan, index: int) -> None:
    """The labels of v1, with the keys of the real ones."""
    east, north = _corner(plan, index)
    product, tile = product_of(int(plan.tile[index]))
    day = product.split("_")[2]
    values = {
        "labels": plan.label_names(index),
        "coordinates": {"ulx": east, "uly": north, "lrx": east + 1200, "lry": north - 1200},
        "projection": f"EPSG:326{tile[1:3]}",
        "tile_source": f"S2A_MSIL1C_{day}_N0205_R022_{tile}_{day}.SAFE",
        "acquisition_date": f"{day[:4]}-{day[4:6]}-{day[6:8]} 10:10:31",
    }
    (path / f"{path.name}_labels_metadata.json").write_text(json.dumps(values))


def _write_lists(folder: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    """v1's lists: those of splits without the excluded patches, as the official ones."""
    lists: dict[str, list[str]] = {f"{word}.csv": [] for word in ("train", "val", "test")}
    lists |= {bigearthnet_lists.SNOW: [], bigearthnet_lists.CLOUD: []}
    for row in rows:
        if row["contains_seasonal_snow"]:
            name = bigearthnet_lists.SNOW
        elif row["contains_cloud_or_shadow"]:
            name = bigearthnet_lists.CLOUD
        else:
            name = {"validation": "val"}.get(row["split"], row["split"]) + ".csv"
        lists[name].append(row["patch_id"])
    for name, names in lists.items():
        (folder / name).write_text("".join(f"{each}\n" for each in names))


def _write_tables(folder: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    """v2's tables."""
    import pyarrow
    import pyarrow.parquet

    def flagged(row: dict[str, Any]) -> bool:
        return bool(row["contains_seasonal_snow"] or row["contains_cloud_or_shadow"])

    tables = {
        bigearthnet_lists.METADATA: [row for row in rows if not flagged(row)],
        bigearthnet_lists.EXCLUDED: [row for row in rows if flagged(row)],
    }
    for name, mine in tables.items():
        if mine:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(mine), folder / name)
