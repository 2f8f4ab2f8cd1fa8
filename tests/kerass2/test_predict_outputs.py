"""The real command: formats, parts of a tile, both models, ranks, resuming, STAC, many inputs."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pystac
import pytest
import rasterio
import rasterio.shutil
import rasterio.warp
import rioxarray  # noqa: F401 - the accessor .rio
import xarray
from matplotlib.axes import Axes
from pystac.validation import JsonSchemaSTACValidator

from data_pipelines import geotiff, raw_raster, sentinel2, stac, synthetic, synthetic_product
from data_pipelines.spec import DataError
from kerass2 import cli, models, outputs, predict, resampling, sharpen, tiling

SIZE = 360
CORNER = synthetic.CORNER
ALL = tuple(band for band in sentinel2.BANDS if band != "B10")

Run = Callable[..., tuple[int, str, str]]


def save(path: pathlib.Path, name: str, **options: object) -> pathlib.Path:
    """A small model, untrained, near to bilinear interpolation, every layer taking part."""
    keras.utils.set_random_seed(1)
    model = models.build(name, filters=8, blocks=2, **options)
    last = model.get_layer("conv_last")
    last.kernel.assign(last.kernel * 0.05)
    if options.get("block"):
        model.get_layer("attention").gamma.assign(0.5)
    model.save(path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """Models, and a product of JP2s after baseline 04.00 with a swath without data."""
    folder = tmp_path_factory.mktemp("files")
    cubes = {name: cube.copy() for name, cube in synthetic.build_cubes(SIZE, seed=4).items()}
    for name, cube in cubes.items():
        gap = 72 // (sentinel2.GSDS[name] // 10)
        cube[:, :, :gap] = 0  # outside the swath in all bands
    cubes["gsd20"][2, 90:95, 100:110] = sentinel2.SATURATED
    cubes["gsd20"][3, 120:130, 100:110] = 1  # below the offset once it is taken out
    product = synthetic_product.write_product(
        folder, cubes, level="L2A", baseline="04.00", offset=-1000
    )
    return {
        "m20": save(folder / "m20.keras", "dsen2"),
        "m60": save(folder / "m60.keras", "dsen2", task="superres_60m"),
        "s2x": save(folder / "s2x.keras", "s2x", block=32),
        "product": product,
    }


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


def read(path: pathlib.Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read().astype(int)


@pytest.fixture(scope="module")
def whole(files: dict[str, pathlib.Path], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """S2x on the whole product, in one window."""
    output = tmp_path_factory.mktemp("whole") / "out.tif"
    done = alone(files["s2x"], files["product"], "-o", output)
    assert done.returncode == 0, done.stderr
    return output


def alone(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kerass2.predict", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", **environment},
    )


def test_twelve_bands_in_one_cog(
    run: Run, files: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    output = tmp_path / "out.tif"
    code, out, err = run(
        files["m20"], files["product"], "-o", output, "--model-60m", files["m60"], "--bands", "all"
    )
    assert code == 0, err
    assert "12 bands" in out
    with rasterio.open(output) as file:
        assert file.descriptions == ALL
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.profile["compress"] == "deflate"
        assert (file.nodata, set(file.dtypes)) == (0, {"uint16"})
        assert file.scales == (1e-4,) * 12
        assert file.offsets == pytest.approx((-0.1,) * 12)
        found = file.read()
    with rasterio.open(next(files["product"].rglob("*_B04_10m.jp2"))) as file:
        np.testing.assert_array_equal(found[ALL.index("B04")], file.read(1))
    assert not found[:, :, :72].any()
    assert (found[:, :, 72:] > 0).all()
    b07 = found[ALL.index("B07")]
    saturated = np.zeros(b07.shape, bool)
    saturated[180:190, 200:220] = True
    np.testing.assert_array_equal(b07 == sentinel2.SATURATED, saturated)
    dark = found[ALL.index("B8A"), 244:256, 204:216]
    assert dark.max() < 10_000, "reflectance below 0 must not wrap around"


def test_a_large_cog_has_overviews_of_means(tmp_path: pathlib.Path) -> None:
    from data_pipelines import raster_formats

    about = raw_raster.Description(("B05", "B06"), 1100, 1300, "EPSG:32632", (10, 0, 0, 0, -10, 0))
    raw = raw_raster.RawRaster(tmp_path, about)
    raw.create()
    pixels = np.random.default_rng(0).integers(1, 5000, (2, 1100, 1300), np.uint16)
    pixels[:, :100] = 0
    pixels[0, 100:102, :2] = [[0, 8], [16, 0]]
    for window in outputs.sharpen.tiling.list_regions(outputs.Window(0, 0, 1100, 1300), 300):
        raw.write(window, pixels[(slice(None), *window.slices)])
    raw.close()
    raster_formats.write_as(raw, "COG", tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as file:
        np.testing.assert_array_equal(file.read(), pixels)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.block_shapes == [(512, 512)] * 2
        assert file.overviews(1) == [2, 4]
        half = file.read(1, out_shape=(550, 650))
    assert half[50, 0] == 12, "the mean of what has data"
    assert not half[:50].any()


def test_the_cog_is_valid_by_rio_cogeo(whole: pathlib.Path) -> None:
    from rio_cogeo import cog_validate

    assert cog_validate(whole, strict=True) == (True, [], [])


def test_cog_layout_in_bytes(whole: pathlib.Path) -> None:
    """What validators look at: the directory of the full image comes first, pixels after it."""
    data = whole.read_bytes()
    assert data[:4] == b"II*\0"
    assert b"LAYOUT=IFDS_BEFORE_DATA" in data[:200]
    assert int.from_bytes(data[4:8], "little") < 1000


def test_zarr_as_xarray_users_open_it(
    run: Run, files: dict[str, pathlib.Path], whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    output = tmp_path / "out.zarr"
    code, _, err = run(files["s2x"], files["product"], "-o", output)
    assert code == 0, err
    dn = xarray.open_zarr(output, mask_and_scale=False, decode_coords="all")
    expected = read(whole)
    for band, pixels in zip(sentinel2.BANDS_20M, expected, strict=True):
        assert np.abs(dn[band].values.astype(int) - pixels).max() <= 1
    assert set(dn) == set(sentinel2.BANDS_20M)
    assert dn.rio.crs.to_epsg() == 32632
    assert (dn.x[0], dn.y[0]) == (CORNER[0] + 5, CORNER[1] - 5)
    assert dn.spatial_ref.attrs["GeoTransform"].split() == [
        f"{CORNER[0]}",
        "10.0",
        "0.0",
        f"{CORNER[1]}",
        "0.0",
        "-10.0",
    ]
    reflectance = xarray.open_zarr(output)
    assert np.isnan(reflectance.B05.values[:, :72]).all()
    np.testing.assert_allclose(
        reflectance.B05.values[:, 72:], (expected[0, :, 72:] - 1000) / 1e4, atol=2e-4
    )
    assert not list(tmp_path.glob(".*"))


def test_roi_has_the_values_of_the_whole_tile(
    run: Run, files: dict[str, pathlib.Path], whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    expected = read(whole)
    output = tmp_path / "roi.tif"
    box = 101, 57, 263, 200
    code, _, err = run(
        files["s2x"], files["product"], "-o", output, "--roi", ",".join(map(str, box)),
        "--window", 64,
    )  # fmt: skip
    assert code == 0, err
    with rasterio.open(output) as file:
        assert tuple(file.transform)[:6] == (10, 0, CORNER[0] + 1010, 0, -10, CORNER[1] - 570)
        corners = rasterio.warp.transform_bounds(file.crs, "EPSG:4326", *file.bounds)
    assert np.abs(read(output) - expected[:, 57:200, 101:263]).max() <= 1

    # The same place in longitudes and latitudes: the window around it is a little larger.
    west, south, east, north = corners
    code, _, err = run(
        files["s2x"], files["product"], "-o", tmp_path / "b.tif", "--roi-lonlat",
        f"{west},{south},{east},{north}",
    )  # fmt: skip
    assert code == 0, err
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    geojson = tmp_path / "area.geojson"
    geometry = {"type": "Polygon", "coordinates": [ring]}
    feature = {"type": "Feature", "properties": {}, "geometry": geometry}
    geojson.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    code, _, err = run(
        files["s2x"], files["product"], "-o", tmp_path / "c.tif", "--geojson", geojson
    )
    assert code == 0, err
    for name in ("b.tif", "c.tif"):
        with rasterio.open(tmp_path / name) as file:
            x = round((file.transform.c - CORNER[0]) / 10)
            y = round((CORNER[1] - file.transform.f) / 10)
            height, width = file.shape
            pixels = file.read().astype(int)
        assert x <= 101 <= 263 <= x + width
        assert y <= 57 <= 200 <= y + height
        assert width < 170 and height < 155
        assert np.abs(pixels - expected[:, y : y + height, x : x + width]).max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--roi", "0,0,400,100"), "expected 0 <= X0 < X1 <= 360 and 0 <= Y0 < Y1 <= 360"),
        (("--roi", "10,10,20,300"), "ROI of 290 x 10 px of 10 m; expected at least 13 px"),
        (("--roi-lonlat", "10,40,10.1,40.1"), "the ROI lies outside"),
        (("--roi-lonlat", "10,40,9,41"), "expected LON0 < LON1 within 180"),
        (("--geojson", "nowhere.geojson"), "not readable as GeoJSON"),
        (("--bands", "B05,B99"), "unknown band B99"),
        (
            ("--bands", "B01"),
            "B01: the model gives B05,B06,B07,B8A,B11,B12; that takes a",
        ),
        (("--bands", "B10"), "no model does"),
        (("--format", "Zarr"), "expected a name that ends in .zarr"),
    ],
)
def test_what_cannot_be_made_is_refused(
    options: tuple[str, str],
    message: str,
    run: Run,
    files: dict[str, pathlib.Path],
    tmp_path: pathlib.Path,
) -> None:
    output = tmp_path / "out.tif"
    code, _, err = run(files["m20"], files["product"], "-o", output, *options)
    assert code == 1
    assert message in err
    assert not list(tmp_path.iterdir())


def test_models_for_another_task_are_refused(
    run: Run, files: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    output = tmp_path / "out.tif"
    code, _, err = run(files["m20"], files["product"], "-o", output, "--model-60m", files["m20"])
    assert code == 1
    assert "a model for superres_20m; --model-60m has to be one for superres_60m" in err
    code, _, err = run(files["m60"], files["product"], "-o", output, "--model-60m", files["m60"])
    assert "a model for superres_60m; MODEL has to be one for superres_20m" in err


def test_a_model_of_the_other_level_is_warned_of(
    run: Run, files: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    model = tmp_path / "model.keras"
    model.write_bytes(files["m20"].read_bytes())
    (tmp_path / "data.json").write_text(json.dumps({"data": "S2A_MSIL1C_20170527T33UUB.SAFE"}))
    arguments = (model, files["product"], "--roi", "100,100,150,150")
    code, _, err = run(*arguments, "-o", tmp_path / "out.tif")
    assert code == 0
    assert err.count("warning: ") == 1
    assert "(model.keras) was trained on L1C (top-of-atmosphere reflectance)" in err
    assert f"{files['product']} is L2A (surface reflectance)" in err
    assert "worse than that of a model trained on L2A" in err
    (tmp_path / "data.json").write_text(json.dumps({"levels": ["L2A"]}))
    code, _, err = run(*arguments, "-o", tmp_path / "out2.tif")
    assert "trained on" not in err


def shows(image: np.ndarray, dn: np.ndarray) -> bool:
    """Whether each channel gets lighter with its band, white where there are no data."""
    seen = image.reshape(-1, 3)[(dn > 0).all(axis=0).ravel()]
    given = dn.reshape(3, -1)[:, (dn > 0).all(axis=0).ravel()]
    rises = all(
        (np.diff(light[np.argsort(band)].astype(int)) >= 0).all() and np.ptp(light) > 100
        for light, band in zip(seen.T, given, strict=True)
    )
    return rises and bool((image[(dn == 0).all(axis=0)] == 255).all())


def test_stac_item_and_preview(
    run: Run,
    files: dict[str, pathlib.Path],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn, titles = [], []
    monkeypatch.setattr(Axes, "imshow", lambda _, image, **__: drawn.append(image))
    monkeypatch.setattr(Axes, "set_title", lambda _, text, **__: titles.append(text))
    output = tmp_path / "out.tif"
    options = ("--bands", "all", "--stac", "--preview")
    code, _, err = run(files["m20"], files["product"], "-o", output, *options)
    assert code == 0, err
    item = pystac.Item.from_file(str(tmp_path / "out.json"))
    written = item.to_dict()
    # By STAC's own schema, which pystac brings.
    JsonSchemaSTACValidator().validate_core(
        written, pystac.STACObjectType.ITEM, written["stac_version"]
    )
    assert item.datetime.isoformat() == "2018-06-29T10:20:41.024000+00:00"
    assert item.properties["proj:code"] == "EPSG:32632"
    assert item.properties["proj:shape"] == [SIZE, SIZE]
    assert item.properties["grid:code"] == "MGRS-32UMC"
    assert item.properties["platform"] == "sentinel-2a"
    bands = item.assets["data"].extra_fields["bands"]
    assert [band["name"] for band in bands] == [b for b in ALL if b not in ("B01", "B09")]
    assert {(b["raster:scale"], b["raster:offset"], b["nodata"]) for b in bands} == {
        (1e-4, -0.1, 0)
    }
    with rasterio.open(output) as file:
        west, south, east, north = rasterio.warp.transform_bounds(
            file.crs, "EPSG:4326", *file.bounds
        )
    assert item.bbox == pytest.approx([west, south, east, north], abs=1e-4)
    assert item.assets["data"].href == "./out.tif"
    assert stac.is_item(tmp_path / "out.json")
    picture = (tmp_path / "out.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    false, made = "B12 B8A B05", read(output)
    assert titles == [
        "true colour\nB04 B03 B02", f"false colour\n{false}",
        f"as measured\n{false}", f"at 10 m\n{false}",
    ]  # fmt: skip
    true, wrong, before, after = drawn
    numbers = {band["name"]: number for number, band in enumerate(bands)}
    assert shows(true, made[[numbers[band] for band in ("B04", "B03", "B02")]])
    made = made[[numbers[band] for band in false.split()]]
    assert shows(wrong, made)
    middle = (slice(None), slice(84, 276), slice(84, 276))
    measured = []
    for band in false.split():
        with rasterio.open(next(files["product"].rglob(f"*_{band}_20m.jp2"))) as file:
            measured.append(file.read(1).repeat(2, axis=0).repeat(2, axis=1))
    # One stretch for both: what is as bright looks as bright.
    both = np.concatenate([np.array(measured)[middle], made[middle]], axis=1)
    assert shows(np.concatenate([before, after]), both)
    monkeypatch.undo()
    code, _, err = run(files["m20"], files["product"], "-o", output, *options)
    assert (code, err.count("exists; give --overwrite")) == (1, 1)


def test_what_stood_beside_a_replaced_output_goes_with_it(
    run: Run, files: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    """An item and a picture of the old pixels would be taken for those of the new ones."""
    output, item, picture = (tmp_path / f"out.{suffix}" for suffix in ("tif", "json", "png"))
    command = ("--bicubic", files["product"], "-o", output, "--roi", "100,100,150,150")
    assert run(*command, "--stac", "--preview")[0] == 0
    assert item.exists() and picture.exists()
    old = item.read_bytes(), picture.read_bytes()
    assert run(*command[:-1], "100,100,160,150", "--overwrite", "--stac", "--preview")[0] == 0
    assert item.read_bytes() != old[0] and picture.read_bytes() != old[1]
    assert run(*command, "--overwrite")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.tif"]
    # Files of another that only have the name stay.
    item.write_text('{"type": "Feature", "assets": {"data": {"href": "./out.tif"}}}')
    picture.write_bytes(b"a drawing")
    assert run(*command, "--overwrite")[0] == 0
    assert len(list(tmp_path.iterdir())) == 3
    zarr = (*command[:3], tmp_path / "out.zarr", *command[4:])
    assert run(*zarr, "--preview", "--overwrite")[0] == 0
    assert run(*command, "--overwrite")[0] == 0
    assert picture.read_bytes().startswith(b"\x89PNG"), "the other output's"


def test_bicubic_equals_interpolation_of_the_dn(
    run: Run, files: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    output = tmp_path / "out.tif"
    chosen = ("--bands", "B05,B01", "--format", "GTiff")
    code, _, err = run("--bicubic", files["product"], "-o", output, *chosen)
    assert code == 0, err
    with rasterio.open(output) as file:
        assert file.descriptions == ("B01", "B05")
        assert "LAYOUT" not in file.tags(ns="IMAGE_STRUCTURE"), "no COG"
        found = file.read(2).astype(float)
    with rasterio.open(next(files["product"].rglob("*_B05_20m.jp2"))) as file:
        dn = file.read(1).astype(np.float32)[None, :, :, None]
    expected = np.asarray(resampling.bicubic(dn, 2))[0, :, :, 0]
    inside = np.s_[8:-8, 80:-8]
    assert np.abs(found - np.rint(expected))[inside].max() <= 1


def test_several_inputs_into_a_folder(
    run: Run, files: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    broken = tmp_path / "S2A_MSIL2A_broken.SAFE"
    broken.mkdir()
    (broken / "MTD_MSIL2A.xml").write_text("<nothing/>")
    folder = tmp_path / "out"
    code, out, err = run(
        files["m20"], broken, files["product"], "-o", folder, "--roi", "100,100,160,150"
    )
    assert code == 1
    assert [p.name for p in folder.iterdir()] == [f"{files['product'].stem}.tif"]
    assert out.count("wrote ") == 1
    assert err.rstrip().splitlines()[-1].startswith("error: ")
    assert "S2A_MSIL2A_broken.SAFE" in err.rstrip().splitlines()[-1]
    code, _, err = run(files["m20"], files["product"], broken, "-o", tmp_path / "o.tif")
    assert "2 inputs; expected the name of a folder" in err


def test_several_inputs_resume_at_the_one_that_is_missing(
    run: Run, files: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    product = files["product"]
    other = tmp_path / f"other{product.suffix}"
    other.symlink_to(product)
    command = ("--bicubic", product, other, "-o", tmp_path / "out")
    code, _, err = run(*command)
    assert code == 0, err
    first, second = (tmp_path / "out" / f"{path.stem}.tif" for path in (product, other))
    second.unlink()
    before = first.stat().st_mtime_ns
    code, out, err = run(*command, "--resume")
    assert code == 0, err
    assert f"{first}: already there" in err
    assert str(second) in out
    assert second.exists()
    assert first.stat().st_mtime_ns == before


def test_an_input_is_never_replaced(run: Run, tmp_path: pathlib.Path) -> None:
    """The item beside the output would have the name of the STAC item that is the input."""
    item = tmp_path / "scene.json"
    item.write_text("{}")
    code, _, err = run("--bicubic", item, "-o", tmp_path / "scene.tif", "--stac", "--overwrite")
    assert code != 0
    assert "scene.json: is an input" in err
    assert item.read_text() == "{}"


def test_a_stac_item_without_a_crs_is_refused_before_any_work(
    run: Run, tmp_path: pathlib.Path
) -> None:
    pixels = synthetic.build_cubes(SIZE, seed=4)
    geotiff.write_folder(tmp_path / "granule", pixels, crs=None, corner=CORNER, synthetic=True)
    code, _, err = run("--bicubic", tmp_path / "granule", "-o", tmp_path / "out.tif", "--stac")
    assert code != 0
    assert "has no CRS, which a STAC item needs" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["granule"]


def test_an_interrupted_run_resumes_at_its_windows(
    run: Run,
    files: dict[str, pathlib.Path],
    whole: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "out.tif"
    arguments = files["s2x"], files["product"], "-o", output, "--window", 96
    made: list[object] = []
    real = sharpen.finish_region

    def fails(plan: Any, cubes: Any, work: Any) -> Any:
        if len(made) == 5:
            raise DataError("the disk was pulled out")
        made.append(work.region)
        return real(plan, cubes, work)

    monkeypatch.setattr(sharpen, "finish_region", fails)
    code, _, err = run(*arguments)
    assert code == 1
    assert "the disk was pulled out" in err
    assert f"kept: {tmp_path / '.out.tif.partial'}" in err
    assert not output.exists()

    done, made[:] = list(made), []
    monkeypatch.setattr(
        sharpen, "finish_region", lambda *given: (made.append(given[2].region), real(*given))[1]
    )
    code, _, err = run(*arguments[:-1], 64, "--resume")
    assert code == 1
    assert "core 96, now 64; resume with the same ones" in err
    code, _, err = run(*arguments, "--resume")
    assert code == 0, err
    assert len(made) == 16 - len(done)
    assert not set(made) & set(done)
    assert np.abs(read(output) - read(whole)).max() <= 1
    assert [p.name for p in tmp_path.iterdir()] == ["out.tif"]


def test_a_killed_run_resumes(
    files: dict[str, pathlib.Path], whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    output = tmp_path / "out.tif"
    arguments = [files["s2x"], files["product"], "-o", output, "--window", 32]
    command = [sys.executable, "-m", "kerass2.predict", *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    journal = tmp_path / ".out.tif.partial" / "parts"
    limit = time.monotonic() + 120
    while len(list(journal.glob("0*.json"))) < 20 and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    done = alone(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    assert np.abs(read(output) - read(whole)).max() <= 1


@pytest.mark.parametrize("strategy", ["horovod", "multiworker"])
def test_two_ranks_give_the_same(
    strategy: str,
    files: dict[str, pathlib.Path],
    whole: pathlib.Path,
    tmp_path: pathlib.Path,
    request: pytest.FixtureRequest,
) -> None:
    if strategy == "horovod":
        pytest.importorskip("horovod")
    output = tmp_path / "out.tif"
    done = alone(
        files["s2x"], files["product"], "-o", output, "--window", 96,
        "--strategy", strategy, "--workers", 2, CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == 1
    assert np.abs(read(output) - read(whole)).max() <= 1
    assert [p.name for p in tmp_path.iterdir()] == ["out.tif"]


def test_reading_computing_and_writing_overlap(
    run: Run,
    files: dict[str, pathlib.Path],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each stage waits until the one before it has begun with what comes next."""
    stages = ("read", "_prepare", "_compute", "finish_region", "write")
    begun: dict[str, set[Any]] = {name: set() for name in stages}
    changed, in_vain = threading.Condition(), []

    def watch(owner: Any, name: str, awaited: str, what: Callable[..., Any]) -> None:
        real = getattr(owner, name)

        def stage(*given: Any) -> Any:
            with changed:
                begun[name].add(what(*given))
                changed.notify_all()
                if (
                    awaited
                    and not in_vain
                    and not changed.wait_for(lambda: len(begun[awaited]) > 1, timeout=20)
                ):
                    in_vain.append(name)
            return real(*given)

        monkeypatch.setattr(owner, name, stage)

    watch(tiling.Rows, "read", "", lambda _, start, stop, right: (start, right))
    watch(sharpen, "_prepare", "read", lambda plan, cubes, strips, region: region)
    watch(sharpen, "_compute", "_prepare", lambda plan, work: work.region)
    watch(sharpen, "finish_region", "_compute", lambda plan, cubes, work: work.region)
    watch(raw_raster.RawRaster, "write", "finish_region", lambda _, place, pixels: place)
    chosen = ("--bands", "B05", "--window", 90)
    code, _, err = run("--bicubic", files["product"], "-o", tmp_path / "out.tif", *chosen)
    assert code == 0, err
    assert not in_vain
    assert len(begun["write"]) == 16


def test_shares_are_neighbours_and_complete() -> None:
    numbers = [3, 4, 7, 8, 9, 20, 21]
    shares = [list(outputs.share(numbers, rank, 3)) for rank in range(3)]
    assert [*shares[0], *shares[1], *shares[2]] == numbers
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_full_disk_is_one_line_before_any_work(
    run: Run,
    files: dict[str, pathlib.Path],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)
    code, _, err = run(files["m20"], files["product"], "-o", tmp_path / "out.tif")
    assert code == 1
    assert "cannot be written: No space left on device (2 MB are needed" in err
    assert not list(tmp_path.iterdir())


def test_a_disk_that_runs_full_later_loses_nothing(
    run: Run,
    files: dict[str, pathlib.Path],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Among the windows, then at the output: one line, the old output stays, resume goes on."""
    output = tmp_path / "out.tif"
    command = ("--bicubic", files["product"], "-o", output, "--window", 90, "--overwrite")
    output.write_bytes(b"old")
    real, written = os.pwrite, []

    def fills_up(*given: object) -> int:
        written.append(given)
        if len(written) > 3000:
            raise OSError(28, os.strerror(28))
        return real(*given)

    monkeypatch.setattr(os, "pwrite", fills_up)
    code, _, err = run(*command)
    assert code == 1
    assert f"error: {tmp_path / '.out.tif.partial'}: cannot be written: No space left" in err
    assert (output.read_bytes(), err.count("kept: ")) == (b"old", 1)
    monkeypatch.setattr(os, "pwrite", real)

    def full(*_: object, **__: object) -> None:
        raise rasterio.errors.RasterioIOError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(rasterio.shutil, "copy", full)
        code, _, err = run(*command, "--resume")
    assert code == 1
    assert "cannot write output.tif: No space left on device" in err
    assert output.read_bytes() == b"old"
    code, _, err = run(*command, "--resume")
    assert code == 0, err
    assert read(output).shape == (6, SIZE, SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["out.tif"]


def test_a_folder_that_cannot_be_written_in(
    run: Run,
    files: dict[str, pathlib.Path],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, _, err = run(files["m20"], files["product"], "-o", tmp_path / "no" / "out.tif")
    assert code == 1
    assert f"no folder {tmp_path / 'no'}" in err
    monkeypatch.setattr(os, "access", lambda _, mode: not mode & os.W_OK)  # root may write
    code, _, err = run(files["m20"], files["product"], "-o", tmp_path / "out.tif")
    assert code == 1
    assert "is not writable" in err


def test_lazy_dataset_computes_only_what_is_asked_for(
    files: dict[str, pathlib.Path], whole: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_pipelines.granule import open_granule

    made: list[object] = []
    real = sharpen.make_region
    monkeypatch.setattr(
        sharpen, "make_region", lambda *given: (made.append(given[3]), real(*given))[1]
    )
    found = predict.predict_granule(
        open_granule(files["product"]), models.load_model(files["s2x"]), core=96
    )
    assert not made
    assert found.B05.data.chunksize == (96, 96)
    assert found.rio.crs.to_epsg() == 32632
    part = found.isel(y=slice(100, 180), x=slice(100, 300)).compute()
    assert len(made) == 3
    expected = read(whole)[:, 100:180, 100:300]
    assert np.abs(part.to_dataarray().values.astype(int) - expected).max() <= 1
