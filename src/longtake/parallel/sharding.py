"""Which token of a packed sequence lies on which rank, and back. Pad, never drop. Pure index arithmetic: no process group, no model.

* Ring: a prompt is cut into 2 x ring chunks of (almost) equal length; ring rank i holds chunks i and 2 * ring - 1 - i ("zigzag": every
  rank has an early and a late chunk, so that causal attention costs all ranks the same). A take lies whole on one ring rank, the longest
  first to the rank with the fewest tokens.
* Ulysses: what a ring rank holds is cut evenly over its Ulysses ranks; only here padding is needed, and a rank without any token holds
  one slot of padding, so that it runs the same operations as the others.

Shapes: T tokens of the packed sequence, L slots of one rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from longtake.types import PackedGroup, VideoTokens

PADDING = -1
"""In place of a token's index: a slot that holds no token."""


@dataclass(frozen=True)
class GroupPart:
    """What one ring rank holds of one group, in this order: chunk i of the prompt, chunk 2 * ring - 1 - i, then its takes."""

    chunks: tuple[range, range]
    """Tokens of the prompt, counted from the prompt's start; either may be empty."""
    takes: tuple[int, ...]
    """Indices of the takes that lie here, ascending."""
    take_lengths: tuple[int, ...]

    @property
    def prompt_length(self) -> int:
        return len(self.chunks[0]) + len(self.chunks[1])

    @property
    def num_tokens(self) -> int:
        return self.prompt_length + sum(self.take_lengths)


@dataclass(frozen=True)
class Shards:
    """A packed sequence over ring x ulysses ranks. Build it with `shard`; ranks are numbered along the sequence axis, ring-major."""

    groups: tuple[PackedGroup, ...]
    ring: int
    ulysses: int
    parts: tuple[tuple[GroupPart, ...], ...]
    """[ring rank][group]."""
    takes_alone: bool = False
    """The prompts are not in the sequence: they went forward before and are held."""

    @property
    def num_ranks(self) -> int:
        return self.ring * self.ulysses

    @property
    def num_tokens(self) -> int:
        """T."""
        return sum(self._num_prompt_tokens(group) + group.num_take_tokens for group in self.groups)

    def _num_prompt_tokens(self, group: PackedGroup) -> int:
        return 0 if self.takes_alone else group.prompt_length

    def ring_length(self, ring_rank: int) -> int:
        """Tokens of a ring rank, padding not counted."""
        return sum(part.num_tokens for part in self.parts[ring_rank])

    def num_slots(self, ring_rank: int) -> int:
        """L of each Ulysses rank of a ring rank, padding included; at least 1."""
        return max(1, -(-self.ring_length(ring_rank) // self.ulysses))

    def ring_tokens(self, ring_rank: int) -> Tensor:
        """int64 [tokens of the ring rank], the index in the packed sequence of each, in the order in which they are held."""
        return torch.cat([torch.arange(piece.start, piece.stop) for piece in self._pieces(ring_rank)])

    def _pieces(self, ring_rank: int) -> Iterator[range]:
        start = 0
        for group, part in zip(self.groups, self.parts[ring_rank], strict=True):
            yield from (range(start + chunk.start, start + chunk.stop) for chunk in part.chunks)
            start += self._num_prompt_tokens(group)
            for take, length in enumerate(group.take_lengths):
                if take in part.takes:
                    yield range(start, start + length)
                start += length

    @cached_property
    def tokens(self) -> tuple[Tensor, ...]:
        """Of each rank: int64 [L], the index of the token in each slot, or PADDING."""
        result: list[Tensor] = []
        for ring_rank in range(self.ring):
            held = self.ring_tokens(ring_rank)
            slots = torch.full((self.ulysses * self.num_slots(ring_rank),), PADDING)
            slots[: len(held)] = held
            result.extend(slots.view(self.ulysses, -1))
        return tuple(result)

    @cached_property
    def locations(self) -> tuple[Tensor, Tensor]:
        """The inverse: of each token its rank, int64 [T], and its slot there, int64 [T]."""
        ranks, slots = torch.full((2, self.num_tokens), PADDING)
        for rank, tokens in enumerate(self.tokens):
            held = (tokens != PADDING).nonzero().squeeze(1)
            ranks[tokens[held]], slots[tokens[held]] = rank, held
        return ranks, slots


def shard(groups: Sequence[PackedGroup], ring: int, ulysses: int, *, takes_alone: bool = False) -> Shards:
    """`takes_alone`: the packed sequence holds the takes of `groups` without their prompts.

    Raises ValueError for no group at all, or degrees below 1.
    """
    if not groups or ring < 1 or ulysses < 1:
        raise ValueError(f"need at least one group and degrees of at least 1; got {len(groups)} groups, ring {ring} x Ulysses {ulysses}")
    lengths = [0 if takes_alone else group.prompt_length for group in groups]
    chunks = [[_zigzag(length, ring, ring_rank) for length in lengths] for ring_rank in range(ring)]
    load = [sum(len(early) + len(late) for early, late in own) for own in chunks]
    ring_of_take = _balanced_takes(groups, load)
    parts = tuple(
        tuple(_part(group, own, owners, ring_rank) for group, own, owners in zip(groups, chunks[ring_rank], ring_of_take, strict=True))
        for ring_rank in range(ring)
    )
    return Shards(tuple(groups), ring, ulysses, parts, takes_alone)


def _part(group: PackedGroup, chunks: tuple[range, range], ring_of_take: Sequence[int], ring_rank: int) -> GroupPart:
    takes = tuple(take for take, owner in enumerate(ring_of_take) if owner == ring_rank)
    return GroupPart(chunks, takes, tuple(group.take_lengths[take] for take in takes))


def _zigzag(prompt_length: int, ring: int, ring_rank: int) -> tuple[range, range]:
    return prompt_chunk(prompt_length, ring, ring_rank), prompt_chunk(prompt_length, ring, 2 * ring - 1 - ring_rank)


def prompt_chunk(prompt_length: int, ring: int, chunk: int) -> range:
    """Tokens of one of the 2 x ring chunks of a prompt; lengths differ by one at most.

    >>> [list(prompt_chunk(7, 2, chunk)) for chunk in range(4)]
    [[0], [1, 2], [3, 4], [5, 6]]
    """
    return range(chunk * prompt_length // (2 * ring), (chunk + 1) * prompt_length // (2 * ring))


def _balanced_takes(groups: Sequence[PackedGroup], load: Sequence[int]) -> list[list[int]]:
    """[group][take] -> ring rank; `load`: tokens that each rank holds already."""
    held = list(load)
    owner = [[0] * len(group.take_lengths) for group in groups]
    takes = [(length, index, take) for index, group in enumerate(groups) for take, length in enumerate(group.take_lengths)]
    for length, index, take in sorted(takes, key=lambda entry: -entry[0]):
        lightest = held.index(min(held))
        owner[index][take] = lightest
        held[lightest] += length
    return owner


def runs(tokens: Tensor) -> list[tuple[int, range]]:
    """(first slot, tokens) of every longest run of consecutive tokens in the slots int64 [L] of a rank; padding is left out.

    >>> runs(torch.tensor([4, 5, 9, PADDING]))
    [(0, range(4, 6)), (2, range(9, 10))]
    """
    held = (tokens != PADDING).nonzero().squeeze(1)
    values = tokens[held]
    goes_on = (held.diff() == 1) & (values.diff() == 1)
    first = torch.cat([held.new_zeros(1), (~goes_on).nonzero().squeeze(1) + 1])[: len(held)].tolist()
    ends = [*first[1:], len(held)]
    return [(int(held[a]), range(int(values[a]), int(values[a]) + b - a)) for a, b in zip(first, ends[: len(first)], strict=True)]


def video_pieces(tokens: Tensor, start: int, num_video_tokens: int) -> list[tuple[int, range]]:
    """(first slot, video tokens counted from the video's first) of the parts of a video that lie in the slots int64 [L] of a rank.

    The video's tokens are `start` to `start + num_video_tokens` of the packed sequence.
    """
    pieces = []
    for slot, run in runs(tokens):
        first, stop = max(run.start, start), min(run.stop, start + num_video_tokens)
        if first < stop:
            pieces.append((slot + first - run.start, range(first - start, stop - start)))
    return pieces


def local_videos(videos: Sequence[tuple[int, int, VideoTokens]], tokens: Tensor) -> list[tuple[int, int, VideoTokens]]:
    """The parts of (row 0, start, video) entries of a packed sequence that lie in the slots int64 [L] of a rank, as `Model.embed` wants
    them. A part keeps grid and digest of its video; its embeddings are a view, so gradients reach a tower that trains."""
    return [
        (0, slot, _cut(video, piece)) for _, start, video in videos for slot, piece in video_pieces(tokens, start, len(video.embeddings))
    ]


def _cut(video: VideoTokens, piece: range) -> VideoTokens:
    if len(piece) == len(video.embeddings):
        return video
    deepstack = tuple(features[piece.start : piece.stop] for features in video.deepstack)
    return replace(video, embeddings=video.embeddings[piece.start : piece.stop], deepstack=deepstack)
