"""Which layout runs a batch fastest within the memory there is. Pure: lengths, sizes and rates in, a `Plan` out.

Tried are all splits of the ranks (Ulysses divides the query heads, the product divides the number of processes), the prompt shared or
repeated, layers checkpointed or not, and for each of these the packing into micro-batches (packing.py). Degree 1 is one of them, so a
sequence is only divided where that is faster or the only way. A batch of long and short prompts may be cut in two or more, each part with a
layout of its own: one hour-long video over all ranks, then many short ones a rank each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from longtake.errors import MemoryLimitError
from longtake.parallel.balance import longest_first
from longtake.parallel.layouts import EVERYTHING, Allowed, Candidate, Plan, candidates, chunk_sizes
from longtake.parallel.memory import RankBytes, optimizer_step_bytes, update_bytes, update_fixed_bytes
from longtake.parallel.setting import GIB, Setting
from longtake.types import Layout, PackedGroup

MAX_PARTS = 4
"""A batch is cut into at most so many parts by length, each with a layout of its own."""
SAME = 1e-9
"""Relative difference of seconds that is none."""


def best_layout(setting: Setting, shapes: Sequence[PackedGroup], allowed: Allowed = EVERYTHING) -> Plan:
    """The fastest single layout of a batch. Raises MemoryLimitError when none fits."""
    best = _best(candidates(setting, allowed), shapes)
    if best is None:
        raise _too_large(setting, shapes, allowed)
    return best


def _best(tried: Sequence[Candidate], shapes: Sequence[PackedGroup]) -> Plan | None:
    """The candidates that promise the most are packed first; those that promise less than what was found are not packed at all."""
    possible = [(candidate, pieces) for candidate in tried if (pieces := candidate.pieces(shapes)) is not None]
    best: Plan | None = None
    for candidate, pieces in sorted(possible, key=lambda entry: entry[0].least_seconds(entry[1])):
        if best is not None and candidate.least_seconds(pieces) >= best.seconds * (1 - SAME):
            break
        plan = candidate.predict(shapes, candidate.packed(pieces))
        if plan.bytes.total <= candidate.setting.cluster.rank_bytes and (best is None or plan.seconds < best.seconds * (1 - SAME)):
            best = plan
    return best


def plan_batch(setting: Setting, shapes: Sequence[PackedGroup], allowed: Allowed = EVERYTHING) -> Plan:
    """The fastest way through a batch: one layout, or one for each of its parts by length. Raises MemoryLimitError when none fits.

    Groups without takes cost nothing and appear in no layout.
    """
    used = [index for index in longest_first([shape.num_tokens for shape in shapes]) if shapes[index].take_lengths]
    ordered = [shapes[index] for index in used]
    tried = candidates(setting, allowed)
    cuts = _cuts(ordered) if any(candidate.split != tried[0].split for candidate in tried) else sorted({0, len(ordered)})
    best: list[Plan] = [Plan((), 0.0, update_fixed_bytes(setting))]
    for stop in cuts[1:]:
        ways = [(best[place], start, _best(tried, ordered[start:stop])) for place, start in enumerate(cuts) if start < stop]
        whole = [_extended(before, start, part) for before, start, part in ways if part is not None]
        if not whole:
            raise _too_large(setting, ordered[:stop], allowed)
        best.append(min(whole, key=lambda plan: plan.seconds))
    return replace(best[-1], layouts=tuple(_renumbered(layout, used) for layout in best[-1].layouts))


def _cuts(ordered: Sequence[PackedGroup]) -> list[int]:
    """Where a batch sorted by length may be cut: at its steepest falls."""
    falls = [ordered[index].num_tokens / ordered[index + 1].num_tokens for index in range(len(ordered) - 1)]
    steepest = [index + 1 for index in longest_first(falls)[: MAX_PARTS - 1] if falls[index] > 1]
    return [0, *sorted(steepest), len(ordered)] if ordered else [0]


def _extended(before: Plan, start: int, part: Plan) -> Plan:
    """A plan with one more part behind it, whose groups begin at `start`."""
    shifted = tuple(_renumbered(layout, range(start, start + 1 + _largest_group(layout))) for layout in part.layouts)
    seconds = before.seconds + part.seconds
    fuller = max(before.bytes, part.bytes, key=lambda size: size.total)
    return Plan((*before.layouts, *shifted), seconds, fuller)


def _largest_group(layout: Layout) -> int:
    return max((piece.group for one in layout.rounds for micro in one for piece in micro.pieces), default=-1)


def _renumbered(layout: Layout, numbers: Sequence[int]) -> Layout:
    """The same layout with group i called numbers[i]."""
    rounds = tuple(
        tuple(replace(micro, pieces=tuple(replace(piece, group=numbers[piece.group]) for piece in micro.pieces)) for micro in one)
        for one in layout.rounds
    )
    return replace(layout, rounds=rounds)


def smallest_need(setting: Setting, shapes: Sequence[PackedGroup], allowed: Allowed = EVERYTHING) -> RankBytes:
    """The least memory with which some layout would run the batch: every piece a micro-batch of its own, shared groups take by take."""
    needs = [smallest_update(setting, shapes, allowed), optimizer_step_bytes(setting)]
    return max(needs, key=lambda size: size.total)


def smallest_update(setting: Setting, shapes: Sequence[PackedGroup], allowed: Allowed = EVERYTHING) -> RankBytes:
    """`smallest_need` of forward and backward alone."""
    needs = [update_fixed_bytes(setting)]
    tried = candidates(setting, allowed)
    for shape in shapes:
        options = [size for candidate in tried for size in _lone_needs(candidate, shape)]
        needs.append(min(options, key=lambda size: size.total))
    return max(needs, key=lambda size: size.total)


def _lone_needs(candidate: Candidate, shape: PackedGroup) -> Iterator[RankBytes]:
    """Of a group by itself: whole and take by take, or its longest row."""
    if candidate.shared:
        units = [candidate.unit(shape), *(candidate.unit(shape, size) for size in chunk_sizes(shape)[-1:])]
    else:
        units = [candidate.unit(PackedGroup(shape.prompt_length, (max(shape.take_lengths, default=0),)))]
    for unit in units:
        yield update_bytes(candidate.setting, unit.bytes, unit.scored)


def _too_large(setting: Setting, shapes: Sequence[PackedGroup], allowed: Allowed) -> MemoryLimitError:
    need, longest = smallest_need(setting, shapes, allowed), max(shapes, key=lambda shape: shape.num_tokens)
    parts = ", ".join(f"{name.replace('_', ' ')} {size / GIB:.1f}" for name, size in need.parts())
    takes = f"{len(longest.take_lengths)} takes of up to {max(longest.take_lengths, default=0):,}"
    return MemoryLimitError(
        f"a prompt of {longest.prompt_length:,} tokens with {takes} needs at least {need.total / GIB:.1f} GiB per rank ({parts})",
        rule=f"{setting.cluster.world_size} ranks have {setting.cluster.rank_bytes / GIB:.1f} GiB each",
        remedy="`longtake plan` says which settings would do",
    )
