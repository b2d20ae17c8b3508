"""Which frames and how large, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.config.sections import VideoConfig
from longtake.errors import ConfigError, LongtakeError, PromptTooLongError, VideoLimitError
from longtake.video.probe import VideoInfo
from longtake.video.sample import plan_frames, smart_resize, uniform_times


def info(width: int = 640, height: int = 360, duration_s: float = 60.0, num_frames: int = 1800, start_s: float = 0.0) -> VideoInfo:
    return VideoInfo(Path("v.mp4"), width, height, start_s, duration_s, num_frames, num_frames / duration_s, 0, "h264", "mov", 1, False)


def test_times_are_midpoints() -> None:
    assert uniform_times(0.0, 8.0, 4).tolist() == [1.0, 3.0, 5.0, 7.0]
    assert uniform_times(10.0, 3.0, 2).tolist() == [10.75, 12.25]


@pytest.mark.parametrize(
    ("config", "source", "num_frames", "strategy"),
    [
        ({"max_frames": 32}, {}, 32, "uniform"),
        ({"max_frames": 33}, {}, 32, "uniform"),  # down to whole temporal patches
        ({"max_frames": 768, "fps": 2.0}, {}, 120, "fps"),
        ({"max_frames": 100, "fps": 2.0}, {}, 100, "fps"),
        ({"max_frames": 768, "fps": 0.75}, {}, 44, "fps"),  # 45
        ({"max_frames": 768, "fps": 2.0}, {"duration_s": 59.9999999}, 120, "fps"),
        ({"max_frames": 768, "fps": 0.001}, {}, 2, "fps"),
        ({"max_frames": 32}, {"num_frames": 11}, 10, "uniform"),  # no more than the file has
        ({"max_frames": 32}, {"num_frames": 1}, 2, "uniform"),  # but one temporal patch
    ],
)
def test_number_of_frames(config: dict[str, float], source: dict[str, int], num_frames: int, strategy: str) -> None:
    plan = plan_frames(info(**source), VideoConfig(**config), 28, 2)
    assert (plan.num_frames, plan.strategy, plan.reduced) == (num_frames, strategy, False)
    assert plan.times_s.shape == (num_frames,)


def test_times_start_at_the_start_of_the_file() -> None:
    plan = plan_frames(info(start_s=7.0, duration_s=8.0), VideoConfig(max_frames=4), 28, 2)
    assert plan.times_s.tolist() == [8.0, 10.0, 12.0, 14.0]


@pytest.mark.parametrize(
    ("width", "height", "min_pixels", "max_pixels", "size"),
    [
        (640, 360, 784, 448 * 448, (336, 588)),  # shrunk by sqrt(230400 / 200704) = 15/14: 336 -> 12, 597.3 -> 21.3
        (640, 360, 784, 10**9, (364, 644)),  # rounded: 12.86 -> 13, 22.86 -> 23
        (112, 112, 784, 56 * 56, (56, 56)),
        (20, 20, 784, 10**9, (28, 28)),  # 0.71 -> 1
        (10, 10, 56 * 56, 10**9, (56, 56)),
        (100, 50, 100 * 100, 10**9, (84, 168)),  # grown by sqrt(2): 2.53 -> 3, 5.05 -> 6
    ],
)
def test_size_by_hand(width: int, height: int, min_pixels: int, max_pixels: int, size: tuple[int, int]) -> None:
    assert smart_resize(info(width, height), 28, min_pixels, max_pixels) == size


@pytest.mark.long  # importing transformers takes longer than all the rest
def test_size_equals_transformers() -> None:
    from longtake.models.torchvision_shim import make_torchvision_importable

    make_torchvision_importable()
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_qwen2_vl")
    compared = 0
    for height in (20, 48, 97, 360, 719, 1080, 2160):
        for width in (28, 64, 333, 640, 1920):
            for max_pixels in (56 * 56, 448 * 448, 1280 * 28 * 28):
                theirs = module.smart_resize(height, width, factor=28, min_pixels=784, max_pixels=max_pixels)
                if theirs[0] * theirs[1] <= max_pixels:
                    assert smart_resize(info(width, height), 28, 784, max_pixels) == tuple(theirs)
                    compared += 1
    assert compared > 80


@given(
    st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([28, 32]), st.integers(1, 400), st.integers(1, 400), st.sampled_from([2, 4])
)
def test_size_and_budget_hold(width: int, height: int, multiple: int, low: int, high: int, temporal_patch: int) -> None:
    low, high = sorted((low, high))
    config = VideoConfig(
        min_pixels_per_frame=max(784, low * 1000), max_pixels_per_frame=max(784, high * 1000), max_frames=16, max_video_tokens=500
    )
    try:
        plan = plan_frames(info(width, height), config, multiple, temporal_patch)
    except LongtakeError:
        return
    assert plan.height % multiple == plan.width % multiple == 0
    assert 0 < plan.height * plan.width <= config.max_pixels_per_frame
    assert plan.num_tokens == plan.num_frames // temporal_patch * (plan.height // multiple) * (plan.width // multiple) <= 500
    assert plan.num_frames % temporal_patch == 0


@pytest.mark.parametrize(("width", "height"), [(20_100, 100), (100, 20_100), (5600, 28)])
def test_extreme_aspect_is_refused(width: int, height: int) -> None:
    with pytest.raises(VideoLimitError, match=r"v\.mp4"):
        smart_resize(info(width, height), 28, 784, 784)


def test_contradicting_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="min_pixels_per_frame"):
        smart_resize(info(), 28, 2000, 1000)


BUDGET = {"max_frames": 32, "max_pixels_per_frame": 112 * 112}
"""A square video: 32 frames of 112x112 are 16 groups of 16 tokens = 256."""


@pytest.mark.parametrize(
    ("overflow", "budget", "num_frames", "side", "reduced"),
    [
        ("fewer_pixels", 256, 32, 112, False),
        ("fewer_pixels", 255, 32, 84, True),  # 15 tokens a group: 3x3 fit
        ("fewer_pixels", 16, 32, 28, True),
        ("fewer_frames", 255, 30, 112, True),  # 15 groups
        ("fewer_frames", 16, 2, 112, True),
        ("error", 256, 32, 112, False),
    ],
)
def test_budget(overflow: str, budget: int, num_frames: int, side: int, reduced: bool) -> None:
    config = VideoConfig(**BUDGET, max_video_tokens=budget, overflow=overflow)
    plan = plan_frames(info(400, 400), config, 28, 2)
    assert (plan.num_frames, plan.height, plan.width, plan.reduced) == (num_frames, side, side, reduced)
    assert plan.num_tokens <= budget


@pytest.mark.parametrize(("overflow", "budget"), [("fewer_pixels", 15), ("fewer_frames", 15), ("error", 255)])
def test_budget_that_cannot_be_met(overflow: str, budget: int) -> None:
    config = VideoConfig(**BUDGET, max_video_tokens=budget, overflow=overflow)
    with pytest.raises(PromptTooLongError, match="256 video tokens"):
        plan_frames(info(400, 400), config, 28, 2)


def test_budget_stops_at_the_smallest_picture() -> None:
    config = VideoConfig(**BUDGET, min_pixels_per_frame=84 * 84, max_video_tokens=100)
    with pytest.raises(PromptTooLongError, match="fewer_pixels"):
        plan_frames(info(400, 400), config, 28, 2)
