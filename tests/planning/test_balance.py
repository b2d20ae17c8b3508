"""Loads over ranks: the bound of LPT against the true optimum, and orders."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.parallel.balance import balanced, fullest_load, longest_first, longest_to_front

LENGTHS = st.lists(st.integers(0, 50), min_size=1, max_size=7)


def optimum(weights: list[int], num_parts: int) -> int:
    """The smallest possible fullest load, by trying all assignments."""
    ways = product(range(num_parts), repeat=len(weights))
    return min(max(sum(w for w, part in zip(weights, way, strict=True) if part == own) for own in range(num_parts)) for way in ways)


@given(LENGTHS, st.integers(1, 3))
def test_imbalance_is_bounded(weights: list[int], num_parts: int):
    parts = balanced(weights, num_parts)
    assert sorted(index for part in parts for index in part) == list(range(len(weights)))
    loads = [sum(weights[index] for index in part) for part in parts]
    assert max(loads) - min(loads) <= max(weights)
    assert max(loads) <= (4 / 3 - 1 / (3 * num_parts)) * optimum(weights, num_parts) + 1e-9
    assert fullest_load(weights, num_parts) == max(loads)


def test_long_and_short_takes_lie_evenly_on_eight_ranks():
    # one take of 2,048 tokens, and 100, 200, ..., 1,500: seven ranks get 1,700 each (1,500 + 200, ...), one of them the last 100 besides
    lengths = [2048, *range(100, 1600, 100)]
    loads = [sum(lengths[index] for index in part) for part in balanced(lengths, 8)]
    assert sorted(loads) == [1700] * 6 + [1800, 2048]  # the longest alone is the floor
    in_order = [sum(lengths[start::8]) for start in range(8)]
    assert max(in_order) - min(in_order) > max(loads) - min(loads)


def test_hand_computed():
    assert balanced([5, 4, 3, 3, 3], 2) == [[0, 3], [1, 2, 4]]
    assert balanced([], 2) == [[], []]
    with pytest.raises(ValueError, match="at least 1"):
        balanced([1], 0)


def test_orders():
    assert longest_first([3, 9, 9, 1]) == [1, 2, 0, 3]
    assert longest_to_front([2, 0, 1, 3], [5, 9, 1, 7]) == [1, 2, 0, 3]
    assert longest_to_front([2, 0, 1, 3], [5, 9, 1, 7], count=2) == [1, 3, 2, 0]
    assert longest_to_front([], []) == []
