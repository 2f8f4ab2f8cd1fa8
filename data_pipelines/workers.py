"""Parts of work on the processes of dask.distributed: this machine's, or those of a scheduler."""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Protocol

from data_pipelines import parts
from data_pipelines.journal import Done
from data_pipelines.spec import DataError

# Seconds between two looks at progress and at workers that have joined.
INTERVAL = 0.5
# How often a part is begun again after its process died, before the whole is given up.
RETRIES = 3
# Topic of the workers' progress.
TOPIC = "kerass2-progress"
# Seconds in which a given scheduler must have its first worker.
JOINING = 30.0
# Seconds in which workers must leave what they are at, after an error or an interruption.
LEAVING = 20.0


class Part(Protocol):
    """What one process does at a time."""

    @property
    def number(self) -> int:
        """Its place in the data set."""
        ...

    @property
    def num_patches(self) -> int:
        """What `advance` counts to."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """What it is about, for messages."""
        ...


class Job(Protocol):
    """What all parts of a conversion have in common; goes to other processes by pickle."""

    def do(self, part: Any, advance: Callable[[int], None]) -> Done:
        """Do a part, and note it in the journal once it is on disk."""
        ...


class _Cancelled(Exception):
    """Nobody waits for this part any more."""


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def do_parts(
    job: Job,
    order: Sequence[int],
    build: Callable[[int], Part],
    *,
    processes: int,
    scheduler: str | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> Generator[Done, None, None]:
    """Do parts, each in one of several processes or, for one process, here.

    Args:
        job: what to do.
        order: numbers of the parts; whoever is free takes the next.
        build: a part by its number; called when its turn comes, so that not all are in memory.
        processes: how many.
        scheduler: address of a dask scheduler whose workers see the same files; None starts
            `processes` workers on this machine.
        advance: called with the number of patches done.

    Yields:
        What came of each part, in the order in which they end.

    Raises:
        DataError: the disk is full or not to be written to, the scheduler does not answer or has
            no workers, or a part's process has died again and again.
    """
    if processes == 1 and scheduler is None:
        before = 0
        for number in order:
            part = build(number)
            yield job.do(part, lambda done, before=before: advance(before + done))  # type: ignore[misc]
            before += part.num_patches
        return
    with _open_client(processes, scheduler) as client:
        yield from _distribute(client, job, order, build, advance)


def _distribute(
    client: Any,
    job: Job,
    order: Sequence[int],
    build: Callable[[int], Part],
    advance: Callable[[int], None],
) -> Iterator[Done]:
    """Keep every worker's threads busy, with no queue of parts behind them.

    So the largest part that is left goes to the first that is free: longest processing time first.
    """
    from distributed import wait

    waiting, running = collections.deque(order), dict[Any, Part]()
    progress: dict[int, int] = {}
    # A scheduler may serve several conversions.
    name = f"kerass2-{uuid.uuid4().hex}"
    client.subscribe_topic(f"{TOPIC}-{name}", lambda event: _note(progress, event[1]))
    try:
        while waiting or running:
            free = max(sum(client.nthreads().values()), 1) - len(running)
            for _ in range(min(free, len(waiting))):
                part = build(waiting.popleft())
                key = f"{name}-{part.number}"
                running[client.submit(_do_part, job, part, name, pure=False, key=key)] = part
            with contextlib.suppress(TimeoutError), client.as_current():
                wait(list(running), timeout=INTERVAL, return_when="FIRST_COMPLETED")
            for future in [future for future in running if future.done()]:
                part = running.pop(future)
                progress[part.number] = part.num_patches
                yield _result(future, part)
                future.release()
            advance(sum(progress.values()))
    except BaseException:
        _cancel(client, list(running), name)
        raise


def _cancel(client: Any, futures: Sequence[Any], name: str) -> None:
    """Call off what runs, and wait a little until no worker writes any more."""
    deadline = time.monotonic() + LEAVING
    # What went wrong before may be that the scheduler is lost; that is what must be told.
    with contextlib.suppress(Exception):
        client.cancel(futures)
        # To the scheduler a part that was called off is gone; its worker knows better.
        while time.monotonic() < deadline and any(client.run(_is_busy, name).values()):
            time.sleep(INTERVAL / 5)


def _is_busy(name: str, dask_worker: Any) -> bool:
    """Whether a worker is at a part of this name."""
    return any(key.startswith(name) for key in dask_worker.active_keys)


def _note(progress: dict[int, int], event: Any) -> None:
    """Take a worker's message; a part that was begun again counts from its beginning."""
    progress[int(event["part"])] = int(event["done"])


def _result(future: Any, part: Part) -> Done:
    import distributed
    from distributed.comm.core import CommClosedError

    names = ", ".join(part.names[:3])
    try:
        done: Done = future.result()
    except distributed.KilledWorker as error:
        raise DataError(
            f"part {part.number} ({names}): its process died {RETRIES + 1} times; is there memory "
            "enough?"
        ) from error
    except (distributed.CancelledError, CommClosedError) as error:
        raise DataError(f"part {part.number} ({names}): the dask scheduler is lost") from error
    return done


def _do_part(job: Job, part: Part, name: str) -> Done:
    """A part on a worker, which tells its progress and stops when it is called off."""
    import warnings

    from distributed import get_worker

    from data_pipelines import band_files, safe

    # The process that placed the patches has warned already.
    for category in (safe.ResampledPixels, band_files.AssumedOffset):
        warnings.filterwarnings("ignore", category=category)
    worker = get_worker()
    key = worker.get_current_task()

    def advance(done: int) -> None:
        # dask itself never stops a function that runs.
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled":
            raise _Cancelled(key)
        worker.log_event(f"{TOPIC}-{name}", {"part": part.number, "done": done})

    return job.do(part, advance)


@contextlib.contextmanager
def _open_client(processes: int, scheduler: str | None) -> Iterator[Any]:
    """A client of a given scheduler, or of workers that end with the context."""
    import dask
    import distributed
    from distributed.comm import addressing

    with contextlib.ExitStack() as stack:
        if scheduler is None:
            # Of one thread each, because much of the work holds Python's lock. The limit of memory
            # is off: a worker that pauses at a limit never ends, and parts are bounded themselves.
            options = {
                "distributed.scheduler.allowed-failures": RETRIES,
                "distributed.worker.daemon": True,
                "distributed.nanny.pre-spawn-environ.GDAL_CACHEMAX": str(parts.GDAL_CACHE),
            }
            stack.enter_context(dask.config.set(options))
            cluster = distributed.LocalCluster(
                n_workers=processes,
                threads_per_worker=1,
                processes=True,
                memory_limit=0,
                # Any free port: None is 8787, and a second conversion on this machine would warn.
                dashboard_address="127.0.0.1:0",
                host="127.0.0.1",
                silence_logs=logging.ERROR,
            )
            address: Any = stack.enter_context(cluster)
        else:
            address = scheduler
            # At once: a client would try an address that cannot be one until its time is out.
            try:
                addressing.get_address_host_port(scheduler, strict=True)
            except ValueError as error:
                raise DataError(
                    f"{scheduler}: not an address of a dask scheduler; expected tcp://host:port"
                ) from error
        try:
            client = distributed.Client(address, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise DataError(f"{scheduler}: no dask scheduler answers: {error}") from error
        stack.enter_context(client)
        try:
            client.wait_for_workers(1, timeout=JOINING)
        except TimeoutError as error:
            raise DataError(
                f"{scheduler or 'dask'}: the scheduler has no workers; none came in {JOINING:g} s"
            ) from error
        yield client
