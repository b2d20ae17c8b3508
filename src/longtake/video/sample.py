"""Which frames of a video, and how large. Pure: no file is touched.

Times are the midpoints of equal segments of the video: the same rule at any number of frames, no frame of the very first or last
instant, and halving the frames keeps the coverage. (Qwen's own loader takes evenly spaced frame numbers from first to last.)

A video with fewer frames than wanted: as in Qwen's loader no more frames are asked for than the file has, rounded down to whole
temporal patches. Only where the file has fewer frames than ONE temporal patch do several targets get the same frame, as Qwen does
for a still picture. A frame shown for long (variable rate) is chosen as often as midpoints fall on it: that is what was on screen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from longtake.config.sections import VideoConfig
from longtake.errors import ConfigError, PromptTooLongError, VideoLimitError
from longtake.video.probe import VideoInfo

MAX_ASPECT = 200
"""Longest side over shortest; Qwen's smart_resize refuses more."""


@dataclass(frozen=True, eq=False)
class FramePlan:
    num_frames: int
    """A multiple of the temporal patch."""
    height: int
    width: int
    times_s: np.ndarray
    """float64 [F], ascending, on the clock of the file's pts (from VideoInfo.start_s on)."""
    reduced: bool
    """The token budget changed the number of frames or their size."""
    strategy: str
    """`uniform` or `fps`: what set the number of frames."""
    num_tokens: int
    """F / temporal_patch * Y / patch_multiple * X / patch_multiple."""


DEFAULT_MAX_PIXELS = 448 * 448
"""Per frame, where neither the configuration nor a checkpoint says anything."""


def max_pixels(config: VideoConfig) -> int:
    return config.max_pixels_per_frame or DEFAULT_MAX_PIXELS


def plan_frames(info: VideoInfo, config: VideoConfig, patch_multiple: int, temporal_patch: int) -> FramePlan:
    """Choose times and size. `patch_multiple`: pixels per token side; `temporal_patch`: frames per token.

    Raises VideoLimitError (aspect ratio), PromptTooLongError (budget, by policy), ConfigError (settings that contradict each other).
    """
    num_frames, strategy = _num_frames(info, config, temporal_patch)
    size = smart_resize(info, patch_multiple, config.min_pixels_per_frame, max_pixels(config))
    wanted = (num_frames, size)
    budget = config.max_video_tokens
    if budget is not None and _tokens(num_frames, size, patch_multiple, temporal_patch) > budget:
        num_frames, size = _reduce(info, config, patch_multiple, temporal_patch, num_frames, size, budget)
    return FramePlan(
        num_frames=num_frames,
        height=size[0],
        width=size[1],
        times_s=uniform_times(info.start_s, info.duration_s, num_frames),
        reduced=(num_frames, size) != wanted,
        strategy=strategy,
        num_tokens=_tokens(num_frames, size, patch_multiple, temporal_patch),
    )


def uniform_times(start_s: float, duration_s: float, num: int) -> np.ndarray:
    """float64 [num]: midpoints of `num` equal segments.

    >>> uniform_times(0.0, 8.0, 4)
    array([1., 3., 5., 7.])
    """
    return start_s + (np.arange(num, dtype=np.float64) + 0.5) * (duration_s / num)


def _num_frames(info: VideoInfo, config: VideoConfig, temporal_patch: int) -> tuple[int, str]:
    wanted, strategy = config.max_frames, "uniform"
    if config.fps is not None:
        by_rate = max(1, math.floor(info.duration_s * config.fps + 1e-6))  # 20 s at 2 fps are 40 frames, also as 19.9999999 s
        wanted, strategy = min(wanted, by_rate), "fps"
    wanted = min(wanted, info.num_frames)
    return max(temporal_patch, wanted // temporal_patch * temporal_patch), strategy


class Sized(Protocol):
    """A video or an image, as far as its size goes."""

    @property
    def path(self) -> Path: ...

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...


def smart_resize(info: Sized, multiple: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """(height, width): multiples of `multiple`, pixels within [min_pixels, max_pixels], aspect kept as nearly as that allows.

    Source: `smart_resize` of transformers' Qwen2-VL image processor; unlike it, a size over max_pixels (very long pictures) is refused.
    """
    if min_pixels > max_pixels:
        raise ConfigError(
            f"video.min_pixels_per_frame = {min_pixels}, video.max_pixels_per_frame = {max_pixels}",
            rule="the smallest is not above the largest",
            remedy="lower the first or raise the second",
        )
    height, width = info.height, info.width
    if max(height, width) > MAX_ASPECT * min(height, width):
        _raise_aspect(info, f"longest side at most {MAX_ASPECT} times the shortest")
    rows, columns = (round(side / multiple) * multiple for side in (height, width))
    if rows * columns > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows, columns = (max(multiple, math.floor(side / shrink / multiple) * multiple) for side in (height, width))
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = (math.ceil(side * grow / multiple) * multiple for side in (height, width))
    if rows * columns > max_pixels:
        _raise_aspect(info, f"whole patches of {multiple} pixels fit into max_pixels_per_frame = {max_pixels}")
    return rows, columns


def _raise_aspect(info: Sized, rule: str) -> None:
    raise VideoLimitError(
        f"{info.path}: a picture of {info.width}x{info.height}", rule=rule, remedy="raise video.max_pixels_per_frame or crop it"
    )


def _tokens(num_frames: int, size: tuple[int, int], multiple: int, temporal_patch: int) -> int:
    return num_frames // temporal_patch * (size[0] // multiple) * (size[1] // multiple)


def _reduce(
    info: VideoInfo, config: VideoConfig, multiple: int, temporal_patch: int, num_frames: int, size: tuple[int, int], budget: int
) -> tuple[int, tuple[int, int]]:
    """Apply `config.overflow`. fewer_pixels stops at min_pixels_per_frame, fewer_frames at one temporal patch; beyond, it is an error."""
    groups = num_frames // temporal_patch
    if config.overflow == "fewer_frames":
        groups = budget // _tokens(temporal_patch, size, multiple, temporal_patch)
        if groups >= 1:
            return groups * temporal_patch, size
    if config.overflow == "fewer_pixels":
        max_pixels = budget // groups * multiple * multiple
        if max_pixels >= config.min_pixels_per_frame:
            return num_frames, smart_resize(info, multiple, config.min_pixels_per_frame, max_pixels)
    raise PromptTooLongError(
        f"{info.path}: {num_frames} frames of {size[1]}x{size[0]} are {_tokens(num_frames, size, multiple, temporal_patch)} video tokens",
        rule=f"video.max_video_tokens = {budget} with video.overflow = {config.overflow}",
        remedy="raise the budget, lower max_frames or the pixels per frame, or choose another overflow policy",
    )
