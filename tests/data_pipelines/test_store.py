"""What all formats share: equal examples in equal order, nothing half written, damage found."""

from __future__ import annotations

import concurrent.futures
import importlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import store_cases
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from store_cases import SPEC, TEST, TRAIN, assert_is, make_example, make_examples, rewrite

from data_pipelines import batching, descriptor, manifest, record, store
from data_pipelines.spec import DataError, DatasetSpec, TensorSpec

FORMATS = list(store.FORMATS)
SUFFIXES = {name: importlib.import_module(store.FORMATS[name]).SUFFIX for name in FORMATS}
# Small enough for several shards, of several chunks of 16 records each where there are chunks.
SHARD_BYTES = {"tfrecord": 9000, "hdf5": 6000, "zarr": 6000, "lmdb": 6000}
ROOT = pathlib.Path(__file__).parents[2]
SOME_FILE = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write(folder: pathlib.Path, file_format: str, **options: Any) -> pathlib.Path:
    """40 training patches in at least two shards, 20 test patches."""
    defaults = {"shard_bytes": SHARD_BYTES[file_format], "file_format": file_format}
    return store.write(folder, SPEC, make_examples(), **{**defaults, **options})


@pytest.fixture(scope="module", params=FORMATS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A data set in each format."""
    path = tmp_path_factory.mktemp(request.param) / "data"
    return write(path, request.param, provenance={"source": "tests", "[\n1,\n2]": [1, 2]})


@pytest.fixture
def copy(folder: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A data set to damage."""
    return pathlib.Path(shutil.copytree(folder, tmp_path / "copy"))


def format_of(folder: pathlib.Path) -> str:
    return store.read_manifest(folder).format


def data_file(folder: pathlib.Path, shard: int = 0) -> pathlib.Path:
    """The file of a training shard that holds (some of) its pixels."""
    return folder / store.read_manifest(folder).splits["train"][shard].files[0].name


def run(code: str, *arguments: object) -> str:
    """What a program of its own prints, in which `store_cases` can be imported."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "data_pipelines")])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths},
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
    return done.stdout


# --- the same examples, whatever the format -------------------------------------------------------

DTYPES = [*(f"{kind}int{bits}" for kind in ("", "u") for bits in (8, 16, 32, 64)), "bool"]
DTYPES += ["float16", "float32", "float64"]
SHAPES = st.sampled_from([(1,), (43,), (3, 2), (6, 6, 4), (5, 7, 1), (2, 3, 2, 2)])


@st.composite
def specs(draw: st.DrawFn) -> DatasetSpec:
    """Specs of many types and shapes, with and without targets."""

    def tensors(names: list[str], least: int) -> dict[str, TensorSpec]:
        chosen = draw(st.lists(st.sampled_from(names), min_size=least, unique=True))
        found = {}
        for name in chosen:
            shape = draw(SHAPES)
            bands = tuple(f"{name}-{band}" for band in range(shape[-1]))
            found[name] = TensorSpec(shape, bands, 10.0, draw(st.sampled_from(DTYPES)))
        return found

    task = draw(st.sampled_from(["patches", "superres_20m"]))
    inputs = tensors(["gsd10", "gsd20", "gsd60", "super", "radar"], 1)
    return DatasetSpec(task, inputs, tensors(["labels", "superres_20m"], 0))


@settings(max_examples=10, deadline=None)
@given(data=st.data(), spec=specs(), count=st.integers(0, 40), shard_bytes=st.integers(1, 10_000))
def test_all_formats_give_the_same_examples(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    spec: DatasetSpec,
    count: int,
    shard_bytes: int,
) -> None:
    root = tmp_path_factory.mktemp("formats")
    crcs = {}
    for name in FORMATS:
        folder = store.write(
            root / name,
            spec,
            make_examples(count, spec),
            file_format=name,
            shard_bytes=shard_bytes,
            splits=["train", "test"],
        )
        found = store.read_manifest(folder)
        assert found.spec == spec
        crcs[name] = {s: [c for g in shards for c in g.crcs] for s, shards in found.splits.items()}
        for split, numbers in (("train", TRAIN), ("test", TEST)):
            numbers = [number for number in numbers if number < count]
            source = store.open_source(folder, split)
            assert len(source) == len(numbers)
            chosen = st.lists(st.sampled_from(range(len(numbers)))) if numbers else st.just([])
            for positions in (list(range(len(numbers))), data.draw(chosen)):
                assert_is(source.read(positions), [numbers[p] for p in positions], spec)
        assert sum(store.verify(folder).values()) == count
    assert all(value == crcs["tfrecord"] for value in crcs.values())
    shutil.rmtree(root)


def test_the_checksum_of_a_record_follows_its_definition() -> None:
    import google_crc32c

    patch = make_example(3)
    arrays, name = record.check_example(patch, SPEC)
    parts = [
        patch["inputs"]["gsd10"].astype("<u2").tobytes(),
        patch["inputs"]["gsd20"].astype("<i2").tobytes(),
        patch["targets"]["superres_20m"].astype("<f4").tobytes(),
        name.encode(),
    ]
    assert record.record_crc(arrays, name, SPEC) == google_crc32c.value(b"".join(parts))


@SOME_FILE
@given(st.lists(st.integers(0, 39), max_size=50))
@example([])
@example(list(range(40)))
@example([39, 3, 3, 3, 4, 0])
def test_records_come_in_the_order_asked_for(folder: pathlib.Path, positions: list[int]) -> None:
    source = store.open_source(folder, "train")
    assert len(source) == 40
    assert source.spec == SPEC
    assert source.split == "train"
    assert_is(source.read(positions), [TRAIN[p] for p in positions])
    assert_is(source.read(np.array(positions, np.int64)), [TRAIN[p] for p in positions])


@pytest.mark.parametrize("positions", [[40], [-1], [0, 1, 2**40]])
def test_positions_outside_are_refused(folder: pathlib.Path, positions: list[int]) -> None:
    with pytest.raises(IndexError, match="of 40 records"):
        store.open_source(folder, "train").read(positions)


def test_threads_share_a_source_with_few_descriptors(
    tmp_path: pathlib.Path, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = write(tmp_path / "many", format_of(folder), shard_bytes=1500)
    assert len(store.read_manifest(many).splits["train"]) > 5
    for module in ("tfrecord", "lmdb_store", "located"):
        monkeypatch.setattr(f"data_pipelines.{module}.MAX_OPEN", 2)
    source = store.open_source(many, "train")
    before = len(os.listdir("/proc/self/fd"))

    def read(seed: int) -> None:
        positions = np.random.default_rng(seed).integers(0, 40, 8).tolist()
        assert_is(source.read(positions), [TRAIN[p] for p in positions])

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(100)))
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_forks_share_a_source_while_threads_read(folder: pathlib.Path) -> None:
    code = (
        "import os, sys, threading; from data_pipelines import store\n"
        "source, fresh = (store.open_source(sys.argv[1], 'train') for _ in range(2))\n"
        "expected = source.read(range(40))['patch_id'].tolist()\n"
        "def read(source, times):\n"
        "    return all(source.read([i])['patch_id'][0] == expected[i]\n"
        "               for _ in range(times) for i in range(40))\n"
        "threads = [threading.Thread(target=read, args=(fresh, 20)) for _ in range(3)]\n"
        "for thread in threads: thread.start()\n"
        "children = []\n"
        "for _ in range(4):\n"
        "    children.append(os.fork())\n"
        "    if not children[-1]:\n"
        "        again = store.open_source(sys.argv[1], 'train')\n"
        "        os._exit(not all(read(s, 3) for s in (source, fresh, again)))\n"
        "same = read(source, 10)\n"
        "for thread in threads: thread.join()\n"
        "sys.exit(any([os.waitpid(child, 0)[1] for child in children]) or not same)"
    )
    run(code, folder)


def test_two_sources_of_a_split_live_side_by_side(folder: pathlib.Path) -> None:
    one, two = (store.open_source(folder, "train") for _ in range(2))
    for position in (0, 39, 7):
        assert_is(one.read([position]), [TRAIN[position]])
        assert_is(two.read([position]), [TRAIN[position]])


def test_neither_reading_nor_writing_imports_tensorflow(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    code = (
        "import pathlib, sys, store_cases; from data_pipelines import batching, store\n"
        "store_cases.read_all(pathlib.Path(sys.argv[1]))\n"
        "store.write(sys.argv[2], store_cases.SPEC, store_cases.make_examples(),\n"
        "            file_format=sys.argv[3])\n"
        "sys.exit('tensorflow' in sys.modules)"
    )
    run(code, folder, tmp_path / "new", format_of(folder))


# --- writing --------------------------------------------------------------------------------------


def test_manifest_says_what_was_written(folder: pathlib.Path) -> None:
    found = store.read_manifest(folder)
    assert found.spec == SPEC
    assert found.provenance == {"source": "tests", "[\n1,\n2]": [1, 2]}
    assert list(found.splits) == ["train", "test"]
    assert found.num_examples("train") == 40
    steps: list[tuple[int, int]] = []
    assert store.verify(folder, lambda *step: steps.append(step)) == {"train": 40, "test": 20}
    assert steps == [(40, 60), (60, 60)]
    listed = store_cases.shard_files(folder, extra=True)
    there = {path for path in folder.rglob("*") if path.is_file()}
    assert there == {folder / "manifest.json", *listed}
    assert len(found.splits["train"]) >= 2
    for split, shards in found.splits.items():
        names = [f"{split}-{i:05d}{SUFFIXES[found.format]}" for i in range(len(shards))]
        assert [shard.name for shard in shards] == names
        for file in [file for shard in shards for file in shard.files]:
            assert file == manifest.File.of(folder, file.name)
            assert (folder / file.name).stat().st_size == file.num_bytes
    lines = (folder / "manifest.json").read_text().splitlines()
    assert len(lines) < 400


def test_targets_alone(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as with their inputs, in any order, twice too; no input is read."""
    source = store.open_source(folder, "train")
    order = [39, 0, 7, 7, 8, 20]
    expected = source.read(order)["targets"]
    sizes: list[int] = []
    read, read_into = descriptor.Descriptor.read, descriptor.Descriptor.read_into

    def count(self: Any, offset: int, size: int) -> bytes:
        sizes.append(size)
        return read(self, offset, size)

    def count_into(self: Any, buffers: Any, offset: int) -> int:
        sizes.append(sum(len(buffer) for buffer in buffers))
        return read_into(self, buffers, offset)

    monkeypatch.setattr(descriptor.Descriptor, "read", count)
    monkeypatch.setattr(descriptor.Descriptor, "read_into", count_into)
    found = source.read_targets(order)
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == values.dtype
    # Each array once; 7 and 8 may come in one piece, and 7 once or twice.
    assert sum(sizes) <= len(order) * SPEC.targets["superres_20m"].num_bytes
    with pytest.raises(IndexError, match="positions 40 to 40 of 40 records"):
        source.read_targets([40])


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_shard_holds_what_fits(tmp_path: pathlib.Path, file_format: str) -> None:
    record_bytes = {"tfrecord": 434}.get(file_format, 280 + len("T32UMA/000_00"))
    examples = [("train", {**make_example(i), "patch_id": f"T32UMA/000_{i:02d}"}) for i in (1, 2)]
    if file_format == "tfrecord":
        store.write(tmp_path / "one", SPEC, examples[:1])
        record_bytes = (tmp_path / "one" / "train-00000.tfrecord").stat().st_size
    for spare, shards in ((0, 1), (-1, 2), (1 - 2 * record_bytes, 2)):
        folder = store.write(
            tmp_path / f"d{spare}",
            SPEC,
            examples,
            shard_bytes=2 * record_bytes + spare,
            file_format=file_format,
        )
        assert len(store.read_manifest(folder).splits["train"]) == shards
        assert store.verify(folder) == {"train": 2}


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_same_examples_give_the_same_bytes(tmp_path: pathlib.Path, file_format: str) -> None:
    code = (
        "import sys, time, store_cases; from data_pipelines import store\n"
        "time.sleep(float(sys.argv[3]))\n"
        "store.write(sys.argv[1], store_cases.SPEC, store_cases.make_examples(),\n"
        "            file_format=sys.argv[2], shard_bytes=6000)"
    )
    for name, seconds in (("one", 0), ("two", 1.1)):  # no time of writing in it
        run(code, tmp_path / name, file_format, seconds)
    paths = [p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file()]
    assert len(paths) > 2
    for path in paths:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


@pytest.mark.parametrize("file_format", FORMATS)
def test_parts_written_apart_make_one_data_set(tmp_path: pathlib.Path, file_format: str) -> None:
    parts = [list(make_examples())[start : start + 15] for start in range(0, 60, 15)]
    found: dict[str, list[manifest.Shard]] = {"train": [], "test": [], "validation": []}
    written = [
        store.write_shards(tmp_path, SPEC, part, file_format=file_format, prefix=f"{9 - i}-")
        for i, part in enumerate(parts)
    ]
    for shards in written:
        for split, group in shards.items():
            found[split] += group
    splits = {split: tuple(shards) for split, shards in found.items()}
    final = store.finish(tmp_path, manifest.Manifest(file_format, SPEC, splits, {}))
    assert store.read_manifest(tmp_path) == final
    assert store.verify(tmp_path) == {"train": 40, "test": 20, "validation": 0}
    store_cases.read_all(tmp_path)
    names = {"manifest.json", *(f.name for f in final.extra)}
    names |= {shard.name for shards in final.splits.values() for shard in shards}
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize("file_format", FORMATS)
def test_big_endian_and_fortran_arrays_are_the_same_numbers(
    tmp_path: pathlib.Path, file_format: str
) -> None:
    patch = make_example(0)
    patch["inputs"] = {k: v.astype(v.dtype.newbyteorder(">")) for k, v in patch["inputs"].items()}
    patch["inputs"]["gsd10"] = np.asfortranarray(patch["inputs"]["gsd10"])
    with pytest.raises(DataError, match="patch T32UMA/000_0: inputs/gsd10 is >u2"):
        store.write(tmp_path / "d", SPEC, [("train", patch)], file_format=file_format)
    patch["inputs"] = {k: v.astype(v.dtype.newbyteorder("=")) for k, v in patch["inputs"].items()}
    store.write(tmp_path / "d", SPEC, [("train", patch)], file_format=file_format)
    assert_is(store.open_source(tmp_path / "d", "train").read([0]), [0])


@pytest.mark.parametrize("file_format", FORMATS)
def test_arrays_may_change_once_they_are_written(tmp_path: pathlib.Path, file_format: str) -> None:
    """A stream may fill one buffer again and again."""

    def stream() -> Iterator[tuple[str, dict]]:
        buffer = make_example(0)
        for split, patch in make_examples(30):
            for group in ("inputs", "targets"):
                for name, values in patch[group].items():
                    buffer[group][name][...] = values
            yield split, {**buffer, "patch_id": patch["patch_id"]}

    store.write(tmp_path / "d", SPEC, stream(), file_format=file_format)
    assert_is(store.open_source(tmp_path / "d", "train").read(range(20)), TRAIN[:20])


@pytest.mark.parametrize("file_format", FORMATS)
def test_splits_may_be_empty_or_absent(tmp_path: pathlib.Path, file_format: str) -> None:
    store.write(tmp_path / "d", SPEC, [], splits=["validation"], file_format=file_format)
    assert store.verify(tmp_path / "d") == {"validation": 0}
    source = store.open_source(tmp_path / "d", "validation")
    assert len(source) == 0
    assert source.read([])["inputs"]["gsd10"].shape == (0, 4, 4, 2)
    with pytest.raises(DataError, match="no split 'train'; it has validation"):
        store.open_source(tmp_path / "d", "train")


MEMORY = """
import sys, numpy as np
from data_pipelines import batching, store
from data_pipelines.spec import DatasetSpec, TensorSpec
folder, file_format, work, count = *sys.argv[1:4], int(sys.argv[4])
spec = DatasetSpec("t", {"gsd10": TensorSpec((96, 96, 4), tuple("abcd"), 10.0)}, {})
image = np.random.default_rng(0).integers(0, 9999, (96, 96, 4), np.uint16)
if work == "write":
    patch = {"inputs": {"gsd10": image}, "targets": {}}
    stream = (("train", {**patch, "patch_id": f"p{i}"}) for i in range(count))
    store.write(folder, spec, stream, file_format=file_format, shard_bytes=2**21)
else:
    source = store.open_source(folder, "train")
    for step in range(count // 32):
        source.read(batching.indices(len(source), 0, 0, step, 32))
# Not ru_maxrss: it begins with the memory of the process that started this one.
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


@pytest.mark.parametrize("file_format", FORMATS)
def test_memory_does_not_grow_with_the_data_set(tmp_path: pathlib.Path, file_format: str) -> None:
    for work in ("write", "read"):
        small, large = (
            int(run(MEMORY, tmp_path / str(count), file_format, work, count))
            for count in (160, 1600)  # 12 and 118 MB
        )
        assert large < 1.1 * small, work


def test_an_existing_folder_is_refused_and_kept(copy: pathlib.Path, tmp_path: pathlib.Path) -> None:
    def never() -> Iterator[tuple[str, dict]]:
        raise RuntimeError("read before the check")
        yield

    with pytest.raises(DataError, match="exists already"):
        store.write(copy, SPEC, never())
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").touch()
    with pytest.raises(DataError, match="not a data set"):
        store.write(other, SPEC, never(), overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="not a data set"):
        store.write(tmp_path / "file", SPEC, never(), overwrite=True)
    assert store.verify(copy) == {"train": 40, "test": 20}
    assert (other / "thesis.txt").exists()


@pytest.mark.parametrize("after", FORMATS)
def test_overwrite_replaces_when_the_new_one_is_complete(copy: pathlib.Path, after: str) -> None:
    old = store.open_source(copy, "train")
    old.read([0])

    def watched() -> Iterator[tuple[str, dict]]:
        for item in make_examples(6):
            assert store.read_manifest(copy).num_examples("train") == 40
            yield item

    store.write(copy, SPEC, watched(), overwrite=True, file_format=after)
    assert store.verify(copy) == {"train": 4, "test": 2}
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("exists", [False, True])
def test_an_exception_leaves_nothing_behind(
    copy: pathlib.Path, error: type[BaseException], exists: bool
) -> None:
    def failing() -> Iterator[tuple[str, dict]]:
        yield from make_examples(9)
        raise error("the disk of the source is gone")

    target = copy if exists else copy.with_name("new")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(error, match="is gone"):
        store.write(target, SPEC, failing(), overwrite=True, file_format=format_of(copy))
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]
    assert store.verify(copy) == {"train": 40, "test": 20}
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # zarr's event loop, once


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("limit", [1000, 100_000])
def test_a_full_disk_is_one_clear_error(
    tmp_path: pathlib.Path, file_format: str, limit: int
) -> None:
    code = (
        "import pathlib, resource, sys, store_cases; from data_pipelines import store\n"
        "from data_pipelines.spec import DataError\n"
        "limit = int(sys.argv[3])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        "examples = [e for i in range(30) for e in (('train', store_cases.make_example(i)),)]\n"
        "many = (('train', {**e, 'patch_id': f'{i}-{n}'}) for n in range(20)\n"
        "        for i, (_, e) in enumerate(examples))\n"
        "try:\n"
        "    store.write(sys.argv[1], store_cases.SPEC, many, file_format=sys.argv[2])\n"
        "except DataError as error:\n"
        "    print(error)"
    )
    text = run(code, tmp_path / "d", file_format, limit)
    assert "cannot be written: " in text
    assert text.count("\n") == 1
    assert len(text) < 300 + len(str(tmp_path))
    assert not any(tmp_path.iterdir())


def test_a_folder_without_permission_is_one_clear_error(
    folder: pathlib.Path, forbidden: Any
) -> None:
    with (
        forbidden() as path,
        pytest.raises(DataError, match="d: cannot be written: Permission denied"),
    ):
        write(path / "d", "tfrecord")


def test_a_folder_below_a_file_is_one_clear_error(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="d: cannot be written: "):
        write(tmp_path / "file" / "d", "tfrecord")


WRONG = {
    "shape": (("inputs", "gsd10", np.zeros((4, 5, 2), np.uint16)), "uint16 (4, 5, 2), expected"),
    "dtype": (("inputs", "gsd10", np.zeros((4, 4, 2), np.int32)), "int32 (4, 4, 2), expected"),
    "target": (("targets", "superres_20m", np.zeros((4, 4, 2), "f4")), "targets/superres_20m is"),
    "extra": (("inputs", "gsd60", np.zeros(1)), "inputs ['gsd10', 'gsd20', 'gsd60'], expected"),
    "missing": (("targets", "superres_20m", None), "targets [], expected ['superres_20m']"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_example_of_another_kind_is_named(tmp_path: pathlib.Path, case: str) -> None:
    (group, name, value), words = WRONG[case]
    patch = make_example(7)
    patch[group] = {k: v for k, v in {**patch[group], name: value}.items() if v is not None}
    with pytest.raises(DataError) as caught:
        store.write(tmp_path / "d", SPEC, [*make_examples(4), ("train", patch)])
    assert f"patch {patch['patch_id']}: " in str(caught.value)
    assert words in str(caught.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("patch_id", [None, "", b"bytes", 3, "a\0b", "\ud800", "é" * 256])
def test_a_patch_needs_a_name(tmp_path: pathlib.Path, patch_id: object) -> None:
    with pytest.raises(DataError, match="patch_id"):
        store.write(tmp_path / "d", SPEC, [("train", {**make_example(0), "patch_id": patch_id})])


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_longest_name(tmp_path: pathlib.Path, file_format: str) -> None:
    name = "é" * 255 + "x"
    patch = {**make_example(0), "patch_id": name}
    store.write(tmp_path / "d", SPEC, [("train", patch)], file_format=file_format)
    assert store.open_source(tmp_path / "d", "train").read([0])["patch_id"].tolist() == [name]


def test_a_split_or_format_of_another_name_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="split 'dev': expected one of train, validation, test"):
        store.write(tmp_path / "d", SPEC, [("dev", make_example(0))])
    with pytest.raises(DataError, match="no format 'csv'; there are tfrecord, hdf5, zarr, lmdb"):
        store.write(tmp_path / "d", SPEC, [], file_format="csv")
    assert not any(tmp_path.iterdir())


# --- damage ---------------------------------------------------------------------------------------


def test_damage_is_found_or_harmless(copy: pathlib.Path) -> None:
    """In a process of its own: a library that follows damaged bytes may crash or hang."""
    program = (
        "import sys, store_cases, pathlib\nstore_cases.main(pathlib.Path(sys.argv[1]), 400, {})"
    )
    found = int(run(program.format(int.from_bytes(os.urandom(4), "big")), copy))
    assert found > 100


@SOME_FILE
@given(data=st.data())
def test_verify_finds_any_damage(copy: pathlib.Path, data: st.DataObject) -> None:
    """Also to what no record needs: unused bytes, attributes, files for other readers."""
    path = data.draw(st.sampled_from(store_cases.shard_files(copy, extra=True)), label="file")
    good = path.read_bytes()
    where = data.draw(st.integers(0, len(good) - 1), label="where")
    kind = data.draw(st.sampled_from(["flip", "cut", "drop", "append", "gone"]), label="kind")
    flipped = bytes([good[where] ^ data.draw(st.integers(1, 255), label="bits")])
    path.write_bytes(
        {
            "flip": good[:where] + flipped + good[where + 1 :],
            "cut": good[:where],
            "drop": good[:where] + good[where + 1 :],
            "append": good + good[where : where + 1],
            "gone": b"",
        }[kind]
    )
    if kind == "gone":
        path.unlink()
    try:
        with pytest.raises(DataError) as caught:
            store.verify(copy)
        assert path.relative_to(copy).parts[0] in str(caught.value)
    finally:
        path.write_bytes(good)


def test_training_names_the_damaged_record(copy: pathlib.Path) -> None:
    path = data_file(copy)
    good = path.read_bytes()
    pixels = make_example(TRAIN[5])["inputs"]["gsd10"].tobytes()
    start = 0
    # In LMDB's task "superres_20m", too, an array stands in one piece.
    where = good.index(pixels, start) + 7
    path.write_bytes(good[:where] + bytes([good[where] ^ 4]) + good[where + 1 :])
    source = store.open_source(copy, "train")
    with pytest.raises(DataError, match=rf"{path.parent.name}.*, record 5: "):
        for step in range(5):
            batching.training_batch(source, seed=0, step=step, global_batch=8)
    with pytest.raises(DataError, match="record 5: "):
        store.verify(copy)
    others = [p for p in range(40) if p != 5]
    assert_is(source.read(others), [TRAIN[p] for p in others])


@SOME_FILE
@given(data=st.data())
def test_a_damaged_manifest_is_found(copy: pathlib.Path, data: st.DataObject) -> None:
    path = copy / "manifest.json"
    good = path.read_bytes()
    where = data.draw(st.integers(0, len(good) - 1), label="where")
    bits = data.draw(st.integers(0, 255), label="bits")
    path.write_bytes(
        good[:where] + (bytes([good[where] ^ bits]) + good[where + 1 :] if bits else b"")
    )
    try:
        store_cases.read_all(copy)  # white space and the case of \u escapes may change
    except DataError as error:
        assert str(copy) in str(error)
    finally:
        path.write_bytes(good)


def test_errors_name_file_found_and_expected(copy: pathlib.Path) -> None:
    listing, file = copy / "manifest.json", data_file(copy, 1)
    good, data = listing.read_text(), file.read_bytes()

    def message(folder: pathlib.Path = copy, split: str = "train") -> str:
        with pytest.raises(DataError) as caught:
            store.open_source(folder, split)
        return str(caught.value)

    assert message(split="dev") == f"{listing}: no split 'dev'; it has train, test"
    file.write_bytes(data[:100])
    assert message() == f"{file}: 100 bytes, expected {len(data)} by manifest.json"
    file.unlink()
    assert message() == f"{file}: not found; manifest.json lists it"
    file.write_bytes(data)
    listing.write_text(good[:200])
    assert message().startswith(f"{listing}: damaged, expected JSON: ")
    listing.write_text(good.replace('"count": 20', '"count": 21', 1).replace("tests", "test"))
    assert "damaged or edited: checksum" in message()
    listing.write_text("[]")
    assert message() == f"{listing}: format []; expected one of tfrecord, hdf5, zarr, lmdb"
    for version in (1, 3, None):
        listing.write_text(good)
        rewrite(listing, version=version)
        assert message() == f"{listing}: version {version}, expected 2"
    listing.write_text(good)
    rewrite(listing, format="csv")
    assert message() == f"{listing}: format 'csv'; expected one of tfrecord, hdf5, zarr, lmdb"
    for changes in ({"spec": None}, {"splits": {"train": [{}]}}, {"splits": []}, {"provenance": 0}):
        listing.write_text(good)
        rewrite(listing, **changes)
        assert message().startswith(f"{listing}: not a manifest of version 2")
    listing.unlink()
    assert message().startswith(f"{listing}: not found; expected a folder made by")
    assert "not found" in message(copy / "nothing")
    assert "not found" in message(file)


@pytest.mark.parametrize(
    "change",
    [
        {"count": 4},
        {"crc32c": "no number"},
        {"crc32c": [1] * 20},
        {"crc32c": "00" * 79},
        {"files": []},
        {"files": [{"file": "../train-00000", "bytes": 1, "crc32c": "0"}]},
        {"files": [{"file": "/etc/passwd", "bytes": 1, "crc32c": "0"}]},
        {"files": [{"file": "train-00000", "bytes": 1, "crc32c": "no number"}]},
        {"offsets": "0" * 16},
        {"keys": ["a"]},
        {"keys": "a"},
        {"keys": "a\0"},
        {"keys": 3},
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(copy: pathlib.Path, change: dict) -> None:
    path = copy / "manifest.json"
    splits = json.loads(path.read_text())["splits"]
    splits["train"][0].update(change)
    rewrite(path, splits=splits)
    with pytest.raises(DataError, match=r"manifest\.json: not a manifest of version 2"):
        store.read_manifest(copy)


@pytest.mark.parametrize("change", ["shape", "type", "name"])
def test_records_of_another_spec_are_refused(copy: pathlib.Path, change: str) -> None:
    values = json.loads((copy / "manifest.json").read_text())
    inputs = values["spec"]["inputs"]
    if change == "shape":
        inputs["gsd10"].update(shape=[4, 4, 1], bands=["B02"])
    elif change == "type":
        inputs["gsd10"].update(dtype="int32")
    else:
        inputs["gsd60"] = inputs.pop("gsd10")
    rewrite(copy / "manifest.json", spec=values["spec"])
    with pytest.raises(DataError, match=r"train-00000.*(expected|gsd60|data_60m)"):
        store.open_source(copy, "train").read([0])


def test_a_shard_of_the_wrong_length_is_found_though_the_manifest_agrees(
    copy: pathlib.Path,
) -> None:
    path = data_file(copy)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    values = json.loads((copy / "manifest.json").read_text())
    values["splits"]["train"][0]["files"][0]["bytes"] = path.stat().st_size
    rewrite(copy / "manifest.json", splits=values["splits"])
    with pytest.raises(DataError, match=r"train-00000|offset"):
        source = store.open_source(copy, "train")
        source.read(range(40))


def test_a_shard_that_shrinks_or_goes_while_open_is_found(copy: pathlib.Path) -> None:
    source = store.open_source(copy, "train")
    source.read([0])
    path = data_file(copy)
    os.truncate(path, path.stat().st_size // 4)
    with pytest.raises(DataError, match=r"train-00000.*, record \d+: truncated: \d+ bytes"):
        source.read(range(20))
    data_file(copy, 1).unlink()
    with pytest.raises(DataError, match=r"train-00001.*: (No such file|not found|not readable)"):
        source.read([39])


def test_verify_finds_shards_that_changed_places(copy: pathlib.Path) -> None:
    suffix = SUFFIXES[format_of(copy)]
    one, two, spare = (copy / f"{name}{suffix}" for name in ("train-00000", "train-00001", "x"))
    one.rename(spare)
    two.rename(one)
    spare.rename(two)
    with pytest.raises(DataError, match=r"train-0000[01]"):
        store.verify(copy)
    with pytest.raises(DataError, match=r"train-0000[01]"):
        store.open_source(copy, "train").read(range(40))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("other", ["train-00001", "test-00000"])
def test_shards_in_each_others_place_are_found_by_reading(
    tmp_path: pathlib.Path, name: str, other: str
) -> None:
    """Of equal sizes, as real ones are: a test shard in training's place would be leakage."""
    examples = [
        (split, {**make_example(number), "patch_id": f"T32UMA/y{number:05d}"})
        for split, numbers in (("train", range(4)), ("test", range(4, 6)))
        for number in numbers
    ]
    writer = importlib.import_module(store.FORMATS[name]).ShardWriter(tmp_path, "other", SPEC)
    size = 2 * writer.size("T32UMA/y00000")
    writer.abandon()
    folder = store.write(tmp_path / "d", SPEC, examples, file_format=name, shard_bytes=size)
    suffix = SUFFIXES[name]
    one, two = folder / f"train-00000{suffix}", folder / f"{other}{suffix}"
    assert store.verify(folder) == {"train": 4, "test": 2}
    one.rename(tmp_path / "aside")
    two.rename(one)
    (tmp_path / "aside").rename(two)
    with pytest.raises(DataError, match=r"train-00000"):
        store.open_source(folder, "train").read([0, 1])
    with pytest.raises(DataError):
        store.verify(folder)
