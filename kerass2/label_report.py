"""The parts of the report's page that are of a classifier: scores, curves, patches with labels."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.spec import DataError
from kerass2 import colours, figures, label_tables, render
from kerass2.tables import Table

if TYPE_CHECKING:
    from data_pipelines.spec import Source

MAIN = "model"
RGB = colours.TRUE_COLOUR
# What the groups of patches are, by the keys of label_scores.pick_examples.
NOTES = {
    "right": "all labels are right; evenly spaced over these, none chosen by its score",
    "wrong": "some label is wrong; evenly spaced over these, none chosen by its score",
    "most confident wrong": "the wrong labels that are farthest from their thresholds",
}
# Classes of a plot with a line each.
MOST_CURVES = 8
# Wrong labels that are listed below a patch.
MOST_WRONG = 8


def tiles(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    """The few numbers to see first."""
    found = evaluation["methods"][MAIN]
    values = {
        "F1, micro": found["micro"]["f1"],
        "F1, macro": found["macro"]["f1"],
        "Average precision, micro": found["average_precision"]["micro"],
        "Average precision, macro": found["average_precision"]["macro"],
    }
    return [{"name": name, "value": f"{value:.3f}", "note": ""} for name, value in values.items()]


def describe(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Tables and plots of evaluation.json."""
    shown = [label_tables.overall(evaluation), label_tables.by_class(evaluation)]
    if (confused := label_tables.confused(evaluation)).rows:
        shown.append(confused)
    return {
        "tables": [_format(table) for table in shown],
        "plots": [_plot(evaluation, draw) for draw in (_draw_bars, _draw_curves)],
    }


def _format(table: Table) -> dict[str, Any]:
    rows = [[render.format_cell(cell) for cell in row] for row in table.rows]
    return {
        "name": table.caption.rpartition(": ")[2],
        "columns": table.columns,
        "rows": rows,
        "notes": table.notes,
    }


# --- plots ---------------------------------------------------------------------------------------


def _plot(evaluation: Mapping[str, Any], draw: Callable[..., str]) -> dict[str, str]:
    """A plot in two colour schemes, as data URIs of SVG; `draw` gives its text."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    plots = {}
    for scheme, (ink, grid, faint, line) in figures.INKS.items():
        # Text as paths: the page looks the same on machines without matplotlib's font.
        rc: Any = {"svg.fonttype": "path", "svg.hashsalt": "kerass2", "text.color": ink}
        with mpl.rc_context({**rc, "font.size": 8.5}):
            figure = Figure(layout="constrained")
            axes = figure.add_subplot()
            plots["alt"] = draw(axes, evaluation, (faint, line, ink))
            axes.grid(color=grid, linewidth=0.7)
            axes.set_axisbelow(True)
            axes.tick_params(which="both", colors=ink, length=0)
            axes.spines[:].set_visible(False)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        plots[scheme] = figures.data_uri("svg+xml", buffer.getvalue())
    return plots


def _draw_bars(axes: Any, evaluation: Mapping[str, Any], inks: tuple[str, str, str]) -> str:
    """F1 of each class, the most frequent one first, with its support."""
    _, line, _ = inks
    found = evaluation["methods"][MAIN]["classes"]
    names, support, f1 = evaluation["classes"], found["support"], found["f1"]
    order = np.argsort(support, kind="stable")
    axes.figure.set_size_inches(7.0, 1.0 + 0.2 * len(names))
    axes.barh(np.arange(len(order)), [f1[i] for i in order], color=line, height=0.7)
    axes.set_yticks(np.arange(len(order)), [_shorten(names[i]) for i in order])
    for place, i in enumerate(order):
        # Beside the axes: a bar may reach their end.
        number = f"{support[i]:,}"
        axes.annotate(number, (1.01, place), fontsize=7, va="center", annotation_clip=False)
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.set_title("F1 of each class, and how many patches have it", loc="left", fontsize=10)
    worst = min(range(len(names)), key=lambda i: f1[i])
    return f"F1 of {len(names)} classes, lowest {names[worst]} with {f1[worst]:.3f}"


def _draw_curves(axes: Any, evaluation: Mapping[str, Any], inks: tuple[str, str, str]) -> str:
    """Precision over recall: all labels together, and the most frequent classes."""
    faint, line, ink = inks
    curves = evaluation["precision_recall"][MAIN]
    support = evaluation["methods"][MAIN]["classes"]["support"]
    axes.figure.set_size_inches(6.4, 4.2)
    frequent = [i for i in np.argsort(support)[::-1][:MOST_CURVES] if curves["classes"][i]]
    shown = [(evaluation["classes"][i], curves["classes"][i], faint, 1) for i in frequent]
    if curves["micro"]:
        shown.append(("all labels", curves["micro"], line, 2))
    shown.sort(key=lambda curve: float(_points(curve[1])[1][-1]))
    ends = _spread([_points(curve)[1][-1] for _, curve, _, _ in shown], 0.055)
    for (name, curve, colour, width), end in zip(shown, ends, strict=True):
        recall, precision = _points(curve)
        axes.plot(recall, precision, color=colour, linewidth=width)
        place = {"xy": (recall[-1], precision[-1]), "xytext": (1.04, end), "va": "center"}
        arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.5}
        axes.annotate(_shorten(name, 30), fontsize=6.5, **place, arrowprops=arrow)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall", color=ink)
    title = "Precision over recall: all labels, and frequent classes"
    axes.set_title(title, loc="left", fontsize=10)
    return f"precision over recall of all labels and of {len(frequent)} frequent classes"


def _points(curve: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    return curve["recall"], curve["precision"]


def _spread(values: list[float], gap: float) -> list[float]:
    """Ascending values moved apart, at least `gap` between neighbours, about where they were."""
    up: list[float] = []
    for value in values:
        up.append(max(value, up[-1] + gap) if up else value)
    excess = max(up[-1] - 1.0, 0.0) if up else 0.0
    return [value - excess for value in up]


def _shorten(name: str, most: int = 40) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


# --- patches -------------------------------------------------------------------------------------


def show_patches(source: Source, num_patches: int, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Patches right, wrong and most confidently wrong, at most `num_patches` of each.

    Raises:
        DataError: the data do not have red, green and blue, or a record is damaged.
    """
    groups = []
    for kind, examples in evaluation["examples"][MAIN].items():
        panels = _panels(source, examples[:num_patches], evaluation["classes"])
        if panels:
            groups.append({"name": kind.capitalize(), "note": NOTES[kind], "panels": panels})
    caption = (
        "Red, green and blue are B04, B03 and B02, each patch stretched from 2 to 98 %. In red, "
        "with the model's probability: a label that was missed, or one that does not belong there."
    )
    return {"patches": groups, "patches_caption": caption}


def _panels(
    source: Source, examples: list[Mapping[str, Any]], classes: list[str]
) -> list[dict[str, Any]]:
    if not examples:
        return []
    batch = source.read(np.array([example["position"] for example in examples]))
    pictures = _pictures(source, batch["inputs"])
    panels = []
    for example, picture, patch in zip(examples, pictures, batch["patch_id"], strict=True):
        wrong = [
            f"{word} {classes[int(c)]} ({probability:.2f})"
            for word, key in (("missed", "missed"), ("not there:", "invented"))
            for c, probability in example[key].items()
        ]
        if len(wrong) > MOST_WRONG:
            wrong[MOST_WRONG:] = [f"and {len(wrong) - MOST_WRONG} more"]
        panels.append(
            {
                "image": figures.png(picture),
                "width": picture.shape[1],
                "height": picture.shape[0],
                "alt": f"patch {patch}",
                "there": [classes[i] for i in example["labels"]],
                "wrong": wrong,
            }
        )
    return panels


def _pictures(source: Source, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """(patch, y, x, colour) of 0 to 1."""
    for name, tensor in source.spec.inputs.items():
        if set(RGB) <= set(tensor.bands):
            pixels = inputs[name][..., [tensor.bands.index(band) for band in RGB]]
            return np.stack([colours.stretch_as(patch, patch) for patch in pixels])
    raise DataError(f"no input with the bands {', '.join(RGB)}: {source.spec.describe()}")
