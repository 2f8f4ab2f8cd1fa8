"""`python -m benchmarks learning_rate`: the plain and the modified linear rule, by batch size.

Each rule trains the same network on as many patches, in batches from the reference batch up: k
times the batch, k times the rate, 1/k of the steps.
  linear            rate x k from the first step on (Goyal et al. 2017 without its warm-up)
  linear, warm-up   the same, reached in equal steps over the first tenth
  modified linear   rate x k, halved every n/k steps (Zhang et al. 2020), n a quarter of the steps
                    at the reference batch

The super-resolution paper reports that the plain rule often makes the loss explode. Here a run
counts as exploded when its loss or gradient is no longer finite, or when it ends above the loss
that it began with.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
import numpy as np

from benchmarks import options, record

RULES = ("linear", "linear, warm-up", "modified linear")
COLOURS = {"linear": "#b5532a", "linear, warm-up": "#c9952b", "modified linear": "#1f6aa5"}
INK, GRID = "#1b2328", "#dde2e5"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@options.compact
@options.data
@click.option(
    "--batches", default="16,32,64,128,256", show_default=True, help="The first is the reference."
)
@click.option(
    "--rate",
    default=1e-3,
    type=click.FloatRange(min=0, min_open=True),
    show_default=True,
    help="Learning rate at the reference batch.",
)
@options.count("--patches", 8192, "Patches that each run sees.")
@options.settings_of("model.options.filters=24", "model.options.blocks=4", "run.precision=float32")
@record.output_options("learning_rate.jsonl")
def main(
    experiment: str,
    data: str | None,
    batches: str,
    rate: float,
    patches: int,
    settings: tuple[str, ...],
    output: pathlib.Path,
) -> None:
    """Train by each rule at each batch size, and draw what comes out."""
    try:
        sizes = [int(size) for size in batches.split(",")]
    except ValueError:
        raise click.BadParameter(f"--batches {batches}: whole numbers are needed") from None
    if patches < 4 * max(sizes):
        raise click.BadParameter(f"--patches {patches}: at least 4 steps of {max(sizes)} each")
    given = ["--data", data] if data else []
    lines = []
    for rule in RULES:
        for size in sizes:
            changes = rule_settings(rule, size, sizes[0], rate, patches)
            chosen = [f"--set={setting}" for setting in (*settings, *changes)]
            command = [experiment, *given, "--steps", str(patches // size), *chosen]
            found = summarise(*fit(command))
            what: dict[str, Any] = {"experiment": experiment, "settings": settings}
            what |= {"data": data or "sample", "rule": rule, "batch": size, "rate": rate}
            what["k"] = size / sizes[0]
            lines.append(record.append(output, "learning rate rule", **what, **found))
            click.echo(describe(rule, size, found))
    draw(lines, output.with_suffix(".svg"))
    click.echo(f"wrote {output} and {output.with_suffix('.svg')}")


def rule_settings(
    rule: str, batch: int, reference: int, rate: float, patches: int
) -> Iterator[str]:
    """What `--set` takes for a rule at a batch size."""
    steps = patches // batch
    yield f"run.global_batch={batch}"
    yield f"optimizer.learning_rate={rate}"
    yield f"optimizer.reference_batch={reference}"
    yield "run.log_every=1"
    if rule == "modified linear":
        yield "optimizer.schedule=modified_linear"
        yield f"optimizer.schedule_options.halve_every={max(1, patches // reference // 4)}"
    else:
        yield "optimizer.schedule=linear"
        if rule == "linear, warm-up":
            yield f"optimizer.schedule_options.warmup_steps={max(1, steps // 10)}"


def fit(arguments: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """Lines of log.jsonl of a training, and its error: "" where it came to its end.

    Raises:
        click.ClickException: it failed for another reason than its loss.
    """
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder) / "work"
        command = [sys.executable, "-m", "kerass2.fit", *arguments, "--workdir", str(workdir)]
        result = subprocess.run(command, capture_output=True, text=True)
        error = result.stderr.strip().splitlines()[-1] if result.returncode else ""
        if result.returncode and " at step " not in error:
            raise click.ClickException(f"{' '.join(command)}: {error}")
        log = (workdir / "log.jsonl").read_text().splitlines()
        return [json.loads(line) for line in log], error


def summarise(log: Sequence[Mapping[str, Any]], error: str) -> dict[str, Any]:
    """What a run came to: loss curve, its ends, its peak, validation RMSE, and whether it exploded.

    Args:
        log: lines of log.jsonl.
        error: the training's last line on stderr where it failed.
    """
    losses = [float(line["loss"]) for line in log if "loss" in line]
    tail = losses[-max(1, len(losses) // 10) :]
    start, end = (losses[0], float(np.mean(tail))) if losses else (None, None)
    last = log[-1] if log else {}
    exploded = bool(error) or start is None or end is None or not end < start
    every = max(1, len(losses) // 200)  # a curve, not an archive
    return {
        "steps": len(losses),
        "first_loss": start,
        "last_loss": end,
        "peak_loss": max(losses, default=None),
        "exploded": exploded,
        "error": error,
        "validation_rmse": None if error else last.get("validation_rmse"),
        "validation_rmse_bicubic": last.get("validation_rmse_bicubic"),
        "losses": [[step + 1, losses[step]] for step in range(0, len(losses), every)],
    }


def describe(rule: str, batch: int, found: Mapping[str, Any]) -> str:
    """A run in one line."""
    if found["error"]:
        return f"{rule}, batch {batch}: EXPLODED: {found['error']}"
    peak = found["peak_loss"] / found["first_loss"]
    return (
        f"{rule}, batch {batch}: {'EXPLODED, ' if found['exploded'] else ''}"
        f"loss {found['first_loss']:.5f} to {found['last_loss']:.5f} in {found['steps']} steps "
        f"(peak {peak:.2f} times the first), validation RMSE {found['validation_rmse']:.1f} DN"
    )


def draw(lines: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Left: validation RMSE against batch size. Right: loss curves of the largest batch.

    Exploded runs are crosses on the upper edge.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "kerass2", "font.size": 9, "text.color": INK}):
        figure = Figure(figsize=(9.0, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        largest = max(line["batch"] for line in lines)
        for rule in RULES:
            runs = [line for line in lines if line["rule"] == rule]
            _draw_scores(left, rule, runs)
            for line in runs:
                if line["batch"] == largest and line["losses"]:
                    right.plot(*np.transpose(line["losses"]), color=COLOURS[rule], label=rule)
        bicubic = [n for line in lines if (n := line["validation_rmse_bicubic"])]
        if bicubic:
            left.axhline(bicubic[0], color=INK, linewidth=1, linestyle="--", label="bicubic")
        left.set_xscale("log", base=2)
        left.set_yscale("log")
        right.set_yscale("log")
        left.set_title("Validation RMSE [DN] by batch size", loc="left", fontsize=10)
        right.set_title(f"Training loss at batch {largest}", loc="left", fontsize=10)
        left.set_xlabel("patches a step")
        right.set_xlabel("step")
        name_ticks(left.xaxis, [line["batch"] for line in lines])
        for axes in (left, right):
            name_ticks(axes.yaxis)
            axes.grid(color=GRID, linewidth=0.7)
            axes.tick_params(which="both", colors=INK, length=0, labelsize=8.5)
            axes.spines[:].set_visible(False)
        left.legend(frameon=False, fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def name_ticks(axis: Any, values: Sequence[float] | None = None) -> None:
    """Plain numbers on a logarithmic axis: these, or 1, 2 and 5 of each decade."""
    from matplotlib import ticker

    locator = ticker.FixedLocator(sorted(set(values))) if values else None
    axis.set_major_locator(locator or ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))


def _draw_scores(axes: Any, rule: str, runs: Sequence[Mapping[str, Any]]) -> None:
    """Scores of a rule; exploded runs apart, whose score says nothing."""
    sound = [(line["batch"], line["validation_rmse"]) for line in runs if not line["exploded"]]
    if sound:
        axes.plot(*np.transpose(sound), "o-", color=COLOURS[rule], label=rule, linewidth=1.8)
    for line in runs:
        if line["exploded"]:
            where = axes.get_xaxis_transform()
            axes.plot(line["batch"], 0.97, "x", color=COLOURS[rule], transform=where, clip_on=False)
            axes.annotate("exploded", (line["batch"], 0.9), xycoords=where, fontsize=7, ha="center")
