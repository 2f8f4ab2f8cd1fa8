"""A data set as pages of patches, with their targets or labels."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import numpy as np

from data_pipelines import sentinel2, store
from data_pipelines.spec import Batch, DataError, TensorSpec
from kerass2 import contact_sheet
from kerass2.colours import FALSE_COLOURS, TRUE_COLOUR
from kerass2.contact_sheet import Picture
from kerass2.viewer.answers import (
    Answer,
    BadRequest,
    Query,
    find_index,
    read_numbers,
    to_json,
    to_png,
)

# Patches of a page.
PAGE = 24


class Patches:
    """A page (answers.Page) of a folder that kerass2.prepare has made."""

    name = "patches"

    def __init__(self, folder: pathlib.Path) -> None:
        """Open its splits.

        Raises:
            DataError: it is damaged, or holds no patch.
        """
        self._folder = folder
        self._manifest = store.read_manifest(folder)
        self._splits = list(self._manifest.splits)
        self._sources = [store.open_source(folder, split) for split in self._splits]
        if not any(map(len, self._sources)):
            raise DataError(
                f"{folder}: no patch in {', '.join(self._splits) or 'any split'}; expected some"
            )
        spec = self._manifest.spec
        self._arrays: list[tuple[str, str, TensorSpec]] = [
            (group, name, tensor)
            for group, tensors in (("inputs", spec.inputs), ("targets", spec.targets))
            for name, tensor in tensors.items()
            if len(tensor.shape) == 3
        ]
        self._labels = [name for name, tensor in spec.targets.items() if len(tensor.shape) == 1]
        known = {band for _, _, tensor in self._arrays for band in tensor.bands}
        others = sorted(known.difference(sentinel2.BANDS))
        self.bands = (*(band for band in sentinel2.BANDS if band in known), *others)
        # A page asks for each patch once a picture: 128 patches are some 30 MB.
        self._read = functools.lru_cache(maxsize=128)(self._read_patch)

    def answer(self, parts: tuple[str, ...], query: Query) -> Answer | None:
        """See answers.Page."""
        match parts:
            case ("about.json",):
                return to_json(self.describe())
            case ("patches.json",):
                (split,), (page,) = (read_numbers(query, name, 1) for name in ("split", "page"))
                return to_json(self.list_patches(split, page))
            case ("patch", split, index, array):
                return self._draw((split, index, array), query)
        return None

    def describe(self) -> dict[str, Any]:
        """What the page has to know at its start."""
        spec, provenance = self._manifest.spec, self._manifest.provenance
        notes = [f"{spec.task}, {self._manifest.format}"]
        if provenance.get("source"):
            notes.append(str(provenance["source"]))
        if provenance.get("synthetic"):
            notes.append("SYNTHETIC: MADE UP, NOT MEASURED")
        found = [{"name": f"true colour: {' '.join(TRUE_COLOUR)}", "bands": TRUE_COLOUR}]
        found += [{"name": f"false colour: {' '.join(c)}", "bands": c} for c in FALSE_COLOURS]
        holds = [set(tensor.bands) for _, _, tensor in self._arrays]
        return {
            "title": self._folder.resolve().name,
            "notes": notes,
            "splits": [
                {"name": name, "count": len(source)}
                for name, source in zip(self._splits, self._sources, strict=True)
            ],
            "page": PAGE,
            "bands": self.bands,
            "combinations": [c for c in found if any(set(c["bands"]) <= own for own in holds)],
            "arrays": [
                {
                    "title": f"{group[:-1]} {name}",
                    "gsd": tensor.gsd,
                    "bands": tensor.bands,
                    "shape": tensor.shape[:2],
                }
                for group, name, tensor in self._arrays
            ],
            "labels": self._labels,
        }

    def list_patches(self, split: int, page: int) -> dict[str, Any]:
        """Names and labels of a page's patches.

        Returns:
            {"patches": [{"index", "id", "labels": {target: names of the classes that it has}}]}.

        Raises:
            BadRequest: no such split or page.
            DataError: a record is damaged.
        """
        if not 0 <= split < len(self._splits):
            raise BadRequest(f"split={split}: expected 0 to {len(self._splits) - 1}")
        source = self._sources[split]
        last = max(0, -(-len(source) // PAGE) - 1)
        if not 0 <= page <= last:
            raise BadRequest(f"page={page}: expected 0 to {last}")
        found = []
        for index in range(page * PAGE, min((page + 1) * PAGE, len(source))):
            batch = self._read(split, index)
            labels = {}
            for name in self._labels:
                values, classes = batch["targets"][name][0], source.spec.targets[name].bands
                labels[name] = [c for c, value in zip(classes, values, strict=True) if value]
            found.append({"index": index, "id": str(batch["patch_id"][0]), "labels": labels})
        return {"patches": found}

    def _read_patch(self, split: int, index: int) -> Batch:
        return self._sources[split].read(np.array([index]))

    def _draw(self, numbers: tuple[str, str, str], query: Query) -> Answer | None:
        """PNG of one array of a patch, in the bands of the query or as the contact sheet has it.

        Pictures of a patch in the same bands share a stretch, see contact_sheet.stretch.
        """
        split = find_index(numbers[0], self._sources)
        array = find_index(numbers[2], self._arrays)
        if split is None or array is None:
            return None
        index = find_index(numbers[1], range(len(self._sources[split])))
        if index is None:
            return None
        group, name, _ = self._arrays[array]
        pictures = self._choose_pictures(query)
        drawn = [(picture.group, picture.name) for picture in pictures]
        if (group, name) not in drawn:
            raise BadRequest(f"{name} has not all of the bands {query.get('bands')}")
        images = contact_sheet.stretch(self._read(split, index), pictures)
        image = images[drawn.index((group, name))]
        return to_png(np.rint(image * 255).astype(np.uint8))

    def _choose_pictures(self, query: Query) -> list[Picture]:
        """Every array that has the bands, inputs first."""
        spec = self._manifest.spec
        if "bands" not in query:
            return contact_sheet.choose_pictures(spec.inputs, spec.targets)
        numbers = read_numbers(query, "bands", 3)
        if not all(0 <= number < len(self.bands) for number in numbers):
            raise BadRequest(f"bands={query['bands']}: expected numbers below {len(self.bands)}")
        bands = tuple(self.bands[number] for number in numbers)
        return [
            Picture(group, name, bands, tuple(map(tensor.bands.index, bands)), "")
            for group, name, tensor in self._arrays
            if set(bands) <= set(tensor.bands)
        ]
