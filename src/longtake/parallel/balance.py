"""Loads over ranks: longest first, each to the rank with the least (LPT), and the order that runs the longest sample first. Pure.

LPT ends within 4/3 - 1/(3m) of the best possible fullest load of m ranks (Graham 1969), and no two loads differ by more than the largest
item.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def balanced(weights: Sequence[float], num_parts: int) -> list[list[int]]:
    """Indices of `weights` in `num_parts` parts, the heaviest first to the lightest part; ties go by index, so equal input is equal output.

    >>> balanced([5, 4, 3, 3, 3], 2)
    [[0, 3], [1, 2, 4]]
    """
    if num_parts < 1:
        raise ValueError(f"num_parts must be at least 1; got {num_parts}")
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    heap = [(0.0, part) for part in range(num_parts)]
    for index in longest_first(weights):
        load, part = heap[0]
        parts[part].append(index)
        heapq.heapreplace(heap, (load + weights[index], part))
    return parts


def fullest_load(weights: Sequence[float], num_parts: int) -> float:
    """The largest sum of a part of `balanced`."""
    if num_parts == 1:
        return sum(weights)
    return max(sum(weights[index] for index in part) for part in balanced(weights, num_parts))


def longest_first(lengths: Sequence[float]) -> list[int]:
    """Indices by falling length, equal lengths in their order."""
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


def longest_to_front(order: Sequence[int], lengths: Sequence[float], count: int = 1) -> list[int]:
    """`order` (indices into `lengths`) with its `count` longest samples moved to the front, the others as they were.

    A run that begins with its longest samples runs out of memory in its first step or never.

    >>> longest_to_front([2, 0, 1, 3], [5, 9, 1, 7])
    [1, 2, 0, 3]
    """
    first = [order[place] for place in longest_first([lengths[index] for index in order])[:count]]
    moved = set(first)
    return [*first, *(index for index in order if index not in moved)]
