"""The parts a stage's configuration is made of. Frozen, typed, ranges checked, unknown keys refused. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of every configuration object."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


class VideoLimits(Section):
    """What a hostile file cannot pass."""

    max_bytes: int = Field(64 << 30, ge=1)
    """Largest file read, in bytes."""
    max_seconds: float = Field(24 * 3600.0, gt=0)
    """Longest duration, in seconds."""
    max_frame_pixels: int = Field(8192 * 4320, ge=1)
    """Most pixels of one source frame."""
    max_decoded_frames: int = Field(4_000_000, ge=1)
    """Most frames the decoder may produce for one video."""


class VideoConfig(Section):
    """How a video becomes frames, and how many tokens it may cost."""

    max_frames: int = Field(32, ge=2)
    """Frames chosen uniformly (midpoints of equal segments); rounded down to a multiple of the temporal patch."""
    fps: float | None = Field(None, gt=0)
    """When set: at most this many frames per second, still bounded by max_frames."""
    min_pixels_per_frame: int = Field(28 * 28, ge=28 * 28)
    """A frame is enlarged to at least this many pixels."""
    max_pixels_per_frame: int = Field(448 * 448, ge=28 * 28)
    """A frame is reduced to at most this many pixels, sides rounded to whole patches."""
    max_video_tokens: int | None = Field(None, ge=1)
    """Token budget per video (frames x pixels); None: no budget."""
    overflow: Literal["fewer_pixels", "fewer_frames", "error"] = "fewer_pixels"
    """What to do when frames x pixels would pass max_video_tokens. Every reduction is counted and reported."""
    limits: VideoLimits = VideoLimits()
    """Hard limits on the source file."""
    encode_groups: int = Field(64, ge=1)
    """Temporal groups the tower encodes at a time; a fixed chunk size keeps the bits independent of the batch."""


class LoraConfig(Section):
    """Low-rank adapters (peft) in place of full fine-tuning."""

    rank: int = Field(16, ge=1)
    """Rank of the adapters."""
    alpha: float = Field(32.0, gt=0)
    """Scale of the adapters (alpha / rank)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in front of the adapters."""
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Names of the language model's linear layers that get adapters."""


class ModelConfig(Section):
    """Which weights, where and how."""

    path: str = "tiny"
    """A checkpoint directory of a supported family, or `tiny` for the model that ships in the package."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of weights and activations."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: CUDA when there is one."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """transformers' attention implementation."""
    train_vision: bool = False
    """Train the vision tower too (then videos are encoded once per step, with gradients)."""
    gradient_checkpointing: bool = False
    """Trade compute for activation memory."""
    lora: LoraConfig | None = None
    """Train adapters only."""


class PromptConfig(Section):
    """What is put around the question, and how long it may get."""

    system: str | None = None
    """System message; None: the chat template's own."""
    instruction: str = (
        "Think about the video step by step inside <think> </think>, then give the final answer inside <answer> </answer>: "
        "the letter only for a multiple-choice question, otherwise a short text."
    )
    """Appended to the question after a line break; empty: nothing is appended."""
    max_prompt_tokens: int = Field(131_072, ge=1)
    """A longer prompt is refused (counted), never cut."""


class DataConfig(Section):
    """Rows and where their videos live."""

    rows: Path
    """JSON lines or Parquet file of rows."""
    root: Path | None = None
    """Folder that every `videos` path must stay inside; None: the folder of the rows file."""
    max_rows: int | None = Field(None, ge=1)
    """Use only the first rows; None: all."""
    categories: tuple[str, ...] = ()
    """Use only these categories; empty: all."""
    with_video: bool = True
    """False: questions are asked blind (the no-video baseline)."""
    with_subtitles: bool = False
    """Put the subtitle text in front of the question."""
    max_failed_fraction: float = Field(0.1, ge=0, le=1)
    """Stop before training when more than this share of the rows cannot be used; below it they are skipped, counted and listed."""


class OptimizerConfig(Section):
    """AdamW with warm-up and a schedule."""

    lr: float = Field(1e-6, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay; not applied to norms, biases and embeddings."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW betas."""
    eps: float = Field(1e-8, gt=0)
    """AdamW epsilon."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Global norm the gradient is clipped to."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """After the warm-up: constant, or cosine down to min_lr_fraction."""
    warmup_steps: int = Field(0, ge=0)
    """Linear warm-up, in optimizer steps."""
    min_lr_fraction: float = Field(0.1, ge=0, le=1)
    """The cosine ends at this share of the peak."""


class RolloutConfig(Section):
    """How takes are sampled. There is no top-p or top-k: the sampler's distribution is the policy's."""

    num_takes: int = Field(8, ge=1)
    """G: takes per prompt."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature; 0 means greedy (evaluation only)."""
    max_new_tokens: int = Field(2048, ge=1)
    """Longest response; a take that reaches it has finish reason `length`."""
    max_rows: int = Field(256, ge=1)
    """Takes decoded together."""


class KlConfig(Section):
    """KL to the reference policy (the weights RL started from)."""

    coefficient: float = Field(0.0, ge=0)
    """beta; 0 skips the reference pass altogether."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """Per-token estimator (Schulman, approximating KL)."""
    place: Literal["loss", "reward"] = "loss"
    """As a loss term, or taken from the reward."""


class OverlongConfig(Section):
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13)."""

    cache_tokens: int = Field(ge=1)
    """Length of the zone before max_new_tokens in which the reward falls linearly to -1."""
    mask_truncated: bool = False
    """Take no gradient from takes that hit the length limit."""


class DynamicSamplingConfig(Section):
    """Replace groups with uniform rewards by sampling more prompts (DAPO)."""

    max_rounds: int = Field(4, ge=1)
    """Rounds of sampling per step at most; what is missing then is missing, and is logged."""


class AlgorithmConfig(Section):
    """Advantage estimator and policy loss. Defaults are the paper's GRPO."""

    advantage: Literal["grpo", "dr_grpo", "rloo", "reinforce_pp"] = "grpo"
    """How rewards become advantages: group mean and std | group mean | leave-one-out | group mean, batch std."""
    loss: Literal["clip", "gspo", "cispo"] = "clip"
    """PPO-clip per token | per-sequence ratio (GSPO) | clipped importance weight as a constant (CISPO)."""
    aggregation: Literal["take_mean", "token_mean", "constant"] = "take_mean"
    """Mean over tokens per take then over takes (GRPO) | over all tokens of the batch (DAPO) | sum / constant (Dr. GRPO)."""
    clip_low: float = Field(0.2, ge=0)
    """epsilon below 1."""
    clip_high: float = Field(0.3, ge=0)
    """epsilon above 1 (clip-higher when larger than clip_low)."""
    dual_clip: float | None = Field(3.0, gt=1)
    """Upper bound c of the loss for negative advantages (dual-clip PPO); None: off."""
    std_epsilon: float = Field(1e-6, gt=0)
    """Added to the standard deviation."""
    kl: KlConfig = KlConfig()
    overlong: OverlongConfig | None = None
    dynamic_sampling: DynamicSamplingConfig | None = None


class RewardConfig(Section):
    """Named rewards and their weights."""

    weights: dict[str, float] = {"accuracy": 0.9, "format": 0.1}
    """Weight of each named reward in the sum; built in: accuracy, format, overlong; others come from `functions`."""
    functions: dict[str, str] = {}
    """User rewards: name -> `path/to/file.py:function` or `module:function`."""


class CheckpointConfig(Section):
    every: int = Field(50, ge=1)
    """Steps between checkpoints."""
    keep_last: int = Field(2, ge=1)
    """How many are kept, besides the best."""


class ObserveConfig(Section):
    tensorboard: bool = True
    """Write TensorBoard event files into the run's folder."""
    wandb_project: str | None = None
    """Also log to Weights & Biases (needs the extra `wandb`)."""
    trackio_project: str | None = None
    """Also log to trackio (needs the extra `trackio`)."""
    progress: bool = True
    """Show a live progress line on a terminal."""


class ValidationConfig(Section):
    """Fixed rows answered every few steps."""

    data: DataConfig
    num_rows: int = Field(128, ge=1)
    """The first usable rows; always the same."""
    every: int = Field(25, ge=1)
    """Steps between validations."""
    patience: int | None = Field(None, ge=1)
    """SFT only: stop after this many validations without a new best."""
