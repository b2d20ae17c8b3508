"""The data position is one integer; epochs are permutations that depend on nothing but (seed, epoch)."""

import pytest

from longtake.data.order import epoch_order, positions


def test_each_epoch_is_a_permutation_of_its_own() -> None:
    orders = [epoch_order(50, 3, epoch) for epoch in range(4)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(orders)) == 4
    assert epoch_order(50, 4, 0) != epoch_order(50, 3, 0)


def test_the_stream_is_pinned() -> None:
    """A resumed run must find the order of the run it resumes, whatever the versions of Python, numpy and torch."""
    assert epoch_order(8, 0, 0) == PINNED
    assert positions(0, 8, 8, 0) == list(PINNED)


PINNED = (6, 1, 3, 0, 5, 4, 2, 7)


def test_positions_run_across_epochs() -> None:
    whole = positions(0, 23, 7, 5)
    assert whole[:7] == list(epoch_order(7, 5, 0))
    assert whole[7:14] == list(epoch_order(7, 5, 1))
    assert whole[21:] == list(epoch_order(7, 5, 3))[:2]


def test_any_cut_gives_the_same_stream() -> None:
    whole = positions(0, 60, 7, 1)
    for cut in (1, 3, 7, 8, 13):
        assert [row for start in range(0, 60, cut) for row in positions(start, min(cut, 60 - start), 7, 1)] == whole


def test_count_larger_than_the_rows() -> None:
    assert positions(0, 5, 1, 0) == [0] * 5
    assert positions(3, 0, 4, 0) == []


@pytest.mark.parametrize("arguments", [(0, 1, 0, 0), (-1, 1, 3, 0), (0, -1, 3, 0)])
def test_wrong_calls(arguments: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="need num >= 1"):
        positions(*arguments)


def test_rows_in_front_begin_the_first_epoch_alone() -> None:
    """The others keep their order; the second epoch is as ever; any cut gives the same."""
    assert positions(0, 8, 8, 0, front=(5, 2)) == [5, 2, 6, 1, 3, 0, 4, 7]
    assert positions(8, 8, 8, 0, front=(5, 2)) == positions(8, 8, 8, 0)
    whole = positions(0, 20, 8, 0, front=(5, 2))
    assert [row for start in range(0, 20, 3) for row in positions(start, min(3, 20 - start), 8, 0, front=(5, 2))] == whole
