"""Windows over a granule: arithmetic, mirrored edges, reading each chunk once, memory."""

from __future__ import annotations

import collections
import functools
import gc
import math
import threading
import weakref

import dask.array
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import sentinel2
from data_pipelines.granule import build_cube
from data_pipelines.spec import DataError
from data_pipelines.windows import Window
from kerass2 import models, networks, tiling
from kerass2.models import fused

RATIOS = {"gsd10": 1, "gsd20": 2}
RATIOS_60 = {"gsd10": 1, "gsd20": 2, "gsd60": 6}


def granule(height: int, width: int, ratios: dict[str, int] = RATIOS) -> dict[str, np.ndarray]:
    """Random DN, so that any wrong pixel shows."""
    rng = np.random.default_rng(height * width)
    bands = {"gsd10": 4, "gsd20": 6, "gsd60": 2}
    return {
        name: rng.integers(200, 6000, (bands[name], height // ratio, width // ratio), np.uint16)
        for name, ratio in ratios.items()
    }


def network(halo: int, step: int) -> networks.Network:
    """Reads `halo` px around a region of multiples of `step`; gives the 10 m bands as they are."""

    def predict(inputs: dict[str, np.ndarray]) -> np.ndarray:
        return inputs["gsd10"][:, halo:-halo, halo:-halo]

    return networks.Network(
        "identity",
        "superres_20m",
        {"gsd10": sentinel2.BANDS_10M, "gsd20": sentinel2.BANDS_20M},
        sentinel2.BANDS_10M,
        "gsd10",
        halo,
        step,
        networks._exact_pieces(halo, step),
        predict,
    )


@pytest.mark.parametrize(
    ("radius", "ratios", "halo"),
    [
        (14, {"gsd10": 1}, 14),
        (14, RATIOS, 16),
        (14, RATIOS_60, 18),
        (0, RATIOS, 2),
        (66, RATIOS, 68),
    ],
)
def test_exact_halo(radius: int, ratios: dict[str, int], halo: int) -> None:
    assert tiling.exact_halo(radius, ratios) == halo


@given(st.integers(0, 80), st.integers(2, 6))
def test_exact_halo_holds_the_coarse_pixels_that_interpolation_reads(
    radius: int, ratio: int
) -> None:
    halo = tiling.exact_halo(radius, {"coarse": ratio})
    outermost = (-radius + 0.5) / ratio - 0.5  # centre of fine pixel -radius in coarse pixels
    assert -halo // ratio <= math.floor(outermost)
    assert halo - ratio < -math.floor(outermost) * ratio, "no larger than needed"


@pytest.mark.parametrize(
    ("options", "radius"),
    [({}, 14), ({"task": "superres_60m"}, 14), ({"blocks": 32}, 66)],
)
def test_receptive_radius(options: dict[str, object], radius: int) -> None:
    assert tiling.receptive_radius(models.build("dsen2", filters=8, **options)) == radius


def test_lattice_refuses_what_does_not_nest() -> None:
    with pytest.raises(DataError, match="multiples of 6 px"):
        tiling.Lattice(96, 16, RATIOS_60)


@given(st.integers(-300, 300), st.integers(0, 200), st.integers(1, 40))
def test_mirrored_equals_symmetric_padding(start: int, length: int, size: int) -> None:
    axis = np.arange(size)
    margin = 600
    padded = np.pad(axis, (margin, margin + 200), mode="symmetric")
    expected = padded[margin + start : margin + start + length]
    np.testing.assert_array_equal(tiling.mirrored(start, start + length, size), expected)


@settings(deadline=None)
@given(
    st.integers(0, 90),
    st.integers(0, 90),
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 50),
)
def test_regions_fill_the_roi_once_on_one_lattice(
    y: int, x: int, height: int, width: int, core: int
) -> None:
    seen = np.zeros((200, 200), int)
    roi = Window(y, x, height, width)
    for region in tiling.list_regions(roi, core):
        seen[region.slices] += 1
        assert region.y // core == (region.y + region.height - 1) // core
        assert region.x // core == (region.x + region.width - 1) // core
    expected = np.zeros((200, 200), int)
    expected[roi.slices] = 1
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("chunk", [(24, 96), (18, 30), (6, 96), (64, 18)])
@pytest.mark.parametrize("roi", [Window(0, 0, 120, 144), Window(13, 31, 40, 30)])
def test_chunks_of_a_lazy_cube_are_read_once(chunk: tuple[int, int], roi: Window) -> None:
    shape = 120, 144
    arrays, read = granule(*shape), collections.Counter()

    def block(key: str, block_info: dict) -> np.ndarray:
        (_, _), (y, y_stop), (x, x_stop) = block_info[None]["array-location"]
        read[key, y, x] += 1
        return arrays[key][:, y:y_stop, x:x_stop]

    cubes = {}
    for name, cube in arrays.items():
        sizes = [(len(cube),), *(c // RATIOS[name] for c in chunk)]
        lazy = dask.array.map_blocks(
            functools.partial(block, name),
            chunks=dask.array.core.normalize_chunks(sizes, cube.shape),
            dtype=np.uint16,
            meta=np.empty((0, 0, 0), np.uint16),
        )
        gsd = 10 * RATIOS[name]
        cubes[name] = build_cube(lazy, sentinel2.bands_at(gsd), gsd)
    used = [network(4, 2)]
    regions = tiling.list_regions(roi, 12)
    found = 0
    for region, strips in tiling.read_strips(cubes, used, regions, shape):
        window = tiling.reading_window(used, region, shape)
        for name, ratio in RATIOS.items():
            margin = 48 // ratio  # wider than any window reaches beyond the granule
            padded = np.pad(arrays[name], ((0, 0), (margin,) * 2, (margin,) * 2), "symmetric")
            at = window.coarser(ratio)
            expected = padded[:, at.y + margin : at.y + margin + at.height, at.x + margin :][
                :, :, : at.width
            ]
            np.testing.assert_array_equal(strips.cut(name, at), expected)
        found += 1
    assert found == len(regions)
    assert set(read.values()) == {1}
    blocks = sum(c.data.numblocks[1] * c.data.numblocks[2] for c in cubes.values())
    if roi.height == 120:
        assert len(read) == blocks
    elif chunk == (18, 30):
        assert len(read) < blocks, "only what the ROI needs"


def test_the_first_region_does_not_wait_for_the_rest_of_its_row() -> None:
    pixels, begun = np.arange(48 * 96, dtype=np.uint16).reshape(1, 48, 96), threading.Event()

    def block(block_info: dict) -> np.ndarray:
        (_, _), (y, y_stop), (x, x_stop) = block_info[None]["array-location"]
        assert x == 0 or begun.wait(60), "the first region was not given"
        return pixels[:, y:y_stop, x:x_stop]

    lazy = dask.array.map_blocks(
        block,
        chunks=((1,), (48,), (24,) * 4),
        dtype=np.uint16,
        meta=np.empty((0, 0, 0), np.uint16),
    )
    regions = tiling.list_regions(Window(0, 0, 48, 96), 12)
    cubes = {"gsd10": build_cube(lazy, ("B02",), 10)}
    for region, strips in tiling.read_strips(cubes, [], regions, (48, 96)):
        begun.set()
        np.testing.assert_array_equal(strips.cut("gsd10", region), pixels[:, *region.slices])


def test_a_row_is_read_ahead_and_no_more() -> None:
    pixels = np.arange(96 * 48, dtype=np.uint16).reshape(1, 96, 48)
    begun, changed = set[int](), threading.Condition()

    def block(block_info: dict) -> np.ndarray:
        (_, _), (y, y_stop), (x, x_stop) = block_info[None]["array-location"]
        with changed:
            begun.add(y)
            changed.notify_all()
        return pixels[:, y:y_stop, x:x_stop]

    lazy = dask.array.map_blocks(
        block,
        chunks=((1,), (24,) * 4, (24,) * 2),
        dtype=np.uint16,
        meta=np.empty((0, 0, 0), np.uint16),
    )
    regions = tiling.list_regions(Window(0, 0, 96, 48), 24)
    cubes = {"gsd10": build_cube(lazy, ("B02",), 10)}
    for region, _ in tiling.read_strips(cubes, [], regions, (96, 48)):
        following = region.y + 24
        with changed:
            assert changed.wait_for(lambda y=following: y in begun or y == 96, timeout=60)
            assert not changed.wait_for(lambda y=following: max(begun) > y, timeout=0.2)


def test_what_is_left_of_a_chunk_is_cut_off() -> None:
    pixels = np.arange(480 * 6, dtype=np.uint16).reshape(1, 480, 6)
    lazy = dask.array.from_array(pixels, chunks=(1, 96, 6))
    rows = tiling.Rows(build_cube(lazy, ("B02",), 10), (0, 6))
    before: dict[int, np.ndarray] = {}
    for core in range(0, 480, 48):
        start, stop = max(0, core - 4), min(480, core + 52)
        held = rows.read(start, stop)
        joined = np.concatenate([part for _, part in sorted(held.items())], axis=1)
        found = joined[:, start - min(held) : stop - min(held)]
        np.testing.assert_array_equal(found, pixels[:, start:stop])
        # Two rows of windows at once: one is worked on, one read ahead.
        there = {id(part): part.shape[1] for part in (*before.values(), *held.values())}
        assert sum(there.values()) <= 2 * 96 + 8
        before = held


def test_what_comes_ahead_stays_in_order_and_errors_come_through() -> None:
    def items():
        yield from range(5)
        raise DataError("damaged")

    seen = []
    with pytest.raises(DataError, match="damaged"):
        seen.extend(tiling.ahead(items()))
    for most in (1, 3, 9):
        assert list(tiling.ahead(range(4), most)) == [0, 1, 2, 3]
        assert list(tiling.ahead([], most)) == []


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_is_made_than_is_asked_for(most: int) -> None:
    made: list[int] = []

    def items():
        for number in range(20):
            made.append(number)
            yield number

    for number in tiling.ahead(items(), most):
        assert len(made) <= number + 1 + most


def test_what_is_not_wanted_any_more_is_not_made() -> None:
    made, closing = [], threading.Event()

    def items():
        for number in range(20):
            made.append(number)
            assert number != 1 or closing.wait(60)
            yield number

    coming = tiling.ahead(items(), 9)
    assert next(coming) == 0
    timer = threading.Timer(2, closing.set)  # by then the others are cancelled
    timer.start()
    coming.close()
    timer.join()
    assert made == [0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cubes: cubes.pop("gsd20"), "no gsd20; the input has gsd10"),
        (
            lambda cubes: cubes.update(gsd20=cubes["gsd20"][:, 1:]),
            "same ground: gsd10 8 x 8 px, gsd20 3 x 4",
        ),
        (
            lambda cubes: cubes.update({k: v[:, :0] for k, v in cubes.items()}),
            "same ground: gsd10 0 x 8 px",
        ),
    ],
)
def test_cubes_that_do_not_nest(change: object, message: str) -> None:
    cubes = granule(8, 8)
    change(cubes)
    with pytest.raises(DataError, match=message):
        tiling.granule_shape(cubes, RATIOS)


@pytest.mark.parametrize("name", ["bilinear", "dsen2"])
def test_many_sizes_of_windows_bring_no_warnings(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    said: list[object] = []
    monkeypatch.setattr(tf.get_logger(), "handle", said.append)
    monkeypatch.setattr(fused, "LEAST_SIZE", 0)
    options = {"filters": 4, "blocks": 3, "dtype": "mixed_bfloat16"} if name == "dsen2" else {}
    predict = tiling.compile_prediction(fused.fuse(models.build(name, **options)), sizes_known=True)
    for size in range(4, 32, 4):
        given = {
            "gsd10": np.zeros((1, size, size, 4), np.float32),
            "gsd20": np.ones((1, size // 2, size // 2, 6), np.float32),
        }
        (made,) = predict(given).values()
        assert made.shape == (1, size, size, 6)
        if name == "bilinear":
            np.testing.assert_array_equal(made, np.ones((1, size, size, 6)))
    assert not said


def test_graphs_of_known_sizes_do_not_pile_up() -> None:
    """As where scenes of many sizes are evaluated: the oldest go, those in use stay."""
    model, traced = models.build("bilinear"), collections.Counter[int]()
    graphs = []

    def call(inputs: dict[str, tf.Tensor], training: bool) -> dict[str, tf.Tensor]:
        traced[inputs["gsd10"].shape[1]] += 1
        graphs.append(weakref.ref(inputs["gsd10"].graph))
        return model(inputs, training=training)

    predict = tiling.compile_prediction(call, sizes_known=True)

    def at(size: int) -> None:
        given = {"gsd10": np.zeros((1, size, size, 4), "f4")}
        given["gsd20"] = np.zeros((1, size // 2, size // 2, 6), "f4")
        (made,) = predict(given).values()
        assert made.shape == (1, size, size, 6)

    sizes = range(4, 4 + 2 * (tiling.GRAPHS + 4), 2)
    for size in sizes:
        at(4)
        at(size)
    assert set(traced.values()) == {1}
    gc.collect()
    assert sum(graph() is not None for graph in graphs) == tiling.GRAPHS
    at(sizes[1])
    assert (traced[sizes[1]], traced[4]) == (2, 1)
