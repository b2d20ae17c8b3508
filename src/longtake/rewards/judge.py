"""Whether open-ended answers mean the same as their keys, decided by a language model for a whole batch at once.

The model sees the question, the key and the ANSWER of a response, never its reasoning. It says yes or no in a form of its own
({"verdict": "yes"}); anything else is a failed call, and a failed call is no verdict: it is counted, and never means wrong.
"""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from string import Template
from typing import Any, Protocol

from longtake.answers import format_response, is_correct, parse_response
from longtake.config.llm import EndpointConfig
from longtake.errors import BudgetError, LlmError, LongtakeError
from longtake.llm.calls import Answer, CallFailure, ChatCall
from longtake.llm.client import Budget, LlmClient
from longtake.llm.prompts import block, flat, shipped_text
from longtake.observe.digest import digest_of
from longtake.observe.keyed_lines import KeyedLines
from longtake.observe.progress import say
from longtake.types import Example

PURPOSE = "judge"
YES, NO = {"verdict": "yes"}, {"verdict": "no"}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"verdict": {"type": "string", "enum": ["yes", "no"]}},
    "required": ["verdict"],
    "additionalProperties": False,
}
BUDGET = "budget"
"""Kind of the failure of a call that was not made because it would have passed the budget."""
UNUSABLE = "server"
"""Of a call that no call to this server can go better than: it is not there, lets nobody in, or has no such model."""
PROBE = Example(
    problem_id=0,
    question="Which colour is the door?",
    options=(),
    answer="red",
    answer_kind="text",
    category="general",
    reasoning="",
    media=(),
    subtitles=None,
    duration_s=None,
)
PROBE_RESPONSE = format_response("It can be seen.", PROBE.answer)
_INVISIBLE = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")
"""Unicode categories of characters that nobody sees: controls, format marks, private use, halves of surrogate pairs, separators."""


@dataclass(frozen=True)
class JudgeFailure:
    """In the place of a verdict."""

    kind: str
    """As of the call, e.g. `http_500`, `timeout`, `schema`."""
    message: str
    """One line."""


Verdict = bool | JudgeFailure


class Asker(Protocol):
    """Who answers the judge's calls: a server, or a model beside the one that trains."""

    trouble: LongtakeError | None
    """What ended the calls of kind BUDGET or UNUSABLE, if there were any."""

    def ask_all(self, calls: Sequence[ChatCall]) -> list[Answer | CallFailure]:
        """One answer per call, in order; all are under way together."""
        ...

    def metrics(self) -> dict[str, float]:
        """Counts since it was made, as `llm/...`."""
        ...


class Judge:
    """Decides about answers, each different one once."""

    def __init__(self, asker: Asker, *, max_answer_chars: int, max_tokens: int) -> None:
        self._asker, self._max_chars, self._max_tokens = asker, max_answer_chars, max_tokens
        self._words = Template(shipped_text(PURPOSE))
        self._known: dict[str, bool] = {}
        """By the digest of what was asked."""

    def verdicts(self, responses: Sequence[tuple[Example, str]]) -> list[Verdict]:
        """Of (row, text of a whole response): whether it is right, or why that could not be found out.

        Letters and numbers are decided by the rules. A response without a readable answer, or with a longer one than allowed, is wrong
        without a call. Equal questions are one call. Never raises for a call; not to be called inside an event loop.
        """
        texts = [self.prompt(example, text) if self.asks(example, text) else None for example, text in responses]
        keys = [None if text is None else digest_of(text) for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key is not None and text is not None and key not in self._known}
        answers = self._asker.ask_all([self._call(text) for text in new.values()]) if new else []
        found = {key: _read(answer) for key, answer in zip(new, answers, strict=True)}
        self._known |= {key: verdict for key, verdict in found.items() if isinstance(verdict, bool)}
        every: dict[str, Verdict] = {**self._known, **found}
        return [
            every[key] if key is not None else is_correct(example, response) and not self.judges(example)
            for key, (example, response) in zip(keys, responses, strict=True)
        ]

    def check(self) -> None:
        """Ask one question, so that a judge that is of no use is known before hours of work. Raises LlmError or BudgetError when it cannot
        be asked at all; a call that fails, or a no where yes is meant, is said."""
        (verdict,) = self.verdicts([(PROBE, PROBE_RESPONSE)])
        if self.trouble is not None:
            raise self.trouble
        if verdict is not True:
            told = "says no" if verdict is False else f"gives no verdict ({verdict.kind}: {verdict.message})"
            say(f"the judge {told} when asked whether {PROBE.answer!r} means the same as {PROBE.answer!r}", style="yellow")

    @property
    def trouble(self) -> LongtakeError | None:
        """What ended calls of this process that no further call can go better than."""
        return self._asker.trouble

    def judges(self, example: Example) -> bool:
        """Whether it, and not the rules, decides about this row."""
        return example.answer_kind == "text"

    def asks(self, example: Example, response_text: str) -> bool:
        """Whether a verdict on this response takes a call."""
        answer = readable_answer(response_text)
        return self.judges(example) and 0 < len(answer) <= self._max_chars

    def metrics(self) -> dict[str, float]:
        """Of the calls, since it was made."""
        return self._asker.metrics()

    def prompt(self, example: Example, response_text: str) -> str:
        """What it is asked."""
        return self._words.substitute(
            question=block("question", example.question),
            reference=block("reference", visible(example.answer)),
            response=block("response", readable_answer(response_text)),
        )

    def _call(self, text: str) -> ChatCall:
        return ChatCall(purpose=PURPOSE, parts=(text,), schema=SCHEMA, max_tokens=self._max_tokens, whole=True)


def readable_answer(response_text: str) -> str:
    """The answer of a response as the judge sees it; empty when there is none."""
    return visible(parse_response(response_text).answer or "")


def visible(text: str) -> str:
    """On one line, in plain characters (NFKC), without those that nobody sees: nothing can hide in it, nor look like a line of its own."""
    plain = "".join(
        " " if character.isspace() else character
        for character in unicodedata.normalize("NFKC", text)
        if character.isspace() or unicodedata.category(character) not in _INVISIBLE
    )
    return flat(plain)


def _read(answer: Answer | CallFailure) -> Verdict:
    """Exactly yes or exactly no; whatever else it is, is a failure."""
    if isinstance(answer, CallFailure):
        return JudgeFailure(answer.kind, answer.message)
    if answer.value in (YES, NO):
        return bool(answer.value == YES)
    return JudgeFailure("schema", f"an answer that is neither {YES} nor {NO}")


class EndpointAsker:
    """Asks a server, up to `concurrency` calls at a time."""

    def __init__(self, config: EndpointConfig, store: KeyedLines, budget: Budget | None) -> None:
        self._client = LlmClient(config, store, budget)
        self.trouble: LongtakeError | None = None

    def ask_all(self, calls: Sequence[ChatCall]) -> list[Answer | CallFailure]:
        """In one run of an event loop. Raises ConfigError for a key that cannot be sent."""
        return asyncio.run(self._all(calls))

    async def _all(self, calls: Sequence[ChatCall]) -> list[Answer | CallFailure]:
        async with self._client:
            return list(await asyncio.gather(*(self._one(call) for call in calls)))

    async def _one(self, call: ChatCall) -> Answer | CallFailure:
        """What ends a run is a failure here: the calls beside this one are paid, and the run is to be saved first."""
        try:
            return await self._client.ask(call)
        except (BudgetError, LlmError) as error:
            self.trouble = error
            return CallFailure(BUDGET if isinstance(error, BudgetError) else UNUSABLE, str(error), 0)

    def metrics(self) -> dict[str, float]:
        return self._client.metrics()
