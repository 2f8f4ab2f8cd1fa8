"""What is projected, from what is known of a system: its records first, then what is published.

Where neither says how long a step takes, it follows from its operations and the device's peak; each
number says what it rests on.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks import project_model as model
from benchmarks.systems import Curve, System

# Of a device's peak, what a step of 3 x 3 convolutions with 128 filters reaches: S2x in plain Keras
# 103 of a processor's 200 GFLOP/s.
SHARE_OF_PEAK = 0.5
# Paths of an all-reduce that a strategy takes, the one to prefer first.
PATHS = {
    "horovod": ("horovod-nccl", "horovod-gloo", "horovod-mpi"),
    "multiworker": ("multiworker-nccl", "multiworker-ring"),
}


@dataclasses.dataclass(frozen=True)
class Work:
    """A network as the papers train it, from `python -m kerass2.models`."""

    title: str
    """For readers."""
    batch: int
    """Patches of a rank and step, in the paper."""
    patch: int
    """Edge of a patch [px of 10 m]."""
    tensors: int
    """Gradients of a step."""
    parameters: int
    """That are trained, float32."""
    operations: int
    """Of a patch's forward pass; a step takes three times as many."""


WORKS = {
    "superres_20m": Work("S2x", 128, 32, 35, 1_810_215, 4_005_560_320),
    "superres_60m": Work("S6x", 32, 96, 35, 1_807_907, 57_750_847_488),
    "bigearthnet_ms": Work("ResNet-50", 64, 120, 161, 23_624_363, 2_584_224_000),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A network on a system, ready to be projected."""

    experiment: str
    """Of kerass2.configs."""
    title: str
    """For readers."""
    batch: int
    """Patches of a rank and step."""
    step: model.Step
    """What a rank does."""
    basis: str
    """Where the step's time comes from."""


def all_reduces(lines: Sequence[dict[str, Any]], path: str) -> list[tuple[int, float, float]]:
    """(ranks, bytes, seconds) of a path's single tensors, of two ranks and more."""
    return [
        (line["ranks"], float(line["bytes"]), line["seconds"]["median"])
        for line in lines
        if line["what"] == "allreduce"
        and line.get("path") == path
        and not line.get("set")
        and not line.get("settings")
        and line["ranks"] > 1
    ]


def steps(
    lines: Sequence[dict[str, Any]], experiment: str, strategy: str, precision: str
) -> list[dict[str, Any]]:
    """Lines of weak scaling."""
    wanted = {"what": "scaling", "experiment": experiment, "precision": precision, "mode": "weak"}
    wanted["strategy"] = strategy
    return [line for line in lines if all(line.get(key) == value for key, value in wanted.items())]


def find_path(lines: Sequence[dict[str, Any]], strategy: str) -> str | None:
    """The path of a strategy that has enough measurements to fit."""
    for path in PATHS[strategy]:
        if len({size for _, size, _ in all_reduces(lines, path)}) > 1:
            return path
    return None


def build_network(
    system: System, lines: Sequence[dict[str, Any]], strategy: str
) -> tuple[model.Network, str]:
    """Links of a system, and what they rest on.

    Measured all-reduces that fit into a node give the link inside, larger ones that between nodes;
    where there are none, the system's file does.

    Raises:
        ValueError: neither is there.
    """
    path = find_path(lines, strategy)
    samples = all_reduces(lines, path) if path else []
    found: dict[str, model.Link] = {}
    basis = []
    for between, fits in (("devices", True), ("nodes", False)):
        # A machine that is alone takes any number of ranks into its node.
        chosen = [s for s in samples if (s[0] <= system.node.devices or system.nodes == 1) == fits]
        given = system.find_link(between)
        if len({size for _, size, _ in chosen}) > 1:
            found[between] = model.fit_link(chosen)
            basis.append(f"between {between}: fitted to {len(chosen)} all-reduces by {path}")
        elif given:
            found[between] = model.Link(given.latency, 1e-9 / given.bandwidth)
            basis.append(
                f"between {between}: {given.name}, {given.bandwidth:g} GB/s, "
                f"{given.latency * 1e6:g} µs ({given.source})"
            )
    if not found:
        raise ValueError(
            f"{system.name}: nothing says what its links cost; expected all-reduces of {strategy} "
            "in its records, or [[link]] in its file"
        )
    inside = found.get("devices") or found["nodes"]
    network = model.Network(system.node.devices, inside, found.get("nodes"))
    if system.nodes == 1:
        network = dataclasses.replace(network, per_node=10**9, between=None)
    return network, "; ".join(basis)


def build_case(
    system: System,
    lines: Sequence[dict[str, Any]],
    experiment: str,
    strategy: str,
    precision: str,
    network: model.Network,
    share: float = SHARE_OF_PEAK,
) -> Case | str:
    """A network's step on a system; a sentence where nothing says how long it takes."""
    work = WORKS[experiment]
    empty = model.Step(1.0, model.fuse(tensor_sizes(work)))
    alone = [s for s in steps(lines, experiment, strategy, precision) if s["ranks"] == 1]
    # Of several the one whose ranks took turns the least: with the fewest cores each.
    alone.sort(key=lambda line: line.get("cores_each", 1))
    if alone:
        step = measured_step(system, alone[0], empty)
        batch = alone[0]["global_batch"]
        return Case(experiment, work.title, batch, step, f"one rank, measured in {precision}")
    curve = find_curve(system, experiment)
    if curve:
        step = fit_curve(curve, empty, network)
        return Case(
            experiment, work.title, curve.local_batch, step, "fitted to the published curve"
        )
    if system.device.peak_tflops is None:
        return (
            f"{work.title}: nothing says how long a step takes: neither a record of one rank in "
            f"{precision}, nor a published curve, nor the device's peak"
        )
    operations = 3 * work.operations * work.batch
    seconds = operations / (share * system.device.peak_tflops * 1e12)
    step = dataclasses.replace(empty, compute=seconds)
    basis = f"{operations / 1e12:.2f} TFLOP at {share:g} of the device's float32 peak, assumed"
    return Case(experiment, work.title, work.batch, step, basis)


def measured_step(system: System, line: dict[str, Any], empty: model.Step) -> model.Step:
    """The step of a line of one rank."""
    return dataclasses.replace(
        empty,
        compute=line["seconds"]["median"],
        jitter=spread(line["seconds"]),
        devices=count_devices(system, line),
    )


def find_curve(system: System, experiment: str) -> Curve | None:
    """A published curve that a step can be fitted to: seconds of epochs, weak, three points."""
    for curve in system.curve:
        fits = curve.experiment == experiment and curve.quantity == "epoch_seconds"
        if fits and curve.mode == "weak" and curve.epoch_patches and len(curve.ranks) >= 3:
            return curve
    return None


def count_devices(system: System, line: dict[str, Any]) -> int | None:
    """Ranks like that of a line that a machine alone has room for; None: it is not alone.

    Where there are fewer cores than ranks each may use all (cores_each), and all take turns.
    """
    if system.nodes != 1:
        return None
    return max(1, system.node.devices // int(line.get("cores_each", 1)))


def tensor_sizes(work: Work) -> list[int]:
    """Bytes of each gradient, as if all were of one size."""
    return [4 * work.parameters // work.tensors] * work.tensors


def spread(figure: dict[str, Any]) -> float:
    """Standard deviation of a step [s] from the quartiles of means over steps.

    Of normal deviates the quartiles lie 1.349 deviations apart, and the mean of k steps has a
    root of k less than a step.
    """
    low, high = figure["quartiles"]
    return float((high - low) / 1.349 * figure.get("steps", 1) ** 0.5)


def curve_steps(curve: Curve) -> list[tuple[int, float]]:
    """(ranks, seconds of a step) of a published curve of epochs.

    An epoch of P patches takes P / (n b) steps of n ranks with b patches each.
    """
    if curve.epoch_patches is None:
        return []
    scale = curve.local_batch / curve.epoch_patches
    return [(n, value * scale * n) for n, value in zip(curve.ranks, curve.values, strict=True)]


def fit_curve(
    curve: Curve, empty: model.Step, network: model.Network, highest: int | None = None
) -> model.Step:
    """Compute, overlap and jitter from a published curve up to `highest` ranks."""
    samples = [s for s in curve_steps(curve) if highest is None or s[0] <= highest]
    guess = dataclasses.replace(empty, compute=statistics.median(s for _, s in samples))
    return model.fit_step(samples, guess, network)
