"""Configuration of `longtake curate`: from a folder of videos to training data. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from longtake.config.base import Section, broken
from longtake.config.llm import BudgetConfig, EndpointConfig
from longtake.config.sections import CacheConfig, JudgeConfig, ModelConfig, PromptConfig, RolloutConfig, VideoConfig, VideoLimits

StageName = Literal["ingest", "segment", "caption", "ground", "question", "rewrite", "check", "difficulty", "split", "publish"]
STAGES: tuple[StageName, ...] = (
    "ingest",
    "segment",
    "caption",
    "ground",
    "question",
    "rewrite",
    "check",
    "difficulty",
    "split",
    "publish",
)


class IngestConfig(Section):
    """Which videos are taken."""

    suffixes: tuple[str, ...] = (".mp4", ".mkv", ".webm", ".mov", ".avi")
    """Files that are looked at; others are ignored and counted."""
    min_seconds: float = Field(default=30.0, ge=0)
    """Shorter videos are dropped."""
    limits: VideoLimits = VideoLimits()
    """Hard limits on a source file."""
    hash_frames: int = Field(default=16, ge=1)
    """Frames, evenly spread, whose perceptual hashes (64 bits each) identify a video whatever its encoding and size."""
    max_hash_distance: float = Field(default=10.0, ge=0, le=64)
    """Two videos are the same when their hashes differ by at most so many bits of 64 on average over the frames, and by at most 0.4 of
    what the frames of one of them differ among themselves (so that two talks in one studio are two videos)."""
    licence: str = "unknown"
    """Licence of videos that `sources` does not name."""
    source: str = "unknown"
    """Origin of videos that `sources` does not name."""
    sources: Path | None = None
    """JSON lines of {"video": path, "licence": text, "source": text}; None: every video has the two above."""
    held_out: tuple[Path, ...] = ()
    """Folders of videos that no training row may show, such as those of a benchmark: what equals one of them is dropped."""


class SegmentConfig(Section):
    """How a video is cut into clips."""

    target_s: float = Field(default=10.0, gt=0)
    """Length aimed at, as published."""
    shortest_s: float = Field(default=4.0, gt=0)
    """No clip is shorter, except a whole video."""
    longest_s: float = Field(default=16.0, gt=0)
    """No clip is longer."""
    scene_fps: float = Field(default=4.0, ge=0)
    """Frames per second in which changes of scene are looked for; 0: cut by time alone."""
    scene_threshold: float = Field(default=27.0, gt=0)
    """Change of hue, saturation and brightness between two frames that is a cut (PySceneDetect's content detector)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 2 * self.shortest_s <= self.longest_s or not self.shortest_s <= self.target_s <= self.longest_s:
            raise broken(
                f"shortest_s = {self.shortest_s:g}, target_s = {self.target_s:g}, longest_s = {self.longest_s:g}",
                "shortest_s <= target_s <= longest_s, and longest_s is at least twice shortest_s, so that any length can be cut",
                "change one of them",
            )
        return self


class CaptionConfig(Section):
    """What the vision-language model is shown of a clip, and asked to say."""

    frames_per_clip: int = Field(default=6, ge=1)
    """Frames of a clip, evenly spread; each is sent with its exact time."""
    max_pixels_per_frame: int = Field(default=448 * 448, ge=28 * 28)
    """Larger frames are reduced to so many pixels."""
    max_chars: int = Field(default=1200, ge=20)
    """Longest caption."""
    temperature: float = Field(default=0.0, ge=0)
    """Of the captioner."""


class GroundConfig(Section):
    """Objects and boxes, for spatial questions."""

    frames_per_clip: int = Field(default=1, ge=0)
    """Frames of a clip whose objects are located; 0: none, and spatial questions rest on captions alone."""
    max_objects: int = Field(default=12, ge=1)
    """Most objects of a frame."""


class QuestionConfig(Section):
    """What the reasoning model is asked to invent."""

    per_video: dict[str, int] = Field(default={"temporal": 3, "goal": 3, "plot": 2, "spatial": 1})
    """Multiple-choice questions asked for about each video, by category: temporal, goal, plot, spatial."""
    open_per_video: dict[str, int] = Field(default={})
    """Open-ended ones, by category."""
    language: str = "en"
    """Code of the language of questions and reasoning."""
    temperature: float = Field(default=0.7, ge=0)
    """Of the reasoning model when it invents and rewrites."""
    max_question_chars: int = Field(default=400, ge=10)
    """Longest question."""
    max_option_chars: int = Field(default=200, ge=1)
    """Longest option, or open-ended answer."""
    max_reasoning_chars: int = Field(default=4000, ge=20)
    """Longest reasoning."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, counts in (("per_video", self.per_video), ("open_per_video", self.open_per_video)):
            wrong = {key: count for key, count in counts.items() if key not in CATEGORIES or not 0 <= count <= 50}
            if wrong:
                raise broken(f"{name} = {wrong}", f"counts of 0 to 50 for {', '.join(CATEGORIES)}", "correct the names and numbers")
        return self


CATEGORIES = ("temporal", "goal", "plot", "spatial")

CHECKS = (
    *("options", "answer", "question", "ranges", "language"),
    *("reasoning", "deliberation", "captions", "letters", "times", "conclusion"),
    *("blind", "supported", "watched"),
    *("duplicate", "quota"),
)
"""Names of the checks, in the order in which they are made: before rewriting, after it, by a model, at the end."""


class CheckConfig(Section):
    """Which rows are good enough. Each check can be switched off by name."""

    off: tuple[str, ...] = ()
    """Checks that are not made; see docs/curation.md for their names."""
    support_votes: int = Field(default=5, ge=1)
    """Answers from the captions of the cited ranges alone; most of them must be the key. Asking ends when the majority is settled."""
    watch_votes: int = Field(default=5, ge=0)
    """Answers of the vision-language model from frames of the cited ranges; most must be the key. 0: not asked."""
    watch_frames: int = Field(default=8, ge=1)
    """Frames it is shown."""
    blind_votes: int = Field(default=6, ge=0)
    """Answers from the question alone, options shuffled anew each time. 0: not asked."""
    blind_right: float = Field(default=0.8, gt=0, le=1)
    """A row is dropped as answerable without the video when at least this share of them is right."""
    temperature: float = Field(default=0.7, ge=0)
    """Of all votes."""
    similar: float = Field(default=90.0, gt=0, le=100)
    """Two questions about a video are the same when their words agree by so many percent."""
    per_video: int | None = Field(default=None, ge=1)
    """Most rows of a video; None: no limit."""
    per_video_and_category: int | None = Field(default=None, ge=1)
    """Most rows of a video in one category; None: no limit."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        unknown = [name for name in self.off if name not in CHECKS]
        if unknown:
            raise broken(f"off = {unknown}", f"the checks are {', '.join(CHECKS)}", "correct the names")
        return self


class DifficultyConfig(Section):
    """The policy answers every row several times; what it always or never gets right teaches nothing (test-scaling)."""

    model: ModelConfig
    """The policy that will be trained."""
    video: VideoConfig = VideoConfig()
    """How it sees videos."""
    cache: CacheConfig = CacheConfig()
    """Where embeddings are kept."""
    prompt: PromptConfig = PromptConfig()
    """What is put around the question."""
    rollout: RolloutConfig = RolloutConfig(num_takes=10)
    """How it answers; rollout.num_takes times."""
    judge: JudgeConfig | None = None
    """What decides whether an open-ended answer is right; None: equality of the normalised texts."""
    keep_certain: bool = False
    """Keep rows that are always or never right, with their pass rate."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.judge is not None and (self.judge.folder is not None or self.judge.budget != BudgetConfig()):
            raise broken(
                "difficulty.judge with a folder or budget of its own",
                "its calls are kept with the others of the run, inside its budget",
                "leave them out, and set `budget`",
            )
        return self


class SplitConfig(Section):
    """How rows are shared out; a video is in one split alone."""

    sft_share: float = Field(default=1 / 3, ge=0, le=1)
    """Share of the training rows for chain-of-thought SFT; the others are for RL."""
    eval_rows: dict[str, int] = Field(default={})
    """Rows of the evaluation split by category, e.g. {"temporal": 50}; empty: there is none. What else is asked about its videos is dropped
    (`eval_surplus`), since a video is in one split alone."""
    max_eval_videos: float = Field(default=0.5, gt=0, le=1)
    """Most videos of the evaluation split, as a share of those that have rows: quotas too large for a folder leave its training rows."""


class PublishConfig(Section):
    """What is written at the end."""

    name: str = "longtake-curated"
    """Name of the data set."""
    videos: Literal["link", "copy", "none"] = "link"
    """Hard links to the videos inside the data set, copies of them, or only their paths (then data.root is the folder of videos)."""
    labels: Path | None = None
    """JSON lines of {"key": row, "right": true | false, "fault": name | null}: rows that a person has judged. The card then says how well
    each check did."""


class CurateConfig(Section):
    """`longtake curate run`: from a folder of long videos to questions with reasoning, checked, split and published."""

    videos: Path
    """Folder of videos, searched with its subfolders."""
    out: Path
    """Folder of the run: an output per stage, what was dropped and why, the answers of the servers, and the data set."""
    seed: int = Field(default=0, ge=0)
    """Of shuffles and samples."""
    shard: str = "0/1"
    """i/n: this machine does the videos of part i (from 0) of n, up to `difficulty`. A run without it afterwards puts all together."""
    until: StageName = "publish"
    """The last stage that is done."""
    dry_run: bool = False
    """Say what calls and tokens the run would need, and what they would cost, and do nothing."""
    prompts: Path | None = None
    """Folder of prompts to use in place of the shipped ones, by file name."""
    vlm: EndpointConfig = EndpointConfig()
    """The vision-language model: captions, boxes, and a second look at the evidence."""
    reasoner: EndpointConfig = EndpointConfig()
    """The reasoning model: questions, rewriting, votes."""
    budget: BudgetConfig = BudgetConfig()
    """What the calls may cost."""
    ingest: IngestConfig = IngestConfig()
    """Which videos are taken."""
    segment: SegmentConfig = SegmentConfig()
    """How they are cut into clips."""
    caption: CaptionConfig = CaptionConfig()
    """What is said about each clip."""
    ground: GroundConfig = GroundConfig()
    """Objects and boxes."""
    question: QuestionConfig = QuestionConfig()
    """What is asked."""
    check: CheckConfig = CheckConfig()
    """Which rows are good enough."""
    difficulty: DifficultyConfig | None = None
    """The test-scaling filter; None: not made."""
    split: SplitConfig = SplitConfig()
    """How rows are shared out."""
    publish: PublishConfig = PublishConfig()
    """What is written at the end."""

    @property
    def shard_index(self) -> int:
        return int(self.shard.partition("/")[0])

    @property
    def num_shards(self) -> int:
        return int(self.shard.partition("/")[2])

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not re.fullmatch(r"[0-9]{1,6}/[0-9]{1,6}", self.shard) or not self.shard_index < self.num_shards:
            raise broken(f"shard = {self.shard!r}", "i/n with 0 <= i < n", "write e.g. 0/4, 1/4, 2/4 and 3/4 on four machines")
        if self.budget.max_cost is not None and not any(one.input_price or one.output_price for one in (self.vlm, self.reasoner)):
            given = f"budget.max_cost = {self.budget.max_cost:g}, and neither vlm nor reasoner has a price"
            raise broken(given, "a limit on money needs prices", "set input_price and output_price, or budget.max_tokens")
        return self
