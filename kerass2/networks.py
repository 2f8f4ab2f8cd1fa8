"""What predicts a window: a saved model, bicubic interpolation; on a lattice or DSen2's own way."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.spec import DataError
from data_pipelines.windows import Window
from kerass2 import cropping, tiling

if TYPE_CHECKING:
    import keras

PROCEDURES = ("lattice", "dsen2")
# DSen2's windows and their borders [px of the target] by task.
# Source: lanha/DSen2, testing/supres.py: patchSize=128, border=8 and patchSize=192, border=12.
DSEN2 = {"superres_20m": (128, 8), "superres_60m": (192, 12)}
# Edge of a window with its halo [px] for models whose mean-shift or attention knows no blocks: the
# whole window is one. A float32 map of the attention takes 67 MB at 64 px, 1.07 GB at 128.
WINDOW_WHOLE = 64
# Windows of a fixed size predicted at once.
BATCH = 8


@dataclasses.dataclass(frozen=True)
class Piece:
    """One call of a model."""

    own: Window
    """What is kept of its output [px of the target]."""
    out: Window
    """What it gives."""
    view: Window
    """What it reads; may reach beyond the granule, where pixels are mirrored."""


@dataclasses.dataclass(frozen=True)
class Network:
    """A prediction of some bands, and where its windows lie."""

    name: str
    """Of the model."""
    task: str
    """Of the model."""
    inputs: Mapping[str, tuple[str, ...]]
    """Cubes and bands that it takes."""
    bands: tuple[str, ...]
    """Bands that it gives."""
    lowres: str
    """The input that holds them as they are."""
    radius: int
    """Pixels that a value depends on, on each side [px of the target]; mean-shift and attention
    look further."""
    step: int
    """Windows begin and end at multiples of it, counted from the granule's first pixel."""
    place: Callable[[Window, tuple[int, int]], list[Piece]]
    """(region, shape of the granule) -> the calls that fill the region."""
    predict: Callable[[Mapping[str, NDArray[Any]]], NDArray[Any]]
    """{input: (batch, y, x, band) float32 reflectance} -> (batch, y, x, band)."""
    flops: Callable[[int, int], float] = lambda height, width: 0.0
    """FLOP of a window of this height and width, its overlap included; 0: not counted."""
    flops_inside: float = 0.0
    """FLOP for each pixel without overlap."""

    @property
    def ratios(self) -> dict[str, int]:
        """Pixel size of each input over that of the target."""
        from data_pipelines.sentinel2 import GSDS

        return {name: GSDS[name] // 10 for name in self.inputs}


def build_network(
    model: keras.Model,
    *,
    procedure: str = "lattice",
    precision: str | None = None,
    window: int | None = None,
    border: int | None = None,
) -> Network:
    """A network of a saved model.

    Args:
        model: a super-resolution model of kerass2.models.
        procedure: "lattice": a pixel's value does not depend on windows, and where mean-shift and
            attention act on blocks, half-shifted lattices are blended (models.blending);
            "dsen2": windows and border of DSen2's own scripts, each with a lattice of its own, not
            blended; at its edge interpolation repeats the last pixel, where theirs mirrors it.
        precision: "float32" or "bfloat16" of the inner layers; None: the model's own.
        window: edge of a window with its border [px], for "dsen2" and for models that see a whole
            window at once.
        border: pixels on each side that "dsen2" does not keep.

    Raises:
        DataError: an unknown procedure, or a window that the model cannot work in.
    """
    from kerass2 import inputs, models
    from kerass2.models import blending, fused

    if procedure not in PROCEDURES:
        raise DataError(f"procedure {procedure!r}; there are {', '.join(PROCEDURES)}")
    if precision is not None:
        model = recast(model, precision)
    described = models.describe(model)
    ratios = {name: round(gsd / 10) for name, gsd in described["gsd"].items()}
    flops, inside, sizes_known = _no_flops, 0.0, False
    if procedure == "dsen2":
        own = DSEN2.get(described["task"], DSEN2["superres_20m"])
        size, border = window or own[0], own[1] if border is None else border
        place = _dsen2_pieces(size, border, math.lcm(*ratios.values()))
        network, step = model, size - 2 * border
    elif cropping.has_lattice(model):
        cropped = cropping.crop(fused.fuse(blending.blend(model)), ratios)
        network, step, flops = cropped.model, cropped.step, cropped.flops
        inside = sum(flop for flop, _ in cropped.work)
        place, sizes_known = _exact_pieces(cropped.halo, step), True
    else:
        lattice = tiling.build_lattice(model, ratios, window or WINDOW_WHOLE)
        network, step, place = model, lattice.core, _whole_pieces(lattice)
    return Network(
        model.name,
        described["task"],
        described["inputs"],
        tuple(described["target_bands"]),
        inputs.lowres_input(described),
        tiling.receptive_radius(model),
        step,
        place,
        _only(tiling.compile_prediction(network, sizes_known=sizes_known), described["target"]),
        flops,
        inside,
    )


def build_bicubic(task: str) -> Network:
    """Bicubic interpolation (OpenCV's) of the bands that a task sharpens, as a network.

    At the granule's edge pixels are mirrored, as for all networks; OpenCV repeats the last one.

    Args:
        task: "superres_20m" or "superres_60m".
    """
    from keras import ops

    from data_pipelines import sentinel2
    from kerass2 import resampling

    gsd = {"superres_20m": 20, "superres_60m": 60}[task]
    ratio, bands, lowres = gsd // 10, sentinel2.bands_at(gsd), f"gsd{gsd}"
    halo = cropping.interpolation_margin(0, ratio, cubic=True)

    def predict(given: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        fine = np.asarray(ops.convert_to_numpy(resampling.bicubic(given[lowres], ratio)))
        return fine[:, halo : fine.shape[1] - halo, halo : fine.shape[2] - halo]

    place = _exact_pieces(halo, ratio)
    return Network("bicubic", task, {lowres: bands}, bands, lowres, halo, ratio, place, predict)


def recast(model: keras.Model, precision: str) -> keras.Model:
    """The model with its inner layers in another precision; weights are the same.

    Inner are the convolutions of the residual blocks and the attention: first and last convolution,
    residual stream and output are float32 in every precision.

    Raises:
        DataError: an unknown precision.
    """
    import keras

    from kerass2.precision import POLICIES

    if precision not in POLICIES:
        raise DataError(f"precision {precision!r}; there are {', '.join(POLICIES)}")
    policy = POLICIES[precision]

    def copy(layer: Any) -> Any:
        inner = re.match(r"block\d+_conv", layer.name) or type(layer).__name__ == "SelfAttention"
        if not inner or layer.dtype_policy.name == policy:
            return layer
        return type(layer).from_config({**layer.get_config(), "dtype": policy})

    copied = keras.models.clone_model(model, clone_function=copy)
    for layer in copied.layers:
        if layer.weights and layer is not (old := model.get_layer(layer.name)):
            layer.set_weights(old.get_weights())
    return copied


def _only(predict: tiling.Predict, target: str) -> Callable[..., NDArray[Any]]:
    return lambda given: predict(given)[target]


def _no_flops(height: int, width: int) -> float:
    return 0.0


def _exact_pieces(halo: int, step: int) -> Callable[[Window, tuple[int, int]], list[Piece]]:
    """One call for a region, grown to multiples of `step`."""

    def place(region: Window, shape: tuple[int, int]) -> list[Piece]:
        y, x = (n // step * step for n in (region.y, region.x))
        height = -(-(region.y + region.height - y) // step) * step
        width = -(-(region.x + region.width - x) // step) * step
        out = Window(y, x, height, width)
        return [Piece(region, out, out.grown(halo))]

    return place


def _whole_pieces(lattice: tiling.Lattice) -> Callable[[Window, tuple[int, int]], list[Piece]]:
    """Windows of one size; the last ones reach beyond the granule."""

    def cells(start: int, stop: int, size: int) -> Iterator[tuple[int, int, int]]:
        for first in range(start // lattice.core * lattice.core, stop, lattice.core):
            yield max(first, start), min(first + lattice.core, stop), first - lattice.halo

    return _pieces(cells, lambda size: lattice.window)


def _dsen2_pieces(
    window: int, border: int, unit: int
) -> Callable[[Window, tuple[int, int]], list[Piece]]:
    """DSen2's windows: side by side from the granule's corner; the last ones moved back to its end.

    Where two cores overlap the later one is kept. A granule that is smaller than a core is one
    window.
    """
    core = window - 2 * border
    if core < unit or border < 0 or window % unit or border % unit:
        raise DataError(
            f"windows of {window} px with a border of {border} px: both must be multiples of "
            f"{unit} px, and a core must be left"
        )

    def cells(start: int, stop: int, size: int) -> Iterator[tuple[int, int, int]]:
        edge = min(core, size)
        last = size - edge
        firsts = [*range(0, last, edge), last]
        for number, first in enumerate(firsts):
            end = size if first == last else min(firsts[number + 1], first + edge)
            if first < stop and end > start:
                yield max(first, start), min(end, stop), first - border

    return _pieces(cells, lambda size: min(core, size) + 2 * border)


def _pieces(
    cells: Callable[[int, int, int], Iterator[tuple[int, int, int]]], edge: Callable[[int], int]
) -> Callable[[Window, tuple[int, int]], list[Piece]]:
    """Pieces of cells along both axes.

    `cells`: (start, stop, size of the axis) -> (own start, own stop, start of the view).
    """

    def place(region: Window, shape: tuple[int, int]) -> list[Piece]:
        pieces = []
        columns = list(cells(region.x, region.x + region.width, shape[1]))
        for y, y_stop, top in cells(region.y, region.y + region.height, shape[0]):
            for x, x_stop, left in columns:
                view = Window(top, left, edge(shape[0]), edge(shape[1]))
                pieces.append(Piece(Window(y, x, y_stop - y, x_stop - x), view, view))
        return pieces

    return place


def predict_region(
    network: Network,
    given: Mapping[str, NDArray[Any]],
    union: Window,
    pieces: Sequence[Piece],
    region: Window,
) -> NDArray[Any]:
    """(y, x, band) float32 reflectance of a region.

    Args:
        network: see Network.
        given: {input: (y, x, band) float32 reflectance} of `union`.
        union: the window around what all pieces read.
        pieces: of network.place.
        region: what they fill.
    """
    out = np.empty((region.height, region.width, len(network.bands)), np.float32)
    # Pieces are of one size each but for the edges: those that stand together go together.
    start = 0
    while start < len(pieces):
        stop = start + 1
        size = pieces[start].view.height, pieces[start].view.width
        while (
            stop < min(len(pieces), start + BATCH)
            and (pieces[stop].view.height, pieces[stop].view.width) == size
        ):
            stop += 1
        group = pieces[start:stop]
        values = network.predict(_stack(given, network.ratios, union, group))
        for piece, value in zip(group, values, strict=True):
            rows, columns = _inside(piece.own, region), _inside(piece.own, piece.out)
            out[rows] = value[columns]
        start = stop
    return out


def _inside(window: Window, around: Window) -> tuple[slice, slice]:
    """Index of a window in an array of another around it."""
    y, x = window.y - around.y, window.x - around.x
    return slice(y, y + window.height), slice(x, x + window.width)


def _stack(
    given: Mapping[str, NDArray[Any]],
    ratios: Mapping[str, int],
    union: Window,
    group: Sequence[Piece],
) -> dict[str, NDArray[Any]]:
    """{input: (piece, y, x, band)} of what pieces read."""
    batch = {}
    for name, ratio in ratios.items():
        around = union.coarser(ratio)
        views = [given[name][_inside(piece.view.coarser(ratio), around)] for piece in group]
        batch[name] = views[0][None] if len(views) == 1 else np.stack(views)
    return batch
