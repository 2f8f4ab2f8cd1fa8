"""A BigEarthNet archive to a data set: every patch is written, or accounted for."""

from __future__ import annotations

import json
import pathlib
import shutil

import click.testing
import numpy as np
import pyarrow.parquet
import pytest

from data_pipelines import (
    bigearthnet_choice,
    bigearthnet_patches,
    nomenclature,
    store,
    synthetic_archive,
)
from data_pipelines.bigearthnet_convert import Summary, convert_archive
from data_pipelines.spec import SPLITS, DataError
from kerass2 import prepare

COUNT = 40


@pytest.fixture(scope="module")
def v1(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("archive") / "v1"
    synthetic_archive.write_archive(folder, COUNT, version=1)
    return folder


@pytest.fixture(scope="module")
def v2(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("archive") / "v2"
    synthetic_archive.write_archive(folder, COUNT)
    return folder


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a few patches."""
    monkeypatch.setattr(store, "SHARD_BYTES", 2**20)


def check_account(summary: Summary) -> None:
    """Everything adds up, and the data set says the same."""
    assert sum(summary.counts.values()) + sum(summary.left_out.values()) == summary.total
    assert store.verify(summary.folder) == summary.counts
    assert sum(summary.seasons.values()) == sum(summary.counts.values())
    found = store.read_manifest(summary.folder)
    names = found.spec.targets["labels"].bands
    assert tuple(summary.classes) == names
    rows = pyarrow.parquet.read_table(summary.folder / "patches.parquet").to_pylist()
    assert len(rows) == summary.total
    for split in SPLITS:
        source = store.open_source(summary.folder, split)
        batch = source.read(range(len(source)))
        written = {row["patch_id"] for row in rows if row["split"] == split}
        assert set(batch["patch_id"].tolist()) == written
        sums = batch["targets"]["labels"].sum(axis=0, dtype=int)
        assert [summary.classes[name][split] for name in names] == sums.tolist()
    for reason, count in summary.left_out.items():
        assert sum(row["left_out"] == reason for row in rows) == count
    assert all((row["split"] is None) != (row["left_out"] is None) for row in rows)
    provenance = found.provenance
    assert provenance["total"] == summary.total
    assert provenance["left_out"] == summary.left_out
    assert provenance["classes"] == summary.classes


@pytest.mark.parametrize("num_classes", [43, 19])
def test_v1(v1: pathlib.Path, tmp_path: pathlib.Path, num_classes: int) -> None:
    summary = convert_archive(v1, tmp_path / "out", num_classes=num_classes)
    check_account(summary)
    assert summary.total == COUNT
    assert summary.left_out[bigearthnet_choice.SNOW] == 4
    assert summary.left_out[bigearthnet_choice.CLOUD] == 3
    assert summary.synthetic
    assert all(summary.counts.values())
    # Pixels and labels are those of the files, in any split.
    places = bigearthnet_patches.find_patches(v1)
    batch = store.open_source(tmp_path / "out", "train").read([1, 0])
    for row, name in enumerate(batch["patch_id"].tolist()):
        images = bigearthnet_patches.read_images(places[name], name)
        for key, image in images.items():
            np.testing.assert_array_equal(batch["inputs"][key][row], image)
        file = pathlib.Path(places[name], f"{name}_labels_metadata.json")
        labels = json.loads(file.read_text())["labels"]
        names = set(labels if num_classes == 43 else map(nomenclature.NEWER.get, labels)) - {None}
        row_names = nomenclature.class_names(num_classes)
        found = {row_names[i] for i in batch["targets"]["labels"][row].nonzero()[0]}
        assert found == names


@pytest.mark.parametrize("file_format", store.FORMATS)
def test_v2_in_every_format(v2: pathlib.Path, tmp_path: pathlib.Path, file_format: str) -> None:
    summary = convert_archive(v2, tmp_path / "out", file_format=file_format, upsample="bilinear")
    check_account(summary)
    assert sum(summary.countries.values()) == sum(summary.counts.values())
    spec = store.read_manifest(tmp_path / "out").spec
    assert spec == bigearthnet_patches.build_spec(19, upsampled=True)
    batch = store.open_source(tmp_path / "out", "test").read([0])
    name = str(batch["patch_id"][0])
    place = bigearthnet_patches.find_patches(v2)[name]
    made = bigearthnet_patches.upsample_bilinear(bigearthnet_patches.read_images(place, name))
    np.testing.assert_array_equal(batch["inputs"]["bands"][0], made)


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.usefixtures("small_parts")
def test_any_number_of_processes_writes_the_same(v1: pathlib.Path, tmp_path: pathlib.Path) -> None:
    summary = convert_archive(v1, tmp_path / "one", split="random:1")
    assert len(list((tmp_path / "one").glob("train-*"))) > 2
    check_account(summary)
    convert_archive(v1, tmp_path / "two", split="random:1", processes=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


@pytest.mark.usefixtures("small_parts")
def test_a_broken_off_conversion_goes_on(
    v1: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = convert_archive(v1, tmp_path / "whole")
    read = bigearthnet_patches.read_images
    calls: list[str] = []

    def breaks_off(place: str, name: str) -> object:
        calls.append(name)
        if len(calls) == 15:
            raise KeyboardInterrupt
        return read(place, name)

    monkeypatch.setattr(bigearthnet_patches, "read_images", breaks_off)
    with pytest.raises(KeyboardInterrupt):
        convert_archive(v1, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="begun with other options: split 'official', now 'tiles:1"):
        convert_archive(v1, tmp_path / "out", split="tiles:1", resume=True)
    before = len(calls)
    again = convert_archive(v1, tmp_path / "out", resume=True)
    assert 0 < len(calls) - before < sum(summary.counts.values())
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert again.classes == summary.classes


def test_damaged_patches_are_counted_and_named(v1: pathlib.Path, tmp_path: pathlib.Path) -> None:
    archive = pathlib.Path(shutil.copytree(v1, tmp_path / "archive"))
    names = (archive / "train.csv").read_text().split()

    def band(number: int, name: str = "B05") -> pathlib.Path:
        return archive / names[number] / f"{names[number]}_{name}.tif"

    def labels(number: int) -> pathlib.Path:
        return archive / names[number] / f"{names[number]}_labels_metadata.json"

    band(0).unlink()
    band(1).write_bytes(band(1).read_bytes()[:300])
    band(2).write_bytes(band(2, "B02").read_bytes())
    labels(3).write_text("{}")
    labels(4).write_text('{"labels": ["Pasture"]}')
    labels(5).write_text('{"labels": ["Marine waters"]}')
    for file in (archive / names[6]).glob("*.tif"):
        write_zeros(file)
    shutil.rmtree(archive / names[7])
    summary = convert_archive(archive, tmp_path / "out")
    check_account(summary)
    assert summary.total == COUNT - 1
    assert list(summary.failed) == sorted(names[:6])
    expected = ("no band B05", "B05.tif", "B05 is uint16 (120, 120)", "labels None", "'Pasture'")
    for name, words in zip(names, (*expected, "nomenclature of 19"), strict=False):
        assert words in summary.failed[name]
        assert name in summary.failed[name]
    assert summary.left_out[bigearthnet_choice.FAILED] == 6
    assert summary.left_out[bigearthnet_choice.EMPTY] == 1
    assert summary.absent == [names[7]]
    result = run(archive, "-o", tmp_path / "again", "--processes", 1)
    assert result.exit_code == 1
    assert result.stderr.count("error: ") == 6
    assert "1 patches have a split but are not in the archive" in result.stdout
    assert files_of(tmp_path / "again").keys() == files_of(tmp_path / "out").keys()


def write_zeros(file: pathlib.Path) -> None:
    import rasterio

    with rasterio.open(file, "r+") as image:
        image.write(np.zeros(image.shape, np.uint16), 1)


def test_patches_without_a_class_of_19_are_counted(
    v1: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    archive = pathlib.Path(shutil.copytree(v1, tmp_path / "archive"))
    name = (archive / "test.csv").read_text().split()[0]
    (archive / name / f"{name}_labels_metadata.json").write_text('{"labels": ["Airports"]}')
    summary = convert_archive(archive, tmp_path / "out", num_classes=19)
    check_account(summary)
    assert summary.left_out[bigearthnet_choice.NO_CLASS] >= 1
    assert bigearthnet_choice.NO_CLASS not in convert_archive(archive, tmp_path / "all").left_out


def test_43_classes_cannot_be_made_of_19(v2: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"metadata\.parquet: label .* of the nomenclature of 19"):
        convert_archive(v2, tmp_path / "out", num_classes=43)
    assert not list(tmp_path.iterdir())


def test_nothing_left(v1: pathlib.Path, tmp_path: pathlib.Path) -> None:
    archive = pathlib.Path(shutil.copytree(v1, tmp_path / "archive"))
    for file in archive.glob("*/*_labels_metadata.json"):
        file.unlink()
    with pytest.raises(DataError, match=r"no patch is left of 40: .* could not be read; .*json"):
        convert_archive(archive, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_lists_elsewhere(v1: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "lists").mkdir()
    for path in v1.iterdir():
        (tmp_path / ("archive" if path.is_dir() else "lists") / path.name).symlink_to(path)
    with pytest.raises(DataError, match="no official split found"):
        convert_archive(tmp_path / "archive", tmp_path / "out")
    with pytest.raises(DataError, match=r"out: no list of BigEarthNet; expected train\.csv"):
        convert_archive(tmp_path / "archive", tmp_path / "out", lists=tmp_path / "out")
    given = convert_archive(tmp_path / "archive", tmp_path / "out", lists=tmp_path / "lists")
    assert given.counts == convert_archive(v1, tmp_path / "usual").counts


def run(*arguments: object) -> click.testing.Result:
    command = [*map(str, arguments), "--task", "bigearthnet"]
    return click.testing.CliRunner().invoke(prepare.main, command, catch_exceptions=True)


def test_the_command(v2: pathlib.Path, tmp_path: pathlib.Path) -> None:
    arguments = (v2, "-o", tmp_path / "out", "--split", "tiles:2", "--format", "hdf5")
    result = run(*arguments, "--processes", 1)
    assert result.exit_code == 0, result.output
    found = store.read_manifest(tmp_path / "out")
    assert found.provenance["split"] == "tiles:2"
    assert found.provenance["upsample"] == "none"
    total = found.provenance["total"]
    assert f"{total:,} patches in the archive" in result.stdout
    for words in ("left out: seasonal snow", "Urban fabric", "countries: ", "seasons: "):
        assert words in result.stdout
    assert "SYNTHETIC" in result.stderr
    again = run(*arguments)
    assert isinstance(again.exception, DataError)
    assert "exists already" in str(again.exception)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a", "b"], "expected one ARCHIVE, got 2"),
        (["a", "--stride", "4"], "--stride: not with --task bigearthnet"),
        (["a", "--max-cloud", "0.1"], "--max-cloud: not with --task bigearthnet"),
        (["a", "--classes", "20"], "'20' is not one of '43', '19'"),
        (["synthetic:many"], "expected a number of patches"),
    ],
)
def test_mistakes(tmp_path: pathlib.Path, arguments: list[str], words: str) -> None:
    result = run(*arguments, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert words in result.stderr
    other = click.testing.CliRunner().invoke(
        prepare.main, ["a", "-o", str(tmp_path / "out"), "--classes", "43"]
    )
    assert other.exit_code == 2
    assert "--classes: only with --task bigearthnet" in other.stderr


def test_made_up_patches_without_an_archive(tmp_path: pathlib.Path) -> None:
    result = run("synthetic:30", "-o", tmp_path / "out", "--classes", 43)
    assert result.exit_code == 0, result.output
    assert sum(store.verify(tmp_path / "out").values()) == 30
    assert store.read_manifest(tmp_path / "out").provenance["synthetic"] is True


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("layout", "num_classes", "total"),
    [("v1_configilm", 43, 30), ("v1_configilm", 19, 30), ("v2_configilm", 19, 24)],
)
def test_real_archives(
    shared_data: pathlib.Path, tmp_path: pathlib.Path, layout: str, num_classes: int, total: int
) -> None:
    archive = shared_data / "bigearthnet" / layout
    split = "official"
    if layout == "v1_configilm":
        rows = []
        for word in ("train", "val", "test"):
            names = (shared_data / "bigearthnet" / f"v1_configilm_{word}.csv").read_text().split()
            rows += [f"{name},{word}" for name in names]
        (tmp_path / "mine.csv").write_text("\n".join(rows))
        split = str(tmp_path / "mine.csv")
    summary = convert_archive(archive, tmp_path / "out", split=split, num_classes=num_classes)
    check_account(summary)
    assert summary.total == total
    assert not summary.synthetic
    if layout == "v2_configilm":
        assert summary.counts == dict.fromkeys(SPLITS, 6)
        assert sum(summary.left_out.values()) == 6
        assert summary.countries == {"Austria": 18}
    else:
        assert summary.counts == dict.fromkeys(SPLITS, 10)


@pytest.mark.shared_data
def test_real_v1_patches_under_the_official_lists(
    shared_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder = shared_data / "bigearthnet"
    summary = convert_archive(
        folder / "v1_BigEarthNet-S2-Example", tmp_path / "out", lists=folder / "splits_v1"
    )
    check_account(summary)
    assert summary.total == 6
    assert len(summary.absent) > 519_000


def test_parts_of_one_split_fill_one_shard(v1: pathlib.Path, tmp_path: pathlib.Path) -> None:
    convert_archive(v1, tmp_path / "out")
    for split, shards in store.read_manifest(tmp_path / "out").splits.items():
        assert len(shards) == 1, split
