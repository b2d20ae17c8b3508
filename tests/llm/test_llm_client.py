"""The client against a real server: what is sent, what is kept, what is paid once."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import re
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from longtake.llm.calls import Answer, CallFailure, ChatCall
from longtake.llm.client import LlmClient
from longtake.llm.counts import paid_in
from longtake.observe.keyed_lines import KeyedLines
from longtake.observe.metrics import metric_for
from longtake.testing.llm_calls import CAPTION, asked, caption_call, endpoint
from longtake.testing.llm_server import LlmServer, Reply, refused, said

GOOD = said({"caption": "a red cube"})


def in_turn(*replies: Reply) -> Callable[[dict[str, Any]], Reply]:
    """These, one after the other, then the last for ever."""
    left = list(replies)
    return lambda body: left.pop(0) if len(left) > 1 else left[0]


def heard(body: dict[str, Any]) -> Reply:
    return said({"caption": body["messages"][-1]["content"]})


def jpeg(width: int = 56, height: int = 56, red: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (red, 0, 0)).save(file, "JPEG")
    return file.getvalue()


def kept(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line)["made"] for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


def test_what_is_sent_and_what_comes_back(tmp_path: Path) -> None:
    call = ChatCall("watch", ("first", jpeg(), "then", jpeg(28)), CAPTION.schema, 77, temperature=0.3, sample=5, system="Be brief.")
    with LlmServer(lambda body: GOOD, models=("stand-in",)) as server:
        answers, _ = asked(endpoint(server.url), tmp_path, [call])
    assert len(server.requests) == 1 and server.num_listed == 0
    user = [
        {"type": "text", "text": "first"},
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(jpeg()).decode()}"}},
        {"type": "text", "text": "then"},
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(jpeg(28)).decode()}"}},
    ]
    assert server.requests[0].body == {
        "model": "stand-in",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": user}],
        "temperature": 0.3,
        "seed": 5,
        "max_tokens": 77,
        "response_format": {"type": "json_schema", "json_schema": {"name": "watch", "schema": CAPTION.schema, "strict": True}},
    }
    assert server.requests[0].purpose == "watch" and server.requests[0].text == "first\nthen"
    (answer,) = answers
    assert isinstance(answer, Answer)
    assert (answer.value, answer.input_tokens, answer.output_tokens, answer.cached) == ({"caption": "a red cube"}, 100, 20, False)


def test_texts_that_no_request_can_hold_are_mended(tmp_path: Path) -> None:
    with LlmServer(heard) as server:
        answers, _ = asked(endpoint(server.url), tmp_path, [caption_call("half \ud83c pair"), caption_call("图", system="\udc80")])
    assert [answer.value["caption"] for answer in answers] == ["half ? pair", "图"]


def test_two_clients_that_pay_at_once_agree_on_one_answer(tmp_path: Path) -> None:
    async def scenario() -> list[Any]:
        with KeyedLines(tmp_path, "test") as store:
            one, two = (LlmClient(endpoint(server.url), store) for _ in range(2))
            async with one, two:
                return [*await asyncio.gather(one.ask(CAPTION), two.ask(CAPTION)), await one.ask(CAPTION)]

    replies = [said({"caption": "first"}, delay_s=0.2), said({"caption": "second"}, delay_s=0.2)]
    with LlmServer(lambda body: replies.pop(0)) as server:
        answers = asyncio.run(scenario())
    assert len(server.requests) == 2 and len({answer.value["caption"] for answer in answers}) == 1


def test_servers_without_schemas_are_told_in_words(tmp_path: Path) -> None:
    with LlmServer(lambda body: said('<think>hm</think>```json\n{"caption": "x"}\n```')) as server:
        for structured in ("json_object", "off"):
            (answer,), _ = asked(endpoint(server.url, structured=structured), tmp_path / structured, [CAPTION])
            assert isinstance(answer, Answer) and answer.value == {"caption": "x"}
    first, second = (request.body for request in server.requests)
    assert first["response_format"] == {"type": "json_object"} and "response_format" not in second
    for body in (first, second):
        assert body["messages"][0]["content"].startswith("What is seen?\nAnswer with one JSON object")
        assert body["messages"][0]["content"].endswith(CAPTION.schema_text)


def test_an_answer_is_paid_once_whoever_asks_again(tmp_path: Path) -> None:
    calls = [caption_call(f"clip {number}") for number in range(20)]
    with LlmServer(heard) as server:
        first, client = asked(endpoint(server.url), tmp_path, calls, writer="a")
        again, other = asked(endpoint(server.url), tmp_path, calls[::-1], writer="b")
    assert len(server.requests) == 20
    assert [answer.value for answer in first] == [{"caption": f"clip {number}"} for number in range(20)]
    assert [answer.value for answer in again[::-1]] == [answer.value for answer in first]
    assert not any(answer.cached for answer in first) and all(answer.cached for answer in again)
    assert {answer.input_tokens for answer in again} == {100}
    paid, cached = client.metrics(), other.metrics()
    assert (paid["llm/calls"], paid["llm/paid"], paid["llm/cached"]) == (20, 20, 0)
    assert (paid["llm/input_tokens"], paid["llm/output_tokens"]) == (2000, 400)
    assert (cached["llm/calls"], cached["llm/paid"], cached["llm/cached"], cached["llm/input_tokens"]) == (20, 0, 20, 0)
    assert (tmp_path / "b.jsonl").read_bytes() == b""


def test_what_decides_the_answer_names_the_call(tmp_path: Path) -> None:
    base = ChatCall("caption", ("text", jpeg()), CAPTION.schema, 50)
    others = [
        replace(base, parts=("text", jpeg(red=200))),
        replace(base, parts=(jpeg(), "text")),
        replace(base, parts=("text",)),
        replace(base, schema={**CAPTION.schema, "title": "x"}),
        replace(base, max_tokens=51),
        replace(base, temperature=0.1),
        replace(base, sample=1),
        replace(base, system=""),
    ]
    with LlmServer(lambda body: GOOD, models=("stand-in", "other")) as server, LlmServer(lambda body: GOOD) as elsewhere:
        asked(endpoint(server.url), tmp_path, [base, *others])
        assert len(server.requests) == 1 + len(others)
        asked(endpoint(server.url, model="other"), tmp_path, [base])
        asked(endpoint(server.url, extra_body={"top_p": 0.5}), tmp_path, [base])
        assert len(server.requests) == 3 + len(others)
        asked(endpoint(elsewhere.url), tmp_path, [base, replace(base, purpose="watch")])
        assert len(elsewhere.requests) == 0


BAD = [
    (Reply('{"caption": "a r', finish="length"), "length"),
    (said("a red cube"), "not_json"),
    (said({"caption": 3}), "schema"),
    (Reply(None, refusal="I will not look at that."), "refused"),
    (Reply("", finish="content_filter"), "refused"),
    (Reply(None), "not_json"),
]


@pytest.mark.parametrize(("reply", "kind"), BAD, ids=["cut", "prose", "schema", "refusal", "filter", "empty"])
def test_a_bad_answer_is_paid_counted_kept_and_asked_for_anew(tmp_path: Path, reply: Reply, kind: str) -> None:
    config = {"input_price": 10_000.0, "output_price": 20_000.0}
    with LlmServer(in_turn(reply, GOOD)) as server:
        (answer,), client = asked(endpoint(server.url, **config), tmp_path, [CAPTION])
        (again,), _ = asked(endpoint(server.url, **config), tmp_path, [CAPTION])
    assert isinstance(answer, Answer) and answer.value == {"caption": "a red cube"} and answer.input_tokens == 200
    assert isinstance(again, Answer) and again.value == answer.value and again.cached
    assert len(server.requests) == 2
    seeds = [request.body["seed"] for request in server.requests]
    temperatures = [request.body["temperature"] for request in server.requests]
    assert seeds[0] == 0 and seeds[1] != 0 and temperatures[0] == 0 and temperatures[1] > 0
    metrics = client.metrics()
    assert (metrics["llm/paid"], metrics["llm/bad"], metrics[f"llm/bad_{kind}"], metrics["llm/failed"]) == (2, 1, 1, 0)
    assert metrics["llm/cost"] == pytest.approx(2 * (100 * 0.01 + 20 * 0.02))
    assert [(made["attempt"], made["bad"], made["cost"]) for made in kept(tmp_path)] == [(0, kind, 1.4), (1, None, 1.4)]


@pytest.mark.parametrize(("reply", "kind"), BAD[:4], ids=["cut", "prose", "schema", "refusal"])
def test_a_call_with_bad_answers_alone_fails_and_is_not_paid_again(tmp_path: Path, reply: Reply, kind: str) -> None:
    with LlmServer(lambda body: reply) as server:
        (failure,), client = asked(endpoint(server.url), tmp_path, [CAPTION])
        (again,), _ = asked(endpoint(server.url), tmp_path, [CAPTION])
        assert len(server.requests) == 3
        assert isinstance(failure, CallFailure) and failure == again
        assert failure.kind == kind and failure.tries == 3
        assert re.match(rf"caption: 3 answers of {server.url} could not be used.*Rule: .*Remedy: ", failure.message)
        asked(endpoint(server.url, bad_answer_retries=3), tmp_path, [CAPTION])
        assert len(server.requests) == 4
    assert client.metrics()[f"llm/failed_{kind}"] == client.metrics()["llm/failed"] == 1
    assert len({request.body["seed"] for request in server.requests}) == 4


HTML = Reply(body=b"<html><body>502 Bad Gateway</body></html>", headers={"Content-Type": "text/html"})
FAULTS = [
    (refused(429), "http_429"),
    (refused(500), "http_500"),
    (refused(503, "loading"), "http_503"),
    (refused(408), "http_408"),
    (refused(409), "http_409"),
    (refused(425), "http_425"),
    (Reply(status=502, body=b"<html>"), "http_502"),
    (Reply(status=599, body=b""), "http_599"),
    (HTML, "garbled"),
    (Reply(body=b""), "garbled"),
    (Reply(body=b'{"choices": [{"message": {"con'), "garbled"),
    (Reply(body=b"\xff\xfe\x00"), "garbled"),
    (Reply(body=b"[" * 100_000), "garbled"),
    (Reply(body=b"{}"), "garbled"),
    (Reply(body=b"[1]"), "garbled"),
    (Reply(body=b'{"choices": []}'), "garbled"),
    (Reply(body=b'{"choices": [{"message": {"content": 3}}]}'), "garbled"),
    (Reply(body=b'{"choices": [{"message": {"content": "x"}, "finish_reason": ["stop"]}]}'), "garbled"),
    (Reply(body=b'{"error": {"code": 502, "message": "upstream is down"}}'), "http_502"),
    (Reply("{}", cut_at=30), "connection"),
    (Reply(closes=True), "connection"),
    (Reply(body=b"x", headers={"Content-Encoding": "gzip"}), "garbled"),
]


@pytest.mark.parametrize(("reply", "kind"), FAULTS)
def test_a_fault_is_counted_and_the_same_request_sent_again(
    tmp_path: Path, reply: Reply, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with LlmServer(in_turn(reply, reply, GOOD)) as server:
        (answer,), client = asked(endpoint(server.url), tmp_path, [CAPTION])
    assert isinstance(answer, Answer) and answer.value == {"caption": "a red cube"}
    assert len(server.requests) == 3 and server.requests[0].body == server.requests[2].body
    metrics = client.metrics()
    assert (metrics["llm/retries"], metrics[f"llm/retried_{kind}"], metrics["llm/paid"], metrics["llm/failed"]) == (2, 2, 1, 0)
    assert len(kept(tmp_path)) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"{kind}: " in told and "tried again" in told


@pytest.mark.parametrize(("reply", "kind"), [FAULTS[0], FAULTS[1], FAULTS[8], FAULTS[19], FAULTS[20]])
def test_a_call_fails_when_its_tries_are_used_up_and_only_this_call(tmp_path: Path, reply: Reply, kind: str) -> None:
    with LlmServer(lambda body: reply if "bad" in str(body) else GOOD) as server:
        answers, client = asked(endpoint(server.url, max_retries=3), tmp_path, [caption_call("bad"), caption_call("fine")])
        failure, fine = answers
        assert isinstance(failure, CallFailure) and (failure.kind, failure.tries) == (kind, 4)
        assert f"caption: {kind} from {server.url} (4 tries): " in failure.message and "Remedy: see the server's log" in failure.message
        assert isinstance(fine, Answer) and client.metrics()[f"llm/failed_{kind}"] == 1
        asked(endpoint(server.url, max_retries=0), tmp_path, [caption_call("bad"), caption_call("fine")])
    assert [request.text for request in server.requests].count("bad") == 5  # a fault is not kept
    assert [request.text for request in server.requests].count("fine") == 1


def test_a_server_that_never_answers_is_left_in_time(tmp_path: Path) -> None:
    with LlmServer(in_turn(Reply(hangs=True), said({"caption": "x"}, delay_s=30), GOOD)) as server:
        began = time.monotonic()
        (answer,), client = asked(endpoint(server.url, timeout_s=0.7), tmp_path, [CAPTION])
        assert 1.4 <= time.monotonic() - began < 10
    assert isinstance(answer, Answer) and client.metrics()["llm/retried_timeout"] == 2
    assert [request.hung_up for request in server.requests] == [True, True, False]


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_what_is_wrong_with_one_call_fails_it_at_once(tmp_path: Path, status: int) -> None:
    with LlmServer(lambda body: refused(status, "no such field: seed") if "odd" in str(body) else GOOD) as server:
        (failure, fine), client = asked(endpoint(server.url), tmp_path, [caption_call("odd"), CAPTION])
    assert isinstance(failure, CallFailure) and isinstance(fine, Answer)
    assert (failure.kind, failure.tries) == (f"http_{status}", 1)
    assert "no such field: seed" in failure.message and "structured = off" in failure.message
    assert len(server.requests) == 2 and client.metrics()["llm/retries"] == 0


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",
        "The prompt is too long: 200001 tokens > 200000 maximum",
        "the request exceeds the available context size (context_length_exceeded)",
    ],
)
def test_a_question_that_is_too_long_is_told_as_such(tmp_path: Path, message: str) -> None:
    with LlmServer(lambda body: refused(400, message)) as server:
        (failure,), _ = asked(endpoint(server.url), tmp_path, [CAPTION])
    assert isinstance(failure, CallFailure) and failure.kind == "http_400"
    assert "question and answer (up to 50 tokens) fit into the model's context" in failure.message and "--max-model-len" in failure.message


def test_concurrency_is_used_and_not_passed(tmp_path: Path) -> None:
    with LlmServer(heard, latency_s=0.4) as server:
        asked(endpoint(server.url, concurrency=7), tmp_path, [caption_call(str(number)) for number in range(20)])
    assert max(request.in_flight for request in server.requests) == 7


def test_many_calls_spread_over_pools_of_connections(tmp_path: Path) -> None:
    with LlmServer(heard, latency_s=0.8) as server:
        answers, _ = asked(endpoint(server.url, concurrency=70), tmp_path, [caption_call(str(number)) for number in range(80)])
    assert [answer.value["caption"] for answer in answers] == [str(number) for number in range(80)]
    assert 32 < max(request.in_flight for request in server.requests) <= 70


def test_requests_and_tokens_per_minute(tmp_path: Path) -> None:
    calls = [caption_call(str(number)) for number in range(6)]
    with LlmServer(heard) as server:
        asked(endpoint(server.url, requests_per_minute=300), tmp_path / "a", calls)  # one each 0.2 s
        times = [request.at_s for request in server.requests]
        assert times[-1] - times[0] >= 0.95
        server.requests.clear()
        asked(endpoint(server.url, tokens_per_minute=20_000), tmp_path / "b", calls)  # 63 each: one each 0.19 s
        times = [request.at_s for request in server.requests]
        assert times[-1] - times[0] >= 0.9
        server.requests.clear()
        asked(endpoint(server.url), tmp_path / "c", calls)
        assert server.requests[-1].at_s - server.requests[0].at_s < 0.9  # without limits


def test_retry_after_holds_all_calls(tmp_path: Path) -> None:
    replies = in_turn(refused(429, retry_after="0.6"), GOOD)
    with LlmServer(replies) as server:
        answers, _ = asked(endpoint(server.url, concurrency=1), tmp_path, [caption_call(str(number)) for number in range(4)])
    times = [request.at_s for request in server.requests]
    assert all(isinstance(answer, Answer) for answer in answers) and len(times) == 5
    assert times[1] - times[0] >= 0.6 and times[4] - times[1] < 0.6


def test_equal_calls_at_once_are_one(tmp_path: Path) -> None:
    with LlmServer(heard, latency_s=0.1) as server:
        answers, client = asked(endpoint(server.url), tmp_path, [caption_call("same"), caption_call("other"), caption_call("same")])
    assert sorted(request.text for request in server.requests) == ["other", "same"]
    assert [answer.value["caption"] for answer in answers] == ["same", "other", "same"]
    assert [answer.cached for answer in answers] == [False, False, True]
    assert (client.metrics()["llm/calls"], client.metrics()["llm/paid"], client.metrics()["llm/cached"]) == (3, 2, 1)


def test_equal_calls_fail_together(tmp_path: Path) -> None:
    with LlmServer(lambda body: refused(400), latency_s=0.1) as server:
        answers, client = asked(endpoint(server.url), tmp_path, [CAPTION, CAPTION])
    assert len(server.requests) == 1 and answers[0] == answers[1] and client.metrics()["llm/failed_http_400"] == 2


def test_a_call_is_broken_off_when_the_last_who_waits_has_gone(tmp_path: Path) -> None:
    async def scenario(server: LlmServer) -> None:
        with KeyedLines(tmp_path, "a") as store:
            async with LlmClient(endpoint(server.url), store) as client:
                first, second = (asyncio.create_task(client.ask(caption_call("shared"))) for _ in range(2))
                alone = asyncio.create_task(client.ask(caption_call("alone")))
                while len(server.requests) < 2:
                    await asyncio.sleep(0.01)
                first.cancel()
                alone.cancel()
                shared = await second
                assert isinstance(shared, Answer) and shared.value == {"caption": "shared"}
                assert first.cancelled() and alone.cancelled()
                again = await client.ask(caption_call("alone"))
                assert isinstance(again, Answer) and not again.cached

    with LlmServer(heard, latency_s=0.5) as server:
        asyncio.run(scenario(server))
    ends = [(request.text, request.answered) for request in server.requests]
    assert sorted(ends[:2]) == [("alone", False), ("shared", True)] and ends[2:] == [("alone", True)]


def test_asking_what_was_just_broken_off_begins_anew(tmp_path: Path) -> None:
    async def scenario(server: LlmServer) -> Answer | CallFailure:
        with KeyedLines(tmp_path, "a") as store:
            async with LlmClient(endpoint(server.url), store) as client:
                first = asyncio.create_task(client.ask(CAPTION))
                while not server.requests:
                    await asyncio.sleep(0.01)
                first.cancel()
                await asyncio.sleep(0)  # it has gone, its request not yet
                return await client.ask(CAPTION)

    with LlmServer(in_turn(Reply(hangs=True), GOOD)) as server:
        assert isinstance(asyncio.run(scenario(server)), Answer)


def test_usage_that_is_not_told_is_estimated_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LlmServer(lambda body: said({"caption": "a red cube"}, usage=None)) as server:
        answers, client = asked(endpoint(server.url), tmp_path, [caption_call("x" * 400), caption_call("y" * 400)])
    assert [(answer.input_tokens, answer.output_tokens) for answer in answers] == [(112, 6), (112, 6)]
    assert client.metrics()["llm/input_tokens"] == 224
    assert [made["estimated"] for made in kept(tmp_path)] == [True, True]
    assert capsys.readouterr().err == f"{server.url} does not tell how many tokens its answers take: they are estimated\n"


@pytest.mark.parametrize("usage", [{"prompt_tokens": -5, "completion_tokens": 2}, {"prompt_tokens": "7"}, {"prompt_tokens": 1.5}, [], 3])
def test_usage_that_is_none_is_estimated(tmp_path: Path, usage: Any) -> None:
    body = json.dumps({"choices": [{"message": {"content": '{"caption": "x"}'}, "finish_reason": "stop"}], "usage": usage}).encode()
    with LlmServer(lambda _: Reply(body=body)) as server:
        (answer,), _ = asked(endpoint(server.url), tmp_path, [CAPTION])
    assert isinstance(answer, Answer) and answer.input_tokens == 12 + 3 and kept(tmp_path)[0]["estimated"] is True


def test_content_in_parts_and_unknown_finish_reasons(tmp_path: Path) -> None:
    content = [{"type": "text", "text": '{"caption"'}, {"type": "other"}, {"type": "text", "text": ': "x"}'}]
    body = json.dumps({"choices": [{"message": {"content": content}, "finish_reason": "eos"}]}).encode()
    with LlmServer(lambda _: Reply(body=body)) as server:
        (answer,), _ = asked(endpoint(server.url), tmp_path, [CAPTION])
    assert isinstance(answer, Answer) and answer.value == {"caption": "x"} and kept(tmp_path)[0]["finish"] == "other"


def test_further_fields_go_along(tmp_path: Path) -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "max_completion_tokens": 900, "temperature": 1.0}
    with LlmServer(lambda body: GOOD) as server:
        asked(endpoint(server.url, extra_body=extra), tmp_path, [CAPTION])
    body = server.requests[0].body
    assert extra.items() <= body.items() and "max_tokens" not in body and body["seed"] == 0


def test_loops_one_after_the_other(tmp_path: Path) -> None:
    with LlmServer(heard) as server, KeyedLines(tmp_path, "a") as store:
        client = LlmClient(endpoint(server.url, requests_per_minute=6e6, concurrency=2), store)

        async def ask(text: str) -> list[Answer | CallFailure]:
            async with client:
                return await asyncio.gather(*(client.ask(caption_call(f"{text} {number}")) for number in range(5)))

        for text in ("one", "two"):
            assert [answer.value["caption"] for answer in asyncio.run(ask(text))] == [f"{text} {number}" for number in range(5)]
        with pytest.raises(RuntimeError, match="inside `async with`"):
            asyncio.run(client.ask(CAPTION))
    assert client.metrics()["llm/paid"] == 10


def test_the_libraries_write_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    with caplog.at_level(logging.DEBUG), LlmServer(in_turn(refused(500), GOOD)) as server:
        logging.getLogger("httpx2").info("seen")  # negative control: they would be heard
        asked(endpoint(server.url), tmp_path, [CAPTION])
    assert [record.message for record in caplog.records if record.name != "asyncio"] == ["seen"]
    assert capsys.readouterr().err.count("\n") == 1


def test_metrics_have_names_that_the_log_knows(tmp_path: Path) -> None:
    with LlmServer(in_turn(refused(500), said("prose"), refused(400))) as server:
        _, client = asked(endpoint(server.url), tmp_path, [CAPTION])
    metrics = client.metrics()
    assert {metric_for(name).reduce for name in metrics} == {"sum"}
    counted = {name: value for name, value in metrics.items() if value and name != "llm/seconds"}
    assert counted == {
        "llm/calls": 1,
        "llm/paid": 1,
        "llm/input_tokens": 100,
        "llm/output_tokens": 20,
        "llm/retries": 1,
        "llm/retried_http_500": 1,
        "llm/bad": 1,
        "llm/bad_not_json": 1,
        "llm/failed": 1,
        "llm/failed_http_400": 1,
    }
    assert 0 < metrics["llm/seconds"] < 20


def test_counts_by_purpose_and_what_all_runs_have_paid(tmp_path: Path) -> None:
    calls = [caption_call("a"), caption_call("b"), replace(caption_call("c"), purpose="judge")]
    answer = in_turn(said("prose"), said({"caption": "x"}))
    with LlmServer(answer) as server:
        _, client = asked(endpoint(server.url, concurrency=1, output_price=1e6), tmp_path, calls, writer="a")
        _, other = asked(endpoint(server.url), tmp_path, [caption_call("d"), *calls], writer="b")
    by_purpose = client.summary()
    assert list(by_purpose) == ["caption", "judge"]
    caption = by_purpose["caption"]
    assert (caption.calls, caption.paid, caption.output_tokens, caption.cost, dict(caption.bad)) == (2, 3, 60, 60.0, {"not_json": 1})
    assert by_purpose["judge"].paid == 1 and by_purpose.total().paid == 4 and other.summary().total().paid == 1
    with KeyedLines(tmp_path, "c") as store:
        store.put("of something else", {"value": 3})
        paid = paid_in(store)
    assert [(one.model, one.purpose, one.answers) for one in paid] == [("stand-in", "caption", 4), ("stand-in", "judge", 1)]
    assert [one.cost for one in paid] == [60.0, 20.0]
    assert (paid[0].input_tokens, paid[0].output_tokens, paid[0].estimated, dict(paid[0].bad)) == (400, 80, 0, {"not_json": 1})


def test_a_server_that_does_everything_wrong_now_and_then(tmp_path: Path) -> None:
    """300 calls, of 60 requests in a hundred something goes wrong: each call ends right or with a reason, and everything adds up."""
    wrong = [reply for reply, _ in BAD[:4]] + [refused(429, retry_after="0.01"), refused(500), refused(400), HTML]
    wrong += [Reply("{}", cut_at=9), Reply(closes=True)]
    sent = {"bad": 0, "fine": 0}
    times: Counter[str] = Counter()

    def answer(body: dict[str, Any]) -> Reply:
        request = f"{body['messages'][0]['content']} {body['seed']}"
        times[request] += 1
        place = zlib.crc32(f"{request} {times[request]}".encode()) % 100
        if place >= 60:
            sent["fine"] += 1
            return heard(body)
        reply = wrong[place % len(wrong)]
        sent["bad"] += any(reply is bad for bad, _ in BAD)
        return reply

    config = {"timeout_s": 60.0, "max_retries": 3, "concurrency": 50}
    with LlmServer(answer) as server:
        answers, client = asked(endpoint(server.url, **config), tmp_path, [caption_call(f"clip {number}") for number in range(300)])
    for number, one in enumerate(answers):
        assert isinstance(one, CallFailure) or one.value == {"caption": f"clip {number}"}
    metrics = client.metrics()
    failed = sum(isinstance(one, CallFailure) for one in answers)
    assert metrics["llm/calls"] == 300 and metrics["llm/failed"] == failed and 0 < failed < 150
    assert metrics["llm/paid"] == sent["bad"] + sent["fine"] == len(kept(tmp_path))
    assert metrics["llm/bad"] == sent["bad"] and len(answers) - failed == sent["fine"]
    http_400 = metrics["llm/failed_http_400"]
    used_up = sum(value for name, value in metrics.items() if re.match("llm/failed_(http_429|http_500|garbled|connection)", name))
    assert len(server.requests) == metrics["llm/paid"] + metrics["llm/retries"] + used_up + http_400
