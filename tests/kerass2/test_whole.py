"""Whole scenes under Wald's protocol: against direct forms, with holes, over ranks, real ones."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

import cv2
import keras
import numpy as np
import pytest
from scipy import ndimage
from skimage.metrics import structural_similarity

from data_pipelines import cube, npz, sentinel2, synthetic
from data_pipelines.spec import DataError
from kerass2 import evaluate, methods, models, whole
from strategies.cluster import Cluster
from strategies.single import SingleStrategy

BANDS = sentinel2.BANDS_20M


def write_scene(path: pathlib.Path, cubes: dict[str, np.ndarray]) -> pathlib.Path:
    arrays = {}
    for name, gsd in sentinel2.GSDS.items():
        arrays |= {f"im{gsd}": cubes[name], f"bands{gsd}": np.array(sentinel2.bands_at(gsd))}
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """One scene of 300 px, which no strip of rows divides, one with a hole and a bright spot."""
    folder = tmp_path_factory.mktemp("scenes")
    cubes = synthetic.build_cubes(300, seed=1)
    write_scene(folder / "L1C_plain.npz", cubes)
    cubes = synthetic.build_cubes(120, seed=2)
    cubes["gsd20"][:, 30:40, 10:16] = sentinel2.NO_DATA
    cubes["gsd10"][0, 8, 100] = sentinel2.SATURATED
    write_scene(folder / "L1C_spoilt.npz", cubes)
    return folder


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(1)
    model = models.build("dsen2", filters=8, blocks=1)
    last = model.get_layer("conv_last")
    last.kernel.assign(last.kernel * 0.05)
    return model


def single() -> SingleStrategy:
    return SingleStrategy(Cluster("none"))


def degrade(image: np.ndarray, scale: int) -> np.ndarray:
    """(band, y, x) by scipy, without our filter."""
    blurred = ndimage.gaussian_filter(image.astype(np.float64), (0, 1 / scale, 1 / scale))
    bands, height, width = image.shape
    blocks = blurred.reshape(bands, height // scale, scale, width // scale, scale)
    return blocks.mean(axis=(2, 4))


def test_a_whole_scene_is_scored_as_one_image(scenes: pathlib.Path, model: keras.Model) -> None:
    """RMSE and SSIM of OpenCV's bicubic over all of it, by scikit-image: strips leave no trace."""
    data = whole.open_data(scenes, "superres_20m")
    found = evaluate.evaluate_scenes(data, {"model": model}, single(), view="lattice")
    assert list(found["scenes"]) == ["L1C_plain", "L1C_spoilt"]
    assert (found["split"], found["patches"]) == ("whole scenes", 2)
    result = found["scenes"]["L1C_plain"]["methods"]
    granule = npz.open_scene(scenes / "L1C_plain.npz")
    truth = np.asarray(granule.cubes["gsd20"].data)[:, :150, :150]
    lowres = np.rint(degrade(truth, 2)).astype(np.float32)
    for name, kind in (("bicubic", cv2.INTER_CUBIC), ("bilinear", cv2.INTER_LINEAR)):
        enlarged = np.stack([cv2.resize(b, None, fx=2, fy=2, interpolation=kind) for b in lowres])
        expected = np.sqrt(np.mean((enlarged - truth) ** 2.0, axis=(1, 2)))
        np.testing.assert_allclose(
            [result[name]["rmse"][band] for band in BANDS], expected, rtol=1e-3
        )
        ssim = [
            structural_similarity(
                *(image.astype(np.float64) for image in pair),
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                data_range=10_000,
            )
            for pair in zip(enlarged, truth, strict=True)
        ]
        assert result[name]["ssim"]["mean"] == pytest.approx(np.mean(ssim), rel=1e-4)
        again = (degrade(enlarged, 2) - lowres)[:, 1:-1, 1:-1]
        assert result[name]["consistency"]["mean"] == pytest.approx(
            np.sqrt(np.mean(again**2, axis=(1, 2))).mean(), rel=1e-3
        )


@pytest.mark.parametrize(("view", "edge"), [("lattice", 16), ("dsen2", 16), ("single", 0)])
def test_the_model_sees_the_scene_as_predict_does_or_at_once(
    scenes: pathlib.Path, model: keras.Model, view: str, edge: int
) -> None:
    """Windows are exact: but for the scene's edges it equals one call on the whole image."""
    granule = npz.open_scene(scenes / "L1C_plain.npz")
    scene = whole.read(granule, cube.find_task("superres_20m"))
    assert scene.valid.all()
    predicted = whole._compile(model, view)(scene)
    given = {name: np.moveaxis(c, 0, -1)[None] / np.float32(1e4) for name, c in scene.cubes.items()}
    direct = np.asarray(model(given)["superres_20m"])[0]
    inner = slice(edge, 150 - edge)
    np.testing.assert_allclose(predicted[inner, inner], direct[inner, inner], atol=1e-6)


def test_a_model_of_other_bands_names_both_sides(scenes: pathlib.Path) -> None:
    other = models.build("dsen2", filters=8, blocks=1)
    for layer in other.layers:
        if getattr(layer, "key", "") == "gsd10":
            layer.bands = ("B02", "B03", "B04")
    data = whole.open_data(scenes, "superres_20m")
    with pytest.raises(DataError, match="takes gsd10 B02,B03,B04; scenes have B02,B03,B04,B08"):
        evaluate.evaluate_scenes(data, {"model": other}, single(), view="lattice")


def test_pixels_without_data_count_nowhere(scenes: pathlib.Path, model: keras.Model) -> None:
    granule = npz.open_scene(scenes / "L1C_spoilt.npz")
    scene = whole.read(granule, cube.find_task("superres_20m"))
    hole = np.zeros((60, 60), bool)
    hole[30:40, 10:16] = True
    # Degraded pixels that the hole, or the saturated pixel of 10 m, has blurred into are missing,
    # and with them the pixels that they cover.
    touched = ndimage.binary_dilation(hole, np.ones((5, 5)))
    touched = touched.reshape(30, 2, 30, 2).any(axis=(1, 3)).repeat(2, 0).repeat(2, 1)
    spot = np.zeros((120, 120), bool)
    spot[8, 100] = True
    spot = ndimage.binary_dilation(spot, np.ones((5, 5))).reshape(60, 2, 60, 2).any(axis=(1, 3))
    np.testing.assert_array_equal(scene.valid, ~(touched | hole | spot))
    assert not scene.cubes["gsd20"][:, 15:20, 5:8].any()
    data = whole.open_data(scenes / "L1C_spoilt.npz", "superres_20m")
    found = evaluate.evaluate_scenes(data, {"model": model}, single(), view="lattice")
    assert found["scenes"]["L1C_spoilt"]["pixels"] == scene.valid.sum()
    predicted = 1e4 * whole._compile(model, "lattice")(scene)
    error = (predicted - scene.target)[scene.valid]
    assert found["methods"]["model"]["rmse"]["mean"] == pytest.approx(
        np.sqrt(np.mean(error**2.0, axis=0)).mean(), rel=1e-5
    )
    assert np.isfinite(found["methods"]["model"]["consistency"]["mean"])


class Rank(SingleStrategy):
    """One of several ranks, played one after the other; `others` adds up their sums."""

    def __init__(self, rank: int, world_size: int, others: list[np.ndarray]) -> None:
        super().__init__(Cluster("none"))
        self.rank, self.world_size, self.others = rank, world_size, others

    def sum(self, values: np.ndarray) -> np.ndarray:
        self.others.append(values)
        return np.sum(self.others, axis=0)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_scenes(scenes: pathlib.Path, model: keras.Model, ranks: int) -> None:
    """The last of three has none, and calls the one collective all the same."""
    data = whole.open_data(scenes, "superres_20m")
    expected = evaluate.evaluate_scenes(data, {"model": model}, single(), view="lattice")
    sums: list[np.ndarray] = []
    for rank in range(ranks):
        found = evaluate.evaluate_scenes(
            data, {"model": model}, Rank(rank, ranks, sums), view="lattice"
        )
    assert [len(sums), len({vector.size for vector in sums})] == [ranks, 1]
    assert found["scenes"].keys() == expected["scenes"].keys()
    for method, values in expected["methods"].items():
        for metric, numbers in values.items():
            assert found["methods"][method][metric] == pytest.approx(numbers, rel=1e-9)


def test_scenes_that_do_not_do(tmp_path: pathlib.Path, scenes: pathlib.Path) -> None:
    cubes = synthetic.build_cubes(60)
    write_scene(tmp_path / "small.npz", cubes)
    with pytest.raises(DataError, match="6 x 6 px of 60 m can be compared; at least 11 x 11"):
        whole.open_data(tmp_path / "small.npz", "superres_60m")
    with pytest.raises(DataError, match="not found"):
        whole.open_data(tmp_path / "nowhere", "superres_20m")
    data = whole.open_data(scenes, "superres_20m")
    with pytest.raises(DataError, match="whole scenes have no split 'test' of patches"):
        data.open("test")


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "gsd"),
    [
        ("L1C_s2s_ucnn_australia", 20),
        ("L1C_s2s_ucnn_australia", 60),
        ("L2A_hydro_patch_0", 20),
        pytest.param("L1C_s2s_ucnn_usa", 20, marks=pytest.mark.slow),
        pytest.param("L1C_s2s_ucnn_iceland", 20, marks=pytest.mark.slow),
        pytest.param("L1C_ssc_cnn_coastal", 20, marks=pytest.mark.slow),
        pytest.param("L1C_ssc_cnn_coastal", 60, marks=pytest.mark.slow),
        pytest.param("L1C_S2A_20170527_T33UUB_dsen2demo", 20, marks=pytest.mark.slow),
        pytest.param("L1C_S2A_20170527_T33UUB_dsen2demo", 60, marks=pytest.mark.slow),
    ],
)
def test_dsen2_on_a_real_scene_by_the_command(
    shared_data: pathlib.Path,
    tmp_path: pathlib.Path,
    run_command: Callable,
    name: str,
    gsd: int,
) -> None:
    """Published weights, from the command line, within 1 % of the reference in every band."""
    weights = shared_data / "weights" / f"dsen2_{name[:3]}{gsd}M.npz"
    scene, output = shared_data / "sr_scenes" / f"{name}.npz", tmp_path / "found.json"
    done = run_command("evaluate", weights, "--data", scene, "--whole", "single", "-o", output)
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    rows = json.loads((shared_data / "sr_reference" / "dsen2_wald_reference.json").read_text())
    expected = next(row for row in rows if row["name"] == name)[f"wald{gsd}_rmse_dsen2"]
    values = found["methods"]["model"]["rmse"]
    bands = sentinel2.bands_at(gsd)
    np.testing.assert_allclose([values[band] for band in bands], expected, rtol=0.01)
    assert "warning" not in done.stderr
    assert list(found["methods"]) == [*methods.BASELINES, methods.SPLINE, "model"]
