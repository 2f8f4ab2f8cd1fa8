"""Granule to patches."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import clouds, cube, granule, npz, sentinel2, synthetic, wald
from data_pipelines.spec import DataError
from data_pipelines.windows import Window, lattice


def make_granule(cubes: dict[str, np.ndarray], chunk: int = 90) -> granule.Granule:
    dask_array = pytest.importorskip("dask.array")
    lazy = {
        name: granule.build_cube(
            dask_array.from_array(array, chunks=(-1, chunk, chunk)),
            sentinel2.bands_at(sentinel2.GSDS[name]),
            sentinel2.GSDS[name],
        )
        for name, array in cubes.items()
    }
    return granule.Granule("G", "scene", "place", lazy, (0, 0))


@pytest.fixture(scope="module")
def pixels() -> dict[str, np.ndarray]:
    return synthetic.build_cubes(1188, seed=3)


def test_spec_has_the_papers_sizes() -> None:
    spec = cube.build_spec(cube.TASKS["superres_20m"])
    assert {k: v.shape for k, v in spec.inputs.items()} == {
        "gsd10": (32, 32, 4),
        "gsd20": (16, 16, 6),
    }
    assert spec.targets["superres_20m"].shape == (32, 32, 6)
    assert [spec.inputs["gsd10"].gsd, spec.inputs["gsd20"].gsd] == [20, 40]
    spec = cube.build_spec(cube.TASKS["superres_60m"])
    shapes = {"gsd10": (96, 96, 4), "gsd20": (48, 48, 6), "gsd60": (16, 16, 2)}
    assert {k: v.shape for k, v in spec.inputs.items()} == shapes
    assert [tensor.gsd for tensor in spec.inputs.values()] == [60, 120, 360]
    assert spec.targets["superres_60m"].shape == (96, 96, 2)


@pytest.mark.parametrize(("task", "size"), [("superres_20m", 33), ("superres_60m", 32)])
def test_patch_sizes_that_do_not_nest_are_refused(task: str, size: int) -> None:
    with pytest.raises(DataError, match=f"patch size {size}: {task} needs a positive multiple"):
        cube.build_spec(cube.TASKS[task], size)


@pytest.mark.parametrize(
    ("task_name", "size", "window"),
    [("superres_20m", 32, Window(64, 128, 32, 32)), ("superres_60m", 96, Window(96, 96, 96, 96))],
)
def test_a_patch_is_the_degraded_and_the_original_pixels(
    pixels: dict[str, np.ndarray], task_name: str, size: int, window: Window
) -> None:
    task = cube.TASKS[task_name]
    ((where, example),) = cube.cut(make_granule(pixels), task, [window])
    assert where == window
    target = pixels[task.target][:, window.y : window.y + size, window.x : window.x + size]
    np.testing.assert_array_equal(example["targets"][task_name], target.transpose(1, 2, 0))
    for name in task.inputs:
        ratio = sentinel2.GSDS[name] * task.scale // task.gsd
        y, x, n = window.y // ratio, window.x // ratio, size // ratio
        degraded = wald.degrade(pixels[name], task.scale)[:, y : y + n, x : x + n]
        expected = np.rint(degraded).astype(np.uint16).transpose(1, 2, 0)
        assert example["inputs"][name].dtype == np.uint16
        np.testing.assert_array_equal(example["inputs"][name], expected)
    assert example["patch_id"] == f"G/y{window.y:05d}_x{window.x:05d}"


def test_strips_and_chunks_give_the_same_patches(
    pixels: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = cube.TASKS["superres_20m"]
    pixels = {name: array.copy() for name, array in pixels.items()}
    pixels["gsd20"][2, 100, 100] = 0
    windows = list(lattice(*cube.target_shape(task, (1188, 1188)), 32, 30))
    whole = list(cube.cut(make_granule(pixels), task, windows))
    monkeypatch.setattr(cube, "STRIP", 50)
    monkeypatch.setattr(cube, "CHUNK", 100)  # large, so it stays lazy
    pieces = list(cube.cut(make_granule(pixels, 77), task, windows))
    assert [e["patch_id"] for _, e in whole] == [e["patch_id"] for _, e in pieces]
    for (_, a), (_, b) in zip(whole, pieces, strict=True):
        for name in task.inputs:
            np.testing.assert_array_equal(a["inputs"][name], b["inputs"][name])
        np.testing.assert_array_equal(a["targets"][task.name], b["targets"][task.name])


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(["gsd10", "gsd20"]), y=st.integers(0, 71), x=st.integers(0, 71))
def test_patches_that_no_data_reaches_are_left_out(name: str, y: int, x: int) -> None:
    task = cube.TASKS["superres_20m"]
    n = 144
    cubes = {
        k: np.full((b, n // r, n // r), 700, np.uint16)
        for k, b, r in (("gsd10", 4, 1), ("gsd20", 6, 2))
    }
    ratio = {"gsd10": 2, "gsd20": 1}[name]  # y, x count pixels of the target
    cubes[name][1, y * ratio, x * ratio] = 0
    windows = list(lattice(72, 72, 8, 8))
    kept = {w for w, _ in cube.cut(make_granule(cubes), task, windows)}

    def cut_with(value: int) -> dict[Window, dict[str, Any]]:
        changed = {k: v.copy() for k, v in cubes.items()}
        changed[name][1, y * ratio, x * ratio] = value
        return dict(cube.cut(make_granule(changed), task, windows))

    # By experiment: change the pixel and see which patches change.
    before, after = cut_with(700), cut_with(60_000)
    touched = {
        w
        for w in windows
        if any((before[w]["inputs"][k] != after[w]["inputs"][k]).any() for k in task.inputs)
        or (before[w]["targets"][task.name] != after[w]["targets"][task.name]).any()
    }
    assert touched
    assert not touched & kept
    # Nothing is left out without need.
    reach = wald.blur_radius(task.scale)
    assert all(w.grown(reach).distance(Window(y, x, 1, 1)) == 0 for w in set(windows) - kept)


def expected(
    cubes: dict[str, np.ndarray], task: cube.Task, window: Window
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """A patch the slow way: everything degraded as a whole, then cropped."""
    edge = next(iter(cubes.values())).shape[1:]
    height, width = cube.target_shape(task, (edge[0], edge[1]))
    inputs = {}
    for name in task.inputs:
        gsd = sentinel2.GSDS[name]
        array = cubes[name][:, : height * task.gsd // gsd, : width * task.gsd // gsd]
        if task.scale > 1:
            array = np.rint(wald.degrade(array, task.scale)).astype(np.uint16)
        inputs[name] = array[(slice(None), *window.coarser(task.ratio(name)).slices)]
    if task.target is None:
        return inputs, None
    return inputs, cubes[task.target][(slice(None), *window.slices)]


@settings(max_examples=40, deadline=None)
@given(data=st.data(), task=st.sampled_from(list(cube.TASKS.values())))
def test_any_windows_of_any_chunks(data: st.DataObject, task: cube.Task) -> None:
    """Grids of chunks that do not even fit each other, windows of several sizes, short strips."""
    dask_array = pytest.importorskip("dask.array")
    edges = [data.draw(st.integers(12, 30)) * 12 for _ in "yx"]
    rng = np.random.default_rng(5)
    cubes, lazy = {}, {}
    for name, gsd in sentinel2.GSDS.items():
        bands = sentinel2.bands_at(gsd)
        cubes[name] = rng.integers(
            1, 9000, (len(bands), edges[0] * 10 // gsd, edges[1] * 10 // gsd)
        ).astype(np.uint16)
        chunks = data.draw(st.sampled_from([(-1, 60, 60), (1, 50, 70), (2, 33, 400), (-1, -1, 7)]))
        lazy[name] = granule.build_cube(dask_array.from_array(cubes[name], chunks), bands, gsd)
    height, width = cube.target_shape(task, (edges[0], edges[1]))
    m, windows = task.multiple, set()
    for _ in range(data.draw(st.integers(1, 12))):
        h = data.draw(st.integers(1, height // m)) * m
        w = data.draw(st.integers(1, width // m)) * m
        y = data.draw(st.integers(0, (height - h) // m)) * m
        x = data.draw(st.integers(0, (width - w) // m)) * m
        windows.add(Window(y, x, h, w))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cube, "STRIP", data.draw(st.sampled_from([6, 48, 252])))
        patch.setattr(cube, "CHUNK", 1)  # all are large, so they stay lazy
        found = list(cube.cut(granule.Granule("G", "s", "p", lazy), task, windows))
    assert [window for window, _ in found] == sorted(windows)
    for window, example in found:
        inputs, target = expected(cubes, task, window)
        for name, array in inputs.items():
            np.testing.assert_array_equal(example["inputs"][name], array.transpose(1, 2, 0))
        if target is None:
            assert example["targets"] == {}
        else:
            np.testing.assert_array_equal(example["targets"][task.name], target.transpose(1, 2, 0))


@pytest.mark.parametrize("task", cube.TASKS.values(), ids=cube.TASKS)
def test_each_chunk_is_computed_once_and_few_are_held(
    task: cube.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    dask_array = pytest.importorskip("dask.array")
    monkeypatch.setattr(cube, "CHUNK", 1)
    monkeypatch.setattr(cube, "STRIP", 60)
    seen: dict[str, list[tuple[int, int]]] = {}
    cubes = {}
    for name, gsd in sentinel2.GSDS.items():
        bands, chunk = sentinel2.bands_at(gsd), 1800 // gsd
        sizes = (chunk,) * 5

        def block(block_info: Any, name: str = name) -> np.ndarray:
            where = block_info[None]
            seen.setdefault(name, []).append(tuple(where["chunk-location"][1:]))
            return np.full(where["chunk-shape"], 700, np.uint16)

        data = dask_array.map_blocks(
            block, chunks=((len(bands),), sizes, sizes), dtype=np.uint16, meta=np.empty((0, 0, 0))
        )
        cubes[name] = granule.build_cube(data, bands, gsd)
    whole = granule.Granule("G", "s", "p", cubes)
    size = {1: 60, 2: 30, 6: 12}[task.scale]
    windows = lattice(*cube.target_shape(task, (900, 900)), size, 6)
    rows_at = []
    for _ in cube.cut(whole, task, windows):
        rows_at.append(len(seen[task.inputs[0]]))
    assert {name: len(chunks) for name, chunks in seen.items()} == dict.fromkeys(task.inputs, 25)
    assert all(len(set(chunks)) == 25 for chunks in seen.values())
    # The first patch comes when one row of chunks is there, or two where a patch needs them.
    assert rows_at[0] <= 10 < rows_at[-1]


def test_a_few_windows_need_their_chunks_only() -> None:
    dask_array = pytest.importorskip("dask.array")
    seen = []

    def block(block_info: Any) -> np.ndarray:
        seen.append(block_info[None]["chunk-location"])
        return np.full(block_info[None]["chunk-shape"], 700, np.uint16)

    sizes = (600,) * 4
    ten = dask_array.map_blocks(
        block, chunks=((4,), sizes, sizes), dtype=np.uint16, meta=np.empty((0, 0, 0))
    )
    cubes = {
        "gsd10": granule.build_cube(ten, sentinel2.BANDS_10M, 10),
        "gsd20": granule.build_cube(
            dask_array.full((6, 1200, 1200), 700, dtype=np.uint16, chunks=(6, 300, 300)),
            sentinel2.BANDS_20M,
            20,
        ),
    }
    whole = granule.Granule("G", "s", "p", cubes)
    list(cube.cut(whole, cube.TASKS["superres_20m"], [Window(700, 400, 32, 32)]))
    assert seen == [(0, 2, 1)]


def masked(kind: str, gsd: int, chunks: int | None = None) -> granule.Granule:
    """144 x 144 px of 10 m whose mask is cloudy in the upper left quarter."""
    import dask.array
    import xarray

    cubes = {
        name: np.full((len(sentinel2.bands_at(g)), 1440 // g, 1440 // g), 700, np.uint16)
        for name, g in sentinel2.GSDS.items()
    }
    n = 1440 // gsd
    mask = np.zeros((n, n), np.uint8)
    mask[: n // 2, : n // 2] = 10
    mask[n // 2 :] = 3  # shadow is no cloud
    array: Any = mask if kind == "scl" else mask == 10
    data = dask.array.from_array(array, chunks=chunks) if chunks else array
    found = xarray.DataArray(data, dims=("y", "x"), attrs={"gsd": float(gsd)})
    whole = make_granule(cubes)
    return granule.Granule("G", "s", "p", whole.cubes, masks={kind: found})


@pytest.mark.parametrize("kind", ["scl", "cloud"])
@pytest.mark.parametrize(("gsd", "chunks"), [(10, None), (20, 7), (60, 5)])
@pytest.mark.parametrize("max_cloud", [0.0, 0.24, 0.25, 0.5, 0.99, 1.0])
def test_cloudy_patches_are_left_out(
    kind: str, gsd: int, chunks: int | None, max_cloud: float
) -> None:
    # Shifted by half a patch, so that some are cloudy in part.
    cloudy = masked(kind, gsd, chunks)
    windows = [Window(y, x, 24, 24) for y in range(12, 109, 24) for x in range(12, 109, 24)]
    left: dict[str, int] = {}
    task = cube.TASKS["patches"]
    kept = [w for w, _ in cube.cut(cloudy, task, windows, max_cloud=max_cloud, left_out=left)]
    # Share of each window by its overlap with the quarter; 60 m pixels count when touched.
    ratio = gsd // 10

    def share(w: Window) -> float:
        y0, y1 = w.y // ratio, -(-(w.y + 24) // ratio)
        x0, x1 = w.x // ratio, -(-(w.x + 24) // ratio)
        half = 72 // ratio
        inside = max(min(y1, half) - y0, 0) * max(min(x1, half) - x0, 0)
        return inside / ((y1 - y0) * (x1 - x0))

    assert kept == [w for w in windows if share(w) <= max_cloud]
    assert left == (
        {} if len(kept) == len(windows) else {"too much cloud": len(windows) - len(kept)}
    )


def test_no_mask_is_said() -> None:
    plain = masked("scl", 20)
    with pytest.raises(DataError, match="G: no cloud mask"):
        list(
            cube.cut(
                granule.Granule("G", "s", "p", plain.cubes),
                cube.TASKS["patches"],
                [Window(0, 0, 24, 24)],
                max_cloud=0.5,
            )
        )


def test_saturated_pixels_are_counted_apart() -> None:
    cubes = {
        name: np.full((len(sentinel2.bands_at(g)), 1440 // g, 1440 // g), 700, np.uint16)
        for name, g in sentinel2.GSDS.items()
    }
    cubes["gsd10"][0, 5, 5] = 65_535
    cubes["gsd20"][3, 3, 3] = 0  # the same patch: no data comes first
    cubes["gsd60"][1, 12, 12] = 65_535
    cubes["gsd10"][2, 0, 143] = 65_534  # bright, but well
    left = {"too much cloud": 2}
    windows = list(lattice(144, 144, 24, 24))
    task, whole = cube.TASKS["patches"], make_granule(cubes)
    kept = [w for w, _ in cube.cut(whole, task, windows, left_out=left)]
    assert len(kept) == 34
    assert left == {"too much cloud": 2, "pixels without data": 1, "saturated pixels": 1}
    usable = list(cube.usable(whole, task, windows))
    assert [w for w, ok in usable if ok] == kept
    assert [w for w, _ in usable] == windows


def test_offsets_are_taken_out() -> None:
    cubes = {
        name: granule.build_cube(
            np.full((len(sentinel2.bands_at(g)), 1440 // g, 1440 // g), 1700, np.uint16),
            sentinel2.bands_at(g),
            g,
            offset=(-1000,) * len(sentinel2.bands_at(g)),
        )
        for name, g in sentinel2.GSDS.items()
    }
    whole = granule.Granule("G", "s", "p", cubes)
    for task, size in ((cube.TASKS["patches"], 24), (cube.TASKS["superres_60m"], 6)):
        ((_, example),) = cube.cut(whole, task, [Window(0, 0, size, size)])
        arrays = [*example["inputs"].values(), *example["targets"].values()]
        assert all((array == 700).all() for array in arrays)


def test_native_patches_have_the_size_of_bigearthnet() -> None:
    spec = cube.build_spec(cube.TASKS["patches"])
    shapes = {"gsd10": (120, 120, 4), "gsd20": (60, 60, 6), "gsd60": (20, 20, 2)}
    assert {name: tensor.shape for name, tensor in spec.inputs.items()} == shapes
    assert spec.targets == {}
    assert [tensor.gsd for tensor in spec.inputs.values()] == [10, 20, 60]
    assert cube.TASKS["patches"].gap == 0
    assert cube.target_shape(cube.TASKS["patches"], (125, 130)) == (120, 126)
    with pytest.raises(DataError, match="patch size 32: patches needs a positive multiple of 6"):
        cube.build_spec(cube.TASKS["patches"], 32)


def test_a_missing_cube_and_a_window_outside_are_named(pixels: dict[str, np.ndarray]) -> None:
    coarse = make_granule({name: pixels[name] for name in ("gsd10", "gsd20")})
    with pytest.raises(DataError, match="superres_60m needs gsd60; found gsd10, gsd20"):
        list(cube.cut(coarse, cube.TASKS["superres_60m"], [Window(0, 0, 96, 96)]))
    with pytest.raises(DataError, match="reaches outside of 594 x 594 px"):
        list(cube.cut(coarse, cube.TASKS["superres_20m"], [Window(0, 580, 32, 32)]))
    with pytest.raises(DataError, match="cuts through pixels 2 times larger"):
        list(cube.cut(coarse, cube.TASKS["superres_20m"], [Window(0, 1, 32, 32)]))
    with pytest.raises(DataError, match="no task 'zoom'; there are superres_20m"):
        cube.find_task("zoom")


def write_npz(path: pathlib.Path, **changes: object) -> pathlib.Path:
    arrays: dict[str, object] = {}
    for gsd, n in ((10, 72), (20, 36), (60, 12)):
        bands = sentinel2.bands_at(gsd)
        arrays[f"im{gsd}"] = np.full((len(bands), n, n), gsd, np.uint16)
        arrays[f"bands{gsd}"] = np.array(bands)
    arrays.update(changes)
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})  # type: ignore[arg-type]
    return path


def test_npz_scenes_are_reordered_by_band_name(tmp_path: pathlib.Path) -> None:
    image = np.arange(4, dtype=np.uint16)[:, None, None] + np.ones((4, 72, 72), np.uint16)
    path = write_npz(tmp_path / "a.npz", im10=image, bands10=np.array(["B04", "B03", "B02", "B08"]))
    (found,) = granule.open_granules(path)
    assert found.name == found.place == "a"
    assert found.shape == (72, 72)
    assert [int(v) for v in found.cubes["gsd10"][:, 0, 0].values] == [3, 2, 1, 4]
    assert len(list(granule.open_granules(tmp_path))) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"im20": None}, "no array im20; found im10"),
        ({"bands10": np.array(["B02", "B03", "B04", "B05"])}, "bands10: no band B08; found B02"),
        (
            {"im60": np.ones((2, 11, 12), np.uint16)},
            "do not nest: .*gsd60 11 x 12.*expected gsd10 66 x 72",
        ),
        ({"im10": np.ones((4, 72, 72), np.float32)}, "im10 is float32"),
        ({"bands10": np.array(["B02"])}, "with 1 names"),
    ],
)
def test_bad_npz_scenes_say_what_is_wrong(
    tmp_path: pathlib.Path, changes: dict[str, object], message: str
) -> None:
    path = write_npz(tmp_path / "bad.npz", **changes)
    with pytest.raises(DataError, match=rf"bad.npz: .*{message}"):
        list(granule.open_granules(path))


def test_pickles_and_rubbish_are_not_read(tmp_path: pathlib.Path) -> None:
    write_npz(tmp_path / "pickle.npz", meta=np.array([{"name": "x"}], dtype=object))
    (tmp_path / "rubbish.npz").write_bytes(b"rubbish")
    for name in ("pickle", "rubbish"):
        with pytest.raises(DataError, match=rf"{name}.npz: not readable as .npz"):
            npz.open_scene(tmp_path / f"{name}.npz")


def test_unknown_sources_are_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file.txt").write_text("text")
    with pytest.raises(DataError, match="nowhere: not found"):
        granule.open_granules(tmp_path / "nowhere")
    for path in (tmp_path, tmp_path / "file.txt"):
        with pytest.raises(DataError, match=r"not of a known kind; expected a \.npz scene"):
            granule.open_granules(path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"kerass2.prepare has made"):
        granule.open_granules(tmp_path)


@pytest.mark.shared_data
def test_real_scenes_open(shared_data: pathlib.Path) -> None:
    found = list(granule.open_granules(shared_data / "sr_scenes"))
    assert len({g.name for g in found}) == len(found) == 9
    assert all(g.cubes["gsd20"].shape[0] == 6 for g in found)


@pytest.mark.parametrize("kind", ["scl", "cloud"])
@pytest.mark.parametrize("cut", [(slice(None), slice(-1)), (slice(-1), slice(None))])
def test_a_mask_that_ends_before_the_granule_is_refused(
    kind: str, cut: tuple[slice, slice]
) -> None:
    """Ground that no mask covers is not clear."""
    whole = masked(kind, 20)
    short = dataclasses.replace(whole, masks={kind: whole.masks[kind][cut]})
    with pytest.raises(DataError, match=rf"G: mask {kind} covers 14\d0 x 14\d0 m; .* 1440 x 1440"):
        list(cube.cut(short, cube.TASKS["superres_20m"], [Window(0, 0, 32, 32)], max_cloud=0.5))


def test_windows_outside_of_the_mask_are_refused() -> None:
    cloud = clouds.open_cloud(masked("scl", 20), 10)
    assert cloud.share(Window(0, 0, 72, 72)) == 1
    assert cloud.share(Window(72, 72, 72, 72)) == 0
    for window in (Window(73, 0, 72, 72), Window(73, 73, 72, 72), Window(144, 144, 20, 20)):
        with pytest.raises(DataError, match="outside of its cloud mask"):
            clouds.open_cloud(masked("scl", 20), 10).share(window)
