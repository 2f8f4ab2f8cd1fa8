"""What BigEarthNet's lists say, and what becomes of each patch by them."""

from __future__ import annotations

import bz2
import collections
import gzip
import pathlib

import pyarrow
import pyarrow.parquet
import pytest

from data_pipelines import bigearthnet_choice, bigearthnet_lists
from data_pipelines.bigearthnet_lists import CLOUD, EXCLUDED, METADATA, SNOW, Lists
from data_pipelines.spec import SPLITS, DataError

NAMES = [f"S2A_MSIL2A_20170613T101031_{i}_7" for i in range(40)]


def write_table(path: pathlib.Path, **columns: list[object]) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


@pytest.mark.shared_data
def test_the_official_lists_give_the_known_numbers(shared_data: pathlib.Path) -> None:
    """590,326 patches; without snow, cloud and shadow 519,339; in an official split 519,284."""
    folder = shared_data / "bigearthnet" / "splits_v1"
    lists = bigearthnet_lists.read_folder(folder)
    with bz2.open(folder / "patches_with_no_19_class_targets.csv.bz2", "rt") as file:
        no_class = {line.strip() for line in file}
    assert len(no_class) == 57
    archive = sorted({*lists.splits, *lists.snow, *lists.cloud, *no_class})
    assert len(archive) == 590_326
    choice = bigearthnet_choice.choose(archive, lists)
    reasons = collections.Counter(choice.left_out.values())
    assert reasons == {
        bigearthnet_choice.SNOW: 61_707,
        bigearthnet_choice.CLOUD: 9_280,
        bigearthnet_choice.NO_SPLIT: 55,
    }
    counts = {name: len(patches) for name, patches in choice.splits.items()}
    assert counts == {"train": 269_695, "validation": 123_723, "test": 125_866}
    assert sum(counts.values()) == 519_284
    assert sum(counts.values()) + reasons[bigearthnet_choice.NO_SPLIT] == 519_339
    assert sum(counts.values()) + reasons.total() == 590_326
    assert not choice.absent
    # The rest has no class of 19: it is in no split because of that.
    rest = {name for name, why in choice.left_out.items() if why == bigearthnet_choice.NO_SPLIT}
    assert rest < no_class


@pytest.mark.shared_data
def test_real_tables_of_v2(shared_data: pathlib.Path) -> None:
    lists = bigearthnet_lists.read_folder(shared_data / "bigearthnet" / "v2_configilm")
    assert collections.Counter(lists.splits.values()) == dict.fromkeys(SPLITS, 6)
    assert len(lists.labels) == 24
    assert len(lists.snow) + len(lists.cloud) == 6
    assert set(lists.countries.values()) == {"Austria", "Finland"}


@pytest.mark.parametrize(
    ("suffix", "pack"), [("", bytes), (".bz2", bz2.compress), (".gz", gzip.compress)]
)
def test_lists_plain_and_packed(tmp_path: pathlib.Path, suffix: str, pack: object) -> None:
    def write(name: str, lines: list[str]) -> None:
        data = "".join(f"{line}\n" for line in lines).encode()
        (tmp_path / f"{name}{suffix}").write_bytes(pack(data))  # type: ignore[operator]

    write("train.csv", ["patch_id", *NAMES[:5], ""])
    write("val.csv", NAMES[5:7])
    write("test.csv", NAMES[7:10])
    write(SNOW, NAMES[20:23])
    write(CLOUD, NAMES[23:24])
    lists = bigearthnet_lists.find_lists([tmp_path / "none", tmp_path])
    assert collections.Counter(lists.splits.values()) == {"train": 5, "validation": 2, "test": 3}
    assert (lists.snow, lists.cloud) == (set(NAMES[20:23]), set(NAMES[23:24]))
    assert len(lists.files) == 5
    assert not lists.labels


def test_each_patch_is_counted_once() -> None:
    splits = dict.fromkeys(NAMES[:10], "train") | dict.fromkeys(NAMES[10:14], "test")
    lists = Lists({**splits, "gone": "test"}, {NAMES[0], NAMES[20]}, {NAMES[0], NAMES[1]})
    choice = bigearthnet_choice.choose(NAMES, lists)
    assert {name: len(patches) for name, patches in choice.splits.items()} == {
        "train": 8, "validation": 0, "test": 4,
    }  # fmt: skip
    assert choice.left_out[NAMES[0]] == bigearthnet_choice.SNOW
    assert choice.left_out[NAMES[1]] == bigearthnet_choice.CLOUD
    assert choice.left_out[NAMES[39]] == bigearthnet_choice.NO_SPLIT
    assert sum(map(len, choice.splits.values())) + len(choice.left_out) == 40
    assert choice.absent == ["gone"]
    lists = Lists(splits, labels=dict.fromkeys(NAMES[:12], ("Pastures",)))
    choice = bigearthnet_choice.choose(NAMES, lists)
    assert choice.left_out[NAMES[12]] == bigearthnet_choice.UNKNOWN


def tile_of(name: str) -> str:
    """Tiles that lie under two products each, as the labels of v1 have them."""
    return f"32U{'ABCDEFGHJKLMNPQRSTUVWXYZAB'[int(name[22:24]) // 2]}C"


@pytest.mark.parametrize("how", ["random:3", "tiles:3"])
def test_splits_at_random(how: str) -> None:
    names = [f"S2A_MSIL2A_20170613T10{t:02d}31_{i}_7" for t in range(48) for i in range(40)]
    choice = bigearthnet_choice.choose(names, Lists(), how, tile_of)
    shares = [len(choice.splits[name]) / 1920 for name in SPLITS]
    assert shares == pytest.approx(bigearthnet_choice.FRACTIONS, abs=0.05)
    assert choice.splits == bigearthnet_choice.choose(names, Lists(), how, tile_of).splits
    other = bigearthnet_choice.choose(names, Lists(), how[:-1] + "4", tile_of)
    assert choice.splits != other.splits
    tiles = [{tile_of(name) for name in choice.splits[s]} for s in SPLITS]
    shared = tiles[0] & tiles[1] | tiles[0] & tiles[2] | tiles[1] & tiles[2]
    assert bool(shared) == how.startswith("random")
    if how.startswith("random"):  # what is missing changes no other patch
        fewer = bigearthnet_choice.choose(names[::2], Lists(), how)
        assert set(fewer.splits["test"]) == set(choice.splits["test"]) & set(names[::2])


def test_a_tile_that_nobody_knows() -> None:
    words = f"{NAMES[0]}: of which tile is not known; --split tiles:1 expects it in the name"
    with pytest.raises(DataError, match=words):
        bigearthnet_choice.choose(NAMES, Lists(), "tiles:1")


@pytest.mark.parametrize("group", ["snow", "cloud"])
def test_lists_of_the_other_version_exclude_nothing_silently(group: str) -> None:
    lists = Lists(**{group: set(NAMES[:1])}, files=["a/snow.csv"])
    newer = ["S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57"]
    words = f"a/snow.csv: lists of another version: they name {NAMES[0]}, the archive holds S2A"
    with pytest.raises(DataError, match=words):
        bigearthnet_choice.choose(newer, lists, "random:1")


def test_lists_in_two_places(tmp_path: pathlib.Path) -> None:
    for folder, name in ((tmp_path, "train.csv"), (tmp_path / "archive", SNOW)):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(f"{NAMES[0]}\n")
    with pytest.raises(DataError, match=f"lists in two places, such as .*{SNOW} and .*train.csv"):
        bigearthnet_lists.find_lists([tmp_path / "archive", tmp_path])
    assert bigearthnet_lists.find_lists([tmp_path]).splits == {NAMES[0]: "train"}


def test_splits_of_a_file(tmp_path: pathlib.Path) -> None:
    rows = [f"{NAMES[0]},train", f"{NAMES[1]},val", f"{NAMES[2]},test"]
    (tmp_path / "mine.csv").write_text("\n".join(["patch_id,split", *rows]))
    choice = bigearthnet_choice.choose(NAMES, Lists(), str(tmp_path / "mine.csv"))
    assert choice.splits == {"train": NAMES[:1], "validation": NAMES[1:2], "test": NAMES[2:3]}
    write_table(tmp_path / "mine.parquet", patch_id=NAMES[:2], split=["test", "train"])
    choice = bigearthnet_choice.choose(NAMES, Lists(), str(tmp_path / "mine.parquet"))
    assert choice.splits == {"train": NAMES[1:2], "validation": [], "test": NAMES[:1]}


def test_bad_lists(tmp_path: pathlib.Path) -> None:
    def fails(words: str, call: object, *arguments: object) -> None:
        with pytest.raises(DataError, match=words):
            call(*arguments)  # type: ignore[operator]

    read = bigearthnet_lists.read_folder
    (tmp_path / "train.csv").write_text(f"{NAMES[0]}\n{NAMES[1]}\n")
    (tmp_path / "test.csv").write_text(f"{NAMES[1]}\n")
    fails(f"test.csv: {NAMES[1]} is in two splits: train and test", read, tmp_path)
    (tmp_path / "test.csv").write_text(f"{NAMES[2]}\nrubbish\n")
    fails("test.csv, line 2: 'rubbish'; expected the name", read, tmp_path)
    (tmp_path / "test.csv").write_bytes(b"\xff\xfe\x00")
    fails("test.csv: not readable as a list", read, tmp_path)
    (tmp_path / "a.csv").write_text(f"{NAMES[0]},exam\n")
    read = bigearthnet_lists.read_splits
    fails(f"a.csv: {NAMES[0]}: split 'exam'; expected one of train", read, tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("")
    fails("b.csv: no patch has a split", read, tmp_path / "b.csv")
    (tmp_path / "c.csv.bz2").write_bytes(b"rubbish")
    fails("c.csv.bz2: not readable as a list", read, tmp_path / "c.csv.bz2")
    write_table(tmp_path / "d.parquet", patch_id=NAMES)
    fails("d.parquet: no column split; found patch_id", read, tmp_path / "d.parquet")
    choose = bigearthnet_choice.choose
    fails("no official split found; expected metadata.parquet", choose, NAMES, Lists())
    fails(
        "--split randomly:1: expected official, random:SEED", choose, NAMES, Lists(), "randomly:1"
    )
    for word in ("random:x", "tiles:-1", "random:-1", "tiles:", "tiles:1.5", "tiles:²"):
        fails(f"--split {word}: expected official.* at least 0", choose, NAMES, Lists(), word)
    lists = Lists({f"{NAMES[0]}0": "train"}, {NAMES[0]})
    fails(
        "no patch is left of 40: 1 seasonal snow, 39 in no split; 1 patches", choose, NAMES, lists
    )


@pytest.mark.parametrize("missing", ["patch_id", "labels", "split"])
def test_tables_without_a_needed_column(tmp_path: pathlib.Path, missing: str) -> None:
    columns: dict[str, list[object]] = {
        "patch_id": [*NAMES[:2]],
        "labels": [["Pastures"], ["Pastures"]],
        "split": ["train", "test"],
    }
    del columns[missing]
    write_table(tmp_path / METADATA, **columns)
    with pytest.raises(DataError, match=rf"metadata\.parquet: no column {missing}; found "):
        bigearthnet_lists.read_folder(tmp_path)


def test_bad_tables(tmp_path: pathlib.Path) -> None:
    labels: list[object] = [["Pastures"], ["Pastures"]]
    twice: list[object] = [NAMES[0], NAMES[0]]
    write_table(tmp_path / METADATA, patch_id=twice, labels=labels, split=["train", "test"])
    with pytest.raises(DataError, match=f"{NAMES[0]} is in two splits: train and test"):
        bigearthnet_lists.read_folder(tmp_path)
    write_table(tmp_path / METADATA, patch_id=twice, labels=labels, split=["test", "test"])
    with pytest.raises(DataError, match=f"{NAMES[0]} is there twice"):
        bigearthnet_lists.read_folder(tmp_path)
    (tmp_path / METADATA).write_bytes(b"rubbish")
    with pytest.raises(DataError, match="not readable as BigEarthNet metadata"):
        bigearthnet_lists.read_folder(tmp_path)
    (tmp_path / METADATA).unlink()
    write_table(tmp_path / EXCLUDED, patch_id=[*NAMES[:2]], labels=labels)
    with pytest.raises(DataError, match="no column contains_seasonal_snow, contains_cloud"):
        bigearthnet_lists.read_folder(tmp_path)


@pytest.mark.parametrize(
    ("month", "season"),
    [("01", "winter"), ("03", "spring"), ("08", "summer"), ("11", "autumn"), ("12", "winter")],
)
def test_seasons(month: str, season: str) -> None:
    assert bigearthnet_choice.season(f"S2A_MSIL2A_2017{month}13T101031_1_2") == season
