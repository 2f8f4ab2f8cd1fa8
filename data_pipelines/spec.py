"""The contracts of a data set: what one example holds, and how it is read.

TensorSpec and DatasetSpec say the first, Source the second.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

SPLITS = ("train", "validation", "test")

# {"inputs": {name: (n, y, x, band)}, "targets": {name: (n, y, x, band)}, "patch_id": (n,) str},
# dtypes as stored.
Batch = dict[str, Any]


class DataError(ValueError):
    """Input is missing, damaged or of another kind; the message says file, found, expected."""


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One array of one example."""

    shape: tuple[int, ...]
    """Pixels and bands as stored: (y, x, band)."""
    bands: tuple[str, ...]
    """Band names in storage order, e.g. ("B02", "B03"); one for each entry of the last axis."""
    gsd: float
    """Ground sampling distance of a stored pixel [m]; after Wald's protocol the degraded one."""
    dtype: str = "uint16"
    """numpy name of the stored type."""
    scale: float = 1e-4
    """Physical value = stored value * scale; 1e-4 takes DN without offset to reflectance."""
    unit: str = "1"
    """Unit of the physical value; "1" is reflectance."""

    def __post_init__(self) -> None:
        """Refuse a spec that contradicts itself."""
        if not self.shape or any(size < 1 for size in self.shape):
            raise DataError(f"shape {self.shape}: every size must be at least 1")
        if len(self.bands) != self.shape[-1]:
            raise DataError(
                f"{len(self.bands)} band names {self.bands} for a last axis of {self.shape[-1]}"
            )
        if not self.scale > 0 or not self.gsd > 0:
            raise DataError(f"scale {self.scale} and gsd {self.gsd} must be positive")
        np.dtype(self.dtype)

    @property
    def num_bytes(self) -> int:
        """Bytes of one stored array."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """What every example of a data set holds."""

    task: str
    """"superres_20m", "superres_60m", ...: the job that inputs and targets were made for."""
    inputs: Mapping[str, TensorSpec]
    """Model inputs by name: "gsd10", "gsd20", "gsd60"."""
    targets: Mapping[str, TensorSpec]
    """Targets by name; a super-resolution target bears the name of its task."""

    def to_json(self) -> dict[str, Any]:
        """Plain types, for a manifest."""
        return dataclasses.asdict(
            dataclasses.replace(self, inputs=dict(self.inputs), targets=dict(self.targets))
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DatasetSpec:
        """The inverse of to_json."""

        def tensors(group: Mapping[str, Any]) -> dict[str, TensorSpec]:
            return {
                name: TensorSpec(
                    **{**spec, "shape": tuple(spec["shape"]), "bands": tuple(spec["bands"])}
                )
                for name, spec in group.items()
            }

        return cls(values["task"], tensors(values["inputs"]), tensors(values["targets"]))

    def describe(self) -> str:
        """One line: task, then name, bands and shape of each array."""
        arrays = [
            f"{kind} {name} {'x'.join(map(str, t.shape))} {','.join(t.bands)} at {t.gsd:g} m"
            for kind, group in (("input", self.inputs), ("target", self.targets))
            for name, t in group.items()
        ]
        return f"{self.task}: {'; '.join(arrays)}"


class Source(Protocol):
    """Random access to the examples of one split; order and shares are batching.py's business."""

    spec: DatasetSpec
    split: str

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def read(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Examples in the order asked for, arrays stacked along a new first axis, dtypes as stored.

        Raises:
            DataError: a record is missing or damaged; the message names file and record.
        """
        ...


def json_text(value: Any) -> str:
    """JSON as all our files have it: indented, in the order given, newline at the end."""
    return json.dumps(value, indent=2) + "\n"
