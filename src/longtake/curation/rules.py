"""Checks without a model, on what rewriting does not change: pure functions of a row, each one Finding."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from longtake.config.curate import QuestionConfig
from longtake.curation.duplicates import same_question
from longtake.curation.language import foreign
from longtake.curation.plain import bare, contains, excerpt, sentences, words_of
from longtake.curation.records import LETTERS, Draft, Finding, TimeRange
from longtake.curation.schemas import NUM_OPTIONS
from longtake.data.rows import parse_options
from longtake.errors import RowError

TOLERANCE_S = 0.5
"""Evidence may be said to end so much after the video: times are cited in round numbers."""
COMBINES = re.compile(
    r"\b(?:all|none|both|neither|any|some|each|either|two|three) (?:of|among) (?:the |these |those )?(?:other )?"
    r"(?:(?:above|below|options?|answers?|choices)\b|(?:others|listed|given|previous)\W*$)"
    r"|^\W*(?:all|none|any|both|neither) of (?:these|those)(?: \w+)?\W*$|^\W*(?:all|none|any) of them\W*$"
    r"|^\W*(?:all|none|both|neither|either) of the (?:first|last|other) (?:two|three)\W*$"
    r"|^\W*(?:all|none|both|neither|either) (?:the )?(?:above|below)\b"
    r"|^\W*(?:both|either|neither|only|just)?\s*(?:options? |answers? )?\(?[A-H]\)?\s*(?:and|or|nor|&|,)\s*\(?[A-H]\)?\W*$"
    r"|\boptions? \(?(?-i:[A-H])\)?(?!\w)"
    r"|\b(?:cannot|can't|can not|could not) be (?:determined|answered|known)\b|\bnot enough information\b",
    re.IGNORECASE,
)
"""`All of the above`, `both A and B`, and what is right whatever the video shows."""
OUR_TAGS = re.compile(r"</?\s*(?:think|answer|video|image)\b[^>]*>|<\|", re.IGNORECASE)
"""Would be read as part of the form of a response, or as a place of a video."""
ASKING_MARKS = ("?", "\uff1f", "\u061f", "\u037e", "\u055e")
IMPERATIVES = frozenset(
    """arrange choose classify compare complete count describe determine explain find give identify infer judge list match name order
    pick place point put rank recall rearrange say select sort state summarise summarize tell trace""".split()  # noqa: SIM905
)
GAP = re.compile(r"_{2,}|\.{3}|\u2026")
LONE_LETTER = re.compile(r"\(?[A-H][.)]?", re.IGNORECASE)
MAX_ANSWER_WORDS = 40
"""Of an open-ended answer: an order of many events takes as many."""
MIN_SENTENCE_WORDS = 4
MIN_TELLING_CHARS = 3
"""An answer of shorter words (`2`, `no`) stands in many questions by chance."""


def check_options(draft: Draft, config: QuestionConfig) -> Finding:
    """Of a multiple-choice question: four, none empty, too long or on several lines, all different, none about the others.

    The row must also read back as it is published: no line of question or options may look like another option.
    """
    return _finding("options", _fault_of_options(draft, config) if draft.options else "")


def _fault_of_options(draft: Draft, config: QuestionConfig) -> str:
    options = draft.options
    if len(options) != NUM_OPTIONS:
        return f"{len(options)} options, not {NUM_OPTIONS}"
    if fault := next((fault for one in options if (fault := _fault_of_text(one, config.max_option_chars))), ""):
        return f"an option {fault}"
    folded = [bare(option) for option in options]
    for index, one in enumerate(folded):
        if one in folded[:index]:
            return f"two options are the same: {excerpt(options[folded.index(one)])} and {excerpt(options[index])}"
    if combined := next((one for one in options if COMBINES.search(one)), None):
        return f"an option is about the others, or about knowing: {excerpt(combined)}"
    if lone := next((one for one in options if LONE_LETTER.fullmatch(one.strip())), None):
        return f"an option is a letter: {excerpt(lone)}"
    return "" if _reads_back(draft) else "question and options do not read back as they were written"


def _reads_back(draft: Draft) -> bool:
    lines = "".join(f"\n{LETTERS[index]}. {option}" for index, option in enumerate(draft.options))
    try:
        read = parse_options(f"{draft.question}{lines}", "draft")
    except RowError:
        return False
    return tuple(option.text for option in read) == draft.options


def check_answer(draft: Draft, config: QuestionConfig) -> Finding:
    """The key is one of the options; that of an open-ended question is a short text that cannot be taken for a letter."""
    if draft.options:
        return _finding("answer", "" if draft.answer in draft.options else f"the key is none of the options: {excerpt(draft.answer)}")
    fault = _fault_of_text(draft.answer, config.max_option_chars)
    if not fault and (is_paragraph(draft.answer) or len(draft.answer.split()) > MAX_ANSWER_WORDS):
        fault = f"is no short one: {excerpt(draft.answer)}"
    if not fault and (LONE_LETTER.fullmatch(draft.answer.strip()) or COMBINES.search(draft.answer)):
        fault = f"{excerpt(draft.answer)} is no answer by itself"
    return _finding("answer", f"answer {fault}" if fault else "")


def is_paragraph(text: str) -> bool:
    """Whether there is more than one sentence. `He met Dr. Smith.` is one."""
    return sum(len(sentence.split()) >= MIN_SENTENCE_WORDS for sentence in sentences(text)) > 1


def check_question(draft: Draft, config: QuestionConfig) -> Finding:
    """It asks something, on one line of sensible length, and does not contain its own answer."""
    return _finding("question", _fault_of_question(draft, config))


def _fault_of_question(draft: Draft, config: QuestionConfig) -> str:
    question = draft.question
    if fault := _fault_of_text(question, config.max_question_chars):
        return f"question {fault}"
    if not draft.options and not _reads_back(draft):
        return "a part of the question looks like an option"
    if config.language == "en" and not asks(question):
        return f"it asks nothing: {excerpt(question)}"
    if gives_away(draft):
        return f"the question contains its answer, {excerpt(draft.answer)}, and no other option"
    return ""


def asks(question: str) -> bool:
    """Whether an English text has a question mark, a gap to fill, or tells to do something."""
    if any(mark in question for mark in ASKING_MARKS) or GAP.search(question):
        return True
    starts = re.findall(r"(?:^|[.!:,;]\s+)(?:please |then |now )?([a-z]+)", question.casefold())
    return any(word in IMPERATIVES for word in starts)


def gives_away(draft: Draft) -> bool:
    """Whether the answer's words stand in the question in one piece, and those of no other option do.

    A question that offers its answer among others (`... the key or the cup?`) does not give it away.
    """
    words, answer = words_of(draft.question), words_of(draft.answer)
    if max(map(len, answer), default=0) < MIN_TELLING_CHARS or not contains(words, answer):
        return False
    others = [option for option in draft.options if option != draft.answer]
    return not any(contains(words, words_of(option)) for option in others) and (bool(others) or "or" not in words)


def check_ranges(draft: Draft, duration_s: float) -> Finding:
    """At least one, each with a start before its stop, inside the video (TOLERANCE_S beyond its ends)."""
    if not draft.ranges:
        return _finding("ranges", "no range is cited")
    faults = (_fault_of_range(one, duration_s) for one in draft.ranges)
    return _finding("ranges", next((fault for fault in faults if fault), ""))


def _fault_of_range(one: TimeRange, duration_s: float) -> str:
    told = f"{one.start_s:g} s - {one.stop_s:g} s"
    if not (math.isfinite(one.start_s) and math.isfinite(one.stop_s)) or one.start_s >= one.stop_s:
        return f"{told} is no range"
    if one.start_s < -TOLERANCE_S or one.stop_s > duration_s + TOLERANCE_S or one.start_s >= duration_s:
        return f"{told} is outside the video, which has {duration_s:.1f} s"
    return ""


def check_language(draft: Draft, config: QuestionConfig) -> Finding:
    """Of the question. Options and answers may be names."""
    fault = foreign(draft.question, config.language)
    return _finding("language", f"question: {fault}" if fault else "")


def check_duplicate(draft: Draft, earlier: Sequence[Draft], similar: float) -> Finding:
    """No earlier question about the video is the same up to its wording, with the same answer."""
    twin = next((other for other in earlier if same_question(draft, other, similar)), None)
    return _finding("duplicate", f"the same as {excerpt(twin.question)} ({twin.key})" if twin else "")


def _fault_of_text(text: str, max_chars: int) -> str:
    """Of what stands on one line of a published row; empty when there is none."""
    if not any(char.isalnum() for char in text):
        return "is empty"
    if len(text.splitlines()) > 1:
        return f"has several lines: {excerpt(text)}"
    if OUR_TAGS.search(text):
        return f"has a tag: {excerpt(text)}"
    return f"has {len(text)} characters, more than {max_chars}" if len(text) > max_chars else ""


def _finding(check: str, fault: str) -> Finding:
    return Finding(check, passed=not fault, detail=fault)
