"""When a request may leave: its place among those in flight, requests and tokens per minute, pauses that a server asks for, and the pause
before another try."""

from __future__ import annotations

import asyncio
import heapq
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime

MAX_BACKOFF_S = 60.0
MAX_RETRY_AFTER_S = 300.0
"""A server that asks for more is asked again after this."""


class Slots:
    """So many places. One that becomes free goes to who waits with the lowest turn, and among equals to who came first."""

    def __init__(self, number: int) -> None:
        self._free = number
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        """A heap: turn, number of arrival, and what becomes done with the place."""
        self._arrived = 0

    @asynccontextmanager
    async def taken(self, turn: int) -> AsyncIterator[None]:
        """A place, as soon as there is one, until the block ends."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(turn)
        try:
            yield
        finally:
            self._leave()

    async def _wait(self, turn: int) -> None:
        place = asyncio.get_running_loop().create_future()
        self._arrived += 1
        heapq.heappush(self._waiting, (turn, self._arrived, place))
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():  # the place came at the same moment
                self._leave()
            raise

    def _leave(self) -> None:
        while self._waiting:
            *_, place = heapq.heappop(self._waiting)
            if not place.done():
                place.set_result(None)
                return
        self._free += 1


class Pace:
    """So much per minute, and never more in any minute than that and one piece.

    A bucket that holds one drop: what passes goes on credit, and the next waits until the credit is paid back. So calls of all sizes pass,
    evenly spread.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._clock = per_minute / 60.0, clock
        self._free_at = -math.inf
        """When all that has passed is paid back."""

    def delay(self, amount: float) -> float:
        """Seconds until `amount` may pass; it counts as passed then."""
        now = self._clock()
        start = max(now, self._free_at)
        self._free_at = start + amount / self._per_s
        return start - now


class Limits:
    """Of one server."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self._requests = None if requests_per_minute is None else Pace(requests_per_minute)
        self._tokens = None if tokens_per_minute is None else Pace(tokens_per_minute)
        self._quiet_until = -math.inf

    @property
    def counts_tokens(self) -> bool:
        return self._tokens is not None

    def pause(self, seconds: float) -> None:
        """Nothing is sent for so long: the server has said so to one call, and means all of them."""
        self._quiet_until = max(self._quiet_until, time.monotonic() + seconds)

    async def wait(self, tokens: int) -> None:
        """Until a request of so many tokens, of question and answer together, may leave."""
        while True:
            await self._quiet()
            if (delay_s := self._delay(tokens)) > 0:
                await asyncio.sleep(delay_s)
            if self._quiet_until <= time.monotonic():
                return  # else its turn has passed meanwhile: with all others that waited it would come at once

    def _delay(self, tokens: int) -> float:
        requests_s = 0.0 if self._requests is None else self._requests.delay(1.0)
        return requests_s if self._tokens is None else max(requests_s, self._tokens.delay(float(tokens)))

    async def _quiet(self) -> None:
        while (quiet_s := self._quiet_until - time.monotonic()) > 0:
            await asyncio.sleep(quiet_s)


def backoff(number: int, first_s: float, chance: random.Random) -> float:
    """Seconds before try `number` + 2 (0: before the second): doubled each time, at most a minute, half of it drawn at random so that calls
    refused together do not come back together."""
    whole_s = min(MAX_BACKOFF_S, first_s * 2.0 ** min(number, 30))
    return whole_s * (0.5 + 0.5 * chance.random())


def retry_after(headers: Mapping[str, str], now_s: float) -> float | None:
    """Seconds that a server asks to wait, at most MAX_RETRY_AFTER_S; None: it does not. `now_s`: time.time(), for dates."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        if (text := headers.get(name)) is not None and (seconds := _number(text)) is not None:
            return min(seconds * unit_s, MAX_RETRY_AFTER_S)
    try:
        date_s = parsedate_to_datetime(headers.get("retry-after", "")).timestamp()
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, date_s - now_s), MAX_RETRY_AFTER_S)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if number >= 0 else None  # NaN is not
