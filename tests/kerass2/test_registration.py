"""Saved models open after `import kerass2`; files that would run code of their own do not."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest

from data_pipelines.spec import DataError
from kerass2 import layerwise, models, optimizers, registration, schedules, shipped
from kerass2.models import labels, layers, normalization

MODULES = (layerwise, labels, layers, normalization, optimizers, schedules)

OPEN = """
import sys
{first}
import {second}
assert ("keras" in sys.modules) == ("keras" == {second!r} or {first!r} == "import keras")
import keras
model = keras.models.load_model(sys.argv[1])
assert model.count_params() == int(sys.argv[2])
again = keras.models.clone_model(model)
"""


def test_the_table_is_what_the_modules_register() -> None:
    ours = {
        name.removeprefix("kerass2>"): found.__module__
        for name, found in keras.saving.get_custom_objects().items()
        if name.startswith("kerass2>") and isinstance(found, type)
    }
    assert len(MODULES) == len(set(ours.values()))
    assert ours == registration.CLASSES


@pytest.mark.parametrize("first", ["pass", "import keras"])
def test_keras_opens_our_files_after_import_kerass2(first: str) -> None:
    """Whichever of the two is imported first; of a plain `import kerass2` Keras is no part."""
    path = shipped.find("superres_20m")
    count = models.load_model(path).count_params()
    done = subprocess.run(
        [sys.executable, "-c", OPEN.format(first=first, second="kerass2"), path, str(count)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_somebody_may_look_whether_there_is_keras() -> None:
    """TensorFlow does: the stand-ins still come with the import."""
    script = (
        "import importlib.util, kerass2; importlib.util.find_spec('keras'); "
        "import keras; from kerass2 import registration; "
        "assert isinstance(keras.saving.get_registered_object('kerass2>Upsample'), "
        "registration.StandIn)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_our_own_modules_may_import_keras_first() -> None:
    """The stand-ins come while a module that holds some of the classes is being imported."""
    script = (
        "import kerass2.models.normalization as ours, keras; "
        "assert keras.saving.get_registered_object('kerass2>SyncBatchNormalization') is "
        "ours.SyncBatchNormalization; "
        "from kerass2 import registration; "
        "assert isinstance(keras.saving.get_registered_object('kerass2>Upsample'), "
        "registration.StandIn)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


# --- what is refused ----------------------------------------------------------------------------


def write_small(path: pathlib.Path, middle: keras.layers.Layer) -> pathlib.Path:
    inputs = keras.Input((4,))
    keras.Model(inputs, keras.layers.Dense(2)(middle(inputs))).save(path)
    return path


def rewrite(path: pathlib.Path, change) -> pathlib.Path:
    """The file with another config.json."""
    other = path.with_name("other.keras")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(other, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, change(data) if name == "config.json" else data)
    return other


def test_a_lambda_is_refused_and_not_run(tmp_path: pathlib.Path) -> None:
    mark = tmp_path / "mark"
    code = f"lambda x: (open({str(mark)!r}, 'w').close(), x)[1]"
    bad = keras.layers.Lambda(eval(code), output_shape=(4,), name="bad")
    path = write_small(tmp_path / "lambda.keras", bad)
    x = np.ones((1, 4), np.float32)
    keras.models.load_model(path, safe_mode=False)(x)
    assert mark.exists()  # so it would
    mark.unlink()
    with pytest.raises(DataError, match=r"lambda\.keras: refused: layer 'bad' is a Lambda, code"):
        models.load_model(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("module", "name"), [("os", "system"), ("subprocess", "Popen"), ("tests.evil", "Layer")]
)
def test_functions_of_other_modules_are_refused(
    tmp_path: pathlib.Path, module: str, name: str
) -> None:
    path = write_small(tmp_path / "m.keras", keras.layers.Activation("relu", name="gate"))

    def change(data: bytes) -> bytes:
        config = json.loads(data)
        layer = next(x for x in config["config"]["layers"] if x["config"]["name"] == "gate")
        layer["config"]["activation"] = {
            "module": module,
            "class_name": "function",
            "config": name,
            "registered_name": name,
        }
        return json.dumps(config).encode()

    with pytest.raises(DataError, match=rf"refused: layer 'gate' is {module}\.{name}, which"):
        models.load_model(rewrite(path, change))


@keras.saving.register_keras_serializable("test_registration")
class Doubled(keras.layers.Layer):
    def call(self, inputs):
        return 2 * inputs


def test_registered_layers_of_others_are_read(tmp_path: pathlib.Path) -> None:
    path = write_small(tmp_path / "m.keras", Doubled())
    model = models.load_model(path)
    x = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(model(x), keras.models.load_model(path)(x))


def test_hdf5_models_and_other_files_are_refused(tmp_path: pathlib.Path) -> None:
    text = tmp_path / "text.keras"
    text.write_text("not a model")
    with pytest.raises(DataError, match=r"text\.keras: not a readable Keras model, a \.keras"):
        models.load_model(text)
    with zipfile.ZipFile(tmp_path / "zip.keras", "w") as archive:
        archive.writestr("readme", "")
    with pytest.raises(DataError, match=r"zip\.keras: not a readable .*config\.json"):
        models.load_model(tmp_path / "zip.keras")


def test_damaged_weights_are_one_error(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cut.keras"
    shutil.copy(write_small(tmp_path / "m.keras", keras.layers.ReLU()), path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "c.keras", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, data[:100] if name.endswith(".h5") else data)
    with pytest.raises(DataError, match=r"c\.keras: not a readable Keras model: "):
        models.load_model(tmp_path / "c.keras")
