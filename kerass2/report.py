"""`python -m kerass2.report WORKDIR`: one self-contained HTML page about a training run."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from data_pipelines.files import replacing
from data_pipelines.spec import DataError
from kerass2 import cli, config, inputs
from kerass2 import workdir as folder

if TYPE_CHECKING:
    import keras

    from data_pipelines.spec import Source

TEMPLATE = pathlib.Path(__file__).parent / "templates" / "report.html"
LABEL_TEMPLATE = "label_report.html"
# Metrics that are errors, whatever variant's name follows; all others are better when larger.
SMALLER_IS_BETTER = ("rmse", "sam", "ergas", "consistency")


def build_report(
    workdir: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    data: str | None = None,
    num_patches: int = 4,
) -> pathlib.Path:
    """Write the page of a work folder.

    Args:
        workdir: folder with model.keras, and experiment.json, log.jsonl, data.json, evaluation.json
            where present; a missing evaluation.json is made.
        output: the file to write, report.html in the work folder by default; replaced if it exists.
        data: data set, when not the one that the model was evaluated on; it is then evaluated for
            the page alone, and evaluation.json stays as it is.
        num_patches: patches to show, evenly spaced over the split.

    Returns:
        The file written.

    Raises:
        DataError: no model, a damaged file, or data of another task or band set.
    """
    import jinja2

    workdir = pathlib.Path(workdir)
    if not workdir.is_dir():
        raise DataError(f"{workdir}: no such folder; expected the --workdir of kerass2.fit")
    model = inputs.load_model(workdir)
    evaluation = _read_or_make_evaluation(workdir, data)
    chosen = inputs.find_data(workdir, data or evaluation.get("data"))
    evaluation["synthetic"] = chosen.synthetic
    source = inputs.open_source(chosen, evaluation["split"], model)
    output = workdir / folder.REPORT if output is None else pathlib.Path(output)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    labelled = evaluation["task"] == config.LABEL_TASK
    page = environment.get_template(LABEL_TEMPLATE if labelled else TEMPLATE.name).render(
        **describe_run(workdir, evaluation, model.count_params()),
        **_show_patches(model, source, num_patches, evaluation),
        commands=_commands(workdir, output, evaluation, data),
    )
    with replacing(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return output


def _show_patches(
    model: keras.Model, source: Source, num_patches: int, evaluation: Mapping[str, Any]
) -> dict[str, Any]:
    """What the templates need to show patches."""
    from kerass2 import figures, label_report

    if evaluation["task"] == config.LABEL_TASK:
        return label_report.show_patches(source, num_patches, evaluation)
    shown = min(num_patches, len(source))
    return {
        "patches": figures.patch_panels(model, source, num_patches),
        "patches_caption": _patches_caption(shown, source),
        "error_scale": figures.error_scale(),
    }


def _read_or_make_evaluation(workdir: pathlib.Path, data: str | None) -> dict[str, Any]:
    """evaluation.json, made first where it is missing.

    Of other data than it is of, or where it is missing of the data named: computed, not written.
    """
    import strategies
    from kerass2 import evaluate

    path = workdir / folder.EVALUATION
    found = inputs.read_json(path)
    if found is not None:
        missing = [key for key in ("task", "split", "patches", "methods") if key not in found]
        if missing:
            raise DataError(f"{path}: no {missing[0]!r}; expected what kerass2.evaluate writes")
        if data is None or _same_folder(found.get("data"), inputs.find_data(workdir, data).path):
            return found
    job = evaluate.check(workdir, data=data, overwrite=True)
    if data is not None:
        job = dataclasses.replace(job, output=None)
    return evaluate.evaluate(job, strategies.get("single"))


def _same_folder(recorded: object, path: pathlib.Path) -> bool:
    return isinstance(recorded, str) and pathlib.Path(recorded).resolve() == path.resolve()


def describe_run(
    workdir: pathlib.Path, evaluation: Mapping[str, Any], parameters: int
) -> dict[str, Any]:
    """Everything on the page but its patches and commands.

    Args:
        workdir: the work folder.
        evaluation: contents of evaluation.json.
        parameters: number of the model's weights.
    """
    from kerass2 import figures, label_report

    experiment = inputs.read_json(workdir / folder.EXPERIMENT) or {}
    log = read_log(workdir / folder.LOG)
    synthetic = bool(evaluation.get("synthetic"))
    kind = "SYNTHETIC DATA" if synthetic else "Sentinel-2 data"
    description = str(evaluation.get("description", ""))
    common = {
        "title": str(experiment.get("name", workdir.resolve().name)),
        "subtitle": f"{evaluation['task']} · {kind} · {evaluation['patches']} patches of the "
        f"{evaluation['split']} split",
        "data": {
            "synthetic": synthetic,
            "caption": description or kind,
            "path": str(evaluation.get("data", "")),
        },
        "curves": figures.curves(log),
        "training_notes": _training_notes(workdir, experiment, log),
        "evaluation": evaluation,
        "definitions": list(evaluation.get("definitions", {}).items()),
        "experiment": list(_flat(experiment)),
        "created": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }
    if evaluation["task"] == config.LABEL_TASK:
        tiles = [*label_report.tiles(evaluation), *_run_tiles(log, parameters)]
        return {**common, "tiles": tiles, **label_report.describe(evaluation)}
    return {
        **common,
        "tiles": [*_tiles(evaluation), *_run_tiles(log, parameters)],
        "methods": list(evaluation["methods"]),
        "metric_rows": _metric_rows(evaluation),
        "band_tables": _band_tables(evaluation["methods"]),
    }


def _tiles(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    """The few numbers to see first."""
    from kerass2.figures import change

    bicubic = evaluation["methods"]["bicubic"]["rmse"]["mean"]
    rmse = evaluation["methods"]["model"]["rmse"]["mean"]
    return [
        {"name": "RMSE, model", "value": f"{rmse:.1f}", "note": "DN"},
        {"name": "RMSE, bicubic", "value": f"{bicubic:.1f}", "note": "DN"},
        {"name": "Change of RMSE", "value": change(bicubic, rmse), "note": ""},
    ]


def _run_tiles(log: Sequence[Mapping[str, Any]], parameters: int) -> list[dict[str, str]]:
    """Size and length of the training."""
    tiles = [{"name": "Parameters", "value": f"{parameters:,}", "note": ""}]
    if log:
        tiles.append({"name": "Steps", "value": f"{int(log[-1]['step']):,}", "note": ""})
    if log and "seconds" in log[-1]:
        tiles.append({"name": "Training time", "value": duration(log[-1]["seconds"]), "note": ""})
    return tiles


def _training_notes(
    workdir: pathlib.Path, experiment: Mapping[str, Any], log: Sequence[Mapping[str, Any]]
) -> list[str]:
    """What the curves do not show: starting weights, averaging, the best validation."""
    notes = []
    init = (inputs.read_json(workdir / folder.DATA) or {}).get("init")
    if init:
        notes.append(f"Started from the weights of {init['path']} (SHA-256 {init['digest']}...).")
    if decay := (experiment.get("run") or {}).get("ema"):
        notes.append(
            f"Validations and saved models have an exponential moving average of the weights, "
            f"decay {decay:g}."
        )
    between = [
        (entry["validation_rmse"], entry["step"])
        for entry in log
        if entry.get("validation_rmse") is not None and "validation_rmse_bicubic" not in entry
    ]
    if len(between) > 1 and (workdir / folder.BEST).exists():
        rmse, step = min(between)
        notes.append(
            f"Lowest validation RMSE {number(rmse)} DN after {step} of {between[-1][1]} steps: "
            f"{folder.BEST}; {folder.MODEL} has the last weights."
        )
    return notes


def _metric_rows(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Mean over bands of each metric by method, and the change from bicubic to model."""
    from kerass2.figures import change

    methods, units = evaluation["methods"], evaluation.get("units", {})
    rows = []
    for name, found in methods["model"].items():
        before, after = methods["bicubic"][name]["mean"], found["mean"]
        row = {
            "name": name,
            "unit": units.get(name, "").replace("1", ""),
            "values": [number(method[name]["mean"]) for method in methods.values()],
            "change": "–",
            "verdict": "",
        }
        if before is not None and after is not None:
            error = name.startswith(SMALLER_IS_BETTER)
            better = after < before if error else after > before
            row["change"] = change(before, after) if error else difference(before, after)
            row["verdict"] = "" if before == after else "good" if better else "bad"
        rows.append(row)
    return rows


def _band_tables(methods: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A table of methods and bands for each metric that has bands."""
    tables = []
    for name, values in methods["model"].items():
        bands = [band for band in values if band != "mean"]
        rows = [
            {"method": method, "values": [number(found[name][band]) for band in bands]}
            for method, found in methods.items()
        ]
        if bands:
            tables.append({"name": name, "bands": bands, "rows": rows})
    return tables


def _commands(
    workdir: pathlib.Path, output: pathlib.Path, evaluation: Mapping[str, Any], data: str | None
) -> list[str]:
    """The commands behind the page, as far as the work folder tells."""
    run = inputs.read_json(workdir / folder.DATA) or {}
    training = [str(run["command"])] if "command" in run else []
    if data is not None:
        return [*training, f"python -m kerass2.report {workdir} --data {data} -o {output}"]
    evaluated = f"--data {evaluation['data']} " if "data" in evaluation else ""
    return [
        *training,
        f"python -m kerass2.evaluate {workdir} {evaluated}--split {evaluation['split']}",
        f"python -m kerass2.report {workdir} -o {output}",
    ]


def _patches_caption(shown: int, source: Source) -> str:
    from kerass2 import colours

    total = len(source)
    which = (
        f"All {total} patches"
        if shown == total
        else f"{shown} of {total} patches, evenly spaced over the split, none chosen by its score"
    )
    (target,) = source.spec.targets.values()
    _, bands = colours.choose(target.bands)[-1]
    return (
        f"{which}. Red, green and blue are {', '.join(bands)}. Each patch has one stretch for all "
        "its pictures, 2 to 98 % of the truth. Error maps: root of the mean square over bands; "
        "both maps of a patch share one scale."
    )


def read_log(path: pathlib.Path) -> list[dict[str, Any]]:
    """Lines of log.jsonl that hold a step; empty where there is no file.

    A last line that a crash cut off is left out; damage before it is an error.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    log = []
    for position, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except ValueError as error:
            if position == len(lines):
                break
            raise DataError(f"{path}, line {position}: damaged, expected JSON: {error}") from None
        if isinstance(entry, dict) and "step" in entry:
            log.append(entry)
    return log


def number(value: float | None) -> str:
    """Four significant digits."""
    return "–" if value is None else f"{value:#.4g}".rstrip(".")


def difference(before: float, after: float) -> str:
    """Difference with its sign."""
    return f"{after - before:+.3g}".replace("-", "−")


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values of nested settings."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "none" if value is None else str(value)


@click.command(cls=cli.Command)
@click.argument("workdir", type=click.Path(path_type=pathlib.Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=pathlib.Path), help="Default: WORKDIR/report.html."
)
@click.option("--data", help="Data set to show; default: the one of evaluation.json, which stays.")
@click.option(
    "--patches", default=4, show_default=True, type=click.IntRange(min=0), help="Patches to show."
)
def main(
    workdir: pathlib.Path, output: pathlib.Path | None, data: str | None, patches: int
) -> None:
    """Write one self-contained HTML page about the training run in WORKDIR."""
    click.echo(f"wrote {build_report(workdir, output, data=data, num_patches=patches)}")


if __name__ == "__main__":
    cli.run(main)
