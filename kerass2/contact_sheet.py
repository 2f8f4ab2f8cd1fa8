"""A contact sheet: random patches of a split in true and false colour, inputs beside targets."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerass2 import colours

if TYPE_CHECKING:
    from data_pipelines.spec import Source, TensorSpec

# Sizes [inch]: a picture, the space between two, between patches, above them, a line of text.
PICTURE, SPACE, GAP, HEAD, LINE = 1.45, 0.06, 0.34, 0.95, 0.16
PICTURES_ALONG = 9
DPI = 130


@dataclasses.dataclass(frozen=True)
class Picture:
    """How one array is drawn."""

    group: str
    """"inputs" or "targets"."""
    name: str
    """Of the array."""
    bands: tuple[str, ...]
    """Drawn as red, green and blue."""
    channels: tuple[int, ...]
    """Their positions in the array."""
    label: str
    """What stands above it."""


def choose_pictures(
    inputs: Mapping[str, TensorSpec], targets: Mapping[str, TensorSpec]
) -> list[Picture]:
    """The pictures of a patch: every array with pixels, inputs first.

    What has red, green and blue is drawn in true colour, all else in false colour.
    """
    pictures = []
    for group, tensors in (("inputs", inputs), ("targets", targets)):
        for name, tensor in tensors.items():
            if len(tensor.shape) != 3:
                continue
            kind, bands = colours.choose(tensor.bands)[0]
            channels = tuple(tensor.bands.index(band) for band in bands)
            label = f"{group[:-1]} {tensor.gsd:g} m, {kind}\n{' '.join(bands)}"
            pictures.append(Picture(group, name, bands, channels, label))
    return pictures


def write(
    output: pathlib.Path, source: Source, *, title: str, number: int, seed: int, synthetic: bool
) -> int:
    """Draw random patches of a split as a PNG, which appears complete or not at all.

    Args:
        output: the file; replaced if it exists.
        source: the split.
        title: what stands above the sheet.
        number: patches to draw; all where there are fewer.
        seed: chooses them.
        synthetic: whether the sheet has to say that the pixels are made up.

    Returns:
        Patches drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from data_pipelines.files import replacing

    number = min(number, len(source))
    positions = np.sort(np.random.default_rng(seed).choice(len(source), number, replace=False))
    pictures = choose_pictures(source.spec.inputs, source.spec.targets)
    labels = [name for name, tensor in source.spec.targets.items() if len(tensor.shape) == 1]
    columns = min(max(1, PICTURES_ALONG // len(pictures)), number)
    rows = -(-number // columns)
    block = len(pictures) * (PICTURE + SPACE), PICTURE + LINE * (2 + len(labels))
    width = columns * block[0] + (columns + 1) * GAP
    height = HEAD + LINE + rows * (block[1] + GAP / 2)
    figure = Figure(figsize=(max(width, 6), height), dpi=DPI)
    FigureCanvasAgg(figure)
    draw = _Sheet(figure, max(width, 6), height)
    text = f"{number} of {len(source):,} patches of split {source.split}, seed {seed}"
    shared = ", shared by input and target" if source.spec.targets else ""
    text += f"; each patch has a stretch of its own{shared}"
    draw.text(GAP, 0.26, title, size=11, weight="bold")
    made_up = "SYNTHETIC: MADE UP, NOT MEASURED.  " if synthetic else ""
    draw.text(GAP, 0.48, f"{made_up}{source.spec.task}: {text}", size=8)
    for k, position in enumerate(positions.tolist()):
        x = GAP + (k % columns) * (block[0] + GAP)
        y = HEAD + LINE + (k // columns) * (block[1] + GAP / 2)
        if k < columns:
            for i, picture in enumerate(pictures):
                draw.text(x + i * (PICTURE + SPACE), y - 0.24, picture.label, size=6.5, grey=True)
        draw.patch(x, y, source, position, pictures, labels)
    with replacing(output) as temporary:
        figure.savefig(temporary, facecolor="white")
    return number


class _Sheet:
    """A figure that is drawn on in inches from its upper left corner."""

    def __init__(self, figure: Any, width: float, height: float) -> None:
        self._figure, self._width, self._height = figure, width, height

    def text(
        self, x: float, y: float, text: str, *, size: float, grey: bool = False, **more: Any
    ) -> None:
        colour = "#5b666d" if grey else "#1b2328"
        place = x / self._width, 1 - y / self._height
        self._figure.text(*place, text, fontsize=size, color=colour, va="center", **more)

    def patch(
        self,
        x: float,
        y: float,
        source: Source,
        position: int,
        pictures: Sequence[Picture],
        labels: Sequence[str],
    ) -> None:
        """Pictures of one patch side by side, its name and labels below."""
        batch = source.read(np.array([position]))
        for i, image in enumerate(stretch(batch, pictures)):
            self._picture(x + i * (PICTURE + SPACE), y, image)
        below = y + PICTURE + 0.1
        self.text(x, below, str(batch["patch_id"][0]), size=6.5)
        for line, name in enumerate(labels, 1):
            values = batch["targets"][name][0]
            classes = source.spec.targets[name].bands
            present = [c for c, value in zip(classes, values, strict=True) if value]
            self.text(x, below + line * LINE, "; ".join(present) or "none", size=6.5, grey=True)

    def _picture(self, x: float, y: float, image: NDArray[Any]) -> None:
        place = x / self._width, 1 - (y + PICTURE) / self._height
        size = PICTURE / self._width, PICTURE / self._height
        axes = self._figure.add_axes((*place, *size))
        axes.imshow(image, interpolation="nearest")
        axes.set_axis_off()


def stretch(batch: Mapping[str, Any], pictures: Sequence[Picture]) -> list[NDArray[Any]]:
    """(y, x, 3) of 0 to 1; pictures of the same bands share a stretch, that of the target.

    So that input and target differ on the sheet by what they show, not by how they are drawn.
    """
    drawn = [(p.bands, batch[p.group][p.name][0][..., p.channels]) for p in pictures]
    ranges = {bands: colours.find_range(pixels) for bands, pixels in drawn}
    return [colours.stretch(pixels, *ranges[bands]) for bands, pixels in drawn]
