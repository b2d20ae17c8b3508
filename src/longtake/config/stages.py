"""One configuration per stage. The resolved one is saved with every run and can be fed back in. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from longtake.config.sections import (
    AlgorithmConfig,
    CheckpointConfig,
    DataConfig,
    ModelConfig,
    ObserveConfig,
    OptimizerConfig,
    PromptConfig,
    RewardConfig,
    RolloutConfig,
    Section,
    ValidationConfig,
    VideoConfig,
)


class WorldConfig(Section):
    """`longtake world make`: procedural videos with ground truth."""

    out: Path
    """Folder to write: videos/, rows.jsonl, events.jsonl (ground truth), *.srt."""
    num_videos: int = Field(8, ge=1)
    seed: int = Field(0, ge=0)
    """Same seed, same bytes of rows and same pixels."""
    seconds: tuple[float, float] = (48.0, 80.0)
    """Shortest and longest duration of a video."""
    fps: float = Field(2.0, gt=0)
    """Frames per second of the file."""
    size: int = Field(112, ge=56)
    """Height of a frame in pixels; the width follows from `aspect`."""
    aspect: float = Field(1.0, ge=0.5, le=4.0)
    """Width / height."""
    num_scenes: tuple[int, int] = (5, 6)
    """Fewest and most scenes in which something happens."""
    gop: int = Field(24, ge=1)
    """Frames between keyframes."""
    variable_rate: bool = False
    """Irregular frame times (some frames shown longer), as phones and screen recorders write."""
    event_share: float = Field(0.6, gt=0, le=1)
    """Mean share of the video in which something happens; the rest is quiet. Small values make the evidence rare."""
    questions_per_video: int = Field(4, ge=1)
    open_ended: float = Field(0.0, ge=0, le=1)
    """Share of questions without options."""
    workers: int | None = Field(None, ge=1)
    """Processes that write videos; None: one per core. Never changes the result."""


class TrainConfig(Section):
    """What SFT and RL share."""

    out: Path
    """Run folder: config.json, metrics.jsonl, checkpoints/, tensorboard/."""
    seed: int = Field(0, ge=0)
    model: ModelConfig = ModelConfig()
    video: VideoConfig = VideoConfig()
    prompt: PromptConfig = PromptConfig()
    data: DataConfig
    optimizer: OptimizerConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    validation: ValidationConfig | None = None
    observe: ObserveConfig = ObserveConfig()
    resume: bool = True
    """Go on from the newest valid checkpoint in `out`; False: refuse a folder that has one."""
    max_seconds: float | None = Field(None, gt=0)
    """Stop after this many seconds of training (checkpointed); None: never."""
    num_threads: int | None = Field(None, ge=1)
    """CPU threads; None: torch's default. Part of what makes a run bit-identical."""


class SftConfig(TrainConfig):
    """`longtake sft`: chain-of-thought supervised fine-tuning on the responses of the rows."""

    epochs: float = Field(3.0, gt=0)
    """Passes over the rows; ignored when max_steps is set."""
    max_steps: int | None = Field(None, ge=1)
    batch_size: int = Field(32, ge=1)
    """Rows per optimizer step."""
    micro_batch_size: int = Field(8, ge=1)
    """Rows per forward; changes memory, never the result."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-5)


class RlConfig(TrainConfig):
    """`longtake rl`: GRPO and its relatives."""

    steps: int = Field(200, ge=1)
    prompts_per_step: int = Field(16, ge=1)
    updates_per_step: int = Field(1, ge=1)
    """Optimizer steps per batch of takes (mini-batches of groups); 1 is exactly on-policy."""
    micro_batch_tokens: int = Field(32_768, ge=1)
    """Tokens (padded) per forward; changes memory, never the result."""
    rollout: RolloutConfig = RolloutConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    rewards: RewardConfig = RewardConfig()
    optimizer: OptimizerConfig = OptimizerConfig(schedule="constant")
    max_logprob_difference: float = Field(0.5, gt=0)
    """Largest |sampler - policy| log-prob of one token before the step is refused (mean over the batch: a tenth of it)."""


class EvaluateConfig(Section):
    """`longtake evaluate`: accuracy with intervals, by category, number of frames and answer letter."""

    out: Path
    """Folder for results.json and answers.jsonl."""
    model: ModelConfig = ModelConfig()
    video: VideoConfig = VideoConfig()
    prompt: PromptConfig = PromptConfig()
    data: DataConfig
    frames: tuple[int, ...] = ()
    """Numbers of frames to evaluate at; empty: only video.max_frames. The largest is the headline."""
    scoring: Literal["generate", "letters"] = "generate"
    """Read the generated answer, or compare the log-probs of the option letters (for base models)."""
    rollout: RolloutConfig = RolloutConfig(num_takes=1, temperature=0.0)
    seed: int = Field(0, ge=0)
    num_threads: int | None = Field(None, ge=1)


class TinyConfig(Section):
    """`longtake tiny train`: reproduce the tiny base model that ships in the package."""

    out: Path
    seed: int = Field(0, ge=0)
    num_videos: int = Field(6000, ge=8)
    steps: int = Field(2000, ge=1)
    batch_size: int = Field(64, ge=1)
    lr: float = Field(1e-3, gt=0)
    warmup_steps: int = Field(50, ge=0)
    max_frames: int = Field(32, ge=2)
    pixels_per_frame: int = Field(56 * 56, ge=28 * 28)
    num_threads: int | None = Field(None, ge=1)


class AskConfig(Section):
    """`longtake ask`: one question about a user's own file."""

    video: Path
    question: str = Field(min_length=1)
    model: ModelConfig = ModelConfig()
    frames: VideoConfig = VideoConfig()
    prompt: PromptConfig = PromptConfig()
    rollout: RolloutConfig = RolloutConfig(num_takes=1, temperature=0.0, max_new_tokens=1024)
    subtitles: Path | None = None
    seed: int = Field(0, ge=0)


class ExportConfig(Section):
    """`longtake export`: a run's checkpoint as a plain transformers directory."""

    run: Path
    """A run folder or one checkpoint inside it."""
    out: Path
    which: Literal["latest", "best"] = "latest"
