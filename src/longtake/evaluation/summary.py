"""From answer records to figures. Every failure stays in the denominator as a wrong answer. Imports no torch."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import TypedDict, TypeVar

from longtake.errors import RowError
from longtake.evaluation.intervals import chance_interval, cluster_bootstrap, mcnemar_exact, wilson
from longtake.evaluation.records import JUDGE_FAILED, NO_CALL, AnswerRecord, refuse_repeated

KeyT = TypeVar("KeyT", bound=Hashable)


class Share(TypedDict):
    """Right answers among n rows."""

    accuracy: float
    n: int
    ci95: list[float]
    """Wilson interval [low, high]."""


class LetterShare(Share):
    """Rows whose KEY is this letter, and how often the model answered it whatever the key."""

    predicted: int


class TokenCounts(TypedDict):
    """Response lengths of the rows that were answered."""

    mean: float
    median: float
    max: int


class JudgeShare(TypedDict):
    """What a judge made of an evaluation's open-ended rows, at the headline's number of frames."""

    n: int
    """Open-ended rows that were answered."""
    calls: int
    """Rows whose answer it was asked about; paid before or not, equal questions counted each."""
    failed: int
    """Calls without a verdict; their rows have failure JudgeFailed and count as wrong. An evaluation that is run again asks only these."""
    yes: int
    rule_yes: int
    """Of the answers with a verdict, how many the rules alone call right."""
    agreement: float | None
    """Share of the answers with a verdict of which both say the same; None when there is none."""


class Summary(Share):
    """What `summarise` returns; plain JSON."""

    ci95_by_video: list[float]
    """95 % bootstrap over videos: rows of one video are not independent, and `ci95` supposes that they are."""
    num_videos: int
    frames: int
    """Frames of the headline: the largest number evaluated."""
    by_category: dict[str, Share]
    by_source: dict[str, Share]
    """Of a mixture; empty for the rows of one file."""
    by_frames: dict[str, Share]
    by_letter: dict[str, LetterShare]
    num_unread: int
    """Rows with options from whose response no letter could be read (failures included)."""
    best_constant: float
    """Accuracy of always answering the most frequent key letter."""
    chance: float
    """Accuracy expected of guessing among each row's own options (failures count 0)."""
    chance99: list[float]
    """Exact binomial interval that guessing stays inside with 99 % probability."""
    format_rate: float | None
    """Share of well-formed responses among all rows; None when nothing was generated (letters scoring)."""
    response_tokens: TokenCounts
    truncated_rate: float
    """Share of all rows whose response hit the length limit."""
    num_failures: int
    failures: dict[str, int]
    """Number of failed rows by the kind of error."""
    judge: JudgeShare | None
    """Of the open-ended rows; None when no judge was asked."""


class PairedTest(TypedDict):
    """Exact McNemar test of two evaluations on the same rows."""

    n: int
    both: int
    only_first: int
    """First right, second wrong."""
    only_second: int
    neither: int
    difference: float
    """Accuracy of the first minus accuracy of the second."""
    p: float
    """Two-sided."""


def summarise(records: Sequence[AnswerRecord]) -> Summary:
    """Figures of one evaluation, at one or several numbers of frames; the headline is the largest number.

    Raises RowError when a problem id occurs twice at one number of frames, or when the numbers of frames saw different rows.
    """
    refuse_repeated(record.key for record in records)
    by_frames = _grouped(records, lambda record: record.frames)
    _refuse_uneven(by_frames)
    frames = max(by_frames, default=0)
    return _headline(by_frames.get(frames, []), frames, {str(count): share(rows) for count, rows in sorted(by_frames.items())})


def _headline(rows: Sequence[AnswerRecord], frames: int, by_frames: dict[str, Share]) -> Summary:
    videos = _clusters(rows)
    with_options = [row for row in rows if row.letters]
    chance = sum(1 / len(row.letters) for row in with_options if row.failure is None) / max(1, len(rows))
    keys = Counter(row.answer for row in with_options)
    return Summary(
        **share(rows),
        ci95_by_video=list(cluster_bootstrap(videos)),
        num_videos=len({row.video for row in rows if row.video is not None}),
        frames=frames,
        by_category={name: share(group) for name, group in sorted(_grouped(rows, lambda row: row.category).items())},
        by_source={name: share(group) for name, group in _grouped(rows, lambda row: row.source).items() if name},
        by_frames=by_frames,
        by_letter=_by_letter(with_options),
        num_unread=sum(row.predicted is None for row in with_options),
        best_constant=max(keys.values(), default=0) / max(1, len(rows)),
        chance=chance,
        chance99=list(chance_interval(len(rows), chance, 0.99)),
        format_rate=_format_rate(rows),
        response_tokens=_token_counts(rows),
        truncated_rate=sum(row.finish_reason == "length" for row in rows) / max(1, len(rows)),
        num_failures=sum(row.failure is not None for row in rows),
        failures=dict(sorted(Counter(row.failure for row in rows if row.failure is not None).items())),
        judge=judge_share(rows),
    )


def share(rows: Sequence[AnswerRecord]) -> Share:
    """Accuracy of some rows with its Wilson interval; a failed row is a wrong one."""
    right = sum(is_right(row) for row in rows)
    return Share(accuracy=right / max(1, len(rows)), n=len(rows), ci95=list(wilson(right, len(rows))))


def judge_share(rows: Sequence[AnswerRecord]) -> JudgeShare | None:
    """Of the records of one number of frames; None when no judge saw them."""
    judged = [row for row in rows if row.verdict is not None]
    if not judged:
        return None
    told = [row for row in judged if row.verdict in ("yes", "no")]
    return JudgeShare(
        n=len(judged),
        calls=sum(row.verdict != NO_CALL for row in judged),
        failed=sum(row.failure == JUDGE_FAILED for row in judged),
        yes=sum(row.verdict == "yes" for row in told),
        rule_yes=sum(row.rule_correct is True for row in told),
        agreement=sum(row.correct == row.rule_correct for row in told) / len(told) if told else None,
    )


def is_right(row: AnswerRecord) -> bool:
    """A failure is never right, whatever its record says."""
    return row.correct and row.failure is None


def paired_test(first: Sequence[AnswerRecord], second: Sequence[AnswerRecord]) -> PairedTest:
    """McNemar's exact test on the same problem ids (each side at its largest number of frames).

    Rows so damaged that they have no id failed on both sides and count as wrong on both. Raises RowError when a side repeats an id, or
    when the two sides do not hold the same rows.
    """
    left, right = _by_problem(first), _by_problem(second)
    if left.keys() != right.keys():
        odd = sorted(left.keys() ^ right.keys(), key=str)
        raise RowError(
            f"{len(odd)} rows are on one side only, e.g. problem ids {', '.join(map(str, odd[:3]))}",
            rule="a paired test compares two models on the same rows",
            remedy="evaluate both on the same rows file",
        )
    outcomes = Counter((left[name], right[name]) for name in left)
    only_first, only_second = outcomes[True, False], outcomes[False, True]
    return PairedTest(
        n=len(left),
        both=outcomes[True, True],
        only_first=only_first,
        only_second=only_second,
        neither=outcomes[False, False],
        difference=(only_first - only_second) / max(1, len(left)),
        p=mcnemar_exact(only_first, only_second),
    )


def headline_rows(records: Sequence[AnswerRecord]) -> list[AnswerRecord]:
    """The records of the largest number of frames."""
    most = max((record.frames for record in records), default=0)
    return [record for record in records if record.frames == most]


def _by_problem(records: Sequence[AnswerRecord]) -> dict[int | str, bool]:
    """Problem id -> right or wrong; rows without an id are numbered, which pairs the failed with the failed."""
    refuse_repeated(record.key for record in records)
    rows = headline_rows(records)
    nameless = [row for row in rows if row.problem_id is None]
    if any(map(is_right, nameless)):
        raise RowError("an answered row without problem id", rule="rows are paired by problem id", remedy="give every row its problem_id")
    named: dict[int | str, bool] = {row.name: is_right(row) for row in rows if row.name is not None}
    return named | {f"unreadable {index}": False for index in range(len(nameless))}


def _grouped(rows: Sequence[AnswerRecord], key: Callable[[AnswerRecord], KeyT]) -> dict[KeyT, list[AnswerRecord]]:
    groups: defaultdict[KeyT, list[AnswerRecord]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(groups)


def _refuse_uneven(by_frames: dict[int, list[AnswerRecord]]) -> None:
    """A row that left the denominator at one number of frames would make the curve over frames lie."""
    counts = {frames: Counter(row.name for row in rows) for frames, rows in by_frames.items()}
    if any(count != next(iter(counts.values())) for count in counts.values()):
        sizes = {frames: len(rows) for frames, rows in by_frames.items()}
        raise RowError(
            f"rows per number of frames: {sizes}, not the same problem ids",
            rule="every number of frames is evaluated on the same rows, failures included",
            remedy="evaluate all of them in one run",
        )


def _clusters(rows: Sequence[AnswerRecord]) -> list[tuple[int, int]]:
    """(right, rows) of each video; a row without video is a cluster of its own."""
    groups = _grouped(rows, lambda row: row.video)
    alone = [(int(is_right(row)), 1) for row in groups.pop(None, [])]
    return alone + [(sum(map(is_right, group)), len(group)) for group in groups.values()]


def _by_letter(rows: Sequence[AnswerRecord]) -> dict[str, LetterShare]:
    by_key = _grouped(rows, lambda row: row.answer)
    predicted = Counter(row.predicted for row in rows if row.predicted is not None)
    letters = sorted(by_key.keys() | {letter for row in rows for letter in row.letters})
    return {letter: LetterShare(**share(by_key.get(letter, [])), predicted=predicted[letter]) for letter in letters}


def _format_rate(rows: Sequence[AnswerRecord]) -> float | None:
    """Failures count as not well-formed; letters scoring generates nothing that could have a format."""
    if rows and all(row.well_formed is None for row in rows if row.failure is None):
        return None
    return sum(row.well_formed is True for row in rows) / max(1, len(rows))


def _token_counts(rows: Sequence[AnswerRecord]) -> TokenCounts:
    counts = [row.response_tokens for row in rows if row.failure is None] or [0]
    return TokenCounts(mean=statistics.fmean(counts), median=float(statistics.median(counts)), max=max(counts))
