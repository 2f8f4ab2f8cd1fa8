"""Products for tests: made-up ones of each kind; real pixels as JP2 under a real product's XML."""

from __future__ import annotations

import pathlib
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import sentinel2, synthetic, synthetic_product

L1C = "S2A_MSIL1C_20180629T000241_N0206_R030_T56JMM_20180629T012042"
L2A = "S2A_MSIL2A_20221005T115411_N0400_R023_T29UNU_20221005T164454"
# Edge of made-up products [px of 10 m].
EDGE = 240
DECIMATED_L2A = "esa_S2B_MSIL2A_20210122T133229_N0214_R081_T22HBD_20210122T155500"


def read_scene(path: pathlib.Path) -> dict[str, NDArray[np.uint16]]:
    """{"gsd10": (band, y, x), ...} of a real scene, reflectance x 10000."""
    with np.load(path) as file:
        return {name: file[f"im{gsd}"] for name, gsd in sentinel2.GSDS.items()}


def texts(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    """(name in the product, text) of the XML and masks of a real product, folder or zip."""
    kinds = (".xml", ".gml")
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(kinds):
                    yield name.partition("/")[2], archive.read(name).decode()
    else:
        for file in sorted(path.rglob("*")):
            if file.suffix in kinds:
                yield str(file.relative_to(path)), file.read_text()


def write_jp2(
    path: pathlib.Path,
    pixels: NDArray[np.generic],
    gsd: float,
    crs: str,
    corner: tuple[float, float],
    *,
    block: int = 64,
) -> None:
    """One band (y, x) without loss."""
    import rasterio
    from affine import Affine

    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"QUALITY": "100", "REVERSIBLE": "YES", "BLOCKXSIZE": block, "BLOCKYSIZE": block}
    profile = {"count": 1, "height": pixels.shape[0], "width": pixels.shape[1]}
    place = {"crs": crs, "transform": Affine(gsd, 0, corner[0], 0, -gsd, corner[1])}
    with (
        rasterio.Env(GDAL_PAM_ENABLED="NO"),
        rasterio.open(
            path, "w", driver="JP2OpenJPEG", dtype=pixels.dtype.name, **profile, **place, **options
        ) as file,
    ):
        file.write(pixels, 1)


def write_true_ratio(
    real: pathlib.Path,
    folder: pathlib.Path,
    cubes: Mapping[str, NDArray[np.uint16]],
    *,
    offset: int = 0,
    zipped: bool = False,
) -> pathlib.Path:
    """A copy of a real product's XML around other pixels; sizes in the XML are adapted.

    Args:
        real: .SAFE folder or zip.
        folder: where the copy goes.
        cubes: (band, y, x) reflectance x 10000 in our band order; 0 is no data.
        offset: of the product's XML: value - offset is stored.
        zipped: write a zip.

    Returns:
        The .SAFE folder, or the zip. Without manifest.safe, whose hashes are of other bytes.
    """
    name = L1C if "MSIL1C" in real.name else L2A
    safe = folder / f"{name}.SAFE"
    images: list[str] = []
    for file, text in texts(real):
        if file.endswith("MTD_TL.xml"):
            text, crs, corner = _with_sizes(text, cubes)
        images += re.findall(r"<IMAGE_FILE>(.*?)</IMAGE_FILE>", text)
        (safe / file).parent.mkdir(parents=True, exist_ok=True)
        (safe / file).write_text(text)
    for cube, gsd in sentinel2.GSDS.items():
        bands = list(sentinel2.bands_at(gsd))
        pixels = np.where(cubes[cube] == 0, 0, cubes[cube].astype(np.int32) - offset)
        stored = dict(zip(bands, pixels.astype(np.uint16), strict=True))
        if gsd == 60 and name == L1C:
            stored["B10"] = stored["B09"] // 10
        for band, values in stored.items():
            (image,) = (i for i in images if re.search(rf"_{band}(_{gsd}m)?$", i))
            write_jp2(safe / f"{image}.jp2", values, gsd, crs, corner)
    if not zipped:
        return safe
    with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in [safe, *sorted(safe.rglob("*"))]:
            archive.write(path, path.relative_to(folder))
    return folder / f"{name}.zip"


def _with_sizes(
    text: str, cubes: Mapping[str, NDArray[np.uint16]]
) -> tuple[str, str, tuple[float, float]]:
    """A tile's XML with other sizes, its CRS, its corner."""
    for cube, gsd in sentinel2.GSDS.items():
        height, width = cubes[cube].shape[1:]
        text = re.sub(
            rf'(<Size resolution="{gsd}">\s*<NROWS>)\d+(</NROWS>\s*<NCOLS>)\d+',
            rf"\g<1>{height}\g<2>{width}",
            text,
        )
    crs = re.search(r"EPSG:\d+", text)
    corner = [re.search(rf"<{tag}>(\d+)</{tag}>", text) for tag in ("ULX", "ULY")]
    if crs is None or corner[0] is None or corner[1] is None:
        raise ValueError("no CRS or corner in the tile's XML")
    return text, crs[0], (float(corner[0][1]), float(corner[1][1]))


def build_cubes() -> dict[str, NDArray[np.uint16]]:
    """Made-up cubes with a pixel of no data and a saturated one in each band."""
    found = synthetic.build_cubes(EDGE, seed=1)
    for cube in found.values():
        cube[:, 0, 0], cube[:, 1, 1] = sentinel2.NO_DATA, sentinel2.SATURATED
    return found


def write_all(
    folder: pathlib.Path, cubes: Mapping[str, NDArray[np.uint16]]
) -> dict[str, pathlib.Path]:
    """One made-up product of each kind in a folder; tests that change one copy it."""
    scl = (np.arange((EDGE // 2) ** 2) % 12).astype(np.uint8).reshape(1, EDGE // 2, -1)
    cloud = np.zeros((EDGE // 6, EDGE // 6), bool)
    cloud[3:9, 5:20], cloud[30:, 30:] = True, True
    other = synthetic_product.Tile(
        synthetic.build_cubes(EDGE, seed=2), "T33UUB", 32633, (399_960.0, 5_600_040.0)
    )
    options: dict[str, dict[str, Any]] = {
        "l1c": {"cloud": cloud},
        "l1c_zip": {"zipped": True, "spacecraft": "S2B", "cloud": cloud},
        "l1c_0509": {"baseline": "05.09", "spacecraft": "S2C", "cloud": cloud},
        "l2a": {"level": "L2A", "baseline": "04.00", "scl": scl},
        "l2a_manifest": {"level": "L2A", "baseline": "05.00", "scl": scl, "manifest": True},
        "l2a_old": {"level": "L2A", "baseline": "02.14", "scl": scl},
        "two_zones": {"compact": False, "more_tiles": (other,), "tile": "T32UMC"},
    }
    return {
        name: synthetic_product.write_product(folder / name, cubes, **values)
        for name, values in options.items()
    }


def copy(path: pathlib.Path, folder: pathlib.Path, *, manifest: bool = False) -> pathlib.Path:
    """A copy that may be changed; without hashes of what it was."""
    shutil.copytree(path, folder / path.name)
    if not manifest:
        (folder / path.name / "manifest.safe").unlink(missing_ok=True)
    return folder / path.name


def find(product: pathlib.Path, pattern: str) -> pathlib.Path:
    (found,) = product.rglob(pattern)
    return found


def change(file: pathlib.Path, pattern: str, text: str, count: int = 0) -> None:
    before = file.read_text()
    after = re.sub(pattern, text, before, count=count, flags=re.DOTALL)
    assert before != after
    file.write_text(after)
