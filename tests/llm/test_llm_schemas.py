"""Answers: JSON is found where models put it, checked whatever a server promised, and nothing else passes."""

from __future__ import annotations

import json

import pytest
from jsonschema import SchemaError

from longtake.llm.schemas import Bad, Good, find_json, instruction, read_answer, without_thoughts
from longtake.testing.llm_calls import CAPTION

SCHEMA = CAPTION.schema_text
GOOD = '{"caption": "a red cube"}'


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"  \n{GOOD}\n",
        f"```json\n{GOOD}\n```",
        f"Here you are:\n```\n{GOOD}\n```\nAnything else?",
        f"Sure! {GOOD} I hope this helps.",
        f'<think>Perhaps {{"caption": "a blue cube"}}?</think>\n{GOOD}',
        f'Perhaps {{"caption": "a blue cube"}}? No.</think>{GOOD}',
        f"<think>one</think> so <think>two</think>\n```json\n{GOOD}\n```",
        f'First {{"caption": "a blue cube"}}, but better {GOOD}',
        f'```json\n{{"caption": "a blue cube"}}\n```\nCorrected:\n```json\n{GOOD}\n```',
        f"{{not json}} {GOOD}",
    ],
)
def test_json_is_found(text: str) -> None:
    found = read_answer(text, "stop", False, SCHEMA)
    assert isinstance(found, Good) and found.value == {"caption": "a red cube"}


def test_tags_inside_the_json_are_text() -> None:
    text = json.dumps({"caption": "<think>x</think> ``` y"})
    found = read_answer(text, "stop", False, SCHEMA)
    assert isinstance(found, Good) and found.value == {"caption": "<think>x</think> ``` y"}


@pytest.mark.parametrize(
    ("text", "kind", "told"),
    [
        ("", "not_json", "nothing"),
        ("a red cube", "not_json", "a red cube"),
        ('{"caption": "a red', "not_json", "no JSON object"),
        (f"<think>I am still thinking of {GOOD}", "not_json", "no JSON object"),
        ('{"caption": NaN}', "not_json", "no JSON object"),
        ('{"caption": "\\ud800"}', "not_json", "surrogate"),
        ('{"caption": "\ud800"}', "not_json", "surrogate"),
        ("{" * 100_000, "not_json", "no JSON object"),
        ("[" * 100_000, "not_json", "no JSON object"),
        ('{"a":' * 100_000, "not_json", "no JSON object"),
        ('{"caption": 3}', "schema", r"at $.caption: 3 is not of type 'string'"),
        ("{}", "schema", "'caption' is a required property"),
        ('{"caption": "x", "more": 1}', "schema", "Additional properties"),
        (json.dumps({"caption": "x" * 41}), "schema", "too long"),
        ('["caption"]', "schema", "at $:"),
        ("null", "schema", "at $:"),
    ],
)
def test_anything_else_is_bad(text: str, kind: str, told: str) -> None:
    found = read_answer(text, "stop", False, SCHEMA)
    assert isinstance(found, Bad) and found.kind == kind and told in found.message
    assert "\n" not in found.message and len(found.message) < 400


def test_infinite_numbers_are_none() -> None:
    schema = json.dumps({"type": "array", "items": {"type": "number"}})
    assert isinstance(read_answer("[1e3]", "stop", False, schema), Good)
    assert isinstance(read_answer("[1e999]", "stop", False, schema), Bad)


def test_what_was_cut_off_or_refused_is_not_looked_at() -> None:
    assert read_answer(GOOD, "length", False, SCHEMA) == Bad("length", "it was cut off after 25 characters")
    for finish, refused in (("stop", True), ("content_filter", False)):
        found = read_answer(GOOD, finish, refused, SCHEMA)
        assert isinstance(found, Bad) and found.kind == "refused"
    assert isinstance(read_answer(GOOD, "other", False, SCHEMA), Good)


def test_thoughts() -> None:
    assert without_thoughts("<think>a</think>b") == "b"
    assert without_thoughts("b") == "b"
    assert without_thoughts(" <think>a") == ""


def test_a_text_without_objects_raises() -> None:
    assert find_json("x [1] {}") == {}
    with pytest.raises(ValueError, match="no JSON object"):
        find_json("x [1]")


def test_an_impossible_schema_is_told_at_once() -> None:
    with pytest.raises(SchemaError, match="'nothing' is not valid"):
        read_answer("{}", "stop", False, '{"type": "nothing"}')


def test_the_instruction_holds_the_schema() -> None:
    assert instruction(SCHEMA).endswith(f"\n{SCHEMA}")
