"""One question to a language model, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

Part = str | bytes
"""Of a message: text, or the bytes of a JPEG."""


@dataclass(frozen=True, eq=False)
class ChatCall:
    """What is asked. Equal questions to one model are one call, paid once."""

    purpose: str
    """What for, e.g. `caption` or `question_temporal`: the name of the schema, and what calls are counted by."""
    parts: tuple[Part, ...]
    """The user's message."""
    schema: Mapping[str, Any]
    """JSON schema that the answer satisfies."""
    max_tokens: int
    """Longest answer."""
    temperature: float = 0.0
    sample: int = 0
    """Which of several answers to the same question this is: the seed that is sent."""
    system: str | None = None
    whole: bool = False
    """The answer is the JSON alone, behind what the model thought at most; else it may stand among other words."""

    @property
    def text(self) -> str:
        """The texts of the message."""
        return "\n".join(part for part in self.parts if isinstance(part, str))

    @property
    def num_images(self) -> int:
        return sum(isinstance(part, bytes) for part in self.parts)

    @property
    def schema_text(self) -> str:
        return json.dumps(self.schema, sort_keys=True, ensure_ascii=False)


@dataclass(frozen=True, eq=False)
class Answer:
    """An answer that satisfies the schema."""

    value: Any
    """Decoded."""
    input_tokens: int
    """Of all answers that it took, bad ones before it included."""
    output_tokens: int
    cached: bool
    """Whether it was paid before."""


@dataclass(frozen=True)
class CallFailure:
    """A call that came to nothing: it costs what depends on it, and is counted."""

    kind: str
    """Of the last try: `http_<status>`, `timeout`, `connection`, or `garbled` (no answer of this protocol); of the last answer: `length`,
    `refused`, `not_json` or `schema`."""
    message: str
    """One line: what was given, the rule, the remedy. Never a key."""
    tries: int


Ask = Callable[[ChatCall], Awaitable[Answer | CallFailure]]
"""How everything above this room asks. Raises BudgetError when the call would pass the budget, LlmError when the server cannot be used."""
