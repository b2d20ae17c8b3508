"""Rows shared out to SFT, RL and evaluation, whole videos at a time. Pure: the same rows and seed give the same splits, in whatever order
the rows come.

Evaluation is filled first, up to its quotas; what is left is divided by a subset-sum, so that SFT has its share of the rows as nearly as
whole videos allow.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from longtake.config.curate import SplitConfig
from longtake.curation.records import Drop, Outcome, PlacedRow, RatedRow
from longtake.errors import CurationError
from longtake.observe.digest import digest_of

SPLITS = ("sft", "rl", "eval")
"""In the order in which they are published."""
SURPLUS = "eval_surplus"
"""Reason of a row that is left out because its video is in the evaluation split, whose quota of the category is full."""

Videos = Mapping[str, Sequence[RatedRow]]
"""Rows by the digest of their video."""


@dataclass(frozen=True, eq=False)
class SplitOutcome(Outcome[PlacedRow]):
    """Rows in the order of SPLITS, and by key within each."""

    warnings: tuple[str, ...] = ()
    """What the rows were too few for, a sentence each."""


def split_rows(rows: Sequence[RatedRow], config: SplitConfig, seed: int) -> SplitOutcome:
    """Every row in one split, or dropped as surplus of an evaluation video; no video in two splits.

    Raises CurationError when two rows have the same key.
    """
    _refuse_repeated(rows)
    videos: dict[str, list[RatedRow]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.draft.key):
        videos[row.draft.digest].append(row)
    order = sorted(videos, key=lambda digest: digest_of("order of videos 1", seed, digest))
    chosen, surplus = _evaluation(videos, order, config.eval_rows, math.floor(config.max_eval_videos * len(order)), seed)
    taken = {row.draft.digest for row in (*chosen, *surplus)}
    left = {digest: videos[digest] for digest in order if digest not in taken}
    for_sft = _sft_videos(left, config.sft_share)
    placed = [PlacedRow(row, "eval") for row in chosen]
    placed += [PlacedRow(row, "sft" if digest in for_sft else "rl") for digest, own in left.items() for row in own]
    placed.sort(key=lambda one: (SPLITS.index(one.split), one.row.draft.key))
    surplus.sort(key=lambda row: row.draft.key)
    warnings = (*_unfilled(chosen, config.eval_rows), *_empty(placed, config))
    return SplitOutcome(tuple(placed), tuple(_surplus_drop(row, config.eval_rows) for row in surplus), warnings)


def _refuse_repeated(rows: Sequence[RatedRow]) -> None:
    repeated = [key for key, count in Counter(row.draft.key for row in rows).items() if count > 1]
    if repeated:
        raise CurationError(
            f"{len(repeated)} keys that are those of several rows, such as {repeated[0]!r}",
            rule="a key names one row",
            remedy="leave the check `duplicate` on, and do not put outputs of a stage together by hand",
        )


def _evaluation(
    videos: Videos, order: Sequence[str], quotas: Mapping[str, int], most: int, seed: int
) -> tuple[list[RatedRow], list[RatedRow]]:
    """(rows of the evaluation split, surplus rows of its videos), which are `most` at most.

    Next is always the video that loses the fewest rows for each one it gives, and of those that lose equally few the first in the drawn
    order. As the need falls a video can only get worse, so that one whose rank is as it was is still the best (lazy greedy).
    """
    need = Counter({category: quota for category, quota in quotas.items() if quota > 0})
    counts = {digest: Counter(row.draft.category for row in videos[digest]) for digest in order}
    ranked = [(loss, place, digest) for place, digest in enumerate(order) if (loss := _loss(counts[digest], need)) is not None]
    heapq.heapify(ranked)
    chosen: list[RatedRow] = []
    surplus: list[RatedRow] = []
    while ranked and most and any(need.values()):
        loss, place, digest = heapq.heappop(ranked)
        now = _loss(counts[digest], need)
        if now != loss:
            if now is not None:
                heapq.heappush(ranked, (now, place, digest))
            continue
        most -= 1
        for row in sorted(videos[digest], key=lambda row: digest_of("order of rows 1", seed, row.draft.key)):
            wanted = need[row.draft.category] > 0
            need[row.draft.category] -= wanted
            (chosen if wanted else surplus).append(row)
    return chosen, surplus


def _loss(counts: Mapping[str, int], need: Mapping[str, int]) -> float | None:
    """Rows that are lost for each one that is used; None when none is."""
    used = sum(min(count, need.get(category, 0)) for category, count in counts.items())
    return (sum(counts.values()) - used) / used if used else None


def _sft_videos(videos: Videos, share: float) -> set[str]:
    """Videos, of each size in their order, whose rows are as near to `share` of all as whole videos allow; of two sums equally near the
    smaller. Videos of many rows and of few go to SFT in about the same proportion.

    Over the sizes, each with its number of videos: bit n of a reach is set when so many rows can be had from those and smaller ones.
    """
    by_size: dict[int, list[str]] = defaultdict(list)
    for digest, own in videos.items():
        by_size[len(own)].append(digest)
    sizes = sorted(by_size)
    reaches = [1]
    for size in sizes:
        reaches.append(_extended(reaches[-1], size, len(by_size[size])))
    total = sum(len(own) for own in videos.values())
    target = _nearest(reaches[-1], share * total)
    chosen: set[str] = set()
    for size, reach in reversed(list(zip(sizes, reaches, strict=False))):
        count = _how_many(reach, size, len(by_size[size]), target, total)
        chosen.update(by_size[size][:count])
        target -= count * size
        total -= len(by_size[size]) * size
    return chosen


def _extended(reach: int, size: int, count: int) -> int:
    """Sums of `reach` with 0 to `count` times `size` more: powers of two first, then the rest, so that it takes log(count) steps."""
    power = 1
    while count:
        step = min(power, count)
        reach |= reach << (step * size)
        count, power = count - step, 2 * power
    return reach


def _nearest(reach: int, wanted: float) -> int:
    """The sum that is nearest to what is wanted."""
    first = int(wanted) + 1
    below = (reach & ((1 << first) - 1)).bit_length() - 1
    rest = reach >> first
    above = first + (rest & -rest).bit_length() - 1
    return above if rest and above - wanted < wanted - below else below


def _how_many(reach: int, size: int, count: int, target: int, total: int) -> int:
    """Videos of this size, as near to their part of the target as a sum of smaller ones, `reach`, can make up for."""
    even = count * target / total
    nearest_first = sorted(range(min(count, target // size) + 1), key=lambda number: abs(number - even))
    return next(number for number in nearest_first if reach >> (target - number * size) & 1)


def _surplus_drop(row: RatedRow, quotas: Mapping[str, int]) -> Drop:
    draft = row.draft
    quota = quotas.get(draft.category, 0)
    message = f"its video is in the evaluation split, which has its {quota} rows of {draft.category}; a video is in one split alone"
    return Drop("split", SURPLUS, message, draft.video, draft.key, draft.category, draft)


def _unfilled(chosen: Sequence[RatedRow], quotas: Mapping[str, int]) -> list[str]:
    found = Counter(row.draft.category for row in chosen)
    return [
        f"only {found[category]} rows of {category} for the evaluation split, where split.eval_rows asks for {quota}: curate more videos, "
        "lower it, or raise split.max_eval_videos"
        for category, quota in sorted(quotas.items())
        if found[category] < quota
    ]


def _empty(placed: Sequence[PlacedRow], config: SplitConfig) -> list[str]:
    counts = Counter(one.split for one in placed)
    wanted = {"sft": config.sft_share > 0, "rl": config.sft_share < 1}
    return [
        f"the {split} split is empty, too few videos are left: curate more, or lower split.eval_rows"
        for split in ("sft", "rl")
        if wanted[split] and not counts[split]
    ]
