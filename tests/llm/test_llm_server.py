"""The stand-in server does what tests of clients rely on: says what it is told, misbehaves as it is told, and counts."""

from __future__ import annotations

import http.client
import json
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import pytest

from longtake.testing.llm_server import LlmServer, Reply, refused, said, served_apart

BODY = {"model": "stand-in", "messages": [{"role": "user", "content": "hello"}]}


def call(url: str, body: Any = BODY, method: str = "POST", path: str = "/chat/completions", key: str = "") -> tuple[int, bytes, Any]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    try:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        connection.request(method, parts.path + path, json.dumps(body) if method == "POST" else None, headers)
        response = connection.getresponse()
        return response.status, response.read(), response.headers
    finally:
        connection.close()


def test_it_says_what_the_function_says_and_remembers_what_it_was_asked() -> None:
    with LlmServer(lambda body: said({"heard": body["messages"][0]["content"]}, usage=(7, 3))) as server:
        status, content, _ = call(server.url)
    told = json.loads(content)
    assert status == 200 and told["choices"][0]["message"]["content"] == '{"heard": "hello"}'
    assert told["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    (request,) = server.requests
    assert request.body == BODY and request.text == "hello" and request.answered and not request.hung_up and request.in_flight == 1
    assert server.num_answered == 1 and server.in_flight == 0


def test_models_and_unknown_paths() -> None:
    with LlmServer(lambda body: said(""), models=("one", "two")) as server:
        assert [model["id"] for model in json.loads(call(server.url, method="GET", path="/models")[1])["data"]] == ["one", "two"]
        assert call(server.url, path="/completions")[0] == 404
    assert server.requests == [] and server.num_listed == 1


def test_errors_with_headers_and_codes() -> None:
    with LlmServer(lambda body: refused(429, "slower", retry_after="3", code="busy")) as server:
        status, content, headers = call(server.url)
    assert status == 429 and headers["Retry-After"] == "3" and json.loads(content)["error"]["code"] == "busy"


def test_a_key_is_asked_for_and_echoed() -> None:
    with LlmServer(lambda body: said("ok"), key="right") as server:
        status, content, _ = call(server.url, key="wrong")
        assert status == 401 and b"Bearer wrong" in content
        assert call(server.url, key="right")[0] == 200
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(closes=True), http.client.RemoteDisconnected),
        (Reply("x" * 500, cut_at=40), http.client.IncompleteRead),
    ],
    ids=["closes", "cut"],
)
def test_broken_connections_are_no_answers(reply: Reply, error: type[Exception]) -> None:
    with LlmServer(lambda body: reply) as server, pytest.raises((error, ConnectionResetError)):
        call(server.url)
    assert not server.requests[0].answered and server.requests[0].hung_up


def test_who_hangs_up_has_not_been_answered() -> None:
    with LlmServer(lambda body: Reply(hangs=True)) as server:
        parts = urlsplit(server.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
        connection.request("POST", parts.path + "/chat/completions", json.dumps(BODY))
        while not server.requests:
            time.sleep(0.01)
        assert server.in_flight == 1
        connection.close()
        while server.in_flight:
            time.sleep(0.01)
        assert not server.requests[0].answered and server.requests[0].hung_up


def test_large_questions_and_answers_pass_whole() -> None:
    text = "0123456789" * 500_000
    with LlmServer(lambda body: said(body["messages"][0]["content"])) as server:
        body = {"messages": [{"role": "user", "content": text}]}
        assert json.loads(call(server.url, body)[1])["choices"][0]["message"]["content"] == text
        deadline = time.monotonic() + 10
        while not server.requests[0].answered and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.requests[0].answered


def test_answers_take_as_long_as_they_are_told_and_side_by_side() -> None:
    with LlmServer(lambda body: said("", delay_s=0.2), latency_s=0.2) as server:
        began = time.monotonic()
        threads = [threading.Thread(target=call, args=(server.url,)) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 0.4 <= time.monotonic() - began < 3.0  # 4 s one after the other
    assert max(request.in_flight for request in server.requests) > 1


def test_a_function_that_fails_is_no_secret() -> None:
    def fails(body: dict[str, Any]) -> Reply:
        assert body == {}, "not what was expected"
        return said("")

    with pytest.raises(AssertionError, match="not what was expected"), LlmServer(fails) as server:
        assert call(server.url)[0] == 500


def test_it_runs_apart() -> None:
    with served_apart('{"a": 1}') as url:
        assert json.loads(call(url)[1])["choices"][0]["message"]["content"] == '{"a": 1}'
    with pytest.raises(ConnectionRefusedError):
        call(url)
