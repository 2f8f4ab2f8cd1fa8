"""`python -m benchmarks networks`: ResNet-50 against a cheaper Wide ResNet, patch by patch.

Small forms of bigearthnet_ms and bigearthnet_ms_wide that keep their ratio of operations (about 3),
trained for as many steps on the same patches by the paper's schedule, and scored on tiles that none
has seen. What counts: F1 and average precision, what a patch costs in floating-point operations,
and how long the training took. F1 over operations by itself favours whatever is small; so a row
says both, and the cheaper network is the better one where its scores are not lower.

The pixels are made up, see `python -m benchmarks classification`, unless --data names others.
"""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import click

from benchmarks import classification, classification_data, options, record

# Network -> what it changes of the experiment.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "ResNet-50, half as wide": ("resnet", {"depth": 50, "width": 32}),
    "Wide ResNet 16-1 with ECA": ("wide_resnet", {"depth": 16, "width": 1}),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--count", default=6000, type=click.IntRange(min=6), show_default=True, help="Patches."
)
@click.option(
    "--edge", default=60, type=click.IntRange(8, 120), show_default=True, help="Of a patch [px]."
)
@options.count("--epochs", 12)
@options.count("--batch", 32)
@click.option(
    "--data",
    "given",
    type=click.Path(path_type=pathlib.Path, exists=True),
    help="A data set of kerass2.prepare in place of the made-up one.",
)
@click.option("--split", default="test", show_default=True, help="What is scored.")
@options.settings
@options.note
@options.folder
@record.output_options("networks.jsonl")
def main(
    count: int,
    edge: int,
    epochs: int,
    batch: int,
    given: pathlib.Path | None,
    split: str,
    settings: tuple[str, ...],
    note: str,
    folder: pathlib.Path | None,
    output: pathlib.Path,
) -> None:
    """Train both networks, score them together, and write a table."""
    from data_pipelines import store

    with tempfile.TemporaryDirectory() as temporary:
        root = (folder or pathlib.Path(temporary)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        data = given.resolve() if given else classification_data.make(root, count, edge)
        found = store.read_manifest(data)
        patches = found.num_examples("train")
        chosen = [*classification.schedule(patches, batch, epochs), *settings]
        facts: dict[str, Any] = {"data": data.name, "train": patches, "epochs": epochs}
        facts |= {"batch": batch, "split": split, "settings": settings, "note": note}
        facts["synthetic"] = bool(found.provenance.get("synthetic"))
        workdirs, spent = {}, {}
        for name, (model, options) in NETWORKS.items():
            workdirs[name] = root / f"{data.name}-{model}"
            further = [f"model.name={model}", f"model.options={json.dumps(options)}"]
            spent[name] = classification.train(data, workdirs[name], [*further, *chosen])
            click.echo(f"{name}: trained in {spent[name]:.0f} s")
        scores = classification.evaluate(
            data, workdirs, root / f"{data.name}-networks.json", tuned=False, split=split
        )
        lines = []
        for name, workdir in workdirs.items():
            own = {**count_operations(workdir), "seconds": spent[name]}
            own |= classification.summarise(scores, name)
            lines.append(
                record.append(output, "classification network", **facts, network=name, **own)
            )
    table = tabulate(lines)
    output.with_suffix(".md").write_text(table)
    click.echo(table)


def count_operations(workdir: pathlib.Path) -> dict[str, Any]:
    """Parameters of a trained classifier, and operations of the forward pass for a patch."""
    from data_pipelines import store
    from kerass2 import models
    from kerass2.models import cost

    model = models.load_model(workdir / "model.keras")
    data = json.loads((workdir / "data.json").read_text())["data"]
    inputs = store.read_manifest(pathlib.Path(data)).spec.inputs
    edge = max(tensor.shape[0] for tensor in inputs.values())
    found = cost.count_classifier(model, edge)
    return {"edge": edge, "parameters": found.parameters, "operations": found.of_patch(edge)}


def tabulate(lines: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row for each network, and what they were trained on."""
    first = lines[0]
    kind = "made-up" if first["synthetic"] else "real"
    columns = ("F1", "F1 macro", "AP", "AP macro")
    head = ("network", "parameters", "MFLOP a patch", "training [s]", *columns, "F1 a GFLOP")
    rows = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for line in lines:
        scores = line["scores"]
        cells = [line["network"], f"{line['parameters']:,}", f"{line['operations'] / 1e6:.1f}"]
        cells += [f"{line['seconds']:.0f}", *(f"{scores[column]:.3f}" for column in columns)]
        cells.append(f"{scores['F1'] / (line['operations'] / 1e9):.2f}")
        rows.append(f"| {' | '.join(cells)} |")
    texts = [
        "# Two networks on the same patches",
        f"{first['train']:,} {kind} patches of {first['edge']} px to train on, "
        f"{first['tested']:,} of the {first['split']} split scored, threshold 0.5; "
        f"{first['epochs']} epochs in batches of {first['batch']}"
        + "".join(f", {setting}" for setting in first["settings"])
        + (f". {first['note']}." if first["note"] else "."),
        "\n".join(rows),
        "Made by `python -m benchmarks networks`.",
    ]
    return "\n\n".join(texts) + "\n"


if __name__ == "__main__":
    main()
