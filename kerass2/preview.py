"""A picture of an output: true and false colour, and a detail before and after."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import raster, sentinel2
from data_pipelines.windows import Window
from kerass2 import colours

if TYPE_CHECKING:
    from kerass2.sharpen import Plan

# Longest edge of an overview, and edge of the detail [px].
OVERVIEW, DETAIL = 768, 192
# Edge of a panel, height of a line of text [inch].
PANEL, LINE = 3.2, 0.3
DPI = 130
# Text at the beginning of the PNG that tells our pictures from other files of the same name.
SOFTWARE = "kerass2.predict"


def write(path: pathlib.Path, plan: Plan, pixels: pathlib.Path, output: pathlib.Path) -> None:
    """Draw an output as a PNG.

    Args:
        path: the file.
        plan: what was made.
        pixels: what GDAL reads the output from; read at reduced size, so memory is bounded.
        output: what the output is called, noted in the file.
    """
    import rasterio
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: list[tuple[str, NDArray[Any]]] = []
    with raster.silent_without_georeference(), rasterio.open(pixels) as file:
        combinations = colours.choose(plan.bands)
        for kind, bands in combinations:
            panels.append((f"{kind}\n{' '.join(bands)}", _overview(file, plan, bands)))
        detail = _detail(plan)
        # What was sharpened shows in false colour; only 10 m bands show nothing new.
        made = {band for network in plan.networks for band in network.bands}
        for bands in [bands for _, bands in combinations if made & set(bands)][-1:]:
            before = _before(plan, bands, detail)
            after = _read(file, plan, bands, detail, None)
            low, spread = colours.find_range(after)
            for name, values in (("as measured", before), ("at 10 m", after)):
                panels.append((f"{name}\n{' '.join(bands)}", _draw(values, low, spread)))
    figure = Figure(figsize=(len(panels) * PANEL, PANEL + 3 * LINE), dpi=DPI)
    FigureCanvasAgg(figure)
    made_up = "SYNTHETIC: MADE UP, NOT MEASURED.  " if plan.granule.synthetic else ""
    figure.suptitle(f"{made_up}{plan.granule.name}", fontsize=9)
    for number, (title, image) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        axes.imshow(image, interpolation="nearest")
        axes.set_title(title, fontsize=8)
        axes.set_axis_off()
    figure.tight_layout()
    notes = {"Software": SOFTWARE, "Comment": _of(output)}
    figure.savefig(path, facecolor="white", metadata=notes)


def _of(output: pathlib.Path) -> str:
    """What a picture says of its output, in ASCII as a PNG's comments want it."""
    return f"of {output.name!a}"


def is_picture_of(path: pathlib.Path, output: pathlib.Path) -> bool:
    """Whether a file is a picture that `write` has drawn of this output."""
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError:
        return False
    notes = SOFTWARE.encode() in start and _of(output).encode() in start
    return notes and start.startswith(b"\x89PNG")


def _read(
    file: Any, plan: Plan, bands: Sequence[str], window: Window | None, size: int | None
) -> NDArray[np.float32]:
    """(y, x, 3) DN as float32, NaN without data; `size`: longest edge of what is given."""
    numbers = [plan.bands.index(band) + 1 for band in bands]
    options: dict[str, Any] = {}
    if window is not None:
        y, x = window.y - plan.roi.y, window.x - plan.roi.x
        options["window"] = ((y, y + window.height), (x, x + window.width))
    elif size is not None:
        ratio = max(1.0, max(file.height, file.width) / size)
        shape = (max(1, round(file.height / ratio)), max(1, round(file.width / ratio)))
        options["out_shape"] = (len(numbers), *shape)
    values: NDArray[np.float32]
    values = file.read(numbers, **options).transpose(1, 2, 0).astype(np.float32)
    values[values == sentinel2.NO_DATA] = np.nan
    return values


def _overview(file: Any, plan: Plan, bands: Sequence[str]) -> NDArray[Any]:
    values = _read(file, plan, bands, None, OVERVIEW)
    return _draw(values, *colours.find_range(values))


def _detail(plan: Plan) -> Window:
    """The middle of the output, on the grid of the coarsest band."""
    height, width = (min(DETAIL, n) for n in (plan.roi.height, plan.roi.width))
    y = plan.roi.y + (plan.roi.height - height) // 2
    x = plan.roi.x + (plan.roi.width - width) // 2
    return Window(y, x, height, width)


def _before(plan: Plan, bands: Sequence[str], window: Window) -> NDArray[np.float32]:
    """The same bands as the granule has them, their pixels repeated to 10 m."""
    out = np.full((window.height, window.width, len(bands)), np.nan, np.float32)
    for name, cube in plan.granule.cubes.items():
        ratio = sentinel2.GSDS[name] // 10
        y, x = window.y // ratio, window.x // ratio
        y1, x1 = -(-(window.y + window.height) // ratio), -(-(window.x + window.width) // ratio)
        names = list(map(str, cube.band.values))
        for index, band in enumerate(bands):
            if band in names:
                coarse = np.asarray(cube.data[names.index(band), y:y1, x:x1])
                fine = coarse.repeat(ratio, axis=0).repeat(ratio, axis=1).astype(np.float32)
                top, left = window.y - y * ratio, window.x - x * ratio
                out[..., index] = fine[top : top + window.height, left : left + window.width]
    out[out == sentinel2.NO_DATA] = np.nan
    return out


def _draw(values: NDArray[np.float32], low: NDArray[Any], spread: float) -> NDArray[np.uint8]:
    """8 bit; white where there are no data."""
    light = colours.stretch(values, low, spread)
    drawn: NDArray[np.uint8] = (np.nan_to_num(light, nan=1.0) * 255).round().astype(np.uint8)
    return drawn
