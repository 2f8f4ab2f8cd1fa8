"""Patches straight from a product: those of a prepared data set, whatever the buffer holds."""

from __future__ import annotations

import concurrent.futures
import json
import pathlib
import shutil
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import (
    batching,
    convert,
    cube,
    cube_source,
    geotiff,
    region,
    sentinel2,
    store,
    synthetic,
    synthetic_product,
)
from data_pipelines.granule import open_granule
from data_pipelines.spec import SPLITS, DataError
from data_pipelines.windows import Window

SIZE = 1296  # two chunks in each direction, of 1080 px and of what is left
MB = 2**20


def with_holes() -> dict[str, np.ndarray]:
    """A made-up granule with pixels that are not to be used."""
    cubes = synthetic.build_cubes(SIZE, seed=5)
    cubes["gsd20"][3, 100:140, 500:600] = 0
    cubes["gsd10"][:, -300:, :90] = 0
    cubes["gsd60"][1, 20, 33] = 0
    cubes["gsd10"][0, 834, 77] = 65535
    return cubes


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """GeoTIFFs of 2 x 2 chunks, which are decoded faster than JPEG 2000."""
    folder = tmp_path_factory.mktemp("product") / "granule"
    return geotiff.write_folder(folder, with_holes(), crs="EPSG:32632", corner=(4e5, 6e6))


@pytest.fixture(scope="module")
def prepared(
    product: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, pathlib.Path]:
    """What prepare makes of it, by task."""
    folder = tmp_path_factory.mktemp("prepared")
    return {
        task: convert.convert([product], folder / task, task, **OPTIONS[task]).folder
        for task in cube.TASKS
    }


OPTIONS: dict[str, dict[str, Any]] = {
    "superres_20m": {},
    "superres_60m": {"patch_size": 24, "seed": 3},
    "patches": {"patch_size": 60},
}


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    np.testing.assert_array_equal(found["patch_id"], expected["patch_id"])
    for group in ("inputs", "targets"):
        assert list(found[group]) == list(expected[group])
        for name, values in expected[group].items():
            assert found[group][name].dtype == values.dtype
            np.testing.assert_array_equal(found[group][name], values, err_msg=f"{group}/{name}")


@pytest.mark.parametrize("task", cube.TASKS)
@pytest.mark.parametrize("buffer_bytes", [64 * MB, 3 * MB])
def test_the_patches_of_a_prepared_data_set(
    product: pathlib.Path, prepared: dict[str, pathlib.Path], task: str, buffer_bytes: int
) -> None:
    cut = cube_source.open_product(product, task, buffer_bytes=buffer_bytes, **OPTIONS[task])
    found = store.read_manifest(prepared[task])
    assert cut.spec == found.spec
    assert cut.counts == {split: found.num_examples(split) for split in SPLITS}
    assert all(cut.counts.values())
    for key in ("patch_size", "stride", "seed", "split", "gap", "scenes", "synthetic"):
        assert cut.provenance[key] == found.provenance[key]
    assert cut.provenance["left_out"] == sum(found.provenance["left_out"].values()) > 0
    for split in SPLITS:
        expected, source = store.open_source(prepared[task], split), cut.source(split)
        assert len(source) == len(expected)
        step = 400
        for start in range(0, len(source), step):
            positions = np.arange(start, min(start + step, len(source)))
            assert_equal(source.read(positions), expected.read(positions))


def test_a_safe_product(tmp_path: pathlib.Path) -> None:
    """With an offset, and one chunk for each band."""
    cubes = synthetic.build_cubes(768, seed=2)
    cubes["gsd20"][3, 100:140, 30:70] = 0
    path = synthetic_product.write_product(tmp_path, cubes, baseline="04.00", offset=-1000)
    convert.convert([path], tmp_path / "out", "superres_20m")
    found = cube_source.open_product(path, "superres_20m")
    for split in SPLITS:
        source, expected = found.source(split), store.open_source(tmp_path / "out", split)
        positions = np.arange(len(expected))
        assert len(source) == len(expected) > 0
        assert_equal(source.read(positions), expected.read(positions))


def test_any_positions_in_any_order(
    product: pathlib.Path, prepared: dict[str, pathlib.Path]
) -> None:
    source = cube_source.open_source(product, "superres_20m", "train", buffer_bytes=64 * MB)
    expected = store.open_source(prepared["superres_20m"], "train")
    positions = np.random.default_rng(0).integers(0, len(source), 50)
    assert_equal(source.read(positions), expected.read(positions))
    assert source.read([])["inputs"]["gsd10"].shape == (0, 32, 32, 4)
    with pytest.raises(IndexError, match=f"of {len(source)} patches"):
        source.read([len(source)])


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_a_region_holds_the_pixels_that_cut_gives(
    product: pathlib.Path, data: st.DataObject
) -> None:
    task = cube.TASKS[data.draw(st.sampled_from(list(cube.TASKS)))]
    granule = open_granule(product)
    limits = cube.target_shape(task, granule.shape)
    edges = [
        sorted(data.draw(st.sets(st.integers(0, n // task.multiple), min_size=2, max_size=2)))
        for n in limits
    ]
    (top, bottom), (left, right) = [[task.multiple * e for e in pair] for pair in edges]
    window = Window(top, left, bottom - top, right - left)
    found = region.read_window(granule, task, window)
    whole = {
        f"{kind}/{name}": array
        for kind, arrays in reference(task.name).items()
        for name, array in arrays.items()
    }
    assert set(found) == set(whole)
    for key, array in found.items():
        ratio = (bottom - top) // array.shape[0]
        part = window.coarser(ratio).slices
        np.testing.assert_array_equal(array, whole[key][part])


def reference(task_name: str) -> dict[str, dict[str, np.ndarray]]:
    """All of the granule at once, from Wald's protocol in memory."""
    if task_name not in WHOLE:
        from data_pipelines import sentinel2, wald

        task, cubes = cube.TASKS[task_name], with_holes()
        height, width = cube.target_shape(task, (SIZE, SIZE))
        inputs, targets = {}, {}
        for name in task.inputs:
            ratio = task.gsd / sentinel2.GSDS[name]
            pixels = cubes[name][:, : int(height * ratio), : int(width * ratio)]
            degraded = pixels if task.scale == 1 else np.rint(wald.degrade(pixels, task.scale))
            inputs[name] = degraded.astype(np.uint16).transpose(1, 2, 0)
            if name == task.target:
                targets[task.name] = pixels.transpose(1, 2, 0)
        WHOLE[task_name] = {"inputs": inputs, "targets": targets}
    return WHOLE[task_name]


WHOLE: dict[str, dict[str, dict[str, np.ndarray]]] = {}


def test_what_fits_is_shuffled_as_files_are(
    product: pathlib.Path, prepared: dict[str, pathlib.Path]
) -> None:
    source = cube_source.open_source(product, "superres_20m", "train", buffer_bytes=64 * MB)
    assert source.shuffle == (batching.BLOCK, batching.WINDOW)
    arguments = {"seed": 1, "step": 7, "global_batch": 16, "augment": ("dihedral",)}
    found = batching.training_batch(source, **arguments)
    expected = batching.training_batch(
        store.open_source(prepared["superres_20m"], "train"), **arguments
    )
    assert_equal(found, expected)


def test_a_small_buffer_mixes_what_it_holds_and_reads_little_twice(
    product: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = cube_source.open_source(product, "superres_20m", "train", buffer_bytes=8 * MB)
    block, window = source.shuffle
    assert block > 16 and window >= 2
    real, loads = cube_source.read_window, []
    monkeypatch.setattr(cube_source, "read_window", lambda *a: (loads.append(a[2]), real(*a))[1])
    steps = batching.num_steps(len(source), 16)
    seen: list[int] = []
    for step in range(steps):
        seen += batching.training_batch(source, seed=2, step=step, global_batch=16)[
            "index"
        ].tolist()
        assert source._buffer.num_bytes <= 8 * MB
    assert len(set(seen)) == len(seen) == steps * 16
    regions = -(-len(source) // block)
    assert len({tuple(vars(w).values()) for w in loads}) >= regions
    # A block is a region: each is read once an epoch, but for those that two windows share.
    assert len(loads) <= 1.2 * len({tuple(vars(w).values()) for w in loads})
    mixed = {position // block for position in seen[:64]}
    assert len(mixed) >= 2, "the first batches come from several regions"


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_global_batch_is_the_same_for_any_number_of_ranks(
    product: pathlib.Path, world_size: int
) -> None:
    options = {"buffer_bytes": 3 * MB}
    single = cube_source.open_source(product, "superres_20m", "train", **options)
    ranks = [
        cube_source.open_source(product, "superres_20m", "train", **options)
        for _ in range(world_size)
    ]
    for step in (0, 3, 40):
        arguments: dict[str, Any] = {"seed": 4, "step": step, "global_batch": 16}
        whole = batching.training_batch(single, **arguments)
        parts = [
            batching.training_batch(source, rank=rank, world_size=world_size, **arguments)
            for rank, source in enumerate(ranks)
        ]
        for name, values in whole["inputs"].items():
            joined = np.concatenate([part["inputs"][name] for part in parts])
            np.testing.assert_array_equal(joined, values)


def test_threads_share_a_source(product: pathlib.Path, prepared: dict[str, pathlib.Path]) -> None:
    source = cube_source.open_source(product, "superres_20m", "train", buffer_bytes=2 * MB)
    expected = store.open_source(prepared["superres_20m"], "train")
    rng = np.random.default_rng(1)
    asked = [rng.integers(0, len(source), 4) for _ in range(8)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for positions, batch in zip(asked, pool.map(source.read, asked), strict=True):
            assert_equal(batch, expected.read(positions))
    assert source._buffer.num_bytes <= 2 * MB


def test_memory_is_that_of_the_buffer(tmp_path: pathlib.Path) -> None:
    """Pixels are counted by tracemalloc, which sees numpy's arrays; there are 54 MB of them."""
    cubes = synthetic.build_cubes(2160)
    path = geotiff.write_folder(tmp_path / "g", cubes, crs="EPSG:32632", corner=(4e5, 6e6))

    def peak(buffer_bytes: int) -> int:
        tracemalloc.start()
        source = cube_source.open_source(path, "superres_20m", "train", buffer_bytes=buffer_bytes)
        surveyed = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        for step in range(0, batching.num_steps(len(source), 16), 60):
            batching.training_batch(source, seed=0, step=step, global_batch=16)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert surveyed < 80 * MB
        return most

    # A region of 2 MB is made of 6 MB of raw pixels, read by chunks of 9 MB in each thread.
    small, large = peak(8 * MB), peak(13 * MB)
    assert small < 8 * MB + 50 * MB
    assert large < small + 13 * MB


def test_which_patches_are_usable_is_kept(product: pathlib.Path, tmp_path: pathlib.Path) -> None:
    asked: list[tuple[int, int]] = []

    def open_product(path: pathlib.Path = product, **options: Any) -> cube_source.Product:
        asked.clear()
        return cube_source.open_product(
            path,
            "superres_20m",
            cache=tmp_path / "cache",
            advance=lambda done, total: asked.append((done, total)),
            **options,
        )

    first = open_product()
    assert [done for done, _ in asked] == list(range(1, asked[0][1] + 1))
    again = open_product()
    assert not asked
    assert (again.counts, again.digest) == (first.counts, first.digest)
    other = open_product(seed=1)
    assert asked and other.digest != first.digest
    (kept, _) = sorted((tmp_path / "cache").iterdir())
    whole = kept.read_bytes()
    places = (0, len(whole) // 2, len(whole) - 1)
    flipped = [whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :] for i in places]
    for content in (b"", b"rubbish", whole[:-3], *flipped):
        for file in (tmp_path / "cache").iterdir():
            file.write_bytes(content)
        assert open_product().counts == first.counts
        assert asked, "what is damaged is not believed"

    moved = shutil.copytree(product, tmp_path / "elsewhere" / product.name)
    assert open_product(moved).digest == first.digest, "the same product elsewhere"
    assert asked, "but looked at again"
    cubes = with_holes()
    cubes["gsd10"][2, 700, 700] += 1
    shutil.rmtree(moved)
    geotiff.write_folder(moved, cubes, crs="EPSG:32632", corner=(4e5, 6e6))
    assert open_product(moved).digest != first.digest, "one pixel is another"


def test_changed_assets_of_a_stac_item_are_looked_at_again(tmp_path: pathlib.Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    cubes = synthetic.build_cubes(600)
    assets = {}
    for name, gsd in sentinel2.GSDS.items():
        for band, image in zip(sentinel2.bands_at(gsd), cubes[name], strict=True):
            file = tmp_path / f"{band}.tif"
            write_band(file, image, gsd)
            assets[band] = {"href": f"./{file.name}", "type": "image/tiff"}
    properties = {"datetime": "2019-06-01T10:00:00Z", "s2:processing_baseline": "03.01"}
    item = {
        "type": "Feature", "stac_version": "1.0.0", "id": "S2B_32UMC_20190601_0_L2A",
        "geometry": None, "properties": properties, "links": [], "assets": assets,
    }  # fmt: skip
    path = tmp_path / "item.json"
    path.write_text(json.dumps(item))
    cache = tmp_path / "cache"
    first = cube_source.open_product(path, "superres_20m", cache=cache)
    again = cube_source.open_product(path, "superres_20m", cache=cache)
    assert (again.counts, again.digest) == (first.counts, first.digest)
    assert len(list(cache.iterdir())) == 1
    with rasterio.open(tmp_path / "B05.tif") as file:
        image = file.read(1)
    image[:100] = 0
    write_band(tmp_path / "B05.tif", image, 20)
    changed = cube_source.open_product(path, "superres_20m", cache=cache)
    assert changed.digest != first.digest
    assert sum(changed.counts.values()) < sum(first.counts.values())
    assert len(list(cache.iterdir())) == 2


def write_band(path: pathlib.Path, image: np.ndarray, gsd: int) -> None:
    """One band as GeoTIFF; uncompressed, so that other pixels have the same size."""
    import rasterio

    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=len(image), width=len(image), dtype="uint16",
        crs="EPSG:32632", transform=rasterio.Affine(gsd, 0, 4e5, 0, -gsd, 6e6),
    ) as file:  # fmt: skip
        file.write(image, 1)


def test_a_cache_that_cannot_be_written_costs_only_time(
    product: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    found = cube_source.open_product(product, "superres_20m", cache=tmp_path / "file" / "cache")
    assert found.counts["train"]


def test_several_granules_and_other_kinds(tmp_path: pathlib.Path) -> None:
    synthetic.write_bigearthnet(tmp_path / "ben", [(0, 0), (0, 4), (4, 0), (4, 4)])
    convert.convert([tmp_path / "ben"], tmp_path / "out", "superres_20m", stride=4)
    found = cube_source.open_product(tmp_path / "ben", "superres_20m", stride=4)
    for split in SPLITS:
        source, expected = found.source(split), store.open_source(tmp_path / "out", split)
        positions = np.arange(len(expected))
        assert len(source) == len(expected) > 0
        assert_equal(source.read(positions), expected.read(positions))
        assert_equal(source.read(positions[::-1]), expected.read(positions[::-1]))


def test_cloudy_patches_are_left_out(tmp_path: pathlib.Path) -> None:
    cubes = synthetic.build_cubes(768)
    scl = np.full((1, 384, 384), 4, np.uint8)
    scl[:, :200] = 9
    path = synthetic_product.write_product(tmp_path, cubes, level="L2A", scl=scl)
    options: dict[str, Any] = {"max_cloud": 0.1, "only_split": "train"}
    summary = convert.convert([path], tmp_path / "out", "superres_20m", **options)
    found = cube_source.open_product(path, "superres_20m", **options)
    assert 0 < found.counts["train"] == summary.counts["train"]
    without = cube_source.open_product(path, "superres_20m", only_split="train")
    assert without.counts["train"] > found.counts["train"]
    assert without.digest != found.digest


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"patch_size": 31}, "patch size 31"),
        ({"patch_size": 2000}, "no patch fits"),
        ({"max_cloud": 0.5}, "cloud"),
    ],
)
def test_bad_options(tmp_path: pathlib.Path, options: dict[str, Any], text: str) -> None:
    path = synthetic.write_granule(tmp_path / "g", 768)
    with pytest.raises(DataError, match=text):
        cube_source.open_product(path, "superres_20m", **options)


def test_bad_products(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = {name: np.zeros_like(cube) for name, cube in synthetic.build_cubes(768).items()}
    geotiff.write_folder(tmp_path / "empty", empty, crs="EPSG:32632", corner=(0, 0))
    with pytest.raises(DataError, match="empty: no patch is free of pixels without data"):
        cube_source.open_product(tmp_path / "empty", "superres_20m")
    with pytest.raises(DataError, match="not found"):
        cube_source.open_product(tmp_path / "nowhere", "superres_20m")
    with pytest.raises(DataError, match="no task 'zoom'"):
        cube_source.open_product(tmp_path, "zoom")
    synthetic.write_bigearthnet(tmp_path / "ben", [(0, 0), (0, 4), (4, 0)])
    monkeypatch.setattr(cube_source, "MAX_GRANULES", 2)
    with pytest.raises(DataError, match=r"more than 2 granules: .*kerass2\.prepare"):
        cube_source.open_product(tmp_path / "ben", "superres_20m")


def test_no_such_split(product: pathlib.Path) -> None:
    with pytest.raises(DataError, match="no split 'tets'; it has train, validation, test"):
        cube_source.open_source(product, "superres_20m", "tets")


def test_damage_that_shows_while_training_is_an_error_of_ours(
    product: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    path = shutil.copytree(product, tmp_path / product.name)
    source = cube_source.open_source(path, "superres_20m", "train", buffer_bytes=2 * MB)
    image = path / "gsd10.tif"
    image.write_bytes(image.read_bytes()[:200_000])
    with pytest.raises(DataError, match=r"gsd10\.tif"):
        source.read(np.arange(len(source))[-1:])
