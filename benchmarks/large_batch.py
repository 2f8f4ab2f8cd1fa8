"""`python -m benchmarks large_batch`: how large a batch a classifier bears, by rule.

A small ResNet on a made-up BigEarthNet of 12 bands, trained for as many epochs by each rule at each
global batch; a batch is computed in equal parts of the smallest one (run.accumulation_steps), each
normalised by itself as if it were a rank's.
  plain    SGD, rate 0.1 x batch / 256 from the first step on, a tenth, a hundredth and a thousandth
           of it from 30, 60 and 80 of 100 parts on
  warm-up  the same, reached in equal steps from 0.1 over the first 5 of 100 parts, as in the paper
  lars     LARS as published (You et al. 2017): rate 0.4 x batch / 256 after as long a warm-up, then
           falling with the square of what is left; decay inside the trust ratio

A run breaks where its loss or gradient is no longer finite or ends above its beginning, or where
its average precision on the validation split is below 0.9 of the plain rule's at the smallest
batch. Larger batches make fewer steps of the same patches: to break may also mean that there were
too few. Losses of SGD hold the L2 term, which LARS has as its decay instead: between rules compare
their course, not their height.
"""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import click
import numpy as np

from benchmarks import classification, classification_data, learning_rate, options, record
from benchmarks.learning_rate import GRID, INK

RULES = ("plain", "warm-up", "lars")
COLOURS = {"plain": "#b5532a", "warm-up": "#c9952b", "lars": "#1f6aa5"}
# Of the plain rule's average precision at the smallest batch, what a run has to reach.
ENOUGH = 0.9
SCORES = ("validation_f1", "validation_f1_macro", "validation_ap", "validation_ap_macro")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--count", default=20_000, type=click.IntRange(min=6), show_default=True, help="Patches."
)
@options.edge
@options.count("--epochs", 30)
@click.option(
    "--batches",
    default="64,256,1024,4096",
    show_default=True,
    help="The first is what is computed at once; it divides the others.",
)
@options.settings_of("model.options.depth=10", "model.options.width=8", "run.precision=float32")
@options.note
@options.folder
@record.output_options("large_batch.jsonl")
def main(
    count: int,
    edge: int,
    epochs: int,
    batches: str,
    settings: tuple[str, ...],
    note: str,
    folder: pathlib.Path | None,
    output: pathlib.Path,
) -> None:
    """Train by each rule at each global batch, and draw what comes out."""
    from data_pipelines import store

    sizes = parse_batches(batches)
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        root = (folder or pathlib.Path(temporary)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        data = classification_data.make(root, count, edge)
        patches = store.read_manifest(data).num_examples("train")
        if patches < max(sizes):
            raise click.BadParameter(
                f"--batches {batches}: {patches} patches to train on are no step of {max(sizes)}"
            )
        for batch in sizes:
            for rule in RULES:
                chosen = [*settings, *rule_settings(rule, batch, sizes[0], patches, epochs)]
                command = [classification.EXPERIMENT, "--data", str(data)]
                log, error = learning_rate.fit([*command, *(f"--set={each}" for each in chosen)])
                found = summarise(log, error, batch / patches)
                what: dict[str, Any] = {"rule": rule, "batch": batch, "k": batch / 256}
                what |= {"train": patches, "edge": edge, "epochs": epochs, "settings": settings}
                found["broken"] = is_broken(found, lines)
                lines.append(record.append(output, "large batch", **what, note=note, **found))
                click.echo(describe(lines[-1]))
    draw(lines, output.with_suffix(".svg"))
    for rule in RULES:
        broken = [line["batch"] for line in lines if line["rule"] == rule and line["broken"]]
        click.echo(f"{rule}: breaks at {', '.join(map(str, broken)) or 'none of these batches'}")
    click.echo(f"wrote {output} and {output.with_suffix('.svg')}")


def parse_batches(text: str) -> list[int]:
    """Global batches in ascending order.

    Raises:
        click.BadParameter: no whole numbers, or the first does not divide the others.
    """
    try:
        sizes = sorted({int(size) for size in text.split(",")})
    except ValueError:
        raise click.BadParameter(f"--batches {text}: whole numbers are needed") from None
    if sizes[0] < 1 or any(size % sizes[0] for size in sizes):
        raise click.BadParameter(f"--batches {text}: {sizes[0]} does not divide the others")
    return sizes


def rule_settings(rule: str, batch: int, part: int, patches: int, epochs: int) -> list[str]:
    """What `--set` takes for a rule at a global batch that is computed in parts of `part`."""
    chosen = classification.schedule(patches, batch, epochs)
    options = json.loads(chosen.pop().partition("=")[2])
    further = []
    if rule == "plain":
        options["warmup_steps"] = 0
    elif rule == "lars":
        options = {"warmup_steps": options["warmup_steps"], "power": 2.0}
        further = ["optimizer.name=lars", "optimizer.schedule=polynomial"]
        further += ["optimizer.learning_rate=0.4", "optimizer.options.weight_decay=0.0005"]
        further += ["model.options.l2=0.0"]
    return [
        *chosen,
        f"optimizer.schedule_options={json.dumps(options)}",
        f"run.accumulation_steps={batch // part}",
        "run.log_every=1",
        *further,
    ]


def summarise(log: Sequence[Mapping[str, Any]], error: str, epochs_a_step: float) -> dict[str, Any]:
    """What a run came to: its loss against epochs, its scores, and whether it exploded.

    Args:
        log: lines of log.jsonl.
        error: the training's last line on stderr where it failed.
        epochs_a_step: of the training split.
    """
    losses = [float(line["loss"]) for line in log if "loss" in line]
    every = max(1, len(losses) // 200)  # a curve, not an archive
    curve = [
        [round(epochs_a_step * (start + every), 3), float(np.mean(losses[start : start + every]))]
        for start in range(0, len(losses) - every + 1, every)
    ]
    last = log[-1] if log else {}
    exploded = bool(error) or len(curve) < 2 or not curve[-1][1] < curve[0][1]
    scores = {name: None if error else last.get(name) for name in SCORES}
    return {"steps": len(losses), "exploded": exploded, "error": error, **scores, "losses": curve}


def is_broken(found: Mapping[str, Any], before: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a run is far below the first one of all, or exploded."""
    if found["exploded"] or found["validation_ap"] is None:
        return True
    base = before[0]["validation_ap"] if before else found["validation_ap"]
    return base is None or bool(found["validation_ap"] < ENOUGH * base)


def describe(line: Mapping[str, Any]) -> str:
    """A run in one line."""
    name = f"{line['rule']}, batch {line['batch']}, {line['steps']} steps"
    if line["error"]:
        return f"{name}: BROKEN: {line['error']}"
    word = "BROKEN: " if line["broken"] else ""
    return (
        f"{name}: {word}loss {line['losses'][0][1]:.3f} to {line['losses'][-1][1]:.3f}, F1 "
        f"{line['validation_f1']:.3f} (macro {line['validation_f1_macro']:.3f}), average precision "
        f"{line['validation_ap']:.3f}"
    )


def draw(lines: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Loss by epoch, a panel a rule and a curve a batch; at the right F1 by batch.

    Runs that broke are dashed, and crosses at the right.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "kerass2", "font.size": 9, "text.color": INK}):
        figure = Figure(figsize=(12.0, 3.2), layout="constrained")
        *panels, scores = figure.subplots(1, len(RULES) + 1)
        for axes, rule in zip(panels, RULES, strict=True):
            _draw_losses(axes, [line for line in lines if line["rule"] == rule])
            axes.set_title(f"Loss, {rule}", loc="left", fontsize=10)
            axes.set_xlabel("epoch")
        for rule in RULES:
            _draw_scores(scores, rule, [line for line in lines if line["rule"] == rule])
        scores.set_title("F1 (macro dotted) by global batch", loc="left", fontsize=10)
        scores.set_xscale("log", base=2)
        learning_rate.name_ticks(scores.xaxis, [line["batch"] for line in lines])
        scores.set_ylim(bottom=0)
        scores.legend(frameon=False, fontsize=8)
        top = max((loss for line in lines for _, loss in line["losses"][:1]), default=1.0)
        for axes in panels:
            axes.set_ylim(0, 1.3 * top)
            axes.legend(frameon=False, fontsize=8)
        for axes in (*panels, scores):
            axes.grid(color=GRID, linewidth=0.7)
            axes.tick_params(which="both", colors=INK, length=0, labelsize=8.5)
            axes.spines[:].set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _draw_losses(axes: Any, runs: Sequence[Mapping[str, Any]]) -> None:
    """One curve a batch, the darker the larger."""
    for number, line in enumerate(runs, 1):
        if line["losses"]:
            axes.plot(
                *np.transpose(line["losses"]),
                color=COLOURS[line["rule"]],
                alpha=0.25 + 0.75 * number / len(runs),
                linestyle="--" if line["broken"] else "-",
                linewidth=1.2,
                label=str(line["batch"]),
            )


def _draw_scores(axes: Any, rule: str, runs: Sequence[Mapping[str, Any]]) -> None:
    """F1 of a rule by batch; 0 where there is none."""
    batches = [line["batch"] for line in runs]
    for key, style, label in (("validation_f1", "-", rule), ("validation_f1_macro", ":", None)):
        values = [line[key] or 0.0 for line in runs]
        axes.plot(batches, values, style, color=COLOURS[rule], label=label, linewidth=1.6)
        for line, value in zip(runs, values, strict=True):
            axes.plot(line["batch"], value, "x" if line["broken"] else "o", color=COLOURS[rule])
