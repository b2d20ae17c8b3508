"""The budget: never passed, used to the end, shared, and known again by the next start."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from longtake.config.llm import BudgetConfig
from longtake.errors import BudgetError
from longtake.llm import budget as budget_module
from longtake.llm.budget import Budget, Spending, spending_of
from longtake.llm.calls import Answer
from longtake.llm.client import LlmClient
from longtake.llm.estimate import estimate_tokens, image_tokens, text_tokens
from longtake.observe.keyed_lines import KeyedLines
from longtake.testing.llm_calls import CAPTION, asked, caption_call, endpoint
from longtake.testing.llm_server import LlmServer, Reply, said


def spends(asked_tokens: int, answered_tokens: int) -> Callable[[dict[str, Any]], Reply]:
    return lambda body: said({"caption": "x"}, usage=(asked_tokens, answered_tokens))


def calls(num: int) -> list[Any]:
    """Each is estimated at 12 + 1 + 4 tokens and 50 of answer: 67."""
    return [caption_call(f"clip {number:04d}") for number in range(num)]


def total(folder: Path) -> Spending:
    with KeyedLines(folder, "reader") as store:
        return sum((spending_of(made) for _, made in store.items()), Spending())


def test_estimates() -> None:
    assert text_tokens("") == 0 and text_tokens("word " * 100) == 125 and text_tokens("12.5 s") == 3 + 1
    assert text_tokens("图像" * 50) == 75  # 6 bytes
    file = io.BytesIO()
    Image.new("RGB", (450, 280)).save(file, "JPEG")
    assert image_tokens(file.getvalue()) == 17 * 10 + 2
    assert estimate_tokens(caption_call("word " * 100, system="word " * 4)) == 12 + 125 + 5
    with pytest.raises(ValueError, match="are no image"):
        image_tokens(b"nothing")


def test_it_ends_before_it_is_passed_and_a_higher_one_goes_on(tmp_path: Path) -> None:
    with LlmServer(spends(18, 32)) as server:
        with pytest.raises(BudgetError) as caught:
            asked(endpoint(server.url), tmp_path, calls(100), Budget(BudgetConfig(max_tokens=1000)))
        assert str(caught.value).startswith("950 tokens of 1,000 are spent, and the next call may take 67.")
        assert "raise budget.max_tokens and give the same command again: nothing that was paid is lost" in caught.value.remedy
        assert total(tmp_path) == Spending(950, 0.0) and len(server.requests) == server.num_answered == 19
        with pytest.raises(BudgetError, match="950 tokens of 1,000"):  # what is spent is known again
            asked(endpoint(server.url), tmp_path, calls(100), Budget(BudgetConfig(max_tokens=1000)))
        assert len(server.requests) == 19
        answers, _ = asked(endpoint(server.url), tmp_path, calls(100), Budget(BudgetConfig(max_tokens=5100)))
    assert all(isinstance(one, Answer) for one in answers) and len(server.requests) == 100


def test_money_counts_with_each_servers_prices(tmp_path: Path) -> None:
    """19 calls at 50 x 0.001 + 10 x 0.002 = 0.07, the next may take 17 x 0.001 + 50 x 0.002 = 0.117."""
    prices = {"input_price": 1000.0, "output_price": 2000.0}
    with LlmServer(spends(50, 10)) as server, pytest.raises(BudgetError, match=r"1\.3300 of 1\.4 are spent.* 0\.1170.*budget\.max_cost"):
        asked(endpoint(server.url, concurrency=1, **prices), tmp_path, calls(40), Budget(BudgetConfig(max_cost=1.4)))
    assert total(tmp_path).cost == pytest.approx(1.33) and len(server.requests) == 19


def test_reservations_that_turn_out_too_high_are_used_by_others(tmp_path: Path) -> None:
    """20 calls of 20 tokens in a limit of 450, of which each reserves 67: only six can be in flight."""
    with LlmServer(spends(10, 10), latency_s=0.4) as server:
        answers, _ = asked(endpoint(server.url, concurrency=20), tmp_path, calls(20), Budget(BudgetConfig(max_tokens=450)))
    assert len(answers) == 20 and max(request.in_flight for request in server.requests) == 6


def test_when_it_ends_nothing_is_in_flight(tmp_path: Path) -> None:
    """The error cancels its neighbours in a gather; all of them have been answered by then."""
    with LlmServer(spends(18, 50), latency_s=0.2) as server:
        with pytest.raises(BudgetError):
            asked(endpoint(server.url, concurrency=16), tmp_path, calls(30), Budget(BudgetConfig(max_tokens=700)))
        assert server.num_answered == len(server.requests) == 10 and total(tmp_path).tokens == 680


def test_usage_above_the_estimate_passes_it_by_no_more_than_what_was_in_flight(tmp_path: Path) -> None:
    with LlmServer(spends(400, 50), latency_s=0.05) as server, pytest.raises(BudgetError):
        asked(endpoint(server.url, concurrency=4), tmp_path, calls(50), Budget(BudgetConfig(max_tokens=2000)))
    assert 2000 < total(tmp_path).tokens + 67 <= 2000 + 4 * 450


def test_clients_share_one(tmp_path: Path) -> None:
    async def scenario(one: LlmServer, two: LlmServer) -> None:
        budget = Budget(BudgetConfig(max_tokens=1000))
        with KeyedLines(tmp_path, "test") as store:
            first, second = (LlmClient(endpoint(server.url, model=name), store, budget) for server, name in ((one, "a"), (two, "b")))
            async with first, second:
                await asyncio.gather(*map(first.ask, calls(8)), *map(second.ask, calls(8)))
                with pytest.raises(BudgetError, match="960 tokens of 1,000"):
                    await first.ask(caption_call("one more"))

    with LlmServer(spends(50, 10)) as one, LlmServer(spends(50, 10)) as two:
        asyncio.run(scenario(one, two))
    assert len(one.requests) == len(two.requests) == 8


def test_what_other_machines_spend_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_module, "LOOK_EVERY_S", 0.0)
    made = {"input_tokens": 300, "output_tokens": 400, "cost": 0.0}

    async def scenario(server: LlmServer) -> None:
        with KeyedLines(tmp_path, "here") as store, KeyedLines(tmp_path, "there") as other:
            other.put("before", made)
            async with LlmClient(endpoint(server.url), store, Budget(BudgetConfig(max_tokens=2000))) as client:
                assert isinstance(await client.ask(caption_call("a")), Answer)
                other.put("meanwhile", made)
                assert isinstance(await client.ask(caption_call("b")), Answer)
                other.put("then", made)
                with pytest.raises(BudgetError, match="2,220 tokens of 2,000"):
                    await client.ask(caption_call("c"))

    with LlmServer(spends(30, 30)) as server:
        asyncio.run(scenario(server))


def test_retries_and_cached_answers_cost_nothing(tmp_path: Path) -> None:
    replies = [Reply(closes=True), Reply(status=500), said({"caption": "x"}, usage=(40, 20))]
    with LlmServer(lambda body: replies.pop(0)) as server:
        budget = Budget(BudgetConfig(max_tokens=100))
        asked(endpoint(server.url), tmp_path, [CAPTION], budget)
        asked(endpoint(server.url), tmp_path, [CAPTION], budget)
    assert budget.spent.tokens == 60


def test_it_outlives_a_loop_that_was_broken_off(tmp_path: Path) -> None:
    budget = Budget(BudgetConfig(max_tokens=100))

    store = KeyedLines(tmp_path, "test")

    async def holds() -> None:
        async with budget.reserve(store, Spending(80)):
            await asyncio.sleep(60)

    async def broken_off() -> None:
        tasks = [asyncio.create_task(holds()) for _ in range(3)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def settled() -> None:
        async with budget.reserve(store, Spending(80)) as reservation:
            reservation.settle(Spending(30))

    for run in (broken_off, broken_off, settled):
        asyncio.run(run())
    assert budget.spent == Spending(30)
    store.close()


def test_without_limits_nothing_is_counted_or_read(tmp_path: Path) -> None:
    budget = Budget(BudgetConfig())
    with LlmServer(spends(50, 10)) as server:
        asked(endpoint(server.url), tmp_path, calls(3), budget)
    assert not budget.limited and budget.spent == Spending()


def test_a_limit_of_money_without_prices_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LlmServer(spends(50, 10)) as server:
        asked(endpoint(server.url), tmp_path, calls(1), Budget(BudgetConfig(max_cost=1.0)))
        assert "has no prices in the configuration: its calls do not count in budget.max_cost" in capsys.readouterr().err
        asked(endpoint(server.url, input_price=1.0), tmp_path, calls(1), Budget(BudgetConfig(max_cost=1.0)))
        assert capsys.readouterr().err == ""
