"""Who attends to what while prompts pass around a ring. Pure arithmetic on `sharding.Shards`.

A ring rank holds, group after group, two chunks of the prompt and then some whole takes. Each take, and the two chunks as if they were
neighbours, attend causally to themselves. Keys and values of the chunks pass from rank to rank; those of takes stay. With zigzag chunks
every step costs every rank about the same: what comes from a rank before this one is seen by both own chunks but only in its early half,
what comes from a rank after it only by the late own chunk but as a whole. Takes see every prompt token of their group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from longtake.parallel.segments import Run
from longtake.parallel.sharding import GroupPart, Shards


@dataclass(frozen=True)
class Piece:
    """Queries among the tokens of this rank that see all of some keys, in the buffer that passes."""

    queries: slice
    keys: slice


@dataclass(frozen=True)
class RingPlan:
    """All of one ring rank. Nothing in it has an empty side."""

    rank: int
    runs: tuple[Run, ...]
    """Tokens of this rank that attend causally to themselves: the chunks of each prompt together, and each take."""
    prompts: tuple[slice, ...]
    """Tokens of this rank whose keys and values travel, or all of the held ones; one after the other they are the rank's buffer."""
    num_passing: tuple[int, ...]
    """[ring], length of the buffer of each rank."""
    pieces: tuple[tuple[Piece, ...], ...]
    """[ring], attention to the buffer of each rank, this one's own included."""


def ring_plan(shards: Shards, rank: int, held: Shards | None = None) -> RingPlan:
    """`held`: where the prompts lie that the takes read, when `shards` holds takes alone."""
    own, prompts = shards.parts[rank], (held or shards).parts
    starts = list(_starts(part.num_tokens for part in own))
    prompt_starts = starts if held is None else _starts(part.num_tokens for part in prompts[rank])
    runs = (run for start, part in zip(starts, own, strict=True) for run in _runs(start, part))
    return RingPlan(
        rank=rank,
        runs=tuple(run for run in runs if run.length),
        prompts=tuple(slice(start, start + part.prompt_length) for start, part in zip(prompt_starts, prompts[rank], strict=True)),
        num_passing=tuple(sum(part.prompt_length for part in parts) for parts in prompts),
        pieces=tuple(tuple(_pieces(starts, own, parts, rank, source)) for source, parts in enumerate(prompts)),
    )


def _starts(lengths: Iterable[int]) -> Iterator[int]:
    start = 0
    for length in lengths:
        yield start
        start += length


def _runs(start: int, part: GroupPart) -> Iterator[Run]:
    for length in (part.prompt_length, *part.take_lengths):
        yield Run(start, length)
        start += length


def _pieces(starts: Sequence[int], own: Sequence[GroupPart], theirs: Sequence[GroupPart], rank: int, source: int) -> Iterator[Piece]:
    key = 0
    for start, mine, other in zip(starts, own, theirs, strict=True):
        late, takes, stop = start + len(mine.chunks[0]), start + mine.prompt_length, start + mine.num_tokens
        key_late, key_stop = key + len(other.chunks[0]), key + other.prompt_length
        if source == rank:
            found = [Piece(slice(takes, stop), slice(key, key_stop))]
        elif source < rank:
            found = [Piece(slice(start, takes), slice(key, key_late)), Piece(slice(takes, stop), slice(key, key_stop))]
        else:
            found = [Piece(slice(late, stop), slice(key, key_stop))]
        yield from (piece for piece in found if piece.queries.stop > piece.queries.start and piece.keys.stop > piece.keys.start)
        key = key_stop
