"""A twin of a model that takes a window with its surroundings and gives the window's inside.

The value of a pixel then does not depend on the window that it was computed in. The twin shares the
model's layers and weights; between them it cuts off what nothing that follows looks at. So a window
of C px costs little more than C x C px, though it reads much more: with 32 px blocks of mean-shift
and attention and six residual blocks, 66 px on each side, of which 39 go through the first half of
the convolutions and 7 through the second.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.spec import DataError

# A cut copies a tensor, so it waits until it takes away at least this much on each side [px]. With
# 128 channels a copy takes as long as the convolutions of a block on 10 px around a window of 512.
SLACK, SLACK_THIN = 20, 1
# Tensors of no more channels cost next to nothing to copy.
THIN = 16
# Layers that look at no other pixel than the one they give.
POINTWISE = frozenset(
    {"ScaleReflectance", "ResidualSum", "OnePassSum", "Add", "Subtract", "Multiply", "LastOf"}
    | {"Activation", "ReLU", "LeakyReLU", "PReLU", "Identity", "Dropout", "SpatialDropout2D"}
    | {"BatchNormalization", "SyncBatchNormalization", "FusedBatchNormalization", "Concatenate"}
)
# Layers that look at a whole block, or at the whole window where they have none.
IN_BLOCKS = frozenset({"MeanShift", "SelfAttention", "Blended"})


@dataclasses.dataclass(frozen=True)
class Cropped:
    """A model for windows."""

    model: Any
    """{input: (batch, y, x, band)} with `halo` px of 10 m on each side -> {target: inside}."""
    halo: int
    """What it reads beyond what it gives, on each side [px of the target]."""
    step: int
    """Windows begin and end at multiples of it [px of the target]."""
    work: tuple[tuple[float, int], ...]
    """Of each convolution and attention: (FLOP a pixel, margin on each side [px])."""

    def flops(self, height: int, width: int) -> float:
        """FLOP that a window of this size takes, with its overlap."""
        return sum(flop * (height + 2 * m) * (width + 2 * m) for flop, m in self.work)


def has_lattice(model: Any) -> bool:
    """Whether a pixel's value can be made independent of the window.

    False where mean-shift or attention act on the whole window, whatever its size.
    """
    layers = [layer for layer in model.layers if type(layer).__name__ in IN_BLOCKS]
    return all(getattr(layer, "block", None) for layer in layers)


def crop(model: Any, ratios: Mapping[str, int]) -> Cropped:
    """The twin of a model.

    Args:
        model: a functional model, each layer used once; see has_lattice.
        ratios: pixel size of each input over that of the target.

    Raises:
        DataError: a layer of which it is not known how far it looks.
    """
    import keras

    calls: list[tuple[Any, list[Any], Any]] = []

    def note(layer: Any, *args: Any, **kwargs: Any) -> Any:
        out = layer(*args, **kwargs)
        calls.append((layer, keras.tree.flatten(args), out))
        return out

    noted = _clone(model, note)
    needs: dict[int, int] = {id(out): 0 for out in keras.tree.flatten(noted.outputs)}
    for layer, taken, out in reversed(calls):
        margin = _reads(layer, needs.setdefault(id(out), 0))
        for tensor in taken:
            needs[id(tensor)] = max(needs.get(id(tensor), 0), margin)
    unit = math.lcm(*ratios.values())
    halo = -(-max(needs[id(tensor)] for tensor in noted.inputs) // unit) * unit
    blocks = [layer.block for layer, _, _ in calls if type(layer).__name__ in IN_BLOCKS]
    builder = _Builder([needs[id(out)] for _, _, out in calls], halo)
    twin = _clone(model, builder.call)
    final = {id(out) for out in twin.outputs}
    if any(builder.margins[key] for key in final):
        raise DataError(f"model {model.name!r}: its last layer must look at single pixels")
    return Cropped(twin, halo, math.lcm(unit, *blocks), tuple(builder.work))


def _clone(model: Any, call: Any) -> Any:
    """The graph once more with the same layers, each called by `call`."""
    import keras

    return keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=call)


def _reads(layer: Any, margin: int) -> int:
    """Margin of a layer's input that its output needs to be right with this margin [px]."""
    kind = type(layer).__name__
    if kind in IN_BLOCKS:
        block = int(layer.block)
        # Half a block at the edges knows one lattice only.
        known = margin + (block // 2 if kind == "Blended" else 0)
        return -(-known // block) * block
    if kind in POINTWISE:
        return margin
    if kind == "Upsample":
        return interpolation_margin(
            margin, int(layer.scale), cubic=getattr(layer, "kernel", "") == "bicubic"
        )
    if hasattr(layer, "kernel_size") and set(layer.strides) == {1} and layer.padding == "same":
        sizes = zip(layer.kernel_size, layer.dilation_rate, strict=True)
        return margin + max(int(dilation) * (int(kernel) // 2) for kernel, dilation in sizes)
    raise DataError(f"layer {layer.name!r} ({kind}): it is not known how far it looks")


def interpolation_margin(margin: int, ratio: int, *, cubic: bool = False) -> int:
    """Margin of a coarse input that interpolates a margin of fine pixels [fine px].

    The outermost fine pixel lies between two coarse ones, and the outer one must be there too; the
    cubic kernel takes one more.
    """
    if ratio == 1:
        return margin
    outermost = math.floor((0.5 - margin) / ratio - 0.5) - (1 if cubic else 0)
    return max(-ratio * outermost, 0)


class _Builder:
    """Calls a model's layers again, with cuts between them."""

    def __init__(self, needs: Sequence[int], halo: int) -> None:
        """`needs`: the margin that the output of each call is needed with, in order."""
        self._needs, self._halo, self._number = needs, halo, 0
        self.margins: dict[int, int] = {}
        self._cuts: dict[tuple[int, int], Any] = {}
        self._kept: list[Any] = []  # tensors, so that no id is given twice
        self.work: list[tuple[float, int]] = []

    def call(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        """One layer."""
        import keras

        need = self._needs[self._number]
        last = self._number == len(self._needs) - 1
        self._number += 1
        kind = type(layer).__name__
        tensors = keras.tree.flatten(args)
        margin = min(self._margin(tensor) for tensor in tensors)
        wanted = _reads(layer, need)
        exactly = last or kind in IN_BLOCKS
        # What is still coarse is as small as can be.
        early = kind == "Upsample" or (kind == "ScaleReflectance" and not last)
        thin = all(tensor.shape[-1] <= THIN for tensor in tensors)
        if not early and (exactly or margin - wanted >= (SLACK_THIN if thin else SLACK)):
            margin = wanted
        args = keras.tree.map_structure(lambda tensor: self._cut(tensor, margin), args)
        out = layer(*args, **kwargs)
        self.margins[id(out)] = margin
        self._kept.append(out)
        if flop := _flop(layer, tensors[0].shape[-1]):
            self.work.append((flop, margin))
            # Moved lattices have half a block less on each side.
            moved = getattr(layer, "lattices", ())[1:]
            self.work += [(flop, margin - layer.block // 2) for _ in moved]
        return out

    def _margin(self, tensor: Any) -> int:
        return self.margins.get(id(tensor), self._halo)

    def _cut(self, tensor: Any, margin: int) -> Any:
        """The tensor without what lies beyond a margin."""
        import keras

        surplus = self._margin(tensor) - margin
        if not surplus:
            return tensor
        key = id(tensor), margin
        if key not in self._cuts:
            cut = keras.layers.Cropping2D(surplus, dtype=tensor.dtype)(tensor)
            self.margins[id(cut)] = margin
            self._kept += [tensor, cut]
            self._cuts[key] = cut
        return self._cuts[key]


def _flop(layer: Any, channels: int) -> float:
    """Of a convolution or attention for each pixel; other layers take next to none."""
    if hasattr(layer, "kernel_size"):
        return 2.0 * float(math.prod(layer.kernel_size)) * channels * int(layer.filters)
    if type(layer).__name__ == "Blended":  # for one of its lattices
        return _flop(layer.inner, channels)
    if type(layer).__name__ == "SelfAttention":
        keys, pixels = int(layer.key_filters), int(layer.block) ** 2
        return 2.0 * (channels * (2 * keys + channels) + pixels * (keys + channels))
    return 0.0
