"""Batch normalisation by one operation, and over the global batch of all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("kerass2")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """keras.layers.BatchNormalization of images; in training by TensorFlow's operation for it.

    Keras makes it of a dozen operations, forward and back, each of which reads or writes the whole
    tensor, and in half precision all of them in float32. This one reads the tensor as it is and
    forms statistics in float32. On other backends, and outside of training, it is Keras' own.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Arguments of keras.layers.BatchNormalization; the normalised axis is the last."""
        super().__init__(**kwargs)
        if self.axis != -1 or self.renorm or self.synchronized or not (self.scale and self.center):
            raise ValueError(
                f"axis {self.axis}, renorm {self.renorm}, synchronized {self.synchronized}, scale "
                f"{self.scale}, center {self.center}: only the last axis, with scale and center"
            )

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """(batch, y, x, channel) in and out, in the layer's compute type."""
        learns = training and self.trainable and mask is None
        if not learns or keras.backend.backend() != "tensorflow":
            return super().call(inputs, training=training, mask=mask)
        outputs, mean, variance = _normalise_at_once(
            ops.cast(inputs, self.compute_dtype), self.gamma, self.beta, self.epsilon
        )
        keep = self.momentum
        self.moving_mean.assign(self.moving_mean * keep + mean * (1.0 - keep))
        self.moving_variance.assign(self.moving_variance * keep + variance * (1.0 - keep))
        return outputs


def _normalise_at_once(x: Any, gamma: Any, beta: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """Normalised (batch, y, x, channel), and mean and variance (channel,) in float32."""
    import tensorflow as tf

    found = tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=ops.cast(gamma, "float32"),
        offset=ops.cast(beta, "float32"),
        mean=tf.zeros((0,)),
        variance=tf.zeros((0,)),
        epsilon=epsilon,
        is_training=True,
    )
    # It gives the variance of all that the batch was drawn from; Keras keeps the batch's own.
    count = ops.cast(ops.size(x) // x.shape[-1], "float32")
    return found.y, found.batch_mean, found.batch_variance * (ops.maximum(count - 1, 1) / count)


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
