"""The report's chapters on parts: all-reduce, input pipelines, prediction, projection, machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks import project_checks
from benchmarks.project import ENOUGH, describe_below
from benchmarks.report_plots import FIXED, Series, bars, dots, lines
from benchmarks.report_scaling import Line, order, select, title_of
from benchmarks.report_words import Plot, Section, Table, median, number, size, tell
from benchmarks.systems import System

# What a ring cannot be faster than: bytes through one link, or through memory.
BOUNDS = ("tcp", "memory-copy")


def all_reduce(system: System, records: Sequence[Line]) -> Section:
    """Bus bandwidth by size, path and ranks, beside what the machine's wire carries."""
    found = select(records, "allreduce")
    if not found:
        gap = "No record of allreduce: nothing is known of this system's sums but its links' data."
        return Section("All-reduce", gaps=[gap])
    found = [_name(line) for line in found]
    single = [line for line in found if not line.get("set")]
    plots = []
    for ranks in sorted({line["ranks"] for line in single if line["path"] not in BOUNDS}):
        of = [line for line in single if line["ranks"] == ranks]
        plots += _by_size(of, ranks, system)
    sets = [line for line in found if line.get("set")]
    tables = [_set_table(sets)] if sets else []
    text = [
        "Bus bandwidth is what each rank sends and receives: bytes over seconds times 2 (n − 1) / "
        "n (nccl-tests' terms). A ring cannot exceed what its link carries."
    ]
    paths = {line["path"] for line in found}
    gaps = [
        f"No record of {path}."
        for path in ("horovod-gloo", "multiworker-ring")
        if path not in paths
    ]
    return Section("All-reduce", text, plots, tables, gaps)


def _name(line: Line) -> Line:
    """The line, its path named with the settings that change it."""
    if not line.get("settings"):
        return line
    return {**line, "path": f"{line['path']}, {line['settings'].replace(',', ', ')}"}


def _by_size(of: Sequence[Line], ranks: int, system: System) -> list[Plot]:
    """Bandwidth and time of one number of ranks."""
    every = sorted({line["bytes"] for line in of})
    plots = []
    for key, name in (("bus_bandwidth", "Bus bandwidth [GB/s]"), ("seconds", "Time [s]")):
        series = [
            _curve(
                path, every, {line["bytes"]: line.get(key) for line in of if line["path"] == path}
            )
            for path in order([line["path"] for line in of], list(FIXED))
        ]
        series = [one for one in series if any(y is not None for y in one.y)]
        link = system.find_link("devices" if ranks <= system.node.devices else "nodes")
        level = (link.bandwidth, link.name) if link and key == "bus_bandwidth" else None
        plots.append(
            lines(
                f"{name.partition(' [')[0]} of an all-reduce of {ranks} ranks",
                series,
                x="bytes",
                y=name,
                log_y=True,
                level=level,
                table=_size_table(series, every),
            )
        )
    return plots


def _curve(path: str, every: Sequence[int], figures: dict[int, Any]) -> Series:
    """A path's line, with gaps at sizes it was not measured at."""
    values = [figures.get(count) for count in every]
    return Series(
        path,
        every,
        [figure and figure["median"] for figure in values],
        path,
        [figure and figure["quartiles"][0] for figure in values],
        [figure and figure["quartiles"][1] for figure in values],
        [bool(figure and figure.get("disturbed")) for figure in values],
        "dot" if path in BOUNDS else "solid",
    )


def _size_table(series: Sequence[Series], every: Sequence[int]) -> Table:
    rows = [
        [size(count), *(number(one.y[place]) for one in series)]
        for place, count in enumerate(every)
    ]
    return Table(["bytes", *(one.name for one in series)], rows)


def _set_table(sets: Sequence[Line]) -> Table:
    """The gradients of a network, all paths beside each other."""
    rows = [
        [
            title_of(line["set"]),
            line["path"],
            str(line["ranks"]),
            f"{size(line['bytes'])} in {line['tensors']}",
            *(tell(line.get(key)) for key in ("seconds", "algorithm_bandwidth", "bus_bandwidth")),
            tell(line.get("over_bound")),
        ]
        for line in sorted(sets, key=lambda line: (line["set"], line["ranks"], line["path"]))
    ]
    head = [
        "gradients of",
        "path",
        "ranks",
        "tensors",
        "time [s]",
        "algorithm [GB/s]",
        "bus [GB/s]",
    ]
    return Table([*head, "over bound"], rows, "All gradients of a step, as one call sends them")


def pipelines(records: Sequence[Line]) -> Section:
    """Patches a second out of each store."""
    found = [*select(records, "reading"), *select(records, "reading labels")]
    if not found:
        return Section("Input pipelines", gaps=["No record of reading."])
    plots = []
    for task in order([line["task"] for line in found]):
        of = [line for line in found if line["task"] == task]
        names = order([line["source"] for line in of])
        every = sorted({line["ranks"] for line in of})
        figures = {(line["source"], line["ranks"]): line["throughput"] for line in of}
        rows = [[name, *(tell(figures.get((name, n))) for n in every)] for name in names]
        values = [
            (f"{n} rank{'s' if n > 1 else ''}", [_median(figures.get((name, n))) for name in names])
            for n in every
        ]
        plots.append(
            bars(
                f"Reading: {task}",
                names,
                values,
                x="patches/s",
                table=Table(["source", *(name for name, _ in values)], rows),
            )
        )
    return Section(
        "Input pipelines", ("Shuffled patches from a warm file cache, all ranks.",), plots
    )


def _median(figure: dict[str, Any] | None) -> float | None:
    return None if figure is None else median(figure)


def prediction(records: Sequence[Line]) -> Section:
    """Pixels a second."""
    found = select(records, "predict")
    if not found:
        return Section("Prediction", gaps=["No record of predict."])
    names = [f"{line['model']}, {line['precision']}, {line['size']} px" for line in found]
    rows = [
        [name, tell(line["throughput"]), tell(line.get("seconds"))]
        for name, line in zip(names, found, strict=True)
    ]
    plot = dots(
        "Prediction",
        names,
        [line["throughput"] for line in found],
        x="Mpx/s of 10 m",
        table=Table(["", "Mpx/s", "seconds"], rows),
    )
    return Section("Prediction", (), [plot])


def projection(projected: dict[str, Any]) -> Section:
    """What the model says of more ranks, how well it does, and what would help."""
    highest = projected["ranks"][-1]
    plots, tables = [], []
    series = [
        Series(
            case["title"],
            [row["ranks"] for row in case["curve"]],
            [row["efficiency"] for row in case["curve"]],
        )
        for case in projected["cases"]
    ]
    if series:
        rows = [
            [f"{n:g}", *(number(one.y[place]) for one in series)]
            for place, n in enumerate(projected["ranks"])
        ]
        plots.append(
            lines(
                f"Projected efficiency, {projected['strategy']}, {projected['precision']}",
                series,
                x="ranks",
                y="Efficiency",
                level=(ENOUGH, f"{ENOUGH}"),
                table=Table(["ranks", *(one.name for one in series)], rows),
                caption="Each rank keeps its batch. Made by `python -m benchmarks project`.",
            )
        )
        tables.append(_remedies(projected, highest))
    checks = project_checks.summarise(projected["checks"])
    if checks:
        head = ["predicted", "values", "median error", "worst error"]
        found = [
            [row["of"], str(row["count"]), f"{row['median_error']:.1%}", f"{row['worst']:+.1%}"]
            for row in checks
        ]
        tables.append(Table(head, found, "The model against values that its fit has not seen"))
    text = [f"Links {projected['links']}."] if projected["links"] else []
    text += [
        f"{case['title']}, {case['batch']} patches a rank: {case['basis']}."
        for case in projected["cases"]
    ]
    return Section("Past what was measured", text, plots, tables, projected["gaps"])


def _remedies(projected: dict[str, Any], highest: int) -> Table:
    """What moves the place where the efficiency falls below ENOUGH."""
    names = order([r["name"] for case in projected["cases"] for r in case["remedies"]])
    rows = []
    for name in names:
        cells = [name]
        for case in projected["cases"]:
            remedy = next((r for r in case["remedies"] if r["name"] == name), None)
            where = describe_below(remedy["below"], highest) if remedy else "–"
            cells.append(f"{where}; {number(remedy['efficiency'])}" if remedy else where)
        rows.append(cells)
    caption = f"Where the efficiency falls below {ENOUGH}, and what it is at {highest} ranks"
    return Table(["changed", *(case["title"] for case in projected["cases"])], rows, caption)


def environment(system: System, records: Sequence[Line]) -> Section:
    """The system, and the machines and software that records name."""
    facts = [["system", system.title], ["known from", system.source], ["launcher", system.launcher]]
    facts += [["nodes", str(system.nodes)]] if system.nodes else []
    facts += [["node", _node(system)], ["device", _device(system)]]
    facts += [
        [
            f"link between {link.between}",
            f"{link.name}: {link.bandwidth:g} GB/s each way, {link.latency * 1e6:g} µs; "
            f"{link.source}",
        ]
        for link in system.link
    ]
    facts += [["note", system.note]] if system.note else []
    tables = [Table(["", ""], facts, "The system")]
    kept: dict[tuple[Any, ...], list[Any]] = {}
    for line in records:
        where = line.get("where", {})
        software = where.get("software", {})
        told = ", ".join(f"{name} {version}" for name, version in software.items())
        gpus = ", ".join(order(where.get("gpus", []))) or "none"
        key = (where.get("cpu", "–"), where.get("cores", "–"), gpus, told)
        kept.setdefault(key, []).append(where)
    rows = []
    for (cpu, cores, gpus, told), places in kept.items():
        times = sorted(str(place.get("time", ""))[:10] for place in places)
        commits = order([str(place.get("commit")) for place in places])
        days = times[0] if times[0] == times[-1] else f"{times[0]} to {times[-1]}"
        rows.append([str(cpu), str(cores), gpus, told, days, ", ".join(commits), str(len(places))])
    head = ["processor", "cores", "GPUs", "software", "days", "commits", "records"]
    tables += [Table(head, rows, "Where the records were made")] if rows else []
    return Section("Environment", (), (), tables)


def _node(system: System) -> str:
    node = system.node
    parts = [f"{node.devices} devices", node.cpu]
    parts += [f"{node.cores} cores"] if node.cores else []
    parts += [f"{node.memory_gb:g} GB"] if node.memory_gb else []
    return ", ".join(part for part in parts if part)


def _device(system: System) -> str:
    device = system.device
    parts = [device.name]
    parts += [f"{device.memory_gb:g} GB"] if device.memory_gb else []
    parts += [f"{device.peak_tflops:g} TFLOP/s in float32"] if device.peak_tflops else []
    return ", ".join(parts)
