"""kerass2.predict on classifiers, against rasterio's own reading and a plain call of the model."""

from __future__ import annotations

import csv
import json
import pathlib
import struct
from collections.abc import Callable

import keras
import lmdb
import numpy as np
import pyarrow.parquet
import pyproj
import pytest
import rasterio
import safetensors.numpy

from data_pipelines import bigearthnet, bigearthnet_patches, geotiff, sentinel2, store, synthetic
from kerass2 import models
from kerass2.models import labels

CLASSES = ("Pastures", "Land principally occupied by agriculture, with more", "Sea and ocean")
EDGE = 360
GAP = 60  # columns without data [px of 10 m]
V2 = "S2A_MSIL2A_20170613T101031_N9999_R022_T32UMC_00_00"


def save(path: pathlib.Path, **options: object) -> pathlib.Path:
    """A small ResNet whose answers differ from patch to patch."""
    keras.utils.set_random_seed(3)
    model = models.build(
        "resnet", depth=10, width=4, classes=len(CLASSES), zero_gamma=False, **options
    )
    model.get_layer("predictions").kernel.assign(
        np.random.default_rng(0).normal(0, 0.1, model.get_layer("predictions").kernel.shape)
    )
    labels.find(model).classes = CLASSES
    model.save(path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, pathlib.Path]:
    """Models, and a granule of 3 x 3 windows without data in its first columns."""
    folder = tmp_path_factory.mktemp("labels")
    cubes = {name: cube.copy() for name, cube in synthetic.build_cubes(EDGE, seed=4).items()}
    for name, cube in cubes.items():
        cube[:, :, : GAP // (sentinel2.GSDS[name] // 10)] = 0
    # One band alone is dark water, not a gap.
    cubes["gsd20"][3, 100:110, 100:110] = 0
    place = {"crs": synthetic.CRS, "corner": synthetic.CORNER, "synthetic": True}
    return {
        "model": save(folder / "model.keras"),
        "bands": save(folder / "bands.keras", inputs="bands"),
        "rgb": save(folder / "rgb.keras", bands="rgb"),
        "granule": geotiff.write_folder(folder / "granule", cubes, **place),
    }


@pytest.fixture
def predict(run_here) -> Callable[..., str]:
    """The command in this process; its output, or its errors where it fails."""

    def call(*arguments: object, code: int = 0) -> str:
        result = run_here("predict", *arguments)
        assert (result.returncode or 0) == code, result.stderr
        assert "Traceback" not in result.stderr
        return str(result.stderr if code else result.stdout)

    return call


def answer(file: pathlib.Path, images: dict[str, np.ndarray]) -> np.ndarray:
    """Probabilities by a plain call: images are {input: (y, x, band) DN}."""
    model = models.load_model(file)
    given = {name: (image * 1e-4).astype(np.float32)[None] for name, image in images.items()}
    taken = {name: given[name] for name in model.input}
    return np.asarray(model(taken, training=False)["probability"])[0]


def read_patch(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """A patch's bands by rasterio."""
    images = {}
    for name, gsd in sentinel2.GSDS.items():
        planes = []
        for band in sentinel2.bands_at(gsd):
            with rasterio.open(folder / f"{folder.name}_{band}.tif") as file:
                planes.append(file.read(1))
        images[name] = np.stack(planes, axis=-1)
    return images


def read_window(folder: pathlib.Path, y: int, x: int, edge: int = 120) -> dict[str, np.ndarray]:
    """A window of a folder of gsd10.tif, ..., by rasterio."""
    images = {}
    for name, gsd in sentinel2.GSDS.items():
        r = gsd // 10
        with rasterio.open(folder / f"{name}.tif") as file:
            window = ((y // r, (y + edge) // r), (x // r, (x + edge) // r))
            images[name] = np.moveaxis(file.read(window=window), 0, -1)
    return images


def read_rows(path: pathlib.Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def numbers(row: dict[str, str]) -> list[float]:
    return [float(row[name]) for name in CLASSES]


@pytest.mark.shared_data
@pytest.mark.parametrize("kind", ["model", "bands", "rgb"])
def test_a_folder_of_real_patches(files, predict, shared_data, tmp_path, kind):
    archive = shared_data / "bigearthnet" / "v1_BigEarthNet-S2-Example"
    printed = predict(files[kind], archive, "-o", tmp_path / "out.csv")
    assert "6 patches, 3 classes" in printed
    rows = read_rows(tmp_path / "out.csv")
    folders = sorted(path for path in archive.iterdir() if path.is_dir())
    assert [row["name"] for row in rows] == [folder.name for folder in folders]
    for row, folder in zip(rows, folders, strict=True):
        images = read_patch(folder)
        if kind == "bands":
            images = {"bands": bigearthnet_patches.upsample_bilinear(images)}
        expected = answer(files[kind], images)
        np.testing.assert_allclose(numbers(row), expected, atol=2e-6)
        chosen = [name for name, value in zip(CLASSES, expected, strict=True) if value >= 0.5]
        assert row["labels"] == "; ".join(chosen)
        with rasterio.open(folder / f"{folder.name}_B02.tif") as file:
            to_lonlat = pyproj.Transformer.from_crs(file.crs, "EPSG:4326", always_xy=True)
            middle = to_lonlat.transform(*file.xy(59.5, 59.5))
        found = [float(row["longitude"]), float(row["latitude"])]
        np.testing.assert_allclose(found, middle, atol=1e-5)
    assert len({row[CLASSES[0]] for row in rows}) == 6


def test_windows_of_a_granule_as_a_raster(files, predict, tmp_path):
    """Half a window's stride: 5 x 5 windows, of which the first column sees the gap."""
    arguments = (files["model"], files["granule"], "--stride", 60)
    printed = predict(*arguments, "-o", tmp_path / "out.tif")
    assert "25 windows of 120 px of 10 m, 5 of them without data" in printed
    with rasterio.open(tmp_path / "out.tif") as file:
        found = file.read()
        assert file.descriptions == CLASSES
        assert file.crs == rasterio.CRS.from_string(synthetic.CRS)
        assert file.dtypes == ("float32",) * 3
        assert np.isnan(file.nodata)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.tags().items() >= geotiff.SYNTHETIC_TAGS.items()
        east, north = synthetic.CORNER
        # A pixel of 600 m, whose middle is that of its window of 1200 m.
        assert file.transform == rasterio.Affine(600, 0, east + 300, 0, -600, north - 300)
    assert found.shape == (3, 5, 5)
    assert np.isnan(found[:, :, 0]).all()
    assert np.isfinite(found[:, :, 1:]).all()
    for row, column in ((0, 1), (2, 3), (4, 4)):
        expected = answer(files["model"], read_window(files["granule"], 60 * row, 60 * column))
        np.testing.assert_allclose(found[:, row, column], expected, atol=2e-6)
    predict(*arguments, "-o", tmp_path / "out.csv")
    rows = read_rows(tmp_path / "out.csv")
    assert [row["labels"] for row in rows[::5]] == [""] * 5
    assert rows[0][CLASSES[0]] == ""
    table = [numbers(row) for row in rows if row[CLASSES[0]]]
    there = np.isfinite(found[0])
    np.testing.assert_allclose(table, found[:, there].T, atol=1e-6)
    # A part of it, and windows side by side.
    predict(*arguments[:2], "--roi", "120,0,360,121", "-o", tmp_path / "part.csv")
    part = read_rows(tmp_path / "part.csv")
    assert len(part) == 2
    np.testing.assert_allclose(numbers(part[1]), found[:, 0, 4], atol=2e-6)


def test_geojson_and_geoparquet_say_the_same(files, predict, tmp_path):
    for suffix in (".csv", ".geojson", ".parquet"):
        predict(files["model"], files["granule"], "-o", tmp_path / f"out{suffix}")
    rows = read_rows(tmp_path / "out.csv")
    whole = json.loads((tmp_path / "out.geojson").read_text())
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert whole["type"] == "FeatureCollection"
    assert [feature["id"] for feature in whole["features"]] == [row["name"] for row in rows]
    assert table.column("name").to_pylist() == [row["name"] for row in rows]
    for row, feature, values in zip(rows, whole["features"], table.to_pylist(), strict=True):
        own = feature["properties"]
        if not row[CLASSES[0]]:
            assert own["labels"] is None
            assert values["labels"] is None
            assert own[CLASSES[1]] is None
            assert values[CLASSES[1]] is None
            continue
        assert "; ".join(own["labels"]) == "; ".join(values["labels"]) == row["labels"]
        assert [own[name] for name in CLASSES] == numbers(row)
        np.testing.assert_allclose([values[name] for name in CLASSES], numbers(row), rtol=1e-6)
    geo = json.loads(table.schema.metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    about = geo["columns"][geo["primary_column"]]
    assert about["encoding"] == "WKB"
    assert "crs" not in about  # OGC:CRS84, longitude before latitude
    to_lonlat = pyproj.Transformer.from_crs(synthetic.CRS, "EPSG:4326", always_xy=True)
    east, north = synthetic.CORNER
    for number, (row, column) in enumerate(np.ndindex(3, 3)):
        x, y = east + 1200 * column, north - 1200 * row
        corners = [(x, y), (x, y - 1200), (x + 1200, y - 1200), (x + 1200, y), (x, y)]
        expected = [to_lonlat.transform(*corner) for corner in corners]
        (ring,) = whole["features"][number]["geometry"]["coordinates"]
        np.testing.assert_allclose(ring, expected, atol=1e-6)
        wkb = table.column("geometry")[number].as_py()
        assert struct.unpack_from("<BIII", wkb) == (1, 3, 1, 5)
        assert np.frombuffer(wkb[13:], "<f8").reshape(5, 2).tolist() == ring
    lons, lats = np.array([f["geometry"]["coordinates"][0] for f in whole["features"]]).T
    assert about["bbox"] == [lons.min(), lats.min(), lons.max(), lats.max()]


def test_geopandas_reads_both_and_writes_regions(files, predict, tmp_path):
    geopandas = pytest.importorskip("geopandas", reason="geopandas is not installed")
    for suffix in (".geojson", ".parquet"):
        predict(files["model"], files["granule"], "-o", tmp_path / f"out{suffix}")
    found = geopandas.read_parquet(tmp_path / "out.parquet")
    other = geopandas.read_file(tmp_path / "out.geojson")
    assert (found.crs.to_string(), other.crs.to_string()) == ("OGC:CRS84", "EPSG:4326")
    assert found.to_crs(4326).geom_equals_exact(other.geometry, 1e-9).all()
    np.testing.assert_allclose(found[list(CLASSES)], other[list(CLASSES)], rtol=1e-6)
    labels = [None if row is None else list(row) for row in found["labels"]]
    assert labels[0] is None and labels[1] == list(other["labels"][1])
    # On the granule's own grid again: squares of 1200 m, the middle one in the middle.
    squares = found.to_crs(synthetic.CRS)
    np.testing.assert_allclose(squares.area, 1200**2, rtol=1e-4)
    east, north = synthetic.CORNER
    box = [east + 1200, north - 2400, east + 2400, north - 1200]
    np.testing.assert_allclose(squares.geometry[4].bounds, box, atol=0.1)
    # What it writes is a region to label: the one window in it.
    found.iloc[[4]].to_file(tmp_path / "region.geojson")
    region = ("--geojson", tmp_path / "region.geojson")
    predict(files["model"], files["granule"], *region, "-o", tmp_path / "part.parquet")
    part = geopandas.read_parquet(tmp_path / "part.parquet")
    assert part.geom_equals_exact(found.geometry.iloc[[4]], 1e-6, align=False).tolist() == [True]
    np.testing.assert_allclose(part[list(CLASSES)], found[list(CLASSES)].iloc[[4]], atol=2e-6)


@pytest.mark.parametrize(
    "strategy", [pytest.param("horovod", marks=pytest.mark.cluster), "multiworker"]
)
def test_two_ranks_write_the_same(files, predict, run_command, tmp_path, strategy):
    if strategy == "horovod":
        pytest.importorskip("horovod", reason="Horovod is not built here")
    arguments = (files["model"], files["granule"], "--stride", 30)
    predict(*arguments, "-o", tmp_path / "one.geojson")
    ranks = ("--strategy", strategy, "--workers", 2)
    result = run_command("predict", *arguments, *ranks, "-o", tmp_path / "two.geojson")
    assert result.returncode == 0, result.stderr
    assert "81 windows" in result.stdout
    assert (tmp_path / "two.geojson").read_bytes() == (tmp_path / "one.geojson").read_bytes()


def test_patches_of_a_data_set_and_thresholds(files, predict, tmp_path):
    rng = np.random.default_rng(1)
    spec = bigearthnet_patches.build_spec(43)

    def examples():
        for number in range(5):
            inputs = {
                name: rng.integers(1, 4000, tensor.shape).astype(np.uint16)
                for name, tensor in spec.inputs.items()
            }
            if number == 3:
                inputs["gsd10"][5, 5] = 0
            target = {"labels": np.zeros(43, np.uint8)}
            split = ("train", "test")[number % 2]
            yield split, {"inputs": inputs, "targets": target, "patch_id": f"patch {number}"}

    data = store.write(tmp_path / "data", spec, examples())
    thresholds = {"classes": CLASSES, "thresholds": {"model": [0.0, 1.1, 0.0]}}
    (tmp_path / "tuned.json").write_text(json.dumps(thresholds))
    tuned = ("--threshold", tmp_path / "tuned.json")
    predict(files["model"], data, *tuned, "-o", tmp_path / "out.geojson")
    found = json.loads((tmp_path / "out.geojson").read_text())["features"]
    expected = {}
    for split in ("train", "test"):
        source = store.open_source(data, split)
        for number in range(len(source)):
            batch = source.read([number])
            images = {name: values[0] for name, values in batch["inputs"].items()}
            expected[str(batch["patch_id"][0])] = answer(files["model"], images)
    assert [feature["id"] for feature in found] == list(expected)
    for feature in found:
        assert feature["geometry"] is None
        properties = feature["properties"]
        if feature["id"] == "patch 3":
            assert properties["labels"] is None
            continue
        assert properties["labels"] == [CLASSES[0], CLASSES[2]]
        values = [properties[name] for name in CLASSES]
        np.testing.assert_allclose(values, expected[feature["id"]], atol=2e-6)


def test_one_patch_is_a_raster_of_one_pixel(files, predict, tmp_path):
    (patch,) = synthetic.write_bigearthnet(tmp_path / "v2", [(0, 0)])
    predict(files["model"], patch, "-o", tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as file:
        assert (file.height, file.width, file.res) == (1, 1, (1200, 1200))
        np.testing.assert_allclose(
            file.read()[:, 0, 0], answer(files["model"], read_patch(patch)), atol=2e-6
        )
    # Several inputs: a file each.
    (tmp_path / "out").mkdir()
    predict(files["model"], patch, files["granule"], "-o", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{V2}.csv", "granule.csv"}
    assert [row["name"] for row in read_rows(tmp_path / "out" / f"{V2}.csv")] == [V2]


def write_lmdb(path: pathlib.Path, folders: list[pathlib.Path]) -> pathlib.Path:
    """As rico-hdl writes reBEN: key name, value safetensors by band; radar patches beside them."""
    path.mkdir(parents=True)
    with lmdb.open(str(path), map_size=2**26) as environment, environment.begin(write=True) as t:
        t.put(b"S1A_IW_GRDH_1SDV_20170613T165043_33UUP_70_40", b"radar")
        for folder in folders:
            planes = {}
            for band in bigearthnet.BANDS:
                with rasterio.open(folder / f"{folder.name}_{band}.tif") as file:
                    planes[band] = file.read(1)
            t.put(folder.name.encode(), safetensors.numpy.save(planes))
    return path


@pytest.mark.parametrize("kind", ["model", "bands", "rgb"])
def test_an_lmdb_gives_what_its_folders_give(files, predict, tmp_path, kind):
    folders = synthetic.write_bigearthnet(tmp_path / "v2", [(0, 0), (0, 1), (1, 0)])
    archive = write_lmdb(tmp_path / "archive" / "BigEarthNet.lmdb", folders).parent
    predict(files[kind], tmp_path / "v2", "-o", tmp_path / "folders.csv")
    expected = read_rows(tmp_path / "folders.csv")
    for number, source in enumerate((archive / "BigEarthNet.lmdb", archive)):
        out = tmp_path / f"{number}.csv"
        assert "3 patches, 3 classes" in predict(files[kind], source, "-o", out)
        rows = read_rows(out)
        assert [row["name"] for row in rows] == [row["name"] for row in expected]
        for row, other in zip(rows, expected, strict=True):
            assert numbers(row) == numbers(other)
            assert row["labels"] == other["labels"]
            # It does not say where its patches lie.
            assert (row["longitude"], row["latitude"]) == ("", "")


def test_an_lmdb_as_geojson_and_what_is_wrong_with_one(files, predict, tmp_path):
    folders = synthetic.write_bigearthnet(tmp_path / "v2", [(0, 0), (0, 1)])
    path = write_lmdb(tmp_path / "lmdb", folders)
    for suffix in (".geojson", ".parquet"):
        predict(files["model"], path, "-o", tmp_path / f"out{suffix}")
    features = json.loads((tmp_path / "out.geojson").read_text())["features"]
    assert [feature["geometry"] for feature in features] == [None, None]
    assert [feature["id"] for feature in features] == [folder.name for folder in folders]
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert table.column("geometry").to_pylist() == [None, None]
    assert table.column("name").to_pylist() == [folder.name for folder in folders]
    printed = predict(files["model"], path, "-o", tmp_path / "out.tif", code=1)
    assert "patches form no grid" in printed
    with lmdb.open(str(path), map_size=2**26) as environment, environment.begin(write=True) as t:
        t.put(folders[1].name.encode(), b"rubbish")
    printed = predict(files["model"], path, "-o", tmp_path / "out.csv", code=1)
    assert f"{folders[1].name}: not readable as safetensors" in printed
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("options", "output", "code", "message"),
    [
        (("--stac",), "out.csv", 2, "--stac: for sharpening"),
        (("--bands", "all", "--bicubic"), "out.csv", 2, "--bands, --bicubic: for sharpening"),
        (("--threshold", "2"), "out.csv", 2, "--threshold 2: expected a number from 0 to 1"),
        ((), "out.zarr", 1, "expected a name that ends in .csv or .geojson or .parquet or .tif"),
        (("--stride", 50), "out.csv", 1, "--stride 50: expected a multiple of 6 px"),
        (("--window", 480), "out.csv", 1, "360 x 360 px of 10 m; expected at least a window of"),
        (("--format", "GTiff"), "out.tif", 1, "--format GTiff: of such outputs there are"),
    ],
)
def test_bad_options(files, predict, tmp_path, options, output, code, message):
    arguments = (files["model"], files["granule"], "-o", tmp_path / output, *options)
    printed = predict(*arguments, code=code)
    assert message in " ".join(printed.split())
    assert not list(tmp_path.iterdir())


def test_bad_inputs(files, predict, tmp_path):
    patches = synthetic.write_bigearthnet(tmp_path / "v2", [(0, 0), (0, 1)])
    out = tmp_path / "out.csv"
    printed = predict(files["model"], tmp_path / "v2", "-o", tmp_path / "out.tif", code=1)
    assert "patches form no grid" in printed
    printed = predict(files["model"], tmp_path / "v2", "--stride", 60, "-o", out, code=1)
    assert "--stride is for a granule" in printed
    next(patches[1].glob("*_B11.tif")).unlink()
    printed = predict(files["model"], tmp_path / "v2", "-o", out, code=1)
    assert "no band B11" in printed
    printed = predict(files["bands"], files["granule"], "--window", 60, "-o", out, code=1)
    assert "enlarged for windows of 120 px only" in printed
    (tmp_path / "tuned.json").write_text('{"classes": ["a"], "thresholds": {"model": [0.5]}}')
    tuned = ("--threshold", tmp_path / "tuned.json")
    printed = predict(files["model"], files["granule"], *tuned, "-o", out, code=1)
    assert "expected thresholds of the model's 3 classes" in printed
    assert not out.exists()
