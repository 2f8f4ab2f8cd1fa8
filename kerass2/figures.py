"""The report's pictures as data URIs: curves over the steps, panels of patches."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerass2 import colours

if TYPE_CHECKING:
    import keras

    from data_pipelines.spec import Source

# Key of log.jsonl, on the line of the validation after the last step.
BICUBIC = "validation_rmse_bicubic"
# Key of log.jsonl -> title of its curve.
CURVES = {
    "loss": "Training loss",
    "validation_rmse": "Validation RMSE [DN]",
    "validation_ap": "Validation average precision",
    "validation_f1": "Validation F1",
    "learning_rate": "Learning rate",
    "patches_per_second": "Throughput [patches/s]",
}
# Curves have at most this many points: an SVG of every step of a long run would not open.
MAX_POINTS = 1500
# Ink of the plots for either colour scheme of the reader: (text, grid, faint line, line).
INKS = {
    "light": ("#1b2328", "#dde2e5", "#a9c4dc", "#1f6aa5"),
    "dark": ("#e6ebee", "#2e383d", "#35546e", "#6db3e8"),
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Some patches with all that is to be compared; arrays (patch, y, x, band) float32 DN."""

    patch_id: list[str]
    """Names of the patches."""
    target: str
    """Name of the prediction."""
    lowres: NDArray[Any]
    """The bands to sharpen, as the model gets them."""
    bicubic: NDArray[Any]
    """The same, enlarged."""
    prediction: NDArray[Any]
    """The model's output."""
    truth: NDArray[Any]
    """What was measured."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """A value of the log over the steps."""

    key: str
    """Key of log.jsonl."""
    title: str
    """With its unit."""
    x: NDArray[np.float64]
    """(point,) steps."""
    y: NDArray[np.float64]
    """(point,) values."""
    level: float | None = None
    """Bicubic's, where the log has it."""


def select_curves(log: Sequence[Mapping[str, float]]) -> list[Curve]:
    """What of a log is drawn: values of at least two steps.

    Validations between the steps; the last one stands apart: it may see other patches. It has
    bicubic's RMSE.
    """
    bicubic = next((entry[BICUBIC] for entry in reversed(log) if entry.get(BICUBIC)), None)
    log = [entry for entry in log if BICUBIC not in entry]
    found = []
    for key, title in CURVES.items():
        points = [(entry["step"], entry[key]) for entry in log if entry.get(key) is not None]
        if len(points) < 2:
            continue
        x, y = np.asarray(points, np.float64).T
        found.append(Curve(key, title, x, y, bicubic if key == "validation_rmse" else None))
    return found


def curves(log: Sequence[Mapping[str, float]]) -> list[dict[str, str]]:
    """Plots over the steps, each in two colour schemes, as data URIs of SVG; see select_curves."""
    plots = []
    for curve in select_curves(log):
        key, title, x, y = curve.key, curve.title, curve.x, curve.y
        images = {
            scheme: _curve_svg(x, y, title, key == "loss", scheme, curve.level) for scheme in INKS
        }
        alt = f"{title} over {int(x[-1])} steps: from {y[0]:.4g} to {y[-1]:.4g}"
        if key == "validation_rmse":
            alt += f", lowest {y.min():.4g} after {int(x[y.argmin()])}"
        plots.append({"alt": alt, **images})
    return plots


def _curve_svg(
    x: NDArray[Any], y: NDArray[Any], title: str, noisy: bool, scheme: str, level: float | None
) -> str:
    """One line plot; a noisy one gets its running mean drawn over it, a level a dashed line."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    ink, grid, faint, line = INKS[scheme]
    thin = slice(None, None, max(1, len(y) // MAX_POINTS))
    # Text as paths: the page looks the same on machines without matplotlib's font.
    rc: Any = {"svg.fonttype": "path", "svg.hashsalt": "kerass2", "font.size": 9, "text.color": ink}
    with mpl.rc_context(rc):
        figure = Figure(figsize=(4.4, 2.6), layout="constrained")
        axes = figure.add_subplot()
        if noisy:
            axes.plot(x[thin], y[thin], color=faint, linewidth=1)
            kernel = np.ones(max(1, len(y) // 40)) / max(1, len(y) // 40)
            x, y = np.convolve(x, kernel, "valid"), np.convolve(y, kernel, "valid")
        axes.plot(x[thin], y[thin], color=line, linewidth=1.8)
        if level is not None:
            axes.axhline(level, color=ink, linewidth=1, linestyle="--")
            axes.annotate("bicubic", (x[0], level), (0, 3), textcoords="offset points", fontsize=8)
        if noisy and y.min() > 0 and y.max() / y.min() > 20:
            axes.set_yscale("log")
        elif y.min() >= 0:
            axes.set_ylim(bottom=0)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("step", color=ink)
        if axes.get_yscale() == "linear":
            axes.ticklabel_format(axis="y", scilimits=(-3, 5))
        axes.grid(color=grid, linewidth=0.7)
        axes.tick_params(which="both", colors=ink, length=0, labelsize=8.5)
        axes.yaxis.get_offset_text().set_color(ink)
        axes.spines[:].set_visible(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return data_uri("svg+xml", buffer.getvalue())


def patch_panels(model: keras.Model, source: Source, num_patches: int) -> list[dict[str, Any]]:
    """Input, bicubic, prediction, truth and error maps of evenly spaced patches of a split."""
    if num_patches < 1:
        return []
    positions = np.unique(np.linspace(0, len(source) - 1, num_patches).round().astype(np.int64))
    found = compare(model, source, positions)
    bands = source.spec.targets[found.target].bands
    channels = [bands.index(band) for band in colours.choose(bands)[-1][1]]
    return [_panels(found, i, channels) for i in range(len(positions))]


def compare(model: keras.Model, source: Source, positions: NDArray[Any]) -> Comparison:
    """Predict patches of a split, one at a time: direct attention is hungry.

    Args:
        model: a super-resolution model of kerass2.models.
        source: the split.
        positions: (patch,) which ones.
    """
    from data_pipelines.sentinel2 import QUANTIFICATION
    from data_pipelines.transforms import to_physical
    from kerass2 import evaluate, inputs, models, tiling

    described = models.describe(model)
    predict = tiling.compile_prediction(model)
    batch = to_physical(source.read(positions), source.spec)
    methods: dict[str, list[NDArray[Any]]] = {"bicubic": [], "model": []}
    for i in range(len(positions)):
        given = {name: values[i : i + 1] for name, values in batch["inputs"].items()}
        for method, predicted in evaluate.predict_methods(predict, described, given).items():
            methods[method].append(predicted)
    return Comparison(
        patch_id=[str(patch) for patch in batch["patch_id"]],
        target=described["target"],
        lowres=QUANTIFICATION * batch["inputs"][inputs.lowres_input(described)],
        bicubic=QUANTIFICATION * np.concatenate(methods["bicubic"]),
        prediction=QUANTIFICATION * np.concatenate(methods["model"]),
        truth=QUANTIFICATION * batch["targets"][described["target"]],
    )


def strips(
    lowres: NDArray[Any], prediction: NDArray[Any], truth: NDArray[Any], channels: Sequence[int]
) -> NDArray[np.uint8]:
    """Input, prediction and truth beside each other.

    Args:
        lowres: (patch, y, x, band) DN, enlarged by nearest neighbour.
        prediction: (patch, y, x, band) DN.
        truth: likewise; its range is that of the colours.
        channels: bands shown as red, green and blue.

    Returns:
        (patch, y, 3 x, 3).
    """
    scale = truth.shape[1] // lowres.shape[1]
    nearest = lowres.repeat(scale, axis=1).repeat(scale, axis=2)
    whole = np.concatenate([nearest, prediction, truth], axis=2)
    pairs = zip(whole[..., channels], truth[..., channels], strict=True)
    found = np.stack([colours.stretch_as(pixels, true) for pixels, true in pairs])
    return (255 * found + 0.5).astype(np.uint8)


def _panels(found: Comparison, i: int, channels: Sequence[int]) -> dict[str, Any]:
    """Pictures and figures of patch i."""
    name, truth = found.patch_id[i], found.truth[i]
    bicubic, prediction = found.bicubic[i], found.prediction[i]
    scale = truth.shape[0] // found.lowres.shape[1]
    nearest = found.lowres[i].repeat(scale, axis=0).repeat(scale, axis=1)
    errors = {
        "bicubic error": np.sqrt(np.mean(np.square(bicubic - truth), axis=-1)),
        "prediction error": np.sqrt(np.mean(np.square(prediction - truth), axis=-1)),
    }
    limit = max(float(np.percentile(errors["bicubic error"], 98)), 1.0)
    rmse = {key: float(np.sqrt(np.mean(np.square(error)))) for key, error in errors.items()}
    images = {
        "input": (nearest, "nearest neighbour"),
        "bicubic": (bicubic, f"RMSE {rmse['bicubic error']:.1f} DN"),
        "prediction": (prediction, f"RMSE {rmse['prediction error']:.1f} DN"),
        "truth": (truth, "the original pixels"),
    }
    panels = [
        _panel(key, name, note, colours.stretch_as(pixels[..., channels], truth[..., channels]))
        for key, (pixels, note) in images.items()
    ]
    panels += [
        _panel(key, name, f"mean {error.mean():.1f} DN", _magma(error / limit))
        for key, error in errors.items()
    ]
    return {
        "name": name,
        "panels": panels,
        "error_limit": f"{limit:.0f}",
        "bicubic_rmse": f"{rmse['bicubic error']:.1f}",
        "model_rmse": f"{rmse['prediction error']:.1f}",
        "change": change(rmse["bicubic error"], rmse["prediction error"]),
    }


def _panel(kind: str, patch: str, note: str, image: NDArray[Any]) -> dict[str, Any]:
    """A picture (y, x, 3) of 0 to 1 with its words."""
    height, width, _ = image.shape
    return {
        "name": kind.capitalize(),
        "note": note,
        "image": png(image),
        "width": width,
        "height": height,
        "alt": f"{kind} of patch {patch}, {note}",
    }


def error_scale() -> str:
    """The colours of the error maps from 0 to their limit, left to right."""
    return png(_magma(np.linspace(0, 1, 128)[None]))


def _magma(values: NDArray[Any]) -> NDArray[Any]:
    """Colours (y, x, 3) of values 0 to 1."""
    import matplotlib as mpl

    found: NDArray[Any] = mpl.colormaps["magma"](np.clip(values, 0, 1))[..., :3]
    return found


def png(image: NDArray[Any]) -> str:
    """Data URI of a picture (y, x, 3) of 0 to 1."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, (255 * image + 0.5).astype(np.uint8), format="png")
    return data_uri("png", buffer.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    """An image inside the page."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def change(before: float, after: float) -> str:
    """Relative change in percent, with a true minus sign."""
    if not before:
        return "–"
    return f"{100 * (after - before) / abs(before):+.1f} %".replace("-", "−")
