"""The Wide ResNet with channel attention, and what classifiers cost."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kerass2 import models
from kerass2.config import ConfigError
from kerass2.models import cost, wide_resnet


def test_number_of_parameters():
    """WRN-16-2 by hand: convolutions, normalisation, attention of size 3, last layer."""
    n, bands, classes = 2, 12, 43
    expected, before = 9 * bands * 16, 16
    for filters in (32, 64, 128):
        for block in range(n):
            given = before if block == 0 else filters
            expected += 9 * given * filters + 9 * filters * filters
            expected += given * filters if given != filters or block == 0 else 0
            expected += 4 * given + 4 * filters  # two normalisations, with their statistics
            expected += 3 if filters < 128 else 5  # attention: |log2(C) / 2 + 1 / 2|, odd
        before = filters
    expected += 4 * 128 + 128 * classes + classes
    assert models.build("wide_resnet").count_params() == expected


def test_attention_is_eca():
    given = keras.Input((None, None, 8))
    model = keras.Model(given, wide_resnet.attend(given, "eca", "float32"))
    layer = model.get_layer("eca")
    assert layer.kernel_size == (3,)  # |log2(8) / 2 + 1 / 2| is 2: the next odd one
    kernel = np.array([0.3, -0.2, 0.5])
    layer.set_weights([kernel[:, None, None]])
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 8)).astype(np.float32)
    padded = np.pad(x.mean((1, 2)), ((0, 0), (1, 1)))
    weight = sum(kernel[i] * padded[:, i : i + 8] for i in range(3))
    expected = x / (1 + np.exp(-weight))[:, None, None, :]
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)


def test_it_takes_any_size_and_half_precision(tmp_path):
    model = models.build("wide_resnet", depth=10, width=1, classes=5, dtype="mixed_bfloat16")
    for edge in (36, 60):
        given = {
            "gsd10": np.ones((2, edge, edge, 4), np.float32),
            "gsd20": np.ones((2, edge // 2, edge // 2, 6), np.float32),
            "gsd60": np.ones((2, edge // 6, edge // 6, 2), np.float32),
        }
        found = model(given)["labels"]
        assert found.shape == (2, 5)
        assert found.dtype == "float32"
    model.save(tmp_path / "model.keras")
    again = models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(given)["labels"], found)


@pytest.mark.parametrize("depth", [4, 12, 50])
def test_depths_are_6n_plus_4(depth):
    with pytest.raises(ConfigError, match=f"depth {depth}: 6 n \\+ 4"):
        models.build("wide_resnet", depth=depth)


def test_the_wide_one_is_cheaper():
    large, wide = (cost.count_classifier(models.build(n), 120) for n in ("resnet", "wide_resnet"))
    assert wide.of_patch(120) < large.of_patch(120) / 3
    assert wide.parameters < large.parameters / 30
