"""S2x and S6x (Zhang, Cavallaro and Jitsev 2020): residual networks with one self-attention.

The figures of the paper are not in its text. Read from the text: bilinear upsampling, band fusion,
half of the residual blocks, attention, the other half, last convolution, plus the upsampled bands.
S6x is the same with one more input.
"""

from __future__ import annotations

from typing import Any

import keras

from kerass2.config import ConfigError
from kerass2.models.dsen2 import TASKS, close_output, convolution, open_inputs, residual_block
from kerass2.models.layers import MeanShift, SelfAttention

FUSIONS = ("concatenate", "branches")
PLACES = ("middle", "end")
ACTIVATIONS = ("linear", "relu")


def build(
    *,
    task: str = "superres_20m",
    filters: int = 128,
    blocks: int = 6,
    attention: bool = True,
    attention_at: str = "middle",
    key_filters: int = 16,
    mean_shift: bool = True,
    fusion: str = "concatenate",
    fusion_activation: str = "linear",
    block: int = 0,
    dtype: str = "float32",
) -> keras.Model:
    """S2x.

    Args:
        task: "superres_20m"; the inputs of another task make the network of that task.
        filters: width of all convolutions but the last.
        blocks: residual blocks.
        attention: False leaves the self-attention out (ablation).
        attention_at: "middle", after half of the blocks, or "end", after all (ablation).
        key_filters: width of f and g in the attention.
        mean_shift: False leaves brightness as it is (ablation).
        fusion: "concatenate" or "branches", see fuse_bands.
        fusion_activation: "linear", or "relu" as in DSen2: so, without mean-shift and while gamma
            is 0, DSen2's weights give DSen2's output.
        block: edge [px of 10 m] of the squares that mean-shift and attention act on; 0: the whole
            input. A raster's values then do not depend on the window they are computed in, and
            patches no larger than a block are as without.
        dtype: Keras policy of blocks and attention; residual stream, first and last convolution
            stay float32.

    Returns:
        A model of {"gsd10": (batch, y, x, 4), "gsd20": (batch, y/2, x/2, 6)} float32 reflectance
        [1] that gives {task: (batch, y, x, band)}.

    Raises:
        ConfigError: an unknown word, or a block that cuts through pixels of the coarsest input.
    """
    return _network("s2x", **locals())


def build_s6x(
    *,
    task: str = "superres_60m",
    filters: int = 128,
    blocks: int = 6,
    attention: bool = True,
    attention_at: str = "middle",
    key_filters: int = 16,
    mean_shift: bool = True,
    fusion: str = "concatenate",
    fusion_activation: str = "linear",
    block: int = 0,
    dtype: str = "float32",
) -> keras.Model:
    """S6x: takes {"gsd60": (batch, y/6, x/6, 2)} too and sharpens it; arguments as in build."""
    return _network("s6x", **locals())


def _network(
    name: str,
    task: str,
    filters: int,
    blocks: int,
    attention: bool,
    attention_at: str,
    key_filters: int,
    mean_shift: bool,
    fusion: str,
    fusion_activation: str,
    block: int,
    dtype: str,
) -> keras.Model:
    """The network of both; arguments as in build."""
    _check_words(attention_at=(attention_at, PLACES), fusion=(fusion, FUSIONS))
    _check_words(fusion_activation=(fusion_activation, ACTIVATIONS))
    inputs, fine = open_inputs(task)
    coarsest = max(TASKS[task].values()) // 10
    if block % coarsest:
        raise ConfigError(f"block = {block}: {task} needs a multiple of {coarsest}")
    edge = block or None
    x = fuse_bands(fine, filters, edge, mean_shift, fusion, fusion_activation)
    place = blocks if attention_at == "end" else (blocks + 1) // 2
    for number in range(1, blocks + 1):
        x = residual_block(x, filters, f"block{number}", dtype)
        if attention and number == place:
            x = SelfAttention(key_filters, edge, dtype=dtype, name="attention")(x)
    return keras.Model(inputs, close_output(x, fine[-1], task), name=name)


def fuse_bands(
    fine: list[Any],
    filters: int,
    block: int | None,
    mean_shift: bool = True,
    fusion: str = "concatenate",
    activation: str = "linear",
) -> Any:
    """Band fusion: all bands in one tensor, each block's band means moved to 0, a convolution.

    The paper shows this module in a figure (2b) that is not in its text; the text names the
    mean-shift and "input branches". "concatenate" reads it as one convolution over all bands, with
    no activation, as in the residual networks it follows. "branches" is the other reading: each
    input has a mean-shift and a convolution of its own, of `filters` as all in the paper, before
    the concatenation, and a 1 x 1 convolution brings that back to `filters`.

    Args:
        fine: inputs at 10 m, (batch, y, x, band) each.
        filters: width of what comes out.
        block: edge [px] of the mean-shift's blocks, None for the whole input.
        mean_shift: False leaves it out.
        fusion: one of FUSIONS.
        activation: of the module's last convolution.
    """
    if fusion == "concatenate":
        x = keras.layers.Concatenate(name="fusion")(fine)
        x = MeanShift(block, name="mean_shift")(x) if mean_shift else x
        return convolution(filters, "conv_first", activation=activation)(x)
    branches = []
    for number, x in enumerate(fine):
        x = MeanShift(block, name=f"mean_shift{number}")(x) if mean_shift else x
        branches.append(convolution(filters, f"conv_branch{number}")(x))
    x = keras.layers.Concatenate(name="fusion")(branches)
    return convolution(filters, "conv_first", size=1, activation=activation)(x)


def _check_words(**options: tuple[str, tuple[str, ...]]) -> None:
    """Refuse an option whose value is not one of the words it may be."""
    for key, (value, allowed) in options.items():
        if value not in allowed:
            raise ConfigError(f"{key} = {value!r}; there are: {', '.join(allowed)}")
