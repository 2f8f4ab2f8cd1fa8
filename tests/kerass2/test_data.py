"""kerass2.data as a user runs it: info, verify, convert, show."""

from __future__ import annotations

import json
import pathlib
import shutil
import sys
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.image import imread

from data_pipelines import cube, store
from data_pipelines.spec import SPLITS, DatasetSpec, TensorSpec
from kerass2 import cli, contact_sheet, data

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The command as `python -m` runs it, in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kerass2.data", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "80")
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.run(data.main)
        captured = capfd.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return call


def test_choices_are_those_of_the_pipeline() -> None:
    assert tuple(store.FORMATS) == data.FORMATS
    assert tuple(cube.TASKS) == data.TASKS
    assert SPLITS == data.SPLITS


def test_info(run: Run, prepared: pathlib.Path, granule_folder: pathlib.Path) -> None:
    code, out, err = run("info", prepared)
    assert (code, err) == (0, "")
    assert "THIS DATA SET IS SYNTHETIC: MADE UP, NOT MEASURED" in out
    found = store.read_manifest(prepared)
    for split in SPLITS:
        count = f"{found.num_examples(split):,}"
        assert any(line.split()[:2] == [split, count] for line in out.splitlines())
    for text in ("superres_20m", "tfrecord", "32 x 32 x 4", "B8A", "uint16", "seed: 0", "23.6 kB"):
        assert text in out
    assert str(granule_folder) in out


def test_info_and_verify_as_json(run: Run, prepared: pathlib.Path) -> None:
    told = json.loads(run("info", prepared, "--json")[1])
    found = store.read_manifest(prepared)
    assert (told["task"], told["format"]) == ("superres_20m", "tfrecord")
    counts = {split: found.num_examples(split) for split in SPLITS}
    assert {split: each["patches"] for split, each in told["splits"].items()} == counts
    assert told["arrays"]["inputs"]["gsd20"]["bands"] == list(found.spec.inputs["gsd20"].bands)
    assert json.loads(run("verify", prepared, "--json")[1]) == {"records": counts}


@pytest.mark.parametrize("file_format", data.FORMATS)
def test_convert_there_and_back(
    run: Run, prepared: pathlib.Path, tmp_path: pathlib.Path, file_format: str
) -> None:
    code, out, err = run("convert", prepared, "-o", tmp_path / "a", "--format", file_format)
    assert code == 0, err
    old, new = store.read_manifest(prepared), store.read_manifest(tmp_path / "a")
    assert new.format == file_format
    assert (new.spec, list(new.splits)) == (old.spec, list(old.splits))
    assert {**new.provenance, "format": None} == {**old.provenance, "format": None}
    assert new.provenance["format"] == file_format
    for split in old.splits:
        crcs = [
            [crc for shard in found.splits[split] for crc in shard.crcs] for found in (old, new)
        ]
        assert crcs[0] == crcs[1]
    code, out, err = run("verify", tmp_path / "a")
    assert code == 0, err
    total = sum(old.num_examples(split) for split in old.splits)
    assert f"{total:,} records in" in out
    assert run("convert", tmp_path / "a", "-o", tmp_path / "b", "--format", "tfrecord")[0] == 0
    for split in old.splits:
        once, again = (
            b"".join(path.read_bytes() for path in sorted(folder.glob(f"{split}-*.tfrecord")))
            for folder in (prepared, tmp_path / "b")
        )
        assert once == again


def test_convert_keeps_what_is_there(
    run: Run, prepared: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    arguments = ["convert", prepared, "-o", tmp_path / "a", "--format", "tfrecord"]
    assert run(*arguments)[0] == 0
    code, _, err = run(*arguments)
    assert code == 1
    assert "exists already" in err
    assert run(*arguments, "--overwrite")[0] == 0


def flip(path: pathlib.Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_damage_is_named_and_nothing_is_left(
    run: Run, prepared: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    broken = shutil.copytree(prepared, tmp_path / "broken")
    first = store.read_manifest(prepared).splits["test"][0]
    flip(broken / first.name, first.offsets[2] + 500)
    for arguments in (
        ["verify", broken],
        ["convert", broken, "-o", tmp_path / "out", "--format", "tfrecord"],
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (1, "")
        assert err.startswith(f"error: {broken / first.name}, record 2: ")
        assert err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken"]


def test_records_of_another_shard_are_not_copied(
    run: Run, prepared: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Sound by themselves, so that only the manifest's checksums of records tell."""
    broken = shutil.copytree(prepared, tmp_path / "broken")
    shard = store.read_manifest(prepared).splits["test"][0]
    content = bytearray((broken / shard.name).read_bytes())
    a, b, c = (*shard.offsets, shard.files[0].num_bytes)[:3]
    assert b - a == c - b
    content[a:b], content[b:c] = content[b:c], content[a:b]
    (broken / shard.name).write_bytes(content)
    code, _, err = run("convert", broken, "-o", tmp_path / "out", "--format", "tfrecord")
    assert code == 1
    assert f"{broken / shard.name}, record 0: CRC of record" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["info", "nowhere"], 1, "manifest.json: not found"),
        (["verify", "nowhere"], 1, "manifest.json: not found"),
        (["show", "nowhere", "-o", "out.png"], 1, "nowhere"),
        (["show", "nowhere", "-o", "out.jpg"], 1, "ends in .png"),
        (["convert", "nowhere", "-o", "out", "--format", "zip"], 2, "tfrecord"),
        (["convert", "nowhere", "-o", "out"], 2, "--format"),
        (["dance"], 2, "No such command"),
    ],
)
def test_mistakes(
    run: Run,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    found, _, err = run(*arguments)
    assert found == code
    assert text in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_show_a_data_set(run: Run, prepared: pathlib.Path, tmp_path: pathlib.Path) -> None:
    sheets = []
    for seed in (0, 0, 1):
        code, out, err = run("show", prepared, "-o", tmp_path / "a.png", "--seed", seed)
        assert code == 0, err
        assert "12 of" in out and "split train" in out
        sheets.append(imread(tmp_path / "a.png"))
    np.testing.assert_array_equal(sheets[0], sheets[1])
    assert not np.array_equal(sheets[0], sheets[2])
    assert min(sheets[0].shape[:2]) > 500
    colours = np.unique((255 * sheets[0][..., :3]).astype(np.uint8).reshape(-1, 3), axis=0)
    assert len(colours) > 1000, "pictures, not blank panels"


def test_show_a_product(
    run: Run, granule_folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERASS2_CACHE", str(tmp_path / "cache"))
    arguments = ["--task", "patches", "--split", "test", "--number", "2"]
    code, out, err = run("show", granule_folder, "-o", tmp_path / "a.png", *arguments)
    assert code == 0, err
    assert "2 of" in out and "split test" in out
    assert (tmp_path / "a.png").exists()


class Labelled:
    """Two patches with labels."""

    split = "train"
    spec = DatasetSpec(
        "labels",
        {"gsd10": TensorSpec((12, 12, 4), ("B02", "B03", "B04", "B08"), 10)},
        {"classes": TensorSpec((3,), ("Pastures", "Sea", "Bare rock"), 10, "uint8")},
    )

    def __len__(self) -> int:
        return 2

    def read(self, indices: object) -> dict[str, object]:
        number = len(np.asarray(indices))
        return {
            "inputs": {"gsd10": np.full((number, 12, 12, 4), 500, np.uint16)},
            "targets": {"classes": np.tile(np.array([1, 0, 1], np.uint8), (number, 1))},
            "patch_id": np.array(["one"] * number),
        }


def test_labels_stand_below_and_a_flat_patch_is_drawn(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    real = contact_sheet._Sheet.text
    monkeypatch.setattr(
        contact_sheet._Sheet,
        "text",
        lambda self, x, y, text, **more: (written.append(text), real(self, x, y, text, **more))[1],
    )
    shown = contact_sheet.write(
        tmp_path / "a.png", Labelled(), title="t", number=9, seed=0, synthetic=True
    )
    assert shown == 2
    assert written.count("Pastures; Bare rock") == 2
    assert any("SYNTHETIC: MADE UP, NOT MEASURED" in text for text in written)


def test_as_a_process(run_command, prepared: pathlib.Path) -> None:  # type: ignore[no-untyped-def]
    done = run_command("data", "verify", prepared)
    assert done.returncode == 0, done.stderr
    assert "all as the manifest says" in done.stdout
    assert run_command("cli", "data", "--help").returncode == 0
