"""Examples that the tests of every format write and expect back, and a program that damages files.

As a program: `store_cases.py FOLDER COUNT SEED` damages the files of a copy of a data set, COUNT
times, each time reads all of it, and ends with an error unless each reading gave the right data or
a DataError. A library that crashes takes this process down, not the tests'.
"""

from __future__ import annotations

import faulthandler
import json
import pathlib
import random
import sys
from collections.abc import Iterator

import numpy as np

from data_pipelines import manifest, store
from data_pipelines.spec import DataError, DatasetSpec, TensorSpec

SPEC = DatasetSpec(
    "superres_20m",
    {
        "gsd10": TensorSpec((4, 4, 2), ("B02", "B03"), 20.0),
        "gsd20": TensorSpec((2, 2, 3), ("B05", "B06", "B07"), 40.0, "int16", 1e-3),
    },
    {"superres_20m": TensorSpec((4, 4, 3), ("B05", "B06", "B07"), 20.0, "float32", 1.0)},
)
TRAIN = [number for number in range(60) if number % 3 != 2]
TEST = [number for number in range(60) if number % 3 == 2]


def make_example(number: int, spec: DatasetSpec = SPEC) -> dict:
    """Random pixels over the whole range of their type, or reflectance for floats."""
    rng = np.random.default_rng(number)

    def values(tensor: TensorSpec) -> np.ndarray:
        if np.dtype(tensor.dtype).kind == "f":
            return rng.random(tensor.shape, np.float32).astype(tensor.dtype)
        if tensor.dtype == "bool":
            return rng.random(tensor.shape) < 0.5
        limits = np.iinfo(tensor.dtype)
        size = (limits.min, limits.max, tensor.shape)
        return rng.integers(*size, dtype=tensor.dtype, endpoint=True)

    return {
        "inputs": {name: values(tensor) for name, tensor in spec.inputs.items()},
        "targets": {name: values(tensor) for name, tensor in spec.targets.items()},
        # Neither in the order of writing when sorted, nor all of one length.
        "patch_id": f"T32UMA/{'é' * (number % 4)}{number * 7 % 60:03d}_{number}",
    }


def make_examples(count: int = 60, spec: DatasetSpec = SPEC) -> Iterator[tuple[str, dict]]:
    """Two of three patches for training, the third for testing, interleaved."""
    return (("test" if i % 3 == 2 else "train", make_example(i, spec)) for i in range(count))


def assert_is(batch: dict, numbers: list[int], spec: DatasetSpec = SPEC) -> None:
    """The batch holds make_example of these numbers, bit for bit."""
    expected = [make_example(number, spec) for number in numbers]
    assert batch["patch_id"].tolist() == [e["patch_id"] for e in expected]
    for group, tensors in (("inputs", spec.inputs), ("targets", spec.targets)):
        assert list(batch[group]) == list(tensors)
        for name, tensor in tensors.items():
            values = batch[group][name]
            assert values.dtype == np.dtype(tensor.dtype)
            assert values.shape == (len(numbers), *tensor.shape)
            for row, e in zip(values, expected, strict=True):
                np.testing.assert_array_equal(row, e[group][name])


def read_all(folder: pathlib.Path) -> None:
    """Read the data set of make_examples() and compare."""
    for split, numbers in (("train", TRAIN), ("test", TEST)):
        source = store.open_source(folder, split)
        assert_is(source.read(range(len(source))), numbers)


def shard_files(folder: pathlib.Path, *, extra: bool = False) -> list[pathlib.Path]:
    """Files that the manifest lists."""
    found = store.read_manifest(folder)
    listed = [f for shards in found.splits.values() for shard in shards for f in shard.files]
    return [folder / file.name for file in [*listed, *(found.extra if extra else ())]]


def rewrite(path: pathlib.Path, **changes: object) -> None:
    """Change the manifest and make its checksum fit."""
    values = json.loads(path.read_text())
    values.update(changes)
    del values["crc32c"]
    values["crc32c"] = manifest.checksum(values)
    path.write_text(json.dumps(values))


def damage(good: bytes, rng: random.Random) -> bytes:
    """The bytes with one damage: mostly of the same length, since a size is checked first."""
    where = rng.randrange(len(good))
    end = min(len(good), where + rng.choice([2, 8, 64, 512, 4096]))
    kind = rng.choices(["flip", "bit", "zero", "copy", "cut", "drop"], [5, 5, 2, 2, 1, 1])[0]
    source = rng.randrange(len(good))
    middle = {
        "flip": bytes([good[where] ^ rng.randrange(1, 256)]) + good[where + 1 : end],
        "bit": bytes([good[where] ^ 1 << rng.randrange(8)]) + good[where + 1 : end],
        "zero": bytes(end - where),
        "copy": (good[source:] + good)[: end - where],
        "cut": b"",
        "drop": good[where + 1 : end],
    }[kind]
    return good[:where] + middle + (b"" if kind == "cut" else good[end:])


def main(folder: pathlib.Path, count: int, seed: int) -> None:
    """See the text of this file."""
    faulthandler.enable()
    rng = random.Random(seed)
    files, found = shard_files(folder), 0
    for turn in range(count):
        path = rng.choice(files)
        good = path.read_bytes()
        path.write_bytes(damage(good, rng))
        try:
            read_all(folder)
        except DataError as error:
            found += 1
            if str(folder) not in str(error):
                raise
        except BaseException as error:
            error.add_note(f"seed {seed}, turn {turn}, {path}")
            raise
        finally:
            path.write_bytes(good)
    read_all(folder)
    print(found)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
