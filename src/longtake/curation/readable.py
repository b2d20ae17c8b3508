"""Which rows training could read, whether a policy is asked about them or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from longtake.curation.published import published_example
from longtake.curation.records import Draft, Drop, Outcome, RatedRow
from longtake.errors import RowError
from longtake.observe.digest import digest_of
from longtake.types import Example


def unrated(rows: Sequence[Draft]) -> Outcome[RatedRow]:
    """The rows without a pass rate, for a run that asks no policy. What training could not read is dropped."""
    examples, drops = readable(rows)
    return in_order(rows, drops | {key: RatedRow(draft, None, None) for key, (draft, _) in examples.items()})


def in_order(rows: Sequence[Draft], made: Mapping[str, RatedRow | Drop]) -> Outcome[RatedRow]:
    ordered = [made[draft.key] for draft in rows]
    return Outcome(tuple(one for one in ordered if isinstance(one, RatedRow)), tuple(one for one in ordered if isinstance(one, Drop)))


def readable(rows: Sequence[Draft]) -> tuple[dict[str, tuple[Draft, Example]], dict[str, RatedRow | Drop]]:
    """What training can read, and drops of what it cannot, by key."""
    examples: dict[str, tuple[Draft, Example]] = {}
    drops: dict[str, RatedRow | Drop] = {}
    for draft in rows:
        try:
            examples[draft.key] = (draft, published_example(draft, row_number(draft)))
        except RowError as error:
            drops[draft.key] = refused(draft, type(error).__name__, str(error))
    return examples, drops


def row_number(draft: Draft) -> int:
    """What chooses the row's random numbers: not its place, which is another in each part of the rows."""
    return int(digest_of("row number 1", draft.key)[:15], 16)


def refused(draft: Draft, reason: str, message: str) -> Drop:
    return Drop("difficulty", reason, message, draft.video, draft.key, draft.category, draft)
