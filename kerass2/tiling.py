"""A model over a whole granule, window by window, in bounded memory.

The lattice of windows is fixed: it begins at the granule's origin, however many windows go into a
batch. Convolutions see `halo` pixels beyond what they write and are exact with that. Mean-shift and
attention look at their whole window instead: with them the result DEPENDS ON THE LATTICE, so window
and halo belong to a result as the weights do, and windows may differ a little along their seams.
"""

from __future__ import annotations

import bisect
import concurrent.futures
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.sentinel2 import NO_DATA, QUANTIFICATION, SATURATED
from data_pipelines.spec import DataError
from data_pipelines.windows import Window

# Edge of a window with its halo [px of the target]. A fp32 map of direct attention takes 67 MB at
# 64 px and 1.07 GB at 128; convolutions alone waste less on the halo in large windows.
WINDOW, WINDOW_ATTENTION = 128, 64
# Windows predicted at once.
BATCH = 8

Predict = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]


@dataclasses.dataclass(frozen=True)
class Lattice:
    """Square windows that write `core` pixels each and read `halo` more on every side."""

    core: int
    """Edge of what a window writes [px of the target]."""
    halo: int
    """Pixels read beyond it [px of the target]."""
    ratios: Mapping[str, int]
    """Pixel size of each input over that of the target, e.g. {"gsd10": 1, "gsd20": 2}."""

    def __post_init__(self) -> None:
        """Refuse windows that cut through a pixel of an input."""
        step = math.lcm(*self.ratios.values())
        if self.core < 1 or self.halo < 0 or self.core % step or self.halo % step:
            raise DataError(
                f"windows of {self.core} px with a halo of {self.halo} px: "
                f"both must be multiples of {step} px, a pixel of the coarsest input"
            )

    @property
    def window(self) -> int:
        """Edge of what a window reads [px of the target]."""
        return self.core + 2 * self.halo

    def starts(self, size: int) -> range:
        """First pixel of each core along an axis of `size` pixels; the last may reach beyond it."""
        return range(0, size, self.core)

    def num_windows(self, height: int, width: int) -> int:
        """Windows of a granule."""
        return len(self.starts(height)) * len(self.starts(width))


def receptive_radius(model: Any) -> int:
    """Pixels that the convolutions reach to each side; an upper bound where branches are parallel.

    14 for six residual blocks: 2 x 6 convolutions of 3 x 3, one before and one after them.
    """
    radius = 0
    for layer in model.layers:
        if hasattr(layer, "layers"):
            radius += receptive_radius(layer)
        elif hasattr(layer, "kernel_size"):
            sizes = zip(layer.kernel_size, layer.dilation_rate, strict=True)
            radius += max(dilation * (kernel // 2) for kernel, dilation in sizes)
    return radius


def exact_halo(radius: int, ratios: Mapping[str, int]) -> int:
    """Halo with which a core is what the whole image would give, for convolutions of this radius.

    A coarse input is interpolated inside the window. The outermost pixel that the convolutions
    reach lies between two coarse pixels, and the outer one must be there too: 14 px become 16 with
    inputs of 20 m and 18 with inputs of 60 m.
    """
    step = math.lcm(*ratios.values())
    reach = [
        -ratio * math.floor((0.5 - radius) / ratio - 0.5) if ratio > 1 else radius
        for ratio in ratios.values()
    ]
    return math.ceil(max(reach) / step) * step


def build_lattice(model: Any, ratios: Mapping[str, int], window: int | None = None) -> Lattice:
    """The lattice for a model: exact halo, and windows of about `window` pixels with it.

    Args:
        model: a model of kerass2.models.
        ratios: see Lattice.
        window: edge of a window with its halo [px]; by default 64 for models with attention and 128
            for others, more where the halo would leave less than half of that.

    Raises:
        DataError: `window` is too small for the model's halo.
    """
    from kerass2.models import layers

    step = math.lcm(*ratios.values())
    halo = exact_halo(receptive_radius(model), ratios)
    if window is None:
        attention = any(isinstance(layer, layers.SelfAttention) for layer in model.layers)
        window = max(WINDOW_ATTENTION if attention else WINDOW, 4 * halo)
    core = (window - 2 * halo) // step * step
    if core < 1:
        raise DataError(f"window of {window} px: this model needs at least {2 * halo + step} px")
    return Lattice(core, halo, dict(ratios))


def compile_prediction(model: Any) -> Predict:
    """A compiled call: {input: (batch, y, x, band) float32 reflectance} to {target: likewise}.

    Under TensorFlow a function of our own instead of model.predict_on_batch, which goes through
    tf.distribute when the model was made in a strategy's scope: every rank would then have to take
    part in each call.
    """
    import keras

    if keras.backend.backend() != "tensorflow":

        def predict(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
            outputs = model.predict_on_batch(dict(inputs))
            return {name: np.asarray(value) for name, value in outputs.items()}

        return predict
    import tensorflow as tf

    # A batch of another size is traced once more; then the batch axis is left open.
    compiled = tf.function(
        lambda inputs: model(inputs, training=False), reduce_retracing=True, autograph=False
    )

    def predict_tensorflow(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        outputs = compiled({name: tf.convert_to_tensor(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in outputs.items()}

    return predict_tensorflow


def predict_strips(
    predict: Predict,
    cubes: Mapping[str, Any],
    lattice: Lattice,
    *,
    target: str,
    num_bands: int,
    batch_size: int = BATCH,
    missing: str | None = None,
    advance: Callable[[int], None] | None = None,
) -> Iterator[NDArray[Any]]:
    """Predict a granule from top to bottom; memory holds two rows of windows and one batch.

    The next row of windows is read while this one is computed. Of a lazy cube it holds the rows of
    chunks that these windows see, and reads each chunk once.

    Args:
        predict: see compile_prediction.
        cubes: {input: (band, y, x)} DN; numpy, or lazy xarray, which is read strip by strip.
        lattice: where windows lie.
        target: name of the prediction.
        num_bands: bands of the prediction.
        batch_size: windows predicted at once.
        missing: name of the input with the bands of the prediction; where it has no data, the
            prediction is NaN, and where it is saturated, +Inf. None lets the prediction stand.
        advance: called with the number of windows done since the last call.

    Yields:
        (rows, x, band) float32 reflectance, `lattice.core` rows each, the last one what is left.
        Windows without any data (all inputs 0) are 0 and are not computed.

    Raises:
        DataError: the cubes do not nest, or the model gives a value that is not finite.
    """
    height, width = granule_shape(cubes, lattice.ratios)
    columns = lattice.starts(width)
    rows = {name: _Rows(cubes[name]) for name in lattice.ratios}
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as reader:
        following = reader.submit(_read_row, rows, 0, width, lattice)
        for y in lattice.starts(height):
            row = following.result()
            if y + lattice.core < height:
                following = reader.submit(_read_row, rows, y + lattice.core, width, lattice)
            strip = np.zeros((lattice.core, len(columns) * lattice.core, num_bands), np.float32)
            starts = [x for x in columns if _has_data(row, x, lattice)]
            if advance is not None:
                advance(len(columns) - len(starts))
            for i in range(0, len(starts), batch_size):
                part = starts[i : i + batch_size]
                _write_cores(strip, predict(_cut(row, part, lattice))[target], part, lattice)
                if advance is not None:
                    advance(len(part))
            if not np.isfinite(strip).all():
                stop = min(y + lattice.core, height)
                raise DataError(f"the model gives NaN or Inf in rows {y} to {stop}: is it trained?")
            if missing is not None:
                strip[_where(row, missing, lattice, NO_DATA)] = np.nan
                strip[_where(row, missing, lattice, SATURATED)] = np.inf
            yield strip[: height - y, :width]


def granule_shape(cubes: Mapping[str, Any], ratios: Mapping[str, int]) -> tuple[int, int]:
    """Height and width of the target [px].

    Raises:
        DataError: a cube is missing, empty, or does not cover the same ground as the others.
    """
    missing = [name for name in ratios if name not in cubes]
    if missing:
        raise DataError(f"no {', '.join(missing)}; the input has {', '.join(cubes) or 'nothing'}")
    sizes = {name: cubes[name].shape[1:] for name in ratios}
    ground = {(sizes[name][0] * r, sizes[name][1] * r) for name, r in ratios.items()}
    if len(ground) > 1 or 0 in min(ground):
        found = ", ".join(f"{name} {y} x {x} px" for name, (y, x) in sizes.items())
        raise DataError(f"grids do not cover the same ground: {found}")
    height, width = ground.pop()
    return height, width


class _Rows:
    """Rows of a cube (band, y, x) from top to bottom; each chunk of a lazy one is read once.

    A chunk is read as a whole, and is higher than a row of windows: without this a tile would be
    decoded ten times over.
    """

    def __init__(self, cube: Any) -> None:
        self.shape = cube.shape
        self._cube = cube
        chunks = getattr(cube, "chunks", None)
        # First row of each row of chunks, and the end; a numpy array needs no reading.
        self._edges = None if chunks is None else np.cumsum([0, *chunks[-2]]).tolist()
        self._first = 0
        self._held: NDArray[Any] | None = None

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows start to stop; `start` never falls from call to call."""
        if self._edges is None:
            return np.asarray(self._cube[:, start:stop])
        first = bisect.bisect_right(self._edges, start) - 1
        last = bisect.bisect_left(self._edges, stop)
        begin, end = self._edges[first], self._edges[last]
        if self._held is None or begin > self._first or end > self._first + self._held.shape[1]:
            kept = [] if self._held is None else [self._held[:, begin - self._first :]]
            done = begin + (kept[0].shape[1] if kept else 0)
            if done < end:
                kept.append(np.asarray(self._cube[:, done:end]))
            # A copy, so that the rows that are done with can be forgotten.
            self._first, self._held = begin, np.concatenate(kept, axis=1)
        return self._held[:, start - self._first : stop - self._first]


def _read_row(
    cubes: Mapping[str, _Rows], y: int, width: int, lattice: Lattice
) -> dict[str, NDArray[Any]]:
    """{input: (y, x, band)} DN of a row of windows with halo, mirrored at the granule's edges.

    Mirroring also fills the last windows up beyond their halo, where nothing needs to be exact.
    """
    whole = len(lattice.starts(width)) * lattice.core
    row = {}
    for name, ratio in lattice.ratios.items():
        view = Window(y, 0, lattice.core, whole).grown(lattice.halo).coarser(ratio)
        inside = view.clipped(*cubes[name].shape[1:])
        rows = cubes[name].read(inside.y, inside.y + inside.height)
        pixels = rows[:, :, inside.slices[1]].transpose(1, 2, 0)
        before = inside.y - view.y, inside.x - view.x
        after = (
            view.height - inside.height - before[0],
            view.width - inside.width - before[1],
        )
        margins = ((before[0], after[0]), (before[1], after[1]), (0, 0))
        row[name] = np.pad(pixels, margins, mode="symmetric")
    return row


def _columns(x: int, ratio: int, lattice: Lattice) -> slice:
    """What the window whose core begins at target column x reads of a row, which has its halo."""
    return slice(x // ratio, (x + lattice.window) // ratio)


def _where(
    row: Mapping[str, NDArray[Any]], name: str, lattice: Lattice, dn: int
) -> NDArray[np.bool_]:
    """(core, x, band): where an input has this DN, without the halo, on the target's grid."""
    ratio, halo = lattice.ratios[name], lattice.halo
    pixels = row[name][halo // ratio : (halo + lattice.core) // ratio]
    found = pixels[:, halo // ratio : -(halo // ratio) or None] == dn
    return np.asarray(found.repeat(ratio, axis=0).repeat(ratio, axis=1))


def _has_data(row: Mapping[str, NDArray[Any]], x: int, lattice: Lattice) -> bool:
    ratios = lattice.ratios.items()
    return any(row[name][:, _columns(x, ratio, lattice)].any() for name, ratio in ratios)


def _cut(
    row: Mapping[str, NDArray[Any]], starts: Sequence[int], lattice: Lattice
) -> dict[str, NDArray[Any]]:
    """{input: (window, y, x, band) float32 reflectance} of the windows at columns `starts`."""
    batch = {}
    for name, ratio in lattice.ratios.items():
        pixels = np.stack([row[name][:, _columns(x, ratio, lattice)] for x in starts])
        batch[name] = pixels.astype(np.float32) / np.float32(QUANTIFICATION)
    return batch


def _write_cores(
    strip: NDArray[Any], predicted: NDArray[Any], starts: Sequence[int], lattice: Lattice
) -> None:
    """Put the inner part of each predicted window in its place."""
    inside = slice(lattice.halo, lattice.halo + lattice.core)
    for x, values in zip(starts, predicted, strict=True):
        strip[:, x : x + lattice.core] = values[inside, inside]
