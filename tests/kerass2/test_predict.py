"""Prediction of whole granules: pixels, no-data, clipping, georeference, refusals, the command."""

from __future__ import annotations

import itertools
import os
import pathlib
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import keras
import numpy as np
import pytest
import rasterio
import xarray
from hypothesis import given
from hypothesis import strategies as st
from rasterio.errors import NotGeoreferencedWarning

import strategies
from data_pipelines import geotiff, raster_formats, sample, sentinel2, synthetic, synthetic_product
from data_pipelines.granule import Granule, build_cube, open_granule, open_granules
from data_pipelines.spec import DataError
from kerass2 import cli, meaning, models, networks, outputs, precision, predict, sharpen
from kerass2.models import weights

BANDS = sentinel2.BANDS_20M
CORNER = (600000.0, 5300040.0)


def pixels(height: int = 80, width: int = 110, *, low: int = 200) -> dict[str, np.ndarray]:
    """Smooth-free random DN on nesting grids; height and width in px of 10 m."""
    rng = np.random.default_rng(5)
    return {
        "gsd10": rng.integers(low, 6000, (4, height, width)).astype(np.uint16),
        "gsd20": rng.integers(low, 6000, (6, height // 2, width // 2)).astype(np.uint16),
    }


def granule_of(cubes: dict[str, np.ndarray], **reference: object) -> Granule:
    """A granule in memory."""
    built = {
        name: build_cube(values, sentinel2.bands_at(gsd), gsd, **reference)
        for (name, values), gsd in zip(cubes.items(), (10, 20), strict=False)
    }
    return Granule("test", "test", "test", built)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """DSen2, small and untrained, near to bilinear interpolation; every layer takes part."""
    keras.utils.set_random_seed(1)
    model = models.build("dsen2", filters=8, blocks=2)
    last = model.get_layer("conv_last")
    last.kernel.assign(last.kernel * 0.05)
    return model


@pytest.fixture(scope="module")
def model_file(model: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The same, saved."""
    path = tmp_path_factory.mktemp("model") / "model.keras"
    model.save(path)
    return path


def dn_of(found: xarray.Dataset) -> np.ndarray:
    """(band, y, x) of all bands, computed."""
    return found.to_dataarray("band").values


def sharpen_dn(model: keras.Model, granule: Granule, **options: object) -> np.ndarray:
    """(band, y, x) uint16 of a granule."""
    return dn_of(predict.predict_granule(granule, model, **options))


def folder_of(path: pathlib.Path, cubes: dict[str, np.ndarray]) -> pathlib.Path:
    """A folder of GeoTIFFs with CRS."""
    return geotiff.write_folder(path, cubes, crs="EPSG:32633", corner=CORNER)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The command as `python -m` runs it, in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kerass2.predict", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.run(predict.main)
        captured = capfd.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return call


def run_alone(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "kerass2.predict", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": ""},
        timeout=120,
    )


def test_equals_the_model_on_the_whole_image(model: keras.Model) -> None:
    cubes = pixels(64, 80)
    dataset = predict.predict_granule(granule_of(cubes), model)
    found = dn_of(dataset)
    padded = {
        name: np.pad(cube, ((0, 0), (margin, margin), (margin, margin)), mode="symmetric")
        for (name, cube), margin in zip(cubes.items(), (32, 16), strict=True)
    }
    inputs = {
        name: cube.transpose(1, 2, 0)[None] / np.float32(1e4) for name, cube in padded.items()
    }
    expected = np.asarray(model(inputs)["superres_20m"])[0, 32:-32, 32:-32].transpose(2, 0, 1) * 1e4
    assert tuple(dataset) == BANDS
    assert dataset.B05.dims == ("y", "x")
    assert found.dtype == np.uint16
    assert np.abs(found - np.clip(expected, 1, 65534)).max() <= 0.51
    assert "spatial_ref" not in dataset.coords


@pytest.mark.parametrize("core", [None, 14])
def test_no_data_of_any_band_is_kept_and_nothing_else_becomes_no_data(
    model: keras.Model, core: int | None
) -> None:
    """A pixel of which one of the ten bands has no data would be made of a reflectance of 0."""
    cubes = pixels(low=1)
    cubes["gsd20"][2, 5:9, 7:30] = 0
    cubes["gsd20"][:, :, -3:] = 0
    cubes["gsd10"][1, 40:45, 31:50] = 0
    cubes["gsd10"][:, 60:, :21] = 0
    found = sharpen_dn(model, granule_of(cubes), core=core)
    coarse = (cubes["gsd20"] == 0).any(axis=0).repeat(2, axis=0).repeat(2, axis=1)
    expected = coarse | (cubes["gsd10"] == 0).any(axis=0)
    assert 0 < expected.sum() < expected.size // 2
    for band in found:
        np.testing.assert_array_equal(band == 0, expected)


def test_what_no_model_reads_makes_no_gaps(model: keras.Model) -> None:
    """Gaps of the 60 m bands leave the 20 m bands, and those of 10 m stay as they are."""
    cubes = pixels(72, 72, low=1)
    cubes["gsd10"][0, 3, 4] = 0
    granule = granule_of(cubes)
    coarse = np.zeros((2, 12, 12), np.uint16)
    granule.cubes["gsd60"] = build_cube(coarse, sentinel2.BANDS_60M, 60)
    found = predict.predict_granule(granule, model, bands=("all",))
    assert [int((found[band] == 0).sum()) for band in ("B02", "B03", "B05")] == [1, 0, 1]
    np.testing.assert_array_equal(found.B03, cubes["gsd10"][1])


def test_values_outside_uint16_are_clipped() -> None:
    def wild() -> keras.Model:
        model = models.build("dsen2", filters=8, blocks=1)
        bias = model.get_layer("conv_last").bias
        bias.assign(np.array([-9, 99, 0, 0, 0, 0], np.float32))  # times 0.2 reflectance
        return model

    found = sharpen_dn(wild(), granule_of(pixels(32, 32)))
    assert (found[0] == 1).all()
    # One more would say that the instrument was saturated.
    assert (found[1] == 65534).all()


@pytest.mark.parametrize("offset", [0, -1000])
def test_saturated_pixels_stay_saturated(model: keras.Model, offset: int) -> None:
    cubes = pixels()
    cubes["gsd20"][2, 5:9, 7:30] = sentinel2.SATURATED
    cubes["gsd20"][4, -2:, -2:] = sentinel2.SATURATED
    cubes["gsd20"][2, 20, 20] = sentinel2.NO_DATA
    cubes["gsd20"][:, 30, 3] = sentinel2.SATURATED
    cubes["gsd20"][5, 30, 3] = sentinel2.NO_DATA  # which goes before
    cubes["gsd10"][1, :8, :8] = sentinel2.SATURATED  # of no band that is sharpened
    granule = granule_of(cubes)
    for cube in granule.cubes.values():
        number = len(cube.band)
        cube.attrs |= {"offset": (float(offset),) * number, "quantification": (1e4,) * number}
    found = sharpen_dn(model, granule)
    empty = (cubes["gsd20"] == sentinel2.NO_DATA).any(axis=0)
    saturated = (cubes["gsd20"] == sentinel2.SATURATED) & ~empty
    for dn, there in ((sentinel2.SATURATED, saturated), (sentinel2.NO_DATA, empty[None])):
        expected = np.broadcast_to(there.repeat(2, axis=1).repeat(2, axis=2), found.shape)
        np.testing.assert_array_equal(found == dn, expected)


@pytest.mark.parametrize("offset", [0, -1000])
def test_darkest_and_brightest_pixels_do_not_wrap_around(model: keras.Model, offset: int) -> None:
    """Reflectance below 0 and near what DN can hold, whole fields and single pixels of it."""
    cubes = pixels()
    for cube, ratio in zip(cubes.values(), (1, 2), strict=True):
        cube[:, : 40 // ratio, : 40 // ratio] = 1  # after the offset: -0.0999
        cube[:, : 40 // ratio, 60 // ratio :] = 65534
        cube[:, 60 // ratio, ::7] = 65534
        cube[:, 70 // ratio, ::7] = 1
    granule = granule_of(cubes)
    for cube in granule.cubes.values():
        number = len(cube.band)
        cube.attrs |= {"offset": (float(offset),) * number, "quantification": (1e4,) * number}
    found = sharpen_dn(model, granule)
    assert found.min() >= 1
    assert found.max() <= 65534
    # The network adds little to interpolation: dark stays dark and bright bright.
    assert found[:, 4:36, 4:36].max() < 2000
    assert found[:, 4:36, 64:].min() > 40_000


@given(
    st.floats(-1e6, 1e6, width=32),
    st.integers(-2000, 2000),
    st.sampled_from([1e4, 1e3, 65535.0]),
)
def test_any_reflectance_becomes_a_dn_that_is_no_sign(
    reflectance: float, offset: int, quantification: float
) -> None:
    values = np.full((1, 1, 1), reflectance, np.float32)
    meant = {"offset": np.array([float(offset)]), "quantification": np.array([quantification])}
    found = int(meaning.to_dn(values, **meant)[0, 0, 0])
    expected = min(max(round(reflectance * quantification - offset), 1), 65534)
    assert abs(found - expected) <= 1


def test_pixels_do_not_depend_on_the_window_for_convolutions(model: keras.Model) -> None:
    granule = granule_of(pixels())
    large = sharpen_dn(model, granule).astype(int)
    small = sharpen_dn(model, granule, core=14)
    assert np.abs(large - small).max() <= 1  # rounding to DN


def test_command_on_geotiffs(run: Run, model_file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    cubes = pixels()
    cubes["gsd20"][:, :4] = 0
    source = folder_of(tmp_path / "in", cubes)
    output = tmp_path / "out.tif"
    done = run_alone(model_file, source, "-o", output)
    assert done.returncode == 0, done.stderr
    assert "80 x 110 px" in done.stdout
    assert "warning" not in done.stderr
    with rasterio.open(output) as file:
        assert file.descriptions == BANDS
        assert file.crs.to_epsg() == 32633
        assert file.transform[:6] == (10, 0, CORNER[0], 0, -10, CORNER[1])
        assert (file.nodata, set(file.dtypes), file.profile["compress"]) == (
            0,
            {"uint16"},
            "deflate",
        )
        assert file.profile["tiled"]
        assert "SYNTHETIC" not in file.tags()
        found = file.read()
    assert not found[:, :8].any()
    # Near to the input: a mix-up of bands or places would be far from it.
    mean = found[:, 8:].reshape(6, 36, 2, 55, 2).mean((2, 4))
    per_band = [
        np.corrcoef(a.ravel(), b.ravel())[0, 1]
        for a, b in zip(mean, cubes["gsd20"][:, 4:], strict=True)
    ]
    assert min(per_band) > 0.8

    code, _, err = run(model_file, source, "-o", output)
    assert code == 1
    assert err == f"error: {output}: exists; give --overwrite to replace it\n"


def reflectance(file: rasterio.DatasetReader) -> np.ndarray:
    """What a user of GDAL gets: value * scale + offset, NaN where there is no data."""
    values = file.read(masked=True).astype(np.float64)
    scales, offsets = (np.array(v)[:, None, None] for v in (file.scales, file.offsets))
    return (values * scales + offsets).filled(np.nan)


def write(model: keras.Model, granule: Granule, path: pathlib.Path) -> None:
    """A COG of a granule, by one process."""
    plan = sharpen.build_plan(granule, [networks.build_network(model)])
    target = outputs.Target(path, "COG")
    outputs.write_output(plan, target, strategies.get("single"), identity={})


def test_dn_with_an_offset_come_out_as_they_came_in(
    model: keras.Model, tmp_path: pathlib.Path
) -> None:
    cubes = pixels(low=1)
    cubes["gsd20"][2, 5:9, 7:30] = 0
    # The same ground as after processing baseline 04.00, and with another quantification.
    later = {
        name: np.where(cube > 0, cube + 1000, 0).astype(np.uint16) for name, cube in cubes.items()
    }
    offset = granule_of(later)
    for cube in offset.cubes.values():
        number = len(cube.band)
        cube.attrs |= {"offset": (-1000.0,) * number, "quantification": (10000.0,) * number}
    plain = sharpen_dn(model, granule_of(cubes))
    dataset = predict.predict_granule(offset, model)
    assert {variable.attrs["offset"] for variable in dataset.values()} == {-1000.0}
    found = dn_of(dataset)
    expected = plain.astype(int) + 1000
    expected[plain == 0] = 0
    inside = plain != 1  # dark ones are clipped without the offset only
    np.testing.assert_array_equal(found[inside], expected[inside])
    np.testing.assert_array_equal(found == 0, plain == 0)

    for name, granule in {"plain": granule_of(cubes), "offset": offset}.items():
        write(model, granule, tmp_path / f"{name}.tif")
    with (
        warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning),
        rasterio.open(tmp_path / "plain.tif") as one,
        rasterio.open(tmp_path / "offset.tif") as other,
    ):
        assert (one.scales, one.offsets) == ((1.0,) * 6, (0.0,) * 6)
        np.testing.assert_allclose(
            reflectance(other)[inside], reflectance(one)[inside] / 1e4, atol=1e-9
        )


def test_a_product_after_baseline_04(
    run: Run, model: keras.Model, model_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    cubes = synthetic.build_cubes(120)
    product = synthetic_product.write_product(tmp_path, cubes, baseline="04.00", offset=-1000)
    output = tmp_path / "out.tif"
    code, out, err = run(model_file, product, "-o", output)
    assert code == 0, err
    assert "THE INPUT IS SYNTHETIC" in err
    assert "120 x 120 px" in out
    expected = sharpen_dn(model, granule_of({k: cubes[k] for k in ("gsd10", "gsd20")}))
    with rasterio.open(output) as file:
        assert file.offsets == pytest.approx((-0.1,) * 6)
        assert file.tags()["SOURCE"].startswith("S2A_MSIL1C_")
        assert file.crs.to_epsg() == 32632
        assert np.abs(reflectance(file) * 1e4 - expected).max() <= 1.01


@pytest.mark.parametrize("offline", [False, True])
def test_made_up_pixels_are_said_so(
    offline: bool,
    run: Run,
    model_file: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sample, "SYNTHETIC", {sample.TASK: (120, {})})
    monkeypatch.setenv("KERASS2_CACHE", str(tmp_path))
    monkeypatch.setenv(sample.UNAVAILABLE, "no network" if offline else "")
    source = "sample" if offline else synthetic.write_granule(tmp_path / "in", 120)
    output = tmp_path / "out.tif"
    code, _, err = run(model_file, source, "-o", output)
    assert code == 0, err
    assert "THE INPUT IS SYNTHETIC" in err
    assert ("THE SAMPLE IS NOT AVAILABLE (NO NETWORK): USING A SYNTHETIC" in err) == offline
    with rasterio.open(output) as file:
        assert file.tags()["SYNTHETIC"] == "YES"


def test_workdir_instead_of_a_model_and_overwrite(
    run: Run, model_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    source = folder_of(tmp_path / "in", pixels(32, 32))
    output = tmp_path / "out.tif"
    output.write_bytes(b"old")
    code, _, err = run(model_file.parent, source, "-o", output, "--overwrite")
    assert code == 0, err
    with rasterio.open(output) as file:
        assert file.shape == (32, 32)


def test_without_georeference_a_warning(
    run: Run, model_file: pathlib.Path, model: keras.Model, tmp_path: pathlib.Path
) -> None:
    cubes = {**pixels(24, 36), "gsd60": np.full((2, 4, 6), 900, np.uint16)}
    arrays = {f"im{gsd}": cubes[f"gsd{gsd}"] for gsd in (10, 20, 60)}
    names = {f"bands{gsd}": np.array(sentinel2.bands_at(gsd)) for gsd in (10, 20, 60)}
    np.savez(tmp_path / "scene.npz", **arrays, **names)
    output = tmp_path / "out.tif"
    code, _, err = run(model_file, tmp_path / "scene.npz", "-o", output)
    assert code == 0, err
    assert "warning:" in err
    assert "no CRS" in err
    expected = sharpen_dn(model, next(open_granules(tmp_path / "scene.npz")))
    with (
        warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning),
        rasterio.open(output) as file,
    ):
        assert file.crs is None
        assert file.transform.is_identity
        assert np.abs(file.read().astype(int) - expected).max() <= 1


@pytest.mark.parametrize("case", ["no model", "no input", "no band set", "no tif", "damaged model"])
def test_bad_input_is_one_line_and_exit_1(
    case: str, run: Run, model_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    network, source, output = model_file, tmp_path / "in", tmp_path / "out.tif"
    if case == "no model":
        network, expected = tmp_path / "nowhere", "nowhere: not found; expected a .keras file"
        folder_of(source, pixels(12, 12))
    elif case == "no input":
        expected = f"{source}: not found"
    elif case == "no tif":
        output, expected = tmp_path / "scene.npz", "expected a name that ends in .tif or .zarr"
    elif case == "damaged model":
        network = tmp_path / "broken.keras"
        network.write_bytes(model_file.read_bytes()[:1000])
        folder_of(source, pixels(12, 12))
        expected = "broken.keras: not a readable Keras model"
    else:
        network = tmp_path / "60m.keras"
        models.build("dsen2", filters=8, blocks=1, task="superres_60m").save(network)
        folder_of(source, pixels(12, 12))
        expected = "gsd20 B05,B06,B07,B8A,B11,B12; model dsen2 takes gsd10 B02,B03,B04,B08; gsd20"
    code, _, err = run(network, source, "-o", output)
    assert code == 1
    assert err.startswith("error: ")
    assert expected in err
    assert err.count("\n") == 1
    assert not output.exists()


def test_several_granules_are_refused(
    run: Run, model_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    cubes = {**pixels(24, 36), "gsd60": np.full((2, 4, 6), 900, np.uint16)}
    arrays = {f"im{gsd}": cubes[f"gsd{gsd}"] for gsd in (10, 20, 60)}
    names = {f"bands{gsd}": np.array(sentinel2.bands_at(gsd)) for gsd in (10, 20, 60)}
    for name in "ab":
        np.savez(tmp_path / f"{name}.npz", **arrays, **names)
    code, _, err = run(model_file, tmp_path, "-o", tmp_path / "out.tif")
    assert (code, err) == (1, f"error: {tmp_path}: several granules: a, b; expected one\n")


def test_failure_half_way_leaves_no_file(tmp_path: pathlib.Path) -> None:
    model = models.build("dsen2", filters=8, blocks=1)
    model.get_layer("conv_last").bias.assign(np.full(6, np.nan, np.float32))
    with pytest.raises(DataError, match="NaN or Inf in rows 0 to"):
        write(model, granule_of(pixels(32, 32)), tmp_path / "out.tif")
    assert not list(tmp_path.iterdir())


def test_help_is_fast() -> None:
    begin = time.monotonic()
    done = run_alone("--help")
    assert done.returncode == 0
    assert "[MODEL_OR_WORKDIR] INPUT..." in done.stdout
    assert tuple(raster_formats.FORMATS) == predict.FORMATS
    assert predict.PROCEDURES == networks.PROCEDURES
    assert tuple(precision.POLICIES) == predict.PRECISIONS
    assert time.monotonic() - begin < 2  # 0.5 s on an idle machine; the tests share theirs
    modules = "tensorflow", "keras", "rasterio", "xarray", "dask"
    code = f"import sys, kerass2.predict; print([m for m in {modules} if m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[]"


def test_dsen2s_weights_as_the_model(run: Run, tmp_path: pathlib.Path) -> None:
    """An .npz as published."""
    rng = np.random.default_rng(2)
    sizes = [10, 8, 8, 8, 6]
    arrays = {}
    for number, (before, after) in enumerate(itertools.pairwise(sizes)):
        arrays[f"conv{number:02d}_kernel_OIHW"] = rng.normal(0, 0.05, (after, before, 3, 3))
        arrays[f"conv{number:02d}_bias"] = rng.normal(0, 0.05, after)
    np.savez(tmp_path / "tiny_L1C20M.npz", **arrays)
    source, output = folder_of(tmp_path / "S2A_MSIL2A_x", pixels(32, 32)), tmp_path / "out.tif"
    code, _, err = run(tmp_path / "tiny_L1C20M.npz", source, "-o", output)
    assert code == 0, err
    assert "(tiny_L1C20M.npz) was trained on L1C (top-of-atmosphere" in err
    same = models.build("dsen2", filters=8, blocks=1)
    weights.load_dsen2(same, tmp_path / "tiny_L1C20M.npz")
    with rasterio.open(output) as file:
        found = file.read().astype(int)
    assert np.abs(found - sharpen_dn(same, granule_of(pixels(32, 32)))).max() <= 1


def test_a_crs_that_gdal_does_not_know(model: keras.Model, tmp_path: pathlib.Path) -> None:
    granule = granule_of(pixels(32, 32), crs="EPSG:0", transform=(10, 0, 0, 0, -10, 0))
    with pytest.raises(DataError, match="CRS 'EPSG:0': not known to GDAL"):
        write(model, granule, tmp_path / "out.tif")
    assert not list(tmp_path.iterdir())


@pytest.mark.shared_data
def test_real_bigearthnet_patch(
    run: Run, shared_data: pathlib.Path, model_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder = shared_data / "bigearthnet" / "v1_BigEarthNet-S2-Example"
    b02 = next(iter(sorted(folder.rglob("*_B02.tif"))))
    output = tmp_path / "out.tif"
    code, _, err = run(model_file, b02.parent, "-o", output)
    assert code == 0, err
    with rasterio.open(output) as file, rasterio.open(b02) as original:
        assert file.crs == original.crs
        assert file.transform == original.transform
        assert file.shape == original.shape == (120, 120)


@pytest.mark.shared_data
def test_real_scene_keeps_the_mean(shared_data: pathlib.Path, model: keras.Model) -> None:
    granule = open_granule(shared_data / "sr_scenes" / "L2A_hydro_patch_0.npz")
    found = sharpen_dn(model, granule)
    lowres = granule.cubes["gsd20"].values
    assert found.shape == (6, 252, 252)
    # Near to bilinear interpolation: bands must still be themselves.
    difference = found.mean((1, 2)) - lowres.mean((1, 2))
    assert np.abs(difference).max() < 0.3 * lowres.mean()
