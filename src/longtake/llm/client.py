"""The client of a server that speaks the protocol of OpenAI's chat completions."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from longtake.config.llm import BudgetConfig, EndpointConfig
from longtake.llm.calls import Answer, CallFailure, ChatCall
from longtake.observe.keyed_lines import KeyedLines


class Budget:
    """What calls may cost in all, over several clients; what earlier runs spent counts."""

    def __init__(self, config: BudgetConfig) -> None:
        raise NotImplementedError


class LlmClient:
    """Asks one server. An asynchronous context manager."""

    def __init__(self, config: EndpointConfig, store: KeyedLines, budget: Budget | None = None) -> None:
        raise NotImplementedError

    async def ask(self, call: ChatCall) -> Answer | CallFailure:
        """The answer, from the store where it was paid before. Raises BudgetError when the call would pass the budget."""
        raise NotImplementedError

    def metrics(self) -> dict[str, float]:
        """Counts since it was made: calls, cached, retries and failures by kind, tokens, cost."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        raise NotImplementedError

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        raise NotImplementedError
