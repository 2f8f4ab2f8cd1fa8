"""`python -m kerass2.export MODEL --format onnx -o DIR`: a model for other software.

DIR gets the model, README.md (its card) and item.json (a STAC item with the machine-learning-model
extension). What was written is run once by the format's own runtime and compared before DIR
appears.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from data_pipelines.files import replacing
from data_pipelines.spec import DataError
from kerass2 import backend, card_records, cli, config, inputs, messages, report, workdir

if TYPE_CHECKING:
    import keras

    from kerass2.export_formats import Format

# Repeated here so that --help imports less; a test holds them equal to export_formats.FORMATS.
FORMATS = ("keras", "savedmodel", "onnx", "tflite")
TEMPLATE = pathlib.Path(__file__).parent / "templates" / "export.md"
CARD, ITEM = "README.md", "item.json"
# Largest difference of a reflectance or probability, or of a logit over the largest: one DN. Other
# runtimes sum convolutions in another order; 1e-6 is usual.
TOLERANCE = 1e-4
# Extra that installs what a format needs.
EXTRAS = {"tensorflow": "cpu"}


def export(
    file: pathlib.Path,
    output: pathlib.Path,
    kind: str,
    *,
    size: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a model in another format, with its card and its STAC item.

    Args:
        file: a .keras file of ours.
        output: the folder to make.
        kind: a key of FORMATS.
        size: height and width of the finest input [px of 10 m]; None: any, but for tflite, whose
            first size is then that of a block or a patch.
        overwrite: replace a folder that is there.

    Returns:
        What the card says: see describe; with "difference", None where no runtime is installed.

    Raises:
        ConfigError: Keras' backend is not TensorFlow, or a size that does not fit.
        DataError: a module is missing, the output is there, or what was written gives other values.
    """
    from kerass2.export_formats import FORMATS as KNOWN
    from kerass2.export_formats import to_float32

    chosen = KNOWN[kind]
    _check(chosen, kind, output, overwrite=overwrite)
    model = to_float32(inputs.load_model(file))
    about = describe(model, file, kind, size)
    with replacing(output) as temporary:
        temporary.mkdir()
        path = temporary / chosen.file
        sizes = {name: each["shape"] for name, each in about["inputs"].items()}
        chosen.write(model, path, sizes, json.dumps(about))
        about |= {"bytes": _num_bytes(path), "difference": None}
        if chosen.can_run:
            about["difference"] = compare(model, chosen, path, about)
        _write_metadata(about, chosen, read_training(file), temporary, output.name)
    return about


def _check(chosen: Format, kind: str, output: pathlib.Path, *, overwrite: bool) -> None:
    name = backend.find()
    if chosen.needs and name != "tensorflow":
        raise config.ConfigError(
            f"KERAS_BACKEND={name}: {kind} is written by TensorFlow: KERAS_BACKEND=tensorflow; the "
            "model file is the same"
        )
    missing = chosen.missing()
    if missing is not None:
        extra = EXTRAS.get(missing, "export")
        raise DataError(f"{kind}: {missing} is not installed: pip install 'kerass2[{extra}]'")
    if output.exists() and not output.is_dir():
        raise DataError(f"{output}: is a file; the name of a folder is needed")
    if output.exists() and not overwrite:
        raise DataError(f"{output}: exists; give --overwrite to replace the folder")
    if output.exists() and not (output / ITEM).is_file():
        raise DataError(f"{output}: has no {ITEM}, so it is no export: not replaced")


# --- what a model takes and gives ----------------------------------------------------------------


def describe(
    model: keras.Model, file: pathlib.Path, kind: str, size: int | None = None
) -> dict[str, Any]:
    """What card and item say of a model.

    Returns:
        {"name", "model", "task", "format", "source": name of the file, "digest", "version",
        "parameters", "summary": a line, "block": edge of the lattice or None, "size", "inputs":
        {name: {"shape": (y, x, band), None where free, "bands", "gsd", "meaning"}}, "outputs":
        likewise, of a classifier "shape": (class,) and "bands" the classes' names}.
    """
    from kerass2 import methods, models
    from kerass2.job import Init

    told = models.describe(model)
    found = inputs.find_model(file)
    labelled = told["task"] == config.LABEL_TASK
    edge = _choose_size(told, kind, size)
    gsd = min(told["gsd"].values())
    sizes = {name: None if edge is None else edge * gsd / g for name, g in told["gsd"].items()}
    wrong = [name for name, each in sizes.items() if each is not None and each % 1]
    if wrong:
        step = math.lcm(*(round(each / gsd) for each in told["gsd"].values()))
        raise config.ConfigError(
            f"--size {edge}: {wrong[0]} would have {sizes[wrong[0]]:g} px; a multiple of {step} is "
            "needed"
        )
    levels = methods.find(found).levels
    return {
        "name": found.stem if found.stem != "model" else found.resolve().parent.name,
        "model": told["model"],
        "task": told["task"],
        "levels": list(levels),
        "format": kind,
        "source": found.name,
        "digest": Init.of(found).digest,
        "version": _version(),
        "parameters": model.count_params(),
        "summary": _summarise(told, levels),
        "block": told["block"],
        "size": edge,
        "inputs": {
            name: {
                "shape": (_whole(sizes[name]), _whole(sizes[name]), len(bands)),
                "bands": list(bands),
                "gsd": told["gsd"][name],
                "meaning": f"reflectance [1] = (DN + offset) / 10000, {told['gsd'][name]:g} m; "
                "offset 0, or -1000 from processing baseline 04.00 on",
            }
            for name, bands in told["inputs"].items()
        },
        "outputs": _outputs(told, edge) if not labelled else _label_outputs(told),
    }


def _whole(size: float | None) -> int | None:
    return None if size is None else int(size)


def _choose_size(told: Mapping[str, Any], kind: str, size: int | None) -> int | None:
    from data_pipelines import cube
    from kerass2.models import labels

    if size is not None or kind != "tflite":
        return size
    if told["task"] == config.LABEL_TASK:
        return labels.EDGE
    return int(told["block"] or cube.TASKS[told["task"]].patch_size)


def _outputs(told: Mapping[str, Any], edge: int | None) -> dict[str, Any]:
    bands = told["target_bands"]
    meaning = "reflectance [1] at 10 m; DN = reflectance x 10000 - offset"
    shape = (edge, edge, len(bands))
    return {told["target"]: {"shape": shape, "bands": list(bands), "meaning": meaning}}


def _label_outputs(told: Mapping[str, Any]) -> dict[str, Any]:
    from kerass2.models import labels

    names = enumerate(told["target_bands"])
    classes = [f"class {number}" if name is None else name for number, name in names]
    meanings = {
        labels.TARGET: "logits, in the order of the classes",
        labels.PROBABILITY: "probability of each class, their sigmoid",
    }
    return {
        name: {"shape": (len(classes),), "bands": classes, "meaning": meaning}
        for name, meaning in meanings.items()
    }


def _summarise(told: Mapping[str, Any], levels: tuple[str, ...]) -> str:
    level = f" {' and '.join(levels)}" if levels else ""
    if told["task"] == config.LABEL_TASK:
        number = len(told["target_bands"])
        return f"{told['model']}: land cover of Sentinel-2{level} patches, {number} classes"
    bands = ", ".join(told["target_bands"])
    return f"{told['model']}: sharpens {bands} of Sentinel-2{level} to 10 m"


# --- check and metadata --------------------------------------------------------------------------


def compare(
    model: keras.Model, chosen: Format, path: pathlib.Path, about: Mapping[str, Any]
) -> float:
    """Largest difference of the runtime's outputs from the model's, on two random patches.

    Their blocks at the edge are cut where the size is free.

    Raises:
        DataError: it is more than TOLERANCE, or an output is missing.
    """
    from kerass2 import tiling

    random = np.random.default_rng(0)
    gsd = min(each["gsd"] for each in about["inputs"].values())
    step = math.lcm(*(round(each["gsd"] / gsd) for each in about["inputs"].values()))
    # Free in size: two blocks and a part of one, which is filled up.
    edge = about["size"] or 2 * (about["block"] or 60) + step
    given = {
        name: random.uniform(
            0.01, 0.5, (2, *(2 * [round(edge * gsd / each["gsd"])]), len(each["bands"]))
        ).astype(np.float32)
        for name, each in about["inputs"].items()
    }
    expected = tiling.compile_prediction(model)(given)
    found = chosen.open(path)(given)
    differences = []
    for name, array in expected.items():
        if name not in found:
            raise DataError(f"{path.name}: gives {', '.join(found)}; expected {name}")
        largest = max(1.0, float(np.abs(array).max()))
        differences.append(float(np.abs(found[name] - array).max()) / largest)
    if not max(differences) <= TOLERANCE:
        raise DataError(
            f"{path.name}: its runtime gives values that differ by {max(differences):.2g} from the "
            f"model's; expected at most {TOLERANCE:.0e}"
        )
    return max(differences)


def read_training(file: pathlib.Path) -> dict[str, Any]:
    """What is known of a model's training, for its card.

    Returns:
        {"card": text of the card of kerass2.card beside the file, from its first heading on, else
        "", "run": facts of the work folder around the file: "experiment", "data", "command",
        "steps", "scores": {method: RMSE [DN]}, as far as they are there}.
    """
    beside = file.with_suffix(".md")
    text = beside.read_text(encoding="utf-8") if beside.is_file() else ""
    experiment, data, scores = (
        inputs.read_json(file.parent / name) or {}
        for name in (workdir.EXPERIMENT, workdir.DATA, workdir.EVALUATION)
    )
    log = report.read_log(file.parent / workdir.LOG)
    methods = scores.get("methods", {}) if scores.get("model") == file.name else {}
    run = {
        "experiment": experiment.get("name"),
        "data": data.get("description"),
        "command": card_records.without_folders(data.get("command", "")),
        "steps": log[-1]["step"] if log else None,
        "scores": {
            name: found["rmse"]["mean"] for name, found in methods.items() if "rmse" in found
        },
    }
    return {"card": text[text.index("## ") :] if "## " in text else "", "run": run}


def _write_metadata(
    about: Mapping[str, Any],
    chosen: Format,
    trained: Mapping[str, Any],
    folder: pathlib.Path,
    name: str,
) -> None:
    from kerass2 import stac_model

    card = folder / CARD
    card.write_text(render(about, chosen, trained), encoding="utf-8")
    item = stac_model.build(
        about,
        identifier=name,
        asset=folder / chosen.file,
        framework=(chosen.framework, _framework_version(chosen)),
        media_type=chosen.media_type,
        memory=4 * about["parameters"],
        card=card,
    )
    text = json.dumps(item.to_dict(include_self_link=False), indent=2) + "\n"
    (folder / ITEM).write_text(text, encoding="utf-8")


def render(about: Mapping[str, Any], chosen: Format, trained: Mapping[str, Any]) -> str:
    """The card: markdown; `trained` is of read_training."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # markdown; all that is filled in is the package's own
    )
    return environment.get_template(TEMPLATE.name).render(
        about=about, file=chosen.file, tolerance=TOLERANCE, trained=trained
    )


def _num_bytes(path: pathlib.Path) -> int:
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    return sum(each.stat().st_size for each in files)


def _framework_version(chosen: Format) -> str:
    """Of what has written the file."""
    names = {"keras": ("keras",), "onnx": ("onnx",)}
    tried = names.get(chosen.framework.lower(), ("tensorflow", "tensorflow-cpu"))
    for name in tried:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def _version() -> str:
    import kerass2

    return kerass2.__version__


# --- the command ---------------------------------------------------------------------------------


@click.command(cls=cli.Command)
@click.argument("model", metavar="MODEL_OR_WORKDIR", type=click.Path(path_type=pathlib.Path))
@click.option(
    "--format", "kind", type=click.Choice(FORMATS), required=True, help="What to write it as."
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=pathlib.Path),
    help="Folder for the model, README.md and item.json.",
)
@click.option(
    "--size",
    type=click.IntRange(min=1),
    help="Height and width [px of 10 m] that it is made for; default: any (tflite: one block).",
)
@click.option("--overwrite", is_flag=True, help="Replace an export that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def main(
    model: pathlib.Path,
    kind: str,
    output: pathlib.Path,
    size: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a model as keras, savedmodel, onnx or tflite (LiteRT), with its card and a STAC item.

    MODEL_OR_WORKDIR is a .keras file, the work folder of kerass2.fit, or the name of weights that
    come with kerass2. All layers compute in float32, in any format; inputs and outputs keep their
    names, take and give float32 reflectance, and normalisation is inside. What was written is run
    by the format's own runtime, and refused where its values differ.

    A raster is more than one call of the model: kerass2.predict blends two lattices of blocks and
    mirrors pixels at the edges.
    """
    about = export(inputs.find_model(model), output, kind, size=size, overwrite=overwrite)
    if as_json:
        click.echo(json.dumps(about, indent=2))
        return
    click.echo(f"wrote {output}: {about['summary']} ({about['bytes']:,} bytes)")
    if about["difference"] is None:
        messages.warn(f"not run: no runtime of {kind} is installed")
    else:
        click.echo(f"checked: at most {about['difference']:.1g} from the model's values")


if __name__ == "__main__":
    cli.run(main)
