"""Configurations of what `longtake bench` measures. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from longtake.config.base import Section


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


class BenchMemoryConfig(Section):
    """`longtake bench memory`: activation bytes of a rank against the number of processes that share a sequence."""

    prompt: int = Field(default=4096, ge=1)
    """Prompt tokens."""
    response: int = Field(default=128, ge=1)
    """Tokens of each take."""
    group: int = Field(default=8, ge=1)
    """Takes of the prompt."""
    degrees: tuple[int, ...] = Field(default=(1, 2, 4), min_length=1)
    """Numbers of processes; the bench starts them. The first is what the others are compared with."""
    as_json: bool = False
    """Print the result as JSON on stdout; on the command line `--json`."""


class BenchEncodeConfig(Section):
    """`longtake bench encode`: a video's frames encoded by one process and by two, each of one thread."""

    frames: int = Field(default=512, ge=1)
    """Frames of the video."""
    height: int = Field(default=112, ge=28, multiple_of=28)
    """Pixels."""
    width: int = Field(default=112, ge=28, multiple_of=28)
    """Pixels."""
    groups_per_chunk: int = Field(default=8, ge=1)
    """Pairs of frames that the tower takes at a time."""
    processes: int = Field(default=2, ge=1)
    """Against one."""
    repeats: int = Field(default=9, ge=1)
    """Rounds; each measures both sides, medians are reported."""
    as_json: bool = False
    """Print the result as JSON on stdout; on the command line `--json`."""


class BenchRolloutConfig(Section):
    """`longtake bench rollout`: tokens per second and prefills per group, each engine, embeddings against pixels."""

    prompts: int = Field(default=4, ge=1)
    """Prompts of a batch, one video each."""
    frames: int = Field(default=256, ge=2, multiple_of=2)
    """Frames of each video."""
    height: int = Field(default=112, ge=28, multiple_of=28)
    """Pixels."""
    width: int = Field(default=112, ge=28, multiple_of=28)
    """Pixels."""
    response: int = Field(default=64, ge=1)
    """R: tokens of each take."""
    groups: tuple[int, ...] = Field(default=(1, 4, 8, 16), min_length=1)
    """G: takes of each prompt; a line for each number."""
    max_rows: int = Field(default=256, ge=1)
    """Takes decoded together."""
    repeats: int = Field(default=5, ge=1)
    """Rounds; each measures all sides, medians are reported."""
    num_threads: int | None = Field(default=None, ge=1)
    """CPU threads; None: torch's default."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to measure."""
    as_json: bool = False
    """Print the result as JSON on stdout; on the command line `--json`."""


class BenchStepConfig(Section):
    """`longtake bench step`: a whole RL step at Qwen2.5-VL-7B's proportions of cost: two baselines, fixed layout, planned."""

    frames: tuple[int, ...] = Field(default=(8, 16, 32, 64, 128, 256, 512), min_length=1)
    """Frames of each video; one line of the table for each number."""
    response: int = Field(default=32, ge=1)
    """R: tokens of each take."""
    group: int = Field(default=8, ge=1)
    """G: takes of each prompt."""
    text: int = Field(default=32, ge=2)
    """Text tokens of the prompt."""
    beta: float = Field(default=0.01, ge=0.0)
    """Coefficient of the KL term; 0: no reference pass."""
    processes: int = Field(default=2, ge=1)
    """Of one thread each; also the number of groups in a step."""
    repeats: int = Field(default=3, ge=1)
    """Rounds of the table, all columns in turn; medians are reported."""
    regret_repeats: int = Field(default=7, ge=1)
    """Rounds in which the planner's choice and the fixed layouts take turns."""
    as_json: bool = False
    """Print the result as JSON on stdout; on the command line `--json`."""
