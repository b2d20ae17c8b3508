"""The configuration of `longtake plan`. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from longtake.config.base import Section, broken
from longtake.config.sections import DataConfig
from longtake.config.stages import RlConfig


class HardwareConfig(Section):
    """What the run will have."""

    device: Literal["auto", "cpu", "a100", "h100", "h200", "b200"] = "auto"
    """`auto`: this machine, measured for a second; `cpu`: this processor, measured; a GPU: its published peaks at assumed shares."""
    gpus_per_node: int | None = Field(default=None, ge=1)
    """Processes on each node, one per GPU; None: those of this launch (torchrun), else as many as this machine has GPUs, 1 on a CPU."""
    nodes: int = Field(default=1, ge=1)
    """Nodes."""
    gpu_memory_gib: float | None = Field(default=None, gt=0)
    """Memory of one GPU; None: what the device has, on a CPU this process's share of the host's."""
    host_memory_gib: float | None = Field(default=None, gt=0)
    """Memory of a node; None: that of this machine."""
    reserve: float = Field(default=0.1, ge=0, lt=1)
    """Share of the memory that is left free, for fragmentation and what libraries take."""


class PlanConfig(RlConfig):
    """`longtake plan`: what a configuration of `longtake rl` will need: tokens, memory, layout and seconds, before it is started."""

    out: Path = Path("runs/plan")
    """Not written to; here so that the configuration of a run can be given as it is."""
    data: DataConfig = DataConfig(rows=Path("rows.jsonl"))
    """The rows whose videos are probed, unless `frames` is given."""
    hardware: HardwareConfig = HardwareConfig()
    """What the run will have."""
    frames: int | None = Field(default=None, ge=2)
    """Plan for prompts with a video each of so many sampled frames in place of the rows (it also sets video.max_frames); None: the rows."""
    duration: float = Field(default=3600.0, gt=0)
    """Seconds of that video, at 30 frames per second."""
    video_size: tuple[int, int] = (1280, 720)
    """Width and height of that video in pixels, before it is reduced."""
    question_tokens: int = Field(default=256, ge=1)
    """Tokens around that video: question, instruction, template."""
    response_tokens: int | None = Field(default=None, ge=1)
    """Expected tokens of a take, for the seconds; memory is planned for rollout.max_new_tokens. None: that too for the seconds."""
    as_json: bool = False
    """Print the plan as JSON on stdout; on the command line `--json`."""

    @model_validator(mode="before")
    @classmethod
    def _mixture(cls, values: Any) -> Any:
        """A mixture takes the place of the default rows."""
        data = values.get("data") if isinstance(values, dict) else None
        if isinstance(data, dict) and data.get("sources"):
            return {**values, "data": {"rows": "none", **data}}
        return values

    @model_validator(mode="after")
    def _check_plan(self) -> Self:
        if min(self.video_size) < 1:
            raise broken(f"video_size = {list(self.video_size)}", "two numbers of at least 1", "write width,height")
        if self.response_tokens is not None and self.response_tokens > self.rollout.max_new_tokens:
            raise broken(
                f"response_tokens = {self.response_tokens}, rollout.max_new_tokens = {self.rollout.max_new_tokens}",
                "a take is no longer than the longest",
                "lower response_tokens",
            )
        return self
