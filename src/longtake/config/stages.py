"""One configuration per stage. The resolved one is saved with every run and can be fed back in. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from longtake.config.base import Section, broken, check_address
from longtake.config.sections import (
    BUILT_IN_REWARDS,
    AlgorithmConfig,
    CacheConfig,
    CheckpointConfig,
    DataConfig,
    ImportanceConfig,
    JudgeConfig,
    ModelConfig,
    ObserveConfig,
    OptimizerConfig,
    ParallelConfig,
    PromptConfig,
    RewardConfig,
    RolloutConfig,
    ValidationConfig,
    VideoConfig,
)


class WorldConfig(Section):
    """`longtake world make`: procedural videos with ground truth."""

    out: Path
    """Folder to write: videos/, rows.jsonl, events.jsonl (ground truth), *.srt."""
    num_videos: int = Field(default=8, ge=1)
    """Videos to write."""
    seed: int = Field(default=0, ge=0)
    """Same seed, same bytes of rows and same pixels."""
    seconds: tuple[float, float] = (48.0, 80.0)
    """Shortest and longest duration of a video."""
    fps: float = Field(default=2.0, gt=0)
    """Frames per second of the file."""
    size: int = Field(default=112, ge=56)
    """Height of a frame in pixels; the width follows from `aspect`."""
    aspect: float = Field(default=1.0, ge=0.5, le=4.0)
    """Width / height."""
    num_scenes: tuple[int, int] = (5, 6)
    """Fewest and most scenes in which something happens."""
    gop: int = Field(default=24, ge=1)
    """Frames between keyframes."""
    variable_rate: bool = False
    """Irregular frame times (some frames shown longer), as phones and screen recorders write."""
    event_share: float = Field(default=0.6, gt=0, le=1)
    """Mean share of the video in which something happens; the rest is quiet. Small values make the evidence rare."""
    questions_per_video: int = Field(default=4, ge=1)
    """Questions about each video, spread over the four categories."""
    open_ended: float = Field(default=0.0, ge=0, le=1)
    """Share of questions without options."""
    brief: float = Field(default=0.0, ge=0, le=1)
    """Share of questions whose reasoning states the deciding fact alone; the others describe the whole video first."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_range("seconds", self.seconds, least=1.0)
        check_range("num_scenes", self.num_scenes, least=1)
        return self

    workers: int | None = Field(default=None, ge=1)
    """Processes that write videos; None: one per core. Never changes the result."""


class TrainConfig(Section):
    """What SFT and RL share."""

    out: Path
    """Run folder: config.json, metrics.jsonl, checkpoints/, tensorboard/."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything random: order of rows, sampling, dropout."""
    model: ModelConfig = ModelConfig()
    """The weights training starts from."""
    video: VideoConfig = VideoConfig()
    """How videos become frames and tokens."""
    cache: CacheConfig = CacheConfig()
    """Where embeddings are kept."""
    prompt: PromptConfig = PromptConfig()
    """What is put around the question."""
    data: DataConfig
    """The training rows."""
    optimizer: OptimizerConfig
    """AdamW and its schedule."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the state is saved."""
    parallel: ParallelConfig = ParallelConfig()
    """How the processes of a launch share the work."""
    validation: ValidationConfig | None = None
    """Fixed rows answered every few steps; None: no validation, and no best checkpoint."""
    observe: ObserveConfig = ObserveConfig()
    """Progress and metrics."""
    resume: bool = True
    """Go on from the newest valid checkpoint in `out`; False: refuse a folder that has one."""
    max_seconds: float | None = Field(default=None, gt=0)
    """Stop after this many seconds of training (checkpointed); None: never."""
    num_threads: int | None = Field(default=None, ge=1)
    """CPU threads; None: torch's default. Part of what makes a run bit-identical."""


class SftConfig(TrainConfig):
    """`longtake sft`: chain-of-thought supervised fine-tuning on the responses of the rows."""

    epochs: float = Field(default=3.0, gt=0)
    """Passes over the rows; ignored when max_steps is set."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; None: as many as `epochs` needs."""
    batch_size: int = Field(default=32, ge=1)
    """Rows per optimizer step."""
    micro_batch_size: int = Field(default=8, ge=1)
    """Rows per forward; changes memory, never the result."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-5)
    """AdamW and its schedule."""


class RlConfig(TrainConfig):
    """`longtake rl`: GRPO and its relatives."""

    steps: int = Field(default=200, ge=1)
    """Batches of takes that are sampled and learned from."""
    prompts_per_step: int = Field(default=16, ge=1)
    """Prompts per batch, each with rollout.num_takes takes."""
    updates_per_step: int = Field(default=1, ge=1)
    """Optimizer steps per batch of takes (mini-batches of groups); 1 is exactly on-policy."""
    micro_batch_tokens: int = Field(default=32_768, ge=1)
    """Tokens per forward and rank, each prompt counted once with its takes behind it; a larger group is split. Changes memory, never the
    result."""
    rollout: RolloutConfig = RolloutConfig()
    """How takes are sampled."""
    algorithm: AlgorithmConfig = AlgorithmConfig()
    """Advantages and policy loss."""
    rewards: RewardConfig = RewardConfig()
    """Named rewards and their weights."""
    optimizer: OptimizerConfig = OptimizerConfig(schedule="constant")
    """AdamW and its schedule."""
    max_logprob_difference: float | None = Field(default=None, gt=0)
    """Largest |sampler - policy| log-prob of one token before the step is refused (mean over the batch: a tenth of it). Takes of
    older weights are measured, not refused. None: 0.02 in float32, 0.5 in bfloat16."""

    @property
    def logprob_limit(self) -> float:
        """`max_logprob_difference` decided."""
        if self.max_logprob_difference is not None:
            return self.max_logprob_difference
        return 0.02 if self.model.dtype == "float32" else 0.5

    @property
    def engine_setting(self) -> RolloutConfig:
        """What an engine is made for that answers the validation's rows too."""
        longest = max(self.rollout.max_new_tokens, self.validation.max_new_tokens if self.validation else 1)
        return self.rollout.model_copy(update={"max_new_tokens": longest})

    @property
    def importance(self) -> ImportanceConfig | None:
        """The importance correction with its kind decided, truncate or mask; None: there is none."""
        given = self.algorithm.importance
        is_exact = self.rollout.engine == "transformers" and self.rollout.staleness == 0
        kind = given.kind if given.kind != "auto" else "off" if is_exact else "truncate"
        return None if kind == "off" else given.model_copy(update={"kind": kind})

    @model_validator(mode="after")
    def _check(self) -> Self:
        rollout, overlong = self.rollout, self.algorithm.overlong
        if rollout.temperature == 0:
            raise broken("rollout.temperature = 0", "RL samples, and greedy takes of a prompt are all alike", "use 1.0")
        if rollout.num_takes < 2:
            raise broken("rollout.num_takes = 1", "advantages compare the takes of a prompt, so at least 2", "use 8, as the paper")
        if self.updates_per_step > self.prompts_per_step:
            raise broken(
                f"updates_per_step = {self.updates_per_step}, prompts_per_step = {self.prompts_per_step}",
                "every update needs at least one group",
                "lower updates_per_step",
            )
        if overlong is not None and overlong.cache_tokens > rollout.max_new_tokens:
            raise broken(
                f"algorithm.overlong.cache_tokens = {overlong.cache_tokens}, rollout.max_new_tokens = {rollout.max_new_tokens}",
                "the zone lies inside the longest response",
                "lower algorithm.overlong.cache_tokens",
            )
        if overlong is None and self.rewards.weights.get("overlong"):
            raise broken("rewards.weights.overlong", "needs algorithm.overlong", "set algorithm.overlong.cache_tokens")
        self._check_sources()
        if self.model.train_vision and rollout.staleness > 0:
            raise broken(
                f"rollout.staleness = {rollout.staleness} with model.train_vision",
                "a batch's videos are encoded once, before it is sampled; the update that comes between would move the tower",
                "set rollout.staleness = 0, or train the language model alone",
            )
        if self.model.train_vision and self.algorithm.kl.coefficient > 0:
            raise broken(
                f"algorithm.kl.coefficient = {self.algorithm.kl.coefficient} with model.train_vision",
                "the reference sees the videos through the starting tower, which a trained tower leaves behind",
                "set algorithm.kl.coefficient = 0, or train the language model alone",
            )
        if self.validation is not None and self.validation.patience is not None:
            raise broken("validation.patience", "is for SFT only", "set max_seconds or steps")
        return self

    def _check_sources(self) -> None:
        """Rewards of the sources of a mixture. Raises PydanticCustomError."""
        known = (*BUILT_IN_REWARDS, *self.rewards.functions)
        usable = [name for name in known if name != "overlong" or self.algorithm.overlong is not None]
        for name, source in self.data.sources.items():
            unknown = [reward for reward in source.rewards if reward not in usable]
            if unknown or (source.rewards and not any(source.rewards.values())):
                raise broken(
                    f"data.sources.{name}.rewards of {list(source.rewards)}",
                    f"each must be one of {usable}, and at least one weight must not be 0",
                    "correct the names, or add the reward under rewards.functions (overlong: algorithm.overlong)",
                )


class EvaluateConfig(Section):
    """`longtake evaluate`: accuracy with intervals, by category, number of frames and answer letter."""

    out: Path
    """Folder for results.json and answers.jsonl."""
    model: ModelConfig = ModelConfig()
    """The weights to evaluate."""
    video: VideoConfig = VideoConfig()
    """How videos become frames and tokens."""
    cache: CacheConfig = CacheConfig()
    """Where embeddings are kept."""
    prompt: PromptConfig = PromptConfig()
    """What is put around the question."""
    data: DataConfig
    """The rows to answer."""
    frames: tuple[int, ...] = ()
    """Numbers of frames to evaluate at; empty: only video.max_frames. The largest is the headline."""
    scoring: Literal["generate", "letters"] = "generate"
    """Read the generated answer, or compare the log-probs of the option letters (for base models)."""
    rollout: RolloutConfig = RolloutConfig(num_takes=1, temperature=0.0)
    """How answers are generated; greedy by default."""
    judge: JudgeConfig | None = None
    """What decides open-ended rows whose answer is a text; None: equality of the normalised texts."""
    parallel: ParallelConfig = ParallelConfig()
    """How the processes of a launch share the work: rows are divided over all of them."""
    seed: int = Field(default=0, ge=0)
    """Seed of sampling, for a temperature above 0."""
    num_threads: int | None = Field(default=None, ge=1)
    """CPU threads; None: torch's default."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(frames < 2 for frames in self.frames):
            raise broken(f"frames = {list(self.frames)}", "each must be at least 2 (one temporal patch)", "correct the numbers")
        if self.judge is not None and self.scoring == "letters":
            raise broken("judge with scoring = letters", "letters scoring reads no answer that could be judged", "set scoring = generate")
        return self


class EncodeConfig(Section):
    """`longtake encode`: fill the cache of embeddings ahead of a run, from the configuration file of that run."""

    model: ModelConfig = ModelConfig()
    """The weights whose vision tower encodes."""
    video: VideoConfig = VideoConfig()
    """How videos become frames and tokens."""
    cache: CacheConfig = CacheConfig()
    """The folder to fill."""
    data: DataConfig
    """The rows whose videos are encoded."""
    validation: ValidationConfig | None = None
    """Validation rows of the run: their videos too."""
    frames: tuple[int, ...] = ()
    """Numbers of frames of an evaluation; empty: only video.max_frames."""
    num_shards: int = Field(default=1, ge=1)
    """Machines that share the work over one folder; each process of a torchrun takes a part of its machine's shard."""
    shard: int = Field(default=0, ge=0)
    """Which of them this is, counted from 0."""
    num_threads: int | None = Field(default=None, ge=1)
    """CPU threads; None: torch's default."""

    @model_validator(mode="before")
    @classmethod
    def _of_the_run(cls, values: Any) -> Any:
        """What only the run itself needs stands in its file too. A name that no run knows stays, and is refused."""
        others = {name for kind in (SftConfig, RlConfig, EvaluateConfig) for name in kind.model_fields} - set(cls.model_fields)
        return {name: value for name, value in values.items() if name not in others} if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.shard >= self.num_shards:
            raise broken(f"shard = {self.shard}, num_shards = {self.num_shards}", "shards are counted from 0", "lower shard")
        if self.cache.folder is None:
            raise broken("cache.folder is not set", "embeddings are written into a folder", "set cache.folder, for the run too")
        if self.model.train_vision:
            raise broken("model.train_vision = true", "a trained tower's embeddings change with every update", "start the run as it is")
        if not self.data.with_video:
            raise broken("data.with_video = false", "a blind run has no videos", "start the run as it is")
        return self


class TinyConfig(Section):
    """`longtake tiny train`: reproduce the tiny base model that ships in the package."""

    out: Path
    """Folder for the world, the log and the model directory."""
    seed: int = Field(0, ge=0)
    """Decides the world, the first weights and the order of the data."""
    num_videos: int = Field(3000, ge=8)
    """Videos to describe; frame times are jittered, so that none is seen twice in the same frames."""
    num_held_out: int = Field(128, ge=1)
    """Videos of another seed on which the descriptions are scored."""
    steps: int = Field(800, ge=1)
    """Optimizer steps on whole descriptions, vision tower included."""
    copy_steps: int = Field(600, ge=0)
    """Further steps on text alone, which only copy words: what every other kind of reading is built on."""
    read_steps: int = Field(2400, ge=1)
    """Further steps on every kind of reading: copying words, finding them in a log or a list."""
    focus_steps: int = Field(1200, ge=1)
    """Further steps on descriptions with a focus beside more reading, tower frozen."""
    batch_size: int = Field(64, ge=1)
    """Videos per step."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate; cosine down to a tenth."""
    warmup_steps: int = Field(50, ge=0)
    """Linear warm-up."""
    frames: tuple[int, ...] = (32,)
    """Numbers of frames a video is shown with, one drawn per step: repeat a number to see it more often."""
    pixels_per_frame: int = Field(28 * 28, ge=28 * 28)
    """Resolution the videos are read at."""
    evaluate_every: int = Field(100, ge=1)
    """Steps between scorings."""
    num_threads: int | None = Field(None, ge=1)
    """CPU threads; None: torch's default."""


class AskConfig(Section):
    """`longtake ask`: one question about a user's own file."""

    video: Path
    """The video file; it may be anywhere."""
    question: str = Field(min_length=1)
    """What to ask; options may stand inline, one per line."""
    model: ModelConfig = ModelConfig()
    """The weights that answer."""
    frames: VideoConfig = VideoConfig()
    """How the video becomes frames and tokens."""
    cache: CacheConfig = CacheConfig()
    """Where embeddings are kept: with a folder, the next question about the same video needs no decoding."""
    prompt: PromptConfig = PromptConfig()
    """What is put around the question."""
    rollout: RolloutConfig = RolloutConfig(num_takes=1, temperature=0.0, max_new_tokens=1024)
    """How the answer is generated; greedy by default."""
    subtitles: Path | None = None
    """An SRT file whose text is put in front of the question."""
    server: str | None = None
    """Address of a server that answers, such as http://127.0.0.1:8000, started by `longtake serve MODEL` with the same model; the video is
    decoded and encoded here. None: the model answers here."""
    timeout_s: float = Field(default=600.0, gt=0)
    """With a server: longest wait for its answer."""
    seed: int = Field(default=0, ge=0)
    """Seed of sampling, for a temperature above 0."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_address("server", self.server)
        return self


class ExportConfig(Section):
    """`longtake export`: a run's checkpoint as a plain transformers directory."""

    run: Path
    """A run folder or one checkpoint inside it."""
    out: Path
    """Folder to write."""
    which: Literal["latest", "best"] = "latest"
    """Which checkpoint of the run."""


class BenchDecodeConfig(Section):
    """`longtake bench decode`: uniform frames of a long file, our planned seeking against decoding everything."""

    folder: Path = Path("runs/bench")
    """Where the measured file is made; used again when it exists."""
    seconds: int = Field(default=3600, ge=1)
    """Duration of the file."""
    fps: int = Field(default=30, ge=1)
    """Frames per second of the file."""
    height: int = Field(default=360, ge=56)
    """Height of its frames in pixels."""
    width: int = Field(default=640, ge=56)
    """Width of its frames in pixels."""
    gop_s: float = Field(default=2.0, gt=0)
    """Seconds between keyframes."""
    frames: int = Field(default=512, ge=2)
    """Frames wanted, uniform over the file."""
    threads: int = Field(default=1, ge=1)
    """Decoder threads, the same for both ways."""
    as_json: bool = False
    """Print the result as JSON on stdout; on the command line `--json`."""


class ReportConfig(Section):
    """`longtake report RUN_DIR`: one self-contained report.html from what a run left in its folder."""

    run: Path
    """The run folder."""


class QuickstartConfig(Section):
    """`longtake quickstart`: world, SFT, RL, evaluation and report on the tiny model."""

    out: Path = Path("runs/quickstart")
    """Folder to write: every stage's run, summary.json and report.html."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything."""
    held_out_videos: int = Field(default=130, ge=1)
    """Videos of the evaluation, four questions each."""


def check_range(name: str, bounds: tuple[float, float], least: float) -> None:
    """A (smallest, largest) pair of a configuration. Raises PydanticCustomError."""
    low, high = bounds
    if not least <= low <= high:
        raise broken(f"{name} = [{low}, {high}]", f"two numbers >= {least}, the smaller first", f"use e.g. [{least}, {least}]")
