"""The client against a real `vllm serve`: answers held to a schema, images, and what it says when something does not fit."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from longtake.errors import LlmError
from longtake.llm.calls import Answer, CallFailure
from longtake.testing.llm_calls import CAPTION, asked, caption_call, endpoint
from longtake.testing.vllm_servers import served

pytest.importorskip("vllm")
pytestmark = [pytest.mark.long]


def test_a_real_server(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (112, 56), (200, 0, 0)).save(file, "JPEG")
    seen = replace(CAPTION, parts=("What is seen?", file.getvalue()), temperature=0.9)
    calls = [
        seen,
        replace(seen, sample=1),
        replace(seen, max_tokens=5),
        caption_call("word " * 5000),
        caption_call("a", max_tokens=5000),
        replace(CAPTION, parts=(b"no JPEG", "What is seen?")),
    ]
    with served("tiny", tmp_path / "server.txt") as (url, _):
        config = endpoint(f"{url}/v1", model=None, timeout_s=120.0)
        answers, client = asked(config, tmp_path / "answers", calls)
        again, other = asked(config, tmp_path / "answers", calls[:3])
        with pytest.raises(LlmError, match=r"404 for model 'nobody'.*it has .*tiny"):
            asked(endpoint(f"{url}/v1", model="nobody"), tmp_path / "others", [CAPTION])
    for one in answers[:2]:
        assert isinstance(one, Answer) and len(one.value["caption"]) <= 40 and one.input_tokens > 10 and one.output_tokens > 4
    cut, long_question, long_answer, no_image = answers[2:]
    assert isinstance(cut, CallFailure) and (cut.kind, cut.tries) == ("length", 3)
    for one in (long_question, long_answer):
        assert isinstance(one, CallFailure) and one.kind == "http_400" and "fit into the model's context" in one.message
    assert isinstance(no_image, CallFailure) and no_image.kind == "http_400" and "image" in no_image.message
    assert client.metrics()["llm/paid"] == 5 and other.metrics()["llm/paid"] == 0
    assert [one.value for one in again[:2]] == [one.value for one in answers[:2]] and again[2] == cut
