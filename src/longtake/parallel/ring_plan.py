"""Who attends to what while prompts pass around a ring. Pure arithmetic on `sharding.Shards`.

A ring rank holds, group after group, two chunks of the prompt and then some whole takes. Keys and values of takes stay; those of the
prompt chunks pass from rank to rank. With zigzag chunks every step costs every rank about the same: what comes from a rank before this
one is seen by both own chunks but only in its early half, what comes from a rank after it only by the late own chunk but as a whole.
Takes see every prompt token of their group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from longtake.parallel.sharding import GroupPart, Shards


@dataclass(frozen=True)
class Piece:
    """One call of the attention kernel: queries among the tokens of this rank, keys among the tokens of `Piece`'s source."""

    queries: slice
    keys: slice
    causal: bool
    """Query i sees keys up to i; then both have the same length. Else it sees all of them."""


@dataclass(frozen=True)
class RingPlan:
    """All of one ring rank. Pieces never have an empty side."""

    rank: int
    prompts: tuple[slice, ...]
    """Tokens of this rank whose keys and values travel; one after the other they are the rank's buffer."""
    num_passing: tuple[int, ...]
    """[ring], length of the buffer of each rank."""
    own_takes: tuple[Piece, ...]
    """Each take in itself; keys among the tokens of this rank."""
    passing: tuple[tuple[Piece, ...], ...]
    """[ring], the pieces against the buffer of each rank."""


def ring_plan(shards: Shards, rank: int) -> RingPlan:
    own = shards.parts[rank]
    starts = list(_starts(part.num_tokens for part in own))
    return RingPlan(
        rank=rank,
        prompts=tuple(slice(start, start + part.prompt_length) for start, part in zip(starts, own, strict=True)),
        num_passing=tuple(sum(part.prompt_length for part in parts) for parts in shards.parts),
        own_takes=tuple(piece for start, part in zip(starts, own, strict=True) for piece in _take_pieces(start, part)),
        passing=tuple(tuple(_passing_pieces(starts, own, parts, rank, source)) for source, parts in enumerate(shards.parts)),
    )


def _starts(lengths: Iterator[int]) -> Iterator[int]:
    start = 0
    for length in lengths:
        yield start
        start += length


def _take_pieces(start: int, part: GroupPart) -> Iterator[Piece]:
    start += part.prompt_length
    for length in part.take_lengths:
        if length:
            yield Piece(slice(start, start + length), slice(start, start + length), causal=True)
        start += length


def _passing_pieces(
    starts: Sequence[int], own: Sequence[GroupPart], theirs: Sequence[GroupPart], rank: int, source: int
) -> Iterator[Piece]:
    key = 0
    for start, mine, other in zip(starts, own, theirs, strict=True):
        middle, takes, stop = start + len(mine.chunks[0]), start + mine.prompt_length, start + mine.num_tokens
        early, end = key + len(other.chunks[0]), key + other.prompt_length
        whole = slice(key, end)
        if source == rank:
            pieces = [Piece(slice(start, takes), whole, causal=True), Piece(slice(takes, stop), whole, causal=False)]
        elif source < rank:
            pieces = [Piece(slice(start, takes), slice(key, early), causal=False), Piece(slice(takes, stop), whole, causal=False)]
        else:
            pieces = [Piece(slice(middle, stop), whole, causal=False)]
        yield from (piece for piece in pieces if piece.queries.stop > piece.queries.start and piece.keys.stop > piece.keys.start)
        key = end
