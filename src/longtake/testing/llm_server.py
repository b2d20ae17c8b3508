"""A server that speaks OpenAI's chat completions, says what a function tells it to, and misbehaves on demand.

>>> with LlmServer(lambda body: said({"caption": "a red cube"})) as server:
...     client = LlmClient(EndpointConfig(url=server.url, model="stand-in"), store)

`python -m longtake.testing.llm_server` runs one that always says the same, in a process of its own: for measuring clients.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

START_S = 30.0


@dataclass(frozen=True)
class Reply:
    """What a request is answered with: by default a chat completion with `text`."""

    text: str | None = ""
    status: int = 200
    finish: str = "stop"
    usage: tuple[int, int] | None = (100, 20)
    """Tokens of question and answer; None: the server does not tell."""
    refusal: str | None = None
    delay_s: float = 0.0
    """Pause before the answer, besides the server's own."""
    body: bytes | None = None
    """Sent in place of a completion."""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_at: int | None = None
    """The connection breaks after so many bytes of the body."""
    closes: bool = False
    """The connection breaks without an answer."""
    hangs: bool = False
    """No answer ever comes."""
    echoes: bool = False
    """`$authorization` in the body is replaced by that header of the request, key and all."""


@dataclass
class Request:
    """A chat completion that was asked for."""

    body: dict[str, Any]
    headers: dict[str, str]
    """Names in lower case."""
    at_s: float
    """time.monotonic() when it was whole."""
    in_flight: int
    """Requests that the server had then, this one included."""
    answered: bool = False
    """Whether a whole answer left the server."""
    hung_up: bool = False
    """The connection ended before that."""

    @property
    def purpose(self) -> str:
        """Name of the schema; empty where none was sent."""
        return str(self.body.get("response_format", {}).get("json_schema", {}).get("name", ""))

    @property
    def text(self) -> str:
        """Of the user's message."""
        content = self.body["messages"][-1]["content"]
        return content if isinstance(content, str) else "\n".join(part["text"] for part in content if part["type"] == "text")


def said(value: Any, **fields: Any) -> Reply:
    """A model's answer: `value` as JSON, a str as it is; `fields` of Reply."""
    return Reply(value if isinstance(value, str) else json.dumps(value), **fields)


def refused(status: int, message: str = "no", *, retry_after: str | None = None, code: str | None = None) -> Reply:
    """An error as OpenAI's servers give it."""
    body = json.dumps({"error": {"message": message, "type": "stand_in", "code": code}}).encode()
    return Reply(status=status, body=body, headers={} if retry_after is None else {"Retry-After": retry_after})


Answer = Callable[[dict[str, Any]], Reply]
FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""That an answering function may raise."""


class LlmServer:
    """A context manager: serves from a thread of its own, on a free port.

    `answer` is called with the JSON of each request, one after the other. What it raises is answered with 500 and raised again when the
    server ends, so that no test passes over it.
    """

    def __init__(self, answer: Answer, *, models: tuple[str, ...] = ("stand-in",), latency_s: float = 0.0, key: str | None = None) -> None:
        """`models`: what GET /models lists. `latency_s`: from a whole request to its answer. `key`: what is let in; None: everybody."""
        self.answer, self.models, self.latency_s, self.key = answer, models, latency_s, key
        self.requests: list[Request] = []
        """All that came whole, in order."""
        self.num_listed = 0
        """How often the models were listed."""
        self.in_flight = 0
        self.faults: list[Exception] = []
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="llm-server", daemon=True)
        self._open: set[_Connection] = set()

    @property
    def num_answered(self) -> int:
        """Requests whose whole answer left the server."""
        return sum(request.answered for request in self.requests)

    def __enter__(self) -> Self:
        listener = self._loop.run_until_complete(self._loop.create_server(lambda: _Connection(self), "127.0.0.1", 0, backlog=1024))
        self.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
        self._listener = listener
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        if self.faults and error is None:
            raise self.faults[0]

    def stop(self) -> None:
        """At once, as if it was killed; a second time does nothing."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop)
            self._thread.join(10)
        if not self._loop.is_closed():
            self._loop.close()

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(asyncio.sleep(0))  # connections learn that they are lost

    def _stop(self) -> None:
        self._listener.close()
        for connection in list(self._open):
            connection.break_off()
        self._loop.call_soon(self._loop.stop)

    def _reply_to(self, method: str, path: str, headers: dict[str, str], content: bytes) -> tuple[Reply, Request | None]:
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            return refused(401, "wrong key: $authorization", code="invalid_api_key"), None
        if (method, path) == ("GET", "/v1/models"):
            self.num_listed += 1
            return Reply(
                body=json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]}).encode()
            ), None
        if (method, path) != ("POST", "/v1/chat/completions"):
            return refused(404, f"no such path: {path}"), None
        body = json.loads(content)
        self.in_flight += 1
        request = Request(body, headers, time.monotonic(), self.in_flight)
        self.requests.append(request)
        return self._answered(body), request

    def _answered(self, body: dict[str, Any]) -> Reply:
        try:
            return self.answer(body)
        except FAULTS as error:
            self.faults.append(error)
            return refused(500, f"the answering function failed: {error!r}")


class _Connection(asyncio.Protocol):
    """HTTP/1.1, one request after the other. Written by hand: a framework serves a quarter as many requests on a core."""

    def __init__(self, server: LlmServer) -> None:
        self._server = server
        self._got = bytearray()
        self._transport: asyncio.Transport
        self._request: Request | None = None
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(high=0)
        self._transport = transport
        self._server._open.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._server._open.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._request is not None:
            self._request.hung_up = True
            self._ended()

    def resume_writing(self) -> None:
        """All bytes of an answer that was too large for the socket have left."""
        if self._request is not None:
            self._request.answered = True
            self._ended()

    def data_received(self, data: bytes) -> None:
        self._got += data
        self._look()

    def break_off(self) -> None:
        self._transport.abort()

    def _look(self) -> None:
        head_end = self._got.find(b"\r\n\r\n")
        if self._busy or head_end < 0:
            return
        first, *lines = self._got[:head_end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        stop = head_end + 4 + int(headers.get("content-length", 0))
        if len(self._got) < stop:
            return
        content = bytes(self._got[head_end + 4 : stop])
        del self._got[:stop]
        method, path, _ = first.split(" ", 2)
        self._busy = True
        reply, self._request = self._server._reply_to(method, path, headers, content)
        if reply.echoes or self._request is None:
            told = headers.get("authorization", "nobody").encode("latin-1")
            reply = replace(reply, body=_body_of(reply, self._request).replace(b"$authorization", told))
        self._answer_later(reply)

    def _answer_later(self, reply: Reply) -> None:
        wait_s = reply.delay_s + (self._server.latency_s if self._request is not None else 0.0)
        if reply.hangs:
            return
        if wait_s > 0:
            self._timer = self._server._loop.call_later(wait_s, self._send, reply)
        else:
            self._send(reply)

    def _send(self, reply: Reply) -> None:
        if reply.closes:
            self._transport.abort()
            return
        body = _body_of(reply, self._request)
        head = {"Content-Type": "application/json", "Content-Length": str(len(body)), **reply.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        status = f"HTTP/1.1 {reply.status} {_phrase(reply.status)}\r\n{lines}\r\n".encode("latin-1")
        self._transport.write(status + body[: reply.cut_at])
        if reply.cut_at is not None:
            self._transport.close()
            return
        if self._request is not None and self._transport.get_write_buffer_size() == 0:
            self._request.answered = True
            self._ended()
        self._busy = False
        self._look()

    def _ended(self) -> None:
        self._server.in_flight -= 1
        self._request = None


def _body_of(reply: Reply, request: Request | None) -> bytes:
    if reply.body is not None:
        return reply.body
    completion: dict[str, Any] = {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": "" if request is None else request.body.get("model", ""),
        "choices": [
            {"index": 0, "finish_reason": reply.finish, "message": {"role": "assistant", "content": reply.text, "refusal": reply.refusal}}
        ],
    }
    if reply.usage is not None:
        asked, answered = reply.usage
        completion["usage"] = {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}
    return json.dumps(completion).encode()


def _phrase(status: int) -> str:
    with suppress(ValueError):
        return HTTPStatus(status).phrase
    return "Unknown"


@contextmanager
def served_apart(text: str, *, latency_s: float = 0.0) -> Iterator[str]:
    """Address of a server in a process of its own that always says `text`."""
    command = [sys.executable, "-m", "longtake.testing.llm_server", "--text", text, "--latency-s", str(latency_s)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.communicate(timeout=START_S)


def main() -> None:
    """Print the address, and serve until stdin ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", default="{}", help="what is answered to everything")
    parser.add_argument("--latency-s", type=float, default=0.0)
    arguments = parser.parse_args()
    reply = Reply(arguments.text)
    with LlmServer(lambda body: reply, latency_s=arguments.latency_s) as server:
        print(server.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
