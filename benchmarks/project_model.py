"""What an all-reduce and a training step cost with any number of ranks: formulas, and their fit.

Pure functions of numbers. A message of S bytes costs alpha + beta S (Hockney 1994); the ring's cost
is Patarasuk and Yuan's (2009, section 3; Thakur, Rabenseifner and Gropp 2005, section 4.5, without
the time of the additions); the expected slowest of n ranks is the largest of n normal deviates
(David and Nagaraja, Order Statistics, 2003, section 2.1).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

# Horovod's and NCCL's default size of a fused buffer [byte]: HOROVOD_FUSION_THRESHOLD.
FUSION = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Link:
    """What moving bytes costs between neighbours of a ring."""

    alpha: float
    """Of a message [s]."""
    beta: float
    """Of a byte that a rank sends while it receives as many [s]."""
    shared: float = 0.0
    """Of a byte that any rank sends, where all share one memory [s]: grows with ranks."""
    start: float = 0.0
    """Of a call, whatever its ranks and size: agreement, a cycle's wait [s]."""


@dataclasses.dataclass(frozen=True)
class Network:
    """Ranks in nodes, and the links inside of one and between them."""

    per_node: int
    """Ranks of a node."""
    inside: Link
    """Between ranks of one node."""
    between: Link | None = None
    """Between nodes; None: there is one node."""
    hierarchical: bool = False
    """First inside of nodes, then between them, instead of one ring through all ranks."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A training step on a rank of its own."""

    compute: float
    """Of one rank alone [s]."""
    buckets: tuple[int, ...]
    """Bytes of each all-reduce of gradients."""
    overlap: float = 0.0
    """Part of `compute` that communication can hide behind [1]."""
    jitter: float = 0.0
    """Standard deviation of a rank's time for a step [s]."""
    devices: int | None = None
    """Devices there are: more ranks than that compute in turns. None: one for each rank."""


def ring_bound(ranks: int) -> float:
    """Bytes that each rank must send, over bytes summed: 2 (n - 1) / n."""
    return 2 * (ranks - 1) / ranks


def ring_seconds(ranks: int, size: float, link: Link) -> float:
    """A ring all-reduce [s]: 2 (n - 1) messages of S / n bytes each, from each rank.

    start + 2 (n - 1) alpha + 2 (n - 1) / n S beta + 2 (n - 1) S shared; the last term is what all
    n ranks send together. One rank sends nothing.
    """
    if ranks <= 1:
        return 0.0
    return float(_ring_row(ranks, size) @ (link.start, link.alpha, link.beta, link.shared))


def _ring_row(ranks: int, size: float) -> NDArray[np.float64]:
    """What start, alpha, beta and shared are multiplied by."""
    turns = 2 * (ranks - 1)
    return np.array([1.0, turns, turns / ranks * size, turns * size])


def all_reduce_seconds(ranks: int, size: float, network: Network) -> float:
    """An all-reduce of `size` bytes over ranks that fill one node after the other [s].

    One ring runs at the pace of its slowest link. The hierarchical one (Horovod's
    HOROVOD_HIERARCHICAL_ALLREDUCE) scatters inside each node, sums each rank's S / g between the m
    nodes, all g at once through their node's link, and gathers: ring(g, S) + ring(m, S).
    """
    nodes = math.ceil(ranks / network.per_node)
    if nodes == 1 or network.between is None:
        return ring_seconds(ranks, size, network.inside)
    if network.hierarchical:
        inside = ring_seconds(network.per_node, size, network.inside)
        return inside + ring_seconds(nodes, size, network.between)
    both = [dataclasses.astuple(link) for link in (network.inside, network.between)]
    return ring_seconds(ranks, size, Link(*map(max, *both)))


def fuse(sizes: Sequence[int], limit: int = FUSION) -> tuple[int, ...]:
    """Bytes of each call where tensors are joined, in their order, up to `limit` bytes."""
    buckets: list[int] = []
    for size in sizes:
        if buckets and buckets[-1] + size <= limit:
            buckets[-1] += size
        else:
            buckets.append(size)
    return tuple(buckets)


@functools.cache
def expected_slowest(ranks: int) -> float:
    """Mean of the largest of n standard normal deviates [1]: 0 for one, 0.564 for two.

    The integral over x > 0 of 1 - F(x)^n - F(-x)^n, F being the normal distribution.
    """
    from scipy import integrate, special

    if ranks <= 1:
        return 0.0
    x = np.linspace(0, 9, 1801)
    values = 1 - special.ndtr(x) ** ranks - special.ndtr(-x) ** ranks
    return float(integrate.trapezoid(values, x))


def step_seconds(ranks: int, step: Step, network: Network) -> float:
    """A step of n ranks [s], each with the batch that one rank has alone.

    compute * turns + max(0, communication - overlap compute) + jitter * E[largest of n], where
    `turns` is how many ranks the fullest device has.
    """
    turns = 1 if step.devices is None else math.ceil(ranks / step.devices)
    communication = sum(all_reduce_seconds(ranks, size, network) for size in step.buckets)
    exposed = max(0.0, communication - step.overlap * step.compute)
    waiting = step.jitter * expected_slowest(ranks) if step.jitter else 0.0
    return step.compute * turns + exposed + waiting


def efficiency(ranks: int, step: Step, network: Network) -> float:
    """Throughput of n ranks over n times that of one, with the same batch each [1]."""
    return step_seconds(1, step, network) / step_seconds(ranks, step, network)


def first_below(limit: float, highest: int, measure: Callable[[int], float]) -> int | None:
    """The fewest ranks, up to `highest`, at which `measure` is below `limit`; None: nowhere."""
    return next((ranks for ranks in range(1, highest + 1) if measure(ranks) < limit), None)


def fit_link(samples: Sequence[tuple[int, float, float]]) -> Link:
    """The link from measured all-reduces: least squares of relative errors, none below 0.

    Terms that the samples cannot tell apart are left out: with one number of ranks `start` from
    `alpha` and `shared` from `beta`.

    Args:
        samples: (ranks, bytes, seconds), of 2 ranks and more.

    Raises:
        ValueError: fewer than two different sizes.
    """
    from scipy import optimize

    used = [sample for sample in samples if sample[0] > 1]
    if len({size for _, size, _ in used}) < 2:
        raise ValueError("two different sizes of two ranks or more are needed to fit a link")
    several = len({ranks for ranks, _, _ in used}) > 1
    terms = [0, 1, 2, 3] if several else [1, 2]
    rows = np.array([_ring_row(ranks, size)[terms] / seconds for ranks, size, seconds in used])
    scale = rows.max(axis=0)
    found, _ = optimize.nnls(rows / scale, np.ones(len(rows)))
    values = dict(zip(terms, found / scale, strict=True))
    start, alpha, beta, shared = (float(values.get(term, 0.0)) for term in range(4))
    return Link(alpha, beta, shared, start)


def fit_step(
    samples: Sequence[tuple[int, float]], guess: Step, network: Network, *, relative: bool = True
) -> Step:
    """Compute, overlap and jitter from measured steps, by least squares within their bounds.

    Overlap and jitter are fitted where there are three numbers of ranks or more; with fewer they
    stay as in `guess`.

    Args:
        samples: (ranks, seconds of a step).
        guess: where to begin; buckets and devices stay.
        network: what the gradients go through.
        relative: errors relative to what was measured, not in seconds.
    """
    from scipy import optimize

    scale = float(np.median([seconds for _, seconds in samples]))
    free = len({ranks for ranks, _ in samples}) >= 3

    def build(values: NDArray[np.float64]) -> Step:
        compute = float(values[0]) * scale
        if not free:
            return dataclasses.replace(guess, compute=compute)
        overlap, jitter = float(values[1]), float(values[2]) * scale
        return dataclasses.replace(guess, compute=compute, overlap=overlap, jitter=jitter)

    def errors(values: NDArray[np.float64]) -> list[float]:
        step = build(values)
        differences = [
            (step_seconds(n, step, network) - seconds, seconds) for n, seconds in samples
        ]
        return [found / (seconds if relative else scale) for found, seconds in differences]

    begin = [guess.compute / scale, guess.overlap, guess.jitter / scale]
    low, high = [1e-9, 0.0, 0.0], [np.inf, 1.0, np.inf]
    count = 3 if free else 1
    start = np.clip(begin[:count], np.array(low[:count]) + 1e-6, [1e6, 1 - 1e-6, 1e6][:count])
    found = optimize.least_squares(errors, start, bounds=(low[:count], high[:count]))
    return build(found.x)
