"""The projection: from records with known links, from published curves, and gaps it tells."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib

import click
import pytest
from click.testing import CliRunner

from benchmarks import project, project_cases, project_checks, project_records, systems
from benchmarks import project_model as model
from data_pipelines.spec import DataError
from tests.benchmarks.made_records import LINK, figure, sums, training, write


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1..1024", [2**i for i in range(11)]),
        ("1..96", [1, 2, 4, 8, 16, 32, 64, 96]),
        ("3..3", [3]),
        ("96,4,4", [4, 96]),
    ],
)
def test_ranks(text: str, expected: list[int]) -> None:
    assert project.parse_ranks(text) == expected


@pytest.mark.parametrize("text", ["", "0..4", "4..1", "a", "1,,2", "1..2097152", "-1", "1...4"])
def test_ranks_that_are_none(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"expected LOW\.\.HIGH"):
        project.parse_ranks(text)


def test_the_last_line_of_its_kind_counts() -> None:
    old, new = training({1: 3.0, 2: 3.1}), training({1: 1.0})
    other = training({1: 9.0}, precision="bfloat16")
    new[0]["where"]["time"] = "2026-11-22T11:00:00+00:00"
    found = project_records.newest([*new, *old, *other])
    assert [x["seconds"]["median"] for x in found] == [1.0, 3.1, 9.0]
    # Of two batches the one that was measured last makes the curve.
    larger = training({1: 5.0, 2: 5.1})
    for each in larger:
        each["global_batch"] *= 4
        each["where"]["time"] = "2026-11-22T12:00:00+00:00"
    found = project_records.newest([*larger, *new, *old])
    assert [x["seconds"]["median"] for x in found] == [5.0, 5.1]


def test_settings_make_another_experiment() -> None:
    (changed,) = project_records.newest(training({1: 1.0}, settings=["model.options.filters=16"]))
    assert changed["experiment"] == "superres_20m with model.options.filters=16"


def test_a_known_machine_is_predicted() -> None:
    work = project_cases.WORKS["superres_20m"]
    step = model.Step(0.5, model.fuse(project_cases.tensor_sizes(work)), devices=2)
    network = model.Network(10**9, LINK)
    seconds = {n: model.step_seconds(n, step, network) for n in (1, 2, 3, 4)}
    system = local(devices=2)
    found = project.project(system, [*sums(), *training(seconds)], [1, 2, 4])
    (case,) = found["cases"]
    assert (case["title"], case["batch"]) == ("S2x", 16)
    for row in case["curve"]:
        assert row["seconds"] == pytest.approx(seconds[row["ranks"]], rel=1e-6)
        assert row["throughput"] == pytest.approx(16 * row["ranks"] / row["seconds"])
        assert row["efficiency"] == pytest.approx(seconds[1] / seconds[row["ranks"]])
    kinds = {row["of"]: row["count"] for row in project_checks.summarise(found["checks"])}
    assert kinds == {
        "horovod-gloo: sizes left out": 6,
        "horovod-gloo: 2 ranks left out": 5,
        "horovod-gloo: 3 ranks left out": 5,
        "horovod-gloo: 4 ranks left out": 5,
        "S2x, horovod, float32: a step, from one rank's and the links": 3,
    }
    assert max(abs(check.error) for check in found["checks"]) < 1e-6
    assert [gap.partition(":")[0] for gap in found["gaps"]] == ["S6x", "ResNet-50"]


def local(devices: int) -> systems.System:
    """A machine alone, with so many cores."""
    found = systems.load("local")
    node = found.node.model_copy(update={"devices": devices})
    return found.model_copy(update={"node": node})


def test_checks_see_what_the_fit_has_not() -> None:
    """A measurement of 4 ranks that is twice what the link says shows as an error of a half."""
    lines = sums()
    for each in lines:
        if each["ranks"] == 4:
            each["seconds"] = figure(2 * each["seconds"]["median"])
    checks = project_checks.check_links(lines, "horovod-gloo")
    out = [check for check in checks if check.what == "horovod-gloo: 4 ranks left out"]
    assert [check.error for check in out] == pytest.approx([-0.5] * 5)


def test_ranks_that_use_all_cores_take_turns() -> None:
    lines = training({1: 1.0}, cores_each=2)
    found = project.project(local(devices=2), [*sums(link=model.Link(0, 1e-15)), *lines], [1, 2, 3])
    assert [row["seconds"] for row in found["cases"][0]["curve"]] == pytest.approx(
        [1, 2, 3], rel=1e-3
    )


def test_ranks_with_cores_of_their_own_count_first() -> None:
    """One rank on one core takes 1 s, on both 0.5 s: 2 ranks take as long as one of the first."""
    lines = [*training({1: 1.0}, cores_each=1), *training({1: 0.5}, cores_each=2)]
    found = project.project(local(devices=2), [*sums(link=model.Link(0, 1e-15)), *lines], [1, 2])
    seconds = [row["seconds"] for row in found["cases"][0]["curve"]]
    assert seconds == pytest.approx([1, 1], rel=1e-3)


def test_juwels_from_what_is_published() -> None:
    found = project.project(systems.load("juwels"), [], project.parse_ranks("1..1024"))
    assert [case["title"] for case in found["cases"]] == ["S2x", "S6x", "ResNet-50"]
    assert found["gaps"] == []
    # 347 s on 4 GPUs are about 1388 GPU-seconds an epoch: with nothing else, 28.9, 21.7, 14.5 s.
    checks = {check.ranks: check for check in found["checks"]}
    assert list(checks) == [48, 64, 96]
    assert [check.measured for check in checks.values()] == [27, 20, 15]
    for check in checks.values():
        assert check.predicted == pytest.approx(1370 / check.ranks, rel=0.03)
        assert abs(check.error) < 0.1
    for case in found["cases"]:
        remedies = {remedy["name"]: remedy for remedy in case["remedies"]}
        assert "ring of nodes" in remedies
        base = remedies["as it is"]["efficiency"]
        assert remedies["no fusion"]["efficiency"] < base
        for name in ("batch x 2", "batch x 4", "float16 gradients", "ring of nodes"):
            assert remedies[name]["efficiency"] >= base
        for remedy in case["remedies"]:
            assert (remedy["below"] is None) == (remedy["efficiency"] >= project.ENOUGH)


def test_the_place_where_it_falls_is_the_curves() -> None:
    lines = [*sums(link=model.Link(1e-3, 1e-9)), *training({1: 0.2})]
    found = project.project(local(devices=10**6), lines, list(range(1, 200)))
    (case,) = found["cases"]
    below = case["remedies"][0]["below"]
    efficiencies = {row["ranks"]: row["efficiency"] for row in case["curve"]}
    assert efficiencies[below] < 0.9 <= efficiencies[below - 1]


def test_nothing_known_is_a_gap() -> None:
    found = project.project(systems.load("local"), [], [1, 2])
    assert found["cases"] == []
    assert found["gaps"] == [
        "local: nothing says what its links cost; expected all-reduces of horovod in its records, "
        "or [[link]] in its file"
    ]


def test_works_are_what_the_models_are() -> None:
    from kerass2 import config, models
    from kerass2.models.__main__ import count_named

    for experiment, work in project_cases.WORKS.items():
        chosen = config.load(experiment)
        weights = models.build(chosen.model.name, **chosen.model.options).trainable_variables
        assert work.tensors == len(weights)
        assert work.parameters == sum(math.prod(weight.shape) for weight in weights)
        assert work.operations == count_named(experiment, work.patch)["patch_operations"]


def test_command(tmp_path: pathlib.Path) -> None:
    folder = write(tmp_path / "records", [*sums(), *training({1: 1.0, 2: 1.1})])
    with (folder / "made.jsonl").open("a") as file:
        file.write("{damaged\n")
    options = ["--records", str(folder), "--ranks", "1..4"]
    done = CliRunner().invoke(project.main, [*options, "--json"])
    assert done.exit_code == 0, done.output
    assert "made.jsonl, line 18: damaged" in done.stderr
    lines = [json.loads(each) for each in done.stdout.splitlines()]
    assert [each["title"] for each in lines if each["what"] == "projection"] == ["S2x"]
    assert {each["what"] for each in lines} == {"projection", "check", "gap"}
    done = CliRunner().invoke(project.main, options)
    assert done.exit_code == 0, done.output
    for text in ("S2x, 16 patches a rank", "efficiency", "batch x 2: below 0.9", "Gap: S6x"):
        assert text in done.stdout


def test_a_folder_that_is_not_there(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="nowhere: not found; expected a folder of records"):
        project_records.read(systems.load("local"), tmp_path / "nowhere")


def test_lines_of_other_systems_are_left_out(tmp_path: pathlib.Path) -> None:
    other = [{**each, "system": "juwels"} for each in sums()]
    folder = write(tmp_path / "records", [*other, *training({1: 1.0})])
    lines, problems = project_records.read(systems.load("local"), folder)
    assert ([each["what"] for each in lines], problems) == (["scaling"], [])


def test_spread_of_steps() -> None:
    found = project_cases.spread({"quartiles": [0.98, 1.02], "steps": 4})
    assert found == pytest.approx(2 * 0.04 / 1.349)


def test_strategies_have_paths_of_their_own() -> None:
    lines = [*sums("multiworker-ring", dataclasses.replace(LINK, beta=1e-8)), *sums()]
    assert project_cases.find_path(lines, "horovod") == "horovod-gloo"
    assert project_cases.find_path(lines, "multiworker") == "multiworker-ring"
    slow, _ = project_cases.build_network(local(2), lines, "multiworker")
    assert slow.inside.beta == pytest.approx(1e-8)
