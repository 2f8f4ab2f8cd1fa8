"""What ranks compare before the first step and while they train: found, and named.

Ranks are threads here, whose sums meet; real ranks whose weights come apart: test_faults.py.
"""

from __future__ import annotations

import dataclasses
import pathlib
import threading
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

from data_pipelines.spec import DataError
from kerass2 import agreement, checkpoint, config, session
from kerass2.inputs import Data
from kerass2.job import Init, Job
from strategies.base import StrategyError


class Rank:
    """A rank whose sum is that of the threads of all."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, table: list) -> None:
        self.rank, self.world_size, self.is_chief = rank, size, rank == 0
        self._barrier, self._table = barrier, table

    def sum(self, values: np.ndarray) -> np.ndarray:
        self._table[self.rank] = np.array(values, np.float64)
        self._barrier.wait(20)
        total = np.sum(self._table, axis=0)
        self._barrier.wait(20)
        return total


def together(function, *arguments: list) -> list[str]:
    """What each rank's call raises; rank r has the r-th of each argument."""
    size = len(arguments[0])
    barrier, table = threading.Barrier(size), [None] * size
    ranks = [Rank(rank, size, barrier, table) for rank in range(size)]

    def call(rank: Rank) -> str:
        try:
            function(rank, *(values[rank.rank] for values in arguments))
        except StrategyError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(call, ranks))


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ([(1, 2), (1, 2), (1, 2)], None),
        ([(1, 2), (1, 2), (1, 3)], (1, 2)),
        # Rank 0 is the one that differs from most.
        ([(9, 2), (1, 2), (1, 2)], (0, 0)),
        # Of two, rank 0 is right; the first difference is named.
        ([(2**48 - 1, 5), (2**48 - 2, 6)], (0, 1)),
    ],
)
def test_who_differs_in_what(tables, expected):
    found = []
    together(lambda rank, own: found.append(agreement.find_difference(rank, own)), tables)
    assert found == [expected] * len(tables)


def job(workdir: pathlib.Path, **changes) -> Job:
    data = Data(pathlib.Path("/data"), "patches", "0123456789ab", {}, {}, lambda split: None)
    experiment = config.override(config.load("dsen2_20m"), ["run.seed=3"])
    return dataclasses.replace(Job(experiment, data, workdir), **changes)


def changed(base: Job, setting: str) -> Job:
    return dataclasses.replace(base, experiment=config.override(base.experiment, [setting]))


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("run.seed: ", lambda j: changed(j, "run.seed=4")),
        ("the experiment (optimizer): ", lambda j: changed(j, "optimizer.learning_rate=0.5")),
        ("the experiment (model): ", lambda j: changed(j, "model.options.filters=3")),
        (
            "the data: ",
            lambda j: dataclasses.replace(j, data=dataclasses.replace(j.data, digest="f" * 12)),
        ),
        (
            "the starting weights: ",
            lambda j: dataclasses.replace(j, init=Init(pathlib.Path("w"), "0" * 12)),
        ),
        (
            "the run in the workdir: ",
            lambda j: dataclasses.replace(j, workdir=j.workdir / "elsewhere"),
        ),
        ("the run in the workdir: ", lambda j: dataclasses.replace(j, resume=True)),
    ],
)
def test_ranks_that_begin_otherwise_are_refused(tmp_path, what, change):
    (tmp_path / "experiment.json").write_text("{}")
    same = job(tmp_path)
    assert together(lambda rank, j: agreement.check_start(j, rank), [same] * 3) == [""] * 3
    jobs = [same, change(same), same]
    said = together(lambda rank, j: agreement.check_start(j, rank), jobs)
    assert all(f"ranks differ in {what}" in line for line in said), said
    assert all("rank 1 of 3 from most others" in line for line in said)
    assert len({line.partition("; on rank")[0] for line in said}) == 1
    assert all("\n" not in line for line in said)


def test_ranks_of_other_code_are_refused_before_anything_else(tmp_path, monkeypatch):
    names = iter(["kerass2 0.1.0 (aa)", "kerass2 0.1.0 (bb)"])
    monkeypatch.setattr(agreement, "_describe_code", lambda: next(names))
    jobs = [job(tmp_path), changed(job(tmp_path), "loss=l2")]
    said = together(lambda rank, j: agreement.check_start(j, rank), jobs)
    assert all("ranks differ in the code: rank 1 of 2" in line for line in said)
    assert all("Install the same on all nodes" in line for line in said)


def test_the_code_is_told_by_its_sources():
    import kerass2

    said = agreement._describe_code()
    assert said.startswith(f"kerass2 {kerass2.__version__} (")
    assert f"keras {keras.__version__}" in said
    assert "tensorflow" in said


def test_a_workdir_that_is_not_shared_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(agreement, "SHARED_SECONDS", 0.3)
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (here / "data.json").write_text('{"data": 1}')
    assert together(lambda r, w: agreement.check_shared(w, r), [here] * 2) == [""] * 2
    said = together(lambda r, w: agreement.check_shared(w, r), [here, here, there])
    assert all("rank 2 does not see in" in line for line in said)
    assert all("file system that all nodes share" in line for line in said)


def model(**weights: float) -> keras.Model:
    """Two layers of ones, but for one number."""
    layers = [keras.layers.Dense(3, name="first"), keras.layers.Dense(2, name="second")]
    made = keras.Sequential([keras.Input((4,)), *layers])
    for layer in layers:
        kernel = np.ones(layer.kernel.shape, np.float32)
        kernel[-1, -1] += weights.get(layer.name, 0.0)
        layer.kernel.assign(kernel)
    return made


def test_a_weight_that_differs_in_its_last_bit_is_named():
    same, other = model(), model(second=float(np.spacing(np.float32(1))))

    def check(rank, made):
        agreement.check_weights(made, rank, 400, 200)

    assert together(check, [same, model()]) == ["", ""]
    said = together(check, [same, same, other])
    assert all("different weights after 400 steps, and were equal after 200" in x for x in said)
    assert all("second of rank 2 differs" in line for line in said), said


def test_moving_statistics_may_differ():
    def made(mean: float) -> keras.Model:
        layer = keras.layers.BatchNormalization(name="norm")
        model = keras.Sequential([keras.Input((4,)), layer])
        layer.moving_mean.assign(np.full(4, mean))
        return model

    said = together(
        lambda rank, m: agreement.check_weights(m, rank, 1, None), [made(0.0), made(1.0)]
    )
    assert said == ["", ""]


class Recorded:
    """A state that reads sound files only."""

    step = 0

    def restore(self, path: pathlib.Path) -> None:
        if path.read_text() == "damaged":
            raise checkpoint.DamagedError(f"{path}: damaged checkpoint")
        self.step = int(path.stem.partition("-")[2])


def test_the_newest_sound_checkpoint_is_taken(tmp_path, capsys):
    for step, text in ((4, "sound"), (8, "damaged"), (12, "damaged")):
        (tmp_path / f"step-{step:08d}.npz").write_text(text)
    states = [Recorded(), Recorded()]
    assert together(lambda r, s: session._restore(s, tmp_path, r), states) == ["", ""]
    assert [state.step for state in states] == [4, 4]
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2  # rank 0 speaks for all
    assert "step-00000012.npz: damaged checkpoint; going on from the one before" in warnings[0]
    (tmp_path / "step-00000004.npz").write_text("damaged")
    with pytest.raises(DataError, match="step-00000004"):
        together(lambda r, s: session._restore(s, tmp_path, r), [Recorded()])


def test_ranks_that_read_other_checkpoints_are_refused(tmp_path):
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder, step in zip(folders, (4, 8), strict=True):
        folder.mkdir()
        (folder / f"step-{step:08d}.npz").write_text("sound")
    said = together(lambda r, f: session._restore(Recorded(), f, r), folders)
    assert "rank 1 of 2 from most others; on rank 0 it is of 4 steps" in said[0]
