"""ResNet against keras.applications: structure, outputs, ImageNet's weights; its two ends."""

from __future__ import annotations

import pathlib

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from data_pipelines.spec import DataError, DatasetSpec, TensorSpec
from kerass2 import models
from kerass2.config import ConfigError
from kerass2.models import cost, imagenet, labels

SMALL = {"depth": 10, "width": 8, "classes": 5}


def patches(count: int = 2, edge: int = 36, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = {"gsd10": (edge, 4), "gsd20": (edge // 2, 6), "gsd60": (edge // 6, 2)}
    return {
        key: rng.gamma(4.0, 0.05, (count, n, n, bands)).astype(np.float32)
        for key, (n, bands) in sizes.items()
    }


def spec(classes: int = 5, edge: int = 36, names: str = "class") -> DatasetSpec:
    inputs = {
        key: TensorSpec((edge * 10 // gsd, edge * 10 // gsd, len(bands)), bands, gsd)
        for key, (bands, gsd) in labels.INPUTS["native"].items()
    }
    target = tuple(f"{names} {number}" for number in range(classes))
    labelled = {"labels": TensorSpec((classes,), target, 10.0, "uint8", 1.0)}
    return DatasetSpec("bigearthnet", inputs, labelled)


def scramble(model: keras.Model, seed: int = 1) -> None:
    """Weights under which nothing cancels: gammas, biases and statistics away from 0 and 1."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        shape = tuple(variable.shape)
        if len(shape) > 1:
            fan = np.prod(shape[:-1])
            variable.assign(rng.normal(0, np.sqrt(2 / fan), shape))
        elif len(shape) == 1:
            low, high = (0.5, 1.0) if variable.name in ("gamma", "moving_variance") else (-0.2, 0.2)
            variable.assign(rng.uniform(low, high, shape))


@pytest.fixture(scope="module")
def theirs() -> keras.Model:
    shape = (None, None, 3)
    model = keras.applications.ResNet50(weights=None, include_top=False, input_shape=shape)
    scramble(model)
    return model


@pytest.fixture(scope="module")
def file(theirs, tmp_path_factory) -> pathlib.Path:
    """Its weights in the format that keras.applications' are published in."""
    path = tmp_path_factory.mktemp("weights") / "resnet50_notop.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in theirs.layers]
        for layer in theirs.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{weight.name}:0" for weight in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, value in zip(names, layer.get_weights(), strict=True):
                group[name] = value
    return path


@pytest.fixture(scope="module")
def ours(file) -> keras.Model:
    """A ResNet-50 on red, green and blue with those weights."""
    model = models.build("resnet", bands="rgb")
    assert "3 bands" in imagenet.load(model, file)
    return model


@pytest.mark.parametrize(
    ("depth", "parameters"),
    # torchvision's without the last layer, which have no biases either; and a moving mean and
    # variance for each channel.
    [(18, 11_176_512 + 9_600), (34, 21_284_672 + 17_024), (101, 42_500_160 + 105_344)],
)
def test_number_of_parameters_and_operations(depth, parameters):
    """Operations: He et al. 2016, table 1, in multiplications at 224 px."""
    model = models.build("resnet", depth=depth, bands="rgb", inputs="bands", classes=1000)
    assert model.count_params() == parameters + (512 if depth < 50 else 2048) * 1000 + 1000
    published = {18: 1.8e9, 34: 3.6e9, 101: 7.6e9}[depth]
    assert cost.count_classifier(model, 224).of_patch(224) == pytest.approx(2 * published, rel=0.03)


def test_imagenet_weights_from_a_file_give_imagenet_features(theirs, ours):
    """Pixels of ImageNet in their numbers there, and as standardised bands here."""
    biases = sum(w.shape[0] for layer in theirs.layers for w in layer.weights if w.name == "bias")
    assert ours.count_params() == theirs.count_params() - biases + 2048 * 43 + 43
    z = np.random.default_rng(0).normal(size=(1, 36, 36, 3)).astype(np.float32)
    pixels = (z * imagenet.DEVIATION)[..., ::-1].astype(np.float32)
    expected = np.asarray(theirs(pixels, training=False)).mean((1, 2))
    end = ours.get_layer("gsd10_standardised").output
    cut = keras.Model(end, ours.get_layer("avg_pool").output)
    np.testing.assert_allclose(cut(z, training=False), expected, rtol=1e-3, atol=1e-3)


def test_imagenet_weights_are_inflated_for_12_bands(ours, file):
    model = models.build("resnet")
    before = model.get_layer("predictions").get_weights()
    assert "12 bands" in imagenet.load(model, file)
    kernel, rgb = (m.get_layer("conv1_conv").get_weights()[0] for m in (model, ours))
    # 12 bands of one value give what three of that value give.
    np.testing.assert_allclose(kernel.sum(2), rgb.sum(2), rtol=1e-3, atol=1e-3)
    positions = [labels.describe(model)["chosen"].index(band) for band in labels.RGB]
    np.testing.assert_allclose(kernel[:, :, positions], rgb / 4, rtol=1e-5)
    for old, new in zip(before, model.get_layer("predictions").get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_weights_of_another_network_are_refused(ours, tmp_path):
    path = tmp_path / "other.weights.h5"
    models.build("resnet", **SMALL).save_weights(path)
    model = models.build("resnet", **SMALL)
    with pytest.raises(DataError, match="'resnet10' is none of resnet50"):
        imagenet.load(model, path)
    with pytest.raises(DataError, match=r"other\.weights\.h5: not keras\.applications'"):
        imagenet.load(ours, path)


def test_bands_are_standardised_by_name():
    given = patches()["gsd10"]
    layer = labels.StandardiseBands("gsd10", ("B02", "B03", "B04", "B08"), 10, labels.RGB)
    red, _, blue = np.moveaxis(np.asarray(layer(given)), -1, 0)
    np.testing.assert_allclose(blue, (given[..., 0] * 1e4 - 429.943) / 572.416, atol=1e-4)
    np.testing.assert_allclose(red, (given[..., 2] * 1e4 - 590.236) / 675.887, atol=1e-4)
    with pytest.raises(ValueError, match="gsd10: 3 bands received, 4 needed"):
        layer.compute_output_shape((None, 8, 8, 3))


def test_coarse_bands_are_enlarged_as_tensorflow_does():
    model = models.build("resnet", **SMALL)
    given = patches()
    joined = keras.Model(model.input, model.get_layer("fusion").output)(given)
    assert joined.shape == (2, 36, 36, 12)
    for key, start in (("gsd20", 4), ("gsd60", 10)):
        bands = labels.INPUTS["native"][key][0]
        mean, deviation = np.array([labels.BAND_STATISTICS[b] for b in bands]).T * 1e-4
        expected = tf.image.resize((given[key] - mean) / deviation, (36, 36), antialias=False)
        np.testing.assert_allclose(joined[..., start : start + len(bands)], expected, atol=1e-4)


def test_any_size_and_both_layouts():
    model = models.build("resnet", **SMALL)
    for edge in (36, 120):
        out = model(patches(edge=edge))
        assert out["labels"].shape == (2, 5)
        np.testing.assert_allclose(out["probability"], tf.sigmoid(out["labels"]), rtol=1e-6)
    one = models.build("resnet", **SMALL, inputs="bands")
    assert one({"bands": np.ones((2, 40, 40, 12), np.float32)})["labels"].shape == (2, 5)
    assert labels.describe(one)["inputs"]["bands"] == labels.ALL_BANDS
    rgb = models.build("resnet", **SMALL, inputs="bands", bands="rgb")
    assert labels.describe(rgb)["chosen"] == ("B04", "B03", "B02")


def test_l2_is_on_the_convolutions_alone():
    model = models.build("resnet", **SMALL, l2=0.25)
    kernels = [layer.kernel for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    expected = 0.25 * sum(float((np.asarray(kernel) ** 2).sum()) for kernel in kernels)
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-5)
    assert models.build("resnet", **SMALL, l2=0.0).losses == []


def test_half_precision_ends_in_float32():
    model = models.build("resnet", **SMALL, dtype="mixed_bfloat16")
    assert model.get_layer("conv2_block1_1_conv").compute_dtype == "bfloat16"
    assert {out.dtype for out in model(patches()).values()} == {tf.float32}
    assert all(variable.dtype == "float32" for variable in model.trainable_variables)


def test_a_saved_classifier_tells_bands_and_classes(tmp_path):
    model = models.build("resnet", **SMALL)
    assert models.describe(model)["target_bands"] == (None,) * 5
    labels.name_classes(model, spec())
    model.save(tmp_path / "model.keras")
    again = models.load_model(tmp_path / "model.keras")
    told = models.describe(again)
    assert told["task"] == "bigearthnet"
    assert told["target_bands"] == tuple(f"class {i}" for i in range(5))
    assert told["inputs"]["gsd60"] == ("B01", "B09")
    given = patches()
    np.testing.assert_array_equal(model(given)["labels"], again(given)["labels"])
    models.check_fits(again, spec(), "here")
    with pytest.raises(DataError, match="its class 0 is 'other 0', the model's 'class 0'"):
        models.check_fits(again, spec(names="other"), "here")
    with pytest.raises(DataError, match="its labels are 19 classes, the model has 5"):
        models.check_fits(again, spec(classes=19), "here")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 52}, "depth 52; there are: 10, 14, 18, 34, 50, 101"),
        ({"inputs": "coarse"}, "inputs 'coarse', bands 'all'; there are: native, bands"),
        ({"bands": "swir"}, "there are: native, bands and all, rgb"),
        ({"batch_norm": "global"}, "batch_norm 'global'; there are: local, synchronised"),
    ],
)
def test_unknown_options_are_listed(options, message):
    with pytest.raises(ConfigError, match=message):
        models.build("resnet", **{**SMALL, **options})


def test_dropout_follows_from_seed_step_and_slice_alone():
    layer = labels.SeededDropout(0.5)
    model = keras.Sequential([keras.Input((1000,)), layer])
    ones = np.ones((1, 1000), np.float32)

    def masks(seed: int, rank: int, step: int, part: int = 0, parts: int = 1) -> np.ndarray:
        labels.seed_dropout(model, seed=seed, rank=rank, step=lambda: step)
        with labels.drawing_part(model, part, parts):
            return np.asarray(model(ones, training=True)) > 0

    first = masks(1, 0, 5)
    assert 0.4 < first.mean() < 0.6
    np.testing.assert_array_equal(first, masks(1, 0, 5))
    for other in (masks(2, 0, 5), masks(1, 1, 5), masks(1, 0, 6), masks(1, 0, 5, 1, 2)):
        assert 0.4 < (first != other).mean() < 0.6
    # The fourth quarter, whoever draws it.
    quarters = [masks(1, 0, 5, 3, 4), masks(1, 1, 5, 1, 2), masks(1, 3, 5)]
    np.testing.assert_array_equal(quarters[0], quarters[1])
    np.testing.assert_array_equal(quarters[0], quarters[2])
    np.testing.assert_array_equal(model(ones, training=False), ones)
    assert model.variables == []
