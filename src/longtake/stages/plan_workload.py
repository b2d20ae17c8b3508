"""What the rows ask for: videos probed (never decoded), texts counted, and the prompts that a configuration makes of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer

from longtake.config.plan import PlanConfig
from longtake.config.sections import VideoConfig
from longtake.data.render import TEMPLATE_TOKENS_OF_MEDIA
from longtake.data.rows import SourcedRow, check_row, read_sourced
from longtake.data.texts import user_text
from longtake.errors import LongtakeError, PathError, PromptTooLongError, RowError, VideoError
from longtake.models.tiny import TINY_PATH
from longtake.observe.progress import Progress
from longtake.parallel.costs import num_video_tokens
from longtake.parallel.step import VideoShape
from longtake.types import Failure, ModelCosts, Row
from longtake.video.image import ImageInfo, image_size, probe_image
from longtake.video.paths import resolve_inside
from longtake.video.probe import VideoInfo, probe
from longtake.video.sample import plan_frames

HYPOTHETICAL_FPS = 30.0
FRAMES_TO_KEYFRAME = 30
"""Source frames decoded per sampled one where few are wanted: half of the usual two seconds between keyframes."""
TEMPLATE_TOKENS = 32
"""Of the chat template, with the usual system message."""
BYTES_PER_TOKEN = 3
"""Where there is no tokenizer to count with; real ones reach 4 on English."""


@dataclass(frozen=True)
class AskedRow:
    """A row before any sampling."""

    media: tuple[VideoInfo | ImageInfo, ...]
    """Nothing: asked blind, or a text-only row."""
    text_tokens: int
    source: str = ""
    """Name of the source in a mixture."""


@dataclass
class Workload:
    """The usable rows, and what is wrong with the others, by kind of error."""

    rows: list[AskedRow] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class SampledRow:
    """A row as the model is asked it."""

    prompt_tokens: int
    video_tokens: int
    """Of all its videos and images."""
    media: tuple[tuple[Path, VideoShape], ...]
    """Which they are, and how each is sampled; an image is a video of one temporal group."""
    reduced: bool
    source: str

    @property
    def video(self) -> VideoShape | None:
        """The first of them."""
        return self.media[0][1] if self.media else None


def hypothetical(config: PlanConfig) -> Workload:
    """A step's worth of rows, each with its own video of config.duration seconds and config.video_size."""
    rows = [
        AskedRow((hypothetical_video(config, f"hypothetical {number}"),), config.question_tokens)
        for number in range(config.prompts_per_step)
    ]
    return Workload(rows)


def hypothetical_video(config: PlanConfig, name: str) -> VideoInfo:
    """What probing such a file would tell."""
    width, height = config.video_size
    return VideoInfo(
        path=Path(name),
        width=width,
        height=height,
        start_s=0.0,
        duration_s=config.duration,
        num_frames=max(1, round(config.duration * HYPOTHETICAL_FPS)),
        average_fps=HYPOTHETICAL_FPS,
        rotation=0,
        codec="",
        container="",
        size_bytes=0,
        has_audio=False,
    )


def read_workload(config: PlanConfig) -> Workload:
    """Read the rows and probe each video and image once. Rows that cannot be used are counted. Raises RowError when none is left."""
    items = _rows(config)
    count, found = token_counter(config.model.path), Workload()
    look = Look(cache(lambda path: probe(path, config.video.limits)), cache(lambda path: probe_image(path, config.video.limits)))
    with Progress("probe", total=len(items), enabled=config.observe.progress) as progress:
        for item in items:
            try:
                found.rows.append(_asked(item, config, count, look))
            except (RowError, PathError, VideoError) as error:
                found.failures[type(error).__name__] += 1
            progress.advance()
    if not found.rows:
        kinds = ", ".join(f"{count} {kind}" for kind, count in found.failures.items())
        raise RowError(
            f"no row of {config.data.files} can be used ({kinds})",
            rule="a plan is made for the rows' videos",
            remedy="check data.rows and data.root, or give --frames and --duration",
        )
    return found


def _rows(config: PlanConfig) -> list[SourcedRow]:
    try:
        return read_sourced(config.data)
    except RowError as error:
        without = "plan without rows, e.g. --frames 512 --duration 3600"
        raise RowError(error.given, rule=error.rule, remedy=f"{error.remedy}, or {without}") from error


@dataclass(frozen=True)
class Look:
    """At files, each once."""

    video: Callable[[Path], VideoInfo]
    image: Callable[[Path], ImageInfo]

    def at(self, row: Row, root: Path) -> tuple[VideoInfo | ImageInfo, ...]:
        videos = [self.video(resolve_inside(root, path)) for path in row.videos]
        return (*videos, *(self.image(resolve_inside(root, path)) for path in row.images))


def _asked(row: SourcedRow, config: PlanConfig, count: Callable[[str], int], look: Look) -> AskedRow:
    if isinstance(row.item, Failure):
        raise RowError(row.item.message, rule="rows are readable", remedy="mend the row")
    example = check_row(row.item, row.root, None, with_subtitles=row.with_subtitles)
    media = look.at(row.item, row.root) if config.data.with_video else ()
    text = user_text(example, config.prompt) + (config.prompt.system or "")
    return AskedRow(media, count(text) + TEMPLATE_TOKENS + TEMPLATE_TOKENS_OF_MEDIA * max(0, len(media) - 1), row.source)


def token_counter(model_path: str) -> Callable[[str], int]:
    """Counts with the checkpoint's tokenizer where it has one, else by bytes."""
    folder = TINY_PATH if model_path == "tiny" else Path(model_path).expanduser()
    file = folder / "tokenizer.json"
    if not file.is_file():
        return lambda text: math.ceil(len(text.encode("utf-8")) / BYTES_PER_TOKEN)
    tokenizer = Tokenizer.from_file(str(file))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def sample_rows(config: PlanConfig, costs: ModelCosts, workload: Workload) -> tuple[list[SampledRow], Counter[str]]:
    """The rows as this configuration samples them, and what it refuses, by kind of error."""
    video = video_config(config, costs)
    found: list[SampledRow] = []
    failures: Counter[str] = Counter()
    for row in workload.rows:
        try:
            found.append(_sampled(row, video, config.prompt.max_prompt_tokens, costs))
        except LongtakeError as error:
            failures[type(error).__name__] += 1
    return found, failures


def video_config(config: PlanConfig, costs: ModelCosts) -> VideoConfig:
    """As the run will sample: with the resolution of the checkpoint where none is named, and the hypothetical number of frames."""
    update: dict[str, int] = {} if config.frames is None else {"max_frames": config.frames}
    if config.video.max_pixels_per_frame is None:
        update["max_pixels_per_frame"] = max(costs.max_pixels_per_frame, config.video.min_pixels_per_frame)
    return config.video.model_copy(update=update)


def _sampled(row: AskedRow, video: VideoConfig, max_prompt_tokens: int, costs: ModelCosts) -> SampledRow:
    shapes = [_shape(info, video, costs) for info in row.media]
    tokens = sum(num_video_tokens(costs, shape.num_frames, shape.height, shape.width) for shape, _ in shapes)
    media = tuple((info.path, shape) for info, (shape, _) in zip(row.media, shapes, strict=True))
    found = SampledRow(tokens + row.text_tokens, tokens, media, any(reduced for _, reduced in shapes), row.source)
    if found.prompt_tokens > max_prompt_tokens:
        raise PromptTooLongError(
            f"a prompt of {found.prompt_tokens:,} tokens, {found.video_tokens:,} of them of videos and images",
            rule=f"at most {max_prompt_tokens:,} tokens (prompt.max_prompt_tokens); a prompt is never cut",
            remedy="lower video.max_frames, video.max_pixels_per_frame or video.max_video_tokens, or raise prompt.max_prompt_tokens",
        )
    return found


def _shape(info: VideoInfo | ImageInfo, video: VideoConfig, costs: ModelCosts) -> tuple[VideoShape, bool]:
    """How one video or image is sampled, and whether the token budget took something away."""
    if isinstance(info, ImageInfo):
        height, width = image_size(info, video, costs.patch_multiple)
        return VideoShape(costs.tower.temporal_patch, height, width, float(info.width * info.height)), False
    plan = plan_frames(info, video, costs.patch_multiple, costs.tower.temporal_patch)
    decoded = min(info.num_frames, plan.num_frames * FRAMES_TO_KEYFRAME) * info.width * info.height
    return VideoShape(plan.num_frames, plan.height, plan.width, float(decoded)), plan.reduced
