"""Configurations of what `longtake bench` measures. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from longtake.config.sections import Section


class BenchUpdateConfig(Section):
    """`longtake bench update`: forward and backward of one group, prompt computed once against one row per take."""

    prompt: int = Field(default=4096, ge=1)
    """Prompt tokens."""
    response: int = Field(default=128, ge=1)
    """Tokens of each take."""
    group: int = Field(default=8, ge=1)
    """Takes of the prompt."""
    repeats: int = Field(default=5, ge=1)
    """Rounds; each measures both sides, medians are reported."""
    num_threads: int | None = Field(default=None, ge=1)
    """CPU threads; None: torch's default."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where to measure; the shape is meant for a CPU."""
    as_json: bool = False
    """Print the result as JSON on stdout; on the command line `--json`."""
