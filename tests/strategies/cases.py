"""What the equality tests train: networks, optimizers, data.

Shared by ranks and reference; imports no strategy.
"""

from __future__ import annotations

import itertools

import keras
import numpy as np

from kerass2 import models
from kerass2.layerwise import LAMB, LARS
from kerass2.models.layers import SyncBatchNormalization
from kerass2.optimizers import SGD, Nadam

STEPS = 10
GLOBAL_BATCH = 12  # shared evenly by 2 and by 3 ranks
MODELS = ("s2x", "dsen2", "batch_norm", "batch_norm_synchronised")
# Not whole in any binary type.
NUMBERS = np.array([0.1, 0.3, 7e-4])
OPTIMIZERS = ("adam", "sgd")
# Model, optimizer, largest norm.
Case = tuple[str, str, float | None]
CLIPS = (None, 0.05)
CASES = (
    *itertools.product(MODELS, OPTIMIZERS, CLIPS),
    ("s2x", "nadam", None),
    ("dsen2", "nadam", 0.05),
    ("wide_resnet", "sgd", None),
    ("wide_resnet", "lars", 0.05),
    ("wide_resnet", "lamb", None),
)
# Of three ranks, in `make test`: every network, optimizer and kind of statistics, clipped and not.
# The others of three ranks: `make test-cluster`.
FEW = (
    ("s2x", "adam", None),
    ("s2x", "nadam", None),
    ("dsen2", "sgd", 0.05),
    ("batch_norm", "sgd", None),
    ("batch_norm_synchronised", "adam", 0.05),
    ("wide_resnet", "lars", 0.05),
    ("wide_resnet", "lamb", None),
)
# What one job trains.
PARTS = {"all": CASES, "few": FEW, "rest": tuple(case for case in CASES if case not in FEW)}
# Local statistics: one process that normalises each rank's slice by itself.
LOCAL = ("batch_norm", "wide_resnet")
# Trained once more with the sum taken out.
BROKEN = (
    ("dsen2", "sgd", None),
    ("s2x", "adam", None),
    ("batch_norm_synchronised", "sgd", None),
)


def num_slices(case: Case, workers: int) -> int:
    """Slices of a batch that the reference of so many ranks normalises each by itself."""
    return workers if case[0] in LOCAL else 1


def build_model(name: str, *, reference: bool = False) -> keras.Model:
    """A small network.

    The reference of synchronised statistics is Keras' own layer on the whole batch.
    """
    if name in ("s2x", "dsen2"):
        model = models.build(name, filters=8, blocks=2)
        for variable in model.trainable_variables:
            if variable.name == "gamma":
                variable.assign(
                    np.full(variable.shape, 0.1, np.float32)
                )  # so that attention takes part
        return model
    if name == "wide_resnet":
        return _build_classifier()
    synchronised = name == "batch_norm_synchronised" and not reference
    normalise = SyncBatchNormalization if synchronised else keras.layers.BatchNormalization
    fine = keras.Input((None, None, 4), name="gsd10")
    coarse = keras.Input((None, None, 6), name="gsd20")
    x = keras.layers.Conv2D(
        8,
        3,
        padding="same",
        use_bias=False,
        kernel_regularizer=keras.regularizers.L2(1e-3),
        name="c1",
    )(fine)
    x = normalise(momentum=0.9, name="n1")(x)
    x = keras.layers.ReLU(name="r1")(x)
    x = keras.layers.Conv2D(8, 3, padding="same", use_bias=False, name="c2")(x)
    x = normalise(momentum=0.9, name="n2")(x)
    x = keras.layers.Conv2D(6, 1, name="c4")(x)
    return keras.Model({"gsd10": fine, "gsd20": coarse}, {"superres_20m": x})


def _build_classifier() -> keras.Model:
    """A classifier whose logits are spread over the target's pixels, which the loss compares.

    Without dropout, whose mask depends on the number of slices. Not the other ResNet: so small and
    with so few patches it is chaotic, a change of its weights by 1e-7 grows to 1e-2 in these steps.
    tests/kerass2/test_label_training.py has it, over fewer.
    """
    options = {"depth": 10, "width": 1, "strides": 1, "bands": "rgb", "classes": 6, "l2": 1e-3}
    model = models.build("wide_resnet", **options, dropout=0.0)
    coarse = keras.Input((None, None, 6), name="gsd20")
    x = keras.layers.Reshape((1, 1, 6), name="pixel")(model.output["labels"])
    x = keras.layers.UpSampling2D(8, name="pixels")(x)
    return keras.Model({**model.input, "gsd20": coarse}, {"superres_20m": x})


def build_optimizer(
    name: str, clip: float | None, *, reference: bool = False
) -> keras.optimizers.Optimizer:
    """Adam, our Nadam, LARS, LAMB, or SGD; clip is the largest norm of the summed gradient.

    The reference of SGD is Keras' own.
    """
    if name == "adam":
        return keras.optimizers.Adam(1e-3, global_clipnorm=clip)
    if name == "nadam":
        return Nadam(1e-3, global_clipnorm=clip)
    if name == "lars":
        return LARS(1.0, trust=0.02, global_clipnorm=clip)
    if name == "lamb":
        # At 1e-2 its steps are so large that rounding grows to 1.6e-5 in the Wide ResNet.
        return LAMB(3e-3, global_clipnorm=clip)
    make = keras.optimizers.SGD if reference else SGD
    return make(1e-2, momentum=0.9, nesterov=True, global_clipnorm=clip)


def initial_weights(model: keras.Model) -> list[np.ndarray]:
    """The model's weights, drawn anew by numpy: the same in every process, whatever Keras' seed."""
    rng = np.random.default_rng(7)
    return [
        np.asarray(v)
        if np.asarray(v).ndim < 2
        else (0.2 * rng.standard_normal(v.shape)).astype(np.float32)
        for v in model.trainable_variables
    ]


def global_batch(step: int) -> dict[str, dict[str, np.ndarray]]:
    """The whole batch of a step: reflectances (12, 8, 8, band), different in every patch."""
    rng = np.random.default_rng(1000 + step)
    brightness = np.linspace(0.2, 2.0, GLOBAL_BATCH, dtype=np.float32)[:, None, None, None]

    def draw(size: int, bands: int) -> np.ndarray:
        return brightness * rng.gamma(4.0, 0.05, (GLOBAL_BATCH, size, size, bands)).astype(
            np.float32
        )

    return {
        "inputs": {"gsd10": draw(8, 4), "gsd20": draw(4, 6)},
        "targets": {"superres_20m": draw(8, 6)},
    }
