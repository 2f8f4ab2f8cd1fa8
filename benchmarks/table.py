"""`python -m benchmarks table`: the README's table, made from kept records.

A row says in words what was found; each of its figures is the newest record's that has its labels.
What no record has is "–", and a row without any figure is left out. `--into README.md` puts the
table between that file's marks.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import click

from benchmarks import record
from benchmarks.options import PRECISIONS
from benchmarks.report_words import DISTURBED, Table, to_lines
from data_pipelines.files import replacing

BEGIN = "<!-- `python -m benchmarks table --into README.md` writes what follows -->"
END = "<!-- until here -->"
NOTE = f"{DISTURBED} The machine was busy: the quartiles lie far apart."


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number of a record."""

    what: str
    """Kind of line."""
    key: str
    """Where in the line it stands, parts with / between: "ratio", "scores/AP"."""
    form: str
    """How it is written."""
    labels: dict[str, Any]
    """What the line must say; None: nothing under that name."""

    def find(self, lines: Sequence[record.Line]) -> record.Line | None:
        """The newest of the lines that it may stand in."""
        wanted = {"what": self.what, **self.labels}
        fitting = [line for line in lines if all(line.get(key) == wanted[key] for key in wanted)]
        # Of lines of one second the last.
        fitting.sort(key=lambda line: str(line["where"].get("time", "")))
        return fitting[-1] if fitting else None

    def tell(self, line: record.Line | None) -> str:
        """The number in words: of a figure its median, with DISTURBED where it was."""
        if line is None:
            return "–"
        found: Any = line
        for part in self.key.split("/"):
            found = found[part]
        if not isinstance(found, dict):
            return format(found, self.form)
        return format(found["median"], self.form) + (DISTURBED if found.get("disturbed") else "")


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table."""

    text: str
    """What was found; labels in braces are those of its first line."""
    command: str
    """Subcommand that measures it."""
    groups: Sequence[Sequence[Figure]]
    """Figures, with ";" between groups and "," inside them."""


def of(what: str, key: str = "ratio", form: str = ".2f", **labels: Any) -> Figure:
    """A figure of the lines of one kind that say these labels."""
    return Figure(what, key, form, labels)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--into",
    type=click.Path(path_type=pathlib.Path, exists=True, dir_okay=False),
    help="File whose table it replaces.",
)
@record.output_options("")
def main(into: pathlib.Path | None, output: pathlib.Path) -> None:
    """Print the README's table from the records of a system; -o: their folder."""
    lines, problems = record.read(output)
    for problem in problems:
        click.echo(f"left out: {problem}", err=True)
    text = write(lines)
    if not text:
        raise click.ClickException(f"{output}: no record that the table is made of")
    if into is None:
        click.echo(text)
        return
    with replacing(into) as temporary:
        temporary.write_text(insert(into.read_text(encoding="utf-8"), text), encoding="utf-8")


def insert(page: str, text: str) -> str:
    """A page with `text` between its marks.

    Raises:
        click.ClickException: it does not have each mark once, in order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise click.ClickException(f"expected the lines {BEGIN} and {END}, each once, in order")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def write(lines: Sequence[record.Line]) -> str:
    """The table in markdown, with a note where figures were disturbed; nothing without figures."""
    table = make(lines)
    if not table.rows:
        return ""
    marked = any(DISTURBED in row[1] for row in table.rows)
    return "\n".join([*to_lines(table), *(["", NOTE] if marked else [])])


def make(lines: Sequence[record.Line]) -> Table:
    """The rows that have a figure."""
    rows = []
    for row in ROWS:
        found = [[(figure, figure.find(lines)) for figure in group] for group in row.groups]
        there = [line for group in found for _, line in group if line is not None]
        if there:
            told = (", ".join(figure.tell(line) for figure, line in group) for group in found)
            command = f"`python -m benchmarks {row.command}`"
            rows.append([row.text.format(**there[0]), "; ".join(told), command])
    return Table(["what", "found", "measured by"], rows)


def _each(what: str, key: str = "ratio", form: str = ".2f", **labels: Any) -> list[Figure]:
    """A figure in each precision."""
    return [of(what, key, form, precision=precision, **labels) for precision in PRECISIONS]


# Ranks that have a core of their own each.
_OWN = {"ranks": 2, "cores_each": 1, "mode": "weak", "settings": None}


def _scaling(title: str, experiment: str) -> Iterator[Row]:
    """Efficiency of 2 ranks, and the strategies against each other."""
    every = {**_OWN, "experiment": experiment}
    efficiency = [
        [
            of("scaling", "efficiency", precision=precision, strategy=strategy, **every)
            for strategy in ("horovod", "multiworker")
        ]
        for precision in PRECISIONS
    ]
    ranks = "2 ranks of one core each"
    text = f"{title}, {ranks} with {{global_batch}} patches of {{patch}} px in all, over twice one"
    text += ": horovod, multiworker, float32; bfloat16"
    yield Row(text, "scaling", efficiency)
    text = f"{title}, {ranks}: horovod's throughput over multiworker's: float32, bfloat16"
    yield Row(text, "scaling", [_each("strategies", **every)])


def _rows() -> Iterator[Row]:
    """All rows, in order."""
    s2x = {"experiment": "superres_20m", "batch": 64}
    yield Row(
        "S2x's training, 64 patches a step: the loop under single, over a bare `tf.function` step: "
        "float32, bfloat16",
        "step",
        [_each("loop over bare", **s2x)],
    )
    yield Row(
        "the same, 2 ranks of a core each over twice one, float32, bfloat16: horovod; multiworker",
        "step",
        [_each(f"efficiency of 2 ranks, {name}", **s2x) for name in ("horovod", "multiworker")],
    )
    yield Row("the same, bfloat16 over float32", "step", [[of("bfloat16 over float32", **s2x)]])
    resnet = {"experiment": "bigearthnet_ms", "batch": 24, "patch": 120}
    yield Row(
        "ResNet-50's training step (`--experiment bigearthnet_ms --batch 24 --patch 120`), over "
        "`keras.applications`' ResNet50 with the same input: float32, bfloat16",
        "step",
        [_each("loop over applications", **resnet)],
    )
    yield from _scaling("S2x", "superres_20m")
    yield from _scaling("S6x", "superres_60m")
    yield from _scaling("ResNet-50", "bigearthnet_ms")
    sums = {"set": "bigearthnet_ms", "ranks": 2, "settings": None}
    paths = ("horovod-gloo", "multiworker-ring", "torch-gloo", "tcp")
    yield Row(
        "ResNet-50's gradients (94 MB) summed over 2 ranks [GB/s]: horovod by gloo, multiworker; "
        "gloo by `torch.distributed`; as many bytes by plain TCP ([why](docs/allreduce.md))",
        "allreduce",
        [
            [of("allreduce", "algorithm_bandwidth", path=path, **sums) for path in group]
            for group in (paths[:2], paths[2:3], paths[3:])
        ],
    )
    yield Row(
        "the same, in turns: horovod over `torch.distributed`; multiworker over horovod",
        "allreduce",
        [
            [of("allreduce ratio", path=path, base=base, **sums)]
            for path, base in (("horovod-gloo", "torch-gloo"), ("multiworker-ring", "horovod-gloo"))
        ],
    )
    step = {"experiment": "superres_20m", "ranks": 2, "settings": None}
    yield Row(
        "of S2x's step on 2 ranks with {batch} patches each, summing and waiting for the slower "
        "rank, float32, bfloat16: horovod; multiworker",
        "shares",
        [
            _each("shares", "communication", ".0%", strategy=name, **step)
            for name in ("horovod", "multiworker")
        ],
    )
    yield Row(
        "seconds of a step as the harness measures it, over those of steps that nothing measures",
        "harness",
        [[of("harness over plain", form=".3f", experiment="superres_20m")]],
    )
    yield from _prediction()
    yield from _training()
    yield from _data()
    yield from _labels()


def _prediction() -> Iterator[Row]:
    """Whole products."""
    yield Row(
        "a granule in memory to 10 m [Mpx/s], float32, bfloat16: DSen2; S2x; S6x",
        "predict",
        [
            _each("predict", "throughput", ".3f", model=name, size=384, settings=None)
            for name in ("dsen2", "S2x", "S6x")
        ],
    )

    def tile(key: str, form: str, model: str, precision: str, size: int) -> Figure:
        return of("tile", key, form, model=model, precision=precision, size=size)

    share = ("share", ".2f")
    yield Row(
        "whole product from JP2 to COG, share of the rate that the machine's matrix product "
        "reaches in the same run, float32 (2748 px), bfloat16 (5490 px): DSen2; S2x",
        "superres",
        [
            [tile(*share, model, "float32", 2748), tile(*share, model, "bfloat16", 5490)]
            for model in ("dsen2", "s2x")
        ],
    )
    memory = ("resident_gib", ".2f")
    yield Row(
        "resident memory of that, bfloat16 [GiB]: DSen2 at 2742, 5490 px; S2x at 2742, 5490, "
        "10980 px",
        "superres",
        [
            [tile(*memory, model, "bfloat16", size) for size in sizes]
            for model, sizes in (("dsen2", (2742, 5490)), ("s2x", (2742, 5490, 10980)))
        ],
    )
    yield Row(
        "most that S2x could reach of the matrix product's rate if all but the attention's softmax "
        "ran at that rate: float32, bfloat16",
        "superres",
        [_each("most of the matrix product", "share", model="s2x")],
    )
    yield Row(
        "the same product over the plain way, Keras' float32 `predict` over windows of 128 px with "
        "DSen2's border, float32, bfloat16: DSen2; S2x",
        "superres",
        [_each("over plain", form=".1f", model=model, border=8) for model in ("dsen2", "s2x")],
    )


def _training() -> Iterator[Row]:
    """Training against others, its start, its checkpoints."""
    yield Row(
        "S2x's training over the steps of Keras' fit, float32, bfloat16: of a plain S2x; with the "
        "end of its calls; of the same model",
        "superres",
        [_each("training over fit", key) for key in ("ratio", "ratio_of_calls", "ratio_of_own")],
    )
    yield Row(
        "S2x's training step on another backend of Keras, over TensorFlow's: JAX, PyTorch",
        "backends",
        [
            [
                of("backends", backend=name, experiment="superres_20m", settings=[])
                for name in ("jax", "torch")
            ]
        ],
    )
    yield Row(
        "start-up of 2 ranks over that of one: horovod, multiworker",
        "startup",
        [[of("start-up", strategy=name, ranks=2) for name in ("horovod", "multiworker")]],
    )
    yield Row(
        "10 s of training with a checkpoint over 10 s without: horovod, multiworker",
        "faults",
        [
            [
                of("10 s with a checkpoint", form=".3f", strategy=name, experiment="superres_20m")
                for name in ("horovod", "multiworker")
            ]
        ],
    )


def _data() -> Iterator[Row]:
    """Data pipelines."""
    yield Row(
        "cutting patches under Wald's protocol, over the direct way with scipy and scikit-image",
        "pipeline",
        [[of("cutting over the direct way", form=".0f")]],
    )

    stores = ("tfrecord", "hdf5", "zarr", "lmdb")

    def reading(sources: Iterable[str]) -> list[Figure]:
        two = {"task": "patches", "ranks": 2}
        return [of("reading", "throughput", ".0f", source=source, **two) for source in sources]

    yield Row(
        "shuffled native patches [patches/s], 2 ranks: TFRecord, HDF5, Zarr, LMDB; a GeoTIFF a "
        "band; a memory map",
        "pipeline",
        [reading(names) for names in (stores, ["geotiff"], ["memory map"])],
    )
    labels = [{"ranks": 2, "source": f"{name}, native, enlarged"} for name in ("tfrecord", "hdf5")]
    yield Row(
        "labelled patches, 12 bands, enlarged to 10 m while reading, turned and flipped "
        "[patches/s], 2 ranks: TFRecord, HDF5; what ResNet-50 trains on",
        "pipeline",
        [
            [of("reading labels", "throughput", ".0f", **each) for each in labels],
            [of("reading labels", "model", ".0f", **labels[0])],
        ],
    )
    yield Row(
        "two whole 10980 px products prepared [s]: 1 process, 2 processes; memory of both [GiB]",
        "pipeline",
        [
            [
                of("prepare by 2 processes over 1", f"seconds/{key}", ".0f", tile=10980)
                for key in ("base", "measured")
            ],
            [of("prepare by 2 processes over 1", "resident_gib/2", ".1f", tile=10980)],
        ],
    )


def _labels() -> Iterator[Row]:
    """Classification."""

    def scores(name: str, methods: Iterable[str]) -> list[list[Figure]]:
        key = f"scores/{name}"
        return [[of("classification", key, method=m, tuned=False, patches=20000) for m in methods]]

    yield Row(
        "20,000 made-up BigEarthNet patches, small ResNet, unseen tiles: average precision of 12 "
        "bands, of RGB, of each class's frequency",
        "classification",
        scores("AP", ("multispectral", "rgb", "prior")),
    )
    yield Row(
        "the same: macro F1 plain, with weights of rare classes",
        "classification",
        scores("F1 macro", ("multispectral", "weighted")),
    )
    yield Row(
        "global batches of 64, 512, 4096, the same in {epochs} epochs: average precision by the "
        "plain rule; with warm-up; by LARS",
        "large_batch",
        [
            [of("large batch", "validation_ap", rule=rule, batch=b) for b in (64, 512, 4096)]
            for rule in ("plain", "warm-up", "lars")
        ],
    )


ROWS = tuple(_rows())
