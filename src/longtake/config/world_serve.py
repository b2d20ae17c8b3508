"""Configuration of `longtake world serve`. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from longtake.config.base import Section


class LieRates(Section):
    """How often the models that know the truth do not tell it. Drawn anew for every different request."""

    captions: float = Field(default=0.0, ge=0, le=1)
    """Share of captions that name a wrong place, figure, thing or action."""
    answers: float = Field(default=0.0, ge=0, le=1)
    """Share of answers that are another one: keys of questions, votes, verdicts."""
    planted: float = Field(default=0.0, ge=0, le=1)
    """Share of drafted questions with a fault, one of many kinds each (world.oracle_faults.FAULTS)."""
    judge_failures: float = Field(default=0.0, ge=0, le=1)
    """Share of the judge's questions to which no usable answer ever comes, however often they are asked."""


class WorldServeConfig(Section):
    """`longtake world serve FOLDER`: captioner, reasoner and judge that know a world's truth, behind the protocol of OpenAI's chat
    completions: to try `longtake curate` without any model, and to measure how well its checks find what is wrong."""

    world: Path
    """Folder that `longtake world make` wrote."""
    more_worlds: tuple[Path, ...] = ()
    """Further ones, known by the same server."""
    host: str = "127.0.0.1"
    """Network address to listen at."""
    port: int = Field(default=8100, ge=0, le=65535)
    """Port to listen at; 0: a free one."""
    model: str = "world"
    """Name of the model."""
    seed: int = Field(default=0, ge=0)
    """Of lies and faults."""
    lies: LieRates = LieRates()
    """How often the truth is not told."""
    failures: float = Field(default=0.0, ge=0, lt=1)
    """Share of requests that fail, half of them with 500, a quarter with garbage, a quarter with 429; the same request may pass the next
    time."""
    ledger: Path | None = None
    """JSON lines: every question that was drafted, with what is wrong with it; None: not written."""
