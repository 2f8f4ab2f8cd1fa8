"""Scaling, shares, predict, quality, harness: arithmetic by tables; the commands at tiny sizes."""

from __future__ import annotations

import contextlib
import pathlib
import subprocess
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click.testing
import pytest

from benchmarks import all as everything
from benchmarks import quality, record, report, scaling, shares, systems, turns
from benchmarks.scaling_rank import Alone, Stopwatch

TINY = ["--set", "model.options.filters=8", "--set", "model.options.blocks=1"]


def test_figures_of_two_ranks() -> None:
    """One rank: 8 patches in 2 s. Two: 16 patches in 2.5 s, 1.6 times as fast; 1000 an epoch."""
    found = scaling.list_figures(
        [[2.5, 2.5], [2.5, 2.0]], [[2.0, 2.0], [2.0, 2.0]], 2, 16, 8, 1000, 3
    )
    assert found["seconds"]["median"] == 2.5
    assert found["throughput"]["median"] == 6.4
    assert found["speed_up"]["median"] == pytest.approx(1.6)
    assert found["efficiency"]["median"] == pytest.approx(0.8)
    runs = [1000 * 2.5 / 16, 1000 * 2.25 / 16]
    assert found["epoch_seconds"]["mean"] == pytest.approx(sum(runs) / 2)
    assert found["epoch_seconds"]["std"] == pytest.approx((runs[0] - runs[1]) / 2**0.5)
    assert found["epoch_seconds"]["repeats"] == 2
    assert found["seconds"]["steps"] == 3


@pytest.mark.parametrize(
    ("mode", "ranks", "patches"),
    [("weak", 1, 16), ("weak", 4, 16), ("strong", 1, 64), ("strong", 4, 16)],
)
def test_patches_of_a_rank(mode: str, ranks: int, patches: int) -> None:
    assert scaling.local(mode, 16, ranks, most=4) == patches


def test_a_job_that_died_half_way_is_a_gap(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two ranks of multiworker came through one run of two: no line, and the report says so."""
    found = {
        ("single", 1): [[1.0], [1.0]],
        ("horovod", 2): [[1.1], [1.1]],
        ("multiworker", 2): [[1.2]],
    }
    labels = {"experiment": "superres_20m", "mode": "weak", "precision": "float32"}
    labels |= {"train": 360_000, "patch": 32, "cores_each": 1}
    path = tmp_path / "scaling.jsonl"
    scaling.report(found, scaling.DISTRIBUTED, labels, 8, 2, steps=1, runs=2, output=path)
    assert "left out: multiworker 2: it did not come through all runs" in capsys.readouterr().err
    lines, problems = record.read(tmp_path)
    assert problems == []
    assert [(line["strategy"], line["ranks"]) for line in lines] == [
        ("horovod", 1),
        ("horovod", 2),
        ("multiworker", 1),
    ]
    told = "\n".join(report.to_markdown(report.describe(systems.load("local"), lines, [])))
    assert "S2x, float32, weak scaling, 2 ranks: no record of multiworker." in told
    base = {key: seconds for key, seconds in found.items() if key != ("single", 1)}
    scaling.report(base, scaling.DISTRIBUTED, labels, 8, 2, steps=1, runs=2, output=path)
    assert "left out: everything, for want of one rank alone" in capsys.readouterr().err
    assert record.read(tmp_path)[0] == lines


def test_shares_of_a_step() -> None:
    """A step of 1 s that waited 0.1 s for patches and took 0.8 s, 0.6 s of it without sums."""
    found = shares.list_figures([{"seconds": 1.0, "input": 0.1, "step": 0.8, "alone": 0.6}], 4)
    medians = {part: found[part]["median"] for part in shares.PARTS}
    assert medians == pytest.approx(
        {"compute": 0.6, "communication": 0.2, "input": 0.1, "rest": 0.1}
    )
    slow = shares.list_figures([{"seconds": 1.0, "input": 0.1, "step": 0.8, "alone": 0.9}], 4)
    assert [slow[part]["median"] for part in shares.PARTS] == pytest.approx([0.8, 0.0, 0.1, 0.1])


def test_ranks_alone_do_not_speak() -> None:
    class Strategy:
        world_size = 3

        def sum_gradients(self, tensors: Any) -> list[Any]:
            raise AssertionError

    alone = Alone(Strategy())  # type: ignore[arg-type]
    assert alone.world_size == 3
    assert alone.sum_gradients((1, None)) == [1, None]


def test_a_stopwatch_counts_calls_that_fail_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import scaling_rank

    clock = iter([1.0, 1.5, 7.0, 9.0])
    monkeypatch.setattr(scaling_rank.time, "perf_counter", lambda: next(clock))
    watch = Stopwatch()
    assert watch.timed(len)([1, 2]) == 2
    with pytest.raises(StopIteration):
        watch.timed(next)(iter(()))
    assert watch.seconds == 2.5


@pytest.fixture(scope="module")
def call() -> Iterator[Callable[..., Any]]:
    """Call a command in this process; its ranks, real ones, go on to the next: starts take long."""
    kept: dict[tuple[str, int], turns.Job] = {}
    begin = scaling.start

    def start(strategy: str, ranks: int, most: int, case: Mapping[str, Any]) -> Callable[[], Any]:
        def job() -> turns.Job:
            if (strategy, ranks) not in kept:
                both = {"data": "synthetic", **case}
                kept[strategy, ranks] = begin(strategy, ranks, most, both)()
            return kept[strategy, ranks]

        return job

    @contextlib.contextmanager
    def open_jobs(starts: Mapping[str, Callable[[], turns.Job]]) -> Iterator[Any]:
        jobs = {name: start() for name, start in starts.items()}
        yield {name: job.ready() for name, job in jobs.items()}

    def run(command: click.Command, *options: object) -> Any:
        found = click.testing.CliRunner().invoke(command, list(map(str, options)))
        if found.exception and not isinstance(found.exception, SystemExit):
            raise found.exception
        return subprocess.CompletedProcess([], found.exit_code, found.output, found.output)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "start", start)
        patch.setattr(turns, "open_jobs", open_jobs)
        yield run
    for job in kept.values():
        job.close()


def read(path: pathlib.Path, result: Any) -> list[record.Line]:
    assert result.returncode == 0, result.stderr
    assert "left out" not in result.stderr
    lines, problems = record.read(path)
    assert problems == []
    return lines


@pytest.mark.horovod
def test_scaling_writes_both_curves_and_their_ratio(
    call: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "scaling.jsonl"
    options = [*TINY, "--precision", "float32", "--batch", "2", "--rounds", "1"]
    result = call(scaling.main, *options, "--steps", "1", "-o", path)
    lines = read(path, result)
    curves = [line for line in lines if line["what"] == "scaling"]
    assert [(c["mode"], c["strategy"], c["ranks"], c["global_batch"]) for c in curves] == [
        (mode, strategy, ranks, 4 if mode == "strong" else 2 * ranks)
        for mode in scaling.MODES
        for strategy in scaling.DISTRIBUTED
        for ranks in (1, 2)
    ]
    for line in curves:
        assert line["mllog"]["global_batch_size"] == line["global_batch"]
        assert line["train"] == 360_000
        assert line["epoch_seconds"]["std"] >= 0
        if line["ranks"] == 1:
            assert line["speed_up"]["quartiles"] == [1.0, 1.0]
    ratios = [line for line in lines if line["what"] == "strategies"]
    assert [(line["mode"], line["ranks"]) for line in ratios] == [("weak", 2), ("strong", 2)]
    assert all(line["ratio"]["repeats"] == 2 for line in ratios)
    assert "horovod over multiworker, weak, float32, 2 ranks" in result.stdout


@pytest.mark.horovod
def test_shares_add_up(call: Callable[..., Any], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "shares.jsonl"
    options = [*TINY, "--precision", "float32", "--batch", "2", "--rounds", "1", "--steps", "2"]
    lines = read(path, call(shares.main, *options, "-o", path))
    assert [(line["strategy"], line["ranks"]) for line in lines] == [
        ("single", 1),
        ("horovod", 2),
        ("multiworker", 2),
    ]
    for line in lines:
        assert sum(line[part]["median"] for part in shares.PARTS) == pytest.approx(1)
        assert line["seconds"]["median"] > 0


def test_prediction_and_the_harness_itself(
    run_benchmark: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "predict.jsonl"
    options = ["--short", "--model", "S2x", "--size", "96", "-o", path]
    lines = read(path, run_benchmark("predict", *options, cwd=tmp_path))
    assert [(line["model"], line["precision"]) for line in lines] == [
        ("S2x", "float32"),
        ("S2x", "bfloat16"),
    ]
    for line in lines:
        seconds, rate = line["seconds"]["median"], line["throughput"]["median"]
        assert rate == pytest.approx(96**2 / seconds / 1e6, rel=0.2)
    path = tmp_path / "harness.jsonl"
    options = ["--short", "--batch", "2", "--rounds", "1", "--steps", "2", "-o", path]
    (line,) = read(path, run_benchmark("harness", *options, cwd=tmp_path))
    assert line["ratio"]["median"] > 0


def test_quality_is_the_commands_own_scores(
    run_benchmark: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "quality.jsonl"
    options = ["--short", "--ranks", "1", "--batch", "4", "-o", path]
    (line,) = read(path, run_benchmark("quality", *options, cwd=tmp_path))
    assert (line["budget"], line["ranks"], line["strategy"]) == ("steps 4", 1, "single")
    assert line["steps"]["median"] == 4
    assert line["rmse"]["median"] > 0
    assert line["rmse bicubic"]["unit"] == "DN"


def test_a_training_that_fails_is_named_and_the_others_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    answers: list[Mapping[str, float] | None] = [None, {"rmse": 2.0, "steps": 4.0}]
    monkeypatch.setattr(quality, "_train", lambda *_: answers.pop(0))
    path = tmp_path / "q.jsonl"
    arguments = ["--ranks", "1", "--batch", "4", "--batch", "8", "--steps", "4", "-o", str(path)]
    result = click.testing.CliRunner().invoke(quality.main, arguments)
    assert result.exit_code == 1
    assert "1 trainings failed" in result.output
    (line,) = record.read(path)[0]
    assert (line["global_batch"], line["rmse"]["median"]) == (8, 2.0)


def test_scores_of_labels_are_flat() -> None:
    classes = {"f1": [0.5, 0.1]}
    scores = {"micro": {"f1": 0.8}, "hamming_loss": 0.1, "classes": classes}
    assert quality.flatten({"prior": scores, "model": {"rmse": {"mean": 3.0, "B05": 2.0}}}) == {
        "micro f1 prior": 0.8,
        "hamming_loss prior": 0.1,
        "rmse": 3.0,
    }
    assert [quality.unit_of(n) for n in ("rmse bicubic", "sam", "ssim")] == ["DN", "deg", "1"]


def test_all_goes_on_after_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], check: bool) -> Any:
        ran.append(command[3:])
        return type("Result", (), {"returncode": int(command[3] == "scaling")})

    monkeypatch.setattr(everything.subprocess, "run", run)
    arguments = ["--short", "--system", "juwels", "-o", str(tmp_path)]
    result = click.testing.CliRunner().invoke(everything.main, arguments)
    assert result.exit_code == 1
    assert "scaling failed" in result.output
    assert [command[0] for command in ran] == list(everything.SHORT)
    assert ran[0] == [
        *("allreduce", "--system", "juwels", "-o", str(tmp_path / "allreduce.jsonl"), "--short"),
    ]
