"""`python -m kerass2.evaluate [MODEL_OR_WORKDIR]`: models beside interpolation, by every metric.

What is scored, and how, stands in scores.py, whole.py and metrics.py; the tables in tables.py.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from data_pipelines.spec import DataError
from kerass2 import cli, config, inputs, messages, ranks, workdir
from kerass2.scores import evaluate_model, evaluate_scenes, finite, predict_methods
from strategies.base import leave

if TYPE_CHECKING:
    from kerass2.methods import Method
    from strategies.base import Strategy

__all__ = ["Job", "check", "evaluate", "evaluate_model", "predict_methods"]

# Repeated here so that --help imports less; a test holds them equal to tables, render and whole.
TABLES = ("bands", "paper", "scenes")
FORMATS = ("table", "markdown", "csv", "json", "latex")
VIEWS = ("lattice", "dsen2", "single")


@dataclasses.dataclass(frozen=True)
class Job:
    """An evaluation, checked before any rank starts."""

    methods: tuple[Method, ...]
    """The model, and those to set beside it."""
    data: inputs.Data
    """What to evaluate on."""
    split: str
    """Which part of it; whole.SPLIT for whole scenes."""
    output: pathlib.Path | None
    """The JSON file to write; None for none."""
    published: Mapping[str, Any] | None = None
    """Of tables.read_published."""
    view: str | None = None
    """One of whole.VIEWS for whole scenes; None for patches."""
    tune: bool = False
    """Of labels: tune thresholds on the validation split."""
    own: Mapping[str, inputs.Data] = dataclasses.field(default_factory=dict)
    """Of labels: method -> another form of the same patches, which that one was trained on."""

    @property
    def levels(self) -> list[str]:
        """Levels of the products that the data come from, as far as they tell."""
        from kerass2 import methods

        return methods.data_levels(self.data)


def check(
    model: str | pathlib.Path | None,
    *,
    data: str | None = None,
    split: str | None = None,
    output: pathlib.Path | None = None,
    overwrite: bool = False,
    also: Sequence[str] = (),
    published: pathlib.Path | None = None,
    whole: str | None = None,
    tune: bool = False,
) -> Job:
    """Everything that can be wrong with models, data or output, found before ranks start.

    Args:
        model: a .keras file, the work folder of kerass2.fit, DSen2's weights (.npz, .hdf5), or the
            name of weights that come with the package; None: those for the data's task and level.
        data: a prepared folder, a product or "synthetic"; by default what the model was trained
            on, else the sample.
        split: "train", "validation" or "test", the default.
        output: evaluation.json beside the model by default; beside DSen2's weights, and in the
            package, none.
        overwrite: replace an output of other data or another split. One of the same model, data
            and split holds what comes out again: it is refreshed without asking.
        also: more models, NAME=PATH.
        published: CSV with results to set beside, see tables.read_published.
        whole: one of whole.VIEWS: `data` are whole scenes; None: patches.
        tune: tune the thresholds of labels on the validation split.

    Raises:
        DataError: what is missing or in the way.
    """
    from kerass2 import label_tables, methods, shipped, tables

    found = (methods.find(model or shipped.find_for_data(data)), *methods.parse(also))
    methods.check_tasks(found)
    main = found[0]
    labelled = main.task == config.LABEL_TASK
    if labelled and whole is not None:
        raise DataError(f"--whole {whole}: {main.file} gives labels of patches")
    if tune and not labelled:
        raise DataError(f"--tune is for labels; {main.file} is for {main.task}")
    if tune and split == "validation":
        raise DataError(
            "--tune --split validation: thresholds would be scored on the patches that they are "
            "tuned on; expected another split"
        )
    rows = None
    if published is not None and labelled:
        rows = label_tables.read_published(published)
    elif published is not None:
        rows = tables.read_published(published, main.task)
    opened, split = _open(main, data, split, whole)
    if output is None and not main.is_published and not shipped.is_own(main.file):
        output = main.file.parent / workdir.EVALUATION
    if output is not None:
        expected = {"data": str(opened.path), "split": split, "model": main.file.name}
        _check_output(output, expected, [m.name for m in found], overwrite=overwrite)
    own = _find_own(found[1:], opened) if labelled and data is None else {}
    for each in (opened, *own.values()) if tune else ():
        each.open("validation")
    return Job(found, opened, split, output, rows, whole, tune, own)


def _find_own(others: Sequence[Method], data: inputs.Data) -> dict[str, inputs.Data]:
    """Data sets of models that were trained on others than `data`, by method."""
    found = {method.name: inputs.find_data(method.file, None) for method in others}
    return {name: own for name, own in found.items() if own.digest != data.digest}


def _open(
    main: Method, data: str | None, split: str | None, whole: str | None
) -> tuple[inputs.Data, str]:
    """What to evaluate on, and its split; see check."""
    from kerass2 import whole as scenes

    if whole is not None:
        if split is not None:
            raise DataError(f"--whole takes scenes as they are: --split {split} does not apply")
        if data is None:
            raise DataError("--whole needs --data: a product, a scene (.npz) or a folder of them")
        return scenes.open_data(data, main.task), scenes.SPLIT
    if main.is_published:  # such weights have no data set of their own
        found = inputs.choose_data(data, main.task)
    else:
        found = inputs.find_data(main.file, data)
    found.open(split or "test")
    return found, split or "test"


def _check_output(
    output: pathlib.Path, expected: Mapping[str, str], names: Sequence[str], *, overwrite: bool
) -> None:
    """Refuse an output that cannot be written, or that holds the evaluation of something else."""
    if output.is_dir() or not output.parent.is_dir():
        raise DataError(f"{output}: expected the name of a file in a folder that exists")
    if not os.access(output.parent, os.W_OK):
        raise DataError(f"{output.parent}: not to be written to; give another file with -o")
    if output.exists() and not overwrite:
        _check_same(output, expected, names)


def _check_same(output: pathlib.Path, expected: Mapping[str, str], names: Sequence[str]) -> None:
    """Refuse to replace the evaluation of something else, or of more models."""
    try:
        old = json.loads(output.read_bytes())
        differing = [key for key in expected if old.get(key) != expected[key]]
        lost = sorted(set(old.get("models", names)) - set(names))
    except (ValueError, AttributeError, TypeError):
        raise DataError(
            f"{output}: exists and is no evaluation; give --overwrite to replace it"
        ) from None
    if differing:
        there = ", ".join(f"{key} {old.get(key)}" for key in differing)
        here = ", ".join(f"{key} {expected[key]}" for key in differing)
        raise DataError(
            f"{output}: evaluation of {there}, not of {here}; give --overwrite or another -o"
        )
    if lost:
        raise DataError(
            f"{output}: has {', '.join(lost)} too; give --also, --overwrite or another -o"
        )


def evaluate(job: Job, strategy: Strategy) -> dict[str, Any]:
    """Evaluate as this rank of `strategy`; rank 0 writes the file. Every rank calls it.

    Returns:
        evaluate_model's result with "model", "models" (by method: file, digest, levels and facts of
        its training), "data", "levels", "description" and "synthetic" before it, "published"
        behind; None for values that are not finite, which JSON does not have.
    """
    found: dict[str, Any] = finite(run(job, strategy))
    return found


def run(job: Job, strategy: Strategy) -> dict[str, Any]:
    """Like evaluate, with NaN and infinite values as they are."""
    result = {
        "model": job.methods[0].file.name,
        "models": {method.name: _describe(method, job) for method in job.methods},
        "data": str(job.data.path),
        "levels": job.levels,
        "description": job.data.description,
        "synthetic": job.data.synthetic,
        **_score(job, strategy),
    }
    if job.published is not None:
        result["published"] = job.published
    if strategy.is_chief and job.output is not None:
        workdir.write_json(job.output, finite(result))
    leave(strategy)
    return result


def _describe(method: Method, job: Job) -> dict[str, Any]:
    """What a model is, and of which data it was made."""
    from kerass2.job import Init

    return {
        "file": str(method.file),
        "digest": Init.of(method.file).digest,
        "levels": method.levels,
        **({"data": str(job.own[method.name].path)} if method.name in job.own else {}),
        **method.facts,
    }


def _score(job: Job, strategy: Strategy) -> dict[str, Any]:
    """What evaluate_model finds, or its likes for labels and for whole scenes."""
    from kerass2 import label_evaluation, methods

    networks = {method.name: methods.load(method) for method in job.methods}
    if job.methods[0].task == config.LABEL_TASK:
        return label_evaluation.evaluate_models(
            networks,
            inputs.open_source(job.data, job.split, networks[methods.MAIN]),
            strategy,
            tune_on=job.data.open("validation") if job.tune else None,
            own={
                name: (
                    inputs.open_source(data, job.split, networks[name]),
                    data.open("validation") if job.tune else None,
                )
                for name, data in job.own.items()
            },
        )
    if job.view is not None:
        return evaluate_scenes(job.data, networks, strategy, view=job.view)
    main = networks.pop(methods.MAIN)
    return evaluate_model(
        main,
        inputs.open_source(job.data, job.split, main),
        strategy,
        scenes=[str(scene) for scene in job.data.provenance.get("scenes", ())],
        also=networks,
        baselines=methods.BASELINES,
    )


# --- the command --------------------------------------------------------------------------------


@click.command(cls=cli.Command)
@click.argument(
    "model",
    metavar="[MODEL_OR_WORKDIR]",
    required=False,
    type=click.Path(path_type=pathlib.Path),
)
@ranks.options(default="single")
@click.option(
    "--data",
    help="Folder made by kerass2.prepare, a product (.SAFE, .zip, ...), cut as it is read, or "
    "'synthetic'; default: the model's own.",
)
@click.option("--split", help="train, validation or test.  [default: test]")
@click.option(
    "--whole",
    type=click.Choice(VIEWS),
    help="Score whole scenes, DATA: as kerass2.predict on its lattice, by DSen2's windows, or as a "
    "single window.",
)
@click.option(
    "--also",
    multiple=True,
    metavar="NAME=PATH",
    help="A further model: .keras, work folder, or DSen2's weights (.npz, .hdf5). Again for more. "
    "Without --data classifiers are scored on the patches in the form that each was trained on.",
)
@click.option(
    "--published",
    type=click.Path(path_type=pathlib.Path),
    help="CSV of published results to show beside, in the table 'paper'; of labels a folder too.",
)
@click.option("--table", type=click.Choice(TABLES), default=TABLES[0], show_default=True)
@click.option(
    "--format", "style", type=click.Choice(FORMATS), default=FORMATS[0], show_default=True
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=pathlib.Path),
    help="Default: evaluation.json beside the model.",
)
@click.option("--tune", is_flag=True, help="Of labels: tune thresholds on the validation split.")
@click.option("--overwrite", is_flag=True, help="Replace an output of other data or another split.")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def main(
    model: pathlib.Path | None,
    strategy: str,
    workers: int | None,
    data: str | None,
    split: str | None,
    whole: str | None,
    also: tuple[str, ...],
    published: pathlib.Path | None,
    table: str,
    style: str,
    output: pathlib.Path | None,
    tune: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Score a model beside interpolation and other models, per band and scene, by every metric.

    Without MODEL_OR_WORKDIR: the weights that come with kerass2 for the data's task and level.

    The table 'bands' has every metric by band, 'paper' the columns of the super-resolution paper's
    tables and the textbook's definitions beside them, 'scenes' every metric by scene with mean and
    standard deviation; of labels 'paper' is the classification paper's Table 2, any other its
    Table 3, and the terminal gets both; JSON has all of it. An output of the same models, data and
    split is refreshed; any other needs --overwrite.
    """
    from kerass2 import methods

    job = check(
        model,
        data=data,
        split=split,
        output=output,
        overwrite=overwrite,
        also=also,
        published=published,
        whole=whole,
        tune=tune,
    )
    here = ranks.start(strategy, workers)
    if here.is_chief:
        for method in job.methods:
            if warning := methods.warn_of_level(method, job.levels):
                messages.warn(warning)
    result = run(job, here)
    if here.is_chief:
        _show(job, result, table, "json" if as_json else style)


def _show(job: Job, result: Mapping[str, Any], table: str, style: str) -> None:
    """Print the tables; what is piped into a file holds them alone."""
    from kerass2 import label_tables, render, tables

    if style == "json":
        click.echo(json.dumps(finite(result), indent=2))
        return
    if job.methods[0].task == config.LABEL_TASK:
        if style == "table" or table == "paper":
            render.show(label_tables.overall(result), style)
        if style == "table" or table != "paper":
            render.show(label_tables.by_class(result), style)
    else:
        render.show(tables.TABLES[table](result), style)
    aside = style != "table"
    what = "scenes" if job.view else f"patches of the {job.split} split"
    click.echo(f"{result['patches']} {what} of {job.data.path}", err=aside)
    click.echo(job.data.description, err=aside)
    if job.output is not None:
        click.echo(f"wrote {job.output}", err=aside)


if __name__ == "__main__":
    cli.run(main)
