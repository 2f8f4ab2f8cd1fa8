"""Training, validating and evaluating on labels by the commands, on a small data set of its own."""

from __future__ import annotations

import functools
import json
import pathlib

import click.testing
import numpy as np
import pytest

import kerass2.card
import kerass2.evaluate
import kerass2.fit
import kerass2.report
from data_pipelines import bigearthnet_convert, sentinel2, store
from data_pipelines.spec import DataError, DatasetSpec, TensorSpec
from kerass2 import config, job, models, session, shipped
from strategies.cluster import Cluster
from strategies.single import SingleStrategy

CLASSES = ("Pastures", "Coniferous forest", "Sea and ocean", "Burnt areas", "Port areas")
EDGE = 36
SPEC = DatasetSpec(
    "bigearthnet",
    {
        key: TensorSpec((EDGE * 10 // gsd,) * 2 + (len(bands),), bands, gsd)
        for key, bands, gsd in (
            ("gsd10", sentinel2.BANDS_10M, 10),
            ("gsd20", sentinel2.BANDS_20M, 20),
            ("gsd60", sentinel2.BANDS_60M, 60),
        )
    },
    {"labels": TensorSpec((len(CLASSES),), CLASSES, 10.0, "uint8", 1.0)},
)
TINY = {
    "model.options.depth": 10,
    "model.options.width": 4,
    "run.precision": "float32",
    "run.global_batch": 12,
    "run.log_every": 1,
}


def examples():
    """Each class brightens bands of its own; the fourth is rare, the last one nowhere."""
    rng = np.random.default_rng(0)
    signatures = rng.integers(500, 3000, (len(CLASSES), 12))
    for number in range(120):
        labels = (rng.random(len(CLASSES)) < [0.5, 0.4, 0.3, 0.08, 0.0]).astype(np.uint8)
        level = 500 + labels @ signatures
        inputs, band = {}, 0
        for key, tensor in SPEC.inputs.items():
            mean = level[band : band + tensor.shape[-1]]
            inputs[key] = rng.normal(mean, 100, tensor.shape).clip(1).astype(np.uint16)
            band += tensor.shape[-1]
        split = ("train", "train", "train", "validation", "test")[number % 5]
        patch = {"inputs": inputs, "targets": {"labels": labels}, "patch_id": f"patch {number}"}
        yield split, patch


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("labels") / "data"
    return store.write(folder, SPEC, examples(), provenance={"synthetic": True})


def call(command: click.Command, *arguments: object) -> str:
    """Run a command in this process: TensorFlow is there already. Its output."""
    found = click.testing.CliRunner().invoke(command, list(map(str, arguments)))
    if found.exception and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.output


@pytest.fixture(scope="module")
def fit(run_command, data):
    def run(workdir, strategy: str, *more: object, **settings) -> str:
        chosen = {**TINY, **{key.replace("__", "."): value for key, value in settings.items()}}
        sets = [part for k, v in chosen.items() for part in ("--set", f"{k}={json.dumps(v)}")]
        command = ["bigearthnet_ms", "--data", data, "--workdir", workdir, *sets, *more]
        if strategy == "single":
            return call(kerass2.fit.main, *command)
        result = run_command("fit", *command, "--strategy", strategy, "--workers", 2)
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    return run


def weights(workdir: pathlib.Path) -> list[np.ndarray]:
    """Trainable weights of the model: the moving statistics of parts and ranks are not the same."""
    model = models.load_model(workdir / "model.keras")
    return [np.asarray(weight) for weight in model.trainable_variables]


@pytest.fixture(scope="module")
def trained(fit, tmp_path_factory):
    """A small ResNet that has learnt its training patches by heart, and what it printed."""
    workdir = tmp_path_factory.mktemp("trained") / "work"
    learnt = {
        "model__options__dropout": 0.0,
        "model__options__width": 8,
        "optimizer__schedule": "cosine",
        "optimizer__schedule_options": {},
        "optimizer__learning_rate": 0.05,
        "run__validate_every": 100,
        "loss_options": {"positive_weights": "inverse_sqrt"},
        "data__oversample": 0.1,
    }
    return workdir, fit(workdir, "single", "--steps", 300, **learnt)


@pytest.fixture(scope="module")
def short(fit, tmp_path_factory):
    """(strategy, depth, steps) -> workdir, on 2 ranks in 2 parts each or in 4 parts of one."""

    @functools.cache
    def train(strategy: str, depth: int = 10, steps: int = 6) -> pathlib.Path:
        if strategy == "horovod":
            pytest.importorskip("horovod", reason="Horovod is not built here")
        workdir = tmp_path_factory.mktemp(strategy) / "work"
        parts = {"run__accumulation_steps": 4 if strategy == "single" else 2}
        # 2 x 12 / 256: steps that are long enough to tell ranks from parts.
        further = {"optimizer__learning_rate": 2.0, "data__mix_up": 0.3, "data__oversample": 0.1}
        # Dropout stays: the fourth quarter of a batch has its mask, whoever computes it.
        lasting = {"model__options__zero_gamma": False, "model__options__depth": depth}
        fit(workdir, strategy, "--steps", steps, **parts, **further, **lasting)
        return workdir

    return train


# Bottlenecks of so few filters are chaotic: six steps let rounding grow to 1e-3. So it is two.
@pytest.mark.parametrize(
    ("strategy", "depth", "steps"),
    [
        ("horovod", 14, 2),
        ("multiworker", 10, 6),
        pytest.param("horovod", 10, 6, marks=pytest.mark.cluster),
        pytest.param("multiworker", 14, 2, marks=pytest.mark.cluster),
    ],
)
def test_two_ranks_are_one_process_that_normalises_each_slice(short, strategy, depth, steps):
    found, expected = (weights(short(name, depth, steps)) for name in (strategy, "single"))
    flat = [np.concatenate([w.ravel() for w in x]).astype(float) for x in (found, expected)]
    relative = np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1])
    assert relative < (1e-4 if depth == 10 else 1e-5), relative


def test_training_says_and_keeps_what_it_used(trained):
    workdir, printed = trained
    saved = json.loads((workdir / "experiment.json").read_text())
    assert saved["model"]["options"]["classes"] == 5
    assert saved["model"]["options"]["inputs"] == "native"
    assert "validation F1 " in printed
    assert "best validation average precision" in printed
    lines = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    scored = [line for line in lines if "validation_ap" in line]
    assert [line["step"] for line in scored] == [100, 200, 300, 300]
    assert scored[-1]["validation_f1"] > 0.8
    assert (workdir / "best.keras").is_file()


def test_it_learns_its_training_patches_by_heart(trained):
    workdir, _ = trained
    output = workdir / "train.json"
    call(kerass2.evaluate.main, workdir, "--split", "train", "-o", output)
    found = json.loads(output.read_text())["methods"]
    assert found["model"]["micro"]["f1"] > 0.99
    assert found["prior"]["micro"]["f1"] < 0.7


@pytest.mark.shared_data
def test_it_learns_real_patches_by_heart(shared_data, tmp_path):
    """Real pixels and labels of BigEarthNet v1, 43 classes."""
    archive = shared_data / "bigearthnet" / "v1_configilm"
    bigearthnet_convert.convert_archive(archive, tmp_path / "data", split="random:1")
    learnt = {
        **TINY,
        "model.options.width": 8,
        "model.options.dropout": 0.0,
        "optimizer.schedule": "cosine",
        "optimizer.schedule_options": {},
        "optimizer.learning_rate": 2.0,
        "run.global_batch": 8,
    }
    sets = [part for k, v in learnt.items() for part in ("--set", f"{k}={json.dumps(v)}")]
    workdir = tmp_path / "work"
    arguments = ("bigearthnet_ms", "--data", tmp_path / "data", "--workdir", workdir, *sets)
    call(kerass2.fit.main, *arguments, "--steps", 250)
    call(kerass2.evaluate.main, workdir, "--split", "train", "-o", tmp_path / "train.json")
    found = json.loads((tmp_path / "train.json").read_text())
    assert not found["synthetic"]
    assert found["patches"] >= 10
    assert found["methods"]["model"]["micro"]["f1"] > 0.99
    assert found["methods"]["prior"]["micro"]["f1"] < 0.7


def test_evaluation_prints_both_tables_with_published_rows(trained, run_command, tmp_path):
    workdir, _ = trained
    (tmp_path / "bigearthnet_global.csv").write_text(
        "model,precision,recall,f1\nrgb,0.82,0.71,0.77\nmultispectral,0.83,0.75,0.79\n"
    )
    (tmp_path / "bigearthnet_per_class.csv").write_text(
        "class,support,f1_multispectral,f1_rgb\nPastures,20770,0.780565,0.771802\n"
    )
    (tmp_path / "bigearthnet_other.csv").write_text("band,mean\nB01,340\n")
    also = f"best={workdir}/best.keras"
    arguments = (workdir, "--published", tmp_path, "--tune", "--also", also)
    printed = call(kerass2.evaluate.main, *arguments)
    lines = printed.splitlines()
    assert any("multispectral" in line and "published" in line for line in lines)
    assert any("Pastures" in line and "20770" in line and "0.780565" in line for line in lines)
    assert "macro mean" in printed
    assert "tuned for each class on the validation split" in printed
    found = json.loads((workdir / "evaluation.json").read_text())
    assert set(found["methods"]) == {"prior", "model", "best"}
    assert found["classes"] == list(CLASSES)
    truth = [patch["targets"]["labels"] for split, patch in examples() if split == "test"]
    assert found["methods"]["model"]["classes"]["support"] == np.sum(truth, axis=0).tolist()
    assert found["confusion"]["model"]["together"][0][0] == int(np.sum(truth, axis=0)[0])
    assert found["thresholds"]["model"][4] == 0.5
    assert found["published"]["global"][0]["precision"] == "0.82"
    assert found["synthetic"] is True
    # The same by two ranks, whatever is shared how.
    pytest.importorskip("horovod", reason="Horovod is not built here")
    output = workdir / "ranks.json"
    result = run_command(
        *("evaluate", workdir, "--strategy", "horovod", "--workers", 2, "--tune", "-o", output),
        *("--format", "csv"),
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("class,support,f1 prior,ap prior,f1 model,ap model")
    by_ranks = json.loads(output.read_text())
    assert by_ranks["methods"]["model"] == found["methods"]["model"]
    assert by_ranks["thresholds"]["model"] == pytest.approx(found["thresholds"]["model"], abs=1e-6)


def test_thresholds_are_not_scored_where_they_are_tuned(data, trained):
    with pytest.raises(DataError, match="scored on the patches that they are tuned on"):
        kerass2.evaluate.check(trained[0], data=str(data), split="validation", tune=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "l1"}, "loss 'l1' with data of bigearthnet: labels, and nothing else, are for"),
        ({"model__options__classes": 19}, "its labels are 5 classes, the model has 19"),
        ({"loss_options": {"gamma": 2}}, "'binary_crossentropy' has no option gamma"),
        ({"run__accumulation_steps": 5}, "accumulation_steps = 5 does not divide the 12 patches"),
        ({"run__micro_batch": 4}, "run.accumulation_steps does that on purpose"),
    ],
)
def test_wrong_settings(data, tmp_path, settings, message):
    chosen = {**TINY, "run.steps": 1, "run.epochs": None}
    chosen |= {key.replace("__", "."): value for key, value in settings.items()}
    sets = [f"{key}={json.dumps(value)}" for key, value in chosen.items()]
    experiment = config.override(config.load("bigearthnet_ms"), sets)
    checked = job.check(
        config.with_global_batch(experiment, 1),
        str(data),
        tmp_path / "work",
        overwrite=False,
        resume=False,
        max_seconds=1.0,
    )
    with pytest.raises(ValueError, match=message):
        session.prepare(checked, SingleStrategy(Cluster("none")))


def test_an_archive_has_to_be_prepared(run_here, tmp_path):
    result = run_here("fit", "bigearthnet_rgb", "--data", tmp_path, "--workdir", tmp_path / "a")
    assert result.returncode != 0
    assert f"{tmp_path}: no prepared data set; make one: python -m kerass2.prepare" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_resumed_run_knows_what_its_data_decided(fit, tmp_path, short):
    """By the experiment's name, which says neither inputs nor classes; to the same weights."""
    workdir = tmp_path / "work"
    settings = {"model__options__zero_gamma": False}
    settings |= {"optimizer__learning_rate": 2.0, "data__mix_up": 0.3, "data__oversample": 0.1}
    settings["run__accumulation_steps"] = 4
    fit(workdir, "single", "--steps", 4, **settings)
    fit(workdir, "single", "--steps", 6, "--resume", **settings)
    for found, expected in zip(weights(workdir), weights(short("single")), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_classifier_has_no_card(trained):
    with pytest.raises(DataError, match="gives labels; cards are for models that sharpen"):
        kerass2.card.build_card(trained[0] / "model.keras", sources=shipped.SOURCES, machine="a")


def test_each_model_sees_the_patches_as_it_was_trained_on_them(trained, tmp_path):
    """As bilinear and super-resolved patches: one table, each model on its own data."""
    workdir, _ = trained
    facts = json.loads((workdir / "data.json").read_text())

    def brighter(rename: str):
        for split, patch in examples():
            inputs = {key: values // 2 + 200 for key, values in patch["inputs"].items()}
            yield split, {**patch, "inputs": inputs, "patch_id": rename + patch["patch_id"]}

    def copy(name: str, rename: str) -> pathlib.Path:
        other = tmp_path / name
        other.mkdir()
        made = store.write(tmp_path / f"{name}-data", SPEC, brighter(rename))
        (other / "model.keras").write_bytes((workdir / "model.keras").read_bytes())
        (other / "data.json").write_text(json.dumps({**facts, "data": str(made)}))
        return other

    def scores(model: pathlib.Path, *more: object) -> dict:
        output = tmp_path / "scores.json"
        call(kerass2.evaluate.main, model, "-o", output, "--overwrite", "--tune", *more)
        return json.loads(output.read_text())

    other = copy("other", "")
    both = scores(workdir, "--also", f"dark={other}")
    assert both["methods"]["model"] == scores(workdir)["methods"]["model"]
    assert both["methods"]["dark"] == scores(other)["methods"]["model"]
    assert both["methods"]["dark"] != both["methods"]["model"]
    assert both["models"]["dark"]["data"] == str(tmp_path / "other-data")
    same = scores(workdir, "--also", f"dark={other}", "--data", facts["data"])
    assert same["methods"]["dark"] == same["methods"]["model"]
    with pytest.raises(DataError, match="strange: the test split of its data holds 24 patches"):
        scores(workdir, "--also", f"strange={copy('strange', 'x')}")


def test_the_report_has_scores_curves_and_patches(trained):
    workdir, _ = trained
    call(kerass2.report.main, workdir, "--patches", 2)
    page = (workdir / "report.html").read_text()
    for text in ("SYNTHETIC DATA", "F1, macro", "Burnt areas", "precision over recall", "has "):
        assert text in page
    assert page.count("data:image/svg+xml") >= 4
    assert page.count("data:image/png") >= 2
    found = json.loads((workdir / "evaluation.json").read_text())
    assert 0 < len(found["examples"]["model"]["right"]) <= 6
