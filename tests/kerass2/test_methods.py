"""What paths and names mean, without Keras; and the interpolations."""

from __future__ import annotations

import json
import pathlib

import cv2
import numpy as np
import pytest

from data_pipelines.spec import DataError
from kerass2 import config, inputs, methods
from kerass2 import job as jobs


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("S2A_MSIL1C_20180629T102041_N0206_R022_T32UMC_20180629T102041", ["L1C"]),
        ("S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57", ["L2A"]),
        ("L1C_s2s_ucnn_usa", ["L1C"]),
        ("dsen2_L2A60M", ["L2A"]),
        ("l1c_aesr_20m_s2_038_lr_1e-04", ["L1C"]),
        ("/data/L2A_majortom.npz", ["L2A"]),
        ("granule", []),
        ("MODEL1C", []),
    ],
)
def test_levels_in_names(name: str, levels: list[str]) -> None:
    assert methods.find_levels([name]) == levels


def test_levels_of_several_names_are_sorted() -> None:
    assert methods.find_levels(["x_L2A", "L1C_y", "L2A"]) == ["L1C", "L2A"]


@pytest.mark.parametrize(
    ("trained", "given", "warned"),
    [
        (("L1C",), ["L2A"], True),
        (("L1C",), ["L1C", "L2A"], True),
        (("L1C", "L2A"), ["L2A"], False),
        (("L1C",), ["L1C"], False),
        ((), ["L2A"], False),
        (("L1C",), [], False),
    ],
)
def test_a_warning_only_where_both_levels_are_known(
    trained: tuple[str, ...], given: list[str], warned: bool
) -> None:
    method = methods.Method("model", pathlib.Path("a.keras"), "superres_20m", trained)
    assert bool(methods.warn_of_level(method, given)) == warned


def test_the_levels_of_a_model_come_from_its_data_set(tmp_path: pathlib.Path) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    run.mkdir(), data.mkdir()
    facts = {"provenance": {"scenes": ["S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"]}}
    (data / "manifest.json").write_text(json.dumps(facts))
    (run / "data.json").write_text(json.dumps({"data": str(data)}))
    assert methods._trained_on(run / "model.keras") == ("L2A",)
    (run / "data.json").write_text(json.dumps({"data": str(data), "levels": ["L1C"]}))
    assert methods._trained_on(run / "model.keras") == ("L1C",)
    (run / "data.json").write_text(json.dumps({"data": "S2A_MSIL1C_20170527_T33UUB.SAFE"}))
    assert methods._trained_on(run / "model.keras") == ("L1C",)
    (run / "model.json").write_text(json.dumps({"levels": ["L1C", "L2A"]}))  # a model card
    assert methods._trained_on(run / "model.keras") == ("L1C", "L2A")
    (run / "model.json").unlink()
    (run / "data.json").unlink()
    assert methods._trained_on(run / "model.keras") == ()
    assert methods._trained_on(run / "s2x_L2A.keras") == ("L2A",)


def test_a_run_records_the_levels_of_its_data(tmp_path: pathlib.Path) -> None:
    """From what the products say of themselves, else from their names."""
    experiment = config.load("dsen2_20m_compact")
    for provenance, expected in [
        ({"levels": ["L2A"], "scenes": ["S2A_MSIL1C_x"]}, ["L2A"]),
        ({"scenes": ["L1C_one", "S2A_MSIL2A_x"]}, ["L1C", "L2A"]),
        ({}, []),
    ]:
        data = inputs.Data(tmp_path, "data", "0" * 12, {}, provenance, lambda split: None)
        job = jobs.Job(experiment, data, tmp_path / "run")
        found = job.describe_data()
        assert found["levels"] == expected
        (tmp_path / "data.json").write_text(json.dumps(found))
        assert methods._trained_on(tmp_path / "model.keras") == tuple(expected)


@pytest.mark.shared_data
def test_published_files(shared_data: pathlib.Path) -> None:
    """DSen2's own; and another network's HDF5, which has layers that DSen2 has not."""
    found = methods.find(shared_data / "weights" / "dsen2_L1C60M.npz")
    assert (found.task, found.levels, found.is_published) == ("superres_60m", ("L1C",), True)
    assert methods.load(found).count_params() == 1_787_266
    with pytest.raises(DataError, match=r"not DSen2's weights: .*conv2d_transpose"):
        methods.find(shared_data / "weights" / "l2a_aesr_60m_s2_038_lr_1e-04.hdf5")


@pytest.mark.parametrize(
    "log", [None, "", "no json", '{"step": 1}', '{"step": 1, "seconds": null}', '["seconds"]']
)
def test_a_run_without_a_log_has_no_time(tmp_path: pathlib.Path, log: str | None) -> None:
    if log is not None:
        (tmp_path / "log.jsonl").write_text(log)
    assert methods._read_facts(tmp_path) == {}


def test_weights_tell_task_and_size(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "x_L1C60M.npz"
    arrays = {f"conv{i:02d}_bias": np.zeros(16) for i in range(6)}
    arrays |= {f"conv{i:02d}_kernel_OIHW": np.zeros((16, 16, 3, 3)) for i in range(1, 6)}
    np.savez(file, conv00_kernel_OIHW=np.zeros((16, 12, 3, 3)), **arrays)
    assert methods._read_dsen2(file) == ("superres_60m", 16, 2)
    found = methods.find(file, "it")
    assert (found.name, found.task, found.levels) == ("it", "superres_60m", ("L1C",))
    np.savez(file, conv00_kernel_OIHW=np.zeros((16, 11, 3, 3)), **arrays)
    with pytest.raises(DataError, match="not DSen2's weights: 11 input bands; expected 10"):
        methods.find(file)
    file.write_bytes(b"no zip")
    with pytest.raises(DataError, match="not DSen2's weights"):
        methods.find(file)


@pytest.mark.parametrize("scale", [2, 6])
def test_interpolations_are_opencvs(scale: int) -> None:
    lowres = np.random.default_rng(0).random((2, 9, 7, 3), np.float32)
    for name, kind in (("bicubic", cv2.INTER_CUBIC), ("bilinear", cv2.INTER_LINEAR)):
        expected = [cv2.resize(a, None, fx=scale, fy=scale, interpolation=kind) for a in lowres]
        found = methods.interpolate(name, lowres, scale)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, np.stack(expected), atol=2e-6)
