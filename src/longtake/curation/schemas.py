"""JSON schemas of the answers that the language side of curation asks for. Nothing beyond what is named, and all of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longtake.config.curate import QuestionConfig
from longtake.curation.records import LETTERS

Schema = Mapping[str, Any]
NUM_OPTIONS = 4
MAX_RANGES = 12
CANNOT_TELL = "cannot tell"


def choice_schema(count: int, config: QuestionConfig) -> Schema:
    """Of up to `count` multiple-choice questions."""
    options = {"type": "array", "items": _text(config.max_option_chars), "minItems": NUM_OPTIONS, "maxItems": NUM_OPTIONS}
    answer = {"type": "string", "enum": list(LETTERS[:NUM_OPTIONS])}
    return _questions(count, config, {"options": options, "answer": answer})


def open_schema(count: int, config: QuestionConfig) -> Schema:
    """Of up to `count` open-ended questions."""
    return _questions(count, config, {"answer": _text(config.max_option_chars)})


def rewrite_schema(config: QuestionConfig) -> Schema:
    return _object({"reasoning": _text(config.max_reasoning_chars)})


def letter_schema(num_options: int, *, or_cannot_tell: bool) -> Schema:
    """Of a vote between options."""
    words = [CANNOT_TELL] if or_cannot_tell else []
    return _object({"answer": {"type": "string", "enum": [*LETTERS[:num_options], *words]}})


def text_schema(max_chars: int) -> Schema:
    """Of a guess."""
    return _object({"answer": _text(max_chars)})


def verdict_schema() -> Schema:
    """Of a vote about an answer."""
    return _object({"verdict": {"type": "string", "enum": ["yes", "no"]}})


def _questions(count: int, config: QuestionConfig, middle: dict[str, Schema]) -> Schema:
    """The parts in the order in which they are best written: the reasoning after the answer that it leads to."""
    span = _object({"start": {"type": "number"}, "stop": {"type": "number"}})
    ranges = {"type": "array", "items": span, "minItems": 1, "maxItems": MAX_RANGES}
    question = _object(
        {"question": _text(config.max_question_chars), **middle, "reasoning": _text(config.max_reasoning_chars), "ranges": ranges}
    )
    return _object({"questions": {"type": "array", "items": question, "minItems": 1, "maxItems": count}})


def _object(properties: Mapping[str, Schema]) -> Schema:
    return {"type": "object", "properties": dict(properties), "required": list(properties), "additionalProperties": False}


def _text(max_chars: int) -> Schema:
    return {"type": "string", "maxLength": max_chars}
