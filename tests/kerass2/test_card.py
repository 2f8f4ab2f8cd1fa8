"""kerass2.card on a small run's records: what it says, and what it refuses."""

from __future__ import annotations

import csv
import json
import pathlib
import shutil
import sys

import keras
import numpy as np
import pytest
from scipy import ndimage

from data_pipelines import convert, cube, npz, sentinel2, synthetic
from data_pipelines.spec import DataError
from kerass2 import (
    card,
    card_records,
    cli,
    config,
    evaluate,
    inputs,
    methods,
    models,
    report,
    shipped,
    whole,
)
from kerass2.job import Init
from strategies.cluster import Cluster
from strategies.single import SingleStrategy

TRAINED, HELD_OUT = ("L1C_north", "L1C_south"), "L1C_east"
ROWS = (
    ("L1C_north", "L1C", "training", "CC BY 4.0", "Contains modified Copernicus data 2017", "a"),
    ("L1C_s*", "L1C", "training", "CDLA-Permissive-1.0", "Contains modified data 2018", "b"),
    ("L1C_east", "L1C", "evaluation", "GPL-3.0", "Contains modified Copernicus data 2020", "c"),
)


def write_scene(folder: pathlib.Path, name: str, seed: int) -> pathlib.Path:
    arrays = {}
    for key, image in synthetic.build_cubes(192, seed=seed).items():
        gsd = sentinel2.GSDS[key]
        arrays |= {f"im{gsd}": image, f"bands{gsd}": np.array(sentinel2.bands_at(gsd))}
    np.savez(folder / f"{name}.npz", **arrays)
    return folder / f"{name}.npz"


def write_sources(path: pathlib.Path, rows: tuple[tuple[str, ...], ...] = ROWS) -> pathlib.Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([card_records.COLUMNS, *rows])
    return path


def score(workdir: pathlib.Path, scene: pathlib.Path) -> None:
    job = evaluate.check(
        workdir,
        data=str(scene),
        whole="lattice",
        output=workdir / f"evaluation-{scene.stem}.json",
        overwrite=True,
    )
    evaluate.evaluate(job, SingleStrategy(Cluster("none")))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with scenes, their table, and a run as kerass2.fit leaves it, scored on one more."""
    folder = tmp_path_factory.mktemp("card")
    scenes = [write_scene(folder, name, seed) for seed, name in enumerate(TRAINED)]
    convert.convert(
        scenes,
        folder / "train",
        "superres_20m",
        only_split="train",
        provenance={"sources": [str(scene) for scene in scenes]},
    )
    run = folder / "run"
    run.mkdir()
    keras.utils.set_random_seed(1)
    model = models.build("s2x", filters=8, blocks=2, block=32, dtype="mixed_bfloat16")
    last = model.get_layer("conv_last")
    last.kernel.assign(last.kernel * 0.05)
    model.save(run / "model.keras")
    facts = {
        "data": str(folder / "train"),
        "manifest": inputs.open_data(folder / "train", "superres_20m").digest,
        "description": "d",
        "command": f"python -m kerass2.fit --data {folder}/train --workdir {run} --steps 7",
    }
    (run / "data.json").write_text(json.dumps(facts))
    experiment = config.load("superres_20m_compact").to_json()
    (run / "experiment.json").write_text(json.dumps(experiment))
    lines = [{"step": 3, "loss": 0.5, "seconds": 1.0}, {"step": 7, "loss": 0.4, "seconds": 125.0}]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    score(run, write_scene(folder, HELD_OUT, 7))
    write_sources(folder / "sources.csv")
    return folder


@pytest.fixture
def copy(made: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the run that a test may spoil."""
    shutil.copytree(made / "run", tmp_path / "run")
    return tmp_path / "run"


def call(*arguments: object) -> int:
    """Exit code of the command in this process."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["kerass2.card", *map(str, arguments)])
        cli.run(card.main)
    return int(end.value.code or 0)


def test_cubic_spline_is_scipys_zoom_by_samples() -> None:
    """Against scipy's own interpolation at the pixels' centres, away from borders."""
    lowres = np.random.default_rng(0).random((1, 20, 24, 2), np.float32)
    for scale in (2, 6):
        found = methods.interpolate("cubic_spline", lowres, scale)
        rows, columns = ((np.arange(n * scale) + 0.5) / scale - 0.5 for n in lowres.shape[1:3])
        grid = np.meshgrid(rows, columns, indexing="ij")
        for band in range(2):
            expected = ndimage.map_coordinates(lowres[0, ..., band], grid, order=3, mode="mirror")
            inner = (slice(8 * scale, -8 * scale), slice(8 * scale, -8 * scale))
            np.testing.assert_allclose(found[0, ..., band][inner], expected[inner], atol=1e-4)


def test_card_says_what_the_records_say(made: pathlib.Path, tmp_path: pathlib.Path) -> None:
    options = ("--sources", made / "sources.csv", "--machine", "2 cores of a kind")
    extra = ("--curve", made / "run", "--limit", "Snow was not seen.")
    assert call(made / "run", "-o", tmp_path, *options, *extra) == 0
    assert {p.suffix for p in tmp_path.glob("superres_20m_L1C.*")} == {".keras", ".json", ".md"}
    found = json.loads((tmp_path / "superres_20m_L1C.json").read_text())
    text = (tmp_path / "superres_20m_L1C.md").read_text()
    evaluation = json.loads((made / "run" / f"evaluation-{HELD_OUT}.json").read_text())
    measured = evaluation["scenes"][HELD_OUT]["methods"]
    assert found["held_out"].keys() == {HELD_OUT}
    for method in ("bicubic", "bilinear", "cubic_spline", "model"):
        for band, value in measured[method]["rmse"].items():
            there = found["held_out"][HELD_OUT]["methods"][method]["rmse"][band]
            assert there == pytest.approx(value, rel=1e-4)
            assert report.number(there) in text
    assert [row["number"] for row in found["data"]] == [1, 1]
    assert (found["trained"]["steps"], found["trained"]["seconds"]) == (7, 125.0)
    for word in (
        *("CC BY 4.0", "CDLA-Permissive-1.0", "GPL-3.0", "Contains modified Copernicus data 2020"),
        *("7 steps, 2 min 05 s in auto on 2 cores of a kind", "Snow was not seen.", *TRAINED[:1]),
        "python -m kerass2.fit --data train --workdir run --steps 7",
        "python -m kerass2.prepare L1C_north.npz L1C_south.npz -o train --task superres_20m",
    ):
        assert word in text
    assert str(made.parent) not in text + json.dumps(found)
    assert text == card.render(found)


def test_packed_model_is_the_runs_in_float32(made: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert call(made / "run", "-o", tmp_path, "--sources", made / "sources.csv") == 0
    packed = models.load_model(tmp_path / "superres_20m_L1C.keras")
    trained = models.load_model(made / "run" / "model.keras")
    assert "mixed_bfloat16" in {layer.dtype_policy.name for layer in trained.layers}
    assert {layer.dtype_policy.name for layer in packed.layers} == {"float32"}
    for name in (layer.name for layer in trained.layers if layer.weights):
        pair = (m.get_layer(name).get_weights() for m in (packed, trained))
        for ours, theirs in zip(*pair, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    before = (tmp_path / "superres_20m_L1C.md").read_bytes()
    assert call(made / "run", "-o", tmp_path, "--sources", made / "sources.csv") == 1
    assert (tmp_path / "superres_20m_L1C.md").read_bytes() == before


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("evaluation only", "trained on L1C_north; expected scenes of one level whose use is"),
        ("no row", "no row for scene L1C_south; a licence is needed"),
        ("two levels", "trained on levels L1C, L2A"),
        ("other columns", "columns scene; expected"),
        ("other model", "of a model with digest"),
        ("no scores", "no evaluation of whole scenes"),
        ("trained scene", "scene L1C_north is of the training data"),
        ("no log", "expected experiment.json, data.json and log.jsonl"),
        ("other data", "has changed: manifest"),
    ],
)
def test_what_does_not_fit_is_refused(
    case: str, expected: str, made: pathlib.Path, copy: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    rows = {
        "evaluation only": (("L1C_north", "L1C", "evaluation", "GPL", "x", "y"), *ROWS[1:]),
        "no row": (ROWS[0], ROWS[2]),
        "two levels": ((*ROWS[0][:1], "L2A", *ROWS[0][2:]), *ROWS[1:]),
    }
    sources = write_sources(tmp_path / "sources.csv", rows.get(case, ROWS))
    if case == "other columns":
        sources.write_text("scene\n")
    elif case == "other model":
        models.build("s2x", filters=8, blocks=2, block=32).save(copy / "model.keras")
    elif case == "no scores":
        next(copy.glob("evaluation*.json")).unlink()
    elif case == "trained scene":
        score(copy, made / "L1C_north.npz")
    elif case == "no log":
        (copy / "log.jsonl").unlink()
    elif case == "other data":
        facts = json.loads((copy / "data.json").read_text())
        (copy / "data.json").write_text(json.dumps({**facts, "manifest": "0" * 12}))
    with pytest.raises(DataError, match=expected):
        card.build_card(copy / "model.keras", sources=sources, machine="m")


def test_commands_on_cards_have_no_folders() -> None:
    command = "kerass2 fit --data=/home/u/tiles --workdir /w/a --set run.steps=2 data/here"
    expected = "kerass2 fit --data=tiles --workdir a --set run.steps=2 data/here"
    assert card_records.without_folders(command) == expected


def start_from(run: pathlib.Path, path: pathlib.Path, digest: str) -> None:
    """As if the run had begun with --init."""
    facts = json.loads((run / "data.json").read_text())
    facts["init"] = {"path": str(path), "digest": digest}
    (run / "data.json").write_text(json.dumps(facts))


def built(run: pathlib.Path, made: pathlib.Path) -> dict[str, object]:
    return card.build_card(run / "model.keras", sources=made / "sources.csv", machine="m")


def test_scenes_of_the_weights_it_started_from(
    made: pathlib.Path, copy: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """By the card beside packed weights, by the records of a run, and through both."""
    options = ("--sources", made / "sources.csv")
    start = made / "run" / "model.keras"
    start_from(copy, start, Init.of(start).digest)
    assert built(copy, made)["trained"]["init"]["scenes"] == list(TRAINED)
    assert call(copy, "-o", tmp_path / "packed", *options) == 0
    second = tmp_path / "second"
    shutil.copytree(made / "run", second)
    packed = tmp_path / "packed" / "superres_20m_L1C.keras"
    start_from(second, packed, Init.of(packed).digest)
    found = built(second, made)
    assert found["trained"]["init"] == {
        "path": packed.name,
        "digest": Init.of(packed).digest,
        "scenes": list(TRAINED),
    }
    assert not any("not known" in text for text in found["limits"])
    assert call(second, "-o", tmp_path / "again", *options) == 0
    text = (tmp_path / "again" / "superres_20m_L1C.md").read_text()
    assert f"...), trained on {', '.join(TRAINED)}." in text


def test_a_scene_of_the_start_is_no_test(made: pathlib.Path, copy: pathlib.Path) -> None:
    start_from(copy, copy / "start.keras", "0" * 12)
    facts = {"digest": "0" * 12, "trained": {"scenes": [HELD_OUT], "init": None}}
    (copy / "start.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match=f"scene {HELD_OUT} is of the training data"):
        card.build_card(
            copy / "model.keras",
            sources=write_sources(copy / "s.csv", (*ROWS[:2], (HELD_OUT, *ROWS[0][1:]))),
            machine="m",
        )


@pytest.mark.parametrize("digest", ["", "0" * 12])
def test_weights_of_unknown_scenes_are_a_limit(
    made: pathlib.Path, copy: pathlib.Path, tmp_path: pathlib.Path, digest: str
) -> None:
    """Published weights without records, and a file that is no longer the one."""
    (tmp_path / "published.npz").write_bytes(b"weights")
    start_from(
        copy, tmp_path / "published.npz", digest or Init.of(tmp_path / "published.npz").digest
    )
    found = built(copy, made)
    assert found["trained"]["init"]["scenes"] is None
    assert "not known which scenes published.npz" in found["limits"][0]
    assert "(SHA-256" in card.render({**found, "model": "s2x", "parameters": 1, "bytes": 1})


def test_one_scene_by_its_names() -> None:
    """L1C, L2A and BigEarthNet's versions of one scene; others are themselves."""
    one = "S2A 20170613T101031 T33UUP"
    for name in (
        "S2A_MSIL1C_20170613T101031_N0205_R022_T33UUP_20170613T101608",
        "S2A_MSIL2A_20170613T101031_T33UUP",
        "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP",
    ):
        assert card_records._sensed(name) == one
    for name in ("L1C_east", "S2A_MSIL2A_20170613T101031_87_48"):
        assert card_records._sensed(name) == name


def test_a_patch_of_a_product_trained_on_is_no_test(made: pathlib.Path, copy: pathlib.Path) -> None:
    path = copy / f"evaluation-{HELD_OUT}.json"
    found = json.loads(path.read_text())
    assert found["products"] == {HELD_OUT: HELD_OUT}
    path.write_text(json.dumps({**found, "products": {HELD_OUT: TRAINED[0]}}))
    with pytest.raises(DataError, match=f"scene {HELD_OUT} is of the training data"):
        built(copy, made)


@pytest.mark.parametrize("case", ["scene", "view", "experiment"])
def test_a_curve_is_of_one_kind(made: pathlib.Path, copy: pathlib.Path, case: str) -> None:
    path = copy / f"evaluation-{HELD_OUT}.json"
    found = json.loads(path.read_text())
    if case == "scene":
        found["scenes"] = {"L1C_west": found["scenes"][HELD_OUT]}
    elif case == "view":
        found["view"] = "dsen2"
    else:
        experiment = json.loads((copy / "experiment.json").read_text())
        (copy / "experiment.json").write_text(json.dumps({**experiment, "name": "another"}))
    path.write_text(json.dumps(found))
    expected = rf"expected superres_20m_compact, scored on {HELD_OUT} \(lattice\), as .*run/model"
    with pytest.raises(DataError, match=expected):
        card_records.read_curve([copy / "model.keras", made / "run" / "model.keras"])


@pytest.mark.parametrize("cells", ["L1B,training", "L1C,sale"])
def test_levels_and_uses_of_scenes_are_those_known(tmp_path: pathlib.Path, cells: str) -> None:
    table = tmp_path / "sources.csv"
    table.write_text(f"{','.join(card_records.COLUMNS)}\nS2A*,{cells},CC0,x,y\n")
    with pytest.raises(DataError, match=rf"sources.csv, line 2: S2A\*,{cells}.*L1C or L2A"):
        card_records.read_sources(table)


@pytest.mark.shared_data
def test_every_scene_has_a_row_and_no_licence_is_passed_over(shared_data: pathlib.Path) -> None:
    """The package's table against what the scenes' own files say."""
    table = card_records.read_sources(shipped.SOURCES)
    for path in sorted((shared_data / "sr_scenes").glob("*.npz")):
        with np.load(path) as file:
            facts = json.loads(str(file["meta"]))
        row = card_records.find_scene(table, npz.open_scene(path).name, path)
        assert row.level == facts["level"]
        assert row.source.split(":")[0] in facts["source"].replace("github ", "github.com/")
        if "GPL" in facts["licence"] or "BY-SA" in facts["licence"]:
            assert row.use == card_records.EVALUATION


@pytest.mark.shared_data
@pytest.mark.parametrize("gsd", [20, 60])
def test_cubic_spline_on_real_scenes(shared_data: pathlib.Path, gsd: int) -> None:
    """Within 1 % of reference figures that were computed without this package."""
    rows = json.loads((shared_data / "sr_reference" / "dsen2_wald_reference.json").read_text())
    for name in ("L1C_ssc_cnn_coastal", "L1C_s2s_ucnn_usa"):
        granule = npz.open_scene(shared_data / "sr_scenes" / f"{name}.npz")
        scene = whole.read(granule, task := cube.find_task(f"superres_{gsd}m"))
        lowres = np.moveaxis(scene.cubes[f"gsd{gsd}"], 0, -1)[None].astype(np.float32)
        found = methods.interpolate("cubic_spline", lowres, task.scale)[0]
        rmse = np.sqrt(np.mean((found - scene.target) ** 2.0, axis=(0, 1)))
        expected = next(row for row in rows if row["name"] == name)[f"wald{gsd}_rmse_bicubic"]
        np.testing.assert_allclose(rmse, expected, rtol=0.01)
