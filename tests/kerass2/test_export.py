"""kerass2.export: each format gives the model's values in its own runtime, and says what it is."""

from __future__ import annotations

import importlib
import json
import os
import pathlib

import keras
import numpy as np
import pystac
import pytest
from pystac.extensions.mlm import MLMExtension

from data_pipelines.spec import DataError
from kerass2 import export, export_formats, models, shipped, tiling
from kerass2.config import ConfigError
from kerass2.models import labels

CLASSES = tuple(f"Class {number}, of 19" for number in range(19))
# Small networks of every kind, with attention on a lattice of blocks that does not divide the size.
NETWORKS = {
    "s2x": {"filters": 8, "blocks": 2, "block": 16},
    "s6x": {"filters": 8, "blocks": 2, "block": 12},
    "dsen2": {"filters": 8, "blocks": 1},
    "resnet": {"depth": 10, "width": 4, "classes": 19, "inputs": "native"},
}
# onnx is not in the tested lock's extras: `make test-backends` has it.
KINDS = [
    pytest.param(kind, marks=pytest.mark.backends) if kind == "onnx" else kind
    for kind in export.FORMATS
]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, pathlib.Path]:
    """A .keras file of each network, weights drawn, nothing left at its starting 0."""
    found = {}
    for name, options in NETWORKS.items():
        model = models.build(name, **options)
        random = np.random.default_rng(1)
        for variable in model.variables:
            value = np.asarray(variable)
            if not value.any():
                spread = 0.1 if "variance" not in variable.name else 0.0
                variable.assign(value + random.uniform(0.05, 0.05 + spread, value.shape))
        layer = labels.find(model)
        if layer is not None:
            layer.classes = CLASSES
        found[name] = tmp_path_factory.mktemp(name) / f"{name}.keras"
        model.save(found[name])
    return found


def draw(about: dict, edge: int, batch: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(edge)
    finest = min(each["gsd"] for each in about["inputs"].values())
    shape = {
        name: 2 * (round(edge * finest / each["gsd"]),) for name, each in about["inputs"].items()
    }
    return {
        name: random.uniform(0.0, 0.6, (batch, *shape[name], len(each["bands"]))).astype("f4")
        for name, each in about["inputs"].items()
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_another_runtime_gives_the_models_values(
    files, tmp_path: pathlib.Path, name: str, kind: str
) -> None:
    """Of other batches and, where the format is free in it, sizes than those that it has checked.

    Sizes that blocks do not divide too.
    """
    about = export.export(files[name], tmp_path / "out", kind)
    assert about["difference"] is not None
    model = models.load_model(files[name])
    form = export_formats.FORMATS[kind]
    run = form.open(tmp_path / "out" / form.file)
    sizes = (about["size"],) if kind == "tflite" else (60, 84)
    for edge, batch in zip(sizes, (3, 1), strict=False):
        given = draw(about, edge, batch)
        expected, found = tiling.compile_prediction(model)(given), run(given)
        assert set(expected) == set(found) == set(about["outputs"])
        for output, array in expected.items():
            np.testing.assert_allclose(found[output], array, rtol=0, atol=1e-4)


@pytest.mark.backends
def test_onnx_speaks_for_itself(files, tmp_path: pathlib.Path) -> None:
    """Without kerass2: names, free sizes, band order."""
    onnxruntime = importlib.import_module("onnxruntime")
    export.export(files["s2x"], tmp_path / "out", "onnx")
    session = onnxruntime.InferenceSession(
        str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    shapes = {each.name: each.shape for each in session.get_inputs()}
    assert {name: shape[-1] for name, shape in shapes.items()} == {"gsd10": 4, "gsd20": 6}
    assert all(not isinstance(size, int) for shape in shapes.values() for size in shape[:3])
    assert [each.name for each in session.get_outputs()] == ["superres_20m"]
    told = json.loads(session.get_modelmeta().custom_metadata_map["kerass2"])
    assert told["inputs"]["gsd10"]["bands"] == ["B02", "B03", "B04", "B08"]


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_size_that_is_given_is_kept(files, tmp_path: pathlib.Path, kind: str) -> None:
    about = export.export(files["s6x"], tmp_path / "out", kind, size=24)
    shapes = {name: each["shape"] for name, each in about["inputs"].items()}
    assert shapes == {"gsd10": (24, 24, 4), "gsd20": (12, 12, 6), "gsd60": (4, 4, 2)}
    form = export_formats.FORMATS[kind]
    given = draw(about, 24, 2)
    found = form.open(tmp_path / "out" / form.file)(given)["superres_60m"]
    expected = models.load_model(files["s6x"])(given)["superres_60m"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


# --- card and item ------------------------------------------------------------------------------


def test_the_item_is_read_by_pystac(files, tmp_path: pathlib.Path) -> None:
    about = export.export(files["resnet"], tmp_path / "out", "keras")
    item = pystac.Item.from_file(str(tmp_path / "out" / "item.json"))
    told = MLMExtension.ext(item)
    assert (told.mlm_name, told.architecture, told.framework) == ("resnet", "resnet10", "Keras")
    assert told.framework_version == keras.__version__
    assert told.total_parameters == about["parameters"]
    assert [each.name for each in told.input] == ["gsd10", "gsd20", "gsd60"]
    assert told.input[1].bands == ["B05", "B06", "B07", "B8A", "B11", "B12"]
    assert told.input[1].input.shape == [-1, -1, -1, 6]
    assert told.input[1].value_scaling.value == 10_000
    outputs = {each.name: each for each in told.output}
    assert outputs["probability"].result.shape == [-1, 19]
    assert [each.title for each in outputs["labels"].classes] == list(CLASSES)
    asset = item.assets["model"]
    assert asset.extra_fields["mlm:artifact_type"] == "keras" and "mlm:model" in asset.roles
    assert [band["name"] for band in asset.extra_fields["bands"]][:2] == ["B02", "B03"]
    for each in item.assets.values():
        assert (tmp_path / "out" / each.href).is_file()


def test_the_item_is_valid(files, tmp_path: pathlib.Path) -> None:
    """By STAC's own schema, which pystac brings, and by what the extension's tables ask."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed (dev)")
    schema = json.loads((pathlib.Path(__file__).parent / "mlm_schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    for name in ("s6x", "resnet"):
        export.export(files[name], tmp_path / name, "keras")
        item = json.loads((tmp_path / name / "item.json").read_text())
        stac = importlib.import_module("pystac.validation").JsonSchemaSTACValidator()
        stac.validate_core(item, pystac.STACObjectType.ITEM, item["stac_version"])
        assert [error.message for error in check.iter_errors(item)] == []
    item["properties"]["mlm:tasks"] = ["guessing"]
    item["assets"]["model"].pop("mlm:artifact_type")
    del item["properties"]["mlm:output"][0]["result"]["dim_order"]
    assert {error.json_path for error in check.iter_errors(item)} == {
        "$.assets.model",
        "$.properties['mlm:output'][0].result",
        "$.properties['mlm:tasks'][0]",
    }


def test_the_card_of_shipped_weights_goes_along(tmp_path: pathlib.Path) -> None:
    about = export.export(shipped.find("superres_20m"), tmp_path / "out", "keras")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("# superres_20m_L1C (keras)\n")
    for text in ("B05, B06, B07, B8A, B11, B12", "## Data", "CC BY 4.0", about["digest"]):
        assert text in card
    assert card.count("\n# ") == 0


# --- what is refused ----------------------------------------------------------------------------


def test_outputs_are_not_overwritten_unasked(files, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("")
    with pytest.raises(DataError, match="out: exists; give --overwrite"):
        export.export(files["dsen2"], out, "keras")
    with pytest.raises(DataError, match=r"out: has no item\.json, so it is no export"):
        export.export(files["dsen2"], out, "keras", overwrite=True)
    assert os.listdir(out) == ["precious"]
    (out / "precious").rename(out / "item.json")
    export.export(files["dsen2"], out, "keras", overwrite=True)
    assert sorted(os.listdir(out)) == ["README.md", "item.json", "model.keras"]
    assert os.listdir(tmp_path) == ["out"]


def test_wrong_values_leave_nothing(files, tmp_path: pathlib.Path, monkeypatch) -> None:
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(DataError, match=r"model\.keras: its runtime gives values that differ by"):
        export.export(files["dsen2"], tmp_path / "out", "keras")
    assert os.listdir(tmp_path) == []


def test_a_size_that_does_not_fit_is_refused(files, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match=r"--size 20: gsd60 would have 3\.33\d* px; a multiple"):
        export.export(files["s6x"], tmp_path / "out", "keras", size=20)


def test_missing_modules_are_named(files, tmp_path: pathlib.Path, monkeypatch) -> None:
    monkeypatch.setattr(export_formats, "_is_there", lambda name: name != "tf2onnx")
    with pytest.raises(DataError, match=r"onnx: tf2onnx is not installed: pip .*kerass2\[export\]"):
        export.export(files["dsen2"], tmp_path / "out", "onnx")


def test_formats_on_the_command_line_are_those_there() -> None:
    assert tuple(export_formats.FORMATS) == export.FORMATS


def test_the_command(files, tmp_path: pathlib.Path, run_command) -> None:
    done = run_command("export", files["dsen2"], "--format", "savedmodel", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "checked: at most" in done.stdout
    assert (tmp_path / "out" / "saved_model" / "saved_model.pb").is_file()
