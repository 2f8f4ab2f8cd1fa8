"""The model of all-reduce and step: known answers, limits, and known links found again in noise."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import project_model as model
from benchmarks.project_model import Link, Network, Step

seconds = st.floats(1e-7, 1e-2)
per_byte = st.floats(1e-12, 1e-8)
links = st.builds(Link, seconds, per_byte, st.floats(0, 1e-9), st.floats(0, 1e-3))
networks = st.builds(Network, st.integers(1, 8), links, st.none() | links, st.booleans())
buckets = st.lists(st.integers(1, 10**9), min_size=1, max_size=4).map(tuple)
steps = st.builds(Step, st.floats(1e-3, 10), buckets, st.floats(0, 1), st.floats(0, 0.1))


@pytest.mark.parametrize(
    ("ranks", "size", "link", "expected"),
    [
        (1, 1e9, Link(1.0, 1.0, 1.0, 1.0), 0.0),
        (2, 100, Link(0.5, 0.0), 1.0),
        (2, 100, Link(0.0, 0.01), 1.0),
        (4, 100, Link(0.0, 0.01), 1.5),
        (4, 100, Link(1.0, 0.01, 0.001, 0.25), 6 + 1.5 + 0.6 + 0.25),
        # Twice through a wire of 1 GB/s, whatever the many ranks.
        (1000, 1e9, Link(0.0, 1e-9), 1.998),
    ],
)
def test_ring_by_hand(ranks: int, size: float, link: Link, expected: float) -> None:
    assert model.ring_seconds(ranks, size, link) == pytest.approx(expected)


def simulated_ring(ranks: int, chunk: float, link: Link) -> float:
    """A ring played message by message: each rank sends when it has what it is to send."""
    ready = [0.0] * ranks
    for _ in range(2 * (ranks - 1)):
        sent = [ready[rank] + link.alpha + chunk * link.beta for rank in range(ranks)]
        ready = [max(ready[rank], sent[rank - 1]) for rank in range(ranks)]
    return max(ready)


@given(st.integers(1, 40), st.floats(1, 1e9), seconds, per_byte)
def test_the_formula_is_what_messages_take(
    ranks: int, size: float, alpha: float, beta: float
) -> None:
    played = simulated_ring(ranks, size / ranks, Link(alpha, beta))
    assert model.ring_seconds(ranks, size, Link(alpha, beta)) == pytest.approx(played)


@given(st.integers(2, 5000), st.floats(1, 1e12), per_byte)
def test_without_latency_the_ring_reaches_its_bound(ranks: int, size: float, beta: float) -> None:
    assert model.ring_seconds(ranks, size, Link(0.0, beta)) == pytest.approx(
        size * beta * model.ring_bound(ranks)
    )
    assert 1 <= model.ring_bound(ranks) < 2
    assert model.ring_bound(1) == 0


@settings(deadline=None)  # the first call imports scipy
@given(networks, steps, st.integers(1, 200), st.integers(1, 10**9))
def test_more_of_anything_takes_no_less(
    network: Network, step: Step, ranks: int, size: int
) -> None:
    same = dataclasses.replace(network, hierarchical=False)
    one, more = (model.all_reduce_seconds(n, size, same) for n in (ranks, ranks + 1))
    assert one <= more * (1 + 1e-12)
    assert model.all_reduce_seconds(ranks, 2 * size, network) >= model.all_reduce_seconds(
        ranks, size, network
    )
    assert model.step_seconds(ranks + 1, step, same) >= model.step_seconds(ranks, step, same) * (
        1 - 1e-9
    )
    hidden = dataclasses.replace(step, overlap=1.0)
    assert model.step_seconds(ranks, hidden, network) <= model.step_seconds(ranks, step, network)


@settings(deadline=None)  # the first call imports scipy
@given(networks, steps, st.integers(1, 300))
def test_one_rank_takes_its_own_time_and_many_are_never_better(
    network: Network, step: Step, ranks: int
) -> None:
    assert model.step_seconds(1, step, network) == step.compute
    assert model.efficiency(1, step, network) == 1
    assert 0 < model.efficiency(ranks, step, network) <= 1


def test_ring_of_nodes_by_hand() -> None:
    inside, between = Link(1.0, 0.01), Link(2.0, 0.05)
    flat = Network(4, inside, between)
    both = dataclasses.replace(flat, hierarchical=True)
    # In one node only the inner link counts.
    assert model.all_reduce_seconds(4, 100, flat) == pytest.approx(6 + 1.5)
    assert model.all_reduce_seconds(4, 100, both) == pytest.approx(6 + 1.5)
    # 8 ranks, one ring: 14 turns at the pace of the slow link.
    assert model.all_reduce_seconds(8, 100, flat) == pytest.approx(28 + 14 / 8 * 5)
    # Scatter and gather inside (6 turns), 2 nodes between (2 turns).
    assert model.all_reduce_seconds(8, 100, both) == pytest.approx(6 + 1.5 + 4 + 5)


@pytest.mark.parametrize(
    ("ranks", "expected"), [(1, 1.0), (2, 1.0), (3, 0.5), (4, 0.5), (5, 1 / 3)]
)
def test_ranks_that_share_devices_take_turns(ranks: int, expected: float) -> None:
    step = Step(1.0, (1,), devices=2)
    found = model.efficiency(ranks, step, Network(8, Link(0.0, 0.0)))
    assert found == pytest.approx(expected)


def test_overlap_hides_what_fits_behind_the_computation() -> None:
    network = Network(8, Link(0.0, 0.01))
    for overlap, expected in ((0.0, 2.0), (0.5, 1.5), (1.0, 1.0)):
        step = Step(1.0, (100,), overlap)
        assert model.step_seconds(2, step, network) == pytest.approx(expected)


# Means of the largest of n standard normal deviates: Harter's table (Biometrika 48, 1961).
@pytest.mark.parametrize(
    ("ranks", "expected"),
    [(1, 0.0), (2, 0.56419), (3, 0.84628), (4, 1.02938), (10, 1.53875), (100, 2.50759)],
)
def test_the_slowest_of_many(ranks: int, expected: float) -> None:
    assert model.expected_slowest(ranks) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ((), 10, ()),
        ((4, 4, 4), 10, (8, 4)),
        ((4, 4, 4), 12, (12,)),
        ((40, 1, 2), 10, (40, 3)),
        ((5, 5), 1, (5, 5)),
    ],
)
def test_fusion(sizes: tuple[int, ...], limit: int, expected: tuple[int, ...]) -> None:
    assert model.fuse(sizes, limit) == expected


@given(st.lists(st.integers(1, 1000), max_size=30), st.integers(1, 2000))
def test_fusion_loses_no_byte(sizes: list[int], limit: int) -> None:
    found = model.fuse(sizes, limit)
    assert sum(found) == sum(sizes)
    assert all(size <= max(limit, *sizes) for size in found)


SIZES = [2**exponent for exponent in range(10, 29, 2)]


@settings(deadline=None)  # the first call imports scipy
@given(st.floats(1e-5, 1e-3), st.floats(1e-10, 1e-9), st.integers(0, 2**32 - 1))
def test_a_known_link_is_found_in_noise(alpha: float, beta: float, seed: int) -> None:
    noise = np.random.default_rng(seed).normal(1, 0.02, (3, len(SIZES)))
    true = Link(alpha, beta)
    samples = [
        (ranks, size, model.ring_seconds(ranks, size, true) * noise[row, column])
        for row, ranks in enumerate((2, 3, 4))
        for column, size in enumerate(SIZES)
    ]
    (two,) = {ranks for ranks, _, _ in samples[: len(SIZES)]}
    alone = model.fit_link(samples[: len(SIZES)])
    assert two == 2
    assert (alone.alpha, alone.beta) == (
        pytest.approx(alpha, rel=0.1),
        pytest.approx(beta, rel=0.1),
    )
    assert (alone.start, alone.shared) == (0.0, 0.0)
    found = model.fit_link(samples)
    for ranks in (2, 3, 4):
        for size in SIZES:
            expected = model.ring_seconds(ranks, size, true)
            assert model.ring_seconds(ranks, size, found) == pytest.approx(expected, rel=0.08)


def test_all_four_terms_are_found_without_noise() -> None:
    true = Link(2e-5, 3e-10, 1e-10, 1e-4)
    samples = [(n, size, model.ring_seconds(n, size, true)) for n in (2, 3, 4) for size in SIZES]
    found = model.fit_link([*samples, (1, 1e6, 0.0)])
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(true), rel=1e-6)


def test_one_size_is_no_line() -> None:
    with pytest.raises(ValueError, match="two different sizes"):
        model.fit_link([(1, 10, 0.0), (2, 100, 1.0), (3, 100, 1.0)])


def test_a_known_step_is_found() -> None:
    network = Network(4, Link(1e-4, 1e-9))
    true = Step(0.5, (100_000_000,), overlap=0.2, jitter=0.03)
    samples = [(n, model.step_seconds(n, true, network)) for n in (1, 2, 4, 8, 16)]
    found = model.fit_step(samples, Step(1.0, true.buckets, 0.0, 0.0), network)
    for ranks in (1, 3, 32):
        assert model.step_seconds(ranks, found, network) == pytest.approx(
            model.step_seconds(ranks, true, network), rel=0.01
        )
    assert found.compute == pytest.approx(0.5, rel=0.01)
    few = model.fit_step(samples[:1], Step(1.0, true.buckets, 0.1, 0.02), network)
    assert (few.compute, few.overlap, few.jitter) == (pytest.approx(0.5), 0.1, 0.02)


def test_where_it_falls_below() -> None:
    assert model.first_below(0.9, 10, lambda n: 1 - n / 50) == 6
    assert model.first_below(0.9, 5, lambda n: 1 - n / 50) is None
