"""Horovod's elastic mode: ranks come and go, and training goes on with those that are there.

Horovod's own states hold variables in memory, and do not take Keras 3's optimizers (canary test).
Here ranks hold nothing: whenever some have come or gone, all begin again, by exec, with what was
saved last. Begun again in place, as Horovod does it, one rank of three kept its connections open
now and then, and the others waited for it until a timeout.

Source: horovod/common/elastic.py; horovod/runner/elastic/rendezvous.py.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from strategies import horovod, settings
from strategies.base import Strategy, StrategyError, average_moving_statistics
from strategies.cluster import detect

# Tells a process that it is a rank which has begun again.
AGAIN = "KERASS2_AGAIN"
# So long horovodrun waits until there are as many ranks as it needs [s].
PATIENCE = 600.0
# What its driver answers, in order.
PLACE = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE")


def is_asked_for(environ: Mapping[str, str]) -> bool:
    """True for a rank that horovodrun has started with --min-np."""
    return environ.get("HOROVOD_ELASTIC") == "1"


def num_active(shares: int, world_size: int) -> int:
    """The most ranks that `shares` can be dealt to equally; the others are spares."""
    return next(n for n in range(world_size, 0, -1) if shares % n == 0)


class Narrowed:
    """A strategy whose first ranks share the work, while each other does what one of them does.

    Such a spare adds zeros to every sum: it holds the weights that all hold, and waits to be
    needed. See strategies.base.Strategy for the members.
    """

    def __init__(self, strategy: Strategy, active: int) -> None:
        """`active`: ranks that share the work; at most as many as there are."""
        import tensorflow as tf

        self._strategy, self._tf = strategy, tf
        # A variable: a spare's gradients would fold to constant zeros, and Horovod's operation on
        # them, which TensorFlow takes for a pure function, would run once for all steps.
        self._weight = tf.Variable(float(strategy.rank < active), trainable=False)
        self.name, self.local_rank = strategy.name, strategy.local_rank
        self.rank, self.world_size = strategy.rank % active, active
        self.is_chief = strategy.is_chief
        self.scope, self.run, self.start = strategy.scope, strategy.run, strategy.start

    def distribute(self, make: Callable[[int, int], Any]) -> Any:
        """An active rank's own slices; a spare's are those of another."""
        return make(self.rank, self.world_size)

    def sum_gradients(self, tensors: Sequence[Any]) -> list[Any]:
        """Over active ranks. All weigh, by 1 or 0: Horovod goes by the names of a graph."""
        cast = self._tf.cast
        weighed = [None if t is None else t * cast(self._weight, t.dtype) for t in tensors]
        return self._strategy.sum_gradients(weighed)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Over active ranks."""
        return self._strategy.sum(float(self._weight) * np.asarray(values, np.float64))

    def average_statistics(self, model: Any) -> None:
        """Over active ranks."""
        average_moving_statistics(self, model)


def run(train: Callable[[Strategy, Callable[[], None]], None], shares: int) -> None:
    """Call train(strategy, let_in); where ranks come or go before it returns, begin again.

    Then this process runs its own command line once more, and this call does not return.

    Args:
        train: begins with what it has saved last. Every rank calls `let_in` after each saving: it
            ends the call, on all ranks, where others wait to join.
        shares: of the work; ranks to which they cannot be dealt equally are spares.

    Raises:
        StrategyError: this rank is one of those that have gone.
    """
    import tensorflow as tf

    elastic = horovod.load("horovod.common.elastic")
    exceptions = horovod.load("horovod.common.exceptions")
    state = elastic.State(horovod.load().broadcast_object, lambda: 0)
    # Before horovodrun's answer: what it tells after that must not be lost.
    elastic.notification_manager.init()
    elastic.notification_manager.register_listener(state)
    if AGAIN in os.environ:
        os.environ |= _ask_for_place(os.environ)
    try:
        strategy: Strategy = horovod.HorovodStrategy(detect(os.environ))
        active = num_active(shares, strategy.world_size)
        if active < strategy.world_size:
            _tell_of_spares(strategy, active)
            strategy = Narrowed(strategy, active)
        train(strategy, state.check_host_updates)
    except exceptions.HostsUpdatedInterrupt:
        _begin_again()
    except tf.errors.OpError as error:
        if "Horovod" not in str(error):
            raise
        _begin_again()


def _ask_for_place(environ: Mapping[str, str]) -> dict[str, str]:
    """This rank's new place, by horovodrun's driver, once all others have asked or are gone.

    Raises:
        StrategyError: it has none, or the driver does not answer.
    """
    address = environ["HOROVOD_GLOO_RENDEZVOUS_ADDR"]
    key = f"{environ['HOROVOD_HOSTNAME']}:{environ['HOROVOD_LOCAL_RANK']}"
    seconds = PATIENCE + settings.read(environ).library_seconds
    driver = http.client.HTTPConnection(
        address, int(environ["HOROVOD_GLOO_RENDEZVOUS_PORT"]), timeout=seconds
    )
    try:
        with contextlib.closing(driver):
            driver.request("GET", f"/rank_and_size/{key}")
            place = driver.getresponse().read().decode().split(",")
    except (OSError, http.client.HTTPException) as error:
        raise StrategyError(f"horovodrun on {address} does not answer: {error!r}") from None
    if len(place) != len(PLACE) or int(place[0]) < 0:
        raise StrategyError(f"horovodrun goes on without rank {key}: a rank of its host has failed")
    return {f"HOROVOD_{name}": value for name, value in zip(PLACE, place, strict=True)}


def _begin_again() -> NoReturn:
    """Run this process' own command line in its place."""
    sys.stdout.flush()
    sys.stderr.flush()
    # What Gloo has opened would stay open, and ranks that wait for this one would not notice.
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the list itself
            if int(name) > 2:
                os.set_inheritable(int(name), False)
    command = [sys.executable, *sys.orig_argv[1:]]
    os.execve(command[0], command, {**os.environ, AGAIN: "1"})


def _tell_of_spares(strategy: Strategy, active: int) -> None:
    if strategy.is_chief:
        spares = strategy.world_size - active
        print(
            f"{spares} of {strategy.world_size} ranks {'wait' if spares > 1 else 'waits'} as a "
            "spare: the global batch has no equal parts for so many",
            file=sys.stderr,
            flush=True,
        )
