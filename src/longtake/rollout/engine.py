"""What an engine is: prompts in, G takes per prompt out, in the order of the requests."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from longtake.errors import ConfigError
from longtake.rollout.shared_cache import PromptKv
from longtake.types import Prompt, Take


@dataclass(frozen=True)
class SamplingParams:
    """How takes are drawn. There is no top-p or top-k: the sampler's distribution is the policy's."""

    num_takes: int
    """G: takes per request."""
    temperature: float
    """0 means greedy."""
    max_new_tokens: int
    """Longest response; a take that reaches it without an end token has finish reason `length`."""
    seed: int
    """Seed of the run."""
    step: int
    """Training step: another step draws other numbers from the same seed."""

    def __post_init__(self) -> None:
        wrong = [
            f"{name} = {value}"
            for name, value, fine in (
                ("num_takes", self.num_takes, self.num_takes >= 1),
                ("temperature", self.temperature, self.temperature >= 0),
                ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1),
                ("seed", self.seed, self.seed >= 0),
                ("step", self.step, self.step >= 0),
            )
            if not fine
        ]
        if wrong:
            raise ConfigError(
                f"sampling with {', '.join(wrong)}",
                rule="num_takes and max_new_tokens are at least 1, temperature, seed and step at least 0",
                remedy="correct the rollout section of the configuration",
            )


@dataclass(frozen=True, eq=False)
class RolloutRequest:
    """One prompt to be answered."""

    key: int
    """The problem id. With seed, step and take index it selects the random numbers, so equal keys draw equal numbers."""
    prompt: Prompt
    prefilled: tuple[PromptKv, Tensor] | None = None
    """Keys and values of the prompt and the logits [1, W] behind it, where several processes have computed them (spread_prefill.py)."""


class Engine(Protocol):
    """Anything that samples takes: the embedded transformers engine, vLLM, or a server."""

    ranks_per_engine: int
    """Ranks that share one engine, in order: they are asked the same, and each is answered all of it."""
    takes_prefilled: bool
    """Whether it goes on from keys and values that several processes have computed (`RolloutRequest.prefilled`)."""

    def at_weights(self) -> AbstractContextManager[None]:
        """Inside, it samples with the trainer's weights of now. Every rank enters and leaves, whether it has requests or not."""
        ...

    def generate(self, requests: Sequence[RolloutRequest], params: SamplingParams) -> list[tuple[Take, ...]]:
        """One tuple of G takes per request, in the order of the requests."""
        ...

    def metrics(self) -> dict[str, float]:
        """Counts since it was made, for the log."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...
