"""Tiles to processes, so that each has about the same number of patches: pure arithmetic.

Two ways: Algorithm 1 of the classification paper (Sedona et al. 2019, Remote Sensing 11(24) 3056),
and longest processing time first (Graham 1969), which kerass2.prepare uses: it is never worse in
its bound, nearly always better in the result, and needs no plan: whoever is free takes the largest
tile that is left, which also evens out machines of different speed.

Largest share of a process, in parts of the largest share of the best possible plan, at most:

- Algorithm 1: 2 - 1/n for n processes. Let c be the counts from the largest (index 0) down. With
  k = n - 1 - j, process j gets c[j] and, of round i >= 1, c[i n + k]. From i = 2 on that is at most
  the mean of the n counts that end with it, so with T the sum of all, a = c[j] and b = c[n + k]

      share <= a + b + (T - (n - k) a - (2 k + 1) b) / n = T/n + (k/n) a + (1 - (2 k + 1)/n) b,

  and a plan's largest share is at least T/n, a and 2 b (two of n + 1 tiles of at least b meet).
  Linear in b, so largest at an end: b = 0 gives 1 + k/n <= 2 - 1/n, b = 1/2 gives at most
  3/2 - 1/(2 n). One large tile and very many tiny ones come as near to 2 - 1/n as one likes: the
  tiny ones are dealt out evenly, whatever the large one weighs.
- Longest first: 4/3 - 1/(3 n) (Graham 1969, theorem 2).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def largest_first(counts: Sequence[int]) -> list[int]:
    """Indices of tiles by falling count; equal ones in the order given."""
    return sorted(range(len(counts)), key=lambda tile: (-counts[tile], tile))


def flipped_rounds(counts: Sequence[int], num_processes: int) -> list[list[int | None]]:
    """The matrix M of Algorithm 1: a row a round, a column a process.

    Tiles are numbered from the one with the most patches (the paper's t.values, pandas' counts of
    values, which fall). The first n go to the processes in order, each further n in the opposite
    order; a last round that is not full is padded behind and flipped with its padding, so that
    those with the largest tiles get none. As printed, the loop over i = 1 ... len(t)/n would skip
    tiles n to 2 n - 1 and the branches are the wrong way around; read here as its text says: rounds
    from the second on, of more tiles than processes.

    Args:
        counts: patches of each tile.
        num_processes: n, at least 1.

    Returns:
        Rows of n indices of `counts`; None is padding.
    """
    _check(num_processes)
    order = largest_first(counts)
    matrix: list[list[int | None]] = []
    for start in range(0, len(order), num_processes):
        row: list[int | None] = [*order[start : start + num_processes]]
        row += [None] * (num_processes - len(row))
        matrix.append(row[::-1] if start else row)
    return matrix


def algorithm_1(counts: Sequence[int], num_processes: int) -> list[list[int]]:
    """Tiles of each process by Algorithm 1, the columns of flipped_rounds."""
    matrix = flipped_rounds(counts, num_processes)
    return [
        [tile for row in matrix if (tile := row[process]) is not None]
        for process in range(num_processes)
    ]


def longest_first(counts: Sequence[int], num_processes: int) -> list[list[int]]:
    """Tiles of each process: from the largest down, each to the process with the least so far."""
    _check(num_processes)
    shares: list[list[int]] = [[] for _ in range(num_processes)]
    least = [(0, process) for process in range(num_processes)]
    for tile in largest_first(counts):
        load, process = least[0]
        shares[process].append(tile)
        heapq.heapreplace(least, (load + counts[tile], process))
    return shares


def worst_ratio(counts: Sequence[int], shares: Sequence[Sequence[int]]) -> float:
    """Largest share in parts of the least that any plan's can be: the mean, or the largest tile.

    1 is perfect; 1 too where there is nothing to do.
    """
    loads = [sum(counts[tile] for tile in share) for share in shares]
    bound = max(sum(counts) / len(shares), max(counts, default=0))
    return max(loads) / bound if bound else 1.0


def _check(num_processes: int) -> None:
    if num_processes < 1:
        raise ValueError(f"{num_processes} processes: at least 1")
