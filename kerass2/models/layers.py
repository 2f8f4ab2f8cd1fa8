"""The layers Keras does not have.

All of them are channels last, take any height and width, run on every Keras backend and are saved
by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from kerass2 import resampling
from kerass2.models import attention, blocks
from kerass2.models.normalization import SyncBatchNormalization, synchronise_statistics

__all__ = [
    "LastOf",
    "MeanShift",
    "ResidualSum",
    "ScaleReflectance",
    "SelfAttention",
    "SyncBatchNormalization",
    "Upsample",
    "synchronise_statistics",
]

KERNELS = {"bilinear": resampling.bilinear, "bicubic": resampling.bicubic}
"""How Upsample enlarges, by name."""


@keras.saving.register_keras_serializable("kerass2")
class ScaleReflectance(keras.layers.Layer):
    """Reflectance [1] to network units (divided by `scale`), or back with `inverse`.

    It also carries what the pixels are, so that a saved model tells which bands it takes and gives
    (`models.describe`). Always float32: a reflectance has 4 digits, bfloat16 fewer than 3.
    """

    def __init__(
        self,
        key: str,
        bands: Sequence[str],
        gsd: float,
        scale: float = 0.2,
        inverse: bool = False,
        **kwargs: Any,
    ) -> None:
        """`key` names the model's input or output, `gsd` [m] is native, `scale` a reflectance."""
        super().__init__(**{"dtype": "float32", **kwargs})
        if not scale > 0:
            raise ValueError(f"scale {scale}: a positive reflectance is needed")
        self.key = key
        self.bands = tuple(bands)
        self.gsd = float(gsd)
        self.scale = float(scale)
        self.inverse = inverse

    def call(self, inputs: Any) -> Any:
        """(batch, y, x, band) float32 in and out."""
        return inputs * self.scale if self.inverse else inputs / self.scale

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The input's shape; a wrong number of bands is refused here, with their names."""
        if input_shape[-1] != len(self.bands):
            raise ValueError(
                f"{self.key}: {input_shape[-1]} bands received, {len(self.bands)} needed: "
                f"{self.bands}"
            )
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Bands, gsd and scale travel with the model."""
        return {
            **super().get_config(),
            "key": self.key,
            "bands": list(self.bands),
            "gsd": self.gsd,
            "scale": self.scale,
            "inverse": self.inverse,
        }


@keras.saving.register_keras_serializable("kerass2")
class Upsample(keras.layers.Layer):
    """Enlargement by a whole factor; bilinear as `tf.image.resize(antialias=False)`.

    keras.layers.UpSampling2D needs a height and width known when the graph is built.
    """

    def __init__(self, scale: int, kernel: str = "bilinear", **kwargs: Any) -> None:
        """`scale` is the ratio of the pixel sizes, 2 or 6; `kernel` is bilinear or bicubic."""
        super().__init__(**{"dtype": "float32", **kwargs})
        if kernel not in KERNELS:
            raise ValueError(f"kernel {kernel!r}; there are: {', '.join(KERNELS)}")
        self.scale = scale
        self.kernel = kernel

    def call(self, inputs: Any) -> Any:
        """(batch, y, x, band) to (batch, scale * y, scale * x, band)."""
        return KERNELS[self.kernel](inputs, self.scale)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Height and width times scale, unknown where they were."""
        batch, *sizes, bands = input_shape
        return (batch, *(None if size is None else size * self.scale for size in sizes), bands)

    def get_config(self) -> dict[str, Any]:
        """Adds scale and kernel."""
        return {**super().get_config(), "scale": self.scale, "kernel": self.kernel}


@keras.saving.register_keras_serializable("kerass2")
class LastOf(keras.layers.Layer):
    """The last of its inputs: for models that take more than they use."""

    def __init__(self, **kwargs: Any) -> None:
        """No arguments of its own."""
        super().__init__(**{"dtype": "float32", **kwargs})

    def call(self, inputs: Sequence[Any]) -> Any:
        """A sequence of tensors; the last one out."""
        return inputs[-1]

    def compute_output_shape(self, input_shape: Sequence[Any]) -> Any:
        """The last one's shape."""
        return input_shape[-1]


@keras.saving.register_keras_serializable("kerass2")
class MeanShift(keras.layers.Layer):
    """Each band of each block moved to zero mean, against brightness differences of scenes.

    Blocks lie on a lattice that begins at the tensor's first pixel; a block that the edge cuts has
    the mean of the pixels it has. A tensor no larger than one block is one block.
    """

    def __init__(self, block: int | None = None, **kwargs: Any) -> None:
        """`block` is the edge of a block [px]; None: all pixels are one block."""
        super().__init__(**{"dtype": "float32", **kwargs})
        blocks.check_block(block)
        self.block = block

    def call(self, inputs: Any) -> Any:
        """(batch, y, x, band) float32 in and out."""
        return blocks.subtract_means(inputs, blocks.divide(inputs, self.block))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The input's shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Adds the block."""
        return {**super().get_config(), "block": self.block}


@keras.saving.register_keras_serializable("kerass2")
class ResidualSum(keras.layers.Layer):
    """stream + scale * branch in float32, whatever the branch was computed in.

    In plain mixed bfloat16 the stream itself is rounded after every block, which cost DSen2 1 to 3
    % of its RMSE.
    """

    def __init__(self, scale: float = 0.1, **kwargs: Any) -> None:
        """`scale` 0.1 takes the place of batch normalisation (Lim et al. 2017, EDSR)."""
        super().__init__(**{"dtype": "float32", **kwargs})
        self.scale = scale

    def call(self, stream: Any, branch: Any) -> Any:
        """Two tensors of one shape; float32 out."""
        return stream + branch * self.scale

    def compute_output_shape(self, stream_shape: Any, branch_shape: Any) -> Any:
        """The stream's shape."""
        return stream_shape

    def get_config(self) -> dict[str, Any]:
        """Adds the scale."""
        return {**super().get_config(), "scale": self.scale}


@keras.saving.register_keras_serializable("kerass2")
class SelfAttention(keras.layers.Layer):
    """Self-attention over the pixels of a block (Zhang et al. 2018, SAGAN).

    x + gamma * softmax(g f^T) h, where f, g and h are 1 x 1 convolutions of x. gamma starts at 0:
    the layer begins as the identity. Blocks are those of MeanShift.
    """

    def __init__(self, key_filters: int = 16, block: int | None = None, **kwargs: Any) -> None:
        """`key_filters` is the length of f and g, `block` the edge of a block [px].

        h is as wide as the input. Without a block all pixels are one.
        """
        # The residual x must not be cast to the policy's compute type on the way in.
        super().__init__(**{**kwargs, "autocast": False})
        blocks.check_block(block)
        self.key_filters = key_filters
        self.block = block
        self.plain = False  # set by export; see attention.attend

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Three projections, written as dense layers on the list of pixels, and gamma."""
        sizes = {"f": self.key_filters, "g": self.key_filters, "h": input_shape[-1]}
        for name, size in sizes.items():
            dense = keras.layers.Dense(
                size, kernel_initializer="he_uniform", dtype=self.dtype_policy, name=name
            )
            dense.build((None, None, input_shape[-1]))
            setattr(self, name, dense)
        self.gamma = self.add_weight(shape=(), initializer="zeros", name="gamma", autocast=False)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """(batch, y, x, filter) in and out, in the type of the input."""
        weights = [w for dense in (self.f, self.g, self.h) for w in (dense.kernel, dense.bias)]
        grid = blocks.divide(inputs, self.block)
        return attention.attend(
            inputs, self.gamma, weights, grid, self.compute_dtype, bool(training), self.plain
        )

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        """Shape and type of the input."""
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        """Adds the number of key filters and the block."""
        return {**super().get_config(), "key_filters": self.key_filters, "block": self.block}
