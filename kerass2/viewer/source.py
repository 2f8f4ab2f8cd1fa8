"""What a prediction was made of: found beside it or named, and laid under it."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from data_pipelines.spec import DataError
from data_pipelines.windows import Window

if TYPE_CHECKING:
    from data_pipelines.granule import Granule
    from kerass2.viewer.file_layer import FileLayer

# Endings of what kerass2.predict takes.
ENDINGS = ("", ".SAFE", ".zip", ".SAFE.zip", ".npz", ".json")
# Grids that lie closer to each other are the same [px of 10 m].
SAME = 0.01


def find_input(
    path: pathlib.Path, file: FileLayer, named: str | os.PathLike[str] | None
) -> tuple[Granule, Window] | None:
    """The input of a prediction, and where in it the prediction lies [px of 10 m].

    Args:
        path: the prediction.
        file: the same, open.
        named: the input, as kerass2.predict takes it; None: what lies beside the prediction under
            the name that its tag SOURCE says, if it fits.

    Returns:
        None where none is named and none that fits is found.

    Raises:
        DataError: the one that is named cannot be read, or its grid does not match.
    """
    from data_pipelines import sample
    from data_pipelines.granule import open_granule

    if named is not None:
        granule = open_granule(sample.resolve_granule(named)[0])
        return granule, match(path, file, granule)
    for candidate in _beside(path, file.tags):
        try:
            granule = open_granule(candidate)
            return granule, match(path, file, granule)
        except DataError:
            continue  # nobody has named it: it is another thing of that name
    return None


def _beside(path: pathlib.Path, tags: Mapping[str, str]) -> Iterator[pathlib.Path]:
    """What stands beside a prediction and has the name of its source."""
    name = tags.get("SOURCE", "")
    # The tag is a file's word: a name it may be, a way to elsewhere not.
    if name in ("", ".", "..") or pathlib.PurePath(name).name != name or "\0" in name:
        return
    for ending in ENDINGS:
        found = path.with_name(name + ending)
        if found.exists() and found != path:
            yield found


def match(path: pathlib.Path, file: FileLayer, granule: Granule) -> Window:
    """Where in a granule a prediction lies [px of 10 m].

    Raises:
        DataError: in another CRS, with other pixels, between the granule's pixels or outside it; or
            without a place on earth, and of another size.
    """
    import rasterio

    from kerass2 import meaning

    place = meaning.georeference(granule)
    where = f"--input {granule.name}: its grid does not match {path}"
    if (place["transform"] is None) != (file.transform is None):
        without = path if file.transform is None else granule.name
        raise DataError(f"{where}: {without} has no georeference")
    height, width = file.shape
    if file.transform is None or place["transform"] is None:
        if granule.shape != file.shape:
            found, expected = (f"{h} x {w} px" for h, w in (granule.shape, file.shape))
            raise DataError(
                f"{where}: found {found} of 10 m, expected {expected}; neither has a georeference"
            )
        return Window(0, 0, height, width)
    crs = None if place["crs"] is None else rasterio.CRS.from_user_input(place["crs"])
    if crs != file.crs:
        raise DataError(f"{where}: found CRS {_name(crs)}, expected {_name(file.crs)}")
    y, x = _offset(where, file.transform, place["transform"])
    roi = Window(y, x, height, width)
    if roi != roi.clipped(*granule.shape):
        rows, columns = granule.shape
        raise DataError(
            f"{where}: found {rows} x {columns} px of 10 m, expected some that hold rows {y} to "
            f"{y + height} and columns {x} to {x + width}"
        )
    return roi


def _offset(where: str, fine: Sequence[float], given: Sequence[float]) -> tuple[int, int]:
    """(rows, columns) from the granule's corner to the prediction's."""
    a, b, c, d, e, f = given
    own = tuple(fine[i] for i in (0, 1, 3, 4))
    size = max(map(abs, (a, b, d, e)))
    if any(abs(v - w) > 1e-6 * size for v, w in zip(own, (a, b, d, e), strict=True)):
        raise DataError(f"{where}: found pixels of {a:g} x {e:g} at 10 m, expected {own[0]:g} x "
                        f"{own[3]:g}")  # fmt: skip
    east, north = fine[2] - c, fine[5] - f
    area = a * e - b * d
    # Adding 0.0 makes 0 of -0.
    columns, rows = (e * east - b * north) / area + 0.0, (a * north - d * east) / area + 0.0
    if max(abs(columns - round(columns)), abs(rows - round(rows))) > SAME:
        raise DataError(
            f"{where}: found corners {columns:g} columns and {rows:g} rows apart, expected "
            "whole ones"
        )
    return round(rows), round(columns)


def _name(crs: Any) -> str:
    return "none" if crs is None else str(crs.to_string())
