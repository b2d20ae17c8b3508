"""A call as the server gets it, and the key under which its answer is kept."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from longtake.config.llm import EndpointConfig
from longtake.llm.calls import ChatCall
from longtake.llm.schemas import instruction
from longtake.observe.digest import digest_of

SEED_STEP = 1_000_003
"""Between the seeds of attempts: far from those of samples."""
AGAIN_TEMPERATURE = 0.5
"""Of attempts after a bad answer, at least: at 0 the same answer would come, and be paid, again."""
OUTPUT_FIELD = "max_completion_tokens"
"""In place of max_tokens where extra_body has it: newer models of OpenAI refuse the older name."""


def call_digest(call: ChatCall, model: str, extra_body: Mapping[str, Any]) -> str:
    """Names what is asked, with all that decides the answer; the server's address does not."""
    extra = json.dumps(extra_body, sort_keys=True)
    system = None if call.system is None else _text(call.system)
    parts = [part if isinstance(part, bytes) else _text(part) for part in call.parts]
    settings = (call.schema_text, float(call.temperature), call.max_tokens, call.sample)
    return digest_of("llm call 1", model, system, parts, *settings, extra)


def attempt_key(digest: str, attempt: int) -> str:
    """Of the answer to one attempt at a call."""
    return digest_of(digest, attempt)


def request_body(call: ChatCall, attempt: int, model: str, config: EndpointConfig) -> dict[str, Any]:
    """JSON of a chat completion."""
    body: dict[str, Any] = {
        "model": model,
        "messages": _messages(call, config),
        "temperature": max(call.temperature, AGAIN_TEMPERATURE) if attempt else call.temperature,
        "seed": call.sample + attempt * SEED_STEP,
    }
    if OUTPUT_FIELD not in config.extra_body:
        body["max_tokens"] = call.max_tokens
    if config.structured == "json_schema":
        told = {"name": call.purpose, "schema": call.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": told}
    elif config.structured == "json_object":
        body["response_format"] = {"type": "json_object"}
    return body | config.extra_body


def output_limit(call: ChatCall, config: EndpointConfig) -> int:
    """Most tokens of the answer."""
    told = config.extra_body.get(OUTPUT_FIELD)
    return told if isinstance(told, int) else call.max_tokens


def _messages(call: ChatCall, config: EndpointConfig) -> list[dict[str, Any]]:
    parts = call.parts if config.structured == "json_schema" else (*call.parts, instruction(call.schema_text))
    content: Any = [_part(part) for part in parts] if call.num_images else _text("\n".join(map(str, parts)))
    system = [] if call.system is None else [{"role": "system", "content": _text(call.system)}]
    return [*system, {"role": "user", "content": content}]


def _part(part: str | bytes) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": _text(part)}
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(part).decode()}"}}


def _text(text: str) -> str:
    """With `?` for halves of surrogate pairs, which no request can hold."""
    return text.encode("utf-8", "replace").decode()
