"""Records that nobody measured, as record.append writes them, of a machine known exactly."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from benchmarks import project_model as model

LINK = model.Link(alpha=2e-4, beta=4e-10, start=1e-3)


def figure(value: float, unit: str = "s", spread: float = 0.0, **more: Any) -> dict[str, Any]:
    """A figure as record.figure makes it."""
    quartiles = [value * (1 - spread), value * (1 + spread)]
    counts = {"repeats": 4, "steps": 4, "warm_up": 1}
    return {"median": value, "quartiles": quartiles, **counts, "unit": unit, **more}


def line(what: str, minute: int = 0, **values: Any) -> dict[str, Any]:
    """A line as record.append writes it."""
    where = {"time": f"2026-11-22T10:{minute:02d}:00+00:00", "cpu": "a processor", "cores": 2}
    return {"version": 2, "what": what, "system": "local", **values, "where": where}


def sums(path: str = "horovod-gloo", link: model.Link = LINK) -> list[dict[str, Any]]:
    """All-reduces of 2, 3 and 4 ranks over a known link."""
    return [
        line(
            "allreduce",
            path=path,
            ranks=n,
            bytes=size,
            tensors=1,
            set="",
            seconds=figure(model.ring_seconds(n, size, link)),
        )
        for n in (2, 3, 4)
        for size in (2**12, 2**16, 2**20, 2**24, 2**28)
    ]


def training(seconds: dict[int, float], **labels: Any) -> list[dict[str, Any]]:
    """Weak scaling of S2x."""
    what = {"experiment": "superres_20m", "strategy": "horovod", "precision": "float32"}
    return [
        line(
            "scaling",
            **{**what, "mode": "weak", "ranks": n, "global_batch": 16 * n, **labels},
            seconds=figure(value),
        )
        for n, value in seconds.items()
    ]


def write(path: pathlib.Path, lines: list[dict[str, Any]]) -> pathlib.Path:
    """A folder of records."""
    path.mkdir(exist_ok=True, parents=True)
    (path / "made.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


STRATEGIES = ("horovod", "multiworker")


def scaling() -> list[dict[str, Any]]:
    """Weak scaling of three networks by both strategies in both precisions."""
    lines = []
    for experiment, batch, one in (
        ("superres_20m", 16, 1.7),
        ("superres_60m", 4, 5.2),
        ("bigearthnet_ms", 8, 1.2),
    ):
        for precision, faster in (("float32", 1.0), ("bfloat16", 2.6)):
            for strategy, efficiencies in zip(
                STRATEGIES, ({1: 1.0, 2: 0.97, 4: 0.48}, {1: 1.0, 2: 0.93, 4: 0.45}), strict=True
            ):
                for ranks, efficiency in efficiencies.items():
                    seconds = one / faster / efficiency
                    rate = ranks * batch / seconds
                    busy = {"disturbed": True} if (ranks, precision) == (4, "bfloat16") else {}
                    epoch = figure(360_000 / rate, "s", 0.01)
                    lines.append(
                        line(
                            "scaling",
                            experiment=experiment,
                            strategy=strategy,
                            precision=precision,
                            mode="weak",
                            ranks=ranks,
                            global_batch=ranks * batch,
                            seconds=figure(seconds, "s", 0.02),
                            throughput=figure(rate, "patches/s", 0.02, **busy),
                            speed_up=figure(ranks * efficiency, "1", 0.02),
                            efficiency=figure(efficiency, "1", 0.02, **busy),
                            epoch_seconds={**epoch, "mean": epoch["median"], "std": 3.0},
                        )
                    )
    return lines


def comparisons() -> list[dict[str, Any]]:
    """Ratios of strategies: one clear, one within its spread; shares, quality."""
    what = {"experiment": "superres_20m", "ranks": 2}
    lines = [
        line("strategies", **what, precision=p, batch=16, mode="weak", ratio=figure(r, "1", s))
        for p, r, s in (("float32", 1.04, 0.01), ("bfloat16", 1.01, 0.03))
    ]
    parts = {"compute": 0.8, "communication": 0.1, "input": 0.06, "rest": 0.04}
    for strategy in STRATEGIES:
        labels = {**what, "strategy": strategy, "precision": "float32", "batch": 16}
        shares = {name: figure(part, "1", 0.05) for name, part in parts.items()}
        lines.append(line("shares", **labels, **shares, seconds=figure(1.8)))
        for ranks in (1, 2, 4):
            scores = {"rmse": figure(40 + ranks, "DN"), "sre": figure(35.0 - ranks, "dB")}
            labels = {"experiment": "superres_20m", "strategy": strategy, "ranks": ranks}
            lines.append(line("quality", **labels, global_batch=16 * ranks, budget="60s", **scores))
    return lines


def parts() -> list[dict[str, Any]]:
    """All-reduces of several paths, gradients, readers, prediction."""
    slow = model.Link(1e-3, 4e-9)
    wire = model.Link(2e-5, 2.5e-10)
    lines = []
    paths = {"horovod-gloo": LINK, "torch-gloo": LINK, "multiworker-ring": slow, "tcp": wire}
    for path, link in paths.items():
        for one in sums(path, link):
            seconds, n = one["seconds"]["median"], one["ranks"]
            rate = one["bytes"] / seconds / 1e9
            one["algorithm_bandwidth"] = figure(rate, "GB/s", 0.05)
            one["bus_bandwidth"] = figure(rate * model.ring_bound(n), "GB/s", 0.05)
            lines.append(one)
        size, n = 94_000_000, 2
        seconds = model.ring_seconds(n, size, link)
        bound = model.ring_seconds(n, size, wire) / seconds
        labels = {"path": path, "ranks": n, "bytes": size, "tensors": 161, "set": "bigearthnet_ms"}
        rate = figure(size / seconds / 1e9, "GB/s", 0.03)
        figures = {"seconds": figure(seconds), "algorithm_bandwidth": rate, "bus_bandwidth": rate}
        lines.append(line("allreduce", **labels, **figures, over_bound=figure(bound, "1")))
    labels = {"path": "horovod-gloo", "base": "torch-gloo", "ranks": 2, "bytes": 94_000_000}
    labels |= {"tensors": 161, "set": "bigearthnet_ms"}
    lines.append(line("allreduce ratio", **labels, ratio=figure(1.0, "1", 0.02)))
    for source, rate in (("tfrecord", 17000), ("hdf5", 16400), ("a GeoTIFF a band", 620)):
        for ranks in (1, 2):
            figures = {"throughput": figure(rate * ranks / 2, "patches/s", 0.1)}
            lines.append(line("reading", task="patches", ranks=ranks, source=source, **figures))
    for network, rate in (("S2x", 0.09), ("dsen2", 0.11)):
        labels = {"model": network, "precision": "bfloat16", "size": 1368}
        figures = {"throughput": figure(rate, "Mpx/s", 0.02), "seconds": figure(1.87 / rate)}
        lines.append(line("predict", **labels, **figures))
    return lines


def everything() -> list[dict[str, Any]]:
    """All kinds of lines."""
    return [*scaling(), *comparisons(), *parts()]
