"""kerass2.predict for a classifier: what its command line asks for, checked; and its places."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from data_pipelines.spec import DataError
from kerass2 import config, inputs, messages, shipped

if TYPE_CHECKING:
    from data_pipelines.granule import Granule
    from kerass2.label_places import Images, Places
    from kerass2.methods import Method
    from kerass2.outputs import Target
    from kerass2.tiling import Predict
    from strategies.base import Strategy

# Places that are read and labelled at once. By their numbers, so that ranks see the same batches.
BATCH = 32
EDGE = 120
"""Of a window [px of 10 m], as BigEarthNet's patches are."""
# Options of kerass2.predict that are for sharpening, and what they are where they are not given.
FOREIGN: Mapping[str, Any] = {
    "model_60m": None,
    "bands": None,
    "procedure": "lattice",
    "precision": None,
    "stac": False,
    "preview": False,
    "border": None,
    "bicubic": False,
}


@dataclasses.dataclass(frozen=True)
class LabelJob:
    """Labels to find; what kerass2.predict does with predict_job.Job it does with this."""

    model: Method
    """The classifier."""
    sources: tuple[pathlib.Path, ...]
    """What is labelled, each by itself."""
    messages: tuple[str, ...]
    """What to say of the sources."""
    targets: tuple[Target, ...]
    """The output of each."""
    options: Mapping[str, Any]
    """The other options of the command."""

    def open(self) -> Callable[[int, Strategy, Any], str]:
        """Load the model; see predict_job.Job.open.

        Raises:
            DataError: the model is damaged, or thresholds are of other classes.
        """
        from kerass2 import methods, tiling
        from kerass2.models import labels

        model = methods.load(self.model)
        takes = labels.describe(model)
        names = takes["target_bands"]
        if None in names:
            names = tuple(f"class {number}" for number in range(len(names)))
        takes = {**takes, "target_bands": names}
        thresholds = _find_thresholds(self.options["threshold"], names)
        return functools.partial(_run, self, tiling.compile_prediction(model), takes, thresholds)


def is_for(arguments: Sequence[pathlib.Path]) -> bool:
    """Whether a command line of kerass2.predict begins with a classifier."""
    first, _ = shipped.split(arguments)
    if first is None or first.suffix.lower() in (".npz", ".hdf5", ".h5"):
        return False
    try:
        return inputs.read_task(inputs.find_model(first)) == config.LABEL_TASK
    except DataError:
        return False  # no model at all, which is said elsewhere


def check(arguments: Sequence[pathlib.Path], **options: Any) -> LabelJob:
    """Everything that can be wrong with the model and outputs, found before ranks start.

    Args:
        arguments: model and inputs.
        **options: of kerass2.predict.

    Raises:
        DataError: no input, or an output that is in the way.
        click.UsageError: options that contradict each other, or are for sharpening.
    """
    from data_pipelines import sample
    from kerass2 import label_outputs, methods, predict_job

    foreign = [name for name, value in FOREIGN.items() if options[name] != value]
    if foreign:
        dashed = ", ".join(map(predict_job.dashed, foreign))
        raise click.UsageError(f"{dashed}: for sharpening; {arguments[0]} gives labels")
    if len(arguments) < 2:
        raise click.UsageError(f"{arguments[0]}: expected an INPUT behind the model")
    options["threshold"] = options["threshold"] or "0.5"
    _check_threshold(options["threshold"])
    resolved = [sample.resolve_granule(source) for source in arguments[1:]]
    paths = tuple(path for path, _ in resolved)
    messages = tuple(dict.fromkeys(message for _, message in resolved if message))
    targets = predict_job.find_targets(paths, options, label_outputs.SUFFIXES)
    model = methods.find(arguments[0])
    predict_job.keep_inputs(targets, (*paths, model.file))
    paths, targets, said = predict_job.leave_out_done(paths, targets, options)
    for target in targets:
        target.check(overwrite=options["overwrite"])
    return LabelJob(model, paths, messages + said, targets, options)


def _check_threshold(text: str) -> None:
    """Refuse what is neither a probability nor a file."""
    try:
        fits = 0 <= float(text) <= 1
    except ValueError:
        fits = pathlib.Path(text).is_file()
    if not fits:
        raise click.UsageError(
            f"--threshold {text}: expected a number from 0 to 1, or the evaluation.json of "
            "kerass2.evaluate --tune"
        )


def _find_thresholds(text: str, classes: Sequence[str]) -> np.ndarray:
    """(class,): from which probability on a class is there."""
    from kerass2 import methods

    path = pathlib.Path(text)
    if not path.is_file():
        return np.full(len(classes), float(text))
    found = inputs.read_json(path) or {}
    values = (found.get("thresholds") or {}).get(methods.MAIN)
    if values is None or list(found.get("classes", ())) != list(classes):
        raise DataError(
            f"{path}: expected thresholds of the model's {len(classes)} classes, as "
            "kerass2.evaluate --tune writes them"
        )
    return np.asarray(values, np.float64)


def _run(
    job: LabelJob,
    predict: Predict,
    takes: Mapping[str, Any],
    thresholds: np.ndarray,
    number: int,
    strategy: Strategy,
    begin: Any,
) -> str:
    """Label one source."""
    from kerass2 import label_outputs, outputs
    from kerass2.label_evaluation import sum_tables

    source, target = job.sources[number], job.targets[number]
    start = time.monotonic()
    with outputs.together(strategy, f"{source}: another rank could not read it"):
        places = _open(job, source, takes, say=strategy.is_chief)
    starts = range(0, places.count, BATCH)
    advance = begin(places.name, len(starts))
    classes = takes["target_bands"]
    # One column more says that a row was made: those of other ranks and without data stay 0.
    table = np.zeros((places.count, len(classes) + 1))
    with outputs.together(strategy, f"{target.path}: another rank failed"):
        mine = outputs.share(list(starts), strategy.rank, strategy.world_size)
        for numbers, there, values in _label(places, mine, predict, takes):
            table[numbers[there]] = np.column_stack([values[there], np.ones(there.sum())])
            advance(1)
    table = sum_tables(strategy, table)
    known = table[:, -1] > 0
    probabilities = np.where(known[:, None], table[:, :-1], np.nan).astype(np.float32)
    with outputs.together(strategy, f"{target.path}: rank 0 could not write it"):
        if strategy.is_chief:
            target.check(overwrite=job.options["overwrite"])  # again: it may have come meanwhile
            name = job.model.file.name
            found = label_outputs.Labelled(places, classes, probabilities, thresholds, name)
            label_outputs.write(found, target)
    empty = f", {(~known).sum()} of them without data" if not known.all() else ""
    return (
        f"wrote {target.path}: {places.count} {places.what}{empty}, {len(classes)} classes, "
        f"{places.name}; {time.monotonic() - start:.1f} s"
    )


def _open(job: LabelJob, source: pathlib.Path, takes: Mapping[str, Any], *, say: bool) -> Places:
    """Open a source and say what there is to say about it."""
    from kerass2 import label_places, predict_job

    def find_roi(found: Granule) -> Any:
        from kerass2 import meaning

        return predict_job.find_roi(found, job.options, meaning.georeference(found))

    window = job.options["window"] or EDGE
    if label_places.ALL in takes["inputs"] and window != EDGE:
        raise DataError(
            f"--window {window}: model {takes['model']} takes all bands at 10 m, which are "
            f"enlarged for windows of {EDGE} px only"
        )
    places, granule = label_places.open_places(
        source,
        takes,
        window=window,
        stride=job.options["stride"] or window,
        find_roi=find_roi,
    )
    regions = [name for name in ("roi", "roi_lonlat", "geojson") if job.options[name] is not None]
    if granule is None and (regions or job.options["window"] or job.options["stride"]):
        given = [*regions, *(name for name in ("window", "stride") if job.options[name])]
        raise DataError(
            f"{source}: patches; {', '.join(map(predict_job.dashed, given))} is for a granule"
        )
    if say and places.synthetic:
        click.echo("THE INPUT IS SYNTHETIC (MADE UP, NOT MEASURED), SO IS THE OUTPUT", err=True)
    if say and granule is not None:
        for text in predict_job.warn_of_levels((job.model,), granule, source):
            messages.warn(text)
    return places


def _label(
    places: Places, starts: Sequence[int], predict: Predict, takes: Mapping[str, Any]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(numbers, where there are data, probabilities) batch by batch; the next is read meanwhile.

    Raises:
        DataError: a record is damaged, or the model gives NaN.
    """
    from data_pipelines.sentinel2 import QUANTIFICATION
    from kerass2 import tiling
    from kerass2.label_places import is_empty
    from kerass2.models import labels

    def read() -> Iterator[tuple[np.ndarray, Images]]:
        for start in starts:
            numbers = np.arange(start, min(start + BATCH, places.count))
            yield numbers, places.read(numbers.tolist())

    for numbers, images in tiling.ahead(read()):
        there = ~is_empty(images)
        given = {
            # As in training, where a data set's scale is multiplied by.
            name: dn.astype(np.float32) * np.float32(1 / QUANTIFICATION)
            for name, dn in images.items()
        }
        values = np.asarray(predict(given)[labels.PROBABILITY])
        if not np.isfinite(values[there]).all():
            raise DataError(f"model {takes['model']} gives NaN: is it trained?")
        yield numbers, there, values
