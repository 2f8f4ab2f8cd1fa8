"""Losses: one number for each example, from which the training step forms sum / global batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from keras import ops

from kerass2 import label_losses
from kerass2.config import ConfigError

Loss = Callable[[Any, Any], Any]

CHARBONNIER_EPSILON = 1e-3
"""Reflectance below which the Charbonnier loss turns from linear to quadratic; 10 DN."""
HUBER_DELTA = 1e-2
"""Reflectance above which the Huber loss turns from quadratic to linear; 100 DN."""


def l1(target: Any, prediction: Any) -> Any:
    """Mean absolute difference of each example, the loss of DSen2.

    Args:
        target: (batch, ...) reflectance [1].
        prediction: the same shape.

    Returns:
        (batch,) float32.
    """
    return _mean(ops.abs(_difference(target, prediction)))


def l2(target: Any, prediction: Any) -> Any:
    """Mean squared difference of each example; arguments and result as l1."""
    return _mean(ops.square(_difference(target, prediction)))


def charbonnier(target: Any, prediction: Any) -> Any:
    """Mean of sqrt(d^2 + epsilon^2) - epsilon of each example: a smooth l1; arguments as l1."""
    squared = ops.square(_difference(target, prediction)) + CHARBONNIER_EPSILON**2
    return _mean(ops.sqrt(squared)) - CHARBONNIER_EPSILON


def huber(target: Any, prediction: Any) -> Any:
    """Mean of ``d^2 / 2`` up to delta, ``delta (|d| - delta / 2)`` above it; arguments as l1."""
    size = ops.abs(_difference(target, prediction))
    near = ops.minimum(size, HUBER_DELTA)
    return _mean(near * (size - 0.5 * near))


# Name in an experiment -> function. A new loss is one function and one line here.
LOSSES: dict[str, Loss] = {"l1": l1, "l2": l2, "charbonnier": charbonnier, "huber": huber}


def get(
    name: str, options: Mapping[str, Any] | None = None, counts: label_losses.Counts | None = None
) -> Loss:
    """The loss of that name, for images or for labels.

    Args:
        name: a key of LOSSES, or of label_losses.LABEL_LOSSES.
        options: of a loss of labels; the others have none.
        counts: of the training patches, where an option asks for them.

    Raises:
        ConfigError: no such loss or option; the message lists those there are.
    """
    if name in label_losses.LABEL_LOSSES:
        loss: Loss = label_losses.build(name, dict(options or {}), counts)
        return loss
    if name not in LOSSES:
        there = ", ".join([*LOSSES, *label_losses.LABEL_LOSSES])
        raise ConfigError(f"unknown loss {name!r}; there are: {there}")
    if options:
        raise ConfigError(f"loss {name!r} has no options, found {', '.join(options)}")
    return LOSSES[name]


def _difference(target: Any, prediction: Any) -> Any:
    """Float32 difference. Equal shapes are demanded: broadcasting would hide a wrong target."""
    if tuple(target.shape)[1:] != tuple(prediction.shape)[1:]:
        raise ValueError(
            f"target {tuple(target.shape)} and prediction {tuple(prediction.shape)} differ in shape"
        )
    return ops.cast(prediction, "float32") - ops.cast(target, "float32")


def _mean(values: Any) -> Any:
    """Mean over all axes but the first."""
    return ops.mean(values, axis=tuple(range(1, len(values.shape))))
