"""Pace, pauses and their bounds, on a clock of our own."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from longtake.llm.limits import MAX_RETRY_AFTER_S, Limits, Pace, Slots, backoff, retry_after

NOW_S = 1_790_000_000.0
"""2026-09-21 14:13:20 GMT."""


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_requests_are_spread_evenly_over_a_minute() -> None:
    clock = Clock()
    pace = Pace(30, clock)
    assert [pace.delay(1) for _ in range(4)] == pytest.approx([0, 2, 4, 6])
    clock.now_s += 3
    assert pace.delay(1) == pytest.approx(5)
    clock.now_s += 1000  # time that nobody used is not saved up
    assert [pace.delay(1) for _ in range(3)] == pytest.approx([0, 2, 4])


def test_tokens_pass_on_credit_that_is_paid_back_first() -> None:
    pace = Pace(600, Clock())  # 10 a second
    assert [pace.delay(amount) for amount in (50, 1000, 10, 0)] == pytest.approx([0, 5, 105, 106])


def test_no_minute_sees_more_than_its_share_and_one_piece() -> None:
    clock, chance = Clock(), random.Random(0)
    pace = Pace(1000, clock)
    sent = []
    for _ in range(400):
        clock.now_s += chance.choice([0, 0, 0.1, 5])
        amount = chance.choice([10, 100, 300])
        sent.append((clock.now_s + pace.delay(amount), amount))
    for start, _ in sent:
        assert sum(amount for at, amount in sent if start <= at < start + 60) <= 1000 + 300


def sent_times(limits: Limits, pauses: list[tuple[float, float]], num: int) -> list[float]:
    """When each of `num` requests may leave, in seconds from the start; (at, seconds) of each pause."""

    async def run() -> list[float]:
        began = time.monotonic()

        async def send() -> float:
            await limits.wait(10)
            return time.monotonic() - began

        async def pause() -> None:
            for at_s, seconds in pauses:
                await asyncio.sleep(at_s - (time.monotonic() - began))
                limits.pause(seconds)

        *times, _ = await asyncio.gather(*(send() for _ in range(num)), pause())
        return times

    return asyncio.run(run())


def test_without_limits_nobody_waits() -> None:
    assert max(sent_times(Limits(None, None), [], 100)) < 0.5


def test_the_stricter_of_both_limits_counts() -> None:
    assert sent_times(Limits(600, 60 * 10 * 5), [], 4)[-1] >= 0.59  # 10 tokens each: 5 a second, not 10
    assert sent_times(Limits(300, 1e9), [], 4)[-1] >= 0.59
    assert Limits(None, 5).counts_tokens and not Limits(5, None).counts_tokens


def test_a_pause_holds_everybody_and_is_no_burst_afterwards() -> None:
    times = sent_times(Limits(1200, None), [(0.12, 0.5)], 10)  # one each 0.05 s
    early = [at for at in times if at < 0.6]
    late = sorted(at for at in times if at >= 0.6)
    assert 1 <= len(early) <= 8 and len(early) + len(late) == 10
    assert late[-1] - late[0] >= 0.05 * (len(late) - 1) - 0.01


def test_backoff_is_doubled_up_to_a_minute_with_half_of_it_by_chance() -> None:
    chance = random.Random(0)
    for number, whole_s in [(0, 1), (1, 2), (2, 4), (5, 32), (6, 60), (2000, 60)]:
        drawn = [backoff(number, 1.0, chance) for _ in range(200)]
        assert whole_s / 2 <= min(drawn) < 0.55 * whole_s and 0.95 * whole_s < max(drawn) <= whole_s


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 0.5 "}, 0.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "Mon, 21 Sep 2026 14:13:50 GMT"}, 30.0),
        ({"retry-after": "Mon, 21 Sep 2026 14:12:00 GMT"}, 0.0),
        ({"retry-after": "Mon, 21 Sep 2027 14:12:00 GMT"}, MAX_RETRY_AFTER_S),
        ({"retry-after": "86400"}, MAX_RETRY_AFTER_S),
        ({"retry-after": "inf"}, MAX_RETRY_AFTER_S),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "Mon, 99 Sep 99999 14:12:00 GMT"}, None),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, NOW_S) == (None if seconds is None else pytest.approx(seconds))


def order_of(turns: list[int], num_slots: int, broken_off: tuple[int, ...] = ()) -> list[int]:
    """Who had a place, by its number in `turns`, in order; `broken_off` are cancelled while they wait or at the moment they may go."""

    async def run() -> list[int]:
        slots, went = Slots(num_slots), []

        async def one(number: int) -> None:
            async with slots.taken(turns[number]):
                went.append(number)
                if number == 0:
                    for other in broken_off:
                        tasks[other].cancel()
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(one(number)) for number in range(len(turns))]
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        free = [slots.taken(0) for _ in range(num_slots)]
        for place in free:  # all places have come back
            await asyncio.wait_for(place.__aenter__(), 1)
        for place in free:
            await place.__aexit__(None, None, None)
        return went

    return asyncio.run(run())


def test_the_lowest_turn_goes_first_and_among_equals_the_first() -> None:
    assert order_of([5, 3, 1, 3, 1, 0], 1) == [0, 5, 2, 4, 1, 3]
    assert order_of([5, 5, 9, 1, 1, 0], 2)[:4] == [0, 1, 5, 3]


@pytest.mark.parametrize("broken_off", [(1,), (2, 3), (5,), (1, 2, 3, 4, 5)])
def test_a_place_is_not_lost_with_who_waited_for_it(broken_off: tuple[int, ...]) -> None:
    went = order_of([0, 3, 1, 3, 1, 0], 1, broken_off)
    assert went == [number for number in [0, 5, 2, 4, 1, 3] if number not in broken_off]


def test_a_place_that_comes_with_the_end_goes_on_to_the_next() -> None:
    async def run() -> bool:
        slots = Slots(1)
        first = slots.taken(0)
        await first.__aenter__()

        async def wait() -> None:
            async with slots.taken(0):
                raise AssertionError("it was broken off")

        waits = asyncio.create_task(wait())
        await asyncio.sleep(0)
        await first.__aexit__(None, None, None)  # the place is given to it
        waits.cancel()  # and it is broken off before it runs
        await asyncio.gather(waits, return_exceptions=True)
        async with asyncio.timeout(1), slots.taken(0):
            return waits.cancelled()

    assert asyncio.run(run())
