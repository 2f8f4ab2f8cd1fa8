"""Granule to patches."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import cube, granule, npz, sentinel2, synthetic, wald
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


def test_a_missing_cube_and_a_window_outside_are_named(pixels: dict[str, np.ndarray]) -> None:
    coarse = make_granule({name: pixels[name] for name in ("gsd10", "gsd20")})
    with pytest.raises(DataError, match="superres_60m needs gsd60; found gsd10, gsd20"):
        list(cube.cut(coarse, cube.TASKS["superres_60m"], [Window(0, 0, 96, 96)]))
    with pytest.raises(DataError, match="reaches outside of 594 x 594 px"):
        list(cube.cut(coarse, cube.TASKS["superres_20m"], [Window(0, 580, 32, 32)]))
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
