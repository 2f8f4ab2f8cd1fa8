"""Conversion part by part: any number of processes, dying ones, resuming, bad input, memory."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import itertools
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest

from data_pipelines import (
    bigearthnet,
    convert,
    geotiff,
    granule,
    journal,
    manifest,
    partial,
    parts,
    sentinel2,
    store,
    synthetic_product,
    workers,
)
from data_pipelines.spec import DataError


def hashes(folder: pathlib.Path) -> dict[str, str]:
    """Content of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_geotiffs(folder: pathlib.Path, height: int, width: int, seed: int = 0) -> pathlib.Path:
    """A granule whose pixels cost nothing to make."""
    tables = {}
    for name, gsd in sentinel2.GSDS.items():
        h, w = height * 10 // gsd, width * 10 // gsd
        y, x = np.arange(h)[:, None] * 7 % 1009, np.arange(w)[None] * 13 % 997
        bands = np.arange(len(sentinel2.bands_at(gsd)))[:, None, None] * 11
        tables[name] = (y + x + bands + 1 + seed).astype(np.uint16)
    corner = (399_960.0 + 200_000 * seed, 5_800_020.0)
    return geotiff.write_folder(folder, tables, crs="EPSG:32632", corner=corner)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[pathlib.Path]:
    root = tmp_path_factory.mktemp("scenes")
    return [write_geotiffs(root / f"g{seed}", 600, 600, seed) for seed in range(5)]


@pytest.fixture(scope="module")
def reference(
    scenes: list[pathlib.Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """What one process makes of the scenes, a part each."""
    folder = tmp_path_factory.mktemp("reference") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_BYTES", 1_000_000)
        summary = convert.convert(scenes, folder, "superres_20m")
    assert all(summary.counts.values())
    assert len(list(folder.glob("train-*"))) == 3
    return hashes(folder)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 1_000_000)


def test_neighbours_are_grouped() -> None:
    assert parts.group([], 10) == []
    assert parts.group([3, 3, 3, 3, 3], 6) == [range(0, 2), range(2, 4), range(4, 5)]
    # A large one is a part of its own, whatever waits before it.
    assert parts.group([1, 9, 1, 1], 9) == [range(0, 1), range(1, 2), range(2, 4)]


# --- processes -----------------------------------------------------------------------------------


def dying(
    scenes: list[pathlib.Path], folder: pathlib.Path
) -> Callable[[], Iterator[granule.Granule]]:
    """A source that kills the first process but ours that opens it, and notes who else does."""
    paths, here, note = [str(path) for path in scenes], os.getpid(), str(folder / "died")

    # A closure, which is sent to workers as it is: they cannot import this file.
    def open_sources() -> Iterator[Any]:
        import os
        import pathlib
        import signal
        import sys

        from data_pipelines import convert

        if os.getpid() != here:
            try:
                with open(note, "x"):
                    os.kill(os.getpid(), signal.SIGKILL)
            except FileExistsError:
                modules = pathlib.Path(f"{note}-{os.getpid()}")
                modules.write_text("\n".join(sys.modules))
        yield from convert.open_all(paths)

    return open_sources


def test_a_process_that_dies_changes_nothing(
    scenes: list[pathlib.Path],
    reference: dict[str, str],
    small_parts: None,
    tmp_path: pathlib.Path,
) -> None:
    steps: list[tuple[int, int]] = []
    convert.convert(
        dying(scenes, tmp_path),
        tmp_path / "out",
        "superres_20m",
        processes=2,
        advance=lambda done, total: steps.append((done, total)),
    )
    assert (tmp_path / "died").exists()
    assert hashes(tmp_path / "out") == reference
    assert steps[-1][0] == steps[-1][1] > 0
    modules = [path.read_text().split() for path in tmp_path.glob("died-*")]
    assert modules
    assert all("distributed" in names and "dask" in names for names in modules)
    heavy = {"tensorflow", "keras", "kerass2"}
    assert not any(heavy & set(names) for names in modules)
    assert not list(tmp_path.glob(".out*"))


def test_workers_of_a_given_scheduler(
    scenes: list[pathlib.Path],
    reference: dict[str, str],
    small_parts: None,
    tmp_path: pathlib.Path,
) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=3, threads_per_worker=1, dashboard_address="127.0.0.1:0", host="127.0.0.1"
    ) as cluster:
        address = cluster.scheduler_address
        convert.convert(scenes, tmp_path / "out", "superres_20m", scheduler=address)
        for name in ("hdf5", "zarr", "lmdb"):
            many, one = tmp_path / f"{name}-many", tmp_path / f"{name}-one"
            options = {"file_format": name, "stride": 32}
            convert.convert(scenes[:3], many, "superres_20m", scheduler=address, **options)
            convert.convert(scenes[:3], one, "superres_20m", **options)
            assert hashes(many) == hashes(one)
    assert hashes(tmp_path / "out") == reference


def test_a_scheduler_that_does_not_answer(
    scenes: list[pathlib.Path], tmp_path: pathlib.Path
) -> None:
    dask = pytest.importorskip("dask")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "500ms"}),
        pytest.raises(DataError, match=r"127\.0\.0\.1:9: no dask scheduler answers"),
    ):
        convert.convert(scenes, tmp_path / "out", "superres_20m", scheduler="tcp://127.0.0.1:9")
    assert list(tmp_path.iterdir()) == []


def test_a_scheduler_without_workers(
    scenes: list[pathlib.Path], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(workers, "JOINING", 0.5)
    with (
        distributed.LocalCluster(
            n_workers=0, dashboard_address="127.0.0.1:0", host="127.0.0.1"
        ) as cluster,
        pytest.raises(DataError, match=r"the scheduler has no workers; none came in 0\.5 s"),
    ):
        convert.convert(
            scenes, tmp_path / "out", "superres_20m", scheduler=cluster.scheduler_address
        )
    assert list(tmp_path.iterdir()) == []


def slow(paths: list[pathlib.Path], note: pathlib.Path) -> Callable[[], Iterator[Any]]:
    """A source whose pixels take their time on workers; notes when a worker reads some."""
    names, here, where = [str(path) for path in paths], os.getpid(), str(note)

    def wait(block: Any) -> Any:
        import os
        import time

        if os.getpid() != here and block.size:
            with open(where, "a") as file:
                file.write(f"{time.time()}\n")
            time.sleep(0.2)
        return block

    def open_sources() -> Iterator[Any]:
        import dataclasses

        from data_pipelines import convert

        for each in convert.open_all(names):
            cubes = {
                name: cube.copy(data=cube.data.rechunk((-1, 36, -1)).map_blocks(wait, dtype="u2"))
                for name, cube in each.cubes.items()
            }
            yield dataclasses.replace(each, cubes=cubes)

    return open_sources


def test_workers_have_stopped_when_an_interruption_is_told(
    scenes: list[pathlib.Path],
    small_parts: None,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    distributed = pytest.importorskip("distributed")
    note = tmp_path / "note"
    original = distributed.wait

    def interrupt(*arguments: Any, **options: Any) -> None:
        with contextlib.suppress(TimeoutError):
            original(*arguments, **options)
        if note.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(distributed, "wait", interrupt)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", host="127.0.0.1"
    ) as cluster:
        with pytest.raises(KeyboardInterrupt):
            convert.convert(
                slow(scenes, note),
                tmp_path / "out",
                "superres_20m",
                scheduler=cluster.scheduler_address,
            )
        stopped, read = time.time(), note.read_text()
        time.sleep(1)
        assert note.read_text() == read
        assert max(map(float, read.split())) <= stopped
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["foo", "tcp://host"])
def test_what_cannot_be_a_scheduler_is_refused_at_once(
    scenes: list[pathlib.Path], tmp_path: pathlib.Path, address: str
) -> None:
    with pytest.raises(DataError, match=rf"{address}: not an address .* expected tcp://host:port"):
        convert.convert(scenes, tmp_path / "out", "superres_20m", scheduler=address)
    assert list(tmp_path.iterdir()) == []


def test_the_patches_of_an_lmdb_are_opened_by_name(
    tmp_path: pathlib.Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of an LMDB: its keys are listed once, and each part opens its own."""
    lmdb = pytest.importorskip("lmdb")
    numpy = pytest.importorskip("safetensors.numpy")
    rng = np.random.default_rng(0)
    names = [f"S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_{row}" for row in range(20, 40)]
    path = tmp_path / "db"
    with lmdb.open(str(path), map_size=2**26) as environment, environment.begin(write=True) as t:
        for name in names:
            bands = {
                band: rng.integers(1, 9000, (n, n)).astype(np.uint16)
                for gsd, n in ((10, 120), (20, 60), (60, 20))
                for band in sentinel2.bands_at(gsd)
            }
            t.put(name.encode(), numpy.save(bands))
    listed = []
    original = bigearthnet.open_lmdb

    def open_lmdb(path: pathlib.Path, **options: Any) -> Iterator[granule.Granule]:
        listed.append(options.get("names"))
        return original(path, **options)

    monkeypatch.setattr(bigearthnet, "open_lmdb", open_lmdb)
    summary = convert.convert([path], tmp_path / "out", "patches", only_split="train")
    assert summary.counts["train"] == 20
    assert len(listed) > 2
    assert listed[0] is None  # the survey
    assert list(itertools.chain(*listed[1:])) == names
    batch = store.open_source(tmp_path / "out", "train").read(range(20))
    assert [str(name).split("/")[0] for name in batch["patch_id"]] == names


# --- broken off and resumed ----------------------------------------------------------------------

KILLED = """
    import os, signal, sys
    from data_pipelines import convert, journal, parts

    parts.PART_BYTES = 1_000_000
    # What a shell has started in the background begins with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    done = 0

    def do_part(job, part, advance):
        global done
        if done == 2:
            # In the midst of a part: its shards are there, its journal entry is not.
            how = getattr(signal, sys.argv[1])
            journal.write_entry = lambda folder, entry: os.kill(os.getpid(), how)
        done += 1
        return original(job, part, advance)

    original, parts.do_part = parts.do_part, do_part
    convert.convert(sys.argv[3:], sys.argv[2], "superres_20m")
"""


def break_off(
    scenes: list[pathlib.Path], out: pathlib.Path, how: str = "SIGKILL"
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(KILLED), how, str(out), *map(str, scenes)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_killed_work_is_resumed_part_by_part(
    scenes: list[pathlib.Path],
    reference: dict[str, str],
    small_parts: None,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    assert break_off(scenes, out).returncode == -signal.SIGKILL
    unfinished = partial.path_of(out)
    assert not out.exists()
    assert journal.num_entries(unfinished) == 2
    with pytest.raises(DataError, match="begun with other options: seed 0, now 1"):
        convert.convert(scenes, out, "superres_20m", resume=True, seed=1)
    assert journal.num_entries(unfinished) == 2
    done = []
    original = parts.do_part
    monkeypatch.setattr(
        parts, "do_part", lambda job, part, advance: (done.append(part), original(job, part))[1]
    )
    steps: list[int] = []
    convert.convert(
        scenes, out, "superres_20m", resume=True, advance=lambda done, total: steps.append(done)
    )
    assert len(done) == 3
    assert steps[0] > 0
    assert hashes(out) == reference
    assert not unfinished.exists()


@pytest.mark.parametrize("file_format", ["tfrecord", "hdf5"])
def test_no_part_is_cut_again_if_the_end_fails(
    file_format: str,
    scenes: list[pathlib.Path],
    small_parts: None,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options: dict[str, Any] = {"file_format": file_format, "stride": 32}
    out = tmp_path / "out"
    expected = convert.convert(scenes, tmp_path / "expected", "superres_20m", **options)
    full = OSError(errno.ENOSPC, "disk", str(out / "manifest.json"))
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "write", mock.Mock(side_effect=full))
        with pytest.raises(DataError, match="cannot be written: No space left on device"):
            convert.convert(scenes, out, "superres_20m", **options)
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "rename", mock.Mock(side_effect=KeyboardInterrupt))
        patch.setattr(parts, "do_part", mock.Mock(side_effect=AssertionError("cut again")))
        with pytest.raises(KeyboardInterrupt):
            convert.convert(scenes, out, "superres_20m", resume=True, **options)
    assert not out.exists()
    assert journal.num_entries(partial.path_of(out)) == len(scenes)
    monkeypatch.setattr(parts, "do_part", mock.Mock(side_effect=AssertionError("cut again")))
    found = convert.convert(scenes, out, "superres_20m", resume=True, **options)
    assert found.counts == expected.counts
    assert hashes(out) == hashes(tmp_path / "expected")
    assert not partial.path_of(out).exists()


def test_a_journal_left_in_a_data_set_does_no_harm(
    scenes: list[pathlib.Path],
    reference: dict[str, str],
    small_parts: None,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(partial.shutil, "rmtree", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            convert.convert(scenes, out, "superres_20m")
    assert journal.num_entries(out) == len(scenes)
    assert sum(store.verify(out).values()) > 0
    with pytest.raises(DataError, match="exists already"):
        convert.convert(scenes, out, "superres_20m", resume=True)
    assert hashes(out) == reference


@pytest.mark.parametrize("most", [1000, 1])
def test_a_source_that_changed_is_not_mixed_in(
    most: int,
    scenes: list[pathlib.Path],
    small_parts: None,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(partial, "MAX_STAMPS", most)
    copies = [
        pathlib.Path(shutil.copytree(path, tmp_path / "in" / path.name)) for path in scenes[:3]
    ]
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(store, "finish", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            convert.convert(copies, out, "superres_20m", only_split="train")
    unfinished = partial.path_of(out)
    before = hashes(unfinished)
    path = copies[1] / "gsd20.tif"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    os.utime(path, ns=(times[0], times[1] + 1))
    named = copies[1] if most > 1 else tmp_path / "in"
    with pytest.raises(DataError, match=f"^{named}: changed since {unfinished} was begun"):
        convert.convert(copies, out, "superres_20m", only_split="train", resume=True)
    assert hashes(unfinished) == before
    os.utime(path, ns=times)
    convert.convert(copies, out, "superres_20m", only_split="train", resume=True)


def test_a_stamp_is_of_all_files(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.SAFE" / "GRANULE").mkdir(parents=True)
    xml, image = tmp_path / "a.SAFE" / "MTD.xml", tmp_path / "a.SAFE" / "GRANULE" / "B02.jp2"
    xml.write_text("x")
    image.write_text("y")
    (tmp_path / "a.SAFE" / "nowhere").symlink_to(tmp_path / "nowhere")
    first = partial.stamp(str(tmp_path / "a.SAFE"))
    assert partial.stamp(str(xml)) == first == partial.stamp(str(tmp_path / "a.SAFE"))
    assert partial.stamp(str(image)) not in (first, partial.stamp(str(tmp_path / "nowhere")))
    image.write_text("longer")
    assert partial.stamp(str(xml)) != first


def test_a_damaged_journal_or_shard_is_done_again(
    scenes: list[pathlib.Path], reference: dict[str, str], small_parts: None, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "out"
    break_off(scenes, out)
    unfinished = partial.path_of(out)
    first, second = sorted((unfinished / journal.JOURNAL).glob("[0-9]*.json"))
    first.write_text(first.read_text().replace("left_out", "left-out"))
    shards = json.loads(second.read_text())["splits"]
    name = next(iter(shards.values()))[0]["files"][0]["file"]
    with (unfinished / name).open("r+b") as file:
        file.truncate(100)
    (unfinished / "rubbish").mkdir()
    convert.convert(scenes, out, "superres_20m", resume=True)
    assert hashes(out) == reference


def test_without_resume_an_old_attempt_goes(
    scenes: list[pathlib.Path], reference: dict[str, str], small_parts: None, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "out"
    assert break_off(scenes, out, "SIGINT").returncode != 0
    (partial.path_of(out) / "rubbish").write_text("x")
    convert.convert(scenes, out, "superres_20m")
    assert hashes(out) == reference
    # With nothing to resume it begins.
    convert.convert(scenes, out, "superres_20m", resume=True, overwrite=True)
    assert hashes(out) == reference


def test_a_folder_that_is_not_ours_and_one_at_work(
    scenes: list[pathlib.Path], tmp_path: pathlib.Path
) -> None:
    foreign = partial.path_of(tmp_path / "out")
    foreign.mkdir()
    (foreign / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="not a partial data set"):
        convert.convert(scenes, tmp_path / "out", "superres_20m")
    assert (foreign / "letter.txt").exists()
    at_work = partial.path_of(tmp_path / "two") / journal.JOURNAL
    at_work.mkdir(parents=True)
    (at_work / partial.PLAN).write_text("{}")
    with (at_work / partial.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is making"):
            convert.convert(scenes, tmp_path / "two", "superres_20m")


def test_a_folder_that_goes_while_its_lock_is_taken(
    scenes: list[pathlib.Path], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = fcntl.flock

    def flock(file: Any, operation: int) -> None:
        # What who held the lock does before it lets go.
        shutil.rmtree(partial.path_of(tmp_path / "out"))
        original(file, operation)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        with pytest.raises(DataError, match="another process is making"):
            convert.convert(scenes[:1], tmp_path / "out", "superres_20m", only_split="train")
    assert list(tmp_path.iterdir()) == []


# --- bad input -----------------------------------------------------------------------------------


def damage(folder: pathlib.Path, keep: float = 0.6) -> pathlib.Path:
    """Cut a file short: its header is well, its last pixels are gone."""
    path = folder / "gsd10.tif"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    return folder


@pytest.mark.parametrize("part_bytes", [1_000_000, 100_000_000])
def test_the_other_granules_are_done(
    part_bytes: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", part_bytes)
    folders = [write_geotiffs(tmp_path / f"g{seed}", 600, 600, seed) for seed in range(3)]
    damage(folders[1])
    summary = convert.convert(
        [*folders, tmp_path / "nowhere"], tmp_path / "out", "superres_20m", only_split="train"
    )
    assert set(summary.failed) == {"g1", str(tmp_path / "nowhere")}
    assert "gsd10.tif" in summary.failed["g1"]
    assert "nowhere: not found" in summary.failed[str(tmp_path / "nowhere")]
    assert summary.granules == 2
    assert store.verify(tmp_path / "out")["train"] == summary.counts["train"] == 2 * 17 * 17
    data = store.open_source(tmp_path / "out", "train")
    names = {str(name).split("/")[0] for name in data.read(range(len(data)))["patch_id"]}
    assert names == {"g0", "g2"}
    assert store.read_manifest(tmp_path / "out").provenance["failed"] == summary.failed


def test_a_damaged_product_does_not_end_its_folder(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "in"
    products = []
    for number, tile in enumerate(("T32UMA", "T32UMB", "T32UMC")):
        rng = np.random.default_rng(number)
        cubes = {
            name: rng.integers(
                1, 9000, (len(sentinel2.bands_at(gsd)), 2400 // gsd, 2400 // gsd)
            ).astype(np.uint16)
            for name, gsd in sentinel2.GSDS.items()
        }
        products.append(
            synthetic_product.write_product(folder, cubes, tile=tile, zipped=number == 1)
        )
    products[1].write_bytes(products[1].read_bytes()[:-100])
    summary = convert.convert([folder], tmp_path / "out", "patches", patch_size=60)
    assert summary.granules == 2
    assert list(summary.failed) == [str(products[1])]
    assert "not readable as zip, or cut short" in summary.failed[str(products[1])]
    assert sum(store.verify(tmp_path / "out").values()) == 2 * 16


def test_a_source_that_is_there_twice(
    scenes: list[pathlib.Path], reference: dict[str, str], small_parts: None, tmp_path: pathlib.Path
) -> None:
    other = pathlib.Path(shutil.copytree(scenes[0], tmp_path / "in" / scenes[0].name))
    summary = convert.convert([*scenes, other, scenes[1]], tmp_path / "out", "superres_20m")
    assert summary.granules == len(scenes)
    assert list(summary.failed) == [str(other), str(scenes[1])]
    assert "two sources are named g0; expected each once" in summary.failed[str(other)]
    found = hashes(tmp_path / "out")
    assert {**reference, "manifest.json": ""} == {**found, "manifest.json": ""}


def test_nothing_can_be_read(tmp_path: pathlib.Path) -> None:
    folder = damage(write_geotiffs(tmp_path / "g", 600, 600))
    for sources, text in (([folder], "gsd10.tif"), ([tmp_path / "a", tmp_path / "b"], "a: not f")):
        with pytest.raises(DataError, match=text):
            convert.convert(sources, tmp_path / "out", "superres_20m")
    assert [path.name for path in tmp_path.iterdir()] == ["g"]


def with_cloud(paths: list[pathlib.Path], cloudy: float) -> Callable[[], Iterator[granule.Granule]]:
    """Scenes whose left part is cloud."""
    import dataclasses

    import xarray

    def open_sources() -> Iterator[granule.Granule]:
        for each in convert.open_all(paths):
            mask = np.zeros((300, 300), np.uint8)
            mask[:, : int(300 * cloudy)] = 9
            data = xarray.DataArray(mask, dims=("y", "x"), attrs={"gsd": 20.0})
            yield dataclasses.replace(each, masks={"scl": data})

    return open_sources


def test_clouds(scenes: list[pathlib.Path], tmp_path: pathlib.Path) -> None:
    summary = convert.convert(
        with_cloud(scenes, 0.5), tmp_path / "out", "patches", max_cloud=0.0, patch_size=60
    )
    assert summary.left_out == {"too much cloud": 5 * 50}
    assert sum(summary.counts.values()) == 5 * 50
    assert store.read_manifest(tmp_path / "out").provenance["left_out"] == summary.left_out
    with pytest.raises(
        DataError, match=r"no patch is left of 500 .*500 for too much cloud \(allowed: 0.1 of"
    ):
        convert.convert(
            with_cloud(scenes, 1.0), tmp_path / "none", "patches", max_cloud=0.1, patch_size=60
        )
    with pytest.raises(DataError, match="g0: no cloud mask, so patches cannot be chosen"):
        convert.convert(scenes[:1], tmp_path / "none", "patches", max_cloud=0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_some_patches_of_each_tile(
    scenes: list[pathlib.Path], small_parts: None, tmp_path: pathlib.Path
) -> None:
    summary = convert.convert(scenes, tmp_path / "out", "superres_20m", patches_per_tile=20)
    assert sum(summary.counts.values()) == 100
    alone = convert.convert(
        scenes[:1], tmp_path / "one", "superres_20m", patches_per_tile=20, only_split="train"
    )
    assert alone.counts["train"] == 20


# --- the disk ------------------------------------------------------------------------------------

PREPARE = [sys.executable, "-m", "kerass2.prepare"]


def test_a_full_disk(scenes: list[pathlib.Path], tmp_path: pathlib.Path) -> None:
    # What a write on a full disk does, a write over the allowed size does too: it fails midway.
    done = subprocess.run(
        [*PREPARE, *map(str, scenes), "-o", str(tmp_path / "out"), "--processes", "1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000)),
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert str(tmp_path) in line
    assert "too large" in line
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_written(
    scenes: list[pathlib.Path], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match=r"cannot be written: Not a directory|Not a directory"):
        convert.convert(scenes, tmp_path / "file" / "out", "superres_20m")


def test_a_folder_without_permission(
    scenes: list[pathlib.Path], reference: dict[str, str], forbidden: Any
) -> None:
    found = granule.open_granule(scenes[0])
    cubes = {name: cube.compute() for name, cube in found.cubes.items()}
    here = dataclasses.replace(found, cubes=cubes)  # somebody else may not read the files
    with (
        forbidden() as path,
        pytest.raises(DataError, match="cannot be written: Permission denied"),
    ):
        convert.convert(lambda: [here], path / "out", "superres_20m")


# --- memory --------------------------------------------------------------------------------------

# Not ru_maxrss: a new process begins with that of the one that started it.
PEAK = """
    import pathlib, re, sys
    from data_pipelines import convert, parts

    parts.GDAL_CACHE = 8  # [MB] else the smaller granule does not fill it
    convert.convert(sys.argv[2:], sys.argv[1], "superres_20m", only_split="train", stride=32)
    status = pathlib.Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) // 1024)
"""


def peak(source: pathlib.Path, out: pathlib.Path) -> int:
    """Most memory of a process that converts a source [MiB]."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PEAK), str(out), str(source)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return int(done.stdout)


def test_memory_is_a_row_of_chunks_whatever_the_size(tmp_path: pathlib.Path) -> None:
    """Ten times the pixels and patches: the same memory; far from the whole granule's."""
    width, height = 720, 1080
    small = peak(write_geotiffs(tmp_path / "s", 2 * height, width), tmp_path / "out-s")
    tall = write_geotiffs(tmp_path / "t", 20 * height, width, 1)
    whole = sum(a.nbytes for a in next(granule.open_granules(tall)).cubes.values()) / 2**20
    large = peak(tall, tmp_path / "out-t")
    counts = [store.read_manifest(tmp_path / n).num_examples("train") for n in ("out-s", "out-t")]
    assert counts[1] > 9.5 * counts[0]
    assert whole > 0.5 * small
    assert large < 1.1 * small
