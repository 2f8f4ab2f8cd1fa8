"""`python -m kerass2.view PATH`: a prediction, a data set or a run on a page of this machine."""

from __future__ import annotations

import pathlib
import threading
import webbrowser
from typing import TYPE_CHECKING

import click

from kerass2 import cli

if TYPE_CHECKING:
    from kerass2.viewer.answers import Page


def open_page(path: pathlib.Path, source: str | None = None) -> Page:
    """What a path shows.

    Args:
        path: a GeoTIFF, a data set of kerass2.prepare, or a work folder of kerass2.fit.
        source: of a GeoTIFF: what it was made of, as kerass2.predict takes it.

    Raises:
        DataError: none of the three, or damaged; a source whose grid does not match.
        click.UsageError: a source of another thing than a GeoTIFF.
    """
    from data_pipelines.manifest import MANIFEST
    from data_pipelines.spec import DataError
    from kerass2 import workdir
    from kerass2.viewer import patches, prediction, run

    if path.is_file() and path.suffix.lower() in (".tif", ".tiff"):
        return prediction.Prediction(path, source)
    if source is not None:
        raise click.UsageError("--input: of a GeoTIFF only")
    if (path / MANIFEST).is_file():
        return patches.Patches(path)
    if any((path / name).is_file() for name in (workdir.EXPERIMENT, workdir.LOG)):
        return run.Run(path)
    expected = (
        "expected a GeoTIFF (.tif) as kerass2.predict writes it, a data set of kerass2.prepare, or "
        "the work folder of kerass2.fit"
    )
    if (path / "zarr.json").is_file():
        raise DataError(f"{path}: Zarr, which is not shown; {expected}")
    raise DataError(f"{path}: {'none of these' if path.exists() else 'not found'}; {expected}")


@click.command(cls=cli.Command)
@click.argument("path", metavar="OUT.tif|DIR|WORKDIR", type=click.Path(path_type=pathlib.Path))
@click.option(
    "--input",
    "source",
    metavar="PATH",
    help="Of a prediction: what it was made of, as kerass2.predict takes it; default: what lies "
    "beside it under the name that it says. Without one there is nothing to swipe to.",
)
@click.option("--port", type=click.IntRange(1, 65535), help="Default: any free one.")
@click.option("--no-browser", is_flag=True, help="Print the page's address only.")
def main(path: pathlib.Path, source: str | None, port: int | None, no_browser: bool) -> None:
    """Look at a prediction, a data set or a training run in the browser, on this machine alone.

    A prediction of kerass2.predict (GeoTIFF, COG) is a map to swipe between input, bicubic
    interpolation and prediction, in any bands, with the spectrum of each pixel; a data set of
    kerass2.prepare is its patches with their targets or labels; a work folder of kerass2.fit is the
    curves of the training, live while it runs, and the results of its evaluation.

    The page needs no network. It is served until Ctrl-C, to this machine only, at an address with a
    key in it; from another machine: ssh -L PORT:127.0.0.1:PORT, the same PORT twice.
    """
    from kerass2.viewer.server import Server

    page = open_page(path, source)
    with Server(page, port or 0) as server:
        click.echo(server.url)
        click.echo("Ctrl-C ends it", err=True)
        if not no_browser:
            # A thread: where there is no screen, Python's choice is a browser in this terminal.
            threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            click.echo("ended", err=True)


if __name__ == "__main__":
    cli.run(main)
