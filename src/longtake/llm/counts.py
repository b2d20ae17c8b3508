"""What was asked and what it cost: by purpose, as metrics, and for people."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from longtake.observe.keyed_lines import KeyedLines


@dataclass
class PurposeCounts:
    """Calls of one purpose, by one client since it was made."""

    calls: int = 0
    """Asked from above."""
    cached: int = 0
    """Answered without a payment: paid by an earlier run, or by an equal call in flight."""
    paid: int = 0
    """Answers that a server gave, bad ones included."""
    input_tokens: int = 0
    """Of the paid answers."""
    output_tokens: int = 0
    cost: float = 0.0
    """In the currency of the endpoint's prices."""
    seconds: float = 0.0
    """Requests were in flight for, all added up."""
    bad: Counter[str] = field(default_factory=Counter)
    """Paid answers that could not be used, by kind."""
    retries: Counter[str] = field(default_factory=Counter)
    """Requests that were sent once more, by what came of the one before."""
    failures: Counter[str] = field(default_factory=Counter)
    """Calls that came to nothing, by kind."""

    def add(self, other: PurposeCounts) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def failed(self) -> int:
        return self.failures.total()


class Counts(dict[str, PurposeCounts]):
    """By purpose, in the order of the first calls."""

    def __missing__(self, purpose: str) -> PurposeCounts:
        self[purpose] = counts = PurposeCounts()
        return counts

    def total(self) -> PurposeCounts:
        total = PurposeCounts()
        for counts in self.values():
            total.add(counts)
        return total

    def metrics(self) -> dict[str, float]:
        """Names of the group `llm`; kinds only as far as they occurred."""
        total = self.total()
        named: dict[str, float] = {f"llm/{name}": float(value) for name, value in vars(total).items() if not isinstance(value, Counter)} | {
            "llm/retries": float(total.retries.total()),
            "llm/bad": float(total.bad.total()),
            "llm/failed": float(total.failed),
        }
        for group, kinds in (("retried", total.retries), ("bad", total.bad), ("failed", total.failures)):
            named |= {f"llm/{group}_{kind}": float(count) for kind, count in sorted(kinds.items())}
        return named


@dataclass
class Paid:
    """Answers of one model for one purpose, over all runs that wrote into a store."""

    model: str
    purpose: str
    answers: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    estimated: int = 0
    """Answers whose tokens the server did not tell."""
    cost: float = 0.0
    bad: Counter[str] = field(default_factory=Counter)
    """Answers that could not be used, by kind."""

    def take(self, made: dict[str, Any]) -> None:
        self.answers += 1
        self.input_tokens += made["input_tokens"]
        self.output_tokens += made["output_tokens"]
        self.estimated += made["estimated"]
        self.cost += made["cost"]
        if made["bad"] is not None:
            self.bad[made["bad"]] += 1


def paid_in(store: KeyedLines) -> list[Paid]:
    """All that was paid, by model and purpose, sorted: for the card of a data set. Reads the whole store; records of something else than
    calls are passed over."""
    found: dict[tuple[str, str], Paid] = {}
    for _, made in store.items():
        if "purpose" in made:
            name = (made["model"], made["purpose"])
            found.setdefault(name, Paid(*name)).take(made)
    return [found[name] for name in sorted(found)]
