"""The layers Keras does not have.

All of them are channels last, take any height and width, run on every Keras backend and are saved
by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from kerass2 import resampling


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
    """Bilinear enlargement by a whole factor, as `tf.image.resize(antialias=False)`.

    keras.layers.UpSampling2D needs a height and width known when the graph is built.
    """

    def __init__(self, scale: int, **kwargs: Any) -> None:
        """`scale` is the ratio of the pixel sizes, 2 or 6."""
        super().__init__(**{"dtype": "float32", **kwargs})
        self.scale = scale

    def call(self, inputs: Any) -> Any:
        """(batch, y, x, band) to (batch, scale * y, scale * x, band)."""
        return resampling.bilinear(inputs, self.scale)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Height and width times scale, unknown where they were."""
        batch, *sizes, bands = input_shape
        return (batch, *(None if size is None else size * self.scale for size in sizes), bands)

    def get_config(self) -> dict[str, Any]:
        """Adds the scale."""
        return {**super().get_config(), "scale": self.scale}


@keras.saving.register_keras_serializable("kerass2")
class MeanShift(keras.layers.Layer):
    """Each band of each patch moved to zero mean, against brightness differences of scenes.

    The result depends on where a patch ends: on a large raster the lattice of patches has to be
    fixed.
    """

    def __init__(self, **kwargs: Any) -> None:
        """No arguments of its own."""
        super().__init__(**{"dtype": "float32", **kwargs})

    def call(self, inputs: Any) -> Any:
        """(batch, y, x, band) float32 in and out."""
        return inputs - ops.mean(inputs, axis=(1, 2), keepdims=True)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The input's shape."""
        return input_shape


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
    """Self-attention over all pixels (Zhang et al. 2018, SAGAN): x + gamma * softmax(g f^T) h.

    f, g and h are 1 x 1 convolutions of x. gamma starts at 0: the layer begins as the identity. The
    direct form holds a (pixels x pixels) map for each sample, 4.2 MB in float32 for 32 x 32 pixels.
    """

    def __init__(self, key_filters: int = 16, **kwargs: Any) -> None:
        """`key_filters` is the length of f and g; h is as wide as the input."""
        # The residual x must not be cast to the policy's compute type on the way in.
        super().__init__(**{**kwargs, "autocast": False})
        self.key_filters = key_filters

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

    def call(self, inputs: Any) -> Any:
        """(batch, y, x, filter) in and out, in the type of the input."""
        shape = ops.shape(inputs)
        pixels = ops.reshape(inputs, (shape[0], shape[1] * shape[2], shape[3]))
        pixels = ops.cast(pixels, self.compute_dtype)
        # Scores and softmax in float32: an exponential of a bfloat16 number is off by several
        # percent.
        keys = ops.cast(self.f(pixels), "float32")
        queries = ops.cast(self.g(pixels), "float32")
        attention = ops.softmax(ops.matmul(queries, ops.transpose(keys, (0, 2, 1))), axis=-1)
        out = ops.matmul(ops.cast(attention, self.compute_dtype), self.h(pixels))
        gamma = ops.cast(self.gamma, inputs.dtype)
        return inputs + gamma * ops.reshape(ops.cast(out, inputs.dtype), shape)

    def compute_output_spec(self, inputs: Any) -> Any:
        """Shape and type of the input."""
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        """Adds the number of key filters."""
        return {**super().get_config(), "key_filters": self.key_filters}


@keras.saving.register_keras_serializable("kerass2")
class SyncBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation whose statistics can be those of the whole global batch.

    `sum_over_ranks` takes a list of tensors and returns their sums over all ranks, differentiably.
    It is set by `synchronise_statistics`, is not saved, and None means one rank: then this is
    keras.layers.BatchNormalization.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Arguments of keras.layers.BatchNormalization; the normalised axis is the last."""
        super().__init__(**kwargs)
        if self.axis != -1 or self.renorm:
            raise ValueError(
                f"axis {self.axis}, renorm {self.renorm}: only the last axis, without renorm"
            )
        self.sum_over_ranks: Callable[[list[Any]], list[Any]] | None = None

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """(..., channel) in and out; statistics in float32 or wider."""
        if self.sum_over_ranks is None or not (training and self.trainable):
            return super().call(inputs, training=training, mask=mask)
        if mask is not None:
            raise ValueError("statistics over ranks take no mask")
        x = ops.cast(inputs, "float32")
        mean, variance = _moments_over_ranks(x, self.sum_over_ranks)
        keep = self.momentum
        self.moving_mean.assign(self.moving_mean * keep + mean * (1.0 - keep))
        self.moving_variance.assign(self.moving_variance * keep + variance * (1.0 - keep))
        outputs = ops.batch_normalization(
            x, mean, variance, axis=-1, offset=self.beta, scale=self.gamma, epsilon=self.epsilon
        )
        return ops.cast(outputs, self.compute_dtype)


def _moments_over_ranks(
    x: Any, sum_over_ranks: Callable[[list[Any]], list[Any]]
) -> tuple[Any, Any]:
    """Mean and variance (channel,) over all ranks, by one sum of count, sum and sum of squares.

    The sums are formed in float64 from each rank's own mean and variance: E[x^2] - E[x]^2 in
    float32 loses the variance of channels whose mean is large. They are short vectors, so the
    width costs nothing.
    """
    axes = tuple(range(len(x.shape) - 1))
    local_mean, local_variance = (ops.cast(value, "float64") for value in ops.moments(x, axes))
    count = ops.cast(ops.size(x) // x.shape[-1], "float64")
    sums = [
        ops.reshape(count, (1,)),
        count * local_mean,
        count * (local_variance + ops.square(local_mean)),
    ]
    count, total, squares = sum_over_ranks(sums)
    mean = total / count
    variance = ops.maximum(squares / count - ops.square(mean), 0.0)
    return ops.cast(mean, "float32"), ops.cast(variance, "float32")


def synchronise_statistics(
    model: keras.Model, sum_over_ranks: Callable[[list[Any]], list[Any]] | None
) -> int:
    """Let each SyncBatchNormalization of a model use statistics of all ranks; None undoes it.

    Returns:
        The number of layers set.
    """
    num_set = 0
    for layer in model.layers:
        if isinstance(layer, SyncBatchNormalization):
            layer.sum_over_ranks = sum_over_ranks
            num_set += 1
        elif isinstance(layer, keras.Model):
            num_set += synchronise_statistics(layer, sum_over_ranks)
    return num_set
