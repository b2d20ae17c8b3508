"""What ends a whole run at once: no access, no credit, no such model, no server. Every message says what to do, and nothing is lost."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from longtake.errors import ConfigError, LlmError
from longtake.llm.calls import Answer, CallFailure
from longtake.llm.client import LlmClient
from longtake.observe.keyed_lines import KeyedLines
from longtake.testing.llm_calls import CAPTION, asked, caption_call, endpoint
from longtake.testing.llm_server import LlmServer, Reply, refused, said

GOOD = said({"caption": "x"})
KEY = "sk-canary-0123456789abcdef"


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("TEST_KEY", raising=False)


def test_without_a_variable_no_key_is_sent_and_its_name_is_told(tmp_path: Path) -> None:
    with LlmServer(lambda body: GOOD, key=KEY) as server, pytest.raises(LlmError) as caught:
        asked(endpoint(server.url, key_variable="TEST_KEY"), tmp_path, [CAPTION])
    assert "answers 401" in caught.value.given and "no key was sent, since TEST_KEY is not set" in caught.value.given
    assert "put a valid key into the environment variable TEST_KEY" in caught.value.remedy


def test_the_library_does_not_send_another_variables_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, KEY)
    with LlmServer(lambda body: GOOD) as server:
        asked(endpoint(server.url, key_variable="TEST_KEY"), tmp_path, [CAPTION])
        assert KEY not in str(server.requests[0].headers) and "authorization" not in server.requests[0].headers
        asked(endpoint(server.url), tmp_path, [caption_call("other")])
        assert server.requests[1].headers["authorization"] == f"Bearer {KEY}"  # negative control


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_ends_the_run_and_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    with LlmServer(lambda body: refused(status, "go away")) as server, pytest.raises(LlmError) as caught:
        asked(endpoint(server.url, key_variable="TEST_KEY", concurrency=1), tmp_path, [caption_call(str(number)) for number in range(20)])
    assert f"answers {status} (go away): the key in TEST_KEY is not accepted" in caught.value.given
    assert KEY not in str(caught.value) and len(server.requests) < 20


@pytest.mark.parametrize("key", ["two words", "naïve-key-0123456789", "line\nend-0123456789"])
def test_a_key_that_cannot_be_sent_is_told_by_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("TEST_KEY", f" {key}\n")
    with pytest.raises(ConfigError, match="environment variable TEST_KEY cannot be sent") as caught:
        asked(endpoint("http://127.0.0.1:9/v1", key_variable="TEST_KEY"), tmp_path, [CAPTION])
    assert key not in str(caught.value)


@pytest.mark.parametrize("reply", [refused(402, "pay first"), refused(429, "pay first", code="insufficient_quota")], ids=["402", "quota"])
def test_an_account_without_credit_ends_the_run(tmp_path: Path, reply: Reply) -> None:
    with (
        LlmServer(lambda body: reply) as server,
        pytest.raises(LlmError, match=r"pay first.*add credit there.*nothing that was paid is lost"),
    ):
        asked(endpoint(server.url), tmp_path, [CAPTION])
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 404])
def test_a_model_that_the_server_has_not_is_told_with_those_it_has(tmp_path: Path, status: int) -> None:
    with LlmServer(lambda body: refused(status, "no model"), models=("qwen", "llama")) as server, pytest.raises(LlmError) as caught:
        asked(endpoint(server.url, model="gwen"), tmp_path, [CAPTION])
    assert f"{status} for model 'gwen' (no model); it has qwen, llama" in caught.value.given


@pytest.mark.parametrize("status", [403, 404])
def test_a_call_that_alone_is_refused_costs_that_call(tmp_path: Path, status: int) -> None:
    """As moderation does, or a route of a gateway: it says nothing of the others, also in a later run with these calls alone."""

    def answer(body: dict) -> Reply:
        return refused(status, "flagged") if "bad" in str(body["messages"]) else GOOD

    bad, good = [[caption_call(f"{kind} {number}") for number in range(6)] for kind in ("bad", "good")]
    with LlmServer(answer) as server:
        calls = [call for pair in zip(bad, good, strict=True) for call in pair]
        answers, client = asked(endpoint(server.url, concurrency=2), tmp_path / "mixed", calls)
        assert [isinstance(one, CallFailure) and one.kind for one in answers] == [f"http_{status}", False] * 6
        assert client.summary().total().failures == {f"http_{status}": 6}
        answers, _ = asked(endpoint(server.url, concurrency=6), tmp_path / "alone", bad)
        assert {one.kind for one in answers if isinstance(one, CallFailure)} == {f"http_{status}"} and len(answers) == 6
        with pytest.raises(LlmError, match=f"answers {status}"):  # so many in a row that all would be refused
            asked(endpoint(server.url, concurrency=5), tmp_path / "many", bad)


def test_an_address_without_version_is_told(tmp_path: Path) -> None:
    with LlmServer(lambda body: GOOD) as server, pytest.raises(LlmError) as caught:
        asked(endpoint(server.url.removesuffix("/v1")), tmp_path, [CAPTION, caption_call("b")])
    assert "it lists no models either" in caught.value.given and "the address ends with the version" in str(caught.value)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_no_server_at_all_ends_the_run_after_the_tries(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(LlmError, match=rf"no server answers at {url}: .*\(3 tries\).*start it") as caught:
        asked(endpoint(url, max_retries=2), tmp_path, [CAPTION])
    assert caught.value.__cause__ is None  # requests, which know the key, are not handed on


def test_a_server_that_dies_ends_the_run_and_a_new_start_goes_on(tmp_path: Path) -> None:
    calls = [caption_call(str(number)) for number in range(30)]

    def answer(body: dict) -> Reply:
        return said({"caption": body["messages"][0]["content"]}) if len(server.requests) <= 10 else Reply(hangs=True)

    async def scenario() -> None:
        with KeyedLines(tmp_path, "test") as store:
            async with LlmClient(endpoint(server.url, concurrency=4, max_retries=2), store) as client:
                asking = asyncio.gather(*map(client.ask, calls))
                while len(server.requests) < 14:
                    await asyncio.sleep(0.01)
                server.stop()
                await asking

    with LlmServer(answer) as server, pytest.raises(LlmError, match="no server answers"):
        asyncio.run(scenario())
    with LlmServer(lambda body: said({"caption": body["messages"][0]["content"]})) as second:
        answers, _ = asked(endpoint(second.url), tmp_path, calls)
    assert len(second.requests) == 20 and all(isinstance(one, Answer) for one in answers)


def test_a_server_that_starts_late_is_waited_for(tmp_path: Path) -> None:
    """Refused connections are tried again, as any fault; the run ends only when nothing was heard in all tries."""

    async def scenario() -> Answer | CallFailure:
        port = free_port()
        with KeyedLines(tmp_path, "test") as store:
            config = endpoint(f"http://127.0.0.1:{port}/v1", max_retries=20, backoff_s=0.05)
            async with LlmClient(config, store) as client:
                asking = asyncio.create_task(client.ask(CAPTION))
                await asyncio.sleep(0.3)
                body = b'{"choices": [{"message": {"content": "{\\"caption\\": \\"x\\"}"}}]}'

                async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                    await reader.readuntil(b"\r\n\r\n")
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body))
                    await writer.drain()
                    writer.close()

                async with await asyncio.start_server(answer, "127.0.0.1", port):
                    return await asking

    assert isinstance(asyncio.run(scenario()), Answer)


def test_after_the_end_nothing_more_is_sent_but_what_is_kept_is_found(tmp_path: Path) -> None:
    async def scenario() -> None:
        with KeyedLines(tmp_path, "test") as store:
            async with LlmClient(endpoint(server.url), store) as client:
                assert isinstance(await client.ask(caption_call("good")), Answer)
                for text in ("bad", "new", "newer"):
                    with pytest.raises(LlmError):
                        await client.ask(caption_call(text))
                assert isinstance(await client.ask(caption_call("good")), Answer)
            async with client:  # a new start
                assert isinstance(await client.ask(caption_call("new")), Answer)

    with LlmServer(lambda body: refused(401) if "bad" in str(body) else GOOD) as server:
        asyncio.run(scenario())
    assert [request.text for request in server.requests] == ["good", "bad", "new"]


def test_without_a_name_the_servers_only_model_is_asked(tmp_path: Path) -> None:
    calls = [caption_call(str(number)) for number in range(5)]
    with LlmServer(lambda body: GOOD, models=("lonely",)) as server:
        _, client = asked(endpoint(server.url, model=None), tmp_path, calls)
        assert server.num_listed == 1 and {request.body["model"] for request in server.requests} == {"lonely"}
        asked(endpoint(server.url, model="lonely"), tmp_path, calls)
        assert len(server.requests) == 5
    assert repr(client) == f"LlmClient({server.url}, lonely)"


@pytest.mark.parametrize(
    ("models", "told"),
    [(("one", "two"), "has 2 models: one, two.*name one of them"), ((), "has 0 models: none.*start the server with a model")],
)
def test_several_models_or_none_are_told(tmp_path: Path, models: tuple[str, ...], told: str) -> None:
    with LlmServer(lambda body: GOOD, models=models) as server, pytest.raises(LlmError, match=told):
        asked(endpoint(server.url, model=None), tmp_path, [CAPTION, caption_call("b")])
    assert server.num_listed == 1 and server.requests == []


def test_a_server_that_does_not_list_its_models_is_told(tmp_path: Path) -> None:
    with (
        LlmServer(lambda body: GOOD) as server,
        pytest.raises(LlmError, match=r"does not list its models: http_404.*name the model in model"),
    ):
        asked(endpoint(server.url + "/elsewhere", model=None), tmp_path, [CAPTION])
