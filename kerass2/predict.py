"""`python -m kerass2.predict MODEL_OR_WORKDIR INPUT -o OUT.tif`: sharpen one granule to 10 m."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from data_pipelines.spec import DataError
from kerass2 import cli

if TYPE_CHECKING:
    import keras
    import xarray

    from data_pipelines.granule import Granule

Advance = Callable[[int], None]


def predict_granule(
    model: keras.Model, granule: Granule, *, window: int | None = None, batch_size: int = 8
) -> xarray.DataArray:
    """Sharpen a granule in memory.

    Args:
        model: a super-resolution model of kerass2.models, which takes and gives reflectance [1].
        granule: see data_pipelines.granule.open_granule.
        window: edge of a window [px], see tiling.build_lattice. With attention the result depends
            on it.
        batch_size: windows predicted at once.

    Returns:
        (band, y, x) uint16 DN at 10 m: 0 where the band to sharpen has no data, 65535 where it is
        saturated, else 1 to 65534;
        coordinate `band`, attributes as a granule's cubes have them, with the offset and
        quantification of the bands that were sharpened.

    Raises:
        DataError: the granule lacks what the model takes, or the model gives NaN.
    """
    from data_pipelines.granule import build_cube
    from kerass2 import models

    strips = predict_rows(model, granule, window=window, batch_size=batch_size)
    bands = models.describe(model)["target_bands"]
    attributes = _lowres(model, granule).attrs
    meaning = {key: attributes[key] for key in ("offset", "quantification") if key in attributes}
    return build_cube(
        np.concatenate(list(strips), axis=1), bands, 10, **georeference(granule), **meaning
    )


def predict_rows(
    model: keras.Model,
    granule: Granule,
    *,
    window: int | None = None,
    batch_size: int = 8,
    advance: Advance | None = None,
) -> Iterator[NDArray[Any]]:
    """Like predict_granule, from top to bottom in strips (band, rows, x) of uint16 DN.

    Memory holds a few rows of windows, whatever the size of the granule. `advance` is told of
    windows done; num_windows says how many there are.
    """
    from data_pipelines.granule import harmonise
    from kerass2 import inputs, models, tiling

    check_granule(model, granule)
    described = models.describe(model)
    meaning = dn_meaning(_lowres(model, granule))
    for strip in tiling.predict_strips(
        tiling.compile_prediction(model),
        {name: harmonise(granule.cubes[name]) for name in described["inputs"]},
        tiling.build_lattice(model, ratios_of(model), window),
        target=described["target"],
        num_bands=len(described["target_bands"]),
        batch_size=batch_size,
        missing=inputs.lowres_input(described),
        advance=advance,
    ):
        yield _to_dn(strip, **meaning).transpose(2, 0, 1)


def _to_dn(
    reflectance: NDArray[Any], *, offset: NDArray[Any], quantification: NDArray[Any]
) -> NDArray[np.uint16]:
    """DN (rows, x, band) of reflectance; NaN becomes 0, no data, +Inf 65535, saturated.

    Nothing else becomes either: what DN cannot say is clipped, so that nothing wraps around.
    """
    from data_pipelines import sentinel2

    dn = np.rint(reflectance.astype(np.float64) * quantification - offset)
    dn = np.clip(dn, sentinel2.NO_DATA + 1, sentinel2.SATURATED - 1)
    dn[np.isposinf(reflectance)] = sentinel2.SATURATED
    return np.where(np.isnan(dn), sentinel2.NO_DATA, dn).astype(np.uint16)


def _lowres(model: keras.Model, granule: Granule) -> xarray.DataArray:
    """The cube with the bands to sharpen."""
    from kerass2 import inputs, models

    return granule.cubes[inputs.lowres_input(models.describe(model))]


def dn_meaning(cube: xarray.DataArray) -> dict[str, NDArray[np.float64]]:
    """What the DN of a cube mean: reflectance = (dn + offset) / quantification.

    Returns:
        {"offset": (band,) [DN], "quantification": (band,)}; 0 and 10000 where the cube says
        nothing.
    """
    from data_pipelines import sentinel2

    default = {"offset": 0, "quantification": sentinel2.QUANTIFICATION}
    number = len(cube.band)
    return {
        key: np.array(cube.attrs.get(key, (value,) * number), np.float64)
        for key, value in default.items()
    }


def ratios_of(model: keras.Model) -> dict[str, int]:
    """Pixel size of each of the model's inputs over 10 m."""
    from kerass2 import models

    return {name: round(gsd / 10) for name, gsd in models.describe(model)["gsd"].items()}


def num_windows(model: keras.Model, granule: Granule, window: int | None = None) -> int:
    """Windows that predict_rows will report."""
    from kerass2 import tiling

    return tiling.build_lattice(model, ratios_of(model), window).num_windows(*granule.shape)


def check_granule(model: keras.Model, granule: Granule) -> None:
    """Refuse a granule without the cubes and bands, in the order, that the model takes.

    Raises:
        DataError: what the model takes and what the granule has.
    """
    from kerass2 import models, tiling

    wanted = models.describe(model)["inputs"]
    found = {name: tuple(map(str, cube.band.values)) for name, cube in granule.cubes.items()}
    if any(found.get(name) != tuple(bands) for name, bands in wanted.items()):
        takes, has = (
            "; ".join(f"{name} {','.join(bands)}" for name, bands in table.items())
            for table in (wanted, found)
        )
        raise DataError(f"{granule.name}: has {has}; model {model.name} takes {takes}")
    tiling.granule_shape(granule.cubes, ratios_of(model))


def georeference(granule: Granule) -> dict[str, Any]:
    """CRS and transform of the 10 m grid: {"crs": text or None, "transform": six numbers or None}.

    The first cube that has them tells; a coarser grid begins at the same corner.
    """
    from data_pipelines.sentinel2 import GSDS

    for name, cube in granule.cubes.items():
        if cube.attrs.get("transform") is not None:
            a, b, c, d, e, f = cube.attrs["transform"]
            ratio = GSDS[name] / 10
            transform = (a / ratio, b / ratio, c, d / ratio, e / ratio, f)
            return {"crs": cube.attrs.get("crs"), "transform": transform}
    return {"crs": None, "transform": None}


def write_prediction(
    model: keras.Model,
    granule: Granule,
    output: pathlib.Path,
    *,
    window: int | None = None,
    batch_size: int = 8,
    overwrite: bool = False,
    advance: Advance | None = None,
) -> None:
    """Sharpen a granule into a GeoTIFF of uint16 DN, streamed.

    DN mean what they mean in the granule; where that is not reflectance x 10000, each band bears
    GDAL's scale and offset, with which readers get reflectance. The file has band descriptions,
    no-data 0, and CRS and transform of the granule where it has them; made of made-up pixels it is
    tagged as such. It appears complete or not at all.

    Raises:
        DataError: see predict_granule and raster.write_geotiff.
    """
    from affine import Affine

    from data_pipelines import geotiff, raster, sentinel2
    from kerass2 import models

    height, width = granule.shape
    described, place = models.describe(model), georeference(granule)
    meaning = dn_meaning(_lowres(model, granule))
    plain = (
        not meaning["offset"].any()
        and (meaning["quantification"] == sentinel2.QUANTIFICATION).all()
    )
    scales = 1 / meaning["quantification"]
    raster.write_geotiff(
        output,
        predict_rows(model, granule, window=window, batch_size=batch_size, advance=advance),
        height=height,
        width=width,
        bands=described["target_bands"],
        crs=place["crs"],
        transform=None if place["transform"] is None else Affine(*place["transform"]),
        tags={
            "SOURCE": granule.scene,
            "MODEL": described["model"],
            "UNIT": "reflectance x 10000, no offset"
            if plain
            else "DN of the source: reflectance = DN x scale + offset of the band",
            **(geotiff.SYNTHETIC_TAGS if granule.synthetic else {}),
        },
        scales=None if plain else scales.tolist(),
        offsets=None if plain else (meaning["offset"] * scales).tolist(),
        overwrite=overwrite,
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", metavar="MODEL_OR_WORKDIR", type=click.Path(path_type=pathlib.Path))
@click.argument("source", metavar="INPUT", type=click.Path(path_type=pathlib.Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=pathlib.Path), help="GeoTIFF."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@click.option(
    "--window",
    type=click.IntRange(min=1),
    help="Edge of a window with its halo [px]; default: 64 with attention, else 128.",
)
@click.option(
    "--batch", default=8, show_default=True, type=click.IntRange(min=1), help="Windows at once."
)
def main(
    model: pathlib.Path,
    source: pathlib.Path,
    output: pathlib.Path,
    overwrite: bool,
    window: int | None,
    batch: int,
) -> None:
    """Sharpen INPUT to 10 m.

    INPUT is a Sentinel-2 product (.SAFE, .zip, MTD_*.xml), a STAC item, a folder of one GeoTIFF or
    JPEG 2000 a band or of gsd10.tif, gsd20.tif, gsd60.tif, a BigEarthNet patch or a .npz scene; the
    output has the DN of the input, offset and all. The words sample and synthetic mean the real
    sample's area and a made-up granule.
    """
    import rich.console
    import rich.progress

    from data_pipelines import raster, sample
    from data_pipelines.granule import open_granule
    from kerass2 import inputs

    if output.suffix.lower() not in (".tif", ".tiff"):
        raise DataError(f"{output}: expected a name that ends in .tif")
    raster.check_output(output, overwrite=overwrite)
    source, message = sample.resolve_granule(source)
    if message:
        click.echo(message, err=True)
    granule = open_granule(source)
    network = inputs.load_model(model)
    check_granule(network, granule)
    if granule.synthetic:
        click.echo("THE INPUT IS SYNTHETIC (MADE UP, NOT MEASURED), SO IS THE OUTPUT", err=True)
    if georeference(granule)["crs"] is None:
        click.echo(f"warning: {source} has no CRS, so {output} will have none", err=True)
    console = rich.console.Console(stderr=True)
    columns: Any = (
        *rich.progress.Progress.get_default_columns(),
        "{task.completed}/{task.total} windows",
    )
    with rich.progress.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("predict", total=num_windows(network, granule, window))
        write_prediction(
            network,
            granule,
            output,
            window=window,
            batch_size=batch,
            overwrite=overwrite,
            advance=lambda done: bar.advance(task, done),
        )
    height, width = granule.shape
    click.echo(f"wrote {output}: {height} x {width} px of 10 m, {granule.name}")


if __name__ == "__main__":
    cli.run(main)
