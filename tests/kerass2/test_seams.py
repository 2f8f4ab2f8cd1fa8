"""No seams: neither borders of windows nor those of a model's lattice show in what is predicted."""

from __future__ import annotations

import functools
import pathlib

import keras
import numpy as np
import pytest

from data_pipelines import cube, sentinel2
from data_pipelines.granule import Granule, build_cube, open_granule
from kerass2 import methods, models, networks, shipped, whole
from kerass2.models import blending
from tests.kerass2 import seams
from tests.kerass2.window_cases import BANDS, RATIOS_60, predict, untrained

# Small forms of every model, with blocks where it has a lattice; windows of WINDOW px are so many
# that borders are everywhere.
CASES: dict[str, dict[str, object]] = {
    "dsen2": {"filters": 12, "blocks": 4},
    "vdsen2": {"filters": 8, "blocks": 8},
    "s2x": {"filters": 12, "blocks": 4, "block": 32},
    "s6x": {"filters": 12, "blocks": 4, "block": 36},
    "bicubic": {},
    "bilinear": {},
}
# All but the classifiers: one that is added later must be a case here too.
SHARPENERS = [name for name in models.MODELS if name not in ("resnet", "wide_resnet")]
TASKS = {"s6x": "superres_60m"}
WINDOW = 36
SCENE = "L1C_s2s_ucnn_usa.npz"
STEPS, BATCH = 100, 8


@pytest.mark.parametrize("name", SHARPENERS)
def test_constant_input_gives_constant_output(name: str) -> None:
    model = untrained(name, **CASES[name])
    cubes = {}
    for key, ratio in RATIOS_60.items():
        dn = np.full((BANDS[key], 108 // ratio, 108 // ratio), 1500, np.uint16)
        cubes[key] = build_cube(dn, sentinel2.bands_at(10 * ratio), 10 * ratio)
    flat = Granule("flat", "flat", "flat", cubes)
    found = predict(networks.build_network(model), flat, core=36)
    assert np.ptp(found, axis=(0, 1)).max() <= 1


# --- real scenes ------------------------------------------------------------------------------


@functools.lru_cache
def read_scene(path: pathlib.Path) -> Granule:
    """A real granule, its pixels in memory."""
    return open_granule(path)


@functools.lru_cache
def train(name: str, path: pathlib.Path) -> keras.Model:
    """A model after some steps on the scene under Wald's protocol, so that all layers take part."""
    keras.utils.set_random_seed(7)
    model = models.build(name, **CASES[name])
    if not model.trainable_variables:
        return model
    task = cube.find_task(TASKS.get(name, "superres_20m"))
    scene = whole.read(read_scene(path), task)
    edge = int(CASES[name].get("block", 32))
    corners = np.random.default_rng(5).integers(
        0, [(n - edge) // 6 for n in scene.valid.shape], (STEPS * BATCH, 2)
    )
    inputs = {}
    for key, degraded in scene.cubes.items():
        ratio = task.ratio(key)
        cuts = [
            degraded[:, y // ratio : (y + edge) // ratio, x // ratio : (x + edge) // ratio]
            for y, x in corners * 6
        ]
        inputs[key] = np.stack(cuts).transpose(0, 2, 3, 1) / np.float32(1e4)
    truth = np.stack([scene.target[y : y + edge, x : x + edge] for y, x in corners * 6])
    model.compile(keras.optimizers.Adam(2e-3), loss="mae")
    taken = {key: inputs[key] for key in models.describe(model)["inputs"]}
    model.fit(taken, {task.name: truth / np.float32(1e4)}, batch_size=BATCH, verbose=0)
    return model


def seams_of(network: networks.Network, given: Granule, edge: int, core: int) -> seams.Seams:
    """Of a prediction in regions of `core` px, at lines `edge` px apart."""
    plain = predict(networks.build_bicubic(network.task), given)
    unit = max(network.ratios.values())
    return seams.measure(predict(network, given, core), plain, unit=unit, edge=edge)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", SHARPENERS)
def test_borders_do_not_show(name: str, shared_data: pathlib.Path) -> None:
    """Windows of some blocks of the lattice, so that borders of windows are borders of blocks."""
    path = shared_data / "sr_scenes" / SCENE
    given, network = read_scene(path), networks.build_network(train(name, path))
    edge, unit = int(CASES[name].get("block", WINDOW)), max(network.ratios.values())
    made = predict(network, given, 3 * edge if "block" in CASES[name] else edge)
    plain = predict(networks.build_bicubic(network.task), given)
    for shift in (0, edge // 2):  # the lattice, and the one that is blended with it
        inside = (slice(shift, None), slice(shift, None))
        found = seams.measure(made[inside], plain[inside], unit=unit, edge=edge)
        assert found.error < 0.04, "too coarse a measure to say anything"
        assert not found.show, (shift, found)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["s2x", "s6x"])
def test_one_lattice_alone_would_show(
    name: str, shared_data: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shared_data / "sr_scenes" / SCENE
    monkeypatch.setattr(blending, "blend", lambda model: model)
    network = networks.build_network(train(name, path))
    edge = int(CASES[name]["block"])
    found = seams_of(network, read_scene(path), edge, 3 * edge)
    assert found.show, found


@pytest.mark.shared_data
@pytest.mark.parametrize("gsd", [20, pytest.param(60, marks=pytest.mark.slow)])
def test_borders_do_not_show_with_published_weights(gsd: int, shared_data: pathlib.Path) -> None:
    """But do where windows have no overlap: the measure sees what it must."""
    model = methods.load(methods.find(shared_data / "weights" / f"dsen2_L1C{gsd}M.npz"))
    given = read_scene(shared_data / "sr_scenes" / "L1C_ssc_cnn_coastal.npz")
    found = seams_of(networks.build_network(model), given, WINDOW, WINDOW)
    assert not found.show, found
    broken = networks.build_network(model, procedure="dsen2", window=WINDOW, border=0)
    found = seams_of(broken, given, WINDOW, 3 * WINDOW)
    assert found.show, found


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("task", ["superres_20m", "superres_60m"])
def test_borders_do_not_show_with_the_weights_that_ship(
    task: str, shared_data: pathlib.Path
) -> None:
    """On a scene that they have not seen."""
    model = models.load_model(shipped.find(task, "L1C"))
    given = read_scene(shared_data / "sr_scenes" / "L1C_ssc_cnn_coastal.npz")
    edge = models.describe(model)["block"]
    found = seams_of(networks.build_network(model), given, edge, 7 * edge)
    assert not found.show, found


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["dsen2", "s2x", "s6x"])
def test_a_broken_halo_shows(name: str, shared_data: pathlib.Path) -> None:
    """Each block by itself, beyond whose edges convolutions see zeros."""
    path = shared_data / "sr_scenes" / SCENE
    edge = int(CASES[name].get("block", WINDOW))
    broken = networks.build_network(train(name, path), procedure="dsen2", window=edge, border=0)
    found = seams_of(broken, read_scene(path), edge, 3 * edge)
    assert found.show, found
