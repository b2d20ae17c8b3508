"""An evaluation divided over the processes of a launch: each answers some rows, all know all records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from types import TracebackType
from typing import Any

from longtake.errors import OtherRankFailedError, RowError
from longtake.evaluation.records import AnswerRecord, refuse_repeated
from longtake.evaluation.score import without_borrowed_ids
from longtake.observe.digest import digest_of
from longtake.parallel.balance import balanced
from longtake.stages.team import Team
from longtake.types import Example, Failure

Item = Example | Failure
_Records = dict[int, list[dict[str, Any]]]
"""JSON of each rank's records."""


def share_evaluation(
    team: Team, items: Sequence[Item], answer: Callable[[Sequence[Item]], list[AnswerRecord]], ranks_together: int = 1
) -> list[AnswerRecord]:
    """`answer(items)`, each rank with its part; `records[i]` belongs to `items[i]`, on every rank.

    Rows about one video go to one rank, which encodes it once; so many ranks in order, that share an engine, get the same rows. What
    `answer` raises on some rank is raised on all, so that none waits.
    """
    if team.world.size == 1:
        return answer(items)
    items = without_borrowed_ids(items)
    refuse_other_items(team, items)
    refuse_repeated((item.name, 0) for item in items)
    everything = shares(items, team.world.size // ranks_together)
    own = everything[team.rank // ranks_together]
    with _Told(team) as by_rank:
        by_rank[team.rank] = [asdict(one) for one in answer([items[index] for index in own])]
    firsts = range(0, team.world.size, ranks_together)
    placed = {
        index: record for rank, part in zip(firsts, everything, strict=True) for index, record in zip(part, by_rank[rank], strict=True)
    }
    return [AnswerRecord(**{**placed[index], "letters": tuple(placed[index]["letters"])}) for index in range(len(items))]


class _Told(AbstractContextManager["_Records"]):
    """This rank's records become those of all at the end, where each learns what was raised on another, and raises OtherRankFailedError."""

    def __init__(self, team: Team) -> None:
        self.team = team
        self.by_rank: _Records = {}

    def __enter__(self) -> _Records:
        return self.by_rank

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and not isinstance(error, Exception):
            return
        failed = f"{type(error).__name__}: {error}" if error is not None else ""
        told = self.team.tell({"failed": failed, "records": self.by_rank.get(self.team.rank, [])})
        for rank, one in enumerate(told):
            if one["failed"] and error is None:
                raise OtherRankFailedError(f"rank {rank}: {one['failed']}", rule="every rank answers its rows", remedy="see its message")
            self.by_rank[rank] = one["records"]


def refuse_other_items(team: Team, items: Sequence[Item]) -> None:
    """Raises RowError when the ranks have read different rows: records would be put in other rows' places."""
    own = digest_of(*((str(item.name), isinstance(item, Example)) for item in items))
    if len(set(team.tell(own))) > 1:
        raise RowError(
            "the ranks have read different rows",
            rule="all ranks read the same rows and videos",
            remedy="put them on a file system that all machines share",
        )


def shares(items: Sequence[Item], num_ranks: int) -> list[list[int]]:
    """Indices of each rank, in order; all rows that show the same first together."""
    by_video: dict[object, list[int]] = {}
    for index, item in enumerate(items):
        video = item.media_digest if isinstance(item, Example) else None
        by_video.setdefault(("row", index) if video is None else video, []).append(index)
    together = list(by_video.values())
    parts = balanced([len(part) for part in together], num_ranks)
    return [sorted(index for place in part for index in together[place]) for part in parts]
