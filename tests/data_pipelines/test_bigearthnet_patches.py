"""bigearthnet_patches.py: every layout is read as rasterio reads it; labels; upsampling."""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import pytest

from data_pipelines import bigearthnet, bigearthnet_patches, geotiff, sentinel2, synthetic_archive
from data_pipelines.bigearthnet import BANDS, SIZES
from data_pipelines.spec import DataError

LAYOUTS = {"v1_BigEarthNet-S2-Example": 6, "v1_configilm": 30, "v2_configilm": 24}


@pytest.fixture(scope="module")
def v1(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("archive") / "v1"
    synthetic_archive.write_archive(folder, 3, version=1)
    return folder


def read_by_rasterio(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Band -> pixels; (band: size) is checked by the caller."""
    import rasterio

    bands = {}
    for band in BANDS:
        with rasterio.open(folder / f"{folder.name}_{band}.tif") as file:
            bands[band] = file.read(1)
    return bands


@pytest.mark.shared_data
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_real_folders_are_read_as_rasterio_reads_them(
    shared_data: pathlib.Path, layout: str
) -> None:
    found = bigearthnet_patches.find_patches(shared_data / "bigearthnet" / layout)
    assert len(found) == LAYOUTS[layout]
    assert list(found) == sorted(found)
    for name, place in found.items():
        images = bigearthnet_patches.read_images(place, name)
        expected = read_by_rasterio(pathlib.Path(place))
        assert {key: image.shape[:2] for key, image in images.items()} == {
            key: (size, size) for key, size in SIZES.items()
        }
        for key, image in images.items():
            for index, band in enumerate(sentinel2.bands_at(sentinel2.GSDS[key])):
                np.testing.assert_array_equal(image[..., index], expected.pop(band))
        assert not expected


@pytest.mark.shared_data
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_the_lmdb_is_read_as_rasterio_reads_its_folders(
    shared_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Values made as rico-hdl makes them: one safetensors of 2-D tensors named by band."""
    import lmdb
    import safetensors.numpy

    folders = bigearthnet_patches.find_patches(shared_data / "bigearthnet" / "v2_configilm")
    path = tmp_path / "archive" / "BigEarthNet-V2-LMDB"
    path.mkdir(parents=True)
    with lmdb.open(str(path), map_size=2**26) as environment, environment.begin(write=True) as t:
        for name, place in folders.items():
            bands = read_by_rasterio(pathlib.Path(place))
            t.put(name.encode(), safetensors.numpy.save(bands))
        t.put(b"S1A_IW_GRDH_1SDV_20170613T165043_33UUP_70_40", b"radar")
    for root in (path, path.parent):
        found = bigearthnet_patches.find_patches(root)
        assert list(found) == list(folders)
        for name, place in found.items():
            images = bigearthnet_patches.read_images(place, name)
            expected = bigearthnet_patches.read_images(folders[name], name)
            for key, image in images.items():
                np.testing.assert_array_equal(image, expected[key])


@pytest.mark.shared_data
def test_labels_of_real_v1_patches(shared_data: pathlib.Path) -> None:
    folder = shared_data / "bigearthnet"
    labels = json.loads((folder / "v1_configilm_labels.json").read_text())
    for name, place in bigearthnet_patches.find_patches(folder / "v1_configilm").items():
        assert bigearthnet_patches.read_labels(place, name) == tuple(labels[name]["labels43"])
        assert not bigearthnet_patches.is_synthetic(place, name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file or directory; expected the labels of v1, or metadata.parquet of v2"),
        ("{", "damaged, expected JSON"),
        ("[]", "labels None; expected a list of names"),
        ("{}", "labels None; expected a list of names"),
        ('{"labels": []}', r"labels \[\]; expected a list of names"),
        ('{"labels": [3]}', r"labels \[3\]; expected a list of names"),
        ('{"labels": "Pastures"}', "labels 'Pastures'; expected a list"),
    ],
)
def test_bad_labels(tmp_path: pathlib.Path, text: str | None, words: str) -> None:
    name = "S2A_MSIL2A_20170613T101031_87_48"
    if text is not None:
        (tmp_path / f"{name}_labels_metadata.json").write_text(text)
    with pytest.raises(DataError, match=f"{name}_labels_metadata.json: {words}"):
        bigearthnet_patches.read_labels(str(tmp_path), name)


def test_bad_pixels(v1: pathlib.Path, tmp_path: pathlib.Path) -> None:
    name, place = next(iter(bigearthnet_patches.find_patches(v1).items()))
    assert bigearthnet_patches.is_synthetic(place, name)
    path = pathlib.Path(shutil.copytree(place, tmp_path / name))
    band = path / f"{name}_B11.tif"
    band.write_bytes((path / f"{name}_B02.tif").read_bytes())
    with pytest.raises(DataError, match=r"B11 is uint16 \(120, 120\); expected uint16 \(60, 60\)"):
        bigearthnet_patches.read_images(str(path), name)
    good = (path / f"{name}_B12.tif").read_bytes()
    for damaged, words in (
        (good[:200], "B11.tif"),
        (b"rubbish", "B11.tif: not readable as GeoTIFF"),
    ):
        band.write_bytes(damaged)
        with pytest.raises(DataError, match=words):
            bigearthnet_patches.read_images(str(path), name)
    band.unlink()
    with pytest.raises(DataError, match=f"{name}: no band B11; found .*B01.tif"):
        bigearthnet_patches.read_images(str(path), name)


def test_bad_archives(v1: pathlib.Path, tmp_path: pathlib.Path) -> None:
    find = bigearthnet_patches.find_patches
    with pytest.raises(DataError, match="nowhere: not found; expected the folder"):
        find(tmp_path / "nowhere")
    with pytest.raises(DataError, match=f"{tmp_path}: no BigEarthNet patch; expected folders"):
        find(tmp_path)
    for copy in ("one", "other"):
        shutil.copytree(v1, tmp_path / copy)
    with pytest.raises(DataError, match=r"is there twice: in .*one.* and in .*other"):
        find(tmp_path)


def test_an_entry_that_the_lmdb_lacks(tmp_path: pathlib.Path) -> None:
    import lmdb

    with lmdb.open(str(tmp_path / "db"), map_size=2**20) as environment:
        environment.sync()
    with pytest.raises(DataError, match="db: no Sentinel-2 patch"):
        bigearthnet_patches.find_patches(tmp_path / "db")
    with pytest.raises(DataError, match="db: S2A_1: not readable as safetensors"):
        bigearthnet.read_lmdb(tmp_path / "db", "S2A_1", BANDS)


def test_bilinear_is_that_of_opencv(v1: pathlib.Path) -> None:
    import cv2

    name, place = next(iter(bigearthnet_patches.find_patches(v1).items()))
    images = bigearthnet_patches.read_images(place, name)
    made = bigearthnet_patches.upsample_bilinear(images)
    assert (made.shape, made.dtype) == ((120, 120, 12), np.uint16)
    for key, image in images.items():
        for index, band in enumerate(sentinel2.bands_at(sentinel2.GSDS[key])):
            plane = image[..., index].astype(np.float32)
            wanted = cv2.resize(plane, (120, 120), interpolation=cv2.INTER_LINEAR)
            difference = made[..., BANDS.index(band)] - wanted.astype(np.float64)
            assert np.abs(difference).max() <= 0.5 + 1e-2
    for band in sentinel2.BANDS_10M:
        expected = geotiff.read_pixels(pathlib.Path(place, f"{name}_{band}.tif"), 1)
        np.testing.assert_array_equal(made[..., BANDS.index(band)], expected)


def test_what_an_example_holds() -> None:
    spec = bigearthnet_patches.build_spec(43)
    assert spec.task == "bigearthnet"
    shapes = {name: tensor.shape for name, tensor in spec.inputs.items()}
    assert shapes == {"gsd10": (120, 120, 4), "gsd20": (60, 60, 6), "gsd60": (20, 20, 2)}
    assert sum(tensor.num_bytes for tensor in spec.inputs.values()) < 165_000
    labels = spec.targets["labels"]
    assert (labels.shape, labels.dtype, labels.scale) == ((43,), "uint8", 1.0)
    assert labels.bands[:2] == ("Continuous urban fabric", "Discontinuous urban fabric")
    spec = bigearthnet_patches.build_spec(19, upsampled=True)
    assert {name: tensor.shape for name, tensor in spec.inputs.items()} == {"bands": (120, 120, 12)}
    assert spec.inputs["bands"].bands == BANDS
    assert spec.inputs["bands"].bands[0:2] + BANDS[-1:] == ("B01", "B02", "B12")
    assert spec.targets["labels"].bands[0] == "Urban fabric"
