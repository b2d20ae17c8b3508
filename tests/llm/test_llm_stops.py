"""Ctrl-C and kills: what was answered is on disk, what was not is let go, and the next start pays for the rest alone."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longtake.llm.client import LlmClient
from longtake.observe.keyed_lines import KeyedLines
from longtake.testing.llm_calls import asked, caption_call, endpoint
from longtake.testing.llm_server import LlmServer, Reply, said

NUM = 60
CONCURRENCY = 8
PROGRAM = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background inherits it ignored
from pathlib import Path
from longtake.testing.llm_calls import asked, caption_call, endpoint
calls = [caption_call(f"clip {{number}}") for number in range({NUM})]
answers, _ = asked(endpoint(sys.argv[1], concurrency={CONCURRENCY}, key_variable="NO_KEY"), Path(sys.argv[2]), calls)
print(*[answer.value["caption"] for answer in answers], sep=",")
"""
WHOLE = ",".join(f"clip {number}" for number in range(NUM))


def heard(body: dict[str, Any]) -> Reply:
    return said({"caption": body["messages"][-1]["content"]})


def start(server: LlmServer, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, server.url, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "test.jsonl"
    return [json.loads(line)["made"] for line in path.read_bytes().splitlines(True) if line.endswith(b"\n")] if path.exists() else []


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_what_was_answered_is_kept_and_never_paid_again(tmp_path: Path, number: signal.Signals) -> None:
    """The server answers 21 calls and lets the others hang: so it is known what was answered when the process ends."""

    def answer(body: dict[str, Any]) -> Reply:
        return heard(body) if len(server.requests) <= 21 or process is not first else Reply(hangs=True)

    with LlmServer(answer) as server:
        process = first = start(server, tmp_path)
        wait_until(lambda: len(server.requests) == 21 + CONCURRENCY and len(lines(tmp_path)) == 21)
        first.send_signal(number)
        _, told = first.communicate(timeout=60)
        assert first.returncode == -number or (number == signal.SIGINT and "KeyboardInterrupt" in told)
        assert "never retrieved" not in told and "Event loop is closed" not in told and "destroyed" not in told
        wait_until(lambda: server.in_flight == 0)
        assert server.num_answered == 21 == len(lines(tmp_path))
        process = start(server, tmp_path)
        out, _ = process.communicate(timeout=60)
    assert out.strip() == WHOLE
    answered = Counter(request.text for request in server.requests if request.answered)
    assert answered == Counter(f"clip {place}" for place in range(NUM))


@pytest.mark.long
def test_kills_at_random_moments_cost_no_more_than_what_was_in_flight(tmp_path: Path) -> None:
    chance, kills = random.Random(3), 0
    with LlmServer(heard, latency_s=0.1) as server:
        out = ""
        while out.strip() != WHOLE:
            process = start(server, tmp_path)
            before = len(server.requests)
            try:
                wait_until(lambda before=before, process=process: len(server.requests) > before or process.poll() is not None)
                out, _ = process.communicate(timeout=chance.uniform(0.0, 0.4))
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
    assert kills > 0
    twice = sum((Counter(request.text for request in server.requests if request.answered) - Counter(set(WHOLE.split(",")))).values())
    assert twice <= kills * CONCURRENCY and len({made["text"] for made in lines(tmp_path)}) == NUM == len(lines(tmp_path))


def test_leaving_the_client_breaks_off_what_is_in_flight(tmp_path: Path) -> None:
    async def scenario() -> list[Any]:
        with KeyedLines(tmp_path, "test") as store:
            async with LlmClient(endpoint(server.url), store) as client:
                asking = [asyncio.create_task(client.ask(caption_call(text))) for text in ("quick", "slow", "slower")]
                await asking[0]
                while len(server.requests) < 3:
                    await asyncio.sleep(0.01)
            return await asyncio.gather(*asking, return_exceptions=True)

    with LlmServer(lambda body: heard(body) if "quick" in str(body) else Reply(hangs=True)) as server:
        quick, *others = asyncio.run(scenario())
        wait_until(lambda: server.in_flight == 0)
    assert quick.value == {"caption": "quick"} and all(isinstance(one, asyncio.CancelledError) for one in others)
    assert len(lines(tmp_path)) == 1


def test_an_error_in_one_call_does_not_lose_the_answers_of_others(tmp_path: Path) -> None:
    """A gather that fails leaves its neighbours running; leaving the client ends them, and what they had is kept."""

    async def scenario() -> None:
        with KeyedLines(tmp_path, "test") as store:
            async with LlmClient(endpoint(server.url), store) as client:

                async def fails() -> None:
                    await client.ask(caption_call("quick"))
                    raise RuntimeError("of the caller")

                await asyncio.gather(fails(), client.ask(caption_call("slow")))

    with LlmServer(lambda body: heard(body) if "quick" in str(body) else Reply(hangs=True)) as server:
        with pytest.raises(RuntimeError, match="of the caller"):
            asyncio.run(scenario())
        answers, _ = asked(endpoint(server.url), tmp_path, [caption_call("quick")])
    assert answers[0].cached
