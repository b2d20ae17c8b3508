"""Calls for tests of the client, and a client that asks a few and is closed again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from longtake.config.llm import EndpointConfig
from longtake.llm.calls import Answer, CallFailure, ChatCall
from longtake.llm.client import Budget, LlmClient
from longtake.observe.keyed_lines import KeyedLines

CAPTION = ChatCall(
    "caption",
    ("What is seen?",),
    {
        "type": "object",
        "properties": {"caption": {"type": "string", "maxLength": 40}},
        "required": ["caption"],
        "additionalProperties": False,
    },
    max_tokens=50,
)
"""A call; `caption_call` makes others."""


def caption_call(text: str, **fields: Any) -> ChatCall:
    """Another question with the same schema; `fields` of ChatCall."""
    return replace(CAPTION, parts=(text,), **fields)


def endpoint(url: str, **fields: Any) -> EndpointConfig:
    """An endpoint that loses no time between tries."""
    return EndpointConfig(**{"url": url, "model": "stand-in", "backoff_s": 0.001, "timeout_s": 20.0, **fields})


def asked(
    config: EndpointConfig, folder: Path, calls: Sequence[ChatCall], budget: Budget | None = None, writer: str = "test"
) -> tuple[list[Answer | CallFailure], LlmClient]:
    """The answers, by a client of their own over `folder`, which is closed then. Raises what it raises."""

    async def ask_all() -> tuple[list[Answer | CallFailure], LlmClient]:
        with KeyedLines(folder, writer) as store:
            async with LlmClient(config, store, budget) as client:
                return list(await asyncio.gather(*map(client.ask, calls))), client

    return asyncio.run(ask_all())
