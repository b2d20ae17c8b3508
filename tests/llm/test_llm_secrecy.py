"""A key leaves this process in one header and in nothing else, whatever a server does with it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from longtake.config.env import api_key
from longtake.errors import LlmError
from longtake.llm.calls import CallFailure
from longtake.llm.hide_keys import HIDDEN, hider, without_key_likes
from longtake.testing.llm_calls import asked, caption_call, endpoint
from longtake.testing.llm_server import LlmServer, Reply, said

KEY = 'sk-Canary"0123456789&abc/def+xyz\\'
"""With characters that JSON, HTML and addresses write in other ways."""
SPELLINGS = (KEY, json.dumps(KEY)[1:-1], "sk-Canary&quot;0123456789", "sk-Canary%220123456789")

ECHOES = {
    "message": Reply(status=400, body=b'{"error": {"message": "$authorization is no key"}}', echoes=True),
    "text": Reply(status=400, body=b"who is $authorization?", echoes=True),
    "late": Reply(status=422, body=b"x" * 1590 + b"$authorization", echoes=True),
    "status 500": Reply(status=500, body=b'{"detail": "$authorization"}', echoes=True),
    "garbled": Reply(body=b"<html>$authorization</html>", echoes=True),
    "relay": Reply(body=json.dumps({"error": {"code": 429, "message": KEY}}).encode()),
    "header": Reply(status=503, body=b"", headers={"Retry-After": "soon $authorization"}),
    "answer": said({"caption": KEY}),
    "bad answer": said({"caption": [KEY]}),
    "cut answer": Reply(KEY * 40, finish="length"),
    "refusal": Reply(None, refusal=f"not for {KEY}"),
    "finish": Reply("{}", finish=KEY),
    "usage": Reply(body=json.dumps({"choices": [{"message": {"content": "{}"}}], "usage": {"prompt_tokens": KEY}}).encode()),
    "denied": Reply(status=401, body=b'{"error": {"message": "Incorrect API key provided: $authorization"}}', echoes=True),
    "unknown": Reply(status=404, body=b'{"error": {"message": "$authorization"}}', echoes=True),
}


@pytest.mark.parametrize("name", ECHOES)
def test_no_key_in_what_is_written_or_raised(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    name: str,
) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    seen: list[str] = []
    with caplog.at_level(logging.DEBUG), LlmServer(lambda body: ECHOES[name], models=("stand-in", f"of {KEY}")) as server:
        config = endpoint(server.url, key_variable="TEST_KEY", max_retries=1, bad_answer_retries=1)
        try:
            answers, client = asked(config, tmp_path, [caption_call("one"), caption_call("two")])
            seen += [repr(answers), repr([vars(answer) for answer in answers]), repr(client), repr(client.metrics()), repr(config)]
        except LlmError as error:
            assert name in ("denied", "unknown")
            seen += [repr(error), str(error), *traceback.format_exception(error), repr(error.__cause__), str(vars(error))]
    assert all(request.headers["authorization"] == f"Bearer {KEY}" for request in server.requests) and server.requests
    out, err = capfd.readouterr()
    seen += [out, err, caplog.text, *(path.read_text() for path in tmp_path.rglob("*.jsonl"))]
    for spelling in SPELLINGS:
        assert [text for text in seen if spelling in text] == []
    if name in ("message", "text", "status 500", "garbled", "denied", "unknown", "answer", "cut answer", "refusal"):
        assert HIDDEN in "".join(seen)  # negative control: it was there, and was taken out


def test_a_part_of_a_key_and_other_keys_are_not_passed_on_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "sk-proj-0123456789abcdef")
    told = "Incorrect API key provided: sk-proj-0123*****cdef, nor Bearer abcdef123; see sk-learn"
    assert without_key_likes(told) == f"Incorrect API key provided: {HIDDEN}, nor {HIDDEN}; see sk-learn"
    with LlmServer(lambda body: Reply(status=400, body=json.dumps({"error": {"message": told}}).encode())) as server:
        (failure,), _ = asked(endpoint(server.url, key_variable="TEST_KEY"), tmp_path, [caption_call("one")])
    assert isinstance(failure, CallFailure) and "0123" not in failure.message and "abcdef123" not in failure.message


def test_stand_ins_for_keys_may_be_words_of_an_answer() -> None:
    assert hider("EMPTY")("the room is EMPTY") == "the room is EMPTY" == hider(None)("the room is EMPTY")
    assert hider("0123456789")("a 0123456789 b 0123456789") == f"a {HIDDEN} b {HIDDEN}"


@pytest.mark.parametrize(("value", "key"), [(None, None), ("", None), ("  ", None), (" abc\n", "abc")])
def test_a_key_comes_from_its_variable(monkeypatch: pytest.MonkeyPatch, value: str | None, key: str | None) -> None:
    monkeypatch.delenv("TEST_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("TEST_KEY", value)
    assert api_key("TEST_KEY") == key


PROGRAM = """
import logging, sys
from pathlib import Path
logging.basicConfig(level=logging.DEBUG)
from longtake.testing.llm_calls import asked, caption_call, endpoint
config = endpoint(sys.argv[1], key_variable="TEST_KEY", max_retries=1)
print(asked(config, Path(sys.argv[2]), [caption_call("one")])[0])
logging.getLogger("other").debug("heard")
"""


def test_not_even_with_all_logs_on(tmp_path: Path) -> None:
    environment = os.environ | {"OPENAI_LOG": "debug", "TEST_KEY": KEY}
    with LlmServer(lambda body: ECHOES["message"]) as server:
        command = [sys.executable, "-c", PROGRAM, server.url, str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert "heard" in done.stderr and HIDDEN in done.stdout and len(server.requests) == 1
    assert not any(spelling in done.stdout + done.stderr for spelling in SPELLINGS)
    assert "HTTP" not in done.stderr
