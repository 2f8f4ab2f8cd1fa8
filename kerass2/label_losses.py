"""Losses of a classifier whose classes do not exclude each other: cross-entropy of each class.

A loss is made from its options, and from how many training patches have each class where an option
asks for that. Like those of losses.py it gives one number for each example, the mean over classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from kerass2.config import ConfigError

Counts = tuple[NDArray[np.int64], int]
"""Training patches that have each class, and all of them."""

MOST = 100.0
"""Largest weight of a positive label: Burnt areas are in one patch of 1800."""
BETA = 0.9999
"""Of the effective number of samples (Cui et al. 2019)."""


def build_crossentropy(
    *, smoothing: float = 0.0, class_weights: Any = "none", positive_weights: Any = "none"
) -> Callable[..., Callable[[Any, Any], Any]]:
    """Binary cross-entropy.

    Args:
        smoothing: labels 0 and 1 become smoothing / 2 and 1 - smoothing / 2.
        class_weights: of a class in the mean, normalised to mean 1: "none", "inverse" frequency,
            its root "inverse_sqrt", "effective_number" (Cui et al. 2019), or a list of numbers.
        positive_weights: of a label that is there against one that is not, at most MOST: "none",
            "inverse" (absent over present), its root "inverse_sqrt", or a list.
    """
    _check_fraction("smoothing", smoothing)

    def make(counts: Counts | None) -> Callable[[Any, Any], Any]:
        each, positive = _weights(class_weights, counts), _positive(positive_weights, counts)

        def loss(target: Any, logits: Any) -> Any:
            target, logits = _prepare(target, logits, smoothing, (each, positive))
            present = -target * _log_sigmoid(logits)
            absent = -(1.0 - target) * _log_sigmoid(-logits)
            # By ops: PyTorch's tensors do not multiply with NumPy's arrays.
            weighted = ops.multiply(each, ops.multiply(positive, present) + absent)
            return ops.mean(weighted, axis=-1)

        return loss

    return make


def build_focal(
    *, gamma: float = 2.0, alpha: float = 0.25, smoothing: float = 0.0, class_weights: Any = "none"
) -> Callable[..., Callable[[Any, Any], Any]]:
    """Focal loss (Lin et al. 2017): (1 - p)^gamma times the cross-entropy, p of the right answer.

    `alpha` weighs labels that are there against 1 - alpha for those that are not; 0.5 weighs both
    alike, by a half. Further arguments as build_crossentropy.
    """
    _check_fraction("smoothing", smoothing)
    _check_fraction("alpha", alpha)
    if not isinstance(gamma, int | float) or gamma < 0:
        raise ConfigError(f"gamma {gamma!r}: a number of at least 0 is needed")

    def make(counts: Counts | None) -> Callable[[Any, Any], Any]:
        each = _weights(class_weights, counts)

        def loss(target: Any, logits: Any) -> Any:
            target, logits = _prepare(target, logits, smoothing, (each,))
            # exp(gamma log(1 - p)): no power of 0, whose gradient is not finite.
            present = -target * ops.exp(gamma * _log_sigmoid(-logits)) * _log_sigmoid(logits)
            absent = -(1.0 - target) * ops.exp(gamma * _log_sigmoid(logits)) * _log_sigmoid(-logits)
            weighted = ops.multiply(each, alpha * present + (1.0 - alpha) * absent)
            return ops.mean(weighted, axis=-1)

        return loss

    return make


# Name in an experiment -> function that makes it. A new loss is one function and one line here.
LABEL_LOSSES: dict[str, Callable[..., Any]] = {
    "binary_crossentropy": build_crossentropy,
    "focal": build_focal,
}


def needs_counts(options: dict[str, Any]) -> bool:
    """True where an option asks how frequent the classes are."""
    asked = [options.get(name, "none") for name in ("class_weights", "positive_weights")]
    return any(isinstance(value, str) and value != "none" for value in asked)


def build(name: str, options: dict[str, Any], counts: Counts | None = None) -> Any:
    """The loss of that name: (target, logits) -> (batch,) float32.

    Raises:
        ConfigError: an option that it does not have, or a value that makes no sense.
    """
    allowed = list(inspect.signature(LABEL_LOSSES[name]).parameters)
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ConfigError(
            f"loss {name!r} has no option {', '.join(unknown)}; there are: {', '.join(allowed)}"
        )
    return LABEL_LOSSES[name](**options)(counts)


# --- weights -------------------------------------------------------------------------------------


def _weights(kind: Any, counts: Counts | None) -> NDArray[np.float32] | float:
    """Of each class, mean 1. A class that no patch has counts as if one had it."""
    if isinstance(kind, str) and kind == "none":
        return 1.0
    if not isinstance(kind, str):
        return _given("class_weights", kind)
    present, _ = _known("class_weights", kind, counts)
    rules: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
        "inverse": lambda n: 1.0 / n,
        "inverse_sqrt": lambda n: 1.0 / np.sqrt(n),
        "effective_number": lambda n: (1.0 - BETA) / (1.0 - BETA**n),
    }
    weights = _rule("class_weights", kind, rules)(np.maximum(present, 1))
    return np.asarray(weights / weights.mean(), np.float32)


def _positive(kind: Any, counts: Counts | None) -> NDArray[np.float32] | float:
    """Of a label that is there."""
    if isinstance(kind, str) and kind == "none":
        return 1.0
    if not isinstance(kind, str):
        return _given("positive_weights", kind)
    present, patches = _known("positive_weights", kind, counts)
    odds = (patches - present) / np.maximum(present, 1)
    rules: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
        "inverse": lambda x: x,
        "inverse_sqrt": np.sqrt,
    }
    return np.asarray(np.minimum(_rule("positive_weights", kind, rules)(odds), MOST), np.float32)


def _rule(option: str, kind: str, rules: dict[str, Any]) -> Any:
    if kind not in rules:
        there = ", ".join(("none", *rules))
        raise ConfigError(f"{option} {kind!r}; there are: {there}, or a list of numbers")
    return rules[kind]


def _known(option: str, kind: str, counts: Counts | None) -> Counts:
    if counts is None:
        raise ConfigError(f"{option} {kind!r} needs a training split whose labels are counted")
    return counts


def _given(option: str, values: Sequence[float]) -> NDArray[np.float32]:
    """A list of an experiment."""
    try:
        weights = np.asarray(values, np.float32)
    except (TypeError, ValueError):
        weights = np.zeros(0, np.float32)
    if weights.ndim != 1 or not weights.size or not (weights >= 0).all():
        raise ConfigError(f"{option} {values!r}: numbers from 0 on are needed, one for each class")
    return weights


def _check_fraction(option: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"{option} {value!r}: a number from 0 to 1 is needed")


# --- arithmetic ----------------------------------------------------------------------------------


def _prepare(
    target: Any, logits: Any, smoothing: float, weights: Sequence[NDArray[np.float32] | float]
) -> tuple[Any, Any]:
    """Both in float32. Equal shapes are demanded: broadcasting would hide a wrong target."""
    for each in weights:
        if np.ndim(each) and np.shape(each) != tuple(logits.shape)[1:]:
            raise ConfigError(
                f"{np.size(each)} weights of classes, the model has {logits.shape[1]}"
            )
    if tuple(target.shape)[1:] != tuple(logits.shape)[1:]:
        raise ValueError(
            f"labels {tuple(target.shape)} and logits {tuple(logits.shape)} differ in shape"
        )
    target, logits = ops.cast(target, "float32"), ops.cast(logits, "float32")
    return target * (1.0 - smoothing) + smoothing / 2 if smoothing else target, logits


def _log_sigmoid(x: Any) -> Any:
    """Finite, and with a finite gradient, for any logit."""
    return -ops.softplus(-x)
