"""All checks of a row put together: rules before rewriting, rules after it, votes, and what concerns all rows of a video.

A row is dropped with the first check that it fails, in the order of CHECKS; votes after that are not paid for. The names of the checks are
in `config.curate.CHECKS`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from longtake.config.curate import CATEGORIES, CHECKS, CheckConfig, CurateConfig
from longtake.curation.records import LETTERS, Caption, CheckedRow, Draft, Drop, Finding, Outcome, SourceVideo
from longtake.curation.rules import check_answer, check_duplicate, check_language, check_options, check_question, check_ranges
from longtake.curation.votes import FRAMES_FAILED, VOTES_FAILED, Voters, blind, shuffled, supported, watched
from longtake.curation.wording import (
    check_asked_captions,
    check_captions,
    check_conclusion,
    check_deliberation,
    check_letters,
    check_reasoning,
    check_reasoning_language,
    check_times,
)

VOTED = ("blind", "supported", "watched")
"""The checks with a model, the cheapest first: a question alone, some captions with it, frames."""
TOGETHER = ("duplicate", "quota")
"""Checks of the rows of a video against each other, made of those that passed all others: of two that are the same the first good one
stays. Made earlier they would let a faulty row cost its good twin (measured: 10 of 267 good rows)."""


def structure(drafts: Sequence[Draft], video: SourceVideo, config: CurateConfig) -> Outcome[Draft]:
    """The drafts of one video that pass what needs no rewriting; made before it is paid for. Raises ConfigError for an unknown language."""
    asked, off = config.question, config.check.off
    kept: list[Draft] = []
    dropped: list[Drop] = []
    for draft in drafts:
        findings = [
            check_options(draft, asked),
            check_answer(draft, asked),
            check_question(draft, asked),
            check_ranges(draft, video.duration_s),
            *([] if "language" in off else [check_language(draft, asked)]),
            check_asked_captions(draft),
        ]
        findings = switched_on(findings, config.check)
        if all(one.passed for one in findings):
            kept.append(draft)
        else:
            dropped.append(drop_of(draft, findings))
    return Outcome(tuple(kept), tuple(dropped))


def wording(drafts: Sequence[Draft], video: SourceVideo, config: CurateConfig) -> Outcome[Draft]:
    """The drafts of one video whose rewritten reasoning reads as it should."""
    kept: list[Draft] = []
    dropped: list[Drop] = []
    for draft in drafts:
        findings = [
            check_reasoning(draft, config.question),
            *([] if "language" in config.check.off else [check_reasoning_language(draft, config.question)]),
            check_deliberation(draft),
            check_captions(draft),
            check_letters(draft),
            check_times(draft, video.duration_s),
            check_conclusion(draft),
        ]
        findings = switched_on(findings, config.check)
        if all(one.passed for one in findings):
            kept.append(draft)
        else:
            dropped.append(drop_of(draft, findings))
    return Outcome(tuple(kept), tuple(dropped))


def switched_on(findings: Sequence[Finding], config: CheckConfig) -> list[Finding]:
    return [finding for finding in findings if finding.check not in config.off]


async def ask_checks(draft: Draft, captions: Sequence[Caption], voters: Voters) -> CheckedRow | Drop:
    """The votes about a draft that passed `structure` and `wording`; ends with the first check that it fails. Raises BudgetError.

    `captions` are those of the whole video.
    """
    checks: dict[str, Callable[[], Awaitable[Finding]]] = {
        "blind": lambda: blind(draft, voters),
        "supported": lambda: supported(draft, captions, voters),
        "watched": lambda: watched(draft, voters),
    }
    config = voters.config.check
    findings = passed_before(config)
    for name in VOTED:
        if name in config.off or not votes_of(name, config):
            continue
        findings.append(await checks[name]())
        if not findings[-1].passed:
            return drop_of(draft, findings)
    return CheckedRow(draft, tuple(findings))


def votes_of(check: str, config: CheckConfig) -> int:
    """How many a check takes at most."""
    return {"blind": config.blind_votes, "supported": config.support_votes, "watched": config.watch_votes}[check]


def passed_before(config: CheckConfig) -> list[Finding]:
    """The findings of a row that came through the rules."""
    return [Finding(name, True) for name in CHECKS if name not in (*VOTED, *TOGETHER, *config.off)]


def finish(checked: Outcome[CheckedRow], config: CurateConfig) -> Outcome[CheckedRow]:
    """What concerns all rows of a video together: the same question twice, quotas, then the order of the options. What was dropped before
    stays dropped."""
    once = without_duplicates(checked.kept, config.check)
    within = quotas(once.kept, config.check)
    kept = [row for row in within if row.passed]
    drafts = lay_out([row.draft for row in kept], config.seed)
    laid_out = tuple(replace(row, draft=draft) for row, draft in zip(kept, drafts, strict=True))
    over = (drop_of(row.draft, row.findings) for row in within if not row.passed)
    return Outcome(laid_out, (*checked.dropped, *once.dropped, *over))


def without_duplicates(rows: Sequence[CheckedRow], config: CheckConfig) -> Outcome[CheckedRow]:
    """The rows of one video with the finding `duplicate`: of those that ask the same the first in order is kept."""
    if "duplicate" in config.off:
        return Outcome(tuple(rows))
    kept: list[CheckedRow] = []
    dropped: list[Drop] = []
    for row in rows:
        finding = check_duplicate(row.draft, [other.draft for other in kept], config.similar)
        findings = (*row.findings, finding)
        if finding.passed:
            kept.append(replace(row, findings=findings))
        else:
            dropped.append(drop_of(row.draft, findings))
    return Outcome(tuple(kept), tuple(dropped))


def quotas(rows: Sequence[CheckedRow], config: CheckConfig) -> list[CheckedRow]:
    """The rows of one video with the finding `quota`. Places go to the categories in turn, inside each in the order of the rows."""
    if "quota" in config.off or (config.per_video is None and config.per_video_and_category is None):
        return list(rows)
    places = [sum(other.draft.category == row.draft.category for other in rows[:index]) for index, row in enumerate(rows)]
    in_turn = sorted(range(len(rows)), key=lambda index: (places[index], _rank(rows[index].draft.category), index))
    most, most_of_category = (len(rows) if limit is None else limit for limit in (config.per_video, config.per_video_and_category))
    allowed = set([index for index in in_turn if places[index] < most_of_category][:most])
    return [_with_quota(row, places[index] < most_of_category, index in allowed, config) for index, row in enumerate(rows)]


def _with_quota(row: CheckedRow, in_category: bool, allowed: bool, config: CheckConfig) -> CheckedRow:
    told = "" if allowed else f"the video has its {config.per_video} rows"
    if not in_category:
        told = f"the video has its {config.per_video_and_category} rows of category {row.draft.category}"
    return replace(row, findings=(*row.findings, Finding("quota", allowed, told)))


def _rank(category: str) -> int:
    return CATEGORIES.index(category) if category in CATEGORIES else len(CATEGORIES)


def lay_out(drafts: Sequence[Draft], seed: int) -> list[Draft]:
    """The drafts of one video with their options in the final order.

    Right letters are dealt in shuffled cycles (B D A C, C A ...): inside a video a letter comes at most once more often than another, over
    many videos each comes equally often. The wrong options are shuffled. Seed, video and keys alone decide, not the order of the drafts.
    """
    by_key = sorted((draft for draft in drafts if draft.options), key=lambda draft: draft.key)
    places = {draft.key: _dealt(number, len(draft.options), draft.digest, seed) for number, draft in enumerate(by_key)}
    return [_with_key_at(draft, places[draft.key], seed) if draft.options else draft for draft in drafts]


def _dealt(number: int, num_options: int, video_digest: str, seed: int) -> int:
    cycle, index = divmod(number, num_options)
    letters = shuffled(LETTERS[:num_options], "letters", seed, video_digest, cycle)
    return LETTERS.index(letters[index])


def _with_key_at(draft: Draft, place: int, seed: int) -> Draft:
    options = list(shuffled(draft.options, "options", seed, draft.key))
    if draft.answer in options:
        options.remove(draft.answer)
        options.insert(place, draft.answer)
    return replace(draft, options=tuple(options))


def drop_of(draft: Draft, findings: Sequence[Finding]) -> Drop:
    """Of a row that failed, by the first of the findings that it failed."""
    first = next(finding for finding in findings if not finding.passed)
    return Drop("check", reason_of(first), first.detail, draft.video, draft.key, draft.category, draft, tuple(findings))


def reason_of(finding: Finding) -> str:
    """The name of the check, unless nothing could be found out."""
    for beginning, reason in ((VOTES_FAILED, "votes_failed"), (FRAMES_FAILED, "frames_failed")):
        if finding.detail.startswith(beginning):
            return reason
    return finding.check
