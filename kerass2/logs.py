"""What a run leaves behind while it trains.

log.jsonl, TensorBoard events, and a progress line on rank 0's screen.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import pathlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from kerass2 import messages

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Seconds between progress lines where the output is no terminal, such as a batch job's log.
QUIET_SECONDS = 30.0


class NoLog:
    """The log of ranks other than 0: none."""

    def step(self, done: int, loss: float) -> None:
        """Nothing."""

    def event(self, done: int, **values: Any) -> None:
        """Nothing."""

    def images(self, done: int, **images: NDArray[np.uint8]) -> None:
        """Nothing."""

    def exclude(self, seconds: float) -> None:
        """Nothing."""

    def __enter__(self) -> NoLog:
        """Nothing to open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""


class TrainingLog:
    """Writes log.jsonl and TensorBoard scalars every `every` steps, and shows progress."""

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        every: int,
        first_step: int,
        num_steps: int,
        global_batch: int,
        seconds: float,
        learning_rate: Callable[[], float],
    ) -> None:
        """Go on with the log of `workdir` after `first_step` steps, which took `seconds`."""
        import rich.console
        import rich.progress
        import tensorflow as tf

        self._path = workdir / "log.jsonl"
        _forget_after(self._path, first_step)
        self._file, self._failed = self._path.open("a"), False
        self._tf, self._events = tf, _open_events(tf, workdir / "tensorboard")
        self._every, self._num_steps, self._global_batch = every, num_steps, global_batch
        self._learning_rate = learning_rate
        self._begin = time.monotonic() - seconds
        self._last_step, self._last_time = first_step, time.monotonic()
        self._last_line = time.monotonic()
        console = rich.console.Console()
        columns = (
            "{task.completed}/{task.total} steps",
            rich.progress.BarColumn(),
            "loss {task.fields[loss]}  {task.fields[throughput]} patches/s  left",
            rich.progress.TimeRemainingColumn(),
        )
        self._progress = rich.progress.Progress(
            *columns, console=console, disable=not messages.has_progress(console)
        )
        self._in_lines = messages.shows("info") and not console.is_terminal
        self._task = self._progress.add_task(
            "fit", total=num_steps, completed=first_step, loss="-", throughput="-"
        )

    @property
    def seconds(self) -> float:
        """Training time so far [s], earlier sessions of a resumed run included."""
        return time.monotonic() - self._begin

    def step(self, done: int, loss: float) -> None:
        """Note the loss after `done` steps."""
        self._progress.update(self._task, completed=done)
        if done % self._every and done != self._num_steps:
            return
        now = time.monotonic()
        throughput = (done - self._last_step) * self._global_batch / (now - self._last_time)
        self._last_step, self._last_time = done, now
        self.event(
            done,
            loss=loss,
            learning_rate=self._learning_rate(),
            patches_per_second=round(throughput, 2),
        )
        self._progress.update(self._task, loss=f"{loss:.5f}", throughput=f"{throughput:.1f}")
        if self._in_lines and (now - self._last_line > QUIET_SECONDS or done == self._num_steps):
            self._last_line = now
            print(
                f"step {done}/{self._num_steps}  loss {loss:.5f}  {throughput:.1f} patches/s",
                flush=True,
            )

    def event(self, done: int, **values: Any) -> None:
        """One line of log.jsonl: step, the values, and the training time.

        Numbers go to TensorBoard too.
        """
        line = {"step": done, **values, "seconds": round(self.seconds, 3)}
        self._write(json.dumps(line) + "\n")
        if self._events is None:
            return
        with self._events.as_default(step=done):
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._tf.summary.scalar(name, value)

    def images(self, done: int, **images: NDArray[np.uint8]) -> None:
        """Pictures (picture, y, x, 3) by name, for TensorBoard alone."""
        if self._events is None:
            return
        with self._events.as_default(step=done):
            for name, pictures in images.items():
                self._tf.summary.image(name, pictures, max_outputs=len(pictures))

    def _write(self, text: str) -> None:
        """Append to the file; what a full disk does not take is written when it does."""
        try:
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            if not self._failed:
                messages.warn(
                    f"{self._path} could not be written ({error.strerror}): training goes on"
                )
            self._failed = True

    def exclude(self, seconds: float) -> None:
        """Leave time that no step took, as that of a validation, out of the throughput."""
        self._last_time += seconds

    def __enter__(self) -> TrainingLog:
        """Show the progress line."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close all."""
        self._progress.stop()
        with contextlib.suppress(OSError):  # said before
            self._file.close()
        if self._events is not None:
            self._events.close()


def _open_events(tf: Any, folder: pathlib.Path) -> Any:
    """TensorFlow's writer; None where TensorBoard is not installed, which it needs.

    TensorFlow to 2.20 brings TensorBoard, 2.21 does not.
    """
    if importlib.util.find_spec("tensorboard") is None:
        messages.warn(
            "tensorboard is not installed (pip install tensorboard): its folder stays empty; "
            "log.jsonl has the numbers"
        )
        return None
    return tf.summary.create_file_writer(str(folder))


def _forget_after(path: pathlib.Path, step: int) -> None:
    """Drop lines of steps that came after the checkpoint from which a run is resumed."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):
            continue  # the line that was being written when the process died
    path.write_text("".join(kept))
