"""The oracle over HTTP, asked by the real client of OpenAI; and the command that serves it."""

import asyncio
import base64
import json
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from longtake.config.world_serve import LieRates
from longtake.errors import ConfigError
from longtake.testing.oracle_calls import caption_requests, captions_of, clips_of, question_request, text_of
from longtake.world.oracle import Oracle
from longtake.world.oracle_ledger import read_ledger
from longtake.world.oracle_request import OracleRequest
from longtake.world.server import OracleServer

SUPPORT = text_of(
    captions="[0.0 s - 9.7 s] In the cave the red square takes the key.\n[9.7 s - 19.0 s] The hall is empty.",
    question="Which place came right after the cave?",
    options="A. street\nB. hall\nC. snow\nD. beach",
)
JUDGED = text_of(question="Where does the story begin?", reference="cave", response="in the cave")


@pytest.fixture(scope="module")
def server(world_folder: Path):
    with OracleServer([world_folder]) as running:
        yield running


def client_of(server: OracleServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)


def ask(client: openai.OpenAI, request: OracleRequest, **more):
    """The completion."""
    images = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"}}
        for image in request.images
    ]
    return client.chat.completions.create(
        model="world",
        messages=[
            {"role": "system", "content": "You are careful."},
            {"role": "user", "content": [{"type": "text", "text": request.text}, *images]},
        ],
        response_format={"type": "json_schema", "json_schema": {"name": request.purpose, "schema": {"type": "object"}, "strict": True}},
        seed=request.seed,
        **more,
    )


def said(completion) -> dict:
    return json.loads(completion.choices[0].message.content)


def test_the_only_model_is_listed(server: OracleServer):
    client = client_of(server)
    assert [model.id for model in client.models.list()] == ["world"] and client.models.retrieve("world").id == "world"


def test_answers_over_http_are_those_of_the_oracle(server: OracleServer, honest: Oracle):
    client = client_of(server)
    requests = [
        *caption_requests(honest, 5, clips_of(honest, 5)),
        OracleRequest("ground", *_first_clip(honest)),
        question_request(honest, 5, captions_of(honest, 5), "question_temporal"),
        OracleRequest("support", SUPPORT, seed=3),
        OracleRequest("blind", text_of(question="Where does the story begin?"), seed=7),
        OracleRequest("judge", JUDGED),
    ]
    assert [said(ask(client, request)) for request in requests] == [honest.answer(request) for request in requests]


def _first_clip(honest: Oracle) -> tuple[str, tuple[bytes, ...]]:
    request = caption_requests(honest, 5, clips_of(honest, 5)[:1], count=1)[0]
    return request.text, request.images


def test_usage_is_counted_and_long_answers_are_cut(server: OracleServer):
    client = client_of(server)
    whole = ask(client, OracleRequest("support", SUPPORT))
    assert whole.choices[0].finish_reason == "stop" and said(whole) == {"answer": "B"}
    assert whole.usage.prompt_tokens == len(SUPPORT) // 4 + 1 and whole.usage.completion_tokens == len('{"answer": "B"}') // 4 + 1
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    cut = ask(client, OracleRequest("support", SUPPORT), max_tokens=2)
    assert (cut.choices[0].finish_reason, cut.choices[0].message.content) == ("length", '{"answer')


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": "gpt"}, "model 'gpt'; there is 'world' alone"),
        ({"stream": True}, "one whole answer"),
        ({"n": 2}, "one whole answer"),
        ({"response_format": {"type": "json_object"}}, "json_schema.name"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "poem"}}}, "purpose 'poem'"),
        ({"messages": []}, "messages"),
        ({"messages": ["hello"]}, "messages"),
        ({"messages": [{"role": "user", "content": None}]}, "content"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x"}}]}]},
            "nothing is fetched",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,&&"}}]}]}, "base64"),
        ({"messages": [{"role": "user", "content": "no blocks"}]}, "without a block <captions>"),
    ],
)
def test_requests_that_cannot_be_answered_are_refused_as_openai_does(server: OracleServer, change: dict, told: str):
    body = {
        "model": "world",
        "messages": [{"role": "user", "content": SUPPORT}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "support", "schema": {}}},
    }
    with pytest.raises(openai.BadRequestError) as caught:
        client_of(server).post("/chat/completions", body=body | change, cast_to=object)
    assert told in str(caught.value.body["message"]) and caught.value.body["type"] == "invalid_request_error"


def raw(server: OracleServer, content: bytes) -> bytes:
    """All that comes back for these bytes until the server closes, or has nothing to say for a second."""
    with socket.create_connection((server.host, server.port), timeout=1.0) as connection:
        connection.sendall(content)
        got = b""
        try:
            while part := connection.recv(65536):
                got += part
        except TimeoutError:
            pass
        return got


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n\r\n", b"200"),
        (b"GET /v1/nothing HTTP/1.1\r\nConnection: close\r\n\r\n", b"404"),
        (b"GET /v1/chat/completions HTTP/1.1\r\nConnection: close\r\n\r\n", b"405"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 4\r\nConnection: close\r\n\r\nnope", b"400"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]", b"400"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 99999\r\nConnection: close\r\n\r\n" + b"[" * 99999, b"400"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", b"400"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
        (b"hello\r\n\r\n", b"400"),
        (b"x" * 70000, b"431"),
    ],
)
def test_what_is_no_request_does_not_end_the_server(server: OracleServer, content: bytes, status: bytes):
    head, _, body = raw(server, content).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status)
    assert ("error" in json.loads(body)) == (status != b"200")


def test_a_request_in_pieces_and_two_in_one_are_answered(server: OracleServer):
    one = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n\r\n"
    assert raw(server, one + last).count(b'"object": "list"') == 2
    with socket.create_connection((server.host, server.port), timeout=5.0) as connection:
        for byte in last:
            connection.sendall(bytes([byte]))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_many_at_once(server: OracleServer):
    client = client_of(server)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda seed: said(ask(client, OracleRequest("support", SUPPORT, seed=seed))), range(200)))
    assert answers == [{"answer": "B"}] * 200


def test_hundreds_of_requests_a_second(server: OracleServer):
    """One core for server and test together; alone the server does several thousand."""
    body = json.dumps(
        {
            "model": "world",
            "messages": [{"role": "user", "content": SUPPORT}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "support", "schema": {}}},
        }
    ).encode()
    request = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    async def many(count: int) -> float:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        started = time.perf_counter()
        for _ in range(count):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
            assert b'B\\"' in await reader.readexactly(length)
        took_s = time.perf_counter() - started
        writer.close()
        return count / took_s

    assert asyncio.run(many(400)) > 100  # measured 2,000 on an idle core; the margin is for a busy machine


def test_failures_are_half_500_a_quarter_garbage_a_quarter_429_and_pass_when_tried_again(world_folder: Path):
    with OracleServer([world_folder], seed=2, failures=0.2) as server:
        client = client_of(server)
        first = [_kind(client, OracleRequest("judge", JUDGED, seed=seed)) for seed in range(240)]
        kinds = Counter(first)
        assert 24 <= kinds["500"] + kinds["429"] + kinds["garbage"] <= 72  # 48 +- 3.9 sigma
        assert kinds["500"] > kinds["429"] > 2 and kinds["500"] > kinds["garbage"] > 2 and set(kinds) == {"yes", "500", "429", "garbage"}
        assert server.counts["failure/500"] == server.counts["500"] == kinds["500"] and server.counts["failure/garbage"] == kinds["garbage"]
        failed = [seed for seed, kind in enumerate(first) if kind != "yes"]
        again = [_kind(client, OracleRequest("judge", JUDGED, seed=seed)) for seed in failed]
        assert again.count("yes") > len(failed) / 2
        patient = openai.OpenAI(base_url=server.url, api_key="none", max_retries=10)
        assert all(_kind(patient, OracleRequest("support", SUPPORT, seed=seed)) in ("B", "garbage") for seed in range(20))


def _kind(client: openai.OpenAI, request: OracleRequest) -> str:
    try:
        text = ask(client, request).choices[0].message.content
    except openai.RateLimitError as error:
        assert error.response.headers["retry-after-ms"] == "10" and error.body["type"] == "rate_limit_error"
        return "429"
    except openai.InternalServerError as error:
        assert error.body["type"] == "server_error"
        return "500"
    try:
        return next(iter(json.loads(text).values()))
    except json.JSONDecodeError:
        return "garbage"


def test_some_questions_to_the_judge_always_fail(world_folder: Path):
    with OracleServer([world_folder], LieRates(judge_failures=0.2)) as server:
        client = client_of(server)
        first, second = ([_kind(client, OracleRequest("judge", JUDGED, seed=seed)) for seed in range(120)] for _ in range(2))
        assert first == second and 8 <= len(first) - first.count("yes") <= 41
        assert [_kind(client, OracleRequest("support", SUPPORT, seed=seed)) for seed in range(50)] == ["B"] * 50


def test_a_taken_port_is_told(server: OracleServer, world_folder: Path):
    other = OracleServer([world_folder], port=server.port)
    with pytest.raises(ConfigError, match="give another port"):
        other.start()
    other.stop()
    other.stop()


def test_the_command_prints_its_address_and_serves_until_it_is_stopped(world_folder: Path, honest: Oracle, tmp_path: Path):
    ledger = tmp_path / "ledger.jsonl"
    command = [
        sys.executable,
        "-m",
        "longtake",
        "world",
        "serve",
        str(world_folder),
        "--port",
        "0",
        "--lies.answers",
        "1",
        "--ledger",
        str(ledger),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        assert said(ask(client, OracleRequest("support", SUPPORT)))["answer"] in "ACD"
        ask(client, question_request(honest, 0, captions_of(honest, 0), "question_plot"))
    finally:
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 143 and "stopped: the server has ended" in told and "lie/support 1" in told
    assert [entry.key_lied for entry in read_ledger(ledger)] == [True, True]


def test_the_command_refuses_what_is_no_world(tmp_path: Path):
    done = subprocess.run([sys.executable, "-m", "longtake", "world", "serve", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "holds no world" in done.stderr and "longtake world make" in done.stderr
