"""Checks with a model: several votes about a row, no more of them than its fate takes, options shuffled anew for each.

Which votes are asked for depends on the answers to those before alone, never on which answer came first: the same answers give the same
finding. A call that failed is no vote.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from longtake.answers import plain_number, same_number, same_text
from longtake.config.curate import CurateConfig
from longtake.curation.duplicates import content
from longtake.curation.frames import HOW, ClipFrames, range_frames
from longtake.curation.plain import contains
from longtake.curation.prompts import Prompts, block, caption_lines, option_lines, time_list
from longtake.curation.records import LETTERS, Caption, Draft, Finding, TimeRange
from longtake.curation.schemas import CANNOT_TELL, Schema, letter_schema, text_schema, verdict_schema
from longtake.errors import PathError, VideoError
from longtake.llm.calls import Ask, CallFailure, ChatCall
from longtake.observe.digest import digest_of
from longtake.observe.keyed_lines import KeyedLines
from longtake.video.decode import DECODER
from longtake.video.paths import resolve_inside

VOTES_FAILED = "votes failed"
"""Begins the detail of a finding for which too few votes came in."""
FRAMES_FAILED = "frames failed"
"""Begins the detail of a finding for which nothing could be shown."""
VOTE_TOKENS = 64
"""Room for a letter or a verdict in JSON."""
SLIGHT_OVERLAP_S = 0.05
"""A caption that a range touches by no more is not cited: times are written with one decimal."""


class Voters(Protocol):
    """What votes are taken with."""

    @property
    def config(self) -> CurateConfig: ...

    @property
    def prompts(self) -> Prompts: ...

    @property
    def made(self) -> KeyedLines:
        """Where votes from frames are kept, so that a run that goes on decodes nothing for them."""

    @property
    def vlm(self) -> Ask: ...

    @property
    def reasoner(self) -> Ask: ...

    @property
    def captioner(self) -> str:
        """The model behind `vlm`: votes are kept under its name."""

    @property
    def decode(self) -> asyncio.Semaphore:
        """A place for each file that is decoded at the same time."""


@dataclass(frozen=True)
class Vote:
    """What one answer said."""

    right: bool
    """Whether that is the key."""
    said: str
    """Text of the option, `yes`, `no`, or a free answer."""


@dataclass(frozen=True)
class Votes:
    """All that were asked for, in order."""

    cast: tuple[Vote | CallFailure, ...]

    @property
    def num_right(self) -> int:
        return sum(isinstance(vote, Vote) and vote.right for vote in self.cast)

    @property
    def num_wrong(self) -> int:
        return sum(isinstance(vote, Vote) and not vote.right for vote in self.cast)

    @property
    def said(self) -> tuple[str, ...]:
        return tuple(vote.said if isinstance(vote, Vote) else f"failed: {vote.kind}" for vote in self.cast)

    @property
    def failures(self) -> str:
        kinds = sorted({vote.kind for vote in self.cast if isinstance(vote, CallFailure)})
        return f"{len(self.cast) - self.num_right - self.num_wrong} calls failed ({', '.join(kinds)})"


async def take_votes(ask_one: Callable[[int], Awaitable[Vote | CallFailure]], right_needed: int, wrong_needed: int) -> Votes:
    """Ask until `right_needed` votes are right or `wrong_needed` wrong, or right_needed + wrong_needed - 1 calls were made.

    Each round asks for the fewest votes that could settle it, all at once: of 5 by majority (3, 3) first 3, then one by one.
    """
    cast: list[Vote | CallFailure] = []
    while True:
        votes = Votes(tuple(cast))
        missing = min(right_needed - votes.num_right, wrong_needed - votes.num_wrong, right_needed + wrong_needed - 1 - len(cast))
        if missing <= 0:
            return votes
        cast += await _all(ask_one(index) for index in range(len(cast), len(cast) + missing))


async def _all(asked: Iterable[Awaitable[Vote | CallFailure]]) -> list[Vote | CallFailure]:
    """Every answer. An error, such as BudgetError, is raised when the others have come, so that no paid answer is lost."""
    answers: list[Vote | CallFailure] = []
    for answer in await asyncio.gather(*asked, return_exceptions=True):
        if isinstance(answer, BaseException):
            raise answer
        answers.append(answer)
    return answers


async def majority(ask_one: Callable[[int], Awaitable[Vote | CallFailure]], num_votes: int) -> Votes:
    """More than half of `num_votes` right, or so many wrong that this cannot be."""
    right_needed = num_votes // 2 + 1
    return await take_votes(ask_one, right_needed, num_votes - right_needed + 1)


async def supported(draft: Draft, captions: Sequence[Caption], voters: Voters) -> Finding:
    """Most answers from the captions of the cited ranges alone are the key. Raises BudgetError."""
    shown = cited(captions, draft.ranges)
    if not shown:
        return Finding("supported", False, "no caption overlaps the cited ranges")
    lines = block("captions", caption_lines(shown))

    async def ask_one(index: int) -> Vote | CallFailure:
        return await _key_or_not(draft, "support", index, {"captions": lines}, (), voters, voters.reasoner)

    return of_majority("supported", await majority(ask_one, voters.config.check.support_votes), voters.config.check.support_votes)


def cited(captions: Sequence[Caption], ranges: Sequence[TimeRange]) -> list[Caption]:
    """Those that overlap a range, in order of time."""
    found = [
        caption
        for caption in captions
        if any(min(caption.stop_s, one.stop_s) - max(caption.start_s, one.start_s) > SLIGHT_OVERLAP_S for one in ranges)
    ]
    return sorted(found, key=lambda caption: (caption.start_s, caption.stop_s))


async def watched(draft: Draft, voters: Voters) -> Finding:
    """Most answers of the vision-language model, from frames of the cited ranges, are the key: captions may be wrong.

    Kept in `voters.made`, unless a call failed. Raises BudgetError.
    """
    config = voters.config.check
    key = _watch_key(draft, voters)
    if (known := voters.made.get(key)) is not None:
        return Finding("watched", known["passed"], known["detail"], tuple(known["votes"]))
    shown = await _frames(draft, voters)
    if isinstance(shown, str):
        return Finding("watched", False, f"{FRAMES_FAILED}: {shown}")

    async def ask_one(index: int) -> Vote | CallFailure:
        return await _key_or_not(draft, "watch", index, {"times": times}, shown.jpegs, voters, voters.vlm)

    times = block("times", time_list(shown.times_s))
    votes = await majority(ask_one, config.watch_votes)
    finding = of_majority("watched", votes, config.watch_votes)
    if not any(isinstance(vote, CallFailure) for vote in votes.cast):
        voters.made.put(key, {"passed": finding.passed, "detail": finding.detail, "votes": list(finding.votes)})
    return finding


async def _frames(draft: Draft, voters: Voters) -> ClipFrames | str:
    """What is shown of the cited ranges; in words why nothing is."""
    count, max_pixels = voters.config.check.watch_frames, voters.config.caption.max_pixels_per_frame
    try:
        path: Path = resolve_inside(voters.config.videos, draft.video)
        async with voters.decode:
            shown = await asyncio.to_thread(range_frames, path, voters.config.ingest.limits, draft.ranges, count, max_pixels)
    except (PathError, VideoError) as error:
        return str(error)
    return shown if shown.jpegs else "the cited ranges have no frame"


def _watch_key(draft: Draft, voters: Voters) -> str:
    """Of everything that the votes depend on."""
    check, max_pixels = voters.config.check, voters.config.caption.max_pixels_per_frame
    asked = (draft.key, draft.digest, draft.question, draft.options, draft.answer, [(one.start_s, one.stop_s) for one in draft.ranges])
    how = (check.watch_votes, check.watch_frames, max_pixels, check.temperature, HOW, DECODER, voters.captioner)
    return digest_of("watched 1", asked, how, voters.prompts.text(_prompt_of(draft, "watch")))


async def blind(draft: Draft, voters: Voters) -> Finding:
    """Fewer than the share `blind_right` of the answers from the question alone are the key. Raises BudgetError."""
    config = voters.config.check
    right_needed = max(1, math.ceil(config.blind_right * config.blind_votes - 1e-9))

    async def ask_one(index: int) -> Vote | CallFailure:
        if draft.options:
            return await _key_or_not(draft, "blind", index, {}, (), voters, voters.reasoner)
        return await _guess(draft, index, voters)

    votes = await take_votes(ask_one, right_needed, config.blind_votes - right_needed + 1)
    told = f"{votes.num_right} of {votes.num_right + votes.num_wrong} answers without the video are the key"
    if votes.num_right < right_needed and votes.num_wrong <= config.blind_votes - right_needed:
        return Finding("blind", False, f"{VOTES_FAILED}: {told}, {votes.failures}", votes.said)
    return Finding("blind", votes.num_right < right_needed, told, votes.said)


def of_majority(check: str, votes: Votes, num_votes: int) -> Finding:
    """Passed when more than half of `num_votes` are right; where that is open, too many calls failed."""
    told = f"{votes.num_right} of {votes.num_right + votes.num_wrong} answers are the key"
    right_needed = num_votes // 2 + 1
    if votes.num_right < right_needed and votes.num_wrong <= num_votes - right_needed:
        return Finding(check, False, f"{VOTES_FAILED}: {told}, {votes.failures}", votes.said)
    return Finding(check, votes.num_right >= right_needed, told, votes.said)


def shuffled(options: Sequence[str], *keys: str | int) -> tuple[str, ...]:
    """In an order that `keys` alone decide, whatever the order given."""
    return tuple(sorted(options, key=lambda option: digest_of("shuffle 1", *keys, option)))


async def _key_or_not(
    draft: Draft, purpose: str, index: int, seen: Mapping[str, str], jpegs: Sequence[bytes], voters: Voters, ask: Ask
) -> Vote | CallFailure:
    """One vote: between options, or on the answer of an open-ended question. `seen` are the blocks before the question."""
    options = shuffled(draft.options, draft.key, purpose, index)
    last = {"options": block("options", option_lines(options))} if options else {"answer": block("answer", draft.answer)}
    text = voters.prompts.render(_prompt_of(draft, purpose), **seen, question=block("question", draft.question), **last)
    schema = letter_schema(len(options), or_cannot_tell=purpose != "blind") if options else verdict_schema()
    answer = await ask(_call(purpose, text, jpegs, schema, index, VOTE_TOKENS, voters))
    if isinstance(answer, CallFailure):
        return answer
    if not options:
        return Vote(answer.value["verdict"] == "yes", answer.value["verdict"])
    letter = answer.value["answer"]
    said = CANNOT_TELL if letter == CANNOT_TELL else options[LETTERS.index(letter)]
    return Vote(said == draft.answer and letter != CANNOT_TELL, said)


async def _guess(draft: Draft, index: int, voters: Voters) -> Vote | CallFailure:
    max_chars = voters.config.question.max_option_chars
    text = voters.prompts.render("blind_open", question=block("question", draft.question), max_chars=max_chars)
    answer = await voters.reasoner(_call("blind", text, (), text_schema(max_chars), index, VOTE_TOKENS + max_chars // 2, voters))
    if isinstance(answer, CallFailure):
        return answer
    said = " ".join(answer.value["answer"].split())
    return Vote(same_answer(said, draft.answer), said)


def same_answer(said: str, key: str) -> bool:
    """Whether a free answer is the key: the same number or text, or a sentence around it of at most three times its words.

    Kinder than the rule that rewards go by: a guess that names the key in passing shows that it can be guessed.
    """
    if plain_number(key) and plain_number(said):
        return same_number(said, key)
    words, wanted = content(said), content(key)
    return same_text(said, key) or (contains(words, wanted) and len(words) <= max(4, 3 * len(wanted)))


def _prompt_of(draft: Draft, purpose: str) -> str:
    return purpose if draft.options else f"{purpose}_open"


def _call(purpose: str, text: str, jpegs: Sequence[bytes], schema: Schema, index: int, max_tokens: int, voters: Voters) -> ChatCall:
    return ChatCall(purpose, (text, *jpegs), schema, max_tokens, temperature=voters.config.check.temperature, sample=index)
