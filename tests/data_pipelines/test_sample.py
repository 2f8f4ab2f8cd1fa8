"""The sample: fetched and converted once; a synthetic granule where there is no index."""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from data_pipelines import bigearthnet, granule, sample, sentinel2, store, synthetic
from data_pipelines.spec import DataError
from kerass2 import config

PRODUCT = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sample.UNAVAILABLE, "")  # what a test makes of it goes with the test
    cuts = {task: {**cutting, "stride": 6} for task, (_, cutting) in sample.SYNTHETIC.items()}
    sizes = {"superres_20m": 768, "superres_60m": 600}
    monkeypatch.setattr(sample, "SYNTHETIC", {t: (size, cuts[t]) for t, size in sizes.items()})


def write_wheel(path: pathlib.Path) -> pathlib.Path:
    """A wheel like the real one: an LMDB of patches of one tile, and a list to leave out."""
    lmdb = pytest.importorskip("lmdb")
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    save = pytest.importorskip("safetensors.numpy").save
    cubes = synthetic.build_cubes(120 * 6)
    folder = path.parent / "lmdb"
    with lmdb.open(str(folder), map_size=2**24) as environment, environment.begin(write=True) as t:
        for row, column in ((0, 0), (0, 1), (3, 3), (5, 0), (0, 5)):
            bands = {}
            for name, cube in cubes.items():
                n = bigearthnet.SIZES[name]
                part = cube[:, row * n : (row + 1) * n, column * n : (column + 1) * n]
                bands.update(zip(sentinel2.bands_at(sentinel2.GSDS[name]), part, strict=True))
            arrays = {band: np.ascontiguousarray(image) for band, image in bands.items()}
            t.put(f"{PRODUCT}_{column:02d}_{row:02d}".encode(), save(arrays))
    clear = [f"{PRODUCT}_{place}" for place in ("00_00", "01_00", "03_03", "05_00")]
    labels = [["Pastures", "Urban fabric"]]
    table = {"patch_id": clear, "labels": labels * 4, "split": ["train", "test"] * 2}
    parquet.write_table(pyarrow.table(table), path.parent / "metadata.parquet")
    table = {"patch_id": [f"{PRODUCT}_00_05"], "labels": labels}
    table |= {"contains_seasonal_snow": [False], "contains_cloud_or_shadow": [True]}
    parquet.write_table(pyarrow.table(table), path.parent / "excluded.parquet")
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / "data.mdb", sample._PIXELS[0])
        archive.write(path.parent / "excluded.parquet", sample._EXCLUDED)
        archive.write(path.parent / "metadata.parquet", sample._ARCHIVE[1])
    return path


@pytest.fixture
def wheel(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A wheel in the cache, as if fetched."""
    cache = tmp_path / "cache"
    cache.mkdir()
    path = write_wheel(cache / sample.WHEEL)
    monkeypatch.setattr(sample, "SHA256", sample._sha256(path))
    monkeypatch.setenv("KERASS2_CACHE", str(cache))
    return path


def counts(folder: pathlib.Path) -> dict[str, int]:
    return {s: len(store.open_source(folder, s)) for s in ("train", "validation", "test")}


def test_it_is_converted_once_through_the_reader(
    wheel: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, message = sample.resolve(None)
    assert message == "data: sample of real BigEarthNet v2 patches (tile T33UUP, 2017-06-13)"
    assert all(counts(folder).values())
    assert store.read_manifest(folder).provenance["synthetic"] is False
    assert sample.resolve(str(folder))[1] == f"data: {folder}"
    names = {
        str(name).split("/")[0][-5:]
        for split in counts(folder)
        for name in store.open_source(folder, split).read(range(counts(folder)[split]))["patch_id"]
    }
    assert names == {"00_00", "01_00", "03_03", "05_00"}  # not 00_05, which the list leaves out
    before = folder.stat().st_mtime_ns
    monkeypatch.setattr(sample, "convert_wheel", None)
    assert sample.fetch() == folder
    assert folder.stat().st_mtime_ns == before
    assert [p.name for p in wheel.parent.iterdir() if p.name.startswith(".")] == []


def _fetch_here(cache: str, sha256: str, barrier: object) -> None:
    sample.SHA256 = sha256
    barrier.wait()  # type: ignore[attr-defined]
    sample.fetch(pathlib.Path(cache))


def test_two_processes_at_once(wheel: pathlib.Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    arguments = (str(wheel.parent), sample.SHA256, barrier)
    both = [context.Process(target=_fetch_here, args=arguments) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    store.verify(wheel.parent / f"sample-superres_20m-{sample.VERSION}")


def test_without_an_index_a_synthetic_granule_in_capitals(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERASS2_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    folder, message = sample.resolve(None)
    assert message == message.upper()
    assert "SYNTHETIC" in message
    assert "PIP DOWNLOAD" in message
    assert all(counts(folder).values())
    with pytest.raises(DataError, match="the sample is not available: pip download"):
        sample.fetch()
    assert sample.resolve("synthetic")[0] == folder
    named, message = sample.resolve(str(folder))
    assert named == folder
    assert "SYNTHETIC" in message


def test_a_granule_without_an_index(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERASS2_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    path, message = sample.resolve_granule("sample")
    assert message == message.upper()
    assert "USING A SYNTHETIC GRANULE INSTEAD" in message
    assert sample.resolve_granule("synthetic") == (path, "")
    (found,) = granule.open_granules(path)
    assert found.synthetic


def test_pip_is_asked_once_by_a_process_and_its_children(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fail(folder: pathlib.Path) -> pathlib.Path:
        asked.append(folder)
        raise sample._Unavailable("no network")

    monkeypatch.setattr(sample, "_download", fail)
    monkeypatch.setenv("KERASS2_CACHE", str(tmp_path))
    expected = sample.resolve(None)
    assert sample.resolve(None) == expected
    sample.resolve_granule("sample")
    assert len(asked) == 1
    # A sample that arrives meanwhile does not part ranks from the process that started them.
    (tmp_path / f"sample-superres_20m-{sample.VERSION}").mkdir()
    code = "from data_pipelines import sample; print(*sample.resolve(None), sep='|', end='')"
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{expected[0]}|{expected[1]}"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (subprocess.TimeoutExpired("pip", 1), "PIP DID NOT ANSWER"),
        (FileNotFoundError("pip"), "PIP CANNOT BE STARTED"),
    ],
)
def test_a_pip_that_fails_is_no_error(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    monkeypatch.setenv("KERASS2_CACHE", str(tmp_path))
    assert text in sample.resolve(None)[1]


def test_a_wheel_of_another_hash_is_not_used(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch_rubbish(folder: pathlib.Path) -> pathlib.Path:
        (folder / sample.WHEEL).write_bytes(b"rubbish")
        return folder / sample.WHEEL

    monkeypatch.setattr(sample, "_download", fetch_rubbish)
    with pytest.raises(DataError, match="another hash"):
        sample.fetch(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_without_patches_is_named(tmp_path: pathlib.Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.whl", "w"):
        pass
    with pytest.raises(DataError, match=r"w.whl: expected the wheel configilm==0.7.1"):
        sample.convert_wheel(tmp_path / "w.whl", tmp_path / "out")


def test_60_m_needs_more_ground_than_the_sample_has(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERASS2_CACHE", str(tmp_path))
    folder, message = sample.resolve(None, "superres_60m")
    assert message == message.upper()
    spec = store.open_source(folder, "train").spec
    assert spec.task == "superres_60m"
    # One block of the compact S6x, so that training does not cut any.
    block = config.load("superres_60m_compact").model.options["block"]
    assert spec.targets["superres_60m"].shape == (block, block, 2)


def test_a_path_is_checked(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"manifest.json: not found"):
        sample.resolve(str(tmp_path))
    with pytest.raises(DataError, match="no task"):
        sample.resolve(None, "zoom")


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERASS2_CACHE", "/somewhere")
    assert sample.cache_folder() == pathlib.Path("/somewhere")
    monkeypatch.delenv("KERASS2_CACHE")
    assert "kerass2" in str(sample.cache_folder())


def test_tensorflow_is_not_imported(wheel: pathlib.Path) -> None:
    code = (
        "import sys; from data_pipelines import sample; "
        f"sample.SHA256 = {sample.SHA256!r}; sample.fetch(); sys.exit('tensorflow' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)


def test_the_sample_for_classification(
    wheel: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    folder, message = sample.resolve(None, "bigearthnet")
    assert message.startswith("data: sample of real BigEarthNet v2 patches")
    assert counts(folder) == {"train": 2, "validation": 0, "test": 2}
    found = store.read_manifest(folder)
    assert found.spec.task == "bigearthnet"
    assert found.provenance["left_out"] == {"cloud or shadow": 1}
    assert found.provenance["classes"]["Pastures"] == {"train": 2, "validation": 0, "test": 2}
    assert str(tmp_path) not in (folder / "manifest.json").read_text()
    archive = sample.fetch_archive()
    assert {path.name for path in archive.iterdir()} == {
        "BigEarthNet-V2-LMDB",
        "metadata.parquet",
        "metadata_for_patches_with_snow_cloud_or_shadow.parquet",
    }
    assert sample.resolve(None, "bigearthnet")[0] == folder


def test_a_synthetic_archive_takes_its_place(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERASS2_CACHE", str(tmp_path))
    monkeypatch.setattr(sample, "SYNTHETIC_ARCHIVE", 12)
    monkeypatch.setenv(sample.UNAVAILABLE, "no index")
    folder, message = sample.resolve(None, "bigearthnet")
    assert message.startswith("THE SAMPLE IS NOT AVAILABLE (NO INDEX)")
    assert sum(counts(folder).values()) == 12
    assert sample.resolve("synthetic", "bigearthnet") == (
        folder,
        "DATA: A SYNTHETIC ARCHIVE (MADE UP, NOT MEASURED)",
    )
    with pytest.raises(DataError, match="the sample is not available: no index"):
        sample.fetch_archive()
