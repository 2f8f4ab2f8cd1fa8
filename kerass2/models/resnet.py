"""ResNet (He et al. 2016) for patches with labels, as the classification paper has it.

Layers and their names are those of keras.applications, so that its files of ImageNet weights fit
(see imagenet.py); depths 18 and 34, which it lacks, follow the paper. New are the inputs (any
Sentinel-2 bands), L2 on the convolutions and dropout before the last layer. As in the paper,
convolutions have no bias, which keras.applications' have: batch normalisation takes it out again,
so that its true gradient is zero, and Adam or LAMB would make steps of full length of the noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from kerass2.config import ConfigError
from kerass2.models import labels

# Depth -> bottlenecks of three convolutions or pairs of two, and blocks of each stage. 10 and 14
# are for small data and tests.
DEPTHS: dict[int, tuple[bool, tuple[int, ...]]] = {
    10: (False, (1, 1, 1, 1)),
    14: (True, (1, 1, 1, 1)),
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
}


def build(
    *,
    depth: int = 50,
    width: int = 64,
    bands: str = "all",
    inputs: str = "native",
    classes: int = 43,
    l2: float = 5e-5,
    dropout: float = 0.5,
    batch_norm: str = "local",
    momentum: float = 0.9,
    zero_gamma: bool = True,
    dtype: str = "float32",
) -> keras.Model:
    """A ResNet of one logit a class.

    Args:
        depth: a key of DEPTHS.
        width: filters of the first convolution; 64 in the paper.
        bands: "all" 12, or "rgb".
        inputs: "native": bands on grids of 10, 20 and 60 m, enlarged here; "bands": all at 10 m.
        classes: 43 or 19 in BigEarthNet.
        l2: factor of the sum of each convolution's squared weights in the loss; 5e-5 is Goyal's
            weight decay 1e-4. The paper names no value. 0.0 under LARS and LAMB, which decay by
            themselves.
        dropout: fraction dropped before the last layer.
        batch_norm: "local" statistics of each rank, as in the paper, or "synchronised".
        momentum: of the moving statistics; keras.applications' is 0.99, Goyal's 0.9.
        zero_gamma: begin with blocks that are the identity (Goyal et al. 2017, section 5.1).
        dtype: Keras policy of all between the standardised bands and the last layer. The stream is
            rounded too: batch normalisation scales each branch anew, so errors do not add up as
            they do in a super-resolution network.

    Returns:
        A model of {"gsd10": (batch, y, x, 4), ...} or {"bands": (batch, y, x, 12)} float32
        reflectance [1] that gives {"labels": (batch, class) logits, "probability": their sigmoid}.

    Raises:
        ConfigError: an option that does not exist.
    """
    if depth not in DEPTHS:
        raise ConfigError(f"depth {depth}; there are: {', '.join(map(str, DEPTHS))}")
    bottlenecks, stages = DEPTHS[depth]
    normalise = labels.make_normalisation(batch_norm, momentum)
    make = _Maker(normalise, l2, zero_gamma, dtype)
    given, x = labels.open_inputs(inputs, bands)
    x = keras.layers.ZeroPadding2D(3, dtype=dtype, name="conv1_pad")(x)
    x = make.convolve(x, width, 7, "conv1", strides=2, padding="valid")
    x = make.activate(x, "conv1_relu")
    x = keras.layers.ZeroPadding2D(1, dtype=dtype, name="pool1_pad")(x)
    x = keras.layers.MaxPooling2D(3, strides=2, dtype=dtype, name="pool1_pool")(x)
    block = make.bottleneck if bottlenecks else make.pair
    for stage, blocks in enumerate(stages):
        for number in range(1, blocks + 1):
            strides = 2 if stage and number == 1 else 1
            name = f"conv{stage + 2}_block{number}"
            # A pair keeps its input's width in the first stage, and needs no projection there.
            project = number == 1 and (bottlenecks or stage > 0)
            x = block(x, width * 2**stage, name, strides=strides, project=project)
    x = keras.layers.GlobalAveragePooling2D(dtype="float32", name="avg_pool")(x)
    outputs = labels.close_output(x, classes, dropout)
    return keras.Model(given, outputs, name=f"resnet{depth}")


class _Maker:
    """The parts of a ResNet, with what all its convolutions share."""

    def __init__(self, normalise: Callable[..., Any], l2: float, zero: bool, dtype: str) -> None:
        self._normalise, self._l2, self._dtype = normalise, l2, dtype
        self._last_gamma = "zeros" if zero else "ones"

    def convolve(
        self, x: Any, filters: int, size: int, name: str, *, last: bool = False, **further: Any
    ) -> Any:
        """Convolution and batch normalisation; `last` of a branch."""
        x = keras.layers.Conv2D(
            filters,
            size,
            use_bias=False,
            kernel_initializer="he_normal",
            kernel_regularizer=keras.regularizers.L2(self._l2) if self._l2 else None,
            dtype=self._dtype,
            name=f"{name}_conv",
            **{"padding": "same", **further},
        )(x)
        gamma = self._last_gamma if last else "ones"
        return self._normalise(f"{name}_bn", gamma_initializer=gamma, dtype=self._dtype)(x)

    def activate(self, x: Any, name: str) -> Any:
        """ReLU."""
        return keras.layers.Activation("relu", dtype=self._dtype, name=name)(x)

    def bottleneck(self, x: Any, filters: int, name: str, *, strides: int, project: bool) -> Any:
        """1 x 1, 3 x 3, 1 x 1 to four times the filters; strides in the first, as ImageNet's."""
        shortcut = x
        if project:
            shortcut = self.convolve(x, 4 * filters, 1, f"{name}_0", strides=strides)
        x = self.convolve(x, filters, 1, f"{name}_1", strides=strides)
        x = self.activate(x, f"{name}_1_relu")
        x = self.activate(self.convolve(x, filters, 3, f"{name}_2"), f"{name}_2_relu")
        x = self.convolve(x, 4 * filters, 1, f"{name}_3", last=True)
        return self._join(shortcut, x, name)

    def pair(self, x: Any, filters: int, name: str, *, strides: int, project: bool) -> Any:
        """Two 3 x 3 convolutions."""
        shortcut = x
        if project:
            shortcut = self.convolve(x, filters, 1, f"{name}_0", strides=strides)
        x = self.convolve(x, filters, 3, f"{name}_1", strides=strides)
        x = self.activate(x, f"{name}_1_relu")
        x = self.convolve(x, filters, 3, f"{name}_2", last=True)
        return self._join(shortcut, x, name)

    def _join(self, shortcut: Any, x: Any, name: str) -> Any:
        x = keras.layers.Add(dtype=self._dtype, name=f"{name}_add")([shortcut, x])
        return self.activate(x, f"{name}_out")
