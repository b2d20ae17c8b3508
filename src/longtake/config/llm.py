"""How servers that speak the protocol of OpenAI's chat completions are asked, and what that may cost. Imports no torch."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from longtake.config.base import Section, broken, check_address


class EndpointConfig(Section):
    """A server that speaks the protocol of OpenAI's chat completions, such as vLLM's."""

    url: str = "http://127.0.0.1:8000/v1"
    """Its address, up to and with the version."""
    model: str | None = None
    """The model's name there; None: the only one that the server lists. Answers are kept under this name: another model needs another."""
    key_variable: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key (unset: none is sent). The key itself is in no configuration, log or file."""
    concurrency: int = Field(default=32, ge=1)
    """Calls in flight at most."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """Most calls begun in a minute; None: no limit."""
    tokens_per_minute: float | None = Field(default=None, gt=0)
    """Most tokens asked for in a minute, questions and answers together; None: no limit."""
    timeout_s: float = Field(default=600.0, gt=0)
    """A call that takes longer is broken off and tried again."""
    max_retries: int = Field(default=6, ge=0)
    """Tries after the first when the server refuses (429, 5xx), breaks off or does not answer; then the call fails."""
    backoff_s: float = Field(default=1.0, gt=0)
    """Pause before the second try, doubled before each further one, up to a minute, half of it drawn at random; a server's own Retry-After
    goes before it."""
    bad_answer_retries: int = Field(default=2, ge=0)
    """Further answers asked for when one is cut off, is no JSON or breaks its schema; then the call fails."""
    structured: Literal["json_schema", "json_object", "off"] = "json_schema"
    """How the server is told the form of an answer. It is checked here in any case."""
    input_price: float = Field(default=0.0, ge=0)
    """Price of a million tokens of questions, in the currency of budget.max_cost."""
    output_price: float = Field(default=0.0, ge=0)
    """Price of a million tokens of answers."""
    extra_body: dict[str, str | int | float | bool | dict[str, str | int | float | bool]] = Field(default={})
    """Further fields of every request, such as {"chat_template_kwargs": {"enable_thinking": false}}; answers are kept under them too."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_address("url", self.url)
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.key_variable):
            raise broken(
                "key_variable", "it NAMES an environment variable: letters, digits and _", "put the key into a variable, and its name here"
            )
        return self


class BudgetConfig(Section):
    """What the calls of a run may cost, all its servers and machines together, calls of interrupted runs included."""

    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens, of questions and answers together; None: no limit. The run stops before it passes it, and goes on with a higher one.
    Machines at work at the same time learn of each other's spending every 10 s: together they may pass it by what is spent in that time."""
    max_cost: float | None = Field(default=None, gt=0)
    """Most money, in the currency of the endpoints' prices; None: no limit."""
