"""Sentinel-2 products in ESA's own layout (.SAFE) around any pixels, and a whole made-up tile.

For tests and benchmarks: JP2 images without loss, and of the XML only what readers need, in words
of our own. GDAL's SENTINEL2 driver opens the products. Source of the layout: ESA, Sentinel-2
Products Specification Document (S2-PDGS-TAS-DI-PSD), 14.
"""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import product_xml, raster, sentinel2, synthetic
from data_pipelines.files import replacing
from data_pipelines.jp2 import Image, Rows, as_rows, write_jp2


@dataclasses.dataclass(frozen=True)
class Tile:
    """One granule of a product: a tile's pixels and their place."""

    cubes: Mapping[str, Image]
    """"gsd10", "gsd20", "gsd60" -> (band, y, x) uint16, reflectance x 10000 without offset, in the
    order of sentinel2.bands_at; 0 is no data and 65535 saturated. Any size whose grids nest."""
    name: str = "T32UMC"
    """MGRS tile with its T."""
    epsg: int = 32632
    """CRS of the pixels."""
    corner: tuple[float, float] = synthetic.CORNER
    """(x, y) of the upper left corner in the CRS [m]; whole numbers."""
    scl: Image | None = None
    """(1, y, x) uint8 scene classification at 20 m, L2A only; None: all vegetation (4)."""
    cloud: NDArray[np.bool_] | None = None
    """(y, x) at 60 m, L1C only: where the cloud mask says opaque cloud; None: the mask is empty."""


def write_product(
    folder: pathlib.Path,
    cubes: Mapping[str, Image],
    *,
    level: str = "L1C",
    baseline: str = "02.06",
    tile: str = "T32UMC",
    epsg: int = 32632,
    corner: tuple[float, float] = synthetic.CORNER,
    offset: int | None = None,
    scl: Image | None = None,
    cloud: NDArray[np.bool_] | None = None,
    time: datetime.datetime = datetime.datetime(2018, 6, 29, 10, 20, 41, 24_000),
    spacecraft: str = "S2A",
    compact: bool = True,
    zipped: bool = False,
    synthetic: bool = True,
    more_tiles: Sequence[Tile] = (),
    manifest: bool = False,
) -> pathlib.Path:
    """Write one product; nothing stands under its name before it is complete.

    Args:
        folder: where the product goes; made if it is missing.
        cubes: pixels of the tile: see Tile.
        level: "L1C" (13 bands; B10, which our cubes lack, is made from B09) or "L2A" (12 bands at
            their native GSD, SCL at 20 and 60 m).
        baseline: processing baseline, "02.06".
        tile: see Tile.name.
        epsg: see Tile.
        corner: see Tile.
        offset: RADIO_ADD_OFFSET or BOA_ADD_OFFSET of every band [DN]: value - offset is stored.
            None: -1000 from baseline 04.00 on; before it 0, and the XML has no list of offsets.
        scl: see Tile.
        cloud: see Tile; a GML of polygons before baseline 04.00, MSK_CLASSI_B00.jp2 since.
        time: sensing time, UTC.
        spacecraft: "S2A", "S2B" or "S2C".
        compact: the naming since December 2016; False: the older one, L1C only.
        zipped: NAME.zip with the folder in it, instead of the folder.
        synthetic: whether the pixels are made up: DATATAKE_TYPE says so.
        more_tiles: further granules, of any UTM zone; products of the older naming have them.
        manifest: write manifest.safe, too, with a checksum of each file.

    Returns:
        Path of the NAME.SAFE folder or the NAME.zip.

    Raises:
        ValueError: the cubes' grids do not nest, or the options contradict each other.
    """
    if level not in ("L1C", "L2A") or (level == "L2A" and not compact):
        raise ValueError(
            f"level {level}, compact {compact}: expected L1C, or L2A with compact names"
        )
    if compact and more_tiles:
        raise ValueError("several tiles: expected compact=False, compact products have one")
    tiles = (Tile(cubes, tile, epsg, corner, scl, cloud), *more_tiles)
    for each in tiles:
        _check(each)
    facts = product_xml.Facts(
        level, baseline, spacecraft, time, offset, compact, synthetic, tuple(t.name for t in tiles)
    )
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not zipped:
        with replacing(folder / f"{facts.product}.SAFE") as temporary:
            _write_safe(temporary, facts, tiles, manifest)
        return folder / f"{facts.product}.SAFE"
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        safe = pathlib.Path(scratch) / f"{facts.product}.SAFE"
        _write_safe(safe, facts, tiles, manifest)
        with (
            replacing(folder / f"{facts.product}.zip") as temporary,
            zipfile.ZipFile(temporary, "w") as archive,
        ):
            # The product's own folder first: GDAL knows such a zip by the name of its first member.
            for path in [safe, *sorted(safe.rglob("*"))]:
                archive.write(path, path.relative_to(safe.parent))
    return folder / f"{facts.product}.zip"


def build_tile(size: int = 10_980, *, seed: int = 0, scene: int = 1536) -> dict[str, Rows]:
    """A made-up tile of any size, made as it is read: about 60 MB at a time for the full size.

    A made-up scene, mirrored at its borders over and over, each copy with a brightness of its own.

    Args:
        size: edge [px of 10 m], a multiple of 6; 10980 is a full tile.
        seed: which one.
        scene: edge of the scene that is repeated [px of 10 m], a multiple of 6.

    Returns:
        "gsd10", "gsd20", "gsd60" -> Rows, as write_product takes them; values 1 to 10000.

    Raises:
        ValueError: size or scene is not a positive multiple of 6.
    """
    if size < 6 or size % 6:
        raise ValueError(f"size {size}: expected a positive multiple of 6 [px of 10 m]")
    cubes = synthetic.build_cubes(min(scene, size), seed=seed)
    count = -(-size // scene)
    # In 1024ths, so that the arithmetic stays in integers.
    gains = np.random.default_rng([seed, size]).integers(922, 1127, (count, count), np.uint32)

    def rows(name: str) -> Rows:
        cube, n = cubes[name], size * 10 // sentinel2.GSDS[name]
        return Rows((len(cube), n, n), lambda: _mirrored(cube, n, gains))

    return {name: rows(name) for name in cubes}


def _mirrored(
    cube: NDArray[np.uint16], size: int, gains: NDArray[np.uint32]
) -> Iterator[NDArray[np.uint16]]:
    """Strips of at most 256 rows of a cube that is mirrored over and over to (band, size, size)."""
    edge = cube.shape[1]
    copy, at = np.divmod(np.arange(size), edge)
    at = np.where(copy % 2, edge - 1 - at, at)
    for start in range(0, size, 256):
        y = slice(start, min(start + 256, size))
        gain = gains[copy[y][:, None], copy]
        strip = np.empty((len(cube), len(at[y]), size), np.uint16)
        for out, band in zip(strip, cube, strict=True):
            out[:] = np.clip((band[at[y][:, None], at] * gain) >> 10, 1, sentinel2.QUANTIFICATION)
        yield strip


def _check(tile: Tile) -> None:
    """Refuse cubes whose grids do not nest, or a mask of another grid."""
    if set(tile.cubes) != set(sentinel2.GSDS):
        raise ValueError(f"cubes {', '.join(tile.cubes)}; expected {', '.join(sentinel2.GSDS)}")
    height, width = (n * 6 for n in tile.cubes["gsd60"].shape[1:])
    for name, cube in tile.cubes.items():
        ratio = sentinel2.GSDS[name] // 10
        bands = len(sentinel2.bands_at(sentinel2.GSDS[name]))
        if cube.shape != (bands, height // ratio, width // ratio):
            expected = (bands, height // ratio, width // ratio)
            raise ValueError(f"{name} is {cube.shape}; expected {expected}")
    if tile.scl is not None and tile.scl.shape != (1, height // 2, width // 2):
        raise ValueError(f"scl is {tile.scl.shape}; expected {(1, height // 2, width // 2)}")
    if tile.cloud is not None and tile.cloud.shape != (height // 6, width // 6):
        raise ValueError(f"cloud is {tile.cloud.shape}; expected {(height // 6, width // 6)}")


def _write_safe(
    safe: pathlib.Path, facts: product_xml.Facts, tiles: Sequence[Tile], manifest: bool
) -> None:
    """Write the folder."""
    images: dict[str, list[str]] = {}
    for tile in tiles:
        names = facts.image_names(tile.name)
        images[tile.name] = list(names.values())
        for (band, gsd), strips in _images(tile, facts).items():
            # Of the same GSD together, since Rows yield all their bands at once.
            files = [safe / f"{names[name, gsd]}.jp2" for name in band]
            write_jp2(files, strips, gsd, tile.epsg, tile.corner)
        granule = safe / "GRANULE" / facts.granule(tile.name)
        (granule / "QI_DATA").mkdir(parents=True, exist_ok=True)
        masks = _write_cloud(granule / "QI_DATA", tile, facts) if facts.level == "L1C" else []
        height, width = tile.cubes["gsd10"].shape[1:]
        text = product_xml.granule_xml(
            facts, tile.name, tile.epsg, tile.corner, (height, width), masks
        )
        (granule / facts.granule_file(tile.name)).write_bytes(text)
    (safe / facts.product_file).write_bytes(product_xml.product_xml(facts, images))
    if manifest:
        (safe / "manifest.safe").write_bytes(product_xml.manifest_xml(safe, facts))


def _images(tile: Tile, facts: product_xml.Facts) -> dict[tuple[tuple[str, ...], int], Rows]:
    """What goes into JP2s: (bands, gsd) -> DN as stored."""
    images = {}
    for name, gsd in sentinel2.GSDS.items():
        image = _with_offset(as_rows(tile.cubes[name]), facts.offset)
        bands = sentinel2.bands_at(gsd)
        if gsd == 60 and facts.level == "L1C":
            # B10 is dark: a tenth of B09, so that offset and no data are right in it too.
            bands, image = (*bands, "B10"), _with_cirrus(image, as_rows(tile.cubes[name]), facts)
        images[bands, gsd] = image
    if facts.level == "L2A":
        _, height, width = tile.cubes["gsd20"].shape
        scl = tile.scl
        fine = as_rows(np.broadcast_to(np.uint8(4), (1, height, width)) if scl is None else scl)
        coarse = Rows((1, height // 3, width // 3), lambda: _every_third(fine))
        images |= {(("SCL",), 20): fine, (("SCL",), 60): coarse}
    return images


def _with_offset(image: Rows, offset: int) -> Rows:
    """DN as stored; no data and saturated values stay what they are."""

    def strips() -> Iterator[NDArray[np.uint16]]:
        for strip in image.strips():
            yield to_stored(strip, offset)

    return Rows(image.shape, strips)


def to_stored(values: NDArray[Any], offset: int) -> NDArray[np.uint16]:
    """Values without offset (reflectance x 10000) to DN as a product with this offset stores them.

    0 and 65535 stay; the others, less the offset, are clipped to 1 to 65534.
    """
    special = (values == sentinel2.NO_DATA) | (values == sentinel2.SATURATED)
    shifted = np.clip(values.astype(np.int32) - offset, 1, sentinel2.SATURATED - 1)
    stored: NDArray[np.uint16] = np.where(special, values, shifted).astype(np.uint16)
    return stored


def _with_cirrus(stored: Rows, values: Rows, facts: product_xml.Facts) -> Rows:
    """The 60 m bands and B10."""
    position = sentinel2.BANDS_60M.index("B09")

    def strips() -> Iterator[NDArray[np.uint16]]:
        for dn, value in zip(stored.strips(), values.strips(), strict=True):
            source = value[position : position + 1].astype(np.int32)
            cirrus = np.where(source == 0, 0, np.maximum(source // 10, 1))
            yield np.concatenate([dn, to_stored(cirrus, facts.offset)])

    return Rows((values.shape[0] + 1, *values.shape[1:]), strips)


def _every_third(image: Rows) -> Iterator[NDArray[Any]]:
    """The middle pixel of each 3 x 3: the scene classification at 60 m."""
    for strip in raster.rows_in_blocks(image.strips(), 3):
        yield strip[:, 1::3, 1::3]


def _write_cloud(folder: pathlib.Path, tile: Tile, facts: product_xml.Facts) -> list[str]:
    """Write the L1C cloud mask; returns the names of the files."""
    _, height, width = tile.cubes["gsd60"].shape
    cloud = np.zeros((height, width), bool) if tile.cloud is None else tile.cloud
    name = facts.cloud_file(tile.name)
    if name.endswith(".gml"):
        text = product_xml.cloud_gml(cloud, tile.epsg, tile.corner, 60)
        (folder / name).write_bytes(text)
        return [name]
    import rasterio.shutil
    from affine import Affine
    from rasterio.io import MemoryFile

    # Three bands: opaque cloud, cirrus, snow. Source: Products Specification Document, MSK_CLASSI.
    classes = np.zeros((3, height, width), np.uint8)
    classes[0] = cloud
    profile = {
        "driver": "GTiff",
        "count": 3,
        "height": height,
        "width": width,
        "dtype": "uint8",
        "crs": rasterio.CRS.from_epsg(tile.epsg),
        "transform": Affine(60, 0, tile.corner[0], 0, -60, tile.corner[1]),
    }
    with MemoryFile() as memory, rasterio.Env(GDAL_PAM_ENABLED="NO"):
        with memory.open(**profile) as file:
            file.write(classes)
        options = {"QUALITY": 100, "REVERSIBLE": "YES", "YCC": "NO", "BLOCKXSIZE": 192}
        rasterio.shutil.copy(
            memory.name, folder / name, driver="JP2OpenJPEG", BLOCKYSIZE=192, **options
        )
    return [name]
