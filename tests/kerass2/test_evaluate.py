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
from kerass2 import cli, evaluate, inputs, methods, metrics, models, render, tables, whole
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
def two_scenes(data: pathlib.Path) -> pathlib.Path:
    """The same test patches, 4 of a scene "north" and 7 of one whose name begins like it."""
    test = store.open_source(data, "test")
    batch = test.read(range(11))
    examples = [
        (
            "test",
            {
                "inputs": {name: values[i] for name, values in batch["inputs"].items()},
                "targets": {name: values[i] for name, values in batch["targets"].items()},
                "patch_id": f"{'north' if i < 4 else 'north_west'}/y00000_x{i:05d}",
            },
        )
        for i in range(11)
    ]
    facts = {"scenes": ["empty", "north", "north_west"], "synthetic": True}
    return store.write(data.parent / "two", test.spec, examples, provenance=facts)


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


def test_scenes_are_scored_as_if_alone(model: keras.Model, two_scenes: pathlib.Path) -> None:
    source = store.open_source(two_scenes, "test")
    listed = ["empty", "north", "north_west"]
    found = evaluate.evaluate_model(model, source, single(), scenes=listed)
    assert list(found["scenes"]) == ["north", "north_west"]
    bands = source.spec.targets["superres_20m"].bands
    batch = source.read(range(11))
    given = {name: values / np.float32(1e4) for name, values in batch["inputs"].items()}
    truth = batch["targets"]["superres_20m"] / 1e4
    predicted = np.asarray(model(given)["superres_20m"])
    single_scenes = []
    for scene, rows in (("north", slice(0, 4)), ("north_west", slice(4, 11))):
        result = found["scenes"][scene]
        assert result["pixels"] == (rows.stop - rows.start) * 32 * 32
        expected = rmse(predicted[rows], truth[rows])
        values = result["methods"]["model"]["rmse"]
        np.testing.assert_allclose([values[band] for band in bands], expected, rtol=1e-5)
        single_scenes.append(expected.mean())
        # The peak of the paper's PSNR is that of the split, for its scenes too.
        peak = float(np.ptp(batch["targets"]["superres_20m"]))
        psnr = np.mean(20 * np.log10(peak / expected))
        assert result["methods"]["model"]["psnr_paper"]["mean"] == pytest.approx(psnr, rel=1e-6)
    over = found["over_scenes"]["model"]["rmse"]["mean"]
    assert over["mean"] == pytest.approx(np.mean(single_scenes), rel=1e-5)
    assert over["std"] == pytest.approx(np.std(single_scenes, ddof=1), rel=1e-4)
    # Together they are what the split comes to without a list of scenes.
    assert flat(found) == pytest.approx(
        flat(evaluate.evaluate_model(model, source, single())), rel=1e-9
    )


def test_patches_of_no_listed_scene_count_but_not_as_a_scene(
    model: keras.Model, two_scenes: pathlib.Path
) -> None:
    source = store.open_source(two_scenes, "test")
    found = evaluate.evaluate_model(model, source, single(), scenes=["north_west"])
    assert list(found["scenes"]) == ["north_west", "(not listed)"]
    over = found["over_scenes"]["model"]["rmse"]["mean"]
    assert over["mean"] == found["scenes"]["north_west"]["methods"]["model"]["rmse"]["mean"]
    assert np.isnan(over["std"])
    without = evaluate.evaluate_model(model, source, single())
    assert (without["scenes"], without["over_scenes"]) == ({}, {})


def test_models_side_by_side_see_the_same_patches(
    model: keras.Model, two_scenes: pathlib.Path
) -> None:
    other = models.build("dsen2", filters=8, blocks=1)
    source = store.open_source(two_scenes, "test")
    found = evaluate.evaluate_model(
        model, source, single(), also={"other": other}, baselines=methods.BASELINES
    )
    assert list(found["methods"]) == ["bicubic", "bilinear", "model", "other"]
    alone = evaluate.evaluate_model(other, source, single())["methods"]["model"]
    assert found["methods"]["other"]["rmse"] == pytest.approx(alone["rmse"], rel=1e-5)
    lowres = source.read(range(11))["inputs"]["gsd20"] / np.float32(1e4)
    linear = np.stack(
        [cv2.resize(a, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR) for a in lowres]
    )
    truth = source.read(range(11))["targets"]["superres_20m"] / 1e4
    assert found["methods"]["bilinear"]["rmse"]["mean"] == pytest.approx(
        rmse(linear, truth).mean(), rel=1e-5
    )


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
    model: keras.Model, two_scenes: pathlib.Path, ranks: int, global_batch: int | None
) -> None:
    """One collective call of one size, though ranks see patches of other scenes than others."""
    source, scenes = store.open_source(two_scenes, "test"), ["empty", "north", "north_west"]
    whole = evaluate.evaluate_model(model, source, single(), scenes=scenes)
    sums: list[np.ndarray] = []
    for rank in range(ranks):
        strategy = Rank(rank, ranks, sums)
        try:
            found = evaluate.evaluate_model(
                model, source, strategy, global_batch=global_batch, scenes=scenes
            )
        except ValueError as error:  # the first ranks alone may hold padding only
            assert rank < ranks - 1 and "no patches" in str(error)
    assert [len({len(vector) for vector in sums}), len(sums)] == [1, ranks]
    assert flat(found) == pytest.approx(flat(whole), rel=2e-6)
    for scene, values in whole["scenes"].items():
        assert found["scenes"][scene]["pixels"] == values["pixels"]
        assert flat(found["scenes"][scene]) == pytest.approx(flat(values), rel=2e-6)


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
    assert max(map(len, out.splitlines()[:45])) <= 80
    assert "…" not in out
    for word in (
        *METRICS,
        "bicubic",
        "bilinear",
        "model",
        "mean",
        "B05",
        "B8A",
        "B12",
        "SYNTHETIC",
    ):
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


def test_the_command_in_every_format_says_the_same(
    run: Run, model: keras.Model, workdir: pathlib.Path, two_scenes: pathlib.Path
) -> None:
    other = workdir.parent / "other.keras"
    models.build("dsen2", filters=8, blocks=1).save(other)
    (workdir / "experiment.json").write_text(json.dumps({"run": {"global_batch": 48}}))
    (workdir / "log.jsonl").write_text('{"step": 9, "seconds": 7200.0}\n{"st')
    published = workdir / "superres_20m.csv"
    published.write_text(",".join(tables.PUBLISHED) + "\ns2x,8,1028,12h,35.61,,0.76,1.05,1,55.6\n")
    common = [workdir, "--data", two_scenes, "--also", f"small={other}", "--published", published]
    result = json.loads(run(*common, "--format", "json")[1])
    assert result["levels"] == []
    for name in ("bands", "paper", "scenes"):
        code, out, err = run(*common, "--table", name, "--format", "csv")
        assert code == 0, err
        assert out == render.to_csv(tables.TABLES[name](result))
        for style in ("markdown", "latex"):
            assert run(*common, "--table", name, "--format", style)[1] == render.RENDER[style](
                tables.TABLES[name](result)
            )
        out = run(*common, "--table", name)[1]
        assert "…" not in out
        assert "small" in out
    row = next(r for r in tables.as_in_the_paper(result).rows if r[0] == "model")
    assert row[:4] == ("model", None, 48, "2h")
    assert json.loads((workdir / "evaluation.json").read_text()) == result
    code, _, err = run(workdir, "--data", two_scenes)
    assert code == 1
    assert "has small too; give --also, --overwrite or another -o" in err


def test_options_are_those_of_the_tables() -> None:
    assert tuple(tables.TABLES) == evaluate.TABLES
    assert whole.VIEWS == evaluate.VIEWS
    assert sorted(evaluate.FORMATS) == sorted(("table", "json", *render.RENDER))


def test_a_level_that_the_model_has_not_seen_is_warned_of(
    run: Run, workdir: pathlib.Path, two_scenes: pathlib.Path
) -> None:
    l2a = workdir.parent / "l2a"
    test = store.open_source(two_scenes, "test")
    batch = test.read([0])
    example = {key: {n: v[0] for n, v in batch[key].items()} for key in ("inputs", "targets")}
    scene = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
    example["patch_id"] = f"{scene}_26_57/y00000_x00000"
    store.write(l2a, test.spec, [("test", example)], provenance={"scenes": [scene]})
    facts = {"data": "gone/S2A_MSIL1C_20180629T102041.SAFE", "description": "a product"}
    (workdir / "data.json").write_text(json.dumps(facts))
    code, out, err = run(workdir, "--data", l2a, "--json")
    assert code == 0, err
    assert err.startswith("warning: model (model.keras) was trained on L1C (top-of-atmosphere")
    assert "these data are L2A (surface reflectance)" in err
    result = json.loads(out)
    assert result["levels"] == ["L2A"]
    assert result["models"]["model"]["levels"] == ["L1C"]
    assert list(result["scenes"]) == [scene]
    (workdir / "data.json").write_text(json.dumps({**facts, "levels": ["L1C", "L2A"]}))
    assert "warning" not in run(workdir, "--data", l2a, "--json")[2]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--also", "other"], "--also other: expected NAME=PATH"),
        (["--also", "=x"], "--also =x: expected NAME=PATH"),
        (["--also", "bicubic=MODEL"], "'bicubic' is taken; names in a table must differ"),
        (["--also", "a=MODEL", "--also", "a=MODEL"], "'a' is taken"),
        (["--also", "a=nowhere.keras"], "nowhere.keras: not found"),
        (["--also", "a=bad.npz"], "bad.npz: not DSen2's weights"),
        (["--also", "a=60m.keras"], "a (60m.keras) is for superres_60m, model ("),
        (["--published", "none.csv"], "none.csv: not readable as CSV"),
        (["--published", "superres_60m.csv"], "published results of superres_60m; the models are"),
        (["--published", "other.csv"], "columns method,rmse; expected method,gpus,global_batch"),
        (["--published", "words.csv"], "words.csv, line 2: rmse 'low' is no number"),
        (["--published", "short.csv"], "short.csv, line 2: 2 cells, expected 10"),
        (["--whole", "lattice"], "--whole needs --data"),
        (["--whole", "single", "--split", "test", "--data", "DATA"], "--split test does not apply"),
        (["--whole", "lattice", "--data", "DATA"], "whole scenes need a product"),
        (["--table", "scenes", "--data", "NAMELESS"], "do not say which scenes"),
        (["-o", "nowhere/a.json"], "expected the name of a file in a folder that exists"),
    ],
)
def test_wrong_options_are_one_line_and_exit_1(
    arguments: list[str],
    expected: str,
    run: Run,
    workdir: pathlib.Path,
    data: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    models.build("dsen2", filters=8, blocks=1, task="superres_60m").save("60m.keras")
    np.savez("bad.npz", a=np.zeros(3))
    header = ",".join(tables.PUBLISHED)
    for name, text in {
        "superres_60m": header,
        "other": "method,rmse\nx,1",
        "words": f"{header}\nx,1,2,3h,low,1,1,1,1,1",
        "short": f"{header}\nx,1",
    }.items():
        pathlib.Path(f"{name}.csv").write_text(text)
    if "NAMELESS" in arguments:
        test = store.open_source(data, "test")
        batch = test.read([0])
        example = {key: {n: v[0] for n, v in batch[key].items()} for key in ("inputs", "targets")}
        store.write("nameless", test.spec, [("test", {**example, "patch_id": "a"})])
    places = {"MODEL": str(workdir / "model.keras"), "DATA": str(data), "NAMELESS": "nameless"}
    for word, place in places.items():
        arguments = [argument.replace(word, place) for argument in arguments]
    code, _, err = run(workdir, *arguments)
    assert code == 1
    assert err.splitlines()[-1].startswith("error: ")
    assert expected in err


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("no model", "model.keras: not found; expected a .keras file, the work folder"),
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
    "strategy",
    [
        pytest.param("horovod", marks=pytest.mark.horovod),
        pytest.param("multiworker", marks=pytest.mark.cluster),
    ],
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
    source = store.open_source(data, "test")
    expected = evaluate.evaluate_model(model, source, single(), baselines=methods.BASELINES)
    assert flat(json.loads(done.stdout)) == pytest.approx(flat(expected), rel=2e-6)
    assert json.loads((workdir / "evaluation.json").read_text()) == json.loads(done.stdout)
