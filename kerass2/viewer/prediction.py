"""A prediction as a map: tiles of its layers under one stretch, and spectra of its pixels."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import sentinel2
from data_pipelines.windows import Window
from kerass2 import colours
from kerass2.viewer import file_layer, layers, source
from kerass2.viewer.answers import (
    Answer,
    BadRequest,
    Query,
    find_index,
    read_numbers,
    to_json,
    to_png,
)

# Edge of a tile [px].
TILE = 256
LONLAT = "EPSG:4326"
TITLES = {
    "input": "input (pixels as measured)",
    "bicubic": "bicubic interpolation",
    "prediction": "prediction",
}


class Prediction:
    """A page (answers.Page) of a GeoTIFF and, where it is there, its input."""

    name = "map"

    def __init__(self, path: pathlib.Path, named: str | os.PathLike[str] | None = None) -> None:
        """Open the file and its input; see source.find_input.

        Raises:
            DataError: one of them is damaged, or they do not match.
        """
        self._path = path
        self.file = file_layer.FileLayer(path)
        self.shape = self.file.shape
        self.layers: list[layers.Layer] = [self.file]
        self._input: layers.InputLayer | None = None
        found = source.find_input(path, self.file, named)
        if found is not None:
            self._input = layers.InputLayer(*found)
            self.layers = [self._input, layers.BicubicLayer(self._input), self.file]
        known = [band for layer in self.layers for band in layer.bands]
        of_file = [band for band in self.file.bands if band not in sentinel2.BANDS]
        self.bands = (*(band for band in sentinel2.BANDS if band in known), *of_file)

    def answer(self, parts: tuple[str, ...], query: Query) -> Answer | None:
        """See answers.Page."""
        match parts:
            case ("about.json",):
                return to_json(self.describe())
            case ("stretch.json",):
                return to_json(self._stretch(query))
            case ("pixel.json",):
                (y,), (x,) = (read_numbers(query, name, 1) for name in ("y", "x"))
                return to_json(self.read_spectrum(y, x))
            case ("tile", layer, level, row, column):
                return self._tile((layer, level, row, column), query)
        return None

    def describe(self) -> dict[str, Any]:
        """What the page has to know at its start."""
        file = self.file
        crs = None if file.crs is None else file.crs.to_string()
        positions = {band: index for index, band in enumerate(self.bands)}
        return {
            "title": self._path.name,
            "notes": self._notes(crs),
            "height": self.shape[0],
            "width": self.shape[1],
            "levels": layers.count_levels(self.shape),
            "tile": TILE,
            "bands": [self._describe_band(band) for band in self.bands],
            "layers": [
                {
                    "name": layer.name,
                    "title": TITLES[layer.name],
                    "bands": [i for band, i in positions.items() if self._reader(layer, band)],
                    "reflectance": bool(layer.means),
                }
                for layer in self.layers
            ],
            "combinations": self._list_combinations(positions),
            "stretch": colours.PERCENTILES,
            "gamma": colours.GAMMA,
            "georeferenced": file.transform is not None and crs is not None,
        }

    def _notes(self, crs: str | None) -> list[str]:
        """Lines below the title."""
        file, (height, width) = self.file, self.shape
        made = file.tags.get("MODEL")
        notes = [
            f"{height} x {width} px, {len(file.bands)} bands"
            + (f", made by {made}" if made else "")
            + (f" from {file.tags['SOURCE']}" if file.tags.get("SOURCE") else "")
        ]
        if file.synthetic:
            notes.append("SYNTHETIC: MADE UP, NOT MEASURED")
        if file.transform is None or crs is None:
            notes.append("No georeference: positions are rows and columns of pixels.")
        if self._input is None:
            notes.append(
                "Its input was not found: start kerass2 view with --input to compare with it."
            )
        return notes

    def _describe_band(self, band: str) -> dict[str, Any]:
        known = sentinel2.BANDS.get(band)
        if known is None:
            return {"name": band}
        return {"name": band, "gsd": known.gsd, "wavelength": known.wavelength}

    def _list_combinations(self, positions: dict[str, int]) -> list[dict[str, Any]]:
        """Red, green and blue of each kind; the first is what the map opens with."""
        names = {bands: kind for kind, bands in reversed(colours.choose(self.file.bands))}
        names[colours.TRUE_COLOUR] = "true colour"
        names |= dict.fromkeys((c for c in colours.FALSE_COLOURS if c not in names), "false colour")
        return [
            {"name": f"{kind}: {' '.join(bands)}", "bands": [positions[b] for b in bands]}
            for bands, kind in names.items()
            if set(bands) <= set(positions)
        ]

    def _reader(self, layer: layers.Layer, band: str) -> layers.Layer | None:
        """What reads a band of a layer: a prediction without 10 m bands has them of its input."""
        if band in layer.bands:
            return layer
        own = self._input
        if own is not None and layer is self.file and band in own.bands and own.gsd_of(band) == 10:
            return own
        return None

    def _find_bands(self, query: Query, layer: layers.Layer) -> list[tuple[layers.Layer, str]]:
        """Readers and names of red, green and blue.

        Raises:
            BadRequest: not three bands that the layer has.
        """
        numbers = read_numbers(query, "bands", 3)
        if not all(0 <= number < len(self.bands) for number in numbers):
            raise BadRequest(f"bands={query['bands']}: expected numbers below {len(self.bands)}")
        names = [self.bands[number] for number in numbers]
        found = [(reader, n) for n in names if (reader := self._reader(layer, n)) is not None]
        if len(found) < len(names):
            raise BadRequest(f"{layer.name} has not all of {', '.join(names)}")
        return found

    def _tile(self, numbers: tuple[str, str, str, str], query: Query) -> Answer | None:
        """PNG of TILE px; transparent without data. None outside the raster."""
        levels = layers.count_levels(self.shape)
        chosen = find_index(numbers[0], self.layers)
        level = find_index(numbers[1], range(levels))
        if chosen is None or level is None:
            return None
        shape = layers.shape_of_level(self.shape, level)
        row, column = (
            find_index(text, range(-(-size // TILE)))
            for text, size in zip(numbers[2:], shape, strict=True)
        )
        if row is None or column is None:
            return None
        readers = self._find_bands(query, self.layers[chosen])
        window = Window(row * TILE, column * TILE, TILE, TILE).clipped(*shape)
        low = read_numbers(query, "low", 3, float)
        (spread,), (gamma,) = (read_numbers(query, name, 1, float) for name in ("spread", "gamma"))
        if spread <= 0 or not 0.1 <= gamma <= 10:
            raise BadRequest("expected a spread above 0, and a gamma from 0.1 to 10")
        values = np.stack([r.read_level(band, level, window) for r, band in readers], axis=-1)
        tile = np.zeros((TILE, TILE, 4), np.uint8)
        tile[: window.height, : window.width] = draw(values, low, spread, gamma)
        return to_png(tile)

    def _stretch(self, query: Query) -> dict[str, Any]:
        """Where colours begin, and how far they go, by percentiles of all or of a window."""
        percentiles = read_numbers(query, "percentiles", 2, float)
        if not 0 <= percentiles[0] < percentiles[1] <= 100:
            raise BadRequest("percentiles: expected two that rise, from 0 to 100")
        window = Window(0, 0, *self.shape)
        if "window" in query:
            y, x, height, width = read_numbers(query, "window", 4)
            if min(height, width) < 1:
                raise BadRequest("window: expected Y,X,HEIGHT,WIDTH with at least one pixel")
            window = Window(y, x, height, width).clipped(*self.shape)
            if not (window.height and window.width):
                raise BadRequest("window: expected one that meets the image")
        # One for all layers: that of the prediction, or of the input where it has other bands.
        for layer in reversed(self.layers):
            try:
                readers = self._find_bands(query, layer)
                break
            except BadRequest:
                if layer is self.layers[0]:
                    raise
        level = layers.count_levels((window.height, window.width)) - 1
        factor = 2**level
        y, x = window.y // factor, window.x // factor
        part = Window(
            y,
            x,
            -(-(window.y + window.height) // factor) - y,
            -(-(window.x + window.width) // factor) - x,
        ).clipped(*layers.shape_of_level(self.shape, level))
        values = np.stack([r.read_level(band, level, part) for r, band in readers], axis=-1)
        # What is stored may be a probability: any range above 0 is one.
        low, spread = colours.find_range(values, percentiles, least=0)
        return {"low": low.tolist(), "spread": spread}

    def read_spectrum(self, y: int, x: int) -> dict[str, Any]:
        """Every band of every layer at a pixel, and where it lies.

        Returns:
            {"y", "x", "crs", "position": of its middle, "lonlat" [degree, WGS 84], "layers":
            [{"name", "stored": {band: value, None without data}, "reflectance": likewise}]}.

        Raises:
            BadRequest: outside the image.
            DataError: it cannot be read.
        """
        if not (0 <= y < self.shape[0] and 0 <= x < self.shape[1]):
            raise BadRequest(f"row {y}, column {x}: expected at most {self.shape[0] - 1} and "
                             f"{self.shape[1] - 1}")  # fmt: skip
        found = []
        for layer in self.layers:
            readers = {band: self._reader(layer, band) for band in self.bands}
            stored = {b: r.read_pixel(b, y, x) for b, r in readers.items() if r is not None}
            reflectance = {}
            for band, value in stored.items():
                reader = readers[band]
                if reader is not None and band in reader.means:
                    offset, quantification = reader.means[band]
                    known = None if value is None else (value + offset) / quantification
                    reflectance[band] = known
            found.append({"name": layer.name, "stored": stored, "reflectance": reflectance})
        return {"y": y, "x": x, **self._locate(y, x), "layers": found}

    def _locate(self, y: int, x: int) -> dict[str, Any]:
        """The middle of a pixel, in the CRS and on the globe; None where that is not known."""
        import rasterio.warp

        file = self.file
        if file.transform is None or file.crs is None:
            return {"crs": None, "position": None, "lonlat": None}
        a, b, c, d, e, f = file.transform
        east, north = a * (x + 0.5) + b * (y + 0.5) + c, d * (x + 0.5) + e * (y + 0.5) + f
        try:
            lons, lats = rasterio.warp.transform(file.crs, LONLAT, [east], [north])
            lonlat = [lons[0], lats[0]]
        except rasterio.errors.RasterioError:
            lonlat = None  # a local CRS, which no ellipsoid knows
        return {"crs": file.crs.to_string(), "position": [east, north], "lonlat": lonlat}


def draw(
    values: layers.Image, low: Sequence[float], spread: float, gamma: float
) -> NDArray[np.uint8]:
    """(y, x, red green blue alpha); transparent where a channel has no data."""
    there = np.isfinite(values).all(axis=-1, keepdims=True)
    light = np.where(there, colours.stretch(values, low, spread, gamma), 0)
    image = np.concatenate([light, there], axis=-1)
    drawn: NDArray[np.uint8] = np.rint(image * 255).astype(np.uint8)
    return drawn
