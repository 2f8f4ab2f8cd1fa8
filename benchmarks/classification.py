"""`python -m benchmarks classification`: what a classifier learns from a made-up BigEarthNet.

A small ResNet is trained by the paper's schedule, compressed from 100 epochs to a few: rate
0.1 x batch / 256, a tenth, a hundredth and a thousandth of it from 30, 60 and 80 of 100 parts on.
Once on 12 bands, once on red, green and blue, and on 12 bands with each remedy for rare classes.
All take as many steps. They are scored on tiles that none has seen, beside a prior that knows how
frequent each class is and nothing of a patch; at a threshold of 0.5, and with thresholds tuned for
each class on the validation split.

The pixels are made up: what the numbers say is how the methods compare, not how well land cover is
told from real ones.
"""

from __future__ import annotations

import json
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from benchmarks import classification_data, options, record

EXPERIMENT = "bigearthnet_ms_compact"
# Method -> what it changes of the experiment.
VARIANTS: dict[str, tuple[str, ...]] = {
    "multispectral": (),
    "rgb": ("model.options.bands=rgb",),
    "weighted": ("loss_options.positive_weights=inverse_sqrt",),
    "oversampled": ("data.oversample=0.02",),
}
PRIOR = "prior"
# Of 100 epochs in the paper: those of warm-up, and those after which the rate is lowered.
WARM_UP, DROPS = 5, (30, 60, 80)
# Column of the table -> where its number stands in the scores.
COLUMNS = {
    "precision": ("micro", "precision"),
    "recall": ("micro", "recall"),
    "F1": ("micro", "f1"),
    "F1 macro": ("macro", "f1"),
    "AP": ("average_precision", "micro"),
    "AP macro": ("average_precision", "macro"),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--count", default=20_000, type=click.IntRange(min=6), show_default=True, help="Patches."
)
@options.edge
@options.count("--epochs", 20)
@options.count("--batch", 64)
@options.settings_of("model.options.width=16", "run.precision=float32")
@options.note
@options.folder
@record.output_options("classification.jsonl")
def main(
    count: int,
    edge: int,
    epochs: int,
    batch: int,
    settings: tuple[str, ...],
    note: str,
    folder: pathlib.Path | None,
    output: pathlib.Path,
) -> None:
    """Train every variant, score them together, and write a table."""
    from data_pipelines import store

    with tempfile.TemporaryDirectory() as temporary:
        root = (folder or pathlib.Path(temporary)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        data = classification_data.make(root, count, edge)
        patches = store.read_manifest(data).num_examples("train")
        chosen = (*settings, *schedule(patches, batch, epochs))
        what: dict[str, Any] = {"patches": count, "train": patches, "edge": edge}
        what |= {"epochs": epochs, "batch": batch, "settings": settings, "note": note}
        workdirs = {}
        for name, further in VARIANTS.items():
            workdirs[name] = root / f"{data.name}-{name}"
            seconds = train(data, workdirs[name], [*chosen, *further])
            record.append(output, "classification training", **what, method=name, seconds=seconds)
            click.echo(f"{name}: trained in {seconds:.0f} s")
        lines = []
        for tuned in (False, True):
            found = evaluate(data, workdirs, root / f"{data.name}.json", tuned=tuned)
            for name in (PRIOR, *VARIANTS):
                scores = summarise(found, name)
                lines.append(
                    record.append(
                        output, "classification", **what, method=name, tuned=tuned, **scores
                    )
                )
    table = tabulate(lines)
    output.with_suffix(".md").write_text(table)
    click.echo(table)


def schedule(patches: int, batch: int, epochs: int) -> list[str]:
    """What `--set` takes for the paper's schedule in so many epochs.

    In steps, so that the longer epoch of oversampling is not a longer training.
    """
    steps = patches // batch * epochs
    options = {
        "warmup_steps": round(steps * WARM_UP / 100),
        "drop_steps": [max(1, round(steps * drop / 100)) for drop in DROPS],
    }
    return [
        f"run.global_batch={batch}",
        f"run.steps={steps}",
        "run.epochs=null",
        f"optimizer.schedule_options={json.dumps(options)}",
    ]


def train(data: pathlib.Path, workdir: pathlib.Path, settings: Sequence[str]) -> float:
    """Train one variant anew; the seconds that it took, start and last validation included."""
    command = [EXPERIMENT, "--data", str(data), "--workdir", str(workdir), "--overwrite"]
    begin = time.monotonic()
    run("fit", *command, *(f"--set={setting}" for setting in settings))
    return time.monotonic() - begin


def evaluate(
    data: pathlib.Path,
    workdirs: Mapping[str, pathlib.Path],
    output: pathlib.Path,
    *,
    tuned: bool,
    split: str = "test",
) -> dict[str, Any]:
    """All variants on one split: kerass2.evaluate's JSON, with each method's own name."""
    (first, main_workdir), *others = workdirs.items()
    also = [f"--also={name}={workdir}" for name, workdir in others]
    options = ["--data", str(data), f"--split={split}", "-o", str(output), "--overwrite"]
    run("evaluate", str(main_workdir), *also, *options, *(["--tune"] if tuned else []))
    found: dict[str, Any] = json.loads(output.read_text())
    found["methods"] = {
        first if name == "model" else name: scores for name, scores in found["methods"].items()
    }
    return found


def run(command: str, *arguments: str) -> None:
    """A command of kerass2 in a process of its own.

    Raises:
        click.ClickException: it failed; with the last line that it said.
    """
    line = [sys.executable, "-m", f"kerass2.{command}", *arguments]
    result = subprocess.run(line, capture_output=True, text=True)
    if result.returncode:
        said = result.stderr.strip().splitlines() or ["no word"]
        raise click.ClickException(f"{shlex.join(line)}: {said[-1]}")


def summarise(found: Mapping[str, Any], method: str) -> dict[str, Any]:
    """A method's scores for the record: those of the table, and F1 of each class by support."""
    scores = found["methods"][method]
    classes = scores["classes"]
    return {
        "tested": found["patches"],
        "scores": {column: scores[group][name] for column, (group, name) in COLUMNS.items()},
        "classes": {
            name: {key: classes[key][number] for key in ("support", "f1", "average_precision")}
            for number, name in enumerate(found["classes"])
        },
    }


def tabulate(lines: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a table for thresholds of 0.5, one for tuned ones, and what they were made of."""
    first = lines[0]
    texts = [
        "# Labels of a made-up BigEarthNet",
        f"{first['patches']:,} synthetic patches of {first['edge']} x {first['edge']} px, 12 bands,"
        f" 43 classes as rare as the published ones; {first['train']:,} to train on,"
        f" {first['tested']:,} to test on, on other tiles. {EXPERIMENT} with "
        f"{', '.join(first['settings'])}, {first['epochs']} epochs in batches of {first['batch']}."
        + (f" {first['note']}." if first["note"] else ""),
        "Made by `python -m benchmarks classification`; made-up pixels tell how methods compare, "
        "and nothing of real land cover.",
    ]
    for tuned in (False, True):
        kind = "tuned for each class on the validation split" if tuned else "0.5"
        rows = [f"| thresholds {kind} | " + " | ".join(COLUMNS) + " |"]
        rows.append("|---" + "|---:" * len(COLUMNS) + "|")
        for line in lines:
            if line["tuned"] == tuned:
                cells = (f"{line['scores'][column]:.3f}" for column in COLUMNS)
                rows.append(f"| {line['method']} | " + " | ".join(cells) + " |")
        texts.append("\n".join(rows))
    return "\n\n".join(texts) + "\n"
