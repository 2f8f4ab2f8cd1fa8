"""Optimizers whose step is as long as the weights it moves are large, layer by layer.

For global batches at which plain SGD diverges. Weights of one axis (biases, and the scales and
offsets of batch normalisation) are excluded, as published: they are not decayed, and move by the
plain rate. Norms are those of the gradient given to `apply`, which here is summed over ranks.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


class _Layerwise(keras.optimizers.Optimizer):
    """What LARS and LAMB share: the decay inside the trust ratio, and what is left out of it."""

    def __init__(self, learning_rate: Any, weight_decay: float, **kwargs: Any) -> None:
        # Not handed on: Keras would decay apart from the ratio.
        super().__init__(learning_rate=learning_rate, **kwargs)
        if not isinstance(weight_decay, int | float) or weight_decay < 0:
            raise ValueError(f"weight_decay {weight_decay!r}: a number of at least 0 is needed")
        self.ratio_decay = float(weight_decay)

    @staticmethod
    def is_excluded(variable: Any) -> bool:
        """True for biases and the weights of normalisation."""
        return len(variable.shape) <= 1

    def get_config(self) -> dict[str, Any]:
        """The arguments; the decay is ours."""
        return {**super().get_config(), "weight_decay": self.ratio_decay}


def _norm(values: Any) -> Any:
    """Over all of a weight, whatever its number of axes."""
    return ops.sqrt(ops.sum(ops.square(values)))


def _ratio(numerator: Any, denominator: Any) -> Any:
    """Their quotient; 1 where one of them is 0, as for weights that begin at 0."""
    usable = ops.logical_and(numerator > 0, denominator > 0)
    return ops.where(usable, numerator / ops.where(usable, denominator, 1.0), 1.0)


@keras.saving.register_keras_serializable("kerass2")
class LARS(_Layerwise):
    """You, Gitman and Ginsburg 2017, algorithm 1.

    v = momentum v + rate r (g + decay w); w -= v, where r = trust |w| / (|g| + decay |w|).
    """

    def __init__(
        self,
        learning_rate: Any = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        trust: float = 1e-3,
        nesterov: bool = False,
        **kwargs: Any,
    ) -> None:
        """`trust` is the paper's eta, 0.001 there; `nesterov` looks ahead as keras' SGD does."""
        super().__init__(learning_rate, weight_decay, **kwargs)
        self.momentum, self.trust, self.nesterov = momentum, trust, nesterov

    def build(self, variables: list[Any]) -> None:
        """One velocity of each weight's shape."""
        if self.built:
            return
        super().build(variables)
        (self._velocities,) = self.add_optimizer_variables(variables, ["velocity"])

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One step of one weight."""
        velocity = self._velocities[self._get_variable_index(variable)]
        step = ops.cast(learning_rate, variable.dtype)
        gradient = ops.cast(gradient, variable.dtype)
        if not self.is_excluded(variable):
            weight, decay = ops.convert_to_tensor(variable), self.ratio_decay
            size, slope = _norm(weight), _norm(gradient)
            # As published, 1 where there is no direction, even if there is decay.
            total = ops.where(slope > 0, slope + decay * size, 0.0)
            step = step * _ratio(self.trust * size, total)
            gradient = gradient + decay * weight
        following = self.momentum * velocity + step * gradient
        self.assign(velocity, following)
        ahead = self.momentum * following + step * gradient if self.nesterov else following
        self.assign_sub(variable, ahead)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        names = ("momentum", "trust", "nesterov")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable("kerass2")
class LAMB(_Layerwise):
    """You et al. 2020, algorithm 2: Adam's step and decay, scaled to |w|.

    keras.optimizers.Lamb decays outside of the ratio, and excludes nothing.
    """

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        weight_decay: float = 0.01,
        **kwargs: Any,
    ) -> None:
        """Defaults as published."""
        super().__init__(learning_rate, weight_decay, **kwargs)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon

    def build(self, variables: list[Any]) -> None:
        """Two moments of each weight's shape."""
        if self.built:
            return
        super().build(variables)
        self._means, self._squares = self.add_optimizer_variables(variables, ["mean", "square"])

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One step of one weight."""
        index = self._get_variable_index(variable)
        mean, square = self._means[index], self._squares[index]
        count = ops.cast(self.iterations + 1, "float32")
        gradient = ops.cast(gradient, variable.dtype)
        first = mean + (gradient - mean) * (1 - self.beta_1)
        second = square + (ops.square(gradient) - square) * (1 - self.beta_2)
        self.assign(mean, first)
        self.assign(square, second)
        unbiased = first / (1 - ops.power(self.beta_1, count))
        spread = ops.sqrt(second / (1 - ops.power(self.beta_2, count)))
        move = unbiased / (spread + self.epsilon)
        step = ops.cast(learning_rate, variable.dtype)
        if not self.is_excluded(variable):
            weight = ops.convert_to_tensor(variable)
            move = move + self.ratio_decay * weight
            step = step * _ratio(_norm(weight), _norm(move))
        self.assign_sub(variable, step * move)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        names = ("beta_1", "beta_2", "epsilon")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
