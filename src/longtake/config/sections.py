"""The parts a stage's configuration is made of. Frozen, typed, ranges checked, unknown keys refused. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from longtake.config.base import Section, broken, check_address
from longtake.config.llm import BudgetConfig, EndpointConfig


class VideoLimits(Section):
    """What a hostile file cannot pass."""

    max_bytes: int = Field(default=64 << 30, ge=1)
    """Largest video file read, in bytes."""
    max_image_bytes: int = Field(default=256 << 20, ge=1)
    """Largest image file read, in bytes; all of it may be held in memory."""
    max_seconds: float = Field(default=24 * 3600.0, gt=0)
    """Longest duration, in seconds."""
    max_frame_pixels: int = Field(default=8192 * 4320, ge=1)
    """Most pixels of one source frame."""
    max_decoded_frames: int = Field(default=4_000_000, ge=1)
    """Most frames the decoder may produce for one video."""


class VideoConfig(Section):
    """How a video becomes frames, and how many tokens it may cost."""

    max_frames: int = Field(default=32, ge=2)
    """Frames chosen uniformly (midpoints of equal segments); rounded down to a multiple of the temporal patch."""
    fps: float | None = Field(default=None, gt=0)
    """When set: at most this many frames per second, still bounded by max_frames."""
    min_pixels_per_frame: int = Field(default=28 * 28, ge=28 * 28)
    """A frame is enlarged to at least this many pixels."""
    max_pixels_per_frame: int | None = Field(default=None, ge=28 * 28)
    """A frame is reduced to at most this many pixels, sides in whole patches; None: what the checkpoint asks for, at most 448 x 448."""
    max_video_tokens: int | None = Field(default=None, ge=1)
    """Token budget per video (frames x pixels); None: no budget."""
    overflow: Literal["fewer_pixels", "fewer_frames", "error"] = "fewer_pixels"
    """What to do when frames x pixels would pass max_video_tokens. Every reduction is counted and reported."""
    limits: VideoLimits = VideoLimits()
    """Hard limits on the source file."""
    encode_groups: int = Field(default=64, ge=1)
    """Temporal groups the tower encodes at a time; a fixed chunk size keeps the bits independent of the batch."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_pixels_per_frame is not None and self.min_pixels_per_frame > self.max_pixels_per_frame:
            raise broken(
                f"min_pixels_per_frame = {self.min_pixels_per_frame}, max_pixels_per_frame = {self.max_pixels_per_frame}",
                "the smallest frame must not be larger than the largest",
                "lower min_pixels_per_frame or raise max_pixels_per_frame",
            )
        return self


class CacheConfig(Section):
    """Where the embeddings of videos are kept, so that no video is decoded and encoded twice."""

    folder: Path | None = None
    """Folder with one file per video, shared by processes, stages and later runs; None: in memory, for this process only."""
    disk_bytes: int = Field(default=256 << 30, ge=0)
    """Most bytes of embeddings in the folder, whoever wrote them. A full one keeps what it has; to make room delete files, or all of it."""
    memory_bytes: int = Field(default=4 << 30, ge=0)
    """Most bytes kept in memory by each process: embeddings that no folder holds, and frames while the tower trains."""
    prefetch_bytes: int = Field(default=1 << 30, ge=0)
    """Most bytes of frames that each process decodes ahead, for the next step while this one trains; 0: none."""


class ParallelConfig(Section):
    """How the processes of a launch (torchrun) share the work. One process: nothing here matters."""

    ulysses: int = Field(default=1, ge=1)
    """Ranks that share a sequence by exchanging heads for sequence; divides the query heads."""
    ring: int = Field(default=1, ge=1)
    """Ranks (of Ulysses groups) that share a sequence by passing its prompt around. ulysses x ring divides the number of processes; what is
    left of them are data ranks, each with groups of its own."""
    sharded: bool = False
    """rl and sft: weights, gradients and moments cut over all processes (FSDP), each gathered layer by layer when it is used; rollouts and
    validation gather all of the language model. False: every process holds them whole."""
    timeout_s: float = Field(default=7200.0, gt=0)
    """A collective that waits longer ends the process."""
    heartbeat_s: float = Field(default=3600.0, gt=0)
    """A rank that hangs or stays behind for so long makes the others stop, with a message that names it; below timeout_s, and above the
    longest that one rank works while others wait: digesting all files at the start, its part of an evaluation. A rank that dies is noticed
    at once."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.heartbeat_s >= self.timeout_s:
            raise broken(
                f"parallel.heartbeat_s = {self.heartbeat_s:g}, parallel.timeout_s = {self.timeout_s:g}",
                "the heartbeat, which names the rank, speaks before the collective gives up",
                "lower parallel.heartbeat_s or raise parallel.timeout_s",
            )
        return self


class LoraConfig(Section):
    """Low-rank adapters (peft) in place of full fine-tuning."""

    rank: int = Field(default=16, ge=1)
    """Rank of the adapters."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale of the adapters (alpha / rank)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
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
        "Think step by step inside <think> </think>, then give the final answer inside <answer> </answer>: "
        "the letter only for a multiple-choice question, otherwise a short text."
    )
    """Appended to the question after a line break; empty: nothing is appended."""
    max_prompt_tokens: int = Field(default=131_072, ge=1)
    """A longer prompt is refused (counted), never cut."""


RowFormat = Literal["auto", "longvideo_reason", "video_r1", "llava_video"]


class SourceConfig(Section):
    """One source of a mixture."""

    rows: Path
    """JSON lines, JSON array or Parquet file of its rows."""
    format: RowFormat = "auto"
    """Whose fields the rows have; auto: those of the first row that has some."""
    root: Path | None = None
    """Folder that every path of a video or image must stay inside; None: the folder of the rows file."""
    weight: float = Field(default=1.0, gt=0, le=1e6)
    """Share of the rows that training draws from it, relative to the weights of the others. Validation and evaluation take every row."""
    rewards: dict[str, float] = Field(default={})
    """Weights of the named rewards for its rows, in place of rewards.weights; empty: those."""
    max_rows: int | None = Field(default=None, ge=1)
    """Use only the first rows; None: all."""
    categories: tuple[str, ...] = ()
    """Use only these categories; empty: all."""
    with_subtitles: bool | None = None
    """Put the subtitle text in front of the question; None: as data.with_subtitles says."""


SMALLEST_SHARE = 1e-6
"""Of a source: one that is drawn more seldom would do nothing in any run, without a word."""
SOURCE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class DataConfig(Section):
    """Rows and where their videos live."""

    rows: Path | None = None
    """JSON lines, JSON array or Parquet file of rows. Either this or `sources`."""
    sources: dict[str, SourceConfig] = Field(default={})
    """A mixture: name -> a rows file with a weight, a root and rewards of its own."""
    format: RowFormat = "auto"
    """Whose fields the rows have; auto: those of the first row that has some."""
    root: Path | None = None
    """Folder that every path of a video or image must stay inside; None: the folder of the rows file."""
    max_rows: int | None = Field(default=None, ge=1)
    """Use only the first rows; None: all."""
    categories: tuple[str, ...] = ()
    """Use only these categories; empty: all."""
    with_video: bool = True
    """False: questions are asked blind, without videos and images (the no-video baseline)."""
    with_subtitles: bool = False
    """Put the subtitle text in front of the question."""
    longest_first: bool = False
    """Training begins with its longest rows: what does not fit into memory fails in the first step, not after a night. Every video is
    probed at the start; the order of the other rows stays."""
    max_failed_fraction: float = Field(default=0.1, ge=0, le=1)
    """Stop before training when more than this share of the rows cannot be used; below it they are skipped, counted and listed."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.rows is None) == (not self.sources):
            given = "rows and sources are both set" if self.sources else "neither rows nor sources are set"
            raise broken(given, "rows come from one file, or from the sources of a mixture", "set data.rows or data.sources.NAME.rows")
        own = [name for name in ("format", "root", "max_rows", "categories") if self.sources and name in self.model_fields_set]
        own = [name for name in own if getattr(self, name) != type(self).model_fields[name].default]
        odd = [name for name in self.sources if not SOURCE_NAME.fullmatch(name)]
        if own or odd:
            given = ", ".join([*(f"{name} beside sources" for name in own), *(f"a source named {name[:80]!r}" for name in odd)])
            rule = "each source has its own, and a name of letters, digits, _ and -"
            raise broken(given, rule, "set them in data.sources.NAME, and rename what has other characters")
        total = sum(source.weight for source in self.sources.values())
        rare = [name for name, source in self.sources.items() if source.weight < SMALLEST_SHARE * total]
        if rare:
            given = f"data.sources.{rare[0]}.weight = {self.sources[rare[0]].weight:g} beside {total:g} in all"
            raise broken(given, f"a source is at least {SMALLEST_SHARE:g} of what is drawn", "raise its weight, or take it out")
        return self

    @property
    def parts(self) -> dict[str, SourceConfig]:
        """The sources of a mixture, or the one file as a source without a name."""
        if self.rows is None:
            return dict(self.sources)
        only = SourceConfig(rows=self.rows, format=self.format, root=self.root, max_rows=self.max_rows, categories=self.categories)
        return {"": only}

    @property
    def files(self) -> str:
        """All rows files, for messages."""
        return " and ".join(str(part.rows) for part in self.parts.values())


class OptimizerConfig(Section):
    """AdamW with warm-up and a schedule."""

    lr: float = Field(default=1e-6, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay; not applied to norms, biases and embeddings."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW betas."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW epsilon."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Global norm the gradient is clipped to."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """After the warm-up: constant, or cosine down to min_lr_fraction."""
    warmup_steps: int = Field(default=0, ge=0)
    """Linear warm-up, in optimizer steps."""
    min_lr_fraction: float = Field(default=0.1, ge=0, le=1)
    """The cosine ends at this share of the peak."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise broken(f"betas = {list(self.betas)}", "both must be at least 0 and below 1", "use e.g. [0.9, 0.999]")
        return self


class VllmConfig(Section):
    """Rollouts by vLLM (rollout.engine = vllm)."""

    kv_cache_gb: float | None = Field(default=None, gt=0)
    """Memory for keys and values, in 10^9 bytes; None: on a CPU what the longest prompts of a step need, at most a quarter of the free
    memory; on CUDA what gpu_memory_utilization leaves."""
    gpu_memory_utilization: float = Field(default=0.4, gt=0, le=1)
    """CUDA: share of a GPU's memory for the engine, its weights included; the trainer needs the rest."""
    tensor_parallel: int = Field(default=1, ge=1)
    """Processes of the launch that share one engine, its weights cut over them; divides their number and the query heads. For a model
    that one GPU does not hold."""
    sleep: bool = True
    """CUDA: between rollouts the engine gives back the memory of its weights, keys and values, and the trainer has it."""
    cuda_graphs: bool = True
    """CUDA: capture graphs for decoding; faster, but memory and seconds at the start."""
    check_videos: bool = True
    """Compare a hash of every video's embeddings as they arrived in the engine with the trainer's."""
    server: str | None = None
    """Address of a server that samples, such as http://host:8000, started by `longtake serve MODEL --rollouts`; None: the training process
    itself does."""
    weights_folder: Path | None = None
    """With a server: folder on its way to which weights lie for a moment, and which it sees under the same path; None: the run's folder."""
    weights: Literal["files", "nccl"] = "files"
    """With a server: how weights reach it, as files in a folder or from GPU to GPU; as it was started (`longtake serve --weights`)."""
    timeout_s: float = Field(default=1800.0, gt=0)
    """With a server: longest wait for one of its answers, the takes of a prompt or a part of the weights."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_address("server", self.server)
        return self


class RolloutConfig(Section):
    """How takes are sampled. There is no top-p or top-k: the sampler's distribution is the policy's."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """What samples: the model that is trained itself, or vLLM, which computes the same log-probs up to rounding."""
    num_takes: int = Field(default=8, ge=1)
    """G: takes per prompt."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature; 0 means greedy (evaluation only)."""
    max_new_tokens: int = Field(default=2048, ge=1)
    """Longest response; a take that reaches it has finish reason `length`."""
    max_rows: int = Field(default=256, ge=1)
    """Takes decoded together."""
    staleness: int = Field(default=0, ge=0, le=1)
    """rl: 1 samples the next batch before this one's update, by weights one update old, as where sampling and training go on at the same
    time; the importance correction is then on by default. A resumed run samples its first batch anew, with newer weights."""
    vllm: VllmConfig = VllmConfig()
    """Settings of that engine."""


class KlConfig(Section):
    """KL to the reference policy (the weights RL started from)."""

    coefficient: float = Field(default=0.0, ge=0)
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

    max_rounds: int = Field(default=4, ge=1)
    """Rounds of sampling per step at most; what is missing then is missing, and is logged."""


class ImportanceConfig(Section):
    """Importance correction: takes weighted by how much likelier the trainer finds them than what sampled them did."""

    kind: Literal["auto", "off", "truncate", "mask"] = "auto"
    """auto: truncate with a rollout.engine that is not the trainer's own or with rollout.staleness, else off. off: the surrogate's ratio is
    to the sampler. truncate: it is to the weights before the step's updates, and the loss is multiplied by the constant min(r, cap), r =
    trainer / sampler. mask: by r inside low..cap and by 0 outside, where no gradient is taken; such tokens and takes stay in the
    denominators."""
    level: Literal["token", "sequence"] = "token"
    """r of each token, or of a whole take: the product over its tokens."""
    cap: float = Field(default=2.0, ge=1)
    """Largest r: what is above is truncated or masked."""
    low: float = Field(default=0.5, ge=0, le=1)
    """For mask: smallest r."""


class AlgorithmConfig(Section):
    """Advantage estimator and policy loss. Defaults are the paper's GRPO."""

    advantage: Literal["grpo", "dr_grpo", "rloo", "reinforce_pp"] = "grpo"
    """How rewards become advantages: group mean and std | group mean | leave-one-out | group mean, batch std."""
    loss: Literal["clip", "gspo", "cispo"] = "clip"
    """PPO-clip per token | per-sequence ratio (GSPO) | clipped importance weight as a constant (CISPO)."""
    aggregation: Literal["take_mean", "token_mean", "constant"] = "take_mean"
    """Mean over tokens per take then over takes (GRPO) | over all tokens of the batch (DAPO) | sum / constant (Dr. GRPO)."""
    clip_low: float = Field(default=0.2, ge=0)
    """epsilon below 1."""
    clip_high: float = Field(default=0.3, ge=0)
    """epsilon above 1 (clip-higher when larger than clip_low)."""
    dual_clip: float | None = Field(default=3.0, gt=1)
    """Upper bound c of the loss for negative advantages (dual-clip PPO); None: off."""
    std_epsilon: float = Field(default=1e-6, gt=0)
    """Added to the standard deviation."""
    importance: ImportanceConfig = ImportanceConfig()
    """Correction of the difference between the sampler's distribution and the trainer's."""
    kl: KlConfig = KlConfig()
    """KL to the reference policy."""
    overlong: OverlongConfig | None = None
    """Soft punishment of long takes; None: off."""
    dynamic_sampling: DynamicSamplingConfig | None = None
    """Replace groups whose rewards are all equal; None: keep them (their advantage is 0)."""


class JudgeConfig(Section):
    """A language model that decides whether the answer to an open-ended question means the same as the key."""

    endpoint: EndpointConfig | None = None
    """A server that is asked. Either this or `local`."""
    local: ModelConfig | None = None
    """A checkpoint that is loaded beside the trained model and asked through a rollout engine of its own."""
    folder: Path | None = None
    """Where answers are kept, so that no judgement is paid twice; None: `judge` in the run's folder."""
    max_answer_chars: int = Field(default=2000, ge=1)
    """A longer answer is no short text: judged wrong without a call."""
    max_tokens: int = Field(default=64, ge=1)
    """Longest reply of the judge; a model that thinks before it speaks needs more."""
    budget: BudgetConfig = BudgetConfig()
    """What the endpoint's calls may cost."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.endpoint is None) == (self.local is None):
            raise broken("judge.endpoint and judge.local", "exactly one of them judges", "set one, and leave the other out")
        return self


BUILT_IN_REWARDS = ("accuracy", "format", "overlong")


class RewardConfig(Section):
    """Named rewards and their weights."""

    weights: dict[str, float] = Field(default={"accuracy": 0.9, "format": 0.1})
    """Weight of each named reward in the sum; built in: accuracy, format, overlong; others come from `functions`."""
    functions: dict[str, str] = Field(default={})
    """User rewards: name -> `path/to/file.py:function` or `module:function`."""
    judge: JudgeConfig | None = None
    """What decides `accuracy` of open-ended rows whose answer is a text; None: equality of the normalised texts."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, function in self.functions.items():
            if name in BUILT_IN_REWARDS:
                raise broken(f"functions.{name}", f"{name} is a built-in reward", "give the function another name")
            if not all(function.rpartition(":")):
                raise broken(f"functions.{name} = {function!r}", "must be file.py:function or module:function", "put a colon before it")
        known = (*BUILT_IN_REWARDS, *self.functions)
        unknown = [name for name in self.weights if name not in known]
        if unknown or not any(self.weights.values()):
            raise broken(
                f"weights of {list(self.weights)}",
                f"each must be one of {list(known)}, and at least one weight must not be 0",
                "correct the names, or add the reward under `functions`",
            )
        return self


class CheckpointConfig(Section):
    """When the state of training is saved."""

    every: int = Field(default=50, ge=1)
    """Steps between checkpoints."""
    keep_last: int = Field(default=2, ge=1)
    """How many are kept, besides the best."""


class ObserveConfig(Section):
    """Where the numbers of a run are shown."""

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
    """The validation rows."""
    num_rows: int = Field(default=128, ge=1)
    """The first usable rows; always the same."""
    every: int = Field(default=25, ge=1)
    """Steps between validations."""
    max_new_tokens: int = Field(default=1024, ge=1)
    """Longest answer."""
    max_rows: int = Field(default=128, ge=1)
    """Answers decoded together."""
    patience: int | None = Field(default=None, ge=1)
    """SFT only: stop after this many validations without a new best."""
