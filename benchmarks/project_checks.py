"""How well the model predicts: what is measured or published, by fits that have not seen it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import project_model as model
from benchmarks.project_cases import (
    WORKS,
    all_reduces,
    build_network,
    curve_steps,
    find_curve,
    fit_curve,
    measured_step,
    steps,
    tensor_sizes,
)
from benchmarks.systems import System


@dataclasses.dataclass(frozen=True)
class Check:
    """A prediction beside what was measured, which the fit has not seen."""

    what: str
    """What was predicted, and from what."""
    ranks: int
    """Number of ranks."""
    predicted: float
    """[s]."""
    measured: float
    """[s]."""
    size: int = 0
    """Bytes of an all-reduce; 0 for a step or an epoch."""

    @property
    def error(self) -> float:
        """Relative to what was measured [1]."""
        return self.predicted / self.measured - 1


def check_links(lines: Sequence[dict[str, Any]], path: str) -> list[Check]:
    """All-reduces that the fit has not seen: every second size, then each number of ranks."""
    samples = all_reduces(lines, path)
    sizes = sorted({size for _, size, _ in samples})
    checks = _left_out(samples, path, "sizes left out", set(sizes[1::2]), 1)
    for ranks in sorted({n for n, _, _ in samples}):
        checks += _left_out(samples, path, f"{ranks} ranks left out", {ranks}, 0)
    return checks


def _left_out(
    samples: Sequence[tuple[int, float, float]], path: str, what: str, out: set[Any], key: int
) -> list[Check]:
    """Checks of the samples whose `key` is in `out`, by a fit to the others."""
    used = [sample for sample in samples if sample[key] not in out]
    if len({size for _, size, _ in used}) < 2:
        return []
    link = model.fit_link(used)
    return [
        Check(f"{path}: {what}", n, model.ring_seconds(n, size, link), seconds, int(size))
        for n, size, seconds in samples
        if (n, size, seconds)[key] in out
    ]


def check_steps(
    system: System, lines: Sequence[dict[str, Any]], strategy: str, precision: str
) -> list[Check]:
    """Steps of several ranks, predicted from one rank's with as many cores, and the links."""
    try:
        network, _ = build_network(system, lines, strategy)
    except ValueError:
        return []
    checks = []
    for experiment, work in WORKS.items():
        found = steps(lines, experiment, strategy, precision)
        alone = {line.get("cores_each"): line for line in found if line["ranks"] == 1}
        what = f"{work.title}, {strategy}, {precision}: a step, from one rank's and the links"
        for line in sorted(found, key=lambda line: line["ranks"]):
            base = alone.get(line.get("cores_each"))
            if base is None or line["ranks"] == 1:
                continue
            empty = model.Step(1.0, model.fuse(tensor_sizes(work)))
            step = measured_step(system, base, empty)
            predicted = model.step_seconds(line["ranks"], step, network)
            checks.append(Check(what, line["ranks"], predicted, line["seconds"]["median"]))
    return checks


def check_curves(system: System, network: model.Network, highest: int = 32) -> list[Check]:
    """Epochs of published curves past `highest` ranks, from what is published up to there."""
    checks = []
    for experiment, work in WORKS.items():
        curve = find_curve(system, experiment)
        if curve is None or len([n for n in curve.ranks if n <= highest]) < 3:
            continue
        empty = model.Step(1.0, model.fuse(tensor_sizes(work)))
        step = fit_curve(curve, empty, network, highest)
        what = f"{curve.title}: an epoch as published, from at most {highest} ranks"
        for (n, seconds), published in zip(curve_steps(curve), curve.values, strict=True):
            if n > highest:
                predicted = model.step_seconds(n, step, network) * published / seconds
                checks.append(Check(what, n, predicted, published))
    return checks


def summarise(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Of each kind of check: how many, the median of the errors' sizes, and the worst one."""
    rows = []
    for what in dict.fromkeys(check.what for check in checks):
        errors = [check.error for check in checks if check.what == what]
        worst = max(errors, key=abs)
        median = float(np.median(np.abs(errors)))
        rows.append({"of": what, "count": len(errors), "median_error": median, "worst": worst})
    return rows
