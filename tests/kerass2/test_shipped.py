"""Weights that come with the package: chosen by task and level, small, and as good as they say."""

from __future__ import annotations

import json
import pathlib
import shutil
import sys
from collections.abc import Callable

import keras
import numpy as np
import pytest
import rasterio

from data_pipelines import sentinel2, synthetic, synthetic_product
from data_pipelines.spec import DataError
from kerass2 import (
    card,
    card_records,
    cli,
    evaluate,
    inputs,
    models,
    predict,
    report,
    scores,
    shipped,
    whole,
)
from kerass2.job import Init
from strategies.cluster import Cluster
from strategies.single import SingleStrategy

FILES = sorted(shipped.FOLDER.glob("*.keras"))
Run = Callable[..., tuple[int, str, str]]


def stand_in(path: pathlib.Path, task: str, strength: float) -> pathlib.Path:
    """A small untrained model, near to bilinear interpolation."""
    keras.utils.set_random_seed(1)
    model = models.build("dsen2", filters=8, blocks=1, task=task)
    last = model.get_layer("conv_last")
    last.kernel.assign(last.kernel * strength)
    model.save(path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder like kerass2/weights, L1C only."""
    folder = tmp_path_factory.mktemp("weights")
    for gsd in (20, 60):
        stand_in(folder / f"superres_{gsd}m_L1C.keras", f"superres_{gsd}m", 0.05)
    return folder


@pytest.fixture
def own(weights: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Stand-ins in the place of the package's weights."""
    monkeypatch.setattr(shipped, "FOLDER", weights)
    return weights


@pytest.fixture
def both(
    weights: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> pathlib.Path:
    """The same with weights for L2A beside them, of other values."""
    folder = tmp_path / "both"
    folder.mkdir()
    for path in weights.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    stand_in(folder / "superres_20m_L2A.keras", "superres_20m", 0.2)
    monkeypatch.setattr(shipped, "FOLDER", folder)
    return folder


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """A product of each level around the same pixels."""
    cubes = synthetic.build_cubes(120, seed=4)
    return {
        level: synthetic_product.write_product(
            tmp_path_factory.mktemp(level), cubes, level=level, synthetic=False
        )
        for level in ("L1C", "L2A")
    }


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """A command as `python -m` runs it, in this process: (exit code, stdout, stderr)."""

    def call(command: object, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kerass2", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.run(command)
        captured = capfd.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return call


def read(path: pathlib.Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return np.asarray(file.read())


def test_found_by_task_and_level(both: pathlib.Path) -> None:
    assert shipped.names() == ["superres_20m_L1C", "superres_20m_L2A", "superres_60m_L1C"]
    for task, level, name in (
        ("superres_20m", "L1C", "superres_20m_L1C"),
        ("superres_20m", "L2A", "superres_20m_L2A"),
        ("superres_20m", None, "superres_20m_L1C"),
        ("superres_60m", "L2A", "superres_60m_L1C"),
    ):
        assert shipped.find(task, level) == both / f"{name}.keras"
    with pytest.raises(DataError, match=r"no weights for patches .*superres_20m_L2A, .*give MODEL"):
        shipped.find("patches")
    assert inputs.find_model("superres_20m_L2A") == both / "superres_20m_L2A.keras"


def test_a_command_line_with_and_without_a_model(
    own: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "experiment.json").touch()
    (tmp_path / "product.SAFE").mkdir()
    np.savez(tmp_path / "dsen2.npz", conv00_bias=np.zeros(8))
    np.savez(tmp_path / "scene.npz", im10=np.zeros(8))
    for words, model, sources in (
        (["product.SAFE"], None, ["product.SAFE"]),
        (["product.SAFE", "product.SAFE"], None, ["product.SAFE", "product.SAFE"]),
        (["sample", "product.SAFE"], None, ["sample", "product.SAFE"]),
        (["nowhere.zip"], None, ["nowhere.zip"]),
        (["nowhere", "product.SAFE"], "nowhere", ["product.SAFE"]),
        (["nowhere.SAFE", "product.SAFE"], None, ["nowhere.SAFE", "product.SAFE"]),
        (["run", "product.SAFE"], "run", ["product.SAFE"]),
        (["m.keras", "product.SAFE"], "m.keras", ["product.SAFE"]),
        (["superres_60m_L1C", "product.SAFE"], "superres_60m_L1C", ["product.SAFE"]),
        (["run"], "run", []),
        (["dsen2.npz", "product.SAFE"], "dsen2.npz", ["product.SAFE"]),
        (["scene.npz", "product.SAFE"], None, ["scene.npz", "product.SAFE"]),
    ):
        found, rest = shipped.split(list(map(pathlib.Path, words)))
        assert (found and str(found), list(map(str, rest))) == (model, sources)


def test_predict_without_a_model(
    own: pathlib.Path, products: dict[str, pathlib.Path], run: Run, tmp_path: pathlib.Path
) -> None:
    product, bare, named = products["L1C"], tmp_path / "bare.tif", tmp_path / "named.tif"
    code, _, err = run(predict.main, product, "-o", bare)
    assert code == 0, err
    assert err == "weights: superres_20m_L1C, which come with kerass2\n"
    assert run(predict.main, own / "superres_20m_L1C.keras", product, "-o", named)[0] == 0
    np.testing.assert_array_equal(read(bare), read(named))
    code, _, err = run(predict.main, product, "-o", tmp_path / "all.tif", "--bands", "all")
    assert code == 0, err
    assert "weights: superres_20m_L1C, superres_60m_L1C, which" in err
    assert read(tmp_path / "all.tif").shape == (12, 120, 120)
    lazy = predict.predict_granule(product, bands=("B05", "B09"))
    with rasterio.open(tmp_path / "all.tif") as file:
        whole_cube = dict(zip(file.descriptions, file.read(), strict=True))
    for band in ("B05", "B09"):
        assert np.abs(lazy[band].values.astype(int) - whole_cube[band]).max() <= 1
    code, _, err = run(predict.main, own / "superres_20m_L1C.keras", "-o", bare)
    assert code == 2
    assert "expected an INPUT behind the model" in err


def test_each_level_has_its_weights(
    both: pathlib.Path, products: dict[str, pathlib.Path], run: Run, tmp_path: pathlib.Path
) -> None:
    """Where there are none for the level, L1C's, with a warning."""
    for level in ("L1C", "L2A"):
        bare, named = tmp_path / f"{level}.tif", tmp_path / f"{level}_named.tif"
        code, _, err = run(predict.main, products[level], "-o", bare)
        assert (code, err) == (0, f"weights: superres_20m_{level}, which come with kerass2\n")
        assert run(predict.main, f"superres_20m_{level}", products[level], "-o", named)[0] == 0
        np.testing.assert_array_equal(read(bare), read(named))
    assert (read(tmp_path / "L1C.tif") != read(tmp_path / "L2A.tif")).any()
    renamed = tmp_path / "product.SAFE"
    shutil.copytree(products["L2A"], renamed)
    code, _, err = run(predict.main, renamed, "-o", tmp_path / "xml.tif")
    assert (code, "superres_20m_L2A" in err) == (0, True)
    code, _, err = run(predict.main, *products.values(), "-o", tmp_path / "out")
    assert code == 1
    assert "weights differ; sharpen them by two commands" in err
    (both / "superres_20m_L2A.keras").unlink()
    code, _, err = run(predict.main, *products.values(), "-o", tmp_path / "out")
    assert code == 0, err
    assert "was trained on L1C" in err
    with pytest.warns(UserWarning, match="was trained on L1C"):
        predict.predict_granule(products["L2A"])


def test_without_weights_the_message_says_so(
    tmp_path: pathlib.Path,
    products: dict[str, pathlib.Path],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    code, _, err = run(predict.main, products["L1C"], "-o", tmp_path / "out.tif")
    assert code == 1
    assert err.startswith("error: no weights for superres_20m come with this package")
    assert err.count("\n") == 1


def test_evaluate_without_a_model(own: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The data's task decides; nothing is written into the package."""
    arrays = {}
    for name, image in synthetic.build_cubes(120, seed=2).items():
        gsd = sentinel2.GSDS[name]
        arrays |= {f"im{gsd}": image, f"bands{gsd}": np.array(sentinel2.bands_at(gsd))}
    np.savez(tmp_path / "L1C_scene.npz", **arrays)
    before = sorted(own.iterdir())
    job = evaluate.check(None, data=str(tmp_path / "L1C_scene.npz"), whole="lattice")
    assert (job.methods[0].file, job.output) == (own / "superres_20m_L1C.keras", None)
    assert job.methods[0].levels == ("L1C",)
    found = evaluate.evaluate(job, SingleStrategy(Cluster("none")))
    assert found["scenes"]["L1C_scene"]["methods"].keys() >= {"cubic_spline", "model"}
    assert sorted(own.iterdir()) == before


# --- the weights that are there ------------------------------------------------------------------


def test_weights_for_both_levels_come_with_the_package() -> None:
    names = {f"superres_{gsd}m_{level}" for gsd in (20, 60) for level in ("L1C", "L2A")}
    assert set(shipped.names()) >= names


@pytest.mark.parametrize("gsd", [20, 60])
def test_weights_for_l2a_started_from_l1cs_and_are_better(gsd: int) -> None:
    """On a scene that neither saw."""
    facts = json.loads((shipped.FOLDER / f"superres_{gsd}m_L2A.json").read_text())
    name = f"superres_{gsd}m_L1C"
    start = json.loads((shipped.FOLDER / f"{name}.json").read_text())
    assert facts["trained"]["init"]["path"] == f"{name}.keras"
    assert facts["trained"]["init"]["scenes"] == start["trained"]["scenes"]
    for values in facts["held_out"].values():
        assert values["data"]["level"] == "L2A"
        rmse = {method: found["rmse"]["mean"] for method, found in values["methods"].items()}
        assert rmse["model"] < rmse[name]


def test_each_is_small_and_has_its_card() -> None:
    assert FILES
    table = card_records.read_sources(shipped.SOURCES)
    for path in FILES:
        assert path.stat().st_size <= 2_000_000
        model = models.load_model(path)
        assert model.count_params() <= 500_000
        assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
        facts = json.loads(path.with_suffix(".json").read_text())
        (level,) = facts["levels"]
        assert facts["name"] == path.stem == f"{models.describe(model)['task']}_{level}"
        assert facts["digest"] == Init.of(path).digest
        text = path.with_suffix(".md").read_text()
        assert text == card.render(facts)
        for row in facts["data"]:
            assert row["use"] == card_records.TRAINING
            assert row["licence"] in text
            assert row["attribution"] in text
        assert facts["held_out"]
        for scene, values in facts["held_out"].items():
            assert scene not in facts["trained"]["scenes"]
            assert card_records.find_scene(table, scene, path).licence in text
            rmse = {method: found["rmse"]["mean"] for method, found in values["methods"].items()}
            assert rmse["model"] < rmse["cubic_spline"]
            assert all(report.number(value) in text for value in rmse.values())


@pytest.mark.shared_data
def test_scenes_not_trained_on_score_as_the_card_says(shared_data: pathlib.Path) -> None:
    assert FILES
    for path in FILES:
        facts = json.loads(path.with_suffix(".json").read_text())
        for scene, values in facts["held_out"].items():
            data = whole.open_data(shared_data / "sr_scenes" / f"{scene}.npz", facts["task"])
            found = scores.evaluate_scenes(
                data,
                {"model": models.load_model(path)},
                SingleStrategy(Cluster("none")),
                view=values["view"],
            )
            said = values["methods"]["model"]["rmse"]["mean"]
            assert found["methods"]["model"]["rmse"]["mean"] <= 1.01 * said
