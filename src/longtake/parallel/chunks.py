"""Which rank encodes which chunk of which video, and which rows of embeddings travel where. Pure.

A chunk is a fixed number of temporal groups of one video, cut as in an unsharded encoding, so that the tower sees the very same tensors
whatever the number of ranks. Each rank gets an unbroken run of the chunks of all videos in order: it decodes few pieces, each in one go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class VideoSize:
    """What planning needs to know of a video."""

    num_groups: int
    """Temporal groups."""
    tokens_per_group: int

    @property
    def num_tokens(self) -> int:
        """V."""
        return self.num_groups * self.tokens_per_group


@dataclass(frozen=True)
class Chunk:
    """Temporal groups start..stop of a video."""

    video: int
    start: int
    stop: int


Range = tuple[int, int]
"""Rows start..stop of the embeddings of a video; empty where they are equal."""


def cut(size: VideoSize, video: int, groups_per_chunk: int) -> list[Chunk]:
    """The chunks of one video; the last may be shorter."""
    starts = range(0, size.num_groups, groups_per_chunk)
    return [Chunk(video, start, min(start + groups_per_chunk, size.num_groups)) for start in starts]


def assign_chunks(sizes: Sequence[VideoSize], groups_per_chunk: int, num_ranks: int) -> list[list[Chunk]]:
    """The chunks of each rank. The most tokens on one rank are as few as unbroken runs allow; with fewer chunks than ranks some get none.

    >>> assign_chunks([VideoSize(5, 4)], 2, 2)
    [[Chunk(video=0, start=0, stop=2)], [Chunk(video=0, start=2, stop=4), Chunk(video=0, start=4, stop=5)]]
    """
    chunks = [chunk for video, size in enumerate(sizes) for chunk in cut(size, video, groups_per_chunk)]
    costs = [(chunk.stop - chunk.start) * sizes[chunk.video].tokens_per_group for chunk in chunks]
    low, high = max(costs, default=0), sum(costs)
    while low < high:  # the smallest load with which the runs are no more than the ranks
        middle = (low + high) // 2
        low, high = (low, middle) if len(_runs(costs, middle)) <= num_ranks else (middle + 1, high)
    runs = _runs(costs, low) if chunks else []
    return [chunks[start:stop] for start, stop in runs] + [[] for _ in range(num_ranks - len(runs))]


def _runs(costs: Sequence[int], most: int) -> list[Range]:
    """Unbroken runs of at most `most` each (no cost is larger), as few as there can be."""
    runs: list[Range] = []
    start, load = 0, 0
    for index, cost in enumerate(costs):
        if load + cost > most:
            runs.append((start, index))
            start, load = index, 0
        load += cost
    return [*runs, (start, len(costs))]


def rows_by_rank(size: VideoSize, video: int, chunks: Sequence[Sequence[Chunk]]) -> list[Range]:
    """The rows of a video that each rank encodes, in the order of ranks; together they are all of its rows."""
    ranges: list[Range] = []
    reached = 0
    for own in chunks:
        groups = sum(chunk.stop - chunk.start for chunk in own if chunk.video == video)
        ranges.append((reached, reached + groups * size.tokens_per_group))
        reached = ranges[-1][1]
    return ranges


def overlap(one: Range, other: Range) -> Range:
    """The rows in both, counted from the start of `one`; empty where there is none."""
    start, stop = max(one[0], other[0]), min(one[1], other[1])
    return (start - one[0], stop - one[0]) if start < stop else (0, 0)
