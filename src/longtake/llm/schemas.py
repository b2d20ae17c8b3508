"""What an answer says: its JSON is found and checked here, whatever the server promised."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator

from longtake.errors import one_line

MAX_STARTS = 64
"""Places in a text at which an object is looked for."""
_SHOWN = 160
_THINK_END = "</think>"
_FENCE = re.compile(r"```[a-zA-Z]*\s*\n(.*?)```", re.DOTALL)
_HALF_PAIR = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, eq=False)
class Good:
    """Satisfies its schema."""

    value: Any


@dataclass(frozen=True)
class Bad:
    """`length`, `refused`, `not_json` or `schema`, and why, on one line."""

    kind: str
    message: str


def read_answer(text: str, finish: str, refused: bool, schema_text: str, whole: bool = False) -> Good | Bad:
    """`finish`: the server's reason. `schema_text`, `whole`: of the ChatCall."""
    if finish == "length":
        return Bad("length", f"it was cut off after {len(text)} characters")
    if refused or finish == "content_filter":
        return Bad("refused", f"the model or its server refused: {_shown(text)}")
    try:
        value = _decoded(without_thoughts(text)) if whole else find_json(text)
    except ValueError as error:
        return Bad("not_json", f"{error}: {_shown(text)}")
    for fault in _validator(schema_text).iter_errors(value):
        return Bad("schema", f"at {fault.json_path}: {_shown(fault.message)}")
    return Good(value)


def find_json(text: str) -> Any:
    """The JSON that a text is or holds: behind a `<think>` block, inside a fence, or the last object in it. Raises ValueError."""
    bare = without_thoughts(text)
    for candidate in (bare, *reversed(_FENCE.findall(bare))):
        try:
            return _decoded(candidate)
        except ValueError:
            continue
    return _last_object(bare)


def without_thoughts(text: str) -> str:
    """A reasoning model's answer alone. Chat templates may open the block themselves, so only its end is certain; where even that is
    missing nothing was answered."""
    if text.lstrip().startswith(("{", "[")):
        return text
    _, end, after = text.rpartition(_THINK_END)
    if end:
        return after
    return "" if text.lstrip().startswith("<think>") else text


def instruction(schema_text: str) -> str:
    """For servers that are not told the schema apart."""
    return f"Answer with one JSON object that satisfies this JSON schema, and with nothing else:\n{schema_text}"


def _last_object(text: str) -> Any:
    found: list[Any] = []
    start = text.find("{")
    for _ in range(MAX_STARTS):
        if start < 0:
            break
        try:
            value, stop = _DECODER.raw_decode(text, start)
            found.append(value)
        except (ValueError, RecursionError):
            stop = start + 1
        start = text.find("{", stop)
    if not found:
        raise ValueError("it holds no JSON object")
    return _written(found[-1], text)


def _decoded(text: str) -> Any:
    try:
        return _written(_DECODER.decode(text), text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _written(value: Any, text: str) -> Any:
    """The value, if it can be written again: half a surrogate pair, which only escapes can spell, is no text."""
    if ("\\u" in text or _HALF_PAIR.search(text)) and _HALF_PAIR.search(json.dumps(value, ensure_ascii=False)):
        raise ValueError("it holds half a surrogate pair")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{_shown(text)} is no number that can be kept")
    return number


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite, strict=False)


@lru_cache(maxsize=256)
def _validator(schema_text: str) -> Draft202012Validator:
    schema = json.loads(schema_text)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def _shown(text: str) -> str:
    return one_line(text[:_SHOWN]) or "nothing"
