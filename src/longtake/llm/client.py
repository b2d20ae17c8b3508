"""The client of a server that speaks the protocol of OpenAI's chat completions.

A call becomes requests like this:
  ask       equal calls in flight are one
  attempts  another seed after an answer that is cut off, no JSON or against the schema; each answer is found in the store or paid
  tries     the same request again, after a pause, when the server refuses or breaks off
  request   in a slot (concurrency), with room in the budget, at the server's pace
"""

from __future__ import annotations

import asyncio
import random
import time
from types import TracebackType
from typing import Any, Self

from longtake.config.llm import BudgetConfig, EndpointConfig
from longtake.errors import LlmError
from longtake.llm.budget import Budget as Budget
from longtake.llm.budget import Spending
from longtake.llm.calls import Answer, CallFailure, ChatCall
from longtake.llm.counts import Counts
from longtake.llm.estimate import estimate_tokens, text_tokens
from longtake.llm.faults import Fault, bad_answers, failed, model_unclear, no_access, no_credit, no_list, not_found, unreachable
from longtake.llm.limits import Limits, Slots, backoff
from longtake.llm.requests import attempt_key, call_digest, output_limit, request_body
from longtake.llm.schemas import Bad, instruction, read_answer
from longtake.llm.server import ChatServer, Completion
from longtake.observe.keyed_lines import KeyedLines
from longtake.observe.progress import say

_PERHAPS_ALL = (400, 403, 404)
"""These refuse one call (moderation, a text that is too long), or every call: a key without rights, a model that is not there."""
_ALL_WAIT = (429, 503)
"""With Retry-After these speak of the server, not of one call."""


class LlmClient:
    """Asks one server. An asynchronous context manager; may be entered again later, in another loop too.

    >>> async with LlmClient(config, store, budget) as client:
    ...     answers = await asyncio.gather(*map(client.ask, calls))
    """

    def __init__(self, config: EndpointConfig, store: KeyedLines, budget: Budget | None = None) -> None:
        """`store`: where answers are kept. `budget`: may be shared by several clients."""
        self.config = config
        self._store, self._budget = store, budget or Budget(BudgetConfig())
        self._counts = Counts()
        self._running: dict[str, asyncio.Task[Answer | CallFailure]] = {}
        """Calls in flight by their digest."""
        self._tasks: set[asyncio.Task[Answer | CallFailure]] = set()
        """Those, and others that are being broken off."""
        self._waiting: dict[str, int] = {}
        """How many wait for each."""
        self._chance = random.Random()
        self._told: set[str] = set()
        """What was said once."""
        self._limits = Limits(config.requests_per_minute, config.tokens_per_minute)
        self._model = config.model
        self._broken: LlmError | None = None
        """What ended the run: no further request is sent."""
        self._has_answered = False
        self._refused_in_row = 0
        """Requests refused with one of these since the last answer."""
        self._heard_at = float("-inf")
        """When the server last sent anything at all."""
        self._server: ChatServer | None = None
        self._in_flight = 0
        self._slots: Slots
        self._sends: asyncio.Event
        self._quiet: asyncio.Event
        self._naming: asyncio.Lock

    def __repr__(self) -> str:
        return f"LlmClient({self.config.url}, {self._model})"

    async def ask(self, call: ChatCall, turn: int = 0) -> Answer | CallFailure:
        """The answer, from the store where it was paid before. Equal calls at the same time are one.

        Of the calls that wait for a place, those with the lowest `turn` go first.
        Raises BudgetError when the call would pass the budget, LlmError when the server cannot be used at all: no server, no access, no
        such model.
        """
        if self._server is None:
            raise RuntimeError("an LlmClient asks inside `async with` only")
        digest = call_digest(call, await self.model_name(), self.config.extra_body)
        counts = self._counts[call.purpose]
        counts.calls += 1
        running = self._running.get(digest)
        shared = running is not None
        if running is None:
            running = asyncio.create_task(self._answered(call, digest, turn))
            self._running[digest] = running
            self._tasks.add(running)
            running.add_done_callback(lambda task: self._ended(digest, task))
        self._waiting[digest] = self._waiting.get(digest, 0) + 1
        try:
            result = await asyncio.shield(running)
        finally:
            self._leave(digest, running)
        if isinstance(result, CallFailure):
            counts.failures[result.kind] += 1
        elif shared or result.cached:
            counts.cached += 1
            return Answer(result.value, result.input_tokens, result.output_tokens, cached=True)
        return result

    async def model_name(self) -> str:
        """Under which answers are kept: as configured, or that of the server's only model. Raises LlmError."""
        return self._model or await self._name_model()

    async def drain(self) -> None:
        """Send nothing more, and wait until what is in flight is answered and kept: before leaving, so that nothing is paid in vain.

        Other calls wait until they are cancelled.
        """
        self._sends.clear()
        await self._quiet.wait()

    def metrics(self) -> dict[str, float]:
        """Counts since it was made, in the group `llm`: calls, cached, paid, retries and failures by kind, tokens, cost, seconds."""
        return self._counts.metrics()

    def summary(self) -> Counts:
        """The same by purpose. What all runs have paid is in the store: `counts.paid_in`."""
        return self._counts

    async def __aenter__(self) -> Self:
        """Raises ConfigError for a key that cannot be sent. Nothing is sent yet."""
        self._server = ChatServer(self.config)
        self._slots, self._naming = Slots(self.config.concurrency), asyncio.Lock()
        self._sends, self._quiet = asyncio.Event(), asyncio.Event()
        self._sends.set()
        self._quiet.set()
        self._broken = None
        if self._budget.config.max_cost is not None and not (self.config.input_price or self.config.output_price):
            self._say_once("price", "has no prices in the configuration: its calls do not count in budget.max_cost")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Calls in flight are broken off; what was answered is kept."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        server, self._server = self._server, None
        if server is not None:
            await server.close()

    def _leave(self, digest: str, running: asyncio.Task[Answer | CallFailure]) -> None:
        """A call that nobody waits for any more is broken off."""
        self._waiting[digest] -= 1
        if self._waiting[digest] == 0:
            del self._waiting[digest]
            if not running.done():
                running.cancel()
                self._running.pop(digest, None)  # who asks the same now begins anew

    def _ended(self, digest: str, task: asyncio.Task[Answer | CallFailure]) -> None:
        self._tasks.discard(task)
        if self._running.get(digest) is task:
            del self._running[digest]
        if not task.cancelled():
            task.exception()  # fetched, so that asyncio does not complain where nobody waited for it

    async def _answered(self, call: ChatCall, digest: str, turn: int) -> Answer | CallFailure:
        """The first good answer of those to the same question with different seeds."""
        input_tokens = output_tokens = tries = 0
        cached = True
        bad = Bad("", "")
        for attempt in range(1 + self.config.bad_answer_retries):
            key = attempt_key(digest, attempt)
            kept = self._store.get(key)
            if kept is None:
                cached = False
                paid = await self._paid(call, attempt, key, turn)
                if isinstance(paid, CallFailure):
                    return paid
                kept = paid
            tries += 1
            input_tokens, output_tokens = input_tokens + kept["input_tokens"], output_tokens + kept["output_tokens"]
            read = read_answer(kept["text"], kept["finish"], kept["refused"], call.schema_text, call.whole)
            if not isinstance(read, Bad):
                return Answer(read.value, input_tokens, output_tokens, cached)
            bad = read
        return CallFailure(bad.kind, bad_answers(self.config, call, bad, tries), tries)

    async def _paid(self, call: ChatCall, attempt: int, key: str, turn: int) -> dict[str, Any] | CallFailure:
        """A new answer, as it is kept."""
        counts = self._counts[call.purpose]
        lost_at = float("inf")
        for number in range(1 + self.config.max_retries):
            got = await self._request(call, attempt, key, turn)
            if not isinstance(got, Fault):
                return got
            lost_at = min(lost_at, time.monotonic()) if got.unreachable else float("inf")
            await self._check_run(got, number + 1, lost_at)
            if not got.retried or number == self.config.max_retries:
                return CallFailure(got.kind, failed(self.config, call, got, number + 1), number + 1)
            counts.retries[got.kind] += 1
            self._say_once(got.kind, f"{got.kind}: {got.message}; such calls are tried again, up to {self.config.max_retries} times")
            await self._pause(got, number)
        raise AssertionError("the last try returns")

    async def _request(self, call: ChatCall, attempt: int, key: str, turn: int) -> dict[str, Any] | Fault:
        """One request; its answer is in the store when this returns, with no chance of being cancelled in between."""
        async with self._slots.taken(turn):
            self._raise_if_over()
            room = self._most(call)
            async with self._budget.reserve(self._store, room) as reservation:
                await self._limits.wait(room.tokens)
                await self._sends.wait()
                self._raise_if_over()
                began = time.monotonic()
                got = await self._sent(request_body(call, attempt, str(self._model), self.config))
                self._counts[call.purpose].seconds += time.monotonic() - began
                if isinstance(got, Completion) or got.status:
                    self._heard_at = time.monotonic()
                if isinstance(got, Fault):
                    return got
                self._has_answered, self._refused_in_row = True, 0
                made = self._made(call, attempt, got)
                reservation.settle(Spending(made["input_tokens"] + made["output_tokens"], made["cost"]))
                self._store.put(key, made)
                # Where another client of this process was faster, its answer stays, and is what every later run finds.
                return self._store.get(key) or made

    async def _sent(self, body: dict[str, Any]) -> Completion | Fault:
        assert self._server is not None
        self._in_flight += 1
        self._quiet.clear()
        try:
            return await self._server.complete(body)
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._quiet.set()

    def _made(self, call: ChatCall, attempt: int, got: Completion) -> dict[str, Any]:
        """What is kept of an answer, and counted."""
        usage = got.usage
        if usage is None:
            usage = (self._question_tokens(call), text_tokens(got.text))
            self._say_once("usage", "does not tell how many tokens its answers take: they are estimated")
        read = read_answer(got.text, got.finish, got.refused, call.schema_text, call.whole)
        bad = read.kind if isinstance(read, Bad) else None
        cost = self._price(*usage)
        counts = self._counts[call.purpose]
        counts.paid += 1
        counts.input_tokens += usage[0]
        counts.output_tokens += usage[1]
        counts.cost += cost
        if bad is not None:
            counts.bad[bad] += 1
        return {
            "purpose": call.purpose,
            "model": self._model,
            "attempt": attempt,
            "finish": got.finish,
            "refused": got.refused,
            "bad": bad,
            "input_tokens": usage[0],
            "output_tokens": usage[1],
            "estimated": got.usage is None,
            "cost": cost,
            "text": got.text,
        }

    def _most(self, call: ChatCall) -> Spending:
        """What the call may take; reckoned only where it is asked for."""
        if not self._limits.counts_tokens and not self._budget.limited:
            return Spending()
        asked, answered = self._question_tokens(call), output_limit(call, self.config)
        return Spending(asked + answered, self._price(asked, answered))

    def _question_tokens(self, call: ChatCall) -> int:
        told_apart = self.config.structured == "json_schema"
        return estimate_tokens(call) + (0 if told_apart else text_tokens(instruction(call.schema_text)))

    def _price(self, asked: int, answered: int) -> float:
        return (asked * self.config.input_price + answered * self.config.output_price) / 1e6

    async def _pause(self, fault: Fault, number: int) -> None:
        if fault.after_s is None:
            await asyncio.sleep(backoff(number, self.config.backoff_s, self._chance))
            return
        if fault.status in _ALL_WAIT:
            self._limits.pause(fault.after_s)
        await asyncio.sleep(fault.after_s + self.config.backoff_s * self._chance.random() / 2)

    async def _check_run(self, fault: Fault, tries: int, lost_at: float) -> None:
        """Raises LlmError for a fault that every other call would meet too. `lost_at`: since when there has been no connection."""
        assert self._server is not None
        error: LlmError | None = None
        if fault.status == 401:
            error = no_access(self.config, fault, self._server.has_key)
        elif fault.no_credit:
            error = no_credit(self.config, fault)
        elif fault.status in _PERHAPS_ALL:
            error = await self._refusal_of_all(fault)
        elif fault.unreachable and tries > self.config.max_retries and self._heard_at < lost_at:
            error = unreachable(self.config, fault, tries)
        if error is not None:
            self._broken = self._broken or error
            raise error

    async def _refusal_of_all(self, fault: Fault) -> LlmError | None:
        """Where such a status means every call: the server has answered none and does not list the model to this key, or (403, 404) more
        calls than are in flight at once were refused with no answer between them. None: it is this call's failure."""
        assert self._server is not None
        self._refused_in_row += 1
        names = await self._server.model_names()
        served = self._has_answered or (not isinstance(names, Fault) and self._model in names)
        if served and (fault.status == 400 or self._refused_in_row <= self.config.concurrency):
            return None
        denied = fault.status == 403
        return no_access(self.config, fault, self._server.has_key) if denied else not_found(self.config, str(self._model), fault, names)

    def _raise_if_over(self) -> None:
        if self._broken is not None:
            raise self._broken

    async def _name_model(self) -> str:
        """Of the server's only model. Raises LlmError."""
        async with self._naming:
            if self._model is None:
                self._raise_if_over()
                names = await self._list_models()
                if isinstance(names, Fault) or len(names) != 1:
                    self._broken = no_list(self.config, names) if isinstance(names, Fault) else model_unclear(self.config, names)
                    raise self._broken
                self._model = names[0]
            return self._model

    async def _list_models(self) -> list[str] | Fault:
        assert self._server is not None
        for number in range(1 + self.config.max_retries):
            names = await self._server.model_names()
            if not isinstance(names, Fault):
                break
            if names.status != 404:
                await self._check_run(names, number + 1, time.monotonic())
            if not names.retried or number == self.config.max_retries:
                break
            await self._pause(names, number)
        return names

    def _say_once(self, name: str, text: str) -> None:
        if name not in self._told:
            self._told.add(name)
            say(f"{self.config.url} {text}")
