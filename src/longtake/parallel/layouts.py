"""One way to run a batch, priced: what its pieces cost, how they are packed, what that takes in seconds and bytes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf

from longtake.parallel.costs import part_of
from longtake.parallel.memory import (
    RankBytes,
    optimizer_step_bytes,
    piece_bytes,
    prompt_gradient_bytes,
    scored_bytes,
    update_bytes,
    update_fixed_bytes,
)
from longtake.parallel.packing import Loads, Packer, Unit
from longtake.parallel.seconds import Split, gather_seconds, pass_seconds, rank_share, training_passes, unit_seconds
from longtake.parallel.setting import Setting
from longtake.types import Layout, MicroBatch, PackedGroup, Piece

PricedPiece = tuple[MicroBatch, Unit]
"""A piece as a micro-batch of its own, and its cost."""


@dataclass(frozen=True)
class Allowed:
    """What the planner may choose; None: everything."""

    checkpointing: bool | None = None
    shared_prompt: bool | None = None
    splits: tuple[Split, ...] | None = None
    max_tokens: int | None = None
    """Of one rank in one micro-batch of several pieces; a longer piece is a micro-batch of its own."""


EVERYTHING = Allowed()


@dataclass(frozen=True)
class Plan:
    """The layouts of a batch, one after the other (nearly always one), and what they are predicted to take."""

    layouts: tuple[Layout, ...]
    seconds: float
    """Of the policy's and reference's passes; what comes once per update (sum of gradients, optimizer) is not included."""
    bytes: RankBytes
    """Of the fullest rank in the fullest micro-batch."""


class Candidate:
    """A layout whose packing is not chosen yet. What a piece costs under it is worked out once."""

    def __init__(self, setting: Setting, split: Split, shared: bool, checkpointing: bool, max_tokens: int | None) -> None:
        self.setting, self.split, self.shared, self.checkpointing, self.max_tokens = setting, split, shared, checkpointing, max_tokens
        self.num_data = setting.cluster.world_size // split.degree
        self.passes = training_passes(setting, checkpointing=checkpointing)
        self.pass_s = pass_seconds(setting, split, self.passes)
        self.gather_s = gather_seconds(setting, self.passes)
        self.room = setting.cluster.rank_bytes - update_fixed_bytes(setting).total
        """Bytes for activations and logits."""
        self._units: dict[tuple[PackedGroup, int | None], Unit] = {}

    def unit(self, shape: PackedGroup, split_tokens: int | None = None) -> Unit:
        """The cost of a piece. In chunks: each is a pass more, memory holds the takes of one chunk, and it shares with no other piece."""
        key = (shape, split_tokens)
        if key not in self._units:
            self._units[key] = self._unit(shape, split_tokens)
        return self._units[key]

    def _unit(self, shape: PackedGroup, split_tokens: int | None) -> Unit:
        seconds = unit_seconds(self.setting, shape, self.split, self.passes, shared=self.shared)
        held, extra = shape, 0.0
        if split_tokens is not None:
            room = split_tokens - shape.prompt_length
            held = PackedGroup(shape.prompt_length, fullest_chunk(shape.take_lengths, room))
            seconds += num_chunks(shape.take_lengths, room) * (self.pass_s + self.gather_s)
            extra = prompt_gradient_bytes(self.setting, shape, self.split)
        share = rank_share(held, self.split, shared=self.shared)
        size = piece_bytes(self.setting, held, self.split, shared=self.shared, checkpointing=self.checkpointing)
        return Unit(seconds, size + extra, share.tokens if split_tokens is None else inf, share.scored)

    def fits(self, unit: Unit) -> bool:
        return unit.bytes + scored_bytes(self.setting, unit.scored) <= self.room

    def may_share(self, unit: Unit) -> bool:
        return self.fits(unit) and unit.tokens < inf and (self.max_tokens is None or unit.tokens <= self.max_tokens)

    def pieces(self, shapes: Sequence[PackedGroup]) -> list[PricedPiece] | None:
        """The pieces of a batch; None when one of them does not fit."""
        found: list[PricedPiece] = []
        for group, shape in enumerate(shapes):
            every = tuple(range(len(shape.take_lengths)))
            for takes in [every] if self.shared else [(take,) for take in every]:
                fitting = self._fitting(Piece(group, takes), part_of(shape, takes))
                if fitting is None:
                    return None
                found.append(fitting)
        return found

    def _fitting(self, piece: Piece, shape: PackedGroup) -> PricedPiece | None:
        """Whole when it fits, else in the largest chunks that do."""
        for split_tokens in (None, *(chunk_sizes(shape) if self.shared else ())):
            unit = self.unit(shape, split_tokens)
            if self.fits(unit):
                return MicroBatch((piece,), split_tokens), unit
        return None

    def least_seconds(self, pieces: Sequence[PricedPiece]) -> float:
        """No packing is faster: the ranks' mean, or the longest piece."""
        seconds = [unit.seconds for _, unit in pieces]
        return max(sum(seconds) / self.num_data, max(seconds, default=0.0)) + self.pass_s

    def seconds(self, loads: Loads) -> float:
        """Sharded weights keep the ranks in step round by round; otherwise they meet at the end."""
        if self.setting.training.sharded:
            hidden = self.setting.rates.hidden_share
            fullest = [max(load for load in one if load is not None) + self.pass_s for one in loads]
            return sum(load + max(0.0, self.gather_s - hidden * load) for load in fullest)
        sums = [0.0] * self.num_data
        for one in loads:
            for rank, load in enumerate(one):
                sums[rank] += 0.0 if load is None else load + self.pass_s
        return max(sums)

    def packed(self, pieces: Sequence[PricedPiece]) -> Layout:
        """The layout with the best packing of its pieces."""
        rounds = Packer([unit for _, unit in pieces], self.num_data, self.may_share, self.seconds).pack()
        micro_batches = tuple(tuple(_joined([pieces[index][0] for index in part]) for part in one) for one in rounds)
        return Layout(self.split.ulysses, self.split.ring, self.shared, self.checkpointing, micro_batches)

    def predict(self, shapes: Sequence[PackedGroup], layout: Layout) -> Plan:
        units = [[self._sum(shapes, micro) for micro in one] for one in layout.rounds]
        loads = [
            [unit.seconds if micro.pieces else None for unit, micro in zip(one, micros, strict=True)]
            for one, micros in zip(units, layout.rounds, strict=True)
        ]
        every = [unit for one in units for unit in one] or [Unit()]
        fullest = max(every, key=lambda unit: unit.bytes + scored_bytes(self.setting, unit.scored))
        sizes = (update_bytes(self.setting, fullest.bytes, fullest.scored), optimizer_step_bytes(self.setting))
        return Plan((layout,), self.seconds(loads), max(sizes, key=lambda size: size.total))

    def _sum(self, shapes: Sequence[PackedGroup], micro: MicroBatch) -> Unit:
        parts = (self.unit(part_of(shapes[piece.group], piece.takes), micro.split_tokens) for piece in micro.pieces)
        return sum(parts, Unit())


def _joined(parts: Sequence[MicroBatch]) -> MicroBatch:
    split_tokens = parts[0].split_tokens if parts else None
    return MicroBatch(tuple(piece for part in parts for piece in part.pieces), split_tokens)


def chunk_sizes(shape: PackedGroup) -> list[int]:
    """Values of `MicroBatch.split_tokens` worth trying, the largest first: the prompt and its k longest takes, k from G - 1 down to 1."""
    takes = sorted(shape.take_lengths, reverse=True)
    sizes = {shape.prompt_length + sum(takes[:count]) for count in range(1, len(takes))}
    return sorted(sizes - {shape.num_tokens}, reverse=True)


def fullest_chunk(take_lengths: Sequence[int], room: int) -> tuple[int, ...]:
    """Takes of which no chunk of `room` tokens holds more: the longest that fit together, and what room they leave."""
    takes = sorted(take_lengths, reverse=True)
    sums = [total for total in accumulate(takes) if total <= room]
    held = takes[: max(1, len(sums))]
    return (*held, *((room - sum(held),) if len(held) < len(takes) and sum(held) < room else ()))


def num_chunks(take_lengths: Sequence[int], room: int) -> int:
    """How many chunks `parallel.split.split_takes` makes of takes no longer than `room`: in order, each as full as it gets."""
    chunks, used = 1, 0
    for length in take_lengths:
        if used + length > room:
            chunks, used = chunks + 1, 0
        used += length
    return chunks


def splits_of(setting: Setting) -> list[Split]:
    """Every split the ranks allow: Ulysses divides the query heads, Ulysses x ring the number of processes."""
    world, heads = setting.cluster.world_size, setting.costs.heads
    found = [(u, r) for u in range(1, world + 1) for r in range(1, world // u + 1) if world % (u * r) == 0 and heads % u == 0]
    return [Split(u, r) for u, r in found]


def candidates(setting: Setting, allowed: Allowed) -> list[Candidate]:
    """Everything the planner may try, the simplest first: of equals the first is taken."""
    splits = sorted(allowed.splits or splits_of(setting), key=lambda split: (split.degree, split.ring))
    checkpointing = (False, True) if allowed.checkpointing is None else (allowed.checkpointing,)
    sharing = (True, False) if allowed.shared_prompt is None else (allowed.shared_prompt,)
    return [
        Candidate(setting, split, shared, checkpointed, allowed.max_tokens)
        for split in splits
        for checkpointed in checkpointing
        for shared in sharing
    ]


def predict(setting: Setting, shapes: Sequence[PackedGroup], layout: Layout) -> Plan:
    """Seconds and bytes of ANY layout of these groups, fitting or not."""
    split = Split(layout.ulysses, layout.ring)
    return Candidate(setting, split, layout.shared_prompt, layout.gradient_checkpointing, None).predict(shapes, layout)
