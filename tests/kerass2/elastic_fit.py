"""python elastic_fit.py [ARGUMENT...]: kerass2.fit as a rank to which things happen, as PLAN says.

PLAN is JSON: "RANK STEP" -> a shell command, run once by that rank before that step, counted from
1; $PPID is the rank. NOTES: a folder for what has happened already.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
from typing import Any

from kerass2 import cli, fit, train


def main() -> None:
    loop = train.train

    def train_as_planned(*, step: Any, first_step: int, **more: Any) -> int:
        done = first_step

        def planned(*arguments: Any) -> Any:
            nonlocal done
            done += 1
            happen(f"{os.environ['HOROVOD_RANK']} {done}")
            return step(*arguments)

        return loop(step=planned, first_step=first_step, **more)

    train.train = train_as_planned
    cli.run(fit.main)


def happen(event: str) -> None:
    command = json.loads(os.environ["PLAN"]).get(event)
    note = pathlib.Path(os.environ["NOTES"]) / event
    if command and not note.exists():
        note.touch()
        subprocess.run(command, shell=True, check=True)


if __name__ == "__main__":
    main()
