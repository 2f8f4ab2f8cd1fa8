"""Evaluation: against direct formulas, for any batch and any number of ranks, and as a command."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import cv2
import keras
import numpy as np
import pytest

from data_pipelines import convert, store, synthetic
from data_pipelines.spec import DataError
from kerass2 import cli, evaluate, inputs, metrics, models
from strategies.cluster import Cluster
from strategies.single import SingleStrategy

METRICS = list(metrics.DEFINITIONS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A data set of 11 + 2 patches: a prime number, which no number of ranks divides."""
    folder = tmp_path_factory.mktemp("data")
    source = synthetic.write_granule(folder / "in", 384)
    everything = convert.convert(
        lambda: convert.open_all([source]), folder / "all", "superres_20m", only_split="test"
    ).folder
    test = store.open_source(everything, "test")
    batch = test.read(range(0, 13 * 2, 2))
    examples = [
        (
            "validation" if i >= 11 else "test",
            {
                "inputs": {name: values[i] for name, values in batch["inputs"].items()},
                "targets": {name: values[i] for name, values in batch["targets"].items()},
                "patch_id": str(batch["patch_id"][i]),
            },
        )
        for i in range(13)
    ]
    facts = store.read_manifest(everything).provenance
    return store.write(folder / "d", test.spec, examples, splits=["train"], provenance=facts)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """S2x, small, with attention taking part."""
    keras.utils.set_random_seed(1)
    model = models.build("s2x", filters=8, blocks=2)
    for layer in model.layers:
        if hasattr(layer, "gamma"):
            layer.gamma.assign(0.1)
    last = model.get_layer("conv_last")
    last.kernel.assign(last.kernel * 0.05)
    return model


@pytest.fixture
def workdir(model: keras.Model, data: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder as kerass2.fit leaves it."""
    folder = tmp_path / "run"
    folder.mkdir()
    model.save(folder / "model.keras")
    facts = {"data": str(data), "description": "DATA: A SYNTHETIC GRANULE"}
    (folder / "data.json").write_text(json.dumps(facts))
    return folder


def single() -> SingleStrategy:
    return SingleStrategy(Cluster("none"))


def flat(result: dict[str, Any]) -> dict[str, float]:
    """{method/metric/band: value}."""
    return {
        f"{method}/{metric}/{band}": value
        for method, found in result["methods"].items()
        for metric, values in found.items()
        for band, value in values.items()
    }


def rmse(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(np.square(1e4 * (prediction - truth)), axis=(0, 1, 2)))


def test_rmse_equals_the_formula_with_opencv_and_the_model(
    model: keras.Model, data: pathlib.Path
) -> None:
    source = store.open_source(data, "test")
    found = evaluate.evaluate_model(model, source, single())
    batch = source.read(range(11))
    given = {name: values / np.float32(1e4) for name, values in batch["inputs"].items()}
    truth = batch["targets"]["superres_20m"].astype(np.float64) / 1e4
    bicubic = np.stack(
        [cv2.resize(a, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC) for a in given["gsd20"]]
    )
    predicted = np.asarray(model(given)["superres_20m"])
    bands = source.spec.targets["superres_20m"].bands
    for method, values in (("bicubic", bicubic), ("model", predicted)):
        result = found["methods"][method]["rmse"]
        expected = rmse(values, truth)
        np.testing.assert_allclose([result[band] for band in bands], expected, rtol=1e-5)
        assert result["mean"] == pytest.approx(expected.mean(), rel=1e-5)
    assert (found["patches"], found["split"], found["task"]) == (11, "test", "superres_20m")
    assert list(found["methods"]) == ["bicubic", "model"]
    assert list(found["methods"]["model"]) == METRICS == list(found["definitions"])


class Rank(SingleStrategy):
    """One of several ranks, played one after the other; `others` adds up their sums."""

    def __init__(self, rank: int, world_size: int, others: list[np.ndarray]) -> None:
        super().__init__(Cluster("none"))
        self.rank, self.world_size, self.others = rank, world_size, others

    def sum(self, values: np.ndarray) -> np.ndarray:
        self.others.append(values)
        return np.sum(self.others, axis=0)


@pytest.mark.parametrize(
    ("ranks", "global_batch"), [(1, 1), (1, 4), (1, 64), (2, None), (3, 3), (4, 64)]
)
def test_any_number_of_ranks_and_any_batch_gives_the_same(
    model: keras.Model, data: pathlib.Path, ranks: int, global_batch: int | None
) -> None:
    source = store.open_source(data, "test")
    expected = flat(evaluate.evaluate_model(model, source, single()))
    sums: list[np.ndarray] = []
    for rank in range(ranks):
        strategy = Rank(rank, ranks, sums)
        try:
            found = evaluate.evaluate_model(model, source, strategy, global_batch=global_batch)
        except ValueError as error:  # the first ranks alone may hold padding only
            assert rank < ranks - 1 and "no patches" in str(error)
    assert len({len(vector) for vector in sums}) == 1
    assert flat(found) == pytest.approx(expected, rel=2e-6)


def test_data_of_another_task_names_both_specs(data: pathlib.Path) -> None:
    other = models.build("dsen2", filters=8, blocks=1, task="superres_60m")
    with pytest.raises(DataError) as caught:
        evaluate.evaluate_model(other, store.open_source(data, "test"), single())
    assert "superres_60m: gsd10 B02,B03,B04,B08" in str(caught.value)
    assert "superres_20m: input gsd10 32x32x4" in str(caught.value)


def test_damaged_record_is_named(
    model: keras.Model, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    import shutil

    broken = shutil.copytree(data, tmp_path / "broken")
    shard = next(broken.glob("test-*.tfrecord"))
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"test-00000\.tfrecord, record 10"):
        evaluate.evaluate_model(model, store.open_source(broken, "test"), single())


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The command as `python -m` runs it, in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kerass2.evaluate", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "80")
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.run(evaluate.main)
        captured = capfd.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return call


def test_command_prints_every_metric_in_80_columns_and_writes_json(
    run: Run, workdir: pathlib.Path, data: pathlib.Path
) -> None:
    code, out, err = run(workdir)
    assert code == 0, err
    assert max(map(len, out.splitlines()[:30])) <= 80
    assert "…" not in out
    for word in (*METRICS, "bicubic", "model", "mean", "B05", "B8A", "B12", "SYNTHETIC"):
        assert word in out
    result = json.loads((workdir / "evaluation.json").read_text())
    assert result["patches"] == 11
    assert result["data"] == str(data)
    assert result["synthetic"] is True
    value = result["methods"]["model"]["rmse"]["B05"]
    assert f"{value:#.4g}".rstrip(".") in out

    (workdir / "evaluation.json").touch()
    code, out, err = run(workdir / "model.keras", "--json")
    assert code == 0, err
    assert json.loads(out)["methods"] == result["methods"]
    assert sorted(path.name for path in workdir.iterdir()) == [
        "data.json",
        "evaluation.json",
        "model.keras",
    ]


def test_output_of_another_split_is_kept_unless_overwrite(run: Run, workdir: pathlib.Path) -> None:
    output = workdir / "evaluation.json"
    assert run(workdir, "--split", "validation")[0] == 0
    before = output.read_bytes()
    code, _, err = run(workdir)
    assert code == 1
    assert (
        "evaluation of split validation, not of split test; give --overwrite or another -o" in err
    )
    assert output.read_bytes() == before
    assert run(workdir, "-o", workdir / "test.json")[0] == 0
    assert output.read_bytes() == before
    assert run(workdir, "--overwrite")[0] == 0
    assert json.loads(output.read_text())["split"] == "test"
    output.write_text("notes of mine")
    code, _, err = run(workdir)
    assert code == 1
    assert "exists and is no evaluation" in err


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("no model", "model.keras: not found; expected a .keras file or the work folder"),
        ("no data", "nowhere/manifest.json: not found"),
        ("no split", "no split 'tets'; it has"),
        ("empty split", "split train holds no patches"),
        ("other task", "The model needs superres_60m"),
        ("not a model", "not a readable Keras model"),
    ],
)
def test_bad_input_is_one_line_and_exit_1(
    case: str, expected: str, run: Run, workdir: pathlib.Path, data: pathlib.Path
) -> None:
    arguments: list[object] = [workdir]
    if case == "no model":
        (workdir / "model.keras").unlink()
    elif case == "no data":
        arguments += ["--data", workdir / "nowhere"]
    elif case in ("no split", "empty split"):
        arguments += ["--split", {"no split": "tets", "empty split": "train"}[case]]
    elif case == "other task":
        path = workdir / "other.keras"
        models.build("dsen2", filters=8, blocks=1, task="superres_60m").save(path)
        arguments = [path, "--data", data]
    else:
        (workdir / "model.keras").write_bytes(b"no zip")
        (workdir / "data.json").unlink()
    code, _, err = run(*arguments)
    assert code == 1
    assert err.startswith("error: ")
    assert expected in err
    assert err.count("\n") == 1
    assert not (workdir / "evaluation.json").exists()


def test_task_of_a_file_without_keras(workdir: pathlib.Path) -> None:
    assert inputs.read_task(workdir / "model.keras") == "superres_20m"


def test_help_imports_nothing_heavy() -> None:
    modules = "tensorflow", "keras", "rasterio", "xarray", "dask", "matplotlib"
    code = f"import sys, kerass2.evaluate; print([m for m in {modules} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "strategy", [pytest.param("horovod", marks=pytest.mark.horovod), "multiworker"]
)
def test_two_real_ranks_give_the_same_numbers(
    strategy: str, model: keras.Model, workdir: pathlib.Path, data: pathlib.Path
) -> None:
    if strategy == "horovod":
        pytest.importorskip("horovod")
    command = ["-m", "kerass2.evaluate", str(workdir), "--strategy", strategy, "--workers", "2"]
    done = subprocess.run(
        [sys.executable, *command, "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    expected = evaluate.evaluate_model(model, store.open_source(data, "test"), single())
    assert flat(json.loads(done.stdout)) == pytest.approx(flat(expected), rel=2e-6)
    assert json.loads((workdir / "evaluation.json").read_text()) == json.loads(done.stdout)
