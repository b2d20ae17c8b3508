"""The world's oracle behind the protocol of OpenAI's chat completions.

>>> with OracleServer([Path("my_videos/train")], LieRates(captions=0.1), seed=0, ledger=Path("ledger.jsonl")) as server:
...     client = openai.OpenAI(base_url=server.url, api_key="none")

HTTP/1.1 by hand on asyncio: frameworks serve a quarter as many requests on a core.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from longtake.config.world_serve import LieRates
from longtake.errors import ConfigError
from longtake.world.oracle import Oracle
from longtake.world.oracle_request import OracleRequest, OracleRequestError

MAX_HEAD_BYTES = 1 << 16
MAX_BODY_BYTES = 256 << 20
CHARS_PER_TOKEN = 4
IMAGE_BYTES_PER_TOKEN = 64
"""What usage is counted by."""
GARBAGE = 'I am sorry, {"verdict": "ye'
"""What a model says that has lost its mind."""
FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What a mistake of ours in an answer may raise: the request gets 500, the others theirs."""


@dataclass(frozen=True)
class Reply:
    """What goes back."""

    status: int
    value: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        return json.dumps(self.value, ensure_ascii=False).encode()


class OracleServer:
    """Serves from a thread of its own while its block lasts, or from `start` to `stop`."""

    def __init__(
        self,
        worlds: Sequence[Path],
        rates: LieRates | None = None,
        seed: int = 0,
        ledger: Path | None = None,
        *,
        failures: float = 0.0,
        model: str = "world",
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """See config.world_serve for what they mean; port 0: a free one. Decodes every video once.

        Raises ConfigError for a folder that is no world, VideoError for a damaged video.
        """
        self.oracle = Oracle(worlds, rates, seed, ledger)
        self.failures, self.model, self.host, self.port = failures, model, host, port
        self.counts: Counter[str] = Counter()
        """Requests answered by HTTP status, and injected failures as `failure/<kind>`."""
        self.url = ""
        self._attempts: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="oracle-server", daemon=True)
        self._listener: asyncio.Server | None = None
        self.connections: set[_Connection] = set()

    def start(self) -> None:
        """Raises ConfigError when the address is taken."""
        try:
            making = self._loop.create_server(lambda: _Connection(self), self.host, self.port, backlog=1024)
            self._listener = self._loop.run_until_complete(making)
        except OSError as error:
            raise ConfigError(
                f"{self.host} port {self.port}: {error.strerror or error}", rule="the address is free", remedy="give another port"
            ) from error
        self.port = int(self._listener.sockets[0].getsockname()[1])
        self.url = f"http://{self.host}:{self.port}/v1"
        self._thread.start()

    def stop(self) -> None:
        """Connections are closed; a second time does nothing."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end)
            self._thread.join(10)
        if not self._loop.is_closed():
            self._loop.close()
        self.oracle.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _end(self) -> None:
        assert self._listener is not None
        self._listener.close()
        for connection in list(self.connections):
            connection.close()
        self._loop.call_soon(self._loop.stop)

    def reply_to(self, method: str, path: str, content: bytes) -> Reply:
        """To one request of any kind."""
        reply = self._reply_to(method, path.partition("?")[0].rstrip("/"), content)
        self.counts[str(reply.status)] += 1
        return reply

    def _reply_to(self, method: str, path: str, content: bytes) -> Reply:
        if path in ("/v1/models", f"/v1/models/{self.model}"):
            listed = {"id": self.model, "object": "model", "created": 0, "owned_by": "longtake"}
            return Reply(200, {"object": "list", "data": [listed]} if path == "/v1/models" else listed)
        if path == "/health":
            return Reply(200, {})
        if path != "/v1/chat/completions":
            return refusal(404, f"no such path: {path}", "not_found_error")
        if method != "POST":
            return refusal(405, f"{method} {path}: completions are asked for with POST", "invalid_request_error")
        try:
            return self._completed(json.loads(content))
        except (OracleRequestError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            return refusal(400, str(error), "invalid_request_error")
        except FAULTS as error:
            return refusal(500, f"the oracle failed: {error!r}", "server_error")

    def _completed(self, body: Any) -> Reply:
        request = read_request(body, self.model)
        if (failed := self._failure(request)) is not None:
            self.counts[f"failure/{failed}"] += 1
            if failed == "500":
                return refusal(500, "injected failure", "server_error")
            if failed == "429":
                return refusal(429, "injected failure: too many requests", "rate_limit_error", {"retry-after-ms": "10"})
            return Reply(200, completion(self.model, body, request, GARBAGE))
        return Reply(200, completion(self.model, body, request, json.dumps(self.oracle.answer(request), ensure_ascii=False)))

    def _failure(self, request: OracleRequest) -> str | None:
        """Half 500, a quarter garbage, a quarter 429: some of the judge's questions whenever they are asked, any request now and then."""
        lasting = self.oracle.rates.judge_failures if request.purpose == "judge" else 0.0
        if lasting or self.failures:
            self._attempts[request.digest] += 1
        for what, rate in (("judge failure", lasting), (f"failure {self._attempts[request.digest]}", self.failures)):
            if rate and (drawn := request.chance(self.oracle.seed, what).random()) < rate:
                return ("500", "500", "garbage", "429")[int(4 * drawn / rate)]
        return None


def read_request(body: Any, model: str) -> OracleRequest:
    """Raises OracleRequestError for a body that is no request for a chat completion, or asks for what is not offered."""
    if not isinstance(body, dict):
        raise _wrong("a body that is no JSON object")
    if body.get("model") != model:
        raise _wrong(f"model {body.get('model')!r}; there is {model!r} alone")
    if body.get("stream") or body.get("n", 1) not in (1, None):
        raise _wrong("stream or n: one whole answer is given to a request")
    schema = _at(body, "response_format", "json_schema")
    if not isinstance(schema.get("name"), str):
        raise _wrong("no response_format.json_schema.name: the oracle learns from it what is asked")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        raise _wrong("messages that are no list of messages")
    texts, images = _read_content(messages[-1].get("content"))
    seed = body.get("seed")
    return OracleRequest(schema["name"], "\n".join(texts), tuple(images), seed if isinstance(seed, int) else 0, _at(schema, "schema"))


def _at(value: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The object at that path, empty where there is none."""
    found: Any = value
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _read_content(content: Any) -> tuple[list[str], list[bytes]]:
    if isinstance(content, str):
        return [content], []
    texts: list[str] = []
    images: list[bytes] = []
    for part in content if isinstance(content, list) else [None]:
        known = part if isinstance(part, dict) else {}
        text, url = known.get("text"), _at(known, "image_url").get("url")
        if known.get("type") == "text" and isinstance(text, str):
            texts.append(text)
        elif known.get("type") == "image_url" and isinstance(url, str):
            images.append(_read_image(url))
        else:
            raise _wrong("a message's content that is neither text nor parts of type text and image_url")
    return texts, images


def _read_image(url: str) -> bytes:
    head, comma, data = url.partition(",")
    if not head.startswith("data:") or not head.endswith(";base64") or not comma:
        raise _wrong("an image that is no data:...;base64, address: nothing is fetched")
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise _wrong(f"an image that is no base64: {error}") from None


def _wrong(given: str) -> OracleRequestError:
    return OracleRequestError(given, rule="requests are those of OpenAI's chat completions", remedy="see docs/curation.md")


def completion(model: str, body: Mapping[str, Any], request: OracleRequest, text: str) -> dict[str, Any]:
    """In OpenAI's form; cut off where it is longer than the request allows."""
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    cut = isinstance(limit, int) and len(text) > limit * CHARS_PER_TOKEN
    text = text[: limit * CHARS_PER_TOKEN] if cut and isinstance(limit, int) else text
    asked = len(request.text) // CHARS_PER_TOKEN + sum(len(image) // IMAGE_BYTES_PER_TOKEN for image in request.images) + 1
    answered = len(text) // CHARS_PER_TOKEN + 1
    message = {"role": "assistant", "content": text, "refusal": None}
    return {
        "id": f"chatcmpl-{request.digest[:16]}",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "length" if cut else "stop", "logprobs": None}],
        "usage": {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered},
    }


def refusal(status: int, message: str, kind: str, headers: Mapping[str, str] | None = None) -> Reply:
    """An error in OpenAI's form."""
    return Reply(status, {"error": {"message": message, "type": kind, "param": None, "code": None}}, headers or {})


class _Connection(asyncio.Protocol):
    """One request after the other, until the other side closes."""

    def __init__(self, server: OracleServer) -> None:
        self._server = server
        self._got = bytearray()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self)

    def close(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._got += data
        while self._answer_next():
            pass

    def _answer_next(self) -> bool:
        """Whether a whole request was there."""
        end = self._got.find(b"\r\n\r\n")
        if end < 0:
            if len(self._got) > MAX_HEAD_BYTES:
                self._refuse(431, "headers that are too long")
            return False
        first, *lines = self._got[:end].decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length, words = headers.get("content-length", "0"), first.split(" ")
        if len(words) != 3 or not length.isdecimal() or "transfer-encoding" in headers or int(length) > MAX_BODY_BYTES:
            self._refuse(400, f"no HTTP/1.1 request with a Content-Length of at most {MAX_BODY_BYTES}")
            return False
        if "expect" in headers and len(self._got) == end + 4:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        stop = end + 4 + int(length)
        if len(self._got) < stop:
            return False
        content = bytes(self._got[end + 4 : stop])
        del self._got[:stop]
        self._send(self._server.reply_to(words[0], words[1], content))
        if headers.get("connection", "").lower() == "close":
            self._transport.close()
            return False
        return True

    def _refuse(self, status: int, message: str) -> None:
        self._got.clear()
        self._send(refusal(status, message, "invalid_request_error"))
        self._transport.close()

    def _send(self, reply: Reply) -> None:
        body = reply.body
        lines = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
        head = f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}\r\nContent-Type: application/json\r\n"
        self._transport.write(f"{head}Content-Length: {len(body)}\r\n{lines}\r\n".encode("latin-1") + body)
