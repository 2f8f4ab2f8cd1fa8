"""`python -m benchmarks step`: what the loop, the ranks and the precision cost or bring, on an in-memory batch.

Three ratios, each from measurements that take turns in one run:
  loop over bare          the package's loop under single, against a bare tf.function step with model.fit's parts
  efficiency              2 ranks of one core each, against twice one rank of one core
  bfloat16 over float32   the loop in both precisions
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import click

from benchmarks import record
from kerass2 import config

BLOCK = 5  # steps timed together
WARM_UP = 3  # steps before the first block of a model


@click.command()
@click.option("--experiment", default="superres_20m", show_default=True, help="Model and precision policy.")
@click.option("--batch", default=16, show_default=True, help="Patches a step and rank.")
@click.option("--patch", default=32, show_default=True, help="Pixels along a side of a patch at 10 m.")
@click.option("--rounds", default=5, show_default=True, help="Turns that each variant takes.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="As in kerass2.fit.")
@click.option("-o", "--output", type=click.Path(path_type=pathlib.Path), help="Record to append to.")
def main(
    experiment: str, batch: int, patch: int, rounds: int, settings: tuple[str, ...], output: pathlib.Path | None
) -> None:
    """Measure the training step on this machine."""
    output = output or pathlib.Path("benchmarks/results/local/step.jsonl")
    chosen = config.override(config.load(experiment), settings)
    common = {"experiment": chosen.to_json(), "batch": batch, "patch": patch, "rounds": rounds}
    what = {"model": chosen.model.name, "batch": batch, "patch": patch}
    throughputs: dict[str, float] = {}
    for precision in ("float32", "bfloat16"):
        case = {**common, "precision": precision}
        found = _alone({**case, "kind": "loop_and_bare"})
        ratio = [bare / loop for bare, loop in zip(found["bare"], found["loop"], strict=True)]
        throughputs[precision] = batch / record.figure(found["loop"], "s")["median"]
        _report(output, "loop over bare step", ratio, precision, what)
        for strategy in ("horovod", "multiworker"):
            ratio = _efficiency(strategy, case)
            _report(output, f"efficiency of 2 ranks, {strategy}", ratio, precision, what)
    found = _alone({**common, "precision": "float32", "kind": "precisions"})
    ratio = [a / b for a, b in zip(found["float32"], found["bfloat16"], strict=True)]
    _report(output, "bfloat16 over float32", ratio, "both", what)
    for precision, value in throughputs.items():
        click.echo(f"{precision}: {value:.1f} patches/s with all cores")


def _report(output: pathlib.Path, name: str, ratio: list[float], precision: str, what: dict[str, Any]) -> None:
    line = record.append(output, name, precision=precision, **what, ratio=record.figure(ratio, "1", warm_up=1))
    low, high = line["ratio"]["quartiles"]
    click.echo(f"{name}, {precision}: {line['ratio']['median']:.3f} ({low:.3f} to {high:.3f})")


def _efficiency(strategy: str, case: dict[str, Any]) -> list[float]:
    """Throughput of two ranks of one core each over twice that of one rank on one core, turn by turn."""
    core = min(os.sched_getaffinity(0))
    ratios = []
    for turn in range(case["rounds"] + 1):
        one = _alone({**case, "kind": "loop", "rounds": 2, "strategy": "single"}, core=core)["loop"]
        launcher = ["-m", "strategies.launch", "--strategy", strategy, "--workers", "2", "--"]
        two = _ranks([sys.executable, *launcher], {**case, "kind": "loop", "rounds": 2, "strategy": strategy})["loop"]
        if turn:  # the first turn warms caches
            ratios.append(min(one) / min(two))
    return ratios


def _alone(case: dict[str, Any], core: int | None = None) -> dict[str, Any]:
    """The measurements of one process, on one core if given."""
    return _ranks([] if core is None else ["taskset", "-c", str(core)], {"strategy": "single", **case})


def _ranks(prefix: list[str], case: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "seconds.json"
        command = [*prefix, sys.executable, "-m", "benchmarks.step", json.dumps({**case, "output": str(path)})]
        subprocess.run(command, check=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"})
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def rank_main(case: dict[str, Any]) -> None:
    """One rank: time blocks of steps of each variant in turn; rank 0 writes seconds a step."""
    import strategies

    strategy = strategies.get(case["strategy"])
    both = {"float32": "float32", "bfloat16": "bfloat16"}
    builders = {
        "loop": {"loop": (_build_loop, case["precision"])},
        "loop_and_bare": {"bare": (_build_bare, case["precision"]), "loop": (_build_loop, case["precision"])},
        "precisions": {name: (_build_loop, precision) for name, precision in both.items()},
    }[case["kind"]] if "precision" in case else {}
    variants = {name: build(strategy, case, precision) for name, (build, precision) in builders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run(WARM_UP)
    for _ in range(case["rounds"]):
        for name, run in variants.items():
            begin = time.perf_counter()
            run(BLOCK)
            seconds[name].append((time.perf_counter() - begin) / BLOCK)
    if strategy.is_chief:
        pathlib.Path(case["output"]).write_text(json.dumps(seconds))


def _make(strategy: Any, case: dict[str, Any], precision: str) -> tuple[Any, Any, Any]:
    """Model, optimizer and one batch in memory."""
    import numpy as np
    import tensorflow as tf

    from kerass2 import models, optimizers
    from kerass2.precision import POLICIES

    experiment = config.from_json(case["experiment"])
    with strategy.scope():
        model = models.build(experiment.model.name, dtype=POLICIES[precision], **experiment.model.options)
        optimizer = optimizers.build(
            experiment.optimizer, precision=precision, global_batch=128, num_steps=10**6, steps_per_epoch=1000
        )
        optimizer.build(model.trainable_variables)
    strategy.start(model, optimizer)
    rng = np.random.default_rng(strategy.rank)

    def draw(size: int, bands: int) -> Any:
        return tf.constant(rng.random((case["batch"], size, size, bands)), tf.float32)

    size = case["patch"]
    batch = {
        "inputs": {"gsd10": draw(size, 4), "gsd20": draw(size // 2, 6)},
        "targets": {"superres_20m": draw(size, 6)},
    }
    return model, optimizer, batch


def _build_loop(strategy: Any, case: dict[str, Any], precision: str) -> Any:
    """The package's own loop, logging to a scratch folder as fit does."""
    import tensorflow as tf

    from kerass2 import logs, losses, train
    from kerass2.steps.tensorflow import build_step

    model, optimizer, batch = _make(strategy, case, precision)
    step = build_step(strategy, model, optimizer, losses.get("l1"), case["batch"] * strategy.world_size)
    dataset = strategy.distribute(lambda rank, size: tf.data.Dataset.from_tensors(batch).repeat())
    batches = iter(dataset)

    def run(steps: int) -> None:
        train.train(
            step=step,
            batches=batches,
            first_step=0,
            num_steps=steps,
            checkpoint_every=10**9,
            save=lambda done: None,
            log=logs.NoLog(),
        )

    return run


def _build_bare(strategy: Any, case: dict[str, Any], precision: str) -> Any:
    """What one writes by hand in TensorFlow: tape, gradient, apply, on one process."""
    import tensorflow as tf

    model, optimizer, batch = _make(strategy, case, precision)

    @tf.function
    def step(inputs: Any, target: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.abs(target - model(inputs, training=True)["superres_20m"]))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    def run(steps: int) -> None:
        for _ in range(steps):
            float(step(batch["inputs"], batch["targets"]["superres_20m"]))

    return run


if __name__ == "__main__":
    rank_main(json.loads(sys.argv[1]))
