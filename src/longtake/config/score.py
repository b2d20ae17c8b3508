"""The configuration of `longtake score`. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from longtake.config.base import Section, broken
from longtake.config.sections import CacheConfig, DataConfig, ModelConfig, ParallelConfig, PromptConfig, VideoConfig
from longtake.config.stages import EvaluateConfig, RlConfig, SftConfig


class ScoreConfig(Section):
    """`longtake score`: log-probs of given responses to given rows; the configuration file of the run that sampled them will do."""

    responses: Path
    """JSON lines with `problem_id` and `token_ids`, several per row, in any order, e.g. a run's takes.jsonl; other fields are passed on."""
    out: Path
    """File to write: the same lines in the same order with `logprobs`, or `error` where one cannot be scored. Whole or not at all."""
    model: ModelConfig = ModelConfig()
    """The weights that score."""
    video: VideoConfig = VideoConfig()
    """How videos become frames and tokens."""
    cache: CacheConfig = CacheConfig()
    """Where embeddings are kept; with a folder that `longtake encode` has filled, no process encodes anything."""
    prompt: PromptConfig = PromptConfig()
    """What is put around the question."""
    data: DataConfig
    """The rows that were answered; data.max_failed_fraction bounds the share of responses that cannot be scored."""
    temperature: float = Field(default=1.0, gt=0)
    """The temperature that the responses were sampled at, in a run's file rollout.temperature; 1 for greedy ones."""
    entropies: bool = False
    """Write `entropies` too: of the distribution at each token, in nats."""
    layout: Literal["naive", "shared"] = "shared"
    """One row per response with its prompt repeated, or every prompt once for all its responses. Changes speed, never the result."""
    max_tokens: int = Field(default=32_768, ge=1)
    """Tokens per forward, prompts counted as often as they are computed; a larger group is split, down to one response."""
    sp: int | None = Field(default=None, ge=1)
    """Sequence-parallel degree: processes that share a sequence, parallel.ring of them as a ring, the rest (sp / ring) over the heads.
    Divides the number of processes of the launch (torchrun). None: parallel.ulysses x parallel.ring."""
    parallel: ParallelConfig = ParallelConfig()
    """How the processes of a launch share the work; what is left of them beside `sp` score responses to different videos."""
    num_threads: int | None = Field(default=None, ge=1)
    """CPU threads; None: torch's default."""

    @model_validator(mode="before")
    @classmethod
    def _of_the_run(cls, values: Any) -> Any:
        """Of a run's file the sampling temperature counts (0, greedy, is no distribution), and what else only the run needs does not.

        A name that no run knows stays, and is refused.
        """
        if not isinstance(values, dict):
            return values
        rollout = values.get("rollout")
        sampled_at = rollout.get("temperature") if isinstance(rollout, dict) else None
        others = {name for kind in (SftConfig, RlConfig, EvaluateConfig) for name in kind.model_fields} - set(cls.model_fields)
        given = {name: value for name, value in values.items() if name not in others}
        return {"temperature": sampled_at} | given if sampled_at else given

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.out.suffix != ".jsonl":
            raise broken(f"out = {self.out}", "out is a file of JSON lines, not the folder of the run", "name a file NAME.jsonl")
        if self.sp is None:
            return self
        ring, ulysses = self.parallel.ring, self.parallel.ulysses
        if self.sp % ring:
            raise broken(f"sp = {self.sp}, parallel.ring = {ring}", "the ring's size divides sp", "choose e.g. sp = 8 and ring = 2")
        if ulysses not in (1, self.sp // ring):
            raise broken(
                f"sp = {self.sp}, parallel.ulysses = {ulysses}, parallel.ring = {ring}",
                "sp is parallel.ulysses x parallel.ring",
                "give sp and parallel.ring alone",
            )
        return self

    @property
    def degrees(self) -> tuple[int, int]:
        """(ring, Ulysses)."""
        return self.parallel.ring, self.parallel.ulysses if self.sp is None else self.sp // self.parallel.ring
