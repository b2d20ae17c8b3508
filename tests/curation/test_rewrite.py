"""Rewriting changes the reasoning and nothing else."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from typing import Any

import jsonschema
import pytest

from longtake.config.curate import QuestionConfig
from longtake.curation.prompts import Prompts
from longtake.curation.records import Draft, Drop, TimeRange, named, to_json
from longtake.curation.rewrite import rewrite
from longtake.llm.calls import Answer, CallFailure, ChatCall

CONFIG = QuestionConfig()
DRAFT = named(
    Draft(
        video="secret_name.mp4",
        digest="d" * 64,
        category="spatial",
        question="Where did the red square take the key?",
        options=("hall", " caf\u00e9 ", "street", "beach"),
        answer=" caf\u00e9 ",
        reasoning="The captions say that the key is taken in the caf\u00e9 (12.04 s - 22.0 s).",
        ranges=(TimeRange(12.04, 22.0), TimeRange(0.1 + 0.2, 3.0)),
    )
)


def rewritten(answer: Any, draft: Draft = DRAFT) -> tuple[Draft | Drop, ChatCall]:
    calls: list[ChatCall] = []

    async def ask(call: ChatCall) -> Answer | CallFailure:
        calls.append(call)
        if isinstance(answer, CallFailure):
            return answer
        jsonschema.validate(answer, dict(call.schema))
        return Answer(answer, 1, 1, cached=False)

    result = asyncio.run(rewrite(draft, CONFIG, Prompts(), ask))
    (call,) = calls
    return result, call


def test_only_the_reasoning_changes():
    result, _ = rewritten({"reasoning": " I see the square take the key in the caf\u00e9 (12.0 s - 22.0 s). "})
    assert isinstance(result, Draft)
    before, after = to_json(DRAFT), to_json(result)
    assert after.pop("reasoning") == "I see the square take the key in the caf\u00e9 (12.0 s - 22.0 s)."
    before.pop("reasoning")
    assert after == before and result.key == DRAFT.key and result.options[1] == " caf\u00e9 " and result.ranges == DRAFT.ranges
    assert {field.name for field in fields(Draft)} == {*after, "reasoning"}


def test_what_is_asked():
    _, call = rewritten({"reasoning": "I see it."})
    assert call.purpose == "rewrite" and call.temperature == 0.7
    lines = call.text.splitlines()
    at = lines.index("<options>")
    assert lines[at + 1 : at + 6] == ["A. hall", "B. caf\u00e9", "C. street", "D. beach", "</options>"]
    at = lines.index("<ranges>")
    assert lines[at + 1 : at + 4] == ["12.0 s - 22.0 s", "0.3 s - 3.0 s", "</ranges>"]
    assert "<answer>" in lines and "<reasoning>" in lines and "secret_name" not in call.text and "$" not in call.text


def test_an_open_ended_row_has_no_options_to_show():
    draft = named(Draft("v", "d", "goal", "Why?", (), "to use it", "It is used (1.0 s - 2.0 s).", (TimeRange(1.0, 2.0),)))
    result, call = rewritten({"reasoning": "I see it being used."}, draft)
    assert isinstance(result, Draft) and result.options == () and "<options>" not in call.text


def test_a_failed_call_costs_the_row_and_keeps_it_to_be_looked_at():
    result, _ = rewritten(CallFailure("timeout", "no answer in 600 s", tries=7))
    assert result == Drop("rewrite", "timeout", "no answer in 600 s", DRAFT.video, DRAFT.key, "spatial", DRAFT)


def test_text_that_cannot_be_written_costs_the_row():
    result, _ = rewritten({"reasoning": "I see \x00 it."})
    assert isinstance(result, Drop) and result.reason == "text" and result.draft == DRAFT


def test_too_long_is_refused_by_the_schema():
    with pytest.raises(jsonschema.ValidationError):
        rewritten({"reasoning": "x" * 4001})
