"""Checks without a model, on the reasoning as it will be published: pure functions of a row, each one Finding.

Patterns are of English. What somebody in the video says, or what stands in the picture, is in quotation marks and is not looked at, except
for letters of options.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from longtake.config.curate import QuestionConfig
from longtake.curation.language import foreign
from longtake.curation.patterns import ASIDE, CAPTIONS, CONCLUDES, DELIBERATION, DENIES, LETTER_NAMES, TIMES, VOICE, Phrases
from longtake.curation.plain import contains, excerpt, sentences, tidy, without_quotes, words_of
from longtake.curation.records import Draft, Finding
from longtake.curation.rules import TOLERANCE_S

MIN_WORDS = 5
LABEL = re.compile(r"\b[A-H][.):]?\s")
END_MARKS = (".", "!", "?", "\u3002", "\uff01", "\uff1f", "\u2026", '"', "'", "\u201d", ")", "]", "\u0964")
MIN_TELLING_CHARS = 4
VOICED = re.compile(r"mention|stated|described", re.IGNORECASE)


def check_reasoning(draft: Draft, config: QuestionConfig) -> Finding:
    """Some words, not longer than allowed, and not broken off where the length ran out."""
    text = draft.reasoning.strip()
    fault = ""
    if len(text) > config.max_reasoning_chars:
        fault = f"{len(text)} characters, more than {config.max_reasoning_chars}"
    elif len(text.split()) < MIN_WORDS and len(text) < 10 * MIN_WORDS:
        fault = f"hardly any: {excerpt(text)}"
    elif len(text) >= 0.98 * config.max_reasoning_chars and not text.endswith(END_MARKS):
        fault = f"broken off at {len(text)} characters: {excerpt(text[-60:])}"
    return _finding("reasoning", fault)


def check_reasoning_language(draft: Draft, config: QuestionConfig) -> Finding:
    """The check `language`, of the reasoning."""
    fault = foreign(draft.reasoning, config.language)
    return _finding("language", f"reasoning: {fault}" if fault else "")


def check_deliberation(draft: Draft) -> Finding:
    """No left-over thinking: second thoughts, talk to oneself, to a user or about the task."""
    return _finding("deliberation", _found(DELIBERATION, tidy(without_quotes(draft.reasoning))))


def check_captions(draft: Draft) -> Finding:
    """The reasoning does not speak of captions, numbered clips, descriptions or other notes in place of the video."""
    return _finding("captions", _note_in(draft.reasoning))


def check_asked_captions(draft: Draft) -> Finding:
    """The check `captions`, of question and options, which are never rewritten."""
    return _finding("captions", next((fault for text in (draft.question, *draft.options) if (fault := _note_in(text))), ""))


def _note_in(text: str) -> str:
    plain = tidy(without_quotes(text))
    if not CAPTIONS.search(plain):
        return ""
    for sentence in sentences(plain):
        match = CAPTIONS.search(sentence)
        if match and not (VOICED.search(match[0]) and VOICE.search(sentence)):
            return _told(match, sentence)
    return ""


def check_letters(draft: Draft) -> Finding:
    """The reasoning names no option by its letter or place: both change."""
    text = tidy(draft.reasoning)
    return _finding("letters", _found(LETTER_NAMES, text) or _labelled_option(text, draft.options))


def _labelled_option(text: str, options: Sequence[str]) -> str:
    """A letter with the text of an option behind it: `B street`, `A. cave`. `A street` has an article."""
    for match in LABEL.finditer(text):
        rest = text[match.end() :].casefold()
        for option in filter(None, map(str.casefold, options)):
            if rest.startswith(option) and not rest[len(option) : len(option) + 1].isalnum() and match[0] != "A ":
                return _told(match, text)
    return ""


def check_times(draft: Draft, duration_s: float) -> Finding:
    """Times that the reasoning cites (`12.0 s - 22.0 s`, `at 12 s`) are inside the video."""
    for match in TIMES.finditer(tidy(without_quotes(draft.reasoning))):
        if any(float(number) > duration_s + TOLERANCE_S for number in match.groups() if number):
            return _finding("times", f"{excerpt(match[0])} is beyond the video, which has {duration_s:.1f} s")
    return _finding("times", "")


def check_conclusion(draft: Draft) -> Finding:
    """The reasoning does not end with another option than the key.

    Only what is plain is found. The last sentence has the words of another option and not those of the key, and denies nothing. It says
    that it concludes (`So ...`), or the key stands nowhere in the reasoning.
    """
    key = draft.answer.casefold()
    last = (sentences(draft.reasoning) or [""])[-1]
    if not draft.options or key in last.casefold() or DENIES.search(last):
        return _finding("conclusion", "")
    if not CONCLUDES.match(last) and key in draft.reasoning.casefold():
        return _finding("conclusion", "")
    said, answer, asked = words_of(ASIDE.sub(" ", last)), words_of(draft.answer), words_of(draft.question)
    for option in draft.options:
        part = words_of(option)
        telling = max(map(len, part), default=0) >= MIN_TELLING_CHARS and not set(part) <= set(answer)
        if option != draft.answer and telling and contains(said, part) and not contains(said, answer) and not contains(asked, part):
            return _finding("conclusion", f"it ends with {excerpt(option)}, and the key is {excerpt(draft.answer)}")
    return _finding("conclusion", "")


def _found(pattern: re.Pattern[str] | Phrases, text: str) -> str:
    match = pattern.search(text)
    return _told(match, text) if match else ""


def _told(match: re.Match[str], text: str) -> str:
    """The place with a few words around it."""
    return excerpt(text[max(0, match.start() - 15) : match.end() + 30])


def _finding(check: str, fault: str) -> Finding:
    return Finding(check, passed=not fault, detail=fault)
