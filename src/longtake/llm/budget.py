"""What calls may cost. Nothing is sent that could pass the budget; what was answered is paid and kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtake.config.llm import BudgetConfig
from longtake.errors import BudgetError
from longtake.observe.keyed_lines import KeyedLines

LOOK_EVERY_S = 10.0
"""How often it is looked up what other machines have spent."""


@dataclass(frozen=True)
class Spending:
    """Tokens of questions and answers together, and their price."""

    tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: Spending) -> Spending:
        return Spending(self.tokens + other.tokens, self.cost + other.cost)

    def __sub__(self, other: Spending) -> Spending:
        return Spending(self.tokens - other.tokens, self.cost - other.cost)


def spending_of(made: Mapping[str, Any]) -> Spending:
    """Of a kept answer; nothing for a record of something else."""
    tokens = made.get("input_tokens", 0) + made.get("output_tokens", 0)
    return Spending(tokens, made.get("cost", 0.0))


class Reservation:
    """What a call may cost at most, until it is known what it did cost."""

    def __init__(self) -> None:
        self.spent = Spending()

    def settle(self, spent: Spending) -> None:
        """The call was answered."""
        self.spent = spent


@dataclass
class _Counted:
    """What was spent according to one store."""

    store: KeyedLines
    seen: int
    """Of its records, those that were looked at."""
    spent: Spending


class Budget:
    """What calls may cost in all, over several clients; what earlier runs and other machines spent counts, as the clients' stores tell."""

    def __init__(self, config: BudgetConfig) -> None:
        self.config = config
        self._counted: dict[Path, _Counted] = {}
        """By the store's folder."""
        self._reserved = Spending()
        self._num_reserved = 0
        self._looked_at = time.monotonic()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turn: asyncio.Lock
        self._settled: asyncio.Event

    @property
    def limited(self) -> bool:
        return self.config.max_tokens is not None or self.config.max_cost is not None

    @property
    def spent(self) -> Spending:
        """So far, by all that write into the stores; where there is no limit nothing is counted."""
        return sum((counted.spent for counted in self._counted.values()), Spending())

    @asynccontextmanager
    async def reserve(self, store: KeyedLines, most: Spending) -> AsyncIterator[Reservation]:
        """Room for a call that costs at most so much: inside, it is sent and settled. `store`: where its answer will be kept.

        Where there is room only when calls in flight turn out cheaper, they are waited for, in turn. Raises BudgetError when there is none
        even then: at that moment none is in flight, so that none is lost.
        """
        reservation = Reservation()
        if not self.limited:
            yield reservation
            return
        counted = self._count(store)
        await self._find_room(most)
        try:
            yield reservation
        finally:
            self._reserved -= most
            self._num_reserved -= 1
            counted.spent += reservation.spent
            self._settled.set()

    def _count(self, store: KeyedLines) -> _Counted:
        """Reads all of a store that was not seen yet, or was opened anew."""
        counted = self._counted.get(store.folder)
        if counted is None or counted.store is not store:
            counted = _Counted(store, len(store), sum((spending_of(made) for _, made in store.items()), Spending()))
            self._counted[store.folder] = counted
        return counted

    async def _find_room(self, most: Spending) -> None:
        self._enter_loop()
        self._look()
        async with self._turn:
            while not self._fits(self.spent + self._reserved + most):
                if self._num_reserved == 0:
                    raise self._exhausted(most)
                self._settled.clear()
                await self._settled.wait()
            self._reserved += most
            self._num_reserved += 1

    def _enter_loop(self) -> None:
        """A run may have one loop after the other; what belonged to an earlier one is void."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._turn, self._settled = loop, asyncio.Lock(), asyncio.Event()
            self._reserved, self._num_reserved = Spending(), 0

    def _look(self) -> None:
        """What this process put was settled, so only the records of others are new."""
        if time.monotonic() - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = time.monotonic()
        for counted in self._counted.values():
            if counted.store.closed:
                continue
            counted.store.refresh()
            counted.spent += sum((spending_of(made) for _, made in counted.store.items(counted.seen, others=True)), Spending())
            counted.seen = len(counted.store)

    def _fits(self, total: Spending) -> bool:
        max_tokens, max_cost = self.config.max_tokens, self.config.max_cost
        return (max_tokens is None or total.tokens <= max_tokens) and (max_cost is None or total.cost <= max_cost)

    def _exhausted(self, most: Spending) -> BudgetError:
        max_tokens, max_cost = self.config.max_tokens, self.config.max_cost
        if max_tokens is not None and self.spent.tokens + most.tokens > max_tokens:
            name, spent, limit, more = "max_tokens", f"{self.spent.tokens:,} tokens", f"{max_tokens:,}", f"{most.tokens:,}"
        else:
            name, spent, limit, more = "max_cost", f"{self.spent.cost:.4f}", f"{max_cost:g}", f"{most.cost:.4f}"
        return BudgetError(
            f"{spent} of {limit} are spent, and the next call may take {more}",
            rule=f"the calls of a run stay inside budget.{name}, those of its earlier starts and other machines included",
            remedy=f"raise budget.{name} and give the same command again: nothing that was paid is lost",
        )
