"""What a classifier has at its two ends: standardised bands, and one logit for each class.

Both layers carry what their numbers are, so that a saved model tells its bands and classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from data_pipelines import sentinel2
from data_pipelines.spec import DataError, DatasetSpec
from kerass2.config import LABEL_TASK, ConfigError
from kerass2.models.normalization import FusedBatchNormalization, SyncBatchNormalization

TARGET = "labels"
"""Target of a data set with labels, and the output of a model that holds their logits."""
PROBABILITY = "probability"
"""The output that holds their sigmoid."""

# Mean and standard deviation [DN]. Source: BigEarthNet's models (Sumbul et al. 2019), as published
# with them; the ones of the training split.
BAND_STATISTICS: dict[str, tuple[float, float]] = {
    "B01": (340.76769064, 554.81258967),
    "B02": (429.9430203, 572.41639287),
    "B03": (614.21682446, 582.87945694),
    "B04": (590.23569706, 675.88746967),
    "B05": (950.68368468, 729.89827633),
    "B06": (1792.46290469, 1096.01480586),
    "B07": (2075.46795189, 1273.45393088),
    "B08": (2218.94553375, 1365.45589904),
    "B8A": (2266.46036911, 1356.13789355),
    "B09": (2246.0605464, 1302.3292881),
    "B11": (1594.42694882, 1079.19066363),
    "B12": (1009.32729131, 818.86747235),
}
EDGE = 120
"""Of a patch of BigEarthNet [px of 10 m]."""
RGB = ("B04", "B03", "B02")
ALL_BANDS = tuple(band for band in sentinel2.BANDS if band in BAND_STATISTICS)
# Inputs of a model by the option `inputs`: their bands and GSD [m].
INPUTS: dict[str, dict[str, tuple[tuple[str, ...], int]]] = {
    "native": {
        "gsd10": (sentinel2.BANDS_10M, 10),
        "gsd20": (sentinel2.BANDS_20M, 20),
        "gsd60": (sentinel2.BANDS_60M, 60),
    },
    "bands": {"bands": (ALL_BANDS, 10)},
}


@keras.saving.register_keras_serializable("kerass2")
class StandardiseBands(keras.layers.Layer):
    """Some bands of an input, less their mean, over their standard deviation; always float32."""

    def __init__(
        self,
        key: str,
        bands: Sequence[str],
        gsd: float,
        chosen: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """`key` names the model's input, `gsd` [m] is native; `chosen` bands come out."""
        super().__init__(**{"dtype": "float32", **kwargs})
        self.key, self.bands, self.gsd = key, tuple(bands), float(gsd)
        self.chosen = tuple(chosen or bands)
        statistics = np.array([BAND_STATISTICS[band] for band in self.chosen]) * 1e-4
        self._mean, self._deviation = statistics.T.astype(np.float32)

    def call(self, inputs: Any) -> Any:
        """(batch, y, x, band) float32 reflectance [1] to (batch, y, x, chosen band)."""
        if self.chosen != self.bands:
            positions = [self.bands.index(band) for band in self.chosen]
            inputs = ops.take(inputs, np.array(positions), axis=-1)
        return (inputs - self._mean) / self._deviation

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """As many bands as are chosen; a wrong number of given ones is refused, with names."""
        if input_shape[-1] != len(self.bands):
            raise ValueError(
                f"{self.key}: {input_shape[-1]} bands received, {len(self.bands)} needed: "
                f"{self.bands}"
            )
        return (*input_shape[:-1], len(self.chosen))

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        names = {"bands": list(self.bands), "chosen": list(self.chosen)}
        return {**super().get_config(), "key": self.key, "gsd": self.gsd, **names}


@keras.saving.register_keras_serializable("kerass2")
class Labels(keras.layers.Layer):
    """The logits as they are, with the names of their classes; always float32."""

    def __init__(
        self, num_classes: int, classes: Sequence[str] = (), task: str = LABEL_TASK, **kwargs: Any
    ) -> None:
        """`classes` are their names, none while no data have given them: see `name_classes`."""
        super().__init__(**{"dtype": "float32", **kwargs})
        self.num_classes, self.classes, self.task = num_classes, tuple(classes), task

    def call(self, inputs: Any) -> Any:
        """(batch, class) in and out."""
        return inputs

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The input's shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Number and names of the classes; "task" is what inputs.read_task looks for."""
        names = {"classes": list(self.classes), "task": self.task}
        return {**super().get_config(), "num_classes": self.num_classes, **names}


@keras.saving.register_keras_serializable("kerass2")
class SeededDropout(keras.layers.Layer):
    """Dropout whose mask follows from the run's seed, the step and the slice, and from no state.

    keras.layers.Dropout draws from a variable of its own, which tf.distribute mirrors: all ranks
    would drop the same, or fail to update it. See `seed_dropout`; without it, masks are Keras'.
    """

    def __init__(self, rate: float, **kwargs: Any) -> None:
        """`rate` is the fraction that is dropped."""
        super().__init__(**kwargs)
        self.rate = rate
        self.draw_seed: Any = None
        self.part: tuple[Any, int] = (0, 1)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Any shape in and out; the identity outside of training."""
        if not training or not self.rate:
            return inputs
        seed = _Drawn(self.draw_seed(*self.part)) if self.draw_seed else None
        return keras.random.dropout(inputs, self.rate, seed=seed)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The input's shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Adds the rate."""
        return {**super().get_config(), "rate": self.rate}


class _Drawn(keras.random.SeedGenerator):
    """A seed that is drawn already, where Keras asks for a generator. It has no variable."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def next(self, ordered: bool = True) -> Any:
        return self._value


def seed_dropout(model: keras.Model, *, seed: int, rank: int, step: Any) -> None:
    """Let each SeededDropout of a model draw from (seed, step, slice); `step` is called for it.

    A slice is what is computed at once of the global batch, a rank's batch or a part of it (see
    `drawing_part`), and counted over all ranks: masks depend on the size of the slices, and not on
    how many ranks share them.
    """
    layers = [layer for layer in model.layers if isinstance(layer, SeededDropout)]
    for number, layer in enumerate(layers):
        first = (1_000_003 * seed + number) % 2**31

        def draw(part: Any, parts: int, first: int = first) -> Any:
            own = ops.cast(rank * parts, "int32") + ops.cast(part, "int32")
            drawn = [ops.cast(first, "int32") + 1009 * own, ops.cast(step(), "int32")]
            return ops.cast(ops.stack(drawn), "uint32")

        layer.draw_seed = draw


@contextlib.contextmanager
def drawing_part(model: keras.Model, part: Any, parts: int) -> Iterator[None]:
    """Inside the `with` block, a model sees part number `part` of `parts` equal ones of a batch."""
    layers = [layer for layer in model.layers if isinstance(layer, SeededDropout)]
    for layer in layers:
        layer.part = (part, parts)
    try:
        yield
    finally:
        for layer in layers:
            layer.part = (0, 1)


# --- the two ends --------------------------------------------------------------------------------


def open_inputs(inputs: str, bands: str) -> tuple[dict[str, Any], Any]:
    """Inputs of a classifier, and their bands standardised, enlarged to 10 m and joined.

    Args:
        inputs: a key of INPUTS: bands on their native grids, or all at 10 m in one array.
        bands: "all", in the order of the inputs, or "rgb": B04, B03, B02.

    Raises:
        ConfigError: another word; the message lists those there are.
    """
    from kerass2.models.layers import Upsample

    if inputs not in INPUTS or bands not in ("all", "rgb"):
        raise ConfigError(
            f"inputs {inputs!r}, bands {bands!r}; there are: {', '.join(INPUTS)} and all, rgb"
        )
    given, joined = {}, []
    for key, (names, gsd) in INPUTS[inputs].items():
        chosen = names if bands == "all" else RGB
        if not set(chosen) <= set(names):
            continue
        given[key] = keras.Input((None, None, len(names)), name=key, dtype="float32")
        x = StandardiseBands(key, names, gsd, chosen, name=f"{key}_standardised")(given[key])
        joined.append(Upsample(gsd // 10, name=f"{key}_upsampled")(x) if gsd > 10 else x)
    join = keras.layers.Concatenate(name="fusion", dtype="float32")
    return given, join(joined) if len(joined) > 1 else joined[0]


def close_output(x: Any, classes: int, dropout: float) -> dict[str, Any]:
    """Dropout and a dense layer in float32 on (batch, filter): logits, and their sigmoid."""
    x = SeededDropout(dropout, dtype="float32", name="dropout")(x)
    x = keras.layers.Dense(classes, dtype="float32", name="predictions")(x)
    logits = Labels(classes, name=TARGET)(x)
    sigmoid = keras.layers.Activation("sigmoid", dtype="float32", name=PROBABILITY)(logits)
    return {TARGET: logits, PROBABILITY: sigmoid}


def make_normalisation(kind: str, momentum: float) -> Any:
    """A function (name, **further) -> batch normalisation layer, local or synchronised.

    Raises:
        ConfigError: another kind.
    """
    kinds = {"local": FusedBatchNormalization, "synchronised": SyncBatchNormalization}
    if kind not in kinds:
        raise ConfigError(f"batch_norm {kind!r}; there are: {', '.join(kinds)}")

    def make(name: str, **further: Any) -> keras.layers.Layer:
        # keras.applications' epsilon, which its weights were trained with.
        return kinds[kind](momentum=momentum, epsilon=1.001e-5, name=name, **further)

    return make


# --- what a model tells --------------------------------------------------------------------------


def find(model: keras.Model) -> Labels | None:
    """The layer that makes a model a classifier; None where it is none."""
    return next((layer for layer in model.layers if isinstance(layer, Labels)), None)


def describe(model: keras.Model) -> dict[str, Any]:
    """As models.describe, for a classifier: its target's "bands" are classes, and it has no block.

    "chosen" are the bands that it uses, in its order.
    """
    layer = find(model)
    ends = [layer for layer in model.layers if isinstance(layer, StandardiseBands)]
    ends.sort(key=lambda end: end.gsd)
    if layer is None or not ends:
        raise DataError(f"model {model.name!r} does not tell its bands and classes")
    return {
        "model": model.name,
        "task": layer.task,
        "inputs": {end.key: end.bands for end in ends},
        "target": TARGET,
        "target_bands": layer.classes or (None,) * layer.num_classes,
        "gsd": {end.key: end.gsd for end in ends},
        "scale": 1,
        "reflectance_scale": None,
        "block": None,
        "chosen": tuple(band for end in ends for band in end.chosen),
    }


def name_classes(model: keras.Model, spec: DatasetSpec) -> None:
    """Give a new classifier the names of its classes.

    One that has names, or another number of classes, stays as it is: see find_problems.
    """
    layer, target = find(model), spec.targets.get(TARGET)
    if layer is None or target is None or layer.classes:
        return
    if len(target.bands) == layer.num_classes:
        layer.classes = tuple(target.bands)


def find_problems(model: keras.Model, spec: DatasetSpec) -> list[str]:
    """What of a data set's labels and sizes does not fit a classifier; see models.check_fits."""
    takes, target = describe(model), spec.targets.get(TARGET)
    wanted = takes["target_bands"]
    if target is None:
        return [f"it has no {TARGET}"]
    problems = []
    if len(target.bands) != len(wanted):
        problems.append(
            f"its labels are {len(target.bands)} classes, the model has {len(wanted)} "
            f"(model.options.classes)"
        )
    elif wanted[0] is not None and tuple(target.bands) != tuple(wanted):
        pairs = enumerate(zip(target.bands, wanted, strict=True))
        number, (there, here) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        problems.append(f"its class {number} is {there!r}, the model's {here!r}")
    sizes = {
        tuple(round(n * gsd / 10) for n in spec.inputs[key].shape[:2])
        for key, gsd in takes["gsd"].items()
        if key in spec.inputs
    }
    if len(sizes) > 1:
        problems.append(f"its inputs cover {sorted(sizes)} px of 10 m")
    return problems
