"""`python -m benchmarks superres`: whole tiles sharpened, and training, against the machine's rate.

  tile        products from JP2 to COG: arithmetic a second as a share of what the machine's matrix
              product reaches in the same process, how much of it is overlap, resident memory, what
              reading and writing take alone, and how time and memory grow with the product
  plain       the same with DSen2 against Keras' model.predict in float32 over windows of 128 px
              with a border of 8 px, which spends less than is exact, and of 16 px, which gives our
              pixels; and the error against the truth in both precisions
  attention   the same with S2x against its plain form, attention over all of a window of 128 px
  training    S2x's step in our loop against plain Keras' fit, of its plain form, all of whose inner
              arithmetic is of one type, and of the same model
  memory      what the attention adds to a training step's memory at 96 px, its time over the direct
              form's, and resident memory and time of S6x's step, whole and in parts
  softmax     what the attention's exponentials take by themselves, and the share of the matrix
              product that S2x could reach on a tile if all the rest ran at the product's rate

Times are after start-up, which is reported apart: imports, loading a model, and a first call for
each size of window. Every measurement is a process of its own (superres_rank.py); in `training` and
`memory` what is compared takes turns in one.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import click
import numpy as np

from benchmarks import options, record
from benchmarks.step_rank import WARM_UP
from benchmarks.superres_attention import REPEATS
from benchmarks.superres_rank import TURN

PARTS = ("tile", "plain", "attention", "training", "memory", "softmax")
MODELS = ("dsen2", "s2x")
# Borders of the plain way [px of 10 m]: DSen2's own, and one that loses nothing (14 are enough, but
# 20 m pixels at a window's edge are interpolated from one more).
DSEN2_BORDER, EXACT_BORDER = 8, 16
# Patches of a step in `memory`, of --large px.
LARGE_BATCH = 32
# Edge of the blocks of S2x's attention on a tile [px].
BLOCK = 32


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="Default: all.")
@click.option("--model", "models", multiple=True, type=click.Choice(MODELS), help="Of `tile`.")
@options.precisions
@click.option(
    "--size",
    "edges",
    multiple=True,
    default=(2742, 5490),
    type=click.IntRange(min=72),
    show_default=True,
    help="Edges of the products of `tile` [px of 10 m], multiples of 6, the smallest first.",
)
@click.option(
    "--small",
    default=1368,
    type=click.IntRange(min=240),
    show_default=True,
    help="Edge of the product of `plain`; `attention` has half of it.",
)
@options.count("--batch", 64, "Of `training`.")
@options.patch
@click.option(
    "--large",
    default=96,
    type=click.IntRange(min=36),
    show_default=True,
    help="Patch of `memory` [px of 10 m], a multiple of 6.",
)
@options.count("--rounds", 5)
@options.count("--filters", 128)
@options.count("--blocks", 6)
@click.option("--weights", type=click.Path(path_type=pathlib.Path), help="DSen2's, .npz or .hdf5.")
@click.option("--scene", type=click.Path(path_type=pathlib.Path), help="For `plain`: the truth.")
@click.option(
    "--folder",
    type=click.Path(path_type=pathlib.Path),
    help="Where the made-up products lie, kept for the next run; default: a temporary folder.",
)
@record.output_options("superres.jsonl")
def main(
    parts: tuple[str, ...],
    models: tuple[str, ...],
    edges: tuple[int, ...],
    precisions: tuple[str, ...],
    folder: pathlib.Path | None,
    output: pathlib.Path,
    **sizes: Any,
) -> None:
    """Measure super-resolution on this machine."""
    if any(edge % 6 for edge in edges) or sizes["small"] % 12:
        raise click.UsageError("--size: expected a multiple of 6; --small: of 12")
    with tempfile.TemporaryDirectory() as temporary:
        root = (folder or pathlib.Path(temporary)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        bench = _Bench(root, output, precisions, sizes)
        for part in parts or PARTS:
            if part == "tile":
                for model in models or MODELS:
                    bench.measure_tile(model, edges)
            else:
                {
                    "plain": bench.measure_plain,
                    "attention": bench.measure_attention,
                    "training": bench.measure_training,
                    "memory": bench.measure_memory,
                    "softmax": bench.measure_softmax,
                }[part]()


class _Bench:
    """Measurements with their common options."""

    def __init__(
        self,
        root: pathlib.Path,
        output: pathlib.Path,
        precisions: tuple[str, ...],
        options: dict[str, Any],
    ) -> None:
        """`root` keeps products and models."""
        self._root, self._output, self._precisions = root, output, precisions
        self._options = options
        self._saved: dict[str, str] = {}

    def measure_tile(self, name: str, sizes: Sequence[int]) -> None:
        """Products of some sizes, and how time and memory grow from one to the next."""
        for precision in self._precisions:
            what = {"model": name, "precision": precision}
            before = None
            for size in sizes:
                found = self._run("tile", self._case(name, size, precision))
                record.append(self._output, "tile", **what, size=size, **found)
                click.echo(
                    f"tile {size} px, {name}, {precision}: {found['share']:.2f} of the matrix "
                    f"product's {found['matrix_product_flop_s'] / 1e9:.0f} GFLOP/s, "
                    f"{found['overlap']:.1%} overlap, {found['seconds']:.1f} s (start-up "
                    f"{found['start_up_s']:.1f} s), {found['resident_gib']:.2f} GiB; without "
                    f"arithmetic {found['transfer_s']:.1f} s, {found['transfer_cpu_s']:.1f} s of "
                    "processors"
                )
                if before is not None:
                    self._report_growth(what, before, (size, found))
                before = size, found

    def _report_growth(
        self,
        what: dict[str, Any],
        before: tuple[int, dict[str, Any]],
        after: tuple[int, dict[str, Any]],
    ) -> None:
        """From one (size, found) to the next."""
        (small_size, small), (large_size, large) = before, after
        seconds = _over(large, small, "seconds")
        growth = {
            "seconds_a_pixel": seconds / (large_size / small_size) ** 2,
            "seconds_a_flop": seconds / _over(large, small, "flop"),
            "resident": _over(large, small, "resident_gib"),
        }
        sizes = [small_size, large_size]
        record.append(self._output, "growth", **what, sizes=sizes, **growth)
        click.echo(
            f"growth {small_size} to {large_size} px, {what['model']}, {what['precision']}: time a "
            f"pixel {growth['seconds_a_pixel']:.3f}, memory {growth['resident']:.3f}"
        )

    def measure_plain(self) -> None:
        """DSen2 in both precisions against model.predict, in speed, pixels and error."""
        size, folder = self._options["small"], self._root
        base = self._case("dsen2", size, "float32")
        images = {p: str(folder / f"ours-{p}.tif") for p in self._precisions}
        ours = {
            p: self._run("tile", {**base, "precision": p, "image": image})
            for p, image in images.items()
        }
        for border in (DSEN2_BORDER, EXACT_BORDER):
            image = str(folder / f"plain-{border}.tif")
            plain = self._run("plain", {**base, "border": border, "batch": 32, "image": image})
            for precision, found in ours.items():
                what = {"model": "dsen2", "precision": precision, "size": size, "border": border}
                self._report("over plain", what, plain, found, _gap(images[precision], image))
        if self._options["scene"]:
            case = {"model": base["model"], "scene": str(self._options["scene"])}
            found = self._run("truth", {**case, "precisions": options.PRECISIONS})
            ratio = found["bfloat16"] / found["float32"]
            record.append(self._output, "error against the truth", rmse_dn=found, ratio=ratio)
            click.echo(f"RMSE {found} DN: bfloat16 over float32 {ratio:.4f}")

    def measure_attention(self) -> None:
        """S2x in both precisions against its plain form."""
        size = self._options["small"] // 12 * 6
        base = self._case("s2x", size, "float32")
        ours = {p: self._run("tile", {**base, "precision": p}) for p in self._precisions}
        case = {**base, "model": None, "border": DSEN2_BORDER, "batch": 1}
        plain = self._run("plain", {**case, "options": self._size_of_model()})
        for precision, found in ours.items():
            what = {"model": "s2x", "precision": precision, "size": size, "border": DSEN2_BORDER}
            self._report("over plain", what, plain, found, {})

    def measure_training(self) -> None:
        """S2x's step in our loop against fit."""
        from kerass2 import config
        from kerass2.models import build, cost

        changes = [f"model.options.{k}={v}" for k, v in self._size_of_model().items()]
        experiment = config.override(config.load("superres_20m"), changes)
        names = ("batch", "patch", "rounds")
        case = {"experiment": experiment.to_json(), **{n: self._options[n] for n in names}}
        model = build(experiment.model.name, **experiment.model.options)
        flop = 3 * cost.count(model).of_patch(case["patch"]) * case["batch"]
        for precision in self._precisions:
            found = self._run("training", {**case, "precision": precision, "strategy": "single"})
            figures = {"steps": TURN, "warm_up": WARM_UP}
            over = {
                name: record.figure(
                    [a / b for a, b in zip(found[name], found["loop"], strict=True)], "1", **figures
                )
                for name in ("fit", "own", "calls")
            }
            shares = {
                name: record.figure(
                    [flop / s / found["matrix_product_flop_s"] for s in found[name]], "1", **figures
                )
                for name in ("loop", "fit", "own")
            }
            record.append(
                self._output,
                "training over fit",
                precision=precision,
                batch=case["batch"],
                patch=case["patch"],
                ratio=over["fit"],
                ratio_of_own=over["own"],
                ratio_of_calls=over["calls"],
                share=shares,
                matrix_product_flop_s=found["matrix_product_flop_s"],
            )
            click.echo(
                f"training over fit, {precision}: {record.tell(over['fit'])} of its steps, with "
                f"the end of its calls {record.tell(over['calls'])}; of the same model "
                f"{record.tell(over['own'])}; share of the matrix product "
                f"{shares['loop']['median']:.2f}, fit {shares['fit']['median']:.2f}"
            )

    def measure_memory(self) -> None:
        """The attention in a training step, and a whole step of S6x."""
        from kerass2 import config

        large, small, batch = self._options["large"], self._options["patch"], LARGE_BATCH
        for precision in self._precisions:
            what = {"dtype": precision, "patch": large, "batch": batch}
            case = {**what, "forms": ("chosen", "none"), "repeats": 0}
            found = self._run("layer", case, "superres_attention")["peak_bytes"]
            extra = (found["chosen"] - found["none"]) / 2**20
            record.append(self._output, "attention's memory", **what, extra_mib=extra)
            click.echo(f"attention, {precision}, {batch} of {large} px: {extra:.0f} MiB more")
            for patch, number in ((small, self._options["batch"]), (large, 1)):
                what = {"dtype": precision, "patch": patch, "batch": number}
                case = {**what, "forms": ("chosen", "direct"), "repeats": REPEATS}
                seconds = self._run("layer", case, "superres_attention")["seconds"]
                ratios = [a / b for a, b in zip(seconds["chosen"], seconds["direct"], strict=True)]
                ratio = record.figure(ratios, "1", warm_up=2)  # to compile, and to see the memory
                record.append(self._output, "attention over direct", **what, ratio=ratio)
                click.echo(
                    f"attention, {precision}, {number} of {patch} px: {np.median(ratios):.2f} of "
                    "the direct form's time"
                )
        changes = [f"model.options.{k}={v}" for k, v in self._size_of_model().items()]
        experiment = config.override(config.load("superres_60m"), changes).to_json()
        what = {"model": "s6x", "precision": "bfloat16", "patch": large, "batch": batch}
        for parts in (1, 4):
            case = {**what, "experiment": experiment, "parts": parts, "rounds": 2}
            found = self._run("model", case, "superres_attention")
            record.append(self._output, "step's memory", **what, parts=parts, **found)
            click.echo(
                f"S6x, {batch} of {large} px, bfloat16, in {parts} parts: "
                f"{found['resident_gib']:.2f} GiB, {found['seconds']:.1f} s a step"
            )

    def measure_softmax(self) -> None:
        """How much of the matrix product's rate exponentials leave to S2x on a tile."""
        from kerass2.models import blending, build, cost
        from kerass2.models.layers import SelfAttention

        model = blending.blend(build("s2x", **self._size_of_model(), block=BLOCK))
        counted, lattices = cost.count(model), len(blending.LATTICES[SelfAttention])
        # Of a block's pixels; each is in one block of each lattice.
        flop = counted.of_patch(BLOCK) / lattices
        for precision in self._precisions:
            case = {"dtype": precision, "block": BLOCK}
            found = self._run("softmax", case, "superres_attention")
            rate = found["matrix_product_flop_s"]
            most = [1 / (1 + seconds * rate / flop) for seconds in found["softmax"]]
            names = ("attention", "softmax")
            record.append(
                self._output,
                "most of the matrix product",
                model="s2x",
                precision=precision,
                share=record.figure(most, "1"),
                matrix_product_flop_s=rate,
                **{f"{name}_s": record.figure(found[name], "s") for name in names},
            )
            spent = ", ".join(f"{name} {np.median(found[name]) * 1e3:.2f} ms" for name in names)
            click.echo(
                f"S2x, {precision}: {spent} a block; with all but the softmax at the matrix "
                f"product's rate a share of {np.median(most):.2f}"
            )

    def _report(
        self,
        name: str,
        what: dict[str, Any],
        plain: dict[str, Any],
        ours: dict[str, Any],
        gap: dict[str, float],
    ) -> None:
        """Seconds of the plain way over ours."""
        ratio = plain["seconds"] / ours["seconds"]
        record.append(self._output, name, **what, **gap, ratio=ratio, plain=plain, ours=ours)
        pixels = "".join(f", {key} {value:.2f} DN" for key, value in gap.items())
        click.echo(
            f"{what['model']}, {what['precision']} {name}, border {what['border']}: {ratio:.2f} "
            f"({plain['seconds']:.1f} s against {ours['seconds']:.1f} s){pixels}; resident "
            f"{plain['resident_gib']:.2f} against {ours['resident_gib']:.2f} GiB"
        )

    def _case(self, name: str, size: int, precision: str) -> dict[str, Any]:
        """What `tile` takes."""
        return {
            "model": self._model(name),
            "product": str(self._product(size)),
            "precision": precision,
            "image": str(self._root / "image.tif"),
        }

    def _size_of_model(self) -> dict[str, int]:
        return {key: self._options[key] for key in ("filters", "blocks")}

    def _model(self, name: str) -> str:
        """A saved model: DSen2 with the weights given, else fresh weights; gamma is not 0."""
        if name not in self._saved:
            path = str(self._root / f"{name}.keras")
            weights = self._options["weights"] if name == "dsen2" else None
            case = {"name": name, "path": path, "weights": weights and str(weights)}
            block = {"block": BLOCK} if name == "s2x" else {}
            self._run("save", {**case, "options": {**self._size_of_model(), **block}})
            self._saved[name] = path
        return self._saved[name]

    def _product(self, size: int) -> pathlib.Path:
        """A made-up product, written once."""
        from data_pipelines import synthetic_product

        folder = self._root / f"product-{size}"
        if not folder.exists():
            pixels = synthetic_product.build_tile(size, seed=0)
            synthetic_product.write_product(folder, pixels, level="L1C")
        return next(folder.glob("*.SAFE"))

    def _run(
        self, kind: str, case: dict[str, Any], module: str = "superres_rank"
    ) -> dict[str, Any]:
        """What a process finds."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "found.json"
            case = {**case, "output": str(path)}
            command = [sys.executable, "-m", f"benchmarks.{module}", kind, json.dumps(case)]
            if code := subprocess.run(command).returncode:
                raise click.ClickException(f"a process of the benchmark ended with {code}")
            found: dict[str, Any] = json.loads(path.read_text())
            return found


def _over(large: dict[str, Any], small: dict[str, Any], key: str) -> float:
    return float(large[key] / small[key])


def _gap(ours: str, plain: str) -> dict[str, float]:
    """Largest and root mean square difference of the pixels of two images [DN]."""
    import rasterio

    with rasterio.open(ours) as one, rasterio.open(plain) as other:
        gap = one.read().astype(np.float64) - other.read()
    return {"largest": float(np.abs(gap).max()), "rms": float(np.sqrt(np.mean(gap**2)))}
