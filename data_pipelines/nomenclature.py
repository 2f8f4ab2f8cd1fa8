"""The labels of BigEarthNet: 43 classes of CORINE Land Cover, and the 19 of the newer nomenclature.

Order is CORINE's, by code, as the archive's own tools have it (bigearthnet-models, label_indices).
Some programs sort the names instead: a model trained there names its outputs otherwise.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipelines.spec import DataError

_NATURAL = "Land principally occupied by agriculture, with significant areas of natural vegetation"
_GRASSLAND = "Natural grassland and sparsely vegetated areas"
_MOORS = "Moors, heathland and sclerophyllous vegetation"

# Class of 43 -> its class of 19; None: it has none (roads, ports, ...: hardly to be told at 10 m).
# Sources: Sumbul et al. 2019, "BigEarthNet: A large-scale benchmark archive", table 1 (43 classes);
# Sumbul et al. 2021, "BigEarthNet-MM", table 1 (19 classes).
NEWER: Mapping[str, str | None] = {
    "Continuous urban fabric": "Urban fabric",
    "Discontinuous urban fabric": "Urban fabric",
    "Industrial or commercial units": "Industrial or commercial units",
    "Road and rail networks and associated land": None,
    "Port areas": None,
    "Airports": None,
    "Mineral extraction sites": None,
    "Dump sites": None,
    "Construction sites": None,
    "Green urban areas": None,
    "Sport and leisure facilities": None,
    "Non-irrigated arable land": "Arable land",
    "Permanently irrigated land": "Arable land",
    "Rice fields": "Arable land",
    "Vineyards": "Permanent crops",
    "Fruit trees and berry plantations": "Permanent crops",
    "Olive groves": "Permanent crops",
    "Pastures": "Pastures",
    "Annual crops associated with permanent crops": "Permanent crops",
    "Complex cultivation patterns": "Complex cultivation patterns",
    _NATURAL: _NATURAL,
    "Agro-forestry areas": "Agro-forestry areas",
    "Broad-leaved forest": "Broad-leaved forest",
    "Coniferous forest": "Coniferous forest",
    "Mixed forest": "Mixed forest",
    "Natural grassland": _GRASSLAND,
    "Moors and heathland": _MOORS,
    "Sclerophyllous vegetation": _MOORS,
    "Transitional woodland/shrub": "Transitional woodland, shrub",
    "Beaches, dunes, sands": "Beaches, dunes, sands",
    "Bare rock": None,
    "Sparsely vegetated areas": _GRASSLAND,
    "Burnt areas": None,
    "Inland marshes": "Inland wetlands",
    "Peatbogs": "Inland wetlands",
    "Salt marshes": "Coastal wetlands",
    "Salines": "Coastal wetlands",
    "Intertidal flats": None,
    "Water courses": "Inland waters",
    "Water bodies": "Inland waters",
    "Coastal lagoons": "Marine waters",
    "Estuaries": "Marine waters",
    "Sea and ocean": "Marine waters",
}
CLASSES_43 = tuple(NEWER)
# Each stands where the first of its classes of 43 stands.
CLASSES_19 = tuple(dict.fromkeys(name for name in NEWER.values() if name))
CLASSES = {43: CLASSES_43, 19: CLASSES_19}


def class_names(num_classes: int) -> tuple[str, ...]:
    """Names of the 43 or 19 classes in CORINE order.

    Raises:
        DataError: another number.
    """
    if num_classes not in CLASSES:
        raise DataError(f"{num_classes} classes: BigEarthNet has nomenclatures of 43 and of 19")
    return CLASSES[num_classes]


def encode(labels: Sequence[str], num_classes: int, where: str) -> NDArray[np.uint8]:
    """Which classes a patch has.

    Args:
        labels: names as the archive has them; those of 43 classes become those of 19 where 19 are
            wanted.
        num_classes: 43 or 19.
        where: begins the message of an error: the file, or the file and the patch.

    Returns:
        (num_classes,) 0 or 1 in CORINE order; all 0 where none of the labels has a class of 19.

    Raises:
        DataError: no label at all, or one that the nomenclature does not have.
    """
    names = class_names(num_classes)
    if not labels:
        raise DataError(f"{where}: no labels; expected at least one of {num_classes} classes")
    row = np.zeros(num_classes, np.uint8)
    for label in labels:
        if label in names:
            row[names.index(label)] = 1
        elif num_classes == 19 and label in NEWER:
            newer = NEWER[label]
            if newer is not None:
                row[names.index(newer)] = 1
        else:
            raise DataError(f"{where}: {_unknown(label, num_classes)}")
    return row


def check_names(labels: Collection[str], num_classes: int, where: str) -> None:
    """Refuse names of which `encode` could make nothing.

    Raises:
        DataError: names the first of them.
    """
    for label in sorted(labels):
        encode([label], num_classes, where)


def _unknown(label: object, num_classes: int) -> str:
    """What to say of a label that is not in the nomenclature."""
    if label in CLASSES_19:
        return (
            f"label {label!r} is of the nomenclature of 19 classes, of which 43 cannot be made; "
            "expected --classes 19, or the archive's first version"
        )
    near = difflib.get_close_matches(str(label), class_names(num_classes), 1, 0.0)
    return (
        f"unknown label {label!r}; expected names of the {num_classes} classes of BigEarthNet, "
        f"such as {near[0]!r}"
    )
