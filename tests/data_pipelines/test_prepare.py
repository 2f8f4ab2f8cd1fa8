"""python -m kerass2.prepare, as a user runs it."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import time

import click.testing
import numpy as np
import pytest

from data_pipelines import (
    bigearthnet_patches,
    convert,
    cube,
    geotiff,
    sample,
    store,
    synthetic,
)
from data_pipelines.spec import SPLITS, DataError
from kerass2 import prepare, upsamplers


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kerass2.prepare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return synthetic.write_granule(tmp_path_factory.mktemp("granules") / "made-up", 768)


def test_the_command(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = run(source, "-o", tmp_path / "out", "--stride", 32)
    assert done.returncode == 0, done.stderr
    counts = store.verify(tmp_path / "out")
    assert all(counts.values())
    for name, count in counts.items():
        assert any(name in line and str(count) in line for line in done.stdout.splitlines())
    manifest = store.read_manifest(tmp_path / "out")
    assert manifest.spec.task == "superres_20m"
    assert manifest.provenance["sources"] == [str(source)]
    radius = manifest.provenance["receptive_radius"]
    assert manifest.provenance["gap"] >= radius == cube.RECEPTIVE_RADIUS
    assert manifest.provenance["synthetic"] is True
    assert "SYNTHETIC" in done.stderr
    assert sample.resolve(str(tmp_path / "out"))[1].startswith(f"data: {tmp_path / 'out'} (SYNTH")
    again = run(source, "-o", tmp_path / "out")
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr.startswith("error: ")
    assert "exists already" in again.stderr
    over = run(source, "-o", tmp_path / "out", "--overwrite", "--split", "test")
    assert over.returncode == 0, over.stderr
    assert store.verify(tmp_path / "out") == {"train": 0, "validation": 0, "test": 144}


def test_help_answers_at_once() -> None:
    best = np.inf
    for _ in range(3):
        start = time.monotonic()
        done = run("--help")
        best = min(best, time.monotonic() - start)
        assert done.returncode == 0
    assert best < 0.5
    assert "--task" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["nowhere", "-o", "out"], 1, "nowhere: not found"),
        (["nowhere", "-o", "out", "--task", "zoom"], 2, "superres_20m"),
        (["nowhere"], 2, "--output"),
        (["-o", "out"], 2, "SOURCES"),
        (["nowhere", "-o", "out", "--format", "png"], 2, "tfrecord"),
        (["nowhere", "-o", "out", "--split", "official"], 2, "auto, train, validation, test"),
        (["nowhere", "-o", "out", "--max-cloud", "1.5"], 2, "max-cloud"),
        (["nowhere", "-o", "out", "--patches-per-tile", "0"], 2, "patches-per-tile"),
        (["nowhere", "-o", "out", "--processes", "2", "--dask", "tcp://a:1"], 2, "choose one"),
    ],
)
def test_mistakes(tmp_path: pathlib.Path, arguments: list[str], code: int, text: str) -> None:
    done = run(*(str(tmp_path / a) if a in ("nowhere", "out") else a for a in arguments))
    assert done.returncode == code
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_choices_are_those_of_the_pipeline() -> None:
    assert (*cube.TASKS, bigearthnet_patches.TASK) == prepare.TASKS
    assert (*bigearthnet_patches.UPSAMPLERS, *upsamplers.METHODS) == prepare.UPSAMPLERS
    assert tuple(store.FORMATS) == prepare.FORMATS
    assert ("auto", *SPLITS) == prepare.SPLITS


def test_a_big_earth_net_folder(tmp_path: pathlib.Path) -> None:
    synthetic.write_bigearthnet(tmp_path / "ben", [(0, 0), (0, 4), (4, 0), (4, 4)])
    arguments = [str(tmp_path / "ben"), "-o", str(tmp_path / "out"), "--stride", "4"]
    result = click.testing.CliRunner().invoke(prepare.main, arguments)
    assert result.exit_code == 0, result.output
    assert store.verify(tmp_path / "out") == {"train": 128, "validation": 1, "test": 1}


def test_few_places_are_said(tmp_path: pathlib.Path) -> None:
    synthetic.write_bigearthnet(tmp_path / "ben", [(0, 0)])
    arguments = [str(tmp_path / "ben"), "-o", str(tmp_path / "out")]
    result = click.testing.CliRunner().invoke(prepare.main, arguments)
    assert "no patches in validation, test" in result.output


def test_examples_are_those_that_cut_gives(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    steps: list[tuple[int, int]] = []
    summary = convert.convert(
        lambda: convert.open_all([source]),
        tmp_path / "out",
        "superres_60m",
        patch_size=24,
        stride=12,
        advance=lambda done, total: steps.append((done, total)),
    )
    total = sum(summary.counts.values())
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[0] == (0, total)
    assert steps[-1] == (total, total)
    assert {n for _, n in steps} == {total}
    assert summary.counts == store.verify(tmp_path / "out")
    data = store.open_source(tmp_path / "out", "train")
    batch = data.read([3])
    (granule,) = convert.open_all([source])
    y, x = (int(part[1:]) for part in str(batch["patch_id"][0]).split("/")[1].split("_"))
    window = cube.Window(y, x, 24, 24)
    ((_, example),) = cube.cut(granule, cube.TASKS["superres_60m"], [window])
    for name, value in example["inputs"].items():
        np.testing.assert_array_equal(batch["inputs"][name][0], value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"patch_size": 1000}, "no patch fits: .*needs 1000 px of 20 m"),
        ({"patch_size": 31}, "patch size 31"),
        ({"stride": 3}, "stride 3: superres_20m needs a positive multiple of 2"),
    ],
)
def test_impossible_cuts(
    source: pathlib.Path, tmp_path: pathlib.Path, options: dict[str, int], text: str
) -> None:
    with pytest.raises(DataError, match=text):
        convert.convert(
            lambda: convert.open_all([source]),
            tmp_path / "out",
            "superres_20m",
            **options,  # type: ignore[arg-type]
        )
    assert list(tmp_path.iterdir()) == []


def test_the_same_source_twice(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    twice = convert.convert(
        lambda: convert.open_all([source, source]), tmp_path / "o", "superres_20m"
    )
    assert twice.granules == 1
    assert "two sources are named made-up" in twice.failed["made-up"]


@pytest.mark.parametrize("file_format", prepare.FORMATS)
def test_all_options(source: pathlib.Path, tmp_path: pathlib.Path, file_format: str) -> None:
    """Native patches in every format, a few of each tile; what is left out is in the table."""
    arguments = [str(source), "-o", str(tmp_path / "out"), "--task", "patches", "--split", "train"]
    arguments += ["--format", file_format, "--patches-per-tile", "5", "--patch-size", "60"]
    arguments += ["--stride", "120", "--seed", "4", "--processes", "9"]
    result = click.testing.CliRunner().invoke(prepare.main, arguments)
    assert result.exit_code == 0, result.output
    assert "warning: 9 processes for" in result.output
    assert store.verify(tmp_path / "out") == {"train": 5, "validation": 0, "test": 0}
    manifest = store.read_manifest(tmp_path / "out")
    assert (manifest.format, manifest.spec.task) == (file_format, "patches")
    expected = {"patch_size": 60, "stride": 120, "seed": 4, "patches_per_tile": 5, "gap": 0}
    assert expected.items() <= manifest.provenance.items()
    # Every format gives the examples that cutting gives, in the same order.
    batch = store.open_source(tmp_path / "out", "train").read(range(5))
    (granule,) = convert.open_all([source])
    corners = [
        [int(part[1:]) for part in str(name).split("/")[1].split("_")] for name in batch["patch_id"]
    ]
    assert corners == sorted(corners)
    windows = [cube.Window(y, x, 60, 60) for y, x in corners]
    for row, (_, example) in enumerate(cube.cut(granule, cube.TASKS["patches"], windows)):
        for name, value in example["inputs"].items():
            np.testing.assert_array_equal(batch["inputs"][name][row], value)


def test_sources_that_cannot_be_read_are_listed(
    source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "damaged.npz").write_bytes(b"rubbish")
    done = run(source, tmp_path / "damaged.npz", tmp_path / "gone", "-o", tmp_path / "out")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert "damaged.npz: not readable as .npz" in errors[0]
    assert "gone: not found" in errors[1]
    assert "not read: 2 sources or granules" in done.stdout
    assert all(store.verify(tmp_path / "out").values())
    none = run(source, "-o", tmp_path / "none", "--max-cloud", "0.1")
    assert none.returncode == 1
    assert "made-up: no cloud mask, so patches cannot be chosen by cloud" in none.stderr
    assert not (tmp_path / "none").exists()


def test_what_is_kept_is_said(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    kept = tmp_path / ".out.partial" / "parts"
    kept.mkdir(parents=True)
    (kept / "plan.json").write_text('{"seed": 1}')
    (kept / "00000.json").write_text("{}")
    done = run(source, "-o", tmp_path / "out", "--resume")
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert first.startswith(f"kept: {kept.parent}; the same command with --resume goes on there")
    assert "begun with other options" in second
    done = run(source, "-o", tmp_path / "out", "--stride", 32)
    assert done.returncode == 0, done.stderr
    assert not kept.exists()


@pytest.mark.shared_data
def test_real_scenes(shared_data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    scenes = [
        shared_data / "sr_scenes" / f"L1C_s2s_ucnn_{n}.npz" for n in ("usa", "iceland", "australia")
    ]
    summary = convert.convert(lambda: convert.open_all(scenes), tmp_path / "out", "superres_20m")
    assert all(summary.counts.values())
    assert summary.scenes == 3
    assert not summary.synthetic
    assert store.read_manifest(tmp_path / "out").provenance["synthetic"] is False


def test_a_granule_without_a_patch_is_named(tmp_path: pathlib.Path) -> None:
    """Several of one ground under names of their own: the splits leave some of them none."""
    cubes = synthetic.build_cubes(360, seed=0)
    for name in ("one", "two", "three", "far"):
        corner = (399960.0 + 100_000 * (name == "far"), 5800020.0)
        geotiff.write_folder(tmp_path / name, cubes, crs="EPSG:32632", corner=corner)
    sources = [tmp_path / name for name in ("one", "two", "three", "far")]
    summary = convert.convert(sources, tmp_path / "out", "superres_20m")
    assert summary.unplaced
    assert store.read_manifest(summary.folder).provenance["unplaced"] == summary.unplaced
    result = click.testing.CliRunner().invoke(
        prepare.main, [*map(str, sources), "-o", str(tmp_path / "again"), "--processes", "1"]
    )
    assert result.exit_code == 0, result.output
    assert f"no patch lies in {len(summary.unplaced)} granules" in " ".join(result.output.split())
