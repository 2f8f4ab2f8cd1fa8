"""BigEarthNet at 10 m by models, patch by patch, and cut out of whole upsampled tiles."""

from __future__ import annotations

import pathlib

import click.testing
import keras
import numpy as np
import pytest

from data_pipelines import (
    bigearthnet_convert,
    bigearthnet_patches,
    bigearthnet_tiles,
    raster,
    sentinel2,
    store,
    synthetic,
)
from data_pipelines.bigearthnet import BANDS
from data_pipelines.spec import DataError
from kerass2 import models, predict, prepare

PRODUCT = "S2A_MSIL2A_20170613T101031_N9999_R022_T32UMC"
POSITIONS = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 1)]


def write_labels(root: pathlib.Path) -> None:
    """Metadata of v2 for what synthetic.write_bigearthnet has written."""
    import pyarrow
    import pyarrow.parquet

    names = list(bigearthnet_patches.find_patches(root))
    splits = (["train", "validation", "test"] * len(names))[: len(names)]
    labels = [["Pastures"]] * len(names)
    table = pyarrow.table({"patch_id": names, "labels": labels, "split": splits})
    pyarrow.parquet.write_table(table, root / "metadata.parquet")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("upsampled") / "archive"
    synthetic.write_bigearthnet(root, POSITIONS)
    write_labels(root)
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    keras.utils.set_random_seed(1)
    made = models.build("dsen2", task="superres_20m", filters=8, blocks=1)
    path = tmp_path_factory.mktemp("model") / "dsen2.keras"
    made.save(path)
    return path


def run(*arguments: object) -> click.testing.Result:
    command = [*map(str, arguments), "--task", "bigearthnet", "--processes", "1"]
    return click.testing.CliRunner().invoke(prepare.main, command)


def write_tile(folder: pathlib.Path, name: str = PRODUCT, **changes: object) -> pathlib.Path:
    """A tile whose bands tell the pixel: B01 the row, others row + 2 column + band."""
    from affine import Affine

    rows, columns = np.mgrid[:360, :360].astype(np.uint16)
    pixels = np.stack([rows + 2 * columns + 1 + band for band in range(12)])
    options = {
        "height": 360,
        "width": 360,
        "bands": list(BANDS),
        "crs": synthetic.CRS,
        "transform": Affine(10, 0, synthetic.CORNER[0], 0, -10, synthetic.CORNER[1]),
        "overwrite": True,
        **changes,
    }
    folder.mkdir(exist_ok=True)
    raster.write_geotiff(folder / f"{name}.tif", [pixels], **options)  # type: ignore[arg-type]
    return folder / f"{name}.tif"


def test_patches_by_a_model_are_those_of_predict(
    archive: pathlib.Path, model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    result = run(archive, "-o", tmp_path / "out", "--upsample", "dsen2", "--model", model)
    assert result.exit_code == 0, result.output
    found = store.read_manifest(tmp_path / "out")
    assert found.spec == bigearthnet_patches.build_spec(19, upsampled=True)
    assert found.provenance["upsample"].startswith("dsen2 (dsen2.keras ")
    batch = store.open_source(tmp_path / "out", "test").read([0])
    name = str(batch["patch_id"][0])
    place = bigearthnet_patches.find_patches(archive)[name]
    output = tmp_path / "patch.tif"
    arguments = [str(model), place, "-o", str(output), "--bands", "all"]
    assert click.testing.CliRunner().invoke(predict.main, arguments).exit_code == 0
    import rasterio

    pixels = batch["inputs"]["bands"][0]
    with rasterio.open(output) as file:
        for index, band in enumerate(file.descriptions, start=1):
            np.testing.assert_array_equal(pixels[..., BANDS.index(band)], file.read(index))
    images = bigearthnet_patches.read_images(place, name)
    plain = bigearthnet_patches.upsample_bilinear(images)
    for band in sentinel2.BANDS_60M:
        where = BANDS.index(band)
        np.testing.assert_array_equal(pixels[..., where], plain[..., where])
    assert (pixels[..., BANDS.index("B05")] != plain[..., BANDS.index("B05")]).any()


def test_patches_are_cut_where_they_lie(archive: pathlib.Path, tmp_path: pathlib.Path) -> None:
    write_tile(tmp_path / "tiles")
    result = run(archive, "-o", tmp_path / "out", "--tiles", tmp_path / "tiles")
    assert result.exit_code == 0, result.output
    for split in ("train", "validation", "test"):
        source = store.open_source(tmp_path / "out", split)
        batch = source.read(range(len(source)))
        for name, pixels in zip(batch["patch_id"], batch["inputs"]["bands"], strict=True):
            column, row = map(int, str(name).split("_")[-2:])
            rows, columns = np.mgrid[:120, :120]
            plane = (120 * row + rows) + 2 * (120 * column + columns) + 1
            for band in range(12):
                np.testing.assert_array_equal(pixels[..., band], plane + band)


def test_whole_tiles_first_as_the_paper_does(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The tile goes through kerass2.predict, and only then is it cut into the archive's patches."""
    import rasterio

    from data_pipelines import geotiff

    keras.utils.set_random_seed(2)
    second = models.build("dsen2", task="superres_60m", filters=4, blocks=1)
    second.save(tmp_path / "dsen2_60m.keras")
    root = tmp_path / "archive"
    synthetic.write_bigearthnet(root, [(0, 0), (1, 1), (0, 1)])
    write_labels(root)
    product = tmp_path / PRODUCT
    geotiff.write_folder(
        product, synthetic.build_cubes(240), crs=synthetic.CRS, corner=synthetic.CORNER
    )
    (tmp_path / "tiles").mkdir()
    output = tmp_path / "tiles" / f"{PRODUCT}.tif"
    arguments = [model, product, "-o", output, "--bands", "all"]
    arguments += ["--model-60m", tmp_path / "dsen2_60m.keras"]
    done = click.testing.CliRunner().invoke(predict.main, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    result = run(root, "-o", tmp_path / "out", "--tiles", tmp_path / "tiles")
    assert result.exit_code == 0, result.output
    places = bigearthnet_patches.find_patches(root)
    for split in ("train", "validation", "test"):
        batch = store.open_source(tmp_path / "out", split).read([0])
        name = str(batch["patch_id"][0])
        images = bigearthnet_patches.read_images(places[name], name)
        pixels = batch["inputs"]["bands"][0]
        ten = pixels[..., [BANDS.index(band) for band in sentinel2.BANDS_10M]]
        np.testing.assert_array_equal(ten, images["gsd10"])
        column, row = map(int, name.split("_")[-2:])
        with rasterio.open(output) as file:
            whole = file.read([file.descriptions.index(band) + 1 for band in BANDS])
        expected = whole[:, 120 * row : 120 * row + 120, 120 * column : 120 * column + 120]
        np.testing.assert_array_equal(pixels, np.moveaxis(expected, 0, -1))


def test_pixels_without_data_in_a_tile(archive: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A dark band stays; no data in a part is an error, no data at all a counted exclusion."""
    import rasterio

    file = write_tile(tmp_path / "tiles")
    with rasterio.open(file, "r+") as image:
        pixels = image.read()
        pixels[3, :120, :120] = 0  # patch 0_0: dark in B04
        pixels[:, :120, 120:240] = 0  # patch 1_0: nothing
        pixels[:, 120:130, :10] = 0  # patch 0_1: nothing in a corner
        image.write(pixels)
    summary = bigearthnet_convert.convert_archive(
        archive, tmp_path / "out", upsample=("tiles", bigearthnet_tiles.find_tiles(file.parent))
    )
    assert summary.left_out == {"all pixels zero": 1, "could not be read": 1}
    (name, why), *_ = summary.failed.items()
    assert name.endswith("_00_01")
    assert "has no data in 100 of the 14,400 pixels there" in why
    assert sum(summary.counts.values()) == summary.total - 2


def test_the_offset_of_newer_products_is_taken_out(
    archive: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    file = write_tile(tmp_path / "tiles")
    import rasterio

    place, name = next(
        (place, name) for name, place in bigearthnet_patches.find_patches(archive).items()
    )
    before = bigearthnet_tiles.find_tiles(tmp_path / "tiles")({}, place, name)
    with rasterio.open(file, "r+") as image:
        image.scales, image.offsets = [1e-4] * 12, [-0.01] * 12
    after = bigearthnet_tiles.find_tiles(tmp_path / "tiles")({}, place, name)
    np.testing.assert_array_equal(after, np.maximum(before.astype(int) - 100, 1))


def test_tiles_that_do_not_fit(archive: pathlib.Path, tmp_path: pathlib.Path) -> None:
    from affine import Affine

    tiles = tmp_path / "tiles"
    name, place = next(iter(bigearthnet_patches.find_patches(archive).items()))

    def fails(words: str) -> None:
        with pytest.raises(DataError, match=words):
            bigearthnet_tiles.find_tiles(tiles)({}, place, name)

    tiles.mkdir()
    fails("no upsampled tile; expected GeoTIFFs named after their products")
    east, north = synthetic.CORNER
    write_tile(tiles, transform=Affine(10, 0, east - 5, 0, -10, north))
    fails(f"{name}: begins 5 m east and 0 m south of the corner of .*whole pixels")
    write_tile(tiles, transform=Affine(10, 0, east + 1200, 0, -10, north))
    fails(f"{name}: rows 0 to 120 and columns -120 to 0 lie outside of")
    write_tile(tiles, crs="EPSG:32633")
    fails("CRS EPSG:32632; .* has EPSG:32633")
    write_tile(tiles, transform=Affine(20, 0, east, 0, -20, north))
    fails("expected 10 m, north up")
    write_tile(tiles, bands=[*BANDS[:11], "B10"])
    fails("no band B12; expected all 12 at 10 m")
    write_tile(tiles)
    write_tile(tiles, f"{PRODUCT}_20170613T101608")
    fails("two tiles S2A 20170613 32UMC")
    (tiles / f"{PRODUCT}_20170613T101608.tif").unlink()
    (tiles / f"{PRODUCT}.tif").rename(tiles / f"{PRODUCT.replace('32UMC', '32UMD')}.tif")
    fails(f"{name}: no tile S2A 20170613 32UMC among the 1 given")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--upsample", "dsen2"], "--upsample dsen2: expected --model"),
        (["--upsample", "bilinear", "--model", "a"], "--model: only with --upsample dsen2"),
        (["--upsample", "bilinear", "--tiles", "a"], "--tiles are upsampled already"),
    ],
)
def test_mistakes(
    archive: pathlib.Path, tmp_path: pathlib.Path, arguments: list[str], words: str
) -> None:
    result = run(archive, "-o", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr


def test_a_model_of_another_method(
    archive: pathlib.Path, model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    result = run(archive, "-o", tmp_path / "out", "--upsample", "s2x", "--model", model)
    assert isinstance(result.exception, DataError)
    assert "holds a model dsen2; expected s2x or s6x" in str(result.exception)
    arguments = ("--upsample", "dsen2", "--model", model, "--model-60m", model)
    result = run(archive, "-o", tmp_path / "out", *arguments)
    assert "a second model for B05" in str(result.exception)


@pytest.mark.shared_data
def test_real_patches_by_published_weights(
    shared_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    result = run(
        shared_data / "bigearthnet" / "v1_BigEarthNet-S2-Example",
        "-o", tmp_path / "out", "--split", "random:0", "--upsample", "dsen2",
        "--model", shared_data / "weights" / "dsen2_L2A20M.npz",
        "--model-60m", shared_data / "weights" / "dsen2_L2A60M.npz",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert sum(store.verify(tmp_path / "out").values()) == 6
    places = bigearthnet_patches.find_patches(
        shared_data / "bigearthnet" / "v1_BigEarthNet-S2-Example"
    )
    batch = store.open_source(tmp_path / "out", "train").read([0])
    name = str(batch["patch_id"][0])
    images = bigearthnet_patches.read_images(places[name], name)
    pixels = batch["inputs"]["bands"][0].astype(float)
    for key, gsd in (("gsd20", 20), ("gsd60", 60)):
        for index, band in enumerate(sentinel2.bands_at(gsd)):
            fine, coarse = pixels[..., BANDS.index(band)], images[key][..., index].astype(float)
            step = gsd // 10
            means = fine.reshape(120 // step, step, 120 // step, step).mean(axis=(1, 3))
            assert np.abs(means - coarse).mean() < 0.1 * coarse.mean()
    assert bigearthnet_convert.ACCOUNT in {path.name for path in (tmp_path / "out").iterdir()}
