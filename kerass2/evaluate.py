"""`python -m kerass2.evaluate MODEL_OR_WORKDIR`: a model beside bicubic, by every metric.

Every patch counts once, whatever the number of ranks: each rank adds up its share, one sum over
ranks joins them, and the division comes last.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from data_pipelines.spec import DataError
from kerass2 import cli, inputs, ranks, workdir

if TYPE_CHECKING:
    import keras
    import rich.table

    from data_pipelines.spec import Source
    from kerass2.tiling import Predict
    from strategies.base import Strategy

# Patches a rank predicts at once.
LOCAL_BATCH = 8
Sums = dict[str, dict[str, NDArray[Any]]]


def evaluate_model(
    model: keras.Model, source: Source, strategy: Strategy, *, global_batch: int | None = None
) -> dict[str, Any]:
    """Score a model and bicubic interpolation on a split. Every rank calls it and gets the same.

    Args:
        model: a super-resolution model of kerass2.models.
        source: the split.
        strategy: shares the patches among its ranks.
        global_batch: patches of all ranks at once, a multiple of their number; 8 a rank by
            default. The results do not depend on it.

    Returns:
        {"task": .., "split": .., "patches": number,
        "methods": {"bicubic": {"rmse": {"mean": .., "B05": ..}, ..}, "model": {..}},
        "units": {metric: unit}, "definitions": {metric: definition}}.

    Raises:
        DataError: data of another task or band set, or a damaged record.
    """
    from data_pipelines import batching
    from kerass2 import metrics, models, tiling

    models.check_fits(model, source.spec, f"split {source.split}")
    described = models.describe(model)
    predict = tiling.compile_prediction(model)
    if not len(source):
        raise DataError(f"split {source.split} holds no patches to evaluate")
    global_batch = global_batch or LOCAL_BATCH * strategy.world_size
    sums: Sums = {}
    # Batches in numpy: no rank's work depends on the others before the sum, every backend can do
    # it, and reading takes a hundredth of the time that the model takes.
    for step in range(batching.num_evaluation_steps(len(source), global_batch)):
        batch = batching.evaluation_batch(
            source,
            step=step,
            global_batch=global_batch,
            rank=strategy.rank,
            world_size=strategy.world_size,
        )
        more = _batch_sums(predict, described, batch)
        sums = {m: metrics.add(sums[m], more[m]) if m in sums else more[m] for m in more}
    total = _sum_over_ranks(sums, strategy)
    return {
        "task": source.spec.task,
        "split": source.split,
        "patches": len(source),
        "methods": {
            name: metrics.results(found, described["target_bands"]) for name, found in total.items()
        },
        "units": dict(metrics.UNITS),
        "definitions": dict(metrics.DEFINITIONS),
    }


def predict_methods(
    predict: Predict, described: Mapping[str, Any], given: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """The target by each method: {"bicubic": .., "model": ..}, (batch, y, x, band) reflectance.

    Args:
        predict: see tiling.compile_prediction.
        described: of models.describe.
        given: {input: (batch, y, x, band) float32 reflectance}.
    """
    from keras import ops

    from kerass2 import resampling

    lowres = given[inputs.lowres_input(described)]
    enlarged = ops.convert_to_numpy(resampling.bicubic(lowres, described["scale"]))
    return {"bicubic": np.asarray(enlarged), "model": predict(given)[described["target"]]}


def _batch_sums(predict: Predict, described: Mapping[str, Any], batch: Mapping[str, Any]) -> Sums:
    """Sums of one batch by method."""
    from kerass2 import metrics

    target, mask = batch["targets"][described["target"]], batch["mask"]
    return {
        method: metrics.sums(predicted, target, mask, described["scale"])
        for method, predicted in predict_methods(predict, described, batch["inputs"]).items()
    }


def _sum_over_ranks(sums: Sums, strategy: Strategy) -> Sums:
    """The sums of all ranks, by one collective call for all methods."""
    from kerass2 import metrics

    packed = [metrics.pack(values) for values in sums.values()]
    total = strategy.sum(np.concatenate(packed))
    parts = np.split(total, np.cumsum([len(part) for part in packed])[:-1])
    return {
        method: metrics.unpack(part, values)
        for (method, values), part in zip(sums.items(), parts, strict=True)
    }


# --- what a command line names ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Job:
    """An evaluation, checked before any rank starts."""

    model: pathlib.Path
    """The .keras file."""
    data: inputs.Data
    """What to evaluate on."""
    split: str
    """Which part of it."""
    output: pathlib.Path | None
    """The JSON file to write; None for none."""


def check(
    model: str | pathlib.Path,
    *,
    data: str | None = None,
    split: str = "test",
    output: pathlib.Path | None = None,
    overwrite: bool = False,
) -> Job:
    """Everything that can be wrong with model, data or output, found before ranks start.

    Args:
        model: a .keras file or the work folder of kerass2.fit.
        data: a prepared folder, a product or "synthetic"; by default what the model was trained
            on, else the sample.
        split: "train", "validation" or "test".
        output: evaluation.json beside the model by default.
        overwrite: replace an output of other data or another split. One of the same model, data
            and split holds what comes out again: it is refreshed without asking.

    Raises:
        DataError: what is missing or in the way.
    """
    file = inputs.find_model(model)
    found = inputs.find_data(file, data)
    found.open(split)
    output = file.parent / workdir.EVALUATION if output is None else output
    if output.is_dir() or not output.parent.is_dir():
        raise DataError(f"{output}: expected the name of a file in a folder that exists")
    if output.exists() and not overwrite:
        _check_same(output, {"data": str(found.path), "split": split, "model": file.name})
    return Job(file, found, split, output)


def _check_same(output: pathlib.Path, expected: Mapping[str, str]) -> None:
    """Refuse to replace the evaluation of something else."""
    try:
        old = json.loads(output.read_bytes())
        differing = [key for key in expected if old.get(key) != expected[key]]
    except (ValueError, AttributeError):
        raise DataError(
            f"{output}: exists and is no evaluation; give --overwrite to replace it"
        ) from None
    if differing:
        there = ", ".join(f"{key} {old.get(key)}" for key in differing)
        here = ", ".join(f"{key} {expected[key]}" for key in differing)
        raise DataError(
            f"{output}: evaluation of {there}, not of {here}; give --overwrite or another -o"
        )


def evaluate(job: Job, strategy: Strategy) -> dict[str, Any]:
    """Evaluate as this rank of `strategy`; rank 0 writes the file. Every rank calls it.

    Returns:
        evaluate_model's result with "model", "data", "description" and "synthetic" before it;
        None for values that are not finite, which JSON does not have.
    """
    model = inputs.load_model(job.model)
    source = inputs.open_source(job.data, job.split, model)
    result = {
        "model": job.model.name,
        "data": str(job.data.path),
        "description": job.data.description,
        "synthetic": job.data.synthetic,
        **_finite(evaluate_model(model, source, strategy)),
    }
    if strategy.is_chief and job.output is not None:
        workdir.write_json(job.output, result)
    strategy.sum(np.zeros(1))  # ranks leave together: one that is gone looks like one that died
    return result


def _finite(value: Any) -> Any:
    """The same nested values, None for each number that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- the command --------------------------------------------------------------------------------


def build_table(result: Mapping[str, Any]) -> rich.table.Table:
    """Methods as rows below each metric, mean and bands as columns; fits 80 columns."""
    import rich.box
    import rich.table
    import rich.text

    methods = result["methods"]
    columns = list(dict.fromkeys(key for found in methods["model"].values() for key in found))
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("metric")
    table.add_column("method")
    for column in columns:
        table.add_column(column, justify="right")
    for metric in methods["model"]:
        for number, (method, found) in enumerate(methods.items()):
            values = [found[metric].get(key) for key in columns]
            cells = ["" if value is None else f"{value:#.4g}".rstrip(".") for value in values]
            last = number == len(methods) - 1
            # The unit stands below the name, where there is room.
            unit = result["units"][metric] if number == 1 else "1"
            name = metric if number == 0 else "" if unit == "1" else f"  [{unit}]"
            table.add_row(rich.text.Text(name), method, *cells, end_section=last)
    return table


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", metavar="MODEL_OR_WORKDIR", type=click.Path(path_type=pathlib.Path))
@ranks.options(default="single")
@click.option(
    "--data",
    help="Folder made by kerass2.prepare, a product (.SAFE, .zip, ...), cut as it is read, or "
    "'synthetic'; default: the model's own.",
)
@click.option("--split", default="test", show_default=True, help="train, validation or test.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=pathlib.Path),
    help="Default: evaluation.json beside the model.",
)
@click.option("--overwrite", is_flag=True, help="Replace an output of other data or another split.")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON instead of the table.")
def main(
    model: pathlib.Path,
    strategy: str,
    workers: int | None,
    data: str | None,
    split: str,
    output: pathlib.Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Score a model beside bicubic interpolation, per band and by every metric.

    An output of the same model, data and split is refreshed; any other needs --overwrite.
    """
    import rich.console

    job = check(model, data=data, split=split, output=output, overwrite=overwrite)
    here = ranks.start(strategy, workers)
    result = evaluate(job, here)
    if not here.is_chief:
        return
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    rich.console.Console().print(build_table(result))
    click.echo(f"{result['patches']} patches of the {split} split of {job.data.path}")
    click.echo(f"{job.data.description}\nwrote {job.output}")


if __name__ == "__main__":
    cli.run(main)
