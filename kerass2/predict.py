"""`python -m kerass2.predict [MODEL] INPUT... -o OUT`: sharpen granules to 10 m, or label them."""

from __future__ import annotations

import contextlib
import os
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from data_pipelines.spec import DataError
from kerass2 import cli, messages, ranks

if TYPE_CHECKING:
    import keras
    import xarray

    from data_pipelines.granule import Granule
    from data_pipelines.windows import Window
    from kerass2.outputs import Advance

# Repeated here so that --help imports neither numpy nor rasterio; a test holds them equal.
FORMATS = ("COG", "GTiff", "Zarr")
LABEL_FORMATS = ("CSV", "GeoJSON", "GeoParquet")
PROCEDURES = ("lattice", "dsen2")
PRECISIONS = ("float32", "bfloat16", "float16")


def predict_granule(
    granule: Granule | str | os.PathLike[str],
    model: keras.Model | None = None,
    *,
    model_60m: keras.Model | None = None,
    bands: Sequence[str] | None = None,
    roi: Window | None = None,
    procedure: str = "lattice",
    precision: str | None = None,
    core: int | None = None,
) -> xarray.Dataset:
    """Sharpen a granule, lazily: pixels are computed when they are asked for.

    Args:
        granule: of data_pipelines.granule.open_granule, or what that takes: the path of a product.
        model: a super-resolution model of kerass2.models, which takes and gives reflectance [1];
            None: the package's own, see kerass2.shipped, for the bands that are wanted.
        model_60m: another one, for the 60 m bands.
        bands: names; None: those that the models give, or of the package's own the 20 m bands;
            ("all",): the 10 m bands, too.
        roi: the part to make [px of 10 m]; None: all.
        procedure: see networks.build_network.
        precision: likewise.
        core: edge of a dask block [px of 10 m]; the result does not depend on it, unless the
            model's mean-shift or attention has no blocks.

    Returns:
        One (y, x) variable a band, uint16 DN at 10 m: of sharpened bands 0 where any band that the
        model reads has no data; 65535 where the band itself is saturated, else 1 to 65534;
        reflectance is (DN + offset) / quantification, both attributes. See lazy.build_dataset.

    Raises:
        DataError: the granule lacks what the model takes, or no weights for it come with the
            package; and when pixels are computed, the model gives NaN.
    """
    from data_pipelines.granule import Granule, open_granule
    from kerass2 import lazy, networks, sharpen

    if not isinstance(granule, Granule):
        granule = open_granule(granule)
    models = _own_models(granule, bands, model_60m) if model is None else [model]
    models += [] if model_60m is None else [model_60m]
    used = [
        networks.build_network(each, procedure=procedure, precision=precision) for each in models
    ]
    return lazy.build_dataset(sharpen.build_plan(granule, used, bands=bands, roi=roi, core=core))


def _own_models(
    granule: Granule, bands: Sequence[str] | None, model_60m: keras.Model | None
) -> list[keras.Model]:
    """The package's own for the bands that are wanted, but for what model_60m does."""
    from kerass2 import inputs, methods, shipped

    tasks = shipped.find_tasks(bands) if model_60m is None else ("superres_20m",)
    level = shipped.find_level(granule)
    files = [shipped.find(task, level) for task in tasks]
    for file in files:
        if text := methods.warn_of_level(methods.find(file), [level] if level else []):
            warnings.warn(text, stacklevel=3)
    return [inputs.load_model(file) for file in files]


class _Numbers(click.ParamType):
    """Numbers with commas between them."""

    def __init__(self, kind: type, names: str) -> None:
        self._kind, self.name = kind, names

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self._kind(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != 4:
            self.fail(f"{value!r}: expected {self.name}", param, ctx)
        return numbers

    def get_metavar(self, *_: Any, **__: Any) -> str:
        return self.name


@click.command(cls=cli.Command)
@click.argument(
    "arguments",
    metavar="[MODEL_OR_WORKDIR] INPUT...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=pathlib.Path),
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=pathlib.Path),
    help="File to write (.tif, .zarr; of labels .csv, .geojson, .parquet, .tif); of several inputs "
    "the folder, one file each.",
)
@click.option(
    "--model-60m",
    type=click.Path(path_type=pathlib.Path),
    help="Another model or work folder, for B01 and B09.",
)
@click.option(
    "--bands",
    help="all: with the 10 m bands as they are; or names (B05,B8A); default: those sharpened.",
)
@click.option(
    "--roi",
    type=_Numbers(int, "X0,Y0,X1,Y1"),
    help="Pixels of 10 m from the upper left corner; X1 and Y1 are the first ones left out.",
)
@click.option(
    "--roi-lonlat",
    type=_Numbers(float, "LON0,LAT0,LON1,LAT1"),
    help="West, south, east, north [degree, WGS 84].",
)
@click.option(
    "--geojson",
    type=click.Path(path_type=pathlib.Path),
    help="File; the rectangle of pixels around what is in it.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice((*FORMATS, *LABEL_FORMATS)),
    help="Default: by the output's name; of several inputs COG, or CSV of labels.",
)
@ranks.options(default="single")
@click.option(
    "--procedure",
    type=click.Choice(PROCEDURES),
    default="lattice",
    show_default=True,
    help="lattice: a pixel's value does not depend on windows. dsen2: as DSen2's own scripts, "
    "windows of 128 px with a border of 8 (60 m: 192 and 12).",
)
@click.option(
    "--precision", type=click.Choice(PRECISIONS), help="Of inner layers; default: the model's own."
)
@click.option("--bicubic", is_flag=True, help="Bicubic interpolation; no MODEL is given then.")
@click.option("--stac", is_flag=True, help="Write a STAC item (.json) beside the output.")
@click.option("--preview", is_flag=True, help="Write a picture (.png) beside the output.")
@click.option("--resume", is_flag=True, help="Go on where the same command was broken off.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@click.option(
    "--window",
    type=click.IntRange(min=1),
    help="Edge of a window [px of 10 m]. The result depends on it only where a model's mean-shift "
    "or attention has no blocks, with --procedure dsen2, and of labels (default: 120).",
)
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    help="Of labels: from one window to the next [px of 10 m]; default: side by side.",
)
@click.option(
    "--threshold",
    help="Of labels: probability from which on a class is there (default: 0.5), or the file of "
    "kerass2.evaluate --tune.",
)
@click.option(
    "--border", type=click.IntRange(min=0), help="Border of --procedure dsen2 [px of 10 m]."
)
def main(
    arguments: tuple[pathlib.Path, ...], strategy: str, workers: int | None, **options: Any
) -> None:
    """Sharpen each INPUT to 10 m; or, with a classifier, label its land cover.

    MODEL_OR_WORKDIR is a .keras file, the work folder of kerass2.fit, DSen2's weights (.npz,
    .hdf5), or the name of weights that come with kerass2 (superres_20m_L1C). Without it those are
    taken that fit the INPUT's level.

    INPUT is a Sentinel-2 product (.SAFE, .zip, MTD_*.xml), a STAC item, a folder of one GeoTIFF or
    JPEG 2000 a band or of gsd10.tif, gsd20.tif, gsd60.tif, a BigEarthNet patch or a .npz scene; the
    output has the DN of the input, offset and all, and in sharpened bands no data where a band that
    the model reads has none. The words sample and synthetic mean the real sample's area and a
    made-up granule. Inputs that fail are named at the end (exit code 1); the others are written.
    With --strategy horovod or multiworker ranks share the windows.

    A classifier's INPUT may also be a folder of BigEarthNet patches, their LMDB, or a data set of
    kerass2.prepare; all else is cut into windows of 1.2 km. Tables have a row for each patch or
    window with its labels and each class' probability, a .tif a band of probabilities for each
    class and a pixel for each window. A window where some pixel has no data in any band of its GSD
    gets no labels (NaN). Labels of one INPUT are begun anew with --resume.
    """
    from kerass2 import backend, label_job, predict_job
    from strategies.base import leave

    classifier = label_job.is_for(arguments)
    job = (label_job if classifier else predict_job).check(arguments, **options)
    backend.import_keras()
    here = ranks.start(strategy, workers)
    failed = []
    if here.is_chief:
        for message in job.messages:
            messages.note(message)
    with _bar(here.is_chief) as bar:
        run = job.open()
        for number, source in enumerate(job.sources):
            try:
                message = run(number, here, bar)
            except DataError as error:
                if len(job.sources) == 1:
                    raise
                failed.append(str(error) if str(source) in str(error) else f"{source}: {error}")
                continue
            if here.is_chief:
                click.echo(message)
    if here.is_chief:
        for text in failed:
            click.echo(f"error: {text}", err=True)
    leave(here)
    if failed:
        click.get_current_context().exit(1)


@contextlib.contextmanager
def _bar(shown: bool) -> Iterator[Any]:
    """A progress bar; gives the function that begins a granule: (name, total) -> advance."""
    import rich.console
    import rich.progress

    console = rich.console.Console(stderr=True)
    columns: Any = (
        *rich.progress.Progress.get_default_columns(),
        "{task.completed}/{task.total} windows",
    )
    with rich.progress.Progress(
        *columns, console=console, disable=not (shown and messages.has_progress(console))
    ) as bar:

        def begin(name: str, total: int) -> Advance:
            task = bar.add_task(name, total=total)
            return lambda done: bar.advance(task, done)

        yield begin


if __name__ == "__main__":
    cli.run(main)
