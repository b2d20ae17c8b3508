"""Which rank encodes what: every group once, unbroken, as even as unbroken runs allow."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from longtake.parallel.chunks import Chunk, VideoSize, assign_chunks, cut, overlap, rows_by_rank

SIZES = st.lists(st.builds(VideoSize, st.integers(1, 9), st.sampled_from([1, 4, 9])), min_size=0, max_size=4)


def test_by_hand():
    sizes = [VideoSize(5, 4), VideoSize(1, 20), VideoSize(3, 4)]
    # Chunks of 8, 8, 4 | 20 | 8, 4 tokens: three ranks can do no better than 20 each, filled from the front.
    wanted = [
        [Chunk(0, 0, 2), Chunk(0, 2, 4), Chunk(0, 4, 5)],
        [Chunk(1, 0, 1)],
        [Chunk(2, 0, 2), Chunk(2, 2, 3)],
    ]
    assert assign_chunks(sizes, 2, 3) == wanted
    assert rows_by_rank(sizes[0], 0, wanted) == [(0, 20), (20, 20), (20, 20)]
    assert rows_by_rank(sizes[2], 2, wanted) == [(0, 0), (0, 0), (0, 12)]
    assert assign_chunks(sizes[1:2], 2, 3) == [[Chunk(0, 0, 1)], [], []]  # fewer chunks than ranks
    assert assign_chunks([], 2, 3) == [[], [], []]
    assert assign_chunks(sizes, 100, 1) == [[Chunk(0, 0, 5), Chunk(1, 0, 1), Chunk(2, 0, 3)]]


def cost(sizes: list[VideoSize], chunks: list[Chunk]) -> int:
    return sum((chunk.stop - chunk.start) * sizes[chunk.video].tokens_per_group for chunk in chunks)


def best_possible(sizes: list[VideoSize], chunks: list[Chunk], num_ranks: int) -> int:
    """Every way to cut the list into at most `num_ranks` runs."""
    ways = combinations(range(1, len(chunks)), min(num_ranks, len(chunks)) - 1)
    return min(
        max(cost(sizes, chunks[start:stop]) for start, stop in zip((0, *borders), (*borders, len(chunks)), strict=True)) for borders in ways
    )


@given(SIZES, st.integers(1, 4), st.integers(1, 5))
def test_all_of_it_once_and_as_even_as_can_be(sizes: list[VideoSize], groups_per_chunk: int, num_ranks: int):
    assigned = assign_chunks(sizes, groups_per_chunk, num_ranks)
    assert len(assigned) == num_ranks
    whole = [chunk for video, size in enumerate(sizes) for chunk in cut(size, video, groups_per_chunk)]
    assert [chunk for own in assigned for chunk in own] == whole  # all, in order, none twice
    if whole:
        assert max(cost(sizes, own) for own in assigned) == best_possible(sizes, whole, num_ranks)
    for video, size in enumerate(sizes):
        ranges = rows_by_rank(size, video, assigned)
        assert [row for start, stop in ranges for row in range(start, stop)] == list(range(size.num_tokens))


@given(st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted), st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted))
def test_overlap_is_that_of_sets(one: list[int], other: list[int]):
    start, stop = overlap((one[0], one[1]), (other[0], other[1]))
    assert [one[0] + row for row in range(start, stop)] == sorted(set(range(*one)) & set(range(*other)))
