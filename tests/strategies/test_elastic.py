"""How many ranks share a batch, what spares add, and which errors ranks go on after.

Real ranks that leave and join: tests/kerass2/test_elastic.py, tests/cluster.
"""

from __future__ import annotations

import contextlib
import http.server
import threading
import types

import numpy as np
import pytest
import tensorflow as tf

from strategies import elastic, horovod
from strategies.base import StrategyError


@pytest.mark.parametrize(
    ("shares", "world_size", "expected"),
    [(128, 8, 8), (128, 7, 4), (128, 3, 2), (12, 5, 4), (7, 6, 1), (6, 7, 6), (1, 1, 1)],
)
def test_ranks_that_cannot_have_an_equal_part_are_spares(shares, world_size, expected):
    assert elastic.num_active(shares, world_size) == expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [({"HOROVOD_ELASTIC": "1", "HOROVOD_RANK": "0"}, True), ({"HOROVOD_RANK": "0"}, False)],
)
def test_horovodrun_says_whether_ranks_come_and_go(environ, expected):
    assert elastic.is_asked_for(environ) is expected


class OneOfThree:
    """A rank whose sums show what it alone adds."""

    name, world_size, local_rank = "horovod", 3, 0
    scope = run = start = None

    def __init__(self, rank):
        self.rank, self.is_chief = rank, rank == 0

    def sum(self, values):
        return values

    def sum_gradients(self, tensors):
        return list(tensors)


def test_spares_do_what_others_do_and_add_nothing():
    ranks = [elastic.Narrowed(OneOfThree(number), 2) for number in range(3)]
    assert [rank.rank for rank in ranks] == [0, 1, 0]
    assert {rank.world_size for rank in ranks} == {2}
    assert [rank.is_chief for rank in ranks] == [True, False, False]
    slices = [rank.distribute(lambda number, size: (number, size)) for rank in ranks]
    assert slices == [(0, 2), (1, 2), (0, 2)]
    assert [float(rank.sum(np.array([5]))[0]) for rank in ranks] == [5, 5, 0]
    sums = [rank.sum_gradients([None, tf.constant([5.0], tf.float16)]) for rank in ranks]
    assert [each[0] for each in sums] == [None] * 3
    assert [each[1].numpy().tolist() for each in sums] == [[5], [5], [0]]
    assert {each[1].dtype for each in sums} == {tf.float16}


class HostsUpdatedInterrupt(Exception):
    """As Horovod's."""


class BegunAgain(Exception):
    """Where a process would be replaced."""


class Horovod:
    """As much of it as elastic.run asks for; horovodrun has nothing to tell."""

    broadcast_object = None
    HostsUpdatedInterrupt = HostsUpdatedInterrupt
    notification_manager = types.SimpleNamespace(
        init=lambda: None, register_listener=lambda state: None
    )

    @staticmethod
    def State(*_):
        return types.SimpleNamespace(check_host_updates=lambda: None)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (tf.errors.UnknownError(None, None, "Read error [Op:HorovodAllreduce]"), BegunAgain),
        (HostsUpdatedInterrupt(), BegunAgain),
        # A record that cannot be read, in a folder of that name: the next ranks cannot either.
        (tf.errors.UnknownError(None, None, "/runs/horovod/set: damaged"), tf.errors.UnknownError),
        (ValueError("Horovod"), ValueError),
    ],
)
def test_ranks_begin_again_after_horovods_errors_only(monkeypatch, error, expected):
    monkeypatch.setattr(horovod, "load", lambda module="": Horovod)
    monkeypatch.setattr(horovod, "HorovodStrategy", lambda place: OneOfThree(place.rank))

    def begin_again():
        raise BegunAgain

    def train(strategy, let_in):
        assert (strategy.rank, strategy.world_size) == (0, 2)
        raise error

    monkeypatch.setattr(elastic, "_begin_again", begin_again)
    with pytest.raises(expected):
        elastic.run(train, 4)


@contextlib.contextmanager
def driver(answer):
    """horovodrun's, that has this to say; gives the environment of a rank, and what was asked."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        yield (
            {
                "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1",
                "HOROVOD_GLOO_RENDEZVOUS_PORT": str(server.server_port),
                "HOROVOD_HOSTNAME": "h2",
                "HOROVOD_LOCAL_RANK": "1",
                "HOROVOD_RANK": "3",
            },
            asked,
        )
        thread.join()


def test_the_driver_says_where_a_rank_is_now():
    with driver(b"2,3,1,2,0,1") as (environ, asked):
        place = elastic._ask_for_place(environ)
    assert asked == ["/rank_and_size/h2:1"]
    assert place == {
        "HOROVOD_RANK": "2",
        "HOROVOD_SIZE": "3",
        "HOROVOD_LOCAL_RANK": "1",
        "HOROVOD_LOCAL_SIZE": "2",
        "HOROVOD_CROSS_RANK": "0",
        "HOROVOD_CROSS_SIZE": "1",
    }


def test_a_rank_that_has_no_place_any_more_ends():
    with (
        driver(b"-1,-1,-1,-1,-1,-1") as (environ, _),
        pytest.raises(StrategyError, match="goes on without rank h2:1: a rank of its host has"),
    ):
        elastic._ask_for_place(environ)


def test_a_driver_that_is_gone_is_named():
    with driver(b"2,3,1,2,0,1") as (environ, _):
        elastic._ask_for_place(environ)
    with pytest.raises(StrategyError, match=r"horovodrun on 127\.0\.0\.1 does not answer: Conn"):
        elastic._ask_for_place(environ)
