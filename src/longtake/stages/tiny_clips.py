"""Videos in memory for `longtake tiny train`: decoded once, shown with jittered frame times, asked about in one prompt each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longtake.config.sections import PromptConfig, VideoConfig
from longtake.config.stages import TinyConfig, WorldConfig
from longtake.data.render import render_prompt
from longtake.models import Model
from longtake.models.positions import time_step
from longtake.observe.progress import Progress
from longtake.types import Example, Frames, Prompt, Sampling, VideoRef, VideoTokens
from longtake.video.decode import load_frames
from longtake.world.descriptions import INSTRUCTION
from longtake.world.questions import describe
from longtake.world.story import Story
from longtake.world.write import story_of, video_name

POOL_FRAMES = 128
"""Frames of a video that are read; each step takes some of them, at jittered times."""


@dataclass(frozen=True, eq=False)
class Clip:
    """A video in memory and what is to be said about it."""

    pixels: np.ndarray
    """uint8 [POOL_FRAMES, Y, X, 3]."""
    times_s: np.ndarray
    story: Story
    example: Example


def read_clips(config: TinyConfig, world: WorldConfig, model: Model) -> list[Clip]:
    """Decode every video once, at the model's resolution."""
    setting = VideoConfig(max_frames=POOL_FRAMES, max_pixels_per_frame=config.pixels_per_frame)
    clips = []
    with Progress("decode", world.num_videos) as progress:
        for index in range(world.num_videos):
            path = world.out / video_name(index)
            frames = load_frames(VideoRef(path, str(path)), setting, model.patch_multiple, model.temporal_patch)
            story = story_of(world, index)
            clips.append(Clip(frames.pixels, frames.times_s, story, example_of(story, INSTRUCTION, describe(story))))
            progress.advance()
    return clips


def example_of(story: Story, instruction: str, description: str) -> Example:
    return Example(story.seed, instruction, (), description, "text", "describe", "", (), None, story.duration_s)


def show(model: Model, clips: Sequence[Clip], num_frames: int, rng: np.random.Generator | None) -> list[Prompt]:
    """Prompts for whole descriptions; see `tokens_of`."""
    return [ask(model, clip.example, (tokens,)) for clip, tokens in zip(clips, tokens_of(model, clips, num_frames, rng), strict=True)]


def ask(model: Model, example: Example, tokens: Sequence[VideoTokens] = ()) -> Prompt:
    return render_prompt(example, tokens, model, PromptConfig(instruction=""))


def tokens_of(model: Model, clips: Sequence[Clip], num_frames: int, rng: np.random.Generator | None) -> list[VideoTokens]:
    """`num_frames` frames of each clip, one per equal segment: jittered and with gradients with an rng, at the midpoints without.

    All clips pass the tower as one long video: its attention stays inside a temporal group, so the result is the same.
    """
    picks = [segments(len(clip.times_s), num_frames, rng) for clip in clips]
    pixels = np.concatenate([clip.pixels[pick] for clip, pick in zip(clips, picks, strict=True)])
    sampling = Sampling(len(pixels), pixels.shape[1], pixels.shape[2], "jittered", "bicubic")
    together = Frames(pixels, np.arange(len(pixels), dtype=np.float64), "clips", sampling, 0)
    encoded = model.encode(together, len(pixels), gradients=rng is not None)
    grid = (num_frames // model.temporal_patch, *encoded.grid[1:])
    seconds = [time_step(clip.times_s[pick], model.temporal_patch)[0] for clip, pick in zip(clips, picks, strict=True)]
    return [VideoTokens(piece, grid, second, "clip") for piece, second in zip(encoded.embeddings.chunk(len(clips)), seconds, strict=True)]


def segments(available: int, wanted: int, rng: np.random.Generator | None) -> np.ndarray:
    """Indices int64 [wanted] into `available` frames, ascending, one per equal segment."""
    inside = rng.random(wanted) if rng is not None else np.full(wanted, 0.5)
    return np.minimum(((np.arange(wanted) + inside) * available / wanted).astype(np.int64), available - 1)
