"""tensorflow, jax and torch: the same commands, weight files and numbers (`make test-backends`)."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import rasterio

from data_pipelines.nomenclature import class_names
from kerass2 import backend, label_losses, losses, models
from kerass2.config import ConfigError
from kerass2.models import labels

HERE = pathlib.Path(__file__).parent
OTHERS = ("jax", "torch")
# Every model of the table, small.
MODELS: dict[str, dict] = {
    "s2x": {"filters": 8, "blocks": 2},
    "s2x_blocks": {"filters": 8, "blocks": 2, "block": 16},
    "s6x": {"filters": 8, "blocks": 2, "block": 12},
    "dsen2": {"filters": 8, "blocks": 1},
    "vdsen2": {"filters": 8, "blocks": 2},
    "bicubic": {},
    "bilinear": {},
    "resnet": {"depth": 10, "width": 4, "classes": 43},
    "wide_resnet": {"depth": 10, "width": 1, "classes": 19},
}
EDGE = 36


def write_models(folder: pathlib.Path) -> None:
    """Models with weights of which none is 0, and an input for each."""
    (folder / "models").mkdir()
    random, arrays = np.random.default_rng(0), {}
    for name, options in MODELS.items():
        model = models.build(name.removesuffix("_blocks"), **options)
        for variable in model.variables:
            if not np.asarray(variable).any():
                variable.assign(random.uniform(0.01, 0.1, variable.shape))
        layer = labels.find(model)
        if layer is not None:
            layer.classes = class_names(layer.num_classes)
        model.save(folder / "models" / f"{name}.keras")
        told = models.describe(model)
        for key, bands in told["inputs"].items():
            edge = EDGE * 10 // round(told["gsd"][key])
            arrays[f"{name}/{key}"] = random.uniform(0, 0.6, (2, edge, edge, len(bands)))
    np.savez(folder / "arrays.npz", **{key: a.astype("f4") for key, a in arrays.items()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory, prepared, granule_folder, run_command) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("backends")
    write_models(folder)
    (folder / "images").symlink_to(prepared)
    (folder / "granule").symlink_to(granule_folder)
    made = run_command(
        *("prepare", "synthetic:60", "--task", "bigearthnet", "-o", folder / "labels")
    )
    assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture(scope="module")
def results(folder) -> dict[str, pathlib.Path]:
    """Backend -> folder of what it came to; all that are installed run side by side."""
    there = [name for name in backend.STEPS if importlib.util.find_spec(name) is not None]
    runs = {
        name: subprocess.Popen(
            [sys.executable, HERE / "backend_run.py", folder, name],
            env={**os.environ, "KERAS_BACKEND": name},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in there
    }
    texts = {name: run.communicate(timeout=500)[0] for name, run in runs.items()}
    for name, run in runs.items():
        assert run.returncode == 0, f"{name}: {texts[name][-4000:]}"
    return {name: folder / name for name in there}


def pair(results: dict[str, pathlib.Path], other: str) -> tuple[pathlib.Path, pathlib.Path]:
    if other not in results:
        pytest.skip(f"{other} is not installed (pip install kerass2[{other}])")
    return results["tensorflow"], results[other]


@pytest.mark.backends
@pytest.mark.parametrize("other", OTHERS)
def test_every_model_gives_the_same_output(results, other: str) -> None:
    ours, theirs = (np.load(path / "outputs.npz") for path in pair(results, other))
    assert {name.removesuffix("_blocks") for name in MODELS} == set(models.MODELS)
    names = {name for name in ours.files if name.split("/")[0] in MODELS}
    assert {name.split("/")[0] for name in names} == set(MODELS)
    for name in names:
        np.testing.assert_allclose(theirs[name], ours[name], rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.backends
@pytest.mark.parametrize("other", OTHERS)
def test_every_loss_is_the_same(results, other: str) -> None:
    ours, theirs = (np.load(path / "outputs.npz") for path in pair(results, other))
    names = {name for name in ours.files if name.startswith("losses/")}
    assert {f"losses/{name}" for name in (*losses.LOSSES, *label_losses.LABEL_LOSSES)} < names
    for name in names:
        assert ours[name].shape == (3,) and (ours[name] > 0).all()
        np.testing.assert_allclose(theirs[name], ours[name], rtol=1e-4, err_msg=name)


@pytest.mark.backends
@pytest.mark.parametrize("run", ["s2x", "resnet"])
@pytest.mark.parametrize("other", OTHERS)
def test_twenty_steps_give_the_same_losses(results, other: str, run: str) -> None:
    """By `fit --init`: the same weights and batches; average, accumulation and batch norm in it."""
    curves = []
    for path in pair(results, other):
        lines = map(json.loads, (path / run / "log.jsonl").read_text().splitlines())
        curves.append([line["loss"] for line in lines if "loss" in line])
    ours, theirs = map(np.array, curves)
    assert len(ours) == 20 and ours[-5:].mean() < ours[:5].mean()
    np.testing.assert_allclose(theirs, ours, rtol=1e-3)


@pytest.mark.backends
@pytest.mark.parametrize("run", ["s2x", "resnet"])
@pytest.mark.parametrize("other", OTHERS)
def test_trained_models_are_the_same(results, other: str, run: str) -> None:
    ours, theirs = (models.load_model(path / run / "model.keras") for path in pair(results, other))
    for one, two in zip(ours.variables, theirs.variables, strict=True):
        one, two = np.asarray(one), np.asarray(two)
        assert np.linalg.norm(two - one) <= 1e-2 * np.linalg.norm(one) + 1e-5


@pytest.mark.backends
@pytest.mark.parametrize("other", OTHERS)
def test_scores_and_rasters_are_the_same(results, other: str) -> None:
    ours, theirs = pair(results, other)
    one, two = (json.loads((path / "evaluation.json").read_text()) for path in (ours, theirs))
    for method in ("model", "bicubic"):
        for metric, values in one["methods"][method].items():
            for band, value in values.items():
                found = two["methods"][method][metric][band]
                assert found == pytest.approx(value, rel=1e-4, abs=1e-4), (method, metric, band)
    one, two = (json.loads((path / "labels.json").read_text()) for path in (ours, theirs))
    for method, found in one["methods"].items():
        for average, value in found["average_precision"].items():
            assert two["methods"][method]["average_precision"][average] == pytest.approx(
                value, abs=1e-3
            )
    with rasterio.open(ours / "sharp.tif") as a, rasterio.open(theirs / "sharp.tif") as b:
        assert np.abs(a.read().astype(int) - b.read().astype(int)).max() <= 1


@pytest.mark.backends
@pytest.mark.parametrize("optimizer", ["adam", "nadam", "sgd", "lars", "lamb"])
@pytest.mark.parametrize("other", OTHERS)
def test_steps_draw_other_weights_but_are_the_same_in_size(
    results, other: str, optimizer: str
) -> None:
    """Backends draw other random numbers: that all of it runs, backend_run.py has asserted."""
    ours, theirs = (
        np.load(path / "outputs.npz")[f"steps/{optimizer}"] for path in pair(results, other)
    )
    assert ours.shape == theirs.shape and np.isfinite(theirs).all()


@pytest.mark.backends
@pytest.mark.parametrize("name", backend.STEPS)
def test_a_profile_is_written_by_each(results, name: str) -> None:
    files = {"tensorflow": "plugins/profile/*/*.xplane.pb", "torch": "*.pt.trace.json"}
    if name not in results:
        pytest.skip(f"{name} is not installed (pip install kerass2[{name}])")
    folder = results[name] / "s2x" / "tensorboard"
    (trace,) = folder.glob(files.get(name, files["tensorflow"]))
    assert trace.stat().st_size > 10_000


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", OTHERS)
def test_ranks_are_tensorflows(monkeypatch, name: str) -> None:
    monkeypatch.setattr(backend, "find", lambda: name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: module)
    backend.check("single")
    with pytest.raises(ConfigError, match=rf"KERAS_BACKEND={name} with --strategy horovod: .*sing"):
        backend.check("horovod")


def test_a_backend_that_is_missing_is_named(monkeypatch) -> None:
    monkeypatch.setattr(backend, "find", lambda: "jax")
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(ConfigError, match=r"jax is not installed: pip install 'kerass2\[jax\]'"):
        backend.check()


def test_the_command_says_what_works(run_command, tmp_path: pathlib.Path) -> None:
    done = run_command(
        *("fit", "--strategy", "multiworker", "--workdir", tmp_path / "run"), KERAS_BACKEND="numpy"
    )
    assert done.returncode == 2
    assert done.stderr == "error: KERAS_BACKEND=numpy: there are tensorflow, jax, torch\n"


def test_the_backend_is_found_as_keras_finds_it(monkeypatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    assert backend.find() == "tensorflow"
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    assert backend.find() == "torch"
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert backend.find() == "jax"


def test_keras_takes_no_other_libraries_along(tmp_path: pathlib.Path) -> None:
    """kerass2.predict has no use for them, and its memory is promised; they can be had later."""
    arguments = ["--bicubic", "synthetic", "--roi", "0,0,120,120", "-o", str(tmp_path / "out.tif")]
    code = (
        "import sys\n"
        "from kerass2 import backend, predict\n"
        f"predict.main({arguments}, standalone_mode=False)\n"
        "assert 'keras' in sys.modules\n"
        "print([name for name in backend.TAKEN_ALONG if name in sys.modules])\n"
        "import cv2, matplotlib.pyplot, sklearn\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n[]\n")
