"""Taking a response apart: `<think> ... </think> <answer> ... </answer>`. No regular expression, so time is linear whatever the text."""

from __future__ import annotations

from dataclasses import dataclass

THINK, END_THINK, ANSWER, END_ANSWER = "<think>", "</think>", "<answer>", "</answer>"


@dataclass(frozen=True)
class ParsedResponse:
    think: str | None
    """Text between the think tags; None unless there is exactly one pair."""
    answer: str | None
    """Text of the one answer; None when there is none or more than one, see `parse_response`."""
    well_formed: bool
    """Exactly one think pair, then exactly one answer pair, both with text in them, nothing else but white space."""


def parse_response(text: str) -> ParsedResponse:
    """Read the reasoning and the answer.

    The answer is looked for after the last `</think>` (in the whole text when there is none), so that a tag quoted in the
    reasoning is not the answer. There must be exactly one `<answer>...</answer>` there: two answers are a hedge, an open tag
    is a response that was cut, and both read as no answer.
    """
    think = between(text, THINK, END_THINK)
    answer = between(text[text.rfind(END_THINK) + len(END_THINK) :] if END_THINK in text else text, ANSWER, END_ANSWER)
    return ParsedResponse(think=think, answer=answer, well_formed=is_well_formed(text))


def between(text: str, start_tag: str, end_tag: str) -> str | None:
    """The stripped text of the only `start_tag ... end_tag` in `text`; None when the tags are not there exactly once, in order."""
    if text.count(start_tag) != 1 or text.count(end_tag) != 1:
        return None
    start, end = text.index(start_tag) + len(start_tag), text.index(end_tag)
    return text[start:end].strip() if start <= end else None


def is_well_formed(text: str) -> bool:
    """See `ParsedResponse.well_formed`. Empty pairs do not count: the format reward must not pay for saying nothing."""
    parts, rest = [], text
    for tag in (THINK, END_THINK, ANSWER, END_ANSWER):
        if text.count(tag) != 1:
            return False
        before, found, rest = rest.partition(tag)
        if not found:
            return False
        parts.append(before.strip())
    outside_start, think, outside_middle, answer = parts
    return not outside_start and bool(think) and not outside_middle and bool(answer) and not rest.strip()


def format_response(think: str, answer: str) -> str:
    """The text SFT teaches and `parse_response` reads back."""
    return f"{THINK}{think}{END_THINK}{ANSWER}{answer}{END_ANSWER}"
