"""One request to a server, by the `openai` library, and everything that can come of it. No try is repeated here, and nothing is kept."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from itertools import cycle
from typing import Any

import openai

from longtake.config.env import api_key
from longtake.config.llm import EndpointConfig
from longtake.errors import one_line
from longtake.llm.faults import Fault
from longtake.llm.hide_keys import hider, without_key_likes
from longtake.llm.limits import retry_after

CONNECT_S = 10.0
"""A server that is there takes a connection at once."""
KEEP_S = 2.0
"""Idle connections are closed by us before a server does (vLLM: after 5 s), which would break a request just being sent."""
POOL = 32
"""Calls in flight that share a pool of connections: the library looks at all connections of a pool for every request."""
RETRIED = frozenset({408, 409, 425, 429})
"""Of 4xx: the same request may succeed later."""
FINISHES = frozenset({"stop", "length", "content_filter", "tool_calls", "function_call"})
_LOGGERS = ("openai", "httpx", "httpx2", "httpcore", "httpcore2")
_UNREACHABLE = ("ConnectError", "ConnectTimeout")
_RAW = "X-Stainless-Raw-Response"
"""The library then hands on what came as it came: its types and checks would take a third of a call's time, and ours come anyway."""
_SHOWN = 400


@dataclass(frozen=True)
class Completion:
    """What a model said."""

    text: str
    finish: str
    """One of FINISHES, or `other`."""
    refused: bool
    usage: tuple[int, int] | None
    """Tokens of question and answer; None: the server does not tell."""


class ChatServer:
    """The server of an endpoint. `close` it in the loop in which it was used."""

    def __init__(self, config: EndpointConfig) -> None:
        """Raises ConfigError for a key that cannot be sent."""
        key = api_key(config.key_variable)
        self.has_key = key is not None
        self.hide = hider(key)
        self._config = config
        pools = [_open(config, key) for _ in range(-(-config.concurrency // POOL))]
        self._pools = cycle(pools)
        self._opened = pools
        self._headers: dict[str, str | openai.Omit] = {_RAW: "true"} | ({} if key else {"Authorization": openai.Omit()})
        """Without a key none is sent, not even a stand-in for one."""

    async def complete(self, body: Mapping[str, Any]) -> Completion | Fault:
        """`body`: of the request."""
        http = next(self._pools)
        got = await self._sent(http.post("/chat/completions", body=body, cast_to=object, options={"headers": self._headers}))
        if isinstance(got, Fault):
            return got
        try:
            return self._completion(json.loads(got))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            return self._strange(got)

    async def model_names(self) -> list[str] | Fault:
        """What the server lists."""
        got = await self._sent(next(self._pools).get("/models", cast_to=object, options={"headers": self._headers}))
        if isinstance(got, Fault):
            return got
        try:
            return [self.hide(one_line(str(model["id"]))) for model in json.loads(got)["data"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            return self._strange(got)

    async def close(self) -> None:
        for http in self._opened:
            await http.close()

    async def _sent(self, request: Awaitable[Any]) -> bytes | Fault:
        """The bytes of an answer with status 2xx."""
        try:
            async with asyncio.timeout(self._config.timeout_s):
                raw = await request
            return bytes(raw.http_response.content)
        except (TimeoutError, openai.APITimeoutError) as error:
            if type(error.__cause__).__name__ in _UNREACHABLE:
                return Fault("connection", f"no connection within {CONNECT_S:g} s", retried=True, unreachable=True)
            return Fault("timeout", f"no answer within {self._config.timeout_s:g} s", retried=True)
        except openai.APIStatusError as error:
            return self._refusal(error.response.status_code, error.response.content, error.response.headers)
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            told = self._clean(f"{type(cause).__name__}: {cause}".rstrip(": "))
            return Fault("connection", told, retried=True, unreachable=type(cause).__name__ in _UNREACHABLE)

    def _completion(self, told: Any) -> Completion:
        """Raises one of several errors for what is no completion."""
        choice = told["choices"][0]
        message = choice["message"]
        content, finish = message["content"], choice.get("finish_reason")
        if isinstance(content, list):
            content = "".join(part["text"] for part in content if part.get("type") == "text")
        if content is not None and not isinstance(content, str):
            raise TypeError("content is a text")
        refusal = message.get("refusal") or ""
        return Completion(
            text=self.hide(content or str(refusal)),
            finish=finish if finish in FINISHES else "other",
            refused=bool(refusal),
            usage=_usage(told.get("usage")),
        )

    def _strange(self, content: bytes) -> Fault:
        """Status 200 and no completion: a proxy's page, half an answer, or an error that a relay passes on (it stands in for a status)."""
        error = _error_of(content)
        code = error.get("code")
        if isinstance(code, int) and 400 <= code < 600:
            return self._refusal(code, content, {})
        told = self._clean(_message_of(content))
        return Fault("garbled", f"status 200, but no chat completion: {told or 'nothing'}", retried=True, status=200)

    def _refusal(self, status: int, content: bytes, headers: Mapping[str, str]) -> Fault:
        message = self._clean(_message_of(content)) or _phrase(status)
        return Fault(
            f"http_{status}",
            message,
            retried=status in RETRIED or status >= 500,
            status=status,
            after_s=retry_after(headers, time.time()),
            no_credit=status == HTTPStatus.PAYMENT_REQUIRED or _error_of(content).get("code") == "insufficient_quota",
        )

    def _clean(self, text: str) -> str:
        return one_line(without_key_likes(self.hide(text)))[:_SHOWN]


def _open(config: EndpointConfig, key: str | None) -> openai.AsyncOpenAI:
    """Without the library's own retries, which nobody would count, and without what it reads from the environment by itself."""
    for name in _LOGGERS:  # at a lower level they write every request, some with its headers
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.level, logging.WARNING))
    connections = type(openai.DEFAULT_CONNECTION_LIMITS)(
        max_connections=config.concurrency + 1, max_keepalive_connections=config.concurrency + 1, keepalive_expiry=KEEP_S
    )
    http = openai.AsyncOpenAI(
        base_url=config.url,
        api_key=key or "none",
        max_retries=0,
        timeout=openai.Timeout(config.timeout_s, connect=min(CONNECT_S, config.timeout_s)),
        http_client=openai.DefaultAsyncHttpxClient(limits=connections),
    )
    http.organization = http.project = None
    return http


def _usage(told: Any) -> tuple[int, int] | None:
    if not isinstance(told, dict):
        return None
    counts = (told.get("prompt_tokens"), told.get("completion_tokens", 0))
    asked, answered = counts
    if type(asked) is not int or type(answered) is not int or asked < 0 or answered < 0:
        return None
    return asked, answered


def _error_of(content: bytes) -> dict[str, Any]:
    """The error object of an answer; empty where there is none."""
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    error = told.get("error", told) if isinstance(told, dict) else {}
    return error if isinstance(error, dict) else {"message": error}


def _message_of(content: bytes) -> str:
    error = _error_of(content)
    for name in ("message", "detail", "msg"):
        if isinstance(error.get(name), str):
            return str(error[name])
    return content[: 4 * _SHOWN].decode("utf-8", "replace")


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "no message"
