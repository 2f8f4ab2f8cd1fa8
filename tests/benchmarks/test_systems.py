"""Systems: what the files say, what is detected, and what is said of a wrong file."""

from __future__ import annotations

import csv
import os
import pathlib
import stat

import pytest

from benchmarks import systems
from data_pipelines.spec import DataError


def test_what_comes_with_the_package() -> None:
    assert systems.names() == ["jureca", "juron", "juwels", "local"]
    devices = {name: systems.load(name).device.name for name in systems.names() if name != "local"}
    for name, device in {"juron": "P100", "juwels": "V100", "jureca": "K80"}.items():
        assert device in devices[name]
    assert systems.load("juwels").find_link("nodes") == systems.load("juwels").link[1]
    assert systems.load("local").find_link("nodes") is None


def read(path: pathlib.Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.shared_data
def test_published_numbers_are_those_of_the_papers(shared_data: pathlib.Path) -> None:
    published = shared_data / "published"
    (curve,) = systems.load("juwels").curve
    rows = read(published / "juwels_resnet50_epoch_time.csv")
    found = sorted((int(row["gpus"]), float(row["seconds_per_epoch"])) for row in rows)
    assert found == list(zip(curve.ranks, curve.values, strict=True))
    for quality, name in zip(systems.load("juron").quality, ("20m", "60m"), strict=True):
        rows = read(published / f"superres_{name}.csv")
        assert len(rows) == len(quality.row)
        for printed, row in zip(rows, quality.row, strict=True):
            assert tuple(float(printed[metric]) for metric in quality.metrics) == row.scores
            assert printed["method"] == row.method.lower()
            assert printed["gpus"] == str(row.ranks or "")
            assert printed["training_time"] == (f"{row.hours:g}h" if row.hours else "")
            batch = {"1028": "1024", "2056": "2048"}.get(
                printed["global_batch"], printed["global_batch"]
            )
            assert batch == str(row.global_batch or "")
    (quality,) = systems.load("juwels").quality
    rows = read(published / "bigearthnet_resnet50_global.csv")
    scores = {row["model"]: tuple(float(row[m]) for m in quality.metrics) for row in rows}
    assert scores == {"multispectral": quality.row[0].scores, "rgb": quality.row[1].scores}


def test_this_machine_is_detected() -> None:
    local = systems.load("local")
    assert local.node.cores == len(os.sched_getaffinity(0))
    assert local.nodes == 1
    kilobytes = int(pathlib.Path("/proc/meminfo").read_text().split()[1])
    assert local.node.memory_gb == pytest.approx(kilobytes * 1024 / 1e9, rel=0.05)
    assert local.node.cpu in pathlib.Path("/proc/cpuinfo").read_text()


def test_gpus_are_devices(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "NVIDIA H100, 81559"\necho "NVIDIA H100, 81559"\n')
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    local = systems.load("local")
    assert (local.node.devices, local.device.name) == (2, "NVIDIA H100")
    assert local.device.memory_gb == pytest.approx(85.5, abs=0.1)
    program.write_text("#!/bin/sh\nexit 9\n")
    assert systems.load("local").device.name.startswith("one core of")


def test_the_template_is_a_system(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "mine.toml"
    text = (systems.FOLDER / "template.toml").read_text()
    path.write_text(text.replace('name = "template"', 'name = "mine"'))
    found = systems.load(path)
    assert (found.name, found.node.devices, found.curve[0].ranks) == ("mine", 4, (4, 8))


SMALL = """
name = "small"
title = "t"
source = "s"
launcher = "srun"
node = {devices = 4}
device = {name = "GPU"}
"""
CURVE = """
[[curve]]
experiment = "bigearthnet_ms"
title = "ResNet-50"
quantity = "epoch_seconds"
strategy = "horovod"
mode = "weak"
local_batch = 64
ranks = [4, 8]
values = [2, 1]
source = "paper"
"""
LINK = '[[link]]\nname = "n"\nbetween = "nodes"\nbandwidth = 1\nlatency = 1e-6\nsource = "s"\n'


@pytest.mark.parametrize(
    ("text", "key", "told"),
    [
        (SMALL.replace("devices = 4", "devices = 0"), "node.devices", "found 0; expected: "),
        (SMALL.replace("devices = 4", 'devices = "four"'), "node.devices", "found 'four'"),
        (SMALL.replace('title = "t"', ""), "title", "not there"),
        (SMALL + "colour = 1", "colour", "found an unknown key"),
        (SMALL + CURVE.replace("[4, 8]", "[4]"), "curve.0", "values: 2 for 1 numbers of ranks"),
        (SMALL + CURVE.replace("[4, 8]", "[8, 4]"), "curve.0", "ranks: expected ascending"),
        (SMALL + CURVE.replace("[2, 1]", "[2, -1]"), "curve.0.values.1", "found -1"),
        (SMALL + CURVE.replace("epoch_seconds", "epochs"), "curve.0.quantity", "found 'epochs'"),
        (SMALL + LINK + LINK, "the whole file", "expected each at most once"),
        (SMALL + LINK.replace("= 1\n", "= inf\n"), "link.0.bandwidth", "found inf"),
        (
            SMALL + '[[quality]]\nexperiment = "e"\ntitle = "t"\nmetrics = ["f1"]\nsource = "s"\n'
            'row = [{method = "m", scores = [1.0, 2.0]}]',
            "quality.0",
            "row 0: 2 scores for 1 metrics",
        ),
        ("name = ", "expected TOML", ""),
    ],
)
def test_a_wrong_file_is_told_by_key(
    tmp_path: pathlib.Path, text: str, key: str, told: str
) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(DataError) as raised:
        systems.load(path)
    assert str(raised.value).startswith(f"{path}: {key}")
    assert told in str(raised.value)


def test_every_mistake_of_a_file_is_told(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(SMALL.replace("devices = 4", "devices = 0").replace('title = "t"', ""))
    with pytest.raises(DataError, match=r"title: not there.*; .*node\.devices: found 0"):
        systems.load(path)


def test_a_missing_system_names_what_there_is(tmp_path: pathlib.Path) -> None:
    with pytest.raises(
        DataError, match="no system 'summit'; expected one of jureca, juron, juwels"
    ):
        systems.load("summit")
    with pytest.raises(DataError, match=r"far\.toml: cannot be read"):
        systems.load(tmp_path / "far.toml")
