"""`python -m kerass2.card MODEL_OR_WORKDIR -o DIR`: a trained model, packed with its model card.

Everything on a card is from the run's own records: experiment.json, data.json and log.jsonl beside
the model, the manifest of its data set, and evaluation*.json of whole scenes that it was not
trained on. Licences are from a table of scenes. kerass2/weights is made by this command.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import click

from data_pipelines.files import replacing
from data_pipelines.spec import DataError, json_text
from kerass2 import card_records as records
from kerass2 import cli, config, inputs, report, shipped
from kerass2 import workdir as folder

TEMPLATE = pathlib.Path(__file__).parent / "templates" / "card.md"


def build_card(
    file: pathlib.Path,
    *,
    sources: pathlib.Path,
    machine: str,
    curve: Sequence[pathlib.Path] = (),
    limits: Sequence[str] = (),
) -> dict[str, Any]:
    """All that a card says but for the packed file: JSON types.

    Args:
        file: the .keras file in its work folder.
        sources: table of scenes, see card_records.read_sources.
        machine: what it was trained on.
        curve: models of further runs, on less data.
        limits: known limits besides those that follow from the records.

    Raises:
        DataError: a record that is missing or does not fit, a scene without a row, or one trained
            on that its licence keeps for evaluation; levels mixed; a classifier.
    """
    table, task = records.read_sources(sources), inputs.read_task(file)
    if task == config.LABEL_TASK:
        raise DataError(
            f"{file}: gives labels; cards are for models that sharpen, and kerass2.report has a "
            "classifier's data, training and scores"
        )
    trained = records.read_training(file)
    own = [records.find_scene(table, scene, sources) for scene in trained["scenes"]]
    rows = [records.find_scene(table, scene, sources) for scene in records.seen(trained)]
    wrong = [row.scenes for row in rows if row.use != records.TRAINING]
    levels = sorted({row.level for row in own})
    if wrong or len(levels) != 1:
        raise DataError(
            f"{file}: trained on {', '.join(wrong) or 'levels ' + ', '.join(levels)}; expected "
            f"scenes of one level whose use is {records.TRAINING} in {sources}"
        )
    scores = records.read_scores(file, records.seen(trained))
    held_out = {
        scene: {"data": dataclasses.asdict(records.find_scene(table, scene, sources)), **values}
        for scene, values in scores.items()
    }
    data = [{**dataclasses.asdict(row), "number": rows.count(row)} for row in dict.fromkeys(rows)]
    return {
        "name": f"{task}_{levels[0]}",
        "task": task,
        "levels": levels,
        "trained": {**trained, "machine": machine},
        "data": data,
        "held_out": held_out,
        "curve": records.read_curve([*curve, file]) if curve else [],
        "limits": [*_limits(task, levels[0], trained, scores), *limits],
        "published": _published(file),
    }


def _limits(
    task: str, level: str, trained: Mapping[str, Any], scores: Mapping[str, Any]
) -> list[str]:
    """What the records themselves tell of limits."""
    from data_pipelines import cube

    gsd = cube.find_task(task).gsd
    worst = max(scores, key=lambda scene: records.ratio(scores[scene]))
    bands = [band for band in scores[worst]["methods"]["model"]["rmse"] if band != "mean"]
    band = max(bands, key=lambda name: records.ratio(scores[worst], name))
    number, init, unknown = len(trained["scenes"]), trained["init"], []
    if init and init["scenes"] is None:
        unknown = [
            f"It is not known which scenes {init['path']}, which it started from, was trained on: "
            "those scored may be among them."
        ]
    return [
        *unknown,
        f"Trained and scored one scale down (Wald's protocol: {gsd * gsd // 10} m to {gsd} m), "
        f"applied to {gsd} m: that bands relate to each other alike at both scales is an "
        "assumption, and no truth at 10 m tests it.",
        f"Trained on {trained['patches']} patches of {number} small scenes: land cover, seasons "
        "and illumination that they do not show are extrapolated to.",
        f"Trained on {level}: on products of the other level fine detail may be wrong; "
        "kerass2.predict warns of it.",
        f"Of the scenes scored the least gain is on {worst}: {records.ratio(scores[worst]):.2f} of "
        f"the cubic spline's RMSE ({band}: {records.ratio(scores[worst], band):.2f}).",
    ]


def _published(file: pathlib.Path) -> list[dict[str, Any]]:
    """Rows of published results that evaluations stand beside, each once."""
    rows: list[dict[str, Any]] = []
    for path in sorted(file.parent.glob("evaluation*.json")):
        for row in (inputs.read_json(path) or {}).get("published", {}).get("rows", ()):
            if row not in rows:
                rows.append(row)
    return rows


def render(card: Mapping[str, Any]) -> str:
    """The card for readers: markdown."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # markdown: what a table's cell must not hold is no part of these records
    )
    environment.filters |= {"number": report.number, "duration": report.duration}
    return environment.get_template(TEMPLATE.name).render(card=card, reference=records.REFERENCE)


def pack(file: pathlib.Path, card: Mapping[str, Any], output: pathlib.Path) -> pathlib.Path:
    """Write a model in float32, its card, and the card for readers; gives the model's path.

    Float32, since bfloat16 is slow where the processor does not have it; --precision bfloat16 of
    kerass2.predict takes it where it is fast. Weights are the same.
    """
    from kerass2 import models, networks
    from kerass2.job import Init

    model = networks.recast(inputs.load_model(file), "float32")
    path = output / f"{card['name']}.keras"
    folder.save_model(path, model)
    facts = {
        "file": path.name,
        "bytes": path.stat().st_size,
        "digest": Init.of(path).digest,
        "model": models.describe(model)["model"],
        "parameters": model.count_params(),
    }
    whole = {**facts, **card}
    for suffix, text in (
        (".json", json_text(whole)),
        (".md", render(json.loads(json_text(whole)))),
    ):
        with replacing(path.with_suffix(suffix)) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return path


@click.command(cls=cli.Command)
@click.argument("model", metavar="MODEL_OR_WORKDIR", type=click.Path(path_type=pathlib.Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=pathlib.Path),
    help="Folder for TASK_LEVEL.keras, .json and .md.",
)
@click.option(
    "--sources",
    type=click.Path(path_type=pathlib.Path),
    help="CSV of scenes: scenes, level, use, licence, attribution, source.  [default: the "
    "package's own]",
)
@click.option(
    "--curve",
    multiple=True,
    type=click.Path(path_type=pathlib.Path),
    help="Model or work folder of a run on less data, scored on the same scenes. Again for more.",
)
@click.option("--machine", help="What it was trained on; default: this machine.")
@click.option("--limit", "limits", multiple=True, help="A known limit to add. Again for more.")
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
def main(
    model: pathlib.Path,
    output: pathlib.Path,
    sources: pathlib.Path | None,
    curve: tuple[pathlib.Path, ...],
    machine: str | None,
    limits: tuple[str, ...],
    overwrite: bool,
) -> None:
    """Pack a trained model with a card of its data, training, scores and limits.

    Scores are taken from the evaluation*.json beside the model that are of whole scenes:
    kerass2.evaluate --whole lattice --data SCENE -o WORKDIR/evaluation-SCENE.json makes one.
    """
    file = inputs.find_model(model)
    card = build_card(
        file,
        sources=sources or shipped.SOURCES,
        machine=machine or records.describe_machine(),
        curve=[inputs.find_model(path) for path in curve],
        limits=limits,
    )
    there = output / f"{card['name']}.keras"
    if there.exists() and not overwrite:
        raise DataError(f"{there}: exists; give --overwrite to replace it and its card")
    path = pack(file, card, output)
    click.echo(f"wrote {path} ({path.stat().st_size:,} bytes), {path.stem}.json and {path.stem}.md")


if __name__ == "__main__":
    cli.run(main)
