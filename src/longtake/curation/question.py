"""Questions invented from what was seen in a video: one call per category and kind, one bad question costing its own row alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from longtake.config.curate import QuestionConfig
from longtake.curation.caption import UNWRITABLE
from longtake.curation.prompts import Prompts, block, caption_lines, object_lines, video_line
from longtake.curation.records import LETTERS, Box, Caption, Draft, Drop, Outcome, SourceVideo, TimeRange, named
from longtake.curation.schemas import choice_schema, open_schema
from longtake.llm.calls import Ask, CallFailure, ChatCall
from longtake.llm.prompts import flat

Kind = Literal["choice", "open"]
CHARS_PER_TOKEN = 2
"""Answers are given room for texts of so few characters per token (English has 4), so that length alone never cuts a good one."""
TOKENS_AROUND = 200
"""Room for names, marks and numbers of one question."""
LABEL = re.compile(r"\s*\(?([A-Ha-h])\s*[.):]\)?\s+")
"""`A. `, `(A) `, `a) ` before an option."""


async def draft_questions(
    video: SourceVideo,
    captions: Sequence[Caption],
    boxes: Sequence[Box],
    category: str,
    kind: Kind,
    count: int,
    config: QuestionConfig,
    prompts: Prompts,
    ask: Ask,
) -> Outcome[Draft]:
    """Up to `count` questions of one category about one video, in the order of the answer.

    A call that failed is one Drop, with the kind of the failure as its reason; a question that makes no record (text that cannot be
    written, numbers that are none) is one of its own. Raises BudgetError as `ask` does.
    """
    if count == 0:
        return Outcome()
    answer = await ask(question_call(video, captions, boxes, category, kind, count, config, prompts))
    if isinstance(answer, CallFailure):
        told = f"{count} {_named_kind(kind)} of category {category}: {answer.message}"
        return Outcome(dropped=(Drop("question", answer.kind, told, video.video, category=category),))
    made = without_repeats([_draft(video, category, item) for item in answer.value["questions"]])
    return Outcome(tuple(one for one in made if isinstance(one, Draft)), tuple(one for one in made if isinstance(one, Drop)))


def without_repeats(made: Sequence[Draft | Drop]) -> list[Draft | Drop]:
    """The same question word for word a second time, which some models do not stop giving, is a drop: two rows cannot share a key."""
    keys: set[str] = set()
    found: list[Draft | Drop] = []
    for one in made:
        if isinstance(one, Draft) and one.key in keys:
            found.append(Drop("question", "repeated", f"given twice in one answer: {one.question}", one.video, category=one.category))
            continue
        if isinstance(one, Draft):
            keys.add(one.key)
        found.append(one)
    return found


def question_call(
    video: SourceVideo,
    captions: Sequence[Caption],
    boxes: Sequence[Box],
    category: str,
    kind: Kind,
    count: int,
    config: QuestionConfig,
    prompts: Prompts,
) -> ChatCall:
    """What `draft_questions` asks. Boxes are shown for spatial questions alone."""
    lines = object_lines(boxes) if category == "spatial" else ""
    text = prompts.render(
        "question" if kind == "choice" else "open",
        video=block("video", video_line(video.duration_s)),
        captions=block("captions", caption_lines(captions)),
        objects=block("objects", lines) if lines else "",
        category=block("category", category),
        count=block("count", str(count)),
        rules=prompts.text(f"category_{category}").strip(),
        max_question_chars=config.max_question_chars,
        max_option_chars=config.max_option_chars,
        max_reasoning_chars=config.max_reasoning_chars,
        language=config.language,
    )
    texts = config.max_question_chars + config.max_reasoning_chars + config.max_option_chars * (4 if kind == "choice" else 1)
    return ChatCall(
        purpose=f"{'question' if kind == 'choice' else 'open'}_{category}",
        parts=(text,),
        schema=(choice_schema if kind == "choice" else open_schema)(count, config),
        max_tokens=count * (texts // CHARS_PER_TOKEN + TOKENS_AROUND),
        temperature=config.temperature,
    )


def _draft(video: SourceVideo, category: str, item: Mapping[str, Any]) -> Draft | Drop:
    """A row of an answer that satisfies the schema. The letter is read here and never kept: options are shuffled later."""
    options = without_labels([flat(option) for option in item.get("options", ())])
    answer = options[LETTERS.index(item["answer"])] if options else flat(item["answer"])
    draft = Draft(
        video=video.video,
        digest=video.digest,
        category=category,
        question=flat(item["question"]),
        options=tuple(options),
        answer=answer,
        reasoning=item["reasoning"].strip(),
        ranges=tuple(TimeRange(_seconds(span["start"]), _seconds(span["stop"])) for span in item["ranges"]),
    )
    if any(unwritable(text) for text in (draft.question, *draft.options, draft.answer, draft.reasoning)):
        return Drop("question", "text", "control characters, or halves of characters, in a text", video.video, category=category)
    if not all(math.isfinite(second) for one in draft.ranges for second in (one.start_s, one.stop_s)):
        return Drop("question", "ranges", f"a range with a number beyond all numbers: {draft.question}", video.video, category=category)
    return named(draft)


def without_labels(options: Sequence[str]) -> list[str]:
    """The options without letters in front, where each has the letter of its place; otherwise as they are.

    >>> without_labels(["A. hall", "B. cave"]), without_labels(["a) hall", "cave"])
    (['hall', 'cave'], ['a) hall', 'cave'])
    """
    found = [LABEL.match(option) for option in options]
    letters = [match[1].upper() if match else "" for match in found]
    if not options or letters != list(LETTERS[: len(options)]):
        return list(options)
    return [option[match.end() :] for option, match in zip(options, found, strict=True) if match]


def unwritable(text: str) -> bool:
    """Whether no UTF-8 file should hold it: halves of surrogate pairs, control characters other than tabs and ends of lines."""
    return UNWRITABLE.search(text) is not None


def _seconds(number: float) -> float:
    """JSON numbers may be whole ones of any size."""
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _named_kind(kind: Kind) -> str:
    return "multiple-choice questions" if kind == "choice" else "open-ended questions"
