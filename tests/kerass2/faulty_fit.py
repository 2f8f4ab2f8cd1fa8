"""python faulty_fit.py [ARGUMENT...]: kerass2.fit, one rank of which fails once, as FAULT says.

FAULT is JSON: "kind" (a key of KINDS), "rank", "when" (one of WHEN), "step" (calls of what is
waited for before it happens) and "note": a file that is written when it happens, with the time and
the checkpoints that lie there; while it is there, nothing fails again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from kerass2 import cli, fit, session, train, validation
from kerass2.session import Session

WHEN = ("start", "step", "checkpoint", "validation")


def main() -> None:
    fault = json.loads(os.environ["FAULT"])
    prepare = session.prepare

    def prepare_and_arm(job: Any, strategy: Any) -> Any:
        made = prepare(job, strategy)
        if strategy.rank == fault["rank"] and not pathlib.Path(fault["note"]).exists():
            arm(Fault(**fault), made[0])
        return made

    session.prepare = prepare_and_arm
    cli.run(fit.main)


@dataclasses.dataclass
class Fault:
    kind: str
    rank: int
    when: str
    note: str
    step: int = 0

    def happen(self, run: Session) -> None:
        folder = run.job.workdir / "checkpoints"
        there = sorted(path.name for path in folder.glob("step-*.npz"))
        text = json.dumps({"time": time.time(), "checkpoints": there})
        note = pathlib.Path(self.note)
        note.with_suffix(".new").write_text(text)
        note.with_suffix(".new").replace(note)
        KINDS[self.kind](run)


def arm(fault: Fault, run: Session) -> None:
    """Let the fault happen at the call that it names, in this process."""
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == fault.step + 1:
            fault.happen(run)

    def before(function: Callable[..., Any]) -> Callable[..., Any]:
        def both(*arguments: Any, **options: Any) -> Any:
            count()
            return function(*arguments, **options)

        return both

    if fault.when == "start":
        fault.step = 0
        count()
    elif fault.when == "step":
        loop = train.train
        train.train = lambda *, step, **more: loop(step=before(step), **more)
    elif fault.when == "validation":
        fault.step = 0
        validation.finish = before(validation.finish)
    elif run.strategy.is_chief:  # in the midst of a file
        write = np.savez

        def write_half(file: Any, **arrays: Any) -> None:
            file.write(b"half of a checkpoint" * 500)
            file.flush()
            count()
            file.seek(0)
            file.truncate()
            write(file, **arrays)

        np.savez = write_half
    else:
        loop = train.train
        train.train = lambda *, save, **more: loop(save=before(save), **more)


def kill(run: Session) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop(run: Session) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def fail(run: Session) -> None:
    raise RuntimeError("the injected fault")


def take_memory(run: Session) -> None:
    np.ones(2**48)  # a petabyte


def leave(run: Session) -> None:
    os._exit(3)


def damage_and_kill(run: Session) -> None:
    """What was written last turns bad, and the process dies."""
    folder = run.job.workdir / "checkpoints"
    while any(folder.glob(".step-*")):  # it is being written
        time.sleep(0.01)
    newest = max(folder.glob("step-*.npz"))
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    newest.write_bytes(data)
    kill(run)


def fill_disk(run: Session) -> None:
    raise OSError(28, "No space left on device")


def perturb(run: Session) -> None:
    """A rank's memory errs: one weight of a layer changes by its last bits."""
    weight = run.state.model.trainable_variables[2]
    value = np.array(weight)
    value.flat[0] = np.nextafter(value.flat[0], np.float32(9))
    weight.assign(value)


KINDS: dict[str, Callable[[Session], None]] = {
    "kill": kill,
    "stop": stop,
    "raise": fail,
    "memory": take_memory,
    "exit": leave,
    "damage": damage_and_kill,
    "full": fill_disk,
    "perturb": perturb,
}

if __name__ == "__main__":
    main()
