"""A STAC item beside an exported model: what it takes, gives and was made from.

Source: STAC 1.1 with the machine-learning-model extension (mlm) 1.4, by pystac's own classes.
"""

from __future__ import annotations

import datetime
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines import sentinel2, stac_item
from kerass2.config import LABEL_TASK

# As the extension lists them.
LABELS, SHARPENS = "scene-classification", "super-resolution"
LAYOUT = ("batch", "height", "width", "bands")
# The whole earth: a network has no place, and where it was trained its card says.
BBOX = (-180.0, -90.0, 180.0, 90.0)
WHEN = datetime.datetime(2015, 6, 23, tzinfo=datetime.UTC)
"""Launch of Sentinel-2A: since then there is something to apply it to."""


def build(
    about: Mapping[str, Any],
    *,
    identifier: str,
    asset: pathlib.Path,
    framework: tuple[str, str],
    media_type: str,
    memory: int,
    card: pathlib.Path,
) -> Any:
    """The pystac.Item of an exported model.

    Args:
        about: of export.describe.
        identifier: of the item.
        asset: where the model stands beside the item.
        framework: that runs it: name and version.
        media_type: of the asset.
        memory: size of the weights [bytes].
        card: where the model's card stands beside the item.
    """
    import pystac
    from pystac.extensions.mlm import AssetGeneralMLMExtension

    item = _new_item(identifier, about)
    _describe_model(item, about, framework, memory)
    weights = pystac.Asset(
        href=f"./{asset.name}",
        title=about["summary"],
        media_type=media_type,
        roles=["mlm:model", "mlm:weights"],
        extra_fields={"bands": _bands(about["inputs"])},
    )
    item.add_asset("model", weights)
    AssetGeneralMLMExtension.ext(weights).apply(artifact_type=about["format"])
    item.add_asset(
        "card", pystac.Asset(f"./{card.name}", media_type="text/markdown", roles=["metadata"])
    )
    return item


def _new_item(identifier: str, about: Mapping[str, Any]) -> Any:
    """An item of the whole earth, without a model yet."""
    import pystac

    west, south, east, north = BBOX
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    now = datetime.datetime.now(datetime.UTC)
    return pystac.Item(
        id=identifier,
        geometry={"type": "Polygon", "coordinates": [ring]},
        bbox=list(BBOX),
        datetime=None,
        start_datetime=WHEN,
        end_datetime=datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC),
        properties={
            "created": now.isoformat(timespec="seconds").replace("+00:00", "Z"),
            "description": about["summary"],
            "constellation": "sentinel-2",
            "license": "other",
            "processing:software": {"kerass2": about["version"]},
        },
    )


def _describe_model(
    item: Any, about: Mapping[str, Any], framework: tuple[str, str], memory: int
) -> None:
    """Put what the mlm extension wants to know into the item; see build."""
    from pystac.extensions.classification import ClassificationExtension
    from pystac.extensions.mlm import MLMExtension, TaskType

    model = MLMExtension.ext(item, add_if_missing=True)
    task = TaskType(LABELS if about["task"] == LABEL_TASK else SHARPENS)
    model.apply(
        name=about["name"],
        architecture=about["model"],
        tasks=[task],
        framework=framework[0],
        framework_version=framework[1],
        memory_size=memory,
        total_parameters=about["parameters"],
        pretrained=True,
        pretrained_source=about["source"],
        input=[_input(name, each) for name, each in about["inputs"].items()],
        output=[_output(name, each, task) for name, each in about["outputs"].items()],
    )
    # pystac writes what it was not told as null, which the extension's schema refuses.
    item.properties = {
        name: value
        for name, value in item.properties.items()
        if not (name.startswith("mlm:") and value is None)
    }
    kind = stac_item.EXTENSIONS
    item.stac_extensions += [kind["eo"], kind["processing"]]
    if about["task"] == LABEL_TASK:
        item.stac_extensions.append(ClassificationExtension.get_schema_uri())


def _input(name: str, about: Mapping[str, Any]) -> Any:
    from pystac.extensions.mlm import InputStructure, ModelInput, ValueScaling, ValueScalingType
    from pystac.extensions.raster import DataType

    return ModelInput.create(
        name=name,
        bands=list(about["bands"]),
        input=InputStructure.create(_shape(about), list(LAYOUT), DataType.FLOAT32),
        description=about["meaning"],
        value_scaling=ValueScaling.create(ValueScalingType.SCALE, value=sentinel2.QUANTIFICATION),
    )


def _output(name: str, about: Mapping[str, Any], task: Any) -> Any:
    from pystac.extensions.classification import Classification
    from pystac.extensions.mlm import ModelOutput, ResultStructure
    from pystac.extensions.raster import DataType

    shape = _shape(about)
    layout = list(LAYOUT) if len(shape) == 4 else ["batch", "class"]
    names: Sequence[str | None] = about["bands"] if len(shape) == 2 else ()
    classes = [
        Classification.create(value=number, name=_plain(text), title=text, description=text)
        for number, text in enumerate(names)
        if text is not None
    ]
    return ModelOutput.create(
        name=name,
        tasks=[task],
        result=ResultStructure.create(shape, layout, DataType.FLOAT32),
        description=about["meaning"],
        classes=classes or None,
    )


def _shape(about: Mapping[str, Any]) -> list[int]:
    """-1 where any size goes."""
    return [-1 if size is None else size for size in (None, *about["shape"])]


def _plain(text: str) -> str:
    """A class' name in letters, digits and hyphens, as the classification extension has it."""
    words = "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()
    return "-".join(words)


def _bands(inputs: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every input band once, in the inputs' order."""
    found = []
    for about in inputs.values():
        for name in about["bands"]:
            band = {"name": name, "gsd": about["gsd"], "data_type": "float32", "unit": "1"}
            band["eo:center_wavelength"] = round(sentinel2.BANDS[name].wavelength / 1000, 4)
            band["eo:common_name"] = stac_item.COMMON_NAMES[name]
            found.append(band)
    return found
